//! What differs between IPv4 and IPv6: the width of an address, and which maps it belongs to.

use std::{
    fmt::Debug,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use weft_abi::addr::{Addr4, Addr6};

use crate::contents::{PolicyContents, PolicyTables, ServiceContents, ServiceTables};

/// An address of one family, as the maps hold it.
pub trait Address: Copy + Debug + Default + Ord + 'static {
    /// Bits of an address.
    const BITS: u32;

    /// The address, if it is of this family.
    fn from_ip(address: IpAddr) -> Option<Self>;

    /// The address, of any family.
    fn to_ip(self) -> IpAddr;

    /// The address in the leading bits of a number, so that code over prefixes is the same for
    /// both families.
    fn to_leading_bits(self) -> u128;

    /// The inverse of [`Self::to_leading_bits`]; bits beyond the address are ignored.
    fn from_leading_bits(bits: u128) -> Self;

    /// The family's maps of policies.
    fn policy(contents: &PolicyContents) -> &PolicyTables<Self>;

    /// The same, to fill them.
    fn policy_mut(contents: &mut PolicyContents) -> &mut PolicyTables<Self>;

    /// The family's maps of services.
    fn services(contents: &ServiceContents) -> &ServiceTables<Self>;

    /// The same, to fill them.
    fn services_mut(contents: &mut ServiceContents) -> &mut ServiceTables<Self>;
}

impl Address for Addr4 {
    const BITS: u32 = 32;

    fn from_ip(address: IpAddr) -> Option<Self> {
        match address {
            IpAddr::V4(v4) => Some(v4.into()),
            IpAddr::V6(_) => None,
        }
    }

    fn to_ip(self) -> IpAddr {
        Ipv4Addr::from(self).into()
    }

    fn to_leading_bits(self) -> u128 {
        u128::from(self.to_bits()) << 96
    }

    fn from_leading_bits(bits: u128) -> Self {
        let [a, b, c, d, ..] = bits.to_be_bytes();
        Self::new([a, b, c, d])
    }

    fn policy(contents: &PolicyContents) -> &PolicyTables<Self> {
        &contents.v4
    }

    fn policy_mut(contents: &mut PolicyContents) -> &mut PolicyTables<Self> {
        &mut contents.v4
    }

    fn services(contents: &ServiceContents) -> &ServiceTables<Self> {
        &contents.v4
    }

    fn services_mut(contents: &mut ServiceContents) -> &mut ServiceTables<Self> {
        &mut contents.v4
    }
}

impl Address for Addr6 {
    const BITS: u32 = 128;

    fn from_ip(address: IpAddr) -> Option<Self> {
        match address {
            IpAddr::V4(_) => None,
            IpAddr::V6(v6) => Some(v6.into()),
        }
    }

    fn to_ip(self) -> IpAddr {
        Ipv6Addr::from(self).into()
    }

    fn to_leading_bits(self) -> u128 {
        u128::from_be_bytes(self.octets)
    }

    fn from_leading_bits(bits: u128) -> Self {
        Self::new(bits.to_be_bytes())
    }

    fn policy(contents: &PolicyContents) -> &PolicyTables<Self> {
        &contents.v6
    }

    fn policy_mut(contents: &mut PolicyContents) -> &mut PolicyTables<Self> {
        &mut contents.v6
    }

    fn services(contents: &ServiceContents) -> &ServiceTables<Self> {
        &contents.v6
    }

    fn services_mut(contents: &mut ServiceContents) -> &mut ServiceTables<Self> {
        &mut contents.v6
    }
}

/// An underlay address as map values hold it: IPv4 in the mapped form.
#[must_use]
pub fn underlay(address: IpAddr) -> Addr6 {
    match address {
        IpAddr::V4(v4) => Addr6::mapped(v4.into()),
        IpAddr::V6(v6) => v6.into(),
    }
}

/// The leading `length` bits set.
#[must_use]
pub(crate) const fn leading_mask(length: u32) -> u128 {
    match length {
        0 => 0,
        128.. => u128::MAX,
        _ => u128::MAX << (128 - length),
    }
}
