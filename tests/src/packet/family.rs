//! The two families, and places that have an address in each.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{
    LocalPod,
    bytes::{Packet, Payload},
};

/// IPv4 or IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// Both.
pub const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// What has an address in each family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its IPv4 address.
    pub v4: Ipv4Addr,
    /// Its IPv6 address.
    pub v6: Ipv6Addr,
}

/// What packets can be addressed to, in a family.
pub trait Somewhere {
    /// Its address in this family.
    ///
    /// # Panics
    ///
    /// When it is an address of the other family.
    fn at(&self, family: Family) -> IpAddr;
}

impl Somewhere for Place {
    fn at(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.v4.into(),
            Family::V6 => self.v6.into(),
        }
    }
}

impl Somewhere for LocalPod {
    fn at(&self, family: Family) -> IpAddr {
        self.place.at(family)
    }
}

impl Somewhere for IpAddr {
    fn at(&self, family: Family) -> IpAddr {
        assert_eq!(Family::of(*self), family, "{self} is of the other family");
        *self
    }
}

impl<T: Somewhere> Somewhere for &T {
    fn at(&self, family: Family) -> IpAddr {
        (*self).at(family)
    }
}

impl Place {
    /// Both addresses.
    #[must_use]
    pub fn addresses(&self) -> [IpAddr; 2] {
        FAMILIES.map(|family| self.at(family))
    }
}

impl Family {
    /// The family of an address.
    #[must_use]
    pub const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// One of two values.
    pub fn pick<T>(self, v4: T, v6: T) -> T {
        match self {
            Self::V4 => v4,
            Self::V6 => v6,
        }
    }

    /// The protocol number of ICMP.
    #[must_use]
    pub const fn icmp(self) -> u8 {
        match self {
            Self::V4 => 1,
            Self::V6 => 58,
        }
    }

    /// Bytes of the IP header without options and extensions.
    #[must_use]
    pub const fn header(self) -> usize {
        match self {
            Self::V4 => 20,
            Self::V6 => 40,
        }
    }

    /// The address that is none: with a prefix length of 0, the network of everything.
    #[must_use]
    pub const fn unspecified(self) -> IpAddr {
        match self {
            Self::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            Self::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        }
    }

    /// Bits of an address.
    #[must_use]
    pub const fn bits(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }

    /// A packet between two places.
    #[must_use]
    pub fn packet(
        self,
        source: impl Somewhere,
        destination: impl Somewhere,
        payload: Payload,
    ) -> Packet {
        Packet::new(source.at(self), destination.at(self), payload)
    }

    /// A packet as this pod sends it.
    #[must_use]
    pub fn from(self, pod: &LocalPod, destination: impl Somewhere, payload: Payload) -> Packet {
        self.packet(pod, destination, payload).sent_by(pod.mac)
    }
}
