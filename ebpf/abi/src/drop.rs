//! Why a packet was dropped.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

macro_rules! drop_reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident = $number:literal, $name:literal;)+) => {
        /// Why a packet was dropped: the index into the `drops` map, and a field of every event.
        ///
        /// Numbers are part of the ABI: they are never reused or renumbered.
        #[repr(u8)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum DropReason {
            $($(#[doc = $doc])+ $variant = $number,)+
        }

        impl DropReason {
            /// Every reason, in the order of its number.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The stable name: the metric label and what an operator reads.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),+ }
            }

            /// What it means, in a sentence or two.
            #[must_use]
            pub const fn description(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc),+)),+ }
            }
        }
    };
}

drop_reasons! {
    /// The packet ends before the headers it announces, or a header contradicts itself.
    Malformed = 1, "malformed";
    /// An Ethernet type that Weft does not forward (pods need no ARP: their neighbour is permanent).
    UnsupportedEtherType = 2, "unsupported-ethertype";
    /// An IP protocol that Weft does not track.
    UnsupportedProtocol = 3, "unsupported-protocol";
    /// A later fragment, which carries no ports, of a packet whose first fragment was not seen.
    Fragment = 4, "fragment";
    /// The source IP or MAC address is not the sending pod's.
    Spoofed = 5, "spoofed-source";
    /// The pod's policy set is not programmed yet: it passes nothing but its own node's traffic.
    EndpointNotReady = 6, "endpoint-not-ready";
    /// No egress rule of the sending pod's policies allows it.
    PolicyEgress = 7, "policy-egress";
    /// No ingress rule of the receiving pod's policies allows it.
    PolicyIngress = 8, "policy-ingress";
    /// The service port has no usable endpoint.
    NoBackend = 9, "no-backend";
    /// The destination is in a pod network, but no such pod exists here.
    NoEndpoint = 10, "no-endpoint";
    /// No route: the address belongs to no known node and not to the outside.
    NoRoute = 11, "no-route";
    /// An overlay packet from an address that is not the node's that owns the inner source.
    UnknownTunnel = 12, "unknown-tunnel";
    /// A translation needed a free source port and found none.
    NoPort = 13, "no-free-port";
    /// The flow could not be stored, so the reply could not be recognised. Or its entry is gone before
    /// it ended, and the reset that this brings about was held back.
    FlowTable = 14, "flow-table";
    /// A kernel helper refused to change or redirect the packet.
    Helper = 15, "helper-failed";
    /// The datapath has no configuration yet.
    NotConfigured = 16, "not-configured";
    /// A pod sent to a node's overlay port, where only nodes may speak.
    OverlayPort = 17, "overlay-port";
    /// Neighbour discovery, multicast, broadcast or another address of one link: pods have no
    /// neighbours but their gateway, whose address they know.
    LinkLocal = 18, "link-local";
    /// More than the pod's bandwidth allows.
    Bandwidth = 19, "bandwidth";
    /// A packet of a pod was about to leave the node with an address that the outside cannot answer.
    NotMasqueraded = 20, "not-masqueraded";
    /// IPv6 extension headers beyond what Weft looks through.
    ExtensionHeaders = 21, "extension-headers";
    /// The service's loadBalancerSourceRanges do not contain the client.
    SourceRange = 22, "source-range";
    /// The traffic policy is Local, and no endpoint of the service is on this node.
    NoLocalBackend = 23, "no-local-backend";
    /// The address is a cluster IP, but of a service that has no such port.
    NoServicePort = 24, "no-service-port";
    /// The address is one for cluster IPs, and no service has it.
    UnallocatedAddress = 25, "unallocated-address";
}

/// Slots of the `drops` map: more than there are reasons, so that a later version fits the pin.
pub const DROP_SLOTS: u32 = 64;

impl DropReason {
    /// The reason of this number.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL
            .iter()
            .copied()
            .find(|reason| *reason as u8 == number)
    }
}

/// Value of the `drops` map, per CPU; the key is the number of a [`DropReason`].
#[repr(C)]
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct DropCount {
    /// Dropped packets (a GSO packet counts once).
    pub packets: u64,
    /// Their bytes, Ethernet header included.
    pub bytes: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_dense_and_fit() {
        for (index, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index + 1, "{}", reason.name());
            assert!((*reason as u32) < DROP_SLOTS);
            assert_eq!(DropReason::from_number(*reason as u8), Some(*reason));
        }
        assert_eq!(DropReason::from_number(0), None);
    }
}
