//! What kube-proxy left on the node: rules that take the traffic of Services before or after Weft does,
//! and go on doing so when nobody updates them any more.
//!
//! ```text
//!   nftables    the tables `kube-proxy`; chains of iptables-nft   [nftables]
//!   iptables    chains of the tables that the kernel has in use   [legacy]
//!   IPVS        virtual servers, and the interface with all cluster addresses
//! ```
//!
//! Everything is looked at as the kernel has it, without any of the tools. The kubelet's own chains
//! (`KUBE-IPTABLES-HINT`, `KUBE-KUBELET-CANARY`, `KUBE-FIREWALL`, `KUBE-MARK-*`, `KUBE-POSTROUTING`)
//! are none of kube-proxy's, and harm nobody.

mod legacy;
mod nftables;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;

use tracing::debug;

/// The interface that kube-proxy puts every cluster address on, for IPVS.
pub const IPVS_DEVICE: &str = "kube-ipvs0";

/// Something that kube-proxy left.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Leftover {
    /// An nftables table: the family as `nft` has it, `ip` or `ip6`.
    Nftables(&'static str),
    /// Chains of iptables.
    Chains {
        /// The command that shows them.
        command: &'static str,
        /// The table.
        table: String,
        /// How many.
        count: usize,
        /// One of them.
        example: String,
    },
    /// Virtual servers of IPVS.
    VirtualServers(usize),
    /// [`IPVS_DEVICE`].
    Device,
}

impl fmt::Display for Leftover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("kube-proxy is still in the way of Services on this node: ")?;
        let by_hand = match self {
            Self::Nftables(family) => {
                write!(f, "there is the nftables table {family} kube-proxy")?;
                format!("`nft delete table {family} kube-proxy`")
            }
            Self::Chains {
                command,
                table,
                count,
                example,
            } => {
                write!(
                    f,
                    "{command} has {count} chains of its in table {table}, as {example}"
                )?;
                "restart the node, which keeps none of them".to_owned()
            }
            Self::VirtualServers(count) => {
                write!(f, "IPVS has {count} virtual servers, which may be its")?;
                "`ipvsadm --clear` if nobody else uses IPVS".to_owned()
            }
            Self::Device => {
                write!(f, "there is the interface {IPVS_DEVICE}")?;
                format!("`ip link delete {IPVS_DEVICE}`")
            }
        };
        write!(
            f,
            ". If it still runs, end it (delete its DaemonSet); then run `kube-proxy --cleanup`, or \
                {by_hand}"
        )
    }
}

/// What there is in the network namespace of the calling thread. What cannot be looked at is taken
/// for absent.
pub fn find() -> BTreeSet<Leftover> {
    let mut found = BTreeSet::new();
    match nftables::find() {
        Ok(leftovers) => found.extend(leftovers),
        Err(error) => debug!(%error, "cannot look at nftables"),
    }
    for family in legacy::Family::ALL {
        match legacy::find(family) {
            Ok(leftovers) => found.extend(leftovers),
            Err(error) => debug!(%error, command = family.command, "cannot look at its tables"),
        }
    }
    let servers = fs::read_to_string("/proc/thread-self/net/ip_vs").unwrap_or_default();
    match virtual_servers(&servers) {
        0 => {}
        count => {
            found.insert(Leftover::VirtualServers(count));
        }
    }
    if nix::net::if_::if_nametoindex(IPVS_DEVICE).is_ok() {
        found.insert(Leftover::Device);
    }
    found
}

/// Whether a chain of this name is kube-proxy's.
fn is_of_kube_proxy(chain: &str) -> bool {
    let Some(name) = chain.strip_prefix("KUBE-") else {
        return false;
    };
    const WHOLE: [&str; 5] = [
        "SERVICES",
        "NODEPORTS",
        "NODE-PORT",
        "EXTERNAL-SERVICES",
        "LOAD-BALANCER",
    ];
    const PARTS: [&str; 6] = ["SVC-", "SVL-", "SEP-", "EXT-", "FW-", "PROXY-"];
    WHOLE.contains(&name) || PARTS.iter().any(|part| name.starts_with(part))
}

/// The chains of kube-proxy among chains, which are told by table.
fn chains(
    command: &'static str,
    all: impl Iterator<Item = (String, String)>,
) -> impl Iterator<Item = Leftover> {
    let mut tables: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (table, chain) in all.filter(|(_, chain)| is_of_kube_proxy(chain)) {
        tables.entry(table).or_default().insert(chain);
    }
    tables.into_iter().filter_map(move |(table, chains)| {
        let known = chains.get("KUBE-SERVICES").or_else(|| chains.first());
        Some(Leftover::Chains {
            command,
            table,
            count: chains.len(),
            example: known?.clone(),
        })
    })
}

/// How many virtual servers `/proc/net/ip_vs` has: each has a line that begins with what it is for.
fn virtual_servers(text: &str) -> usize {
    let is_one = |line: &&str| {
        let kind = line.split(' ').next();
        matches!(kind, Some("TCP" | "UDP" | "SCTP" | "FWM"))
    };
    text.lines().filter(is_one).count()
}

#[cfg(test)]
mod tests {
    use std::thread;

    use nix::sched::{CloneFlags, unshare};

    use super::*;

    /// Runs a test in a network namespace of its own.
    pub(super) fn in_a_namespace(test: impl FnOnce() + Send + 'static) {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: making a network namespace needs root");
            return;
        }
        let thread = thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("a namespace");
            assert_eq!(find(), BTreeSet::new(), "a new namespace is clean");
            test();
        });
        thread.join().expect("the test passes");
    }

    #[test]
    fn chains_of_the_kubelet_are_its_own() {
        for name in [
            "KUBE-SERVICES",
            "KUBE-SVC-TCOU7JCQXEZGVUNU",
            "KUBE-PROXY-CANARY",
        ] {
            assert!(is_of_kube_proxy(name), "{name}");
        }
        for name in [
            "KUBE-IPTABLES-HINT",
            "KUBE-KUBELET-CANARY",
            "KUBE-FIREWALL",
            "KUBE-MARK-MASQ",
            "KUBE-POSTROUTING",
            "SERVICES",
            "MY-KUBE-SERVICES",
        ] {
            assert!(!is_of_kube_proxy(name), "{name}");
        }
    }

    #[test]
    fn virtual_servers_are_counted_and_their_backends_are_not() {
        let text = "IP Virtual Server version 1.2.1 (size=4096)\n\
            Prot LocalAddress:Port Scheduler Flags\n  \
              -> RemoteAddress:Port Forward Weight ActiveConn InActConn\n\
            TCP  0A600001:01BB rr \n  \
              -> AC1E0002:192B      Masq    1      0          0         \n\
            UDP  [fd00:0010:0096:0000:0000:0000:0000:000a]:0035 rr \n";
        assert_eq!(virtual_servers(text), 2);
        assert_eq!(virtual_servers(""), 0);
    }

    #[test]
    fn a_warning_says_what_to_do() {
        let all = [
            (Leftover::Nftables("ip6"), "nft delete table ip6 kube-proxy"),
            (
                Leftover::Chains {
                    command: "iptables",
                    table: "nat".to_owned(),
                    count: 7,
                    example: "KUBE-SERVICES".to_owned(),
                },
                "7 chains of its in table nat, as KUBE-SERVICES",
            ),
            (Leftover::VirtualServers(3), "ipvsadm --clear"),
            (Leftover::Device, "ip link delete kube-ipvs0"),
        ];
        for (leftover, part) in all {
            let text = leftover.to_string();
            assert!(text.contains(part), "{text}");
            assert!(text.contains("kube-proxy --cleanup"), "{text}");
        }
    }
}
