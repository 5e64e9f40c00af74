//! The contents of the maps that the agent writes, as plain ordered collections.
//!
//! What the compiler wants and what was read back from the kernel are the same type. Flows, drop
//! counters and the configuration are not here: the first two are the datapath's own, the last is
//! the agent's.

use std::collections::BTreeMap;

use weft_abi::{
    addr::{Addr4, Addr6},
    endpoint::{Bandwidth, Endpoint},
    ipcache::IpcacheEntry,
    policy::{
        POLICY_PREFIX_PEER, POLICY_PREFIX_PORT, POLICY_PREFIX_PROTOCOL, PolicyKey, PolicyVerdict,
    },
    service::{
        Backend, Frontend, FrontendKey, MaglevBlock, MaglevKey, SOURCE_RANGE_PREFIX, Slot, SlotKey,
        SourceRange,
    },
};

use crate::family::{Address, leading_mask};

/// Key of a longest-prefix-match map.
///
/// Keys that the kernel takes for the same one are equal: bits beyond the prefix are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LpmKey<K> {
    /// How many leading bits of `data` count.
    pub prefix_len: u32,
    /// The data.
    pub data: K,
}

impl<A: Address> LpmKey<A> {
    /// The key of an address prefix; a length beyond the address's is its length.
    #[must_use]
    pub fn address(address: A, prefix_len: u32) -> Self {
        let prefix_len = prefix_len.min(A::BITS);
        let bits = address.to_leading_bits() & leading_mask(prefix_len);
        Self {
            prefix_len,
            data: A::from_leading_bits(bits),
        }
    }
}

impl LpmKey<PolicyKey> {
    /// The key of a policy entry. Set, identity and direction always match in full: the length is
    /// at least [`POLICY_PREFIX_PEER`], and at most that of the key.
    #[must_use]
    pub fn policy(key: PolicyKey, prefix_len: u32) -> Self {
        let prefix_len = prefix_len.clamp(POLICY_PREFIX_PEER, POLICY_PREFIX_PORT);
        let protocol = if prefix_len < POLICY_PREFIX_PROTOCOL {
            0
        } else {
            key.protocol
        };
        let beyond = POLICY_PREFIX_PORT - prefix_len.max(POLICY_PREFIX_PROTOCOL);
        let port = u32::from(u16::from_be_bytes(key.port)) >> beyond << beyond;
        let [_, _, high, low] = port.to_be_bytes();
        Self {
            prefix_len,
            data: PolicyKey {
                protocol,
                port: [high, low],
                ..key
            },
        }
    }
}

impl<A: Address> LpmKey<SourceRange<A>> {
    /// The key of a network of sources that a service port lets in.
    #[must_use]
    pub fn sources(service: u32, address: A, prefix_len: u32) -> Self {
        let network = LpmKey::address(address, prefix_len);
        Self {
            prefix_len: SOURCE_RANGE_PREFIX + network.prefix_len,
            data: SourceRange {
                service,
                address: network.data,
            },
        }
    }
}

/// The value in `source_ranges4` and `source_ranges6`; what counts is that there is one.
pub type LetIn = u32;

/// The maps of one address family that say whether and whither; `A` is its address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyTables<A: Address> {
    /// `endpoints4`, `endpoints6`.
    pub endpoints: BTreeMap<A, Endpoint>,
    /// `ipcache4`, `ipcache6`.
    pub ipcache: BTreeMap<LpmKey<A>, IpcacheEntry>,
}

impl<A: Address> Default for PolicyTables<A> {
    fn default() -> Self {
        Self {
            endpoints: BTreeMap::new(),
            ipcache: BTreeMap::new(),
        }
    }
}

/// The maps that say whether a packet passes, whither, and how fast.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PolicyContents {
    /// The IPv4 maps.
    pub v4: PolicyTables<Addr4>,
    /// The IPv6 maps.
    pub v6: PolicyTables<Addr6>,
    /// `policy`.
    pub verdicts: BTreeMap<LpmKey<PolicyKey>, PolicyVerdict>,
    /// `bandwidth`, by interface index. How full a bucket is belongs to the programs: `full_at` is
    /// always 0 here, and whoever reads the map back makes it so.
    pub bandwidth: BTreeMap<u32, Bandwidth>,
}

/// The maps of one address family that say which backend; `A` is its address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceTables<A: Address> {
    /// `frontends4`, `frontends6`.
    pub frontends: BTreeMap<FrontendKey<A>, Frontend>,
    /// `backends4`, `backends6`, by the backend's number.
    pub backends: BTreeMap<u32, Backend<A>>,
    /// `source_ranges4`, `source_ranges6`.
    pub source_ranges: BTreeMap<LpmKey<SourceRange<A>>, LetIn>,
}

impl<A: Address> Default for ServiceTables<A> {
    fn default() -> Self {
        Self {
            frontends: BTreeMap::new(),
            backends: BTreeMap::new(),
            source_ranges: BTreeMap::new(),
        }
    }
}

/// The maps that say which backend.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceContents {
    /// The IPv4 maps.
    pub v4: ServiceTables<Addr4>,
    /// The IPv6 maps.
    pub v6: ServiceTables<Addr6>,
    /// `slots`.
    pub slots: BTreeMap<SlotKey, Slot>,
    /// `maglev`.
    pub maglev: BTreeMap<MaglevKey, MaglevBlock>,
}

/// Everything that the agent writes into maps, except the configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// Whether, whither, how fast.
    pub policy: PolicyContents,
    /// Which backend.
    pub services: ServiceContents,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_beyond_the_prefix_are_zero() {
        let address = Addr4::new([10, 1, 2, 3]);
        assert_eq!(LpmKey::address(address, 9).data, Addr4::new([10, 0, 0, 0]));
        assert_eq!(LpmKey::address(address, 0).data, Addr4::default());
        assert_eq!(LpmKey::address(address, 99).prefix_len, 32);

        let key = PolicyKey {
            policy_set: 7,
            identity: 9,
            direction: 1,
            protocol: 6,
            port: 0x1f93_u16.to_be_bytes(),
        };
        let at = |length| LpmKey::policy(key, length).data;
        assert_eq!(at(POLICY_PREFIX_PORT), key);
        assert_eq!(at(POLICY_PREFIX_PORT - 2).port, [0x1f, 0x90]);
        assert_eq!(
            at(POLICY_PREFIX_PROTOCOL),
            PolicyKey {
                port: [0, 0],
                ..key
            }
        );
        let peer = PolicyKey {
            protocol: 0,
            port: [0, 0],
            ..key
        };
        assert_eq!(at(POLICY_PREFIX_PEER), peer);
        assert_eq!(
            LpmKey::policy(key, 0),
            LpmKey {
                prefix_len: POLICY_PREFIX_PEER,
                data: peer
            }
        );
    }
}
