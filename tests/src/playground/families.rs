//! Address families, and the playground's address plan.
//!
//! ```text
//!   nodes     172.30.0.0/16    fd00:172:30::/64   .1 the fabric, .10 and on: the nodes (::a and on)
//!   second    172.31.0.0/16    fd00:172:31::/64   .5 a machine, .10 and on: the nodes' second uplinks
//!   transit   192.0.2.0/24     2001:db8:2::/64    .1 the fabric, .2 the router
//!   outside   198.51.100.0/24  2001:db8:51::/64   .1 the router, .10 to .13: the outside (::a to ::d)
//!   balanced  203.0.113.0/24   2001:db8:113::/64  load balancers' addresses, nobody's by themselves
//! ```
//!
//! The last number of an address is the same in both families.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub const BOTH: [Family; 2] = [Family::V4, Family::V6];

    /// The family of an address.
    #[must_use]
    pub fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Family::V4,
            IpAddr::V6(_) => Family::V6,
        }
    }

    /// Its name in the Kubernetes API.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        }
    }
}

/// The families of something, in order of preference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Families {
    /// IPv4 only.
    #[default]
    V4,
    /// IPv6 only.
    V6,
    /// Both, IPv4 first.
    Dual,
    /// Both, IPv6 first.
    DualV6First,
}

impl Families {
    /// The families, the preferred one first.
    #[must_use]
    pub fn each(self) -> &'static [Family] {
        match self {
            Families::V4 => &[Family::V4],
            Families::V6 => &[Family::V6],
            Families::Dual => &[Family::V4, Family::V6],
            Families::DualV6First => &[Family::V6, Family::V4],
        }
    }
}

/// A network with both families.
#[derive(Clone, Copy, Debug)]
pub struct Subnet {
    v4: Ipv4Net,
    v6: Ipv6Net,
}

impl Subnet {
    const fn new(v4: [u8; 2], v4_third: u8, v4_prefix: u8, v6: [u16; 3]) -> Self {
        let v4 = Ipv4Addr::new(v4[0], v4[1], v4_third, 0);
        let v6 = Ipv6Addr::new(v6[0], v6[1], v6[2], 0, 0, 0, 0, 0);
        Subnet {
            v4: Ipv4Net::new_assert(v4, v4_prefix),
            v6: Ipv6Net::new_assert(v6, 64),
        }
    }

    /// The network.
    #[must_use]
    pub fn of(&self, family: Family) -> IpNet {
        match family {
            Family::V4 => self.v4.into(),
            Family::V6 => self.v6.into(),
        }
    }

    /// The address with this last number.
    #[must_use]
    pub fn host(&self, family: Family, number: u8) -> IpAddr {
        match family {
            Family::V4 => Ipv4Addr::from(u32::from(self.v4.addr()) + u32::from(number)).into(),
            Family::V6 => Ipv6Addr::from(u128::from(self.v6.addr()) + u128::from(number)).into(),
        }
    }

    /// The same with the network's prefix length, as an interface has it.
    #[must_use]
    pub fn interface(&self, family: Family, number: u8) -> IpNet {
        let prefix = self.of(family).prefix_len();
        IpNet::new_assert(self.host(family, number), prefix)
    }
}

/// The nodes' network.
pub const NODES: Subnet = Subnet::new([172, 30], 0, 16, [0xfd00, 0x172, 0x30]);

/// The network of the nodes' second uplinks.
pub const SECOND: Subnet = Subnet::new([172, 31], 0, 16, [0xfd00, 0x172, 0x31]);

/// Between the fabric and the outside's router.
pub const TRANSIT: Subnet = Subnet::new([192, 0], 2, 24, [0x2001, 0xdb8, 0x2]);

/// The world outside.
pub const OUTSIDE: Subnet = Subnet::new([198, 51], 100, 24, [0x2001, 0xdb8, 0x51]);

/// Where load balancers' addresses come from.
pub const BALANCED: Subnet = Subnet::new([203, 0], 113, 24, [0x2001, 0xdb8, 0x113]);

/// The number of the network's router: the fabric's, or, outside, the router's.
pub const ROUTER: u8 = 1;

/// The number of the outside's router in the transit network.
pub const TRANSIT_ROUTER: u8 = 2;

/// The number of the machine in the second network.
pub const SECOND_MACHINE: u8 = 5;

/// The number of the first node.
pub const FIRST_NODE: u8 = 10;

/// The numbers of the outside's addresses.
pub const OUTSIDE_ADDRESSES: std::ops::RangeInclusive<u8> = 10..=13;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_where_the_plan_says() {
        let shown = |subnet: Subnet, number| {
            Family::BOTH.map(|family| subnet.interface(family, number).to_string())
        };
        assert_eq!(
            shown(NODES, FIRST_NODE),
            ["172.30.0.10/16", "fd00:172:30::a/64"]
        );
        assert_eq!(
            shown(SECOND, SECOND_MACHINE),
            ["172.31.0.5/16", "fd00:172:31::5/64"]
        );
        assert_eq!(shown(TRANSIT, 2), ["192.0.2.2/24", "2001:db8:2::2/64"]);
        assert_eq!(
            shown(OUTSIDE, 13),
            ["198.51.100.13/24", "2001:db8:51::d/64"]
        );
    }
}
