//! The addresses of a network that pods can have, as numbers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use ipnet::IpNet;

/// The usable addresses of a network, as numbers, both ends included.
///
/// The first address is never used: in IPv4 it is the network's, in IPv6 it is every router's
/// (subnet-router anycast, RFC 4291 2.6.1). Nor is, in IPv4, the broadcast address. The gateway is
/// link-local and needs none. IPv4 networks too small for that (/31, /32) and a single IPv6 address
/// are used whole.
#[derive(Clone, Copy, Debug)]
pub struct Range {
    first: u128,
    last: u128,
    v4: bool,
}

impl Range {
    /// The range of a network.
    pub fn of(pool: &IpNet) -> Self {
        let (first, last) = (number(pool.network()), number(pool.broadcast()));
        let v4 = is_v4(pool);
        let spare = if v4 { last - first >= 2 } else { last > first };
        Self {
            first: first + u128::from(spare),
            last: last - u128::from(spare && v4),
            v4,
        }
    }

    /// How many addresses it has.
    pub fn size(&self) -> u128 {
        (self.last - self.first).saturating_add(1)
    }

    /// The first address.
    pub fn first(&self) -> u128 {
        self.first
    }

    /// Whether it is of IPv4.
    pub fn is_v4(&self) -> bool {
        self.v4
    }

    /// Whether the address is one of it.
    pub fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.v4 && (self.first..=self.last).contains(&number(address))
    }

    /// The first and the last address.
    pub fn bounds(&self) -> RangeInclusive<IpAddr> {
        address(self.first, self.v4)..=address(self.last, self.v4)
    }

    /// Every address once, beginning with this one.
    pub fn from(self, start: u128) -> impl Iterator<Item = IpAddr> {
        let start = start.clamp(self.first, self.last);
        (start..=self.last)
            .chain(self.first..start)
            .map(move |number| address(number, self.v4))
    }

    /// The number after this address, round the end.
    pub fn after(&self, address: IpAddr) -> u128 {
        match number(address) {
            number if number < self.last => number + 1,
            _ => self.first,
        }
    }
}

/// Whether a network is of IPv4.
pub fn is_v4(pool: &IpNet) -> bool {
    matches!(pool, IpNet::V4(_))
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => v4.to_bits().into(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

fn address(number: u128, v4: bool) -> IpAddr {
    if v4 {
        // Within a range of IPv4 addresses, so the upper bits are zero.
        Ipv4Addr::from_bits(number as u32).into()
    } else {
        Ipv6Addr::from_bits(number).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_networks() {
        for (pool, addresses) in [
            ("10.1.0.0/31", 2),
            ("10.1.0.0/32", 1),
            ("10.1.0.0/30", 2),
            ("fd00::/128", 1),
            ("fd00::/127", 1),
            ("fd00::/126", 3),
        ] {
            let range = Range::of(&pool.parse().expect("a network"));
            assert_eq!(range.size(), addresses, "{pool}");
        }
    }
}
