//! How large packets may be. Pure.

use weft_core::model::Routing;

use crate::netlink::overlay;
use crate::netlink::uplinks::Uplink;

/// MTU of an uplink that cannot be found: Ethernet's.
const UPLINK_MTU: u32 = 1500;

/// The largest packets, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mtus {
    /// That the overlay takes.
    pub overlay: u32,
    /// That pods send.
    pub pods: u32,
    /// Whether an uplink's is assumed, because none has the node's address.
    pub assumed: bool,
}

/// Follows from the uplinks, so that whatever a pod sends fits through any of them. `given` is what
/// the operator decided.
pub fn mtus(given: Option<u32>, routing: Routing, ipv6_tunnels: bool, uplinks: &[Uplink]) -> Mtus {
    let smallest = |all: &mut dyn Iterator<Item = &Uplink>| all.map(|uplink| uplink.mtu).min();
    let any = smallest(&mut uplinks.iter());
    let underlay = smallest(&mut uplinks.iter().filter(|uplink| uplink.carries_node)).or(any);
    let overhead = if ipv6_tunnels {
        overlay::OVERHEAD_V6
    } else {
        overlay::OVERHEAD_V4
    };
    let overlay = underlay.unwrap_or(UPLINK_MTU).saturating_sub(overhead);
    let native = any.unwrap_or(UPLINK_MTU);
    Mtus {
        overlay: given.unwrap_or(overlay),
        pods: given.unwrap_or(match routing {
            Routing::Vxlan => overlay,
            Routing::Native => native,
        }),
        assumed: given.is_none() && any.is_none(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uplink(mtu: u32, carries_node: bool) -> Uplink {
        Uplink {
            index: mtu,
            name: format!("eth{mtu}"),
            mtu,
            v4: None,
            v6: None,
            carries_node,
        }
    }

    #[test]
    fn what_pods_send_fits_through_every_uplink_that_it_may_take() {
        let uplinks = [uplink(9000, true), uplink(1500, false)];
        let of = |routing, ipv6| {
            let mtus = mtus(None, routing, ipv6, &uplinks);
            (mtus.overlay, mtus.pods)
        };
        // Tunnels only leave by the uplink with the node's address.
        assert_eq!(of(Routing::Vxlan, false), (8950, 8950));
        assert_eq!(of(Routing::Vxlan, true), (8930, 8930));
        assert_eq!(of(Routing::Native, false).1, 1500);

        let loopback_node = [uplink(1400, false), uplink(1500, false)];
        assert_eq!(mtus(None, Routing::Vxlan, false, &loopback_node).pods, 1350);
        let given = mtus(Some(1300), Routing::Native, false, &uplinks);
        assert_eq!(
            (given.pods, given.overlay, given.assumed),
            (1300, 1300, false)
        );
        let none = mtus(None, Routing::Vxlan, false, &[]);
        assert_eq!((none.pods, none.assumed), (1450, true));
    }
}
