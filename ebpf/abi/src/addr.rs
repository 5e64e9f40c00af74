//! Addresses as map fields: octets in network order, aligned for word-wise comparison.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// An IPv4 address.
#[repr(C, align(4))]
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Default,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
)]
pub struct Addr4 {
    /// Network order: `[10, 244, 1, 2]` is 10.244.1.2.
    pub octets: [u8; 4],
}

/// An IPv6 address; also an underlay address of either family (IPv4 as `::ffff:a.b.c.d`).
#[repr(C, align(4))]
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Default,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
)]
pub struct Addr6 {
    /// Network order.
    pub octets: [u8; 16],
}

impl Addr4 {
    /// The address of these octets, in network order.
    #[must_use]
    pub const fn new(octets: [u8; 4]) -> Self {
        Self { octets }
    }

    /// As a number, in host order: comparisons of it equal comparisons of the octets.
    #[must_use]
    #[inline(always)]
    pub const fn to_bits(self) -> u32 {
        u32::from_be_bytes(self.octets)
    }
}

impl Addr6 {
    /// The address of these octets, in network order.
    #[must_use]
    pub const fn new(octets: [u8; 16]) -> Self {
        Self { octets }
    }

    /// An IPv4 underlay address in IPv6 form, `::ffff:a.b.c.d`.
    #[must_use]
    pub const fn mapped(v4: Addr4) -> Self {
        let [a, b, c, d] = v4.octets;
        Self {
            octets: [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d],
        }
    }

    /// The IPv4 address of the mapped form, if it is one.
    #[must_use]
    pub const fn as_mapped(self) -> Option<Addr4> {
        match self.octets {
            [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d] => {
                Some(Addr4::new([a, b, c, d]))
            }
            _ => None,
        }
    }
}

impl From<core::net::Ipv4Addr> for Addr4 {
    fn from(address: core::net::Ipv4Addr) -> Self {
        Self {
            octets: address.octets(),
        }
    }
}

impl From<Addr4> for core::net::Ipv4Addr {
    fn from(address: Addr4) -> Self {
        Self::from(address.octets)
    }
}

impl From<core::net::Ipv6Addr> for Addr6 {
    fn from(address: core::net::Ipv6Addr) -> Self {
        Self {
            octets: address.octets(),
        }
    }
}

impl From<Addr6> for core::net::Ipv6Addr {
    fn from(address: Addr6) -> Self {
        Self::from(address.octets)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mapped_round_trips() {
        let v4 = Addr4::new([10, 0, 0, 7]);
        assert_eq!(Addr6::mapped(v4).as_mapped(), Some(v4));
        assert_eq!(Addr6::default().as_mapped(), None);
    }

    #[test]
    fn bits_order_as_octets() {
        assert!(Addr4::new([9, 255, 0, 0]).to_bits() < Addr4::new([10, 0, 0, 0]).to_bits());
    }
}
