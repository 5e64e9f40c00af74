//! The chains of legacy iptables, as `getsockopt` of a raw socket tells them
//! (`linux/netfilter_ipv4/ip_tables.h` and `ip6_tables.h`).
//!
//! A table is looked at only if the kernel has it in use already: asking for it would make it.

use std::fs;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use super::{Leftover, chains};
use crate::netlink::raw::{text, u16_at, u32_at};

/// `IPT_SO_GET_INFO`, `IPT_SO_GET_ENTRIES`; IPv6 has the same numbers.
const GET_INFO: i32 = 64;
const GET_ENTRIES: i32 = 65;
/// `struct ipt_getinfo`: its length, and where the size of the entries is.
const INFO: usize = 84;
const INFO_SIZE: usize = 80;
/// `struct ipt_get_entries`: where the size and the entries are.
const ENTRIES_SIZE: usize = 32;
const ENTRIES: usize = 40;
/// `XT_TABLE_MAXNAMELEN`, with the zero at its end.
const NAME: usize = 32;
/// `struct xt_entry_target`: where its name and its data are. The target `ERROR` begins a chain, and
/// has the chain's name.
const TARGET_NAME: usize = 2;
const TARGET_DATA: usize = 32;
const CHAIN_NAME: usize = 30;

/// A family of tables.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    /// The command that shows them.
    pub command: &'static str,
    domain: i32,
    level: i32,
    /// The file with the tables in use.
    tables: &'static str,
    /// Where `struct ipt_entry` or `ip6t_entry` has the offset of its target; that of the next entry
    /// follows it.
    target_offset: usize,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [
        Self {
            command: "iptables-legacy",
            domain: libc::AF_INET,
            level: libc::IPPROTO_IP,
            tables: "/proc/thread-self/net/ip_tables_names",
            target_offset: 88,
        },
        Self {
            command: "ip6tables-legacy",
            domain: libc::AF_INET6,
            level: libc::IPPROTO_IPV6,
            tables: "/proc/thread-self/net/ip6_tables_names",
            target_offset: 140,
        },
    ];
}

/// What there is of kube-proxy.
pub fn find(family: Family) -> io::Result<Vec<Leftover>> {
    let tables = match fs::read_to_string(family.tables) {
        Ok(tables) => tables,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut all = Vec::new();
    for table in tables.lines() {
        let entries = entries(family, table)?;
        all.extend(chain_names(family, &entries).map(|chain| (table.to_owned(), chain)));
    }
    Ok(chains(family.command, all.into_iter()).collect())
}

/// The names of a table's chains that are not built in, and `ERROR` at its end.
fn chain_names(family: Family, entries: &[u8]) -> impl Iterator<Item = String> {
    let mut rest = entries;
    std::iter::from_fn(move || {
        let target = usize::from(u16_at(rest, family.target_offset)?);
        let next = usize::from(u16_at(rest, family.target_offset + 2)?);
        let entry = rest.get(..next).filter(|entry| !entry.is_empty())?;
        rest = &rest[next..];
        Some(entry.get(target..))
    })
    .filter_map(|target| {
        let name = target?.get(TARGET_NAME..TARGET_DATA)?;
        let chain = target?.get(TARGET_DATA..TARGET_DATA + CHAIN_NAME)?;
        (text(name) == "ERROR").then(|| text(chain))
    })
}

/// A table's entries.
fn entries(family: Family, table: &str) -> io::Result<Vec<u8>> {
    let socket = socket(family)?;
    // The table may change between the two questions.
    let mut attempts = 3;
    loop {
        let mut info = vec![0; INFO];
        put_name(&mut info, table)?;
        let info = get(&socket, family, GET_INFO, info)?;
        let size = u32_at(&info, INFO_SIZE).unwrap_or_default();
        let mut all = vec![0; ENTRIES + size as usize];
        put_name(&mut all, table)?;
        all[ENTRIES_SIZE..ENTRIES_SIZE + size_of::<u32>()].copy_from_slice(&size.to_ne_bytes());
        match get(&socket, family, GET_ENTRIES, all) {
            Ok(mut all) => return Ok(all.split_off(ENTRIES.min(all.len()))),
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) && attempts > 0 => {
                attempts -= 1;
            }
            Err(error) => return Err(error),
        }
    }
}

fn put_name(into: &mut [u8], table: &str) -> io::Result<()> {
    if table.len() >= NAME {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    into[..table.len()].copy_from_slice(table.as_bytes());
    Ok(())
}

fn socket(family: Family) -> io::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
    // SAFETY: no pointers.
    let socket = unsafe { libc::socket(family.domain, kind, libc::IPPROTO_RAW) };
    if socket < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made it, for nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(socket) })
}

/// Asks with a buffer, and gives it back with the answer.
fn get(socket: &OwnedFd, family: Family, what: i32, mut buffer: Vec<u8>) -> io::Result<Vec<u8>> {
    let mut length = libc::socklen_t::try_from(buffer.len()).map_err(io::Error::other)?;
    // SAFETY: the buffer is valid for `length` bytes, and the kernel writes no more.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            family.level,
            what,
            buffer.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if result == 0 {
        Ok(buffer)
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::in_a_namespace;
    use super::*;
    use crate::netlink::leftovers;

    /// `IPT_SO_SET_REPLACE`, and `struct ipt_replace` up to its entries.
    const SET_REPLACE: i32 = 64;
    const HOOKS: usize = 5;
    const RETURN: i32 = -5;

    /// Adds chains to a table, as `iptables -N` does: the whole table is replaced.
    fn add_chains(family: Family, table: &str, names: &[&str]) {
        let socket = socket(family).expect("a socket");
        let mut info = vec![0; INFO];
        put_name(&mut info, table).expect("short");
        let info = get(&socket, family, GET_INFO, info).expect("told");
        let count = u32_at(&info, INFO_SIZE - 4).expect("told");
        let old = entries(family, table).expect("told");
        // The last entry ends the table; the first one is a policy, of the form of any verdict.
        let next = |entry: &[u8]| u16_at(entry, family.target_offset + 2).map(usize::from);
        let policy = old[..next(&old).expect("an entry")].to_vec();
        let mut at = 0;
        while at + next(&old[at..]).expect("an entry") < old.len() {
            at += next(&old[at..]).expect("an entry");
        }
        let (mut new, end) = (old[..at].to_vec(), &old[at..]);
        let target = usize::from(u16_at(end, family.target_offset).expect("an entry"));
        for name in names {
            let mut start = end.to_vec();
            let field = &mut start[target + TARGET_DATA..][..CHAIN_NAME];
            field.fill(0);
            field[..name.len()].copy_from_slice(name.as_bytes());
            new.extend(start);
            let mut verdict = policy.clone();
            let field = &mut verdict[target + TARGET_DATA..][..4];
            field.copy_from_slice(&RETURN.to_ne_bytes());
            new.extend(verdict);
        }
        new.extend(end);

        let mut counters = vec![0_u64; 2 * count as usize];
        let mut replace = vec![0; NAME];
        put_name(&mut replace, table).expect("short");
        replace.extend(&info[NAME..NAME + 4]);
        let entries = count + 2 * u32::try_from(names.len()).expect("few");
        replace.extend(entries.to_ne_bytes());
        replace.extend(u32::try_from(new.len()).expect("short").to_ne_bytes());
        replace.extend(&info[NAME + 4..NAME + 4 + 2 * 4 * HOOKS]);
        replace.extend(count.to_ne_bytes());
        replace.resize(replace.len().next_multiple_of(8), 0);
        replace.extend((counters.as_mut_ptr() as u64).to_ne_bytes());
        replace.extend(new);
        let length = libc::socklen_t::try_from(replace.len()).expect("short");
        // SAFETY: the buffer is valid for its length, and the counters that it points at for theirs.
        let result = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                family.level,
                SET_REPLACE,
                replace.as_ptr().cast(),
                length,
            )
        };
        assert_eq!(result, 0, "{}", io::Error::last_os_error());
    }

    /// Whether the kernel has legacy tables of this family.
    fn is_there(family: Family) -> bool {
        entries(family, "filter").is_ok()
    }

    #[test]
    fn chains_are_found_in_the_kernel() {
        in_a_namespace(|| {
            let [v4, v6] = Family::ALL;
            if !is_there(v4) || !is_there(v6) {
                eprintln!("skipped: the kernel has no legacy iptables");
                return;
            }
            add_chains(v4, "filter", &["KUBE-FIREWALL", "OTHER"]);
            assert_eq!(leftovers::find(), [].into());
            add_chains(v4, "filter", &["KUBE-SERVICES", "KUBE-FORWARD"]);
            add_chains(v6, "filter", &["KUBE-SVC-1", "KUBE-EXT-1"]);
            let chains = |command, count, example: &str| Leftover::Chains {
                command,
                table: "filter".to_owned(),
                count,
                example: example.to_owned(),
            };
            let expected = [
                chains("iptables-legacy", 1, "KUBE-SERVICES"),
                chains("ip6tables-legacy", 2, "KUBE-EXT-1"),
            ];
            assert_eq!(leftovers::find(), expected.into());
        });
    }

    #[test]
    fn entries_that_end_early_are_no_chains() {
        let [v4, _] = Family::ALL;
        let mut entry = vec![0; 176];
        entry[88..90].copy_from_slice(&112_u16.to_ne_bytes());
        entry[90..92].copy_from_slice(&176_u16.to_ne_bytes());
        entry[114..119].copy_from_slice(b"ERROR");
        entry[144..149].copy_from_slice(b"CHAIN");
        let names = |entries: &[u8]| chain_names(v4, entries).collect::<Vec<_>>();
        assert_eq!(
            names(&[entry.clone(), entry.clone()].concat()),
            ["CHAIN"; 2]
        );
        for end in 0..entry.len() {
            assert!(names(&entry[..end]).is_empty());
        }
        // A next entry that is this one, and a target beyond it.
        entry[90..92].fill(0);
        assert!(names(&entry).is_empty());
        entry[90..92].copy_from_slice(&112_u16.to_ne_bytes());
        assert!(names(&entry).is_empty());
    }
}
