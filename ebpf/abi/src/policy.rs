//! Policy sets: the compiled rules of endpoints with the same effective policy.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// [`PolicyKey::direction`]: towards the endpoint.
pub const INGRESS: u8 = 0;
/// [`PolicyKey::direction`]: from the endpoint.
pub const EGRESS: u8 = 1;

/// [`PolicyKey::identity`] of the entries that hold for every peer without an entry of its own.
///
/// Lookup order: first the peer's identity, then this. A hit of the first lookup is final, so the
/// compiler repeats in an identity's entries whatever of the wildcard's still holds for it.
pub const IDENTITY_ANY: u32 = u32::MAX;

/// [`PolicyVerdict::verdict`]: drop.
pub const DENY: u8 = 0;
/// [`PolicyVerdict::verdict`]: let pass.
pub const ALLOW: u8 = 1;

/// Bits of [`PolicyKey`] before the protocol: set, identity and direction always match in full.
pub const POLICY_PREFIX_PEER: u32 = 32 + 32 + 8;
/// Prefix length of an entry for all ports of one protocol.
pub const POLICY_PREFIX_PROTOCOL: u32 = POLICY_PREFIX_PEER + 8;
/// Prefix length of an entry for one port of one protocol.
pub const POLICY_PREFIX_PORT: u32 = POLICY_PREFIX_PROTOCOL + 16;

/// Data of a `policy` key, after the prefix length; the longest prefix counts.
#[repr(C, packed)]
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
)]
pub struct PolicyKey {
    /// The policy set.
    pub policy_set: u32,
    /// The peer's identity, or [`IDENTITY_ANY`].
    pub identity: u32,
    /// [`INGRESS`] or [`EGRESS`].
    pub direction: u8,
    /// IP protocol number; outside the prefix: any.
    pub protocol: u8,
    /// Destination port, big-endian so that a prefix of it is a port range; for ICMP the type and
    /// the code.
    pub port: [u8; 2],
}

/// Value of `policy`.
#[repr(C)]
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
)]
pub struct PolicyVerdict {
    /// The rule that decided: resolves (in the agent) to a policy, a direction and a rule index, or
    /// to the list of policies that isolate the pod.
    pub rule: u32,
    /// [`ALLOW`] or [`DENY`].
    pub verdict: u8,
    /// Zero.
    pub reserved: [u8; 3],
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefix_covers_the_key() {
        assert_eq!(POLICY_PREFIX_PORT as usize, size_of::<PolicyKey>() * 8);
    }
}
