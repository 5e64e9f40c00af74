//! The lookups that the datapath does, over [`PolicyContents`] instead of the kernel's maps: what status
//! and explanations tell, and what tests compare.

use std::net::IpAddr;

use weft_abi::{
    addr::{Addr4, Addr6},
    endpoint::{ENFORCE_EGRESS, ENFORCE_INGRESS, Endpoint},
    ipcache::{IDENTITY_NONE, IpcacheEntry},
    policy::{
        ALLOW, IDENTITY_ANY, POLICY_PREFIX_PEER, POLICY_PREFIX_PORT, PolicyKey, PolicyVerdict,
    },
};

use crate::{
    contents::{LpmKey, PolicyContents},
    family::Address,
    rules::Direction,
};

/// What a policy lookup found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PolicyMatch {
    /// The entry's key.
    pub key: LpmKey<PolicyKey>,
    /// Its value.
    pub verdict: PolicyVerdict,
}

impl PolicyMatch {
    /// Whether the packet passes.
    #[must_use]
    pub fn allows(&self) -> bool {
        self.verdict.verdict == ALLOW
    }
}

/// The local endpoint of an address.
#[must_use]
pub fn endpoint(contents: &PolicyContents, address: IpAddr) -> Option<Endpoint> {
    match address {
        IpAddr::V4(v4) => contents.v4.endpoints.get(&v4.into()).copied(),
        IpAddr::V6(v6) => contents.v6.endpoints.get(&v6.into()).copied(),
    }
}

/// The longest prefix that covers an address, and its length.
#[must_use]
pub fn ipcache(contents: &PolicyContents, address: IpAddr) -> Option<(u32, IpcacheEntry)> {
    match address {
        IpAddr::V4(v4) => longest_prefix(contents, Addr4::from(v4)),
        IpAddr::V6(v6) => longest_prefix(contents, Addr6::from(v6)),
    }
}

fn longest_prefix<A: Address>(
    contents: &PolicyContents,
    address: A,
) -> Option<(u32, IpcacheEntry)> {
    let table = &A::policy(contents).ipcache;
    (0..=A::BITS).rev().find_map(|length| {
        let entry = table.get(&LpmKey::address(address, length))?;
        Some((length, *entry))
    })
}

/// The identity of an address, of this node or not.
#[must_use]
pub fn identity(contents: &PolicyContents, address: IpAddr) -> u32 {
    match endpoint(contents, address) {
        Some(endpoint) => endpoint.identity,
        None => ipcache(contents, address).map_or(IDENTITY_NONE, |(_, entry)| entry.identity),
    }
}

/// The entry that decides about a packet of `identity`: first the identity's own, then everyone's.
/// `port` is the destination port, or for ICMP type and code. `None` denies.
#[must_use]
pub fn policy(
    contents: &PolicyContents,
    policy_set: u32,
    direction: Direction,
    identity: u32,
    protocol: u8,
    port: u16,
) -> Option<PolicyMatch> {
    [identity, IDENTITY_ANY].into_iter().find_map(|identity| {
        let exact = PolicyKey {
            policy_set,
            identity,
            direction: direction.number(),
            protocol,
            port: port.to_be_bytes(),
        };
        (POLICY_PREFIX_PEER..=POLICY_PREFIX_PORT)
            .rev()
            .find_map(|length| {
                let key = LpmKey::policy(exact, length);
                let verdict = *contents.verdicts.get(&key)?;
                Some(PolicyMatch { key, verdict })
            })
    })
}

/// Whether a local endpoint's policies let a packet pass; `peer` is the other end's address. The
/// exemptions of the datapath (its own node, itself, replies) are not considered.
#[must_use]
pub fn allows(
    contents: &PolicyContents,
    endpoint: &Endpoint,
    direction: Direction,
    peer: IpAddr,
    protocol: u8,
    port: u16,
) -> bool {
    if endpoint.policy_set == 0 {
        return false;
    }
    let enforced = match direction {
        Direction::Ingress => ENFORCE_INGRESS,
        Direction::Egress => ENFORCE_EGRESS,
    };
    if endpoint.enforce & enforced == 0 {
        return true;
    }
    let identity = identity(contents, peer);
    policy(
        contents,
        endpoint.policy_set,
        direction,
        identity,
        protocol,
        port,
    )
    .is_some_and(|found| found.allows())
}
