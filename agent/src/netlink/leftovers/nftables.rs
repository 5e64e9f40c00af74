//! The tables and chains of nftables, by `nfnetlink`. iptables-nft makes tables of these names too.

use std::io;

use rtnetlink::sys::protocols::NETLINK_NETFILTER;

use super::{Leftover, chains};
use crate::netlink::raw::{Raw, attributes, text};

/// `linux/netfilter/nfnetlink.h` and `nf_tables.h`: the subsystem, and its messages.
const NFNL_SUBSYS_NFTABLES: u16 = 10;
const GET_TABLE: u16 = NFNL_SUBSYS_NFTABLES << 8 | 1;
const GET_CHAIN: u16 = NFNL_SUBSYS_NFTABLES << 8 | 4;
const NFTA_TABLE_NAME: u16 = 1;
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
/// `struct nfgenmsg`: the family, a version, the number of a resource.
const GENERIC: usize = 4;

/// The families that kube-proxy has tables in: `NFPROTO_IPV4` and `NFPROTO_IPV6` of
/// `linux/netfilter.h`, their names, and the command that shows its chains.
const FAMILIES: [(u8, &str, &str); 2] = [(2, "ip", "iptables-nft"), (10, "ip6", "ip6tables-nft")];

/// The table of kube-proxy in its mode `nftables`.
const TABLE: &str = "kube-proxy";

/// What there is of kube-proxy.
pub fn find() -> io::Result<Vec<Leftover>> {
    let mut netlink = Raw::open(NETLINK_NETFILTER)?;
    let mut found = Vec::new();
    for (family, name, command) in FAMILIES {
        let all_of_family = [family, 0, 0, 0];
        let tables = netlink.dump(GET_TABLE, &all_of_family)?;
        let mut names = tables
            .iter()
            .filter_map(|table| value(table, NFTA_TABLE_NAME));
        if names.any(|name| name == TABLE) {
            found.push(Leftover::Nftables(name));
        }
        let all = netlink.dump(GET_CHAIN, &all_of_family)?;
        let all = all.iter().filter_map(|chain| {
            let table = value(chain, NFTA_CHAIN_TABLE)?;
            Some((table, value(chain, NFTA_CHAIN_NAME)?))
        });
        found.extend(chains(command, all));
    }
    Ok(found)
}

/// The text of an attribute of a message.
fn value(message: &[u8], kind: u16) -> Option<String> {
    let mut attributes = attributes(message.get(GENERIC..)?);
    attributes.find_map(|(found, value)| (found == kind).then(|| text(value)))
}

#[cfg(test)]
mod tests {
    use super::super::tests::in_a_namespace;
    use super::*;
    use crate::netlink::leftovers;
    use crate::netlink::raw::message;

    const BATCH_BEGIN: u16 = 16;
    const BATCH_END: u16 = 17;
    const NEW_TABLE: u16 = NFNL_SUBSYS_NFTABLES << 8;
    const NEW_CHAIN: u16 = NFNL_SUBSYS_NFTABLES << 8 | 3;
    /// `NLM_F_REQUEST`, `NLM_F_ACK`, `NLM_F_CREATE`.
    const REQUEST: u16 = 0x1;
    const ACK: u16 = 0x4;
    const CREATE: u16 = 0x400;

    fn body(family: u8, attributes: &[(u16, &str)]) -> Vec<u8> {
        let mut body = vec![family, 0, 0, 0];
        for (kind, text) in attributes {
            let length = u16::try_from(4 + text.len() + 1).expect("short");
            body.extend(length.to_ne_bytes());
            body.extend(kind.to_ne_bytes());
            body.extend(text.as_bytes());
            body.push(0);
            body.resize(body.len().next_multiple_of(4), 0);
        }
        body
    }

    /// Makes a table and, in it, chains.
    fn make(family: u8, table: &str, chains: &[&str]) {
        let netlink = Raw::open(NETLINK_NETFILTER).expect("a socket");
        let about = [0, 0, 0, 10];
        let mut parts = vec![(BATCH_BEGIN, REQUEST, about.to_vec())];
        let last = if chains.is_empty() { ACK } else { 0 };
        let named = body(family, &[(NFTA_TABLE_NAME, table)]);
        parts.push((NEW_TABLE, REQUEST | CREATE | last, named));
        for (at, chain) in chains.iter().enumerate() {
            let last = if at + 1 == chains.len() { ACK } else { 0 };
            let named = body(
                family,
                &[(NFTA_CHAIN_TABLE, table), (NFTA_CHAIN_NAME, chain)],
            );
            parts.push((NEW_CHAIN, REQUEST | CREATE | last, named));
        }
        parts.push((BATCH_END, REQUEST, about.to_vec()));
        let messages = parts
            .iter()
            .map(|(kind, flags, body)| message(*kind, *flags, 0, body).expect("short"));
        let messages: Vec<_> = messages.collect();
        netlink.send(&messages.concat()).expect("makes");
    }

    #[test]
    fn tables_and_chains_are_found_in_the_kernel() {
        in_a_namespace(|| {
            make(
                2,
                "nat",
                &["KUBE-KUBELET-CANARY", "KUBE-MARK-MASQ", "DOCKER"],
            );
            make(2, "kube", &[]);
            assert_eq!(leftovers::find(), [].into());
            make(10, "kube-proxy", &["services"]);
            assert_eq!(leftovers::find(), [Leftover::Nftables("ip6")].into());
            make(2, "nat", &["KUBE-SVC-AAAA", "KUBE-SERVICES", "KUBE-SEP-B"]);
            make(10, "filter", &["KUBE-NODEPORTS"]);
            let chains = |command, table: &str, count, example: &str| Leftover::Chains {
                command,
                table: table.to_owned(),
                count,
                example: example.to_owned(),
            };
            let expected = [
                Leftover::Nftables("ip6"),
                chains("iptables-nft", "nat", 3, "KUBE-SERVICES"),
                chains("ip6tables-nft", "filter", 1, "KUBE-NODEPORTS"),
            ];
            assert_eq!(leftovers::find(), expected.into());
        });
    }
}
