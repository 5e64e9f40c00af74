//! At start: what is there against what was written down.
//!
//! - A record whose interface is gone is of a pod that went with its namespace (a reboot, a sandbox
//!   that died): record and addresses are released. A DEL that still comes finds nothing, which is
//!   fine.
//! - An interface of ours without a record is of an ADD that did not get to its end, and which the
//!   runtime never heard of: it is removed.
//! - Addresses whose owner has no record are of such an ADD as well: released.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result};
use tracing::{info, warn};

use crate::endpoints::{Endpoints, Record};
use crate::ipam::{Ipam, Owner};
use crate::netlink::{Link, Netlink, veth};

/// What is to be done; decided from what is there, without effects.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Records that stay, with another interface index.
    pub renumbered: Vec<Record>,
    /// Records whose interface is gone.
    pub gone: Vec<Record>,
    /// Interfaces without a record.
    pub stray: Vec<Link>,
    /// Owners of addresses without a record.
    pub orphans: BTreeSet<Owner>,
}

/// Compares records, interfaces and allocations.
pub fn plan(records: &[Record], links: &[Link], owners: impl IntoIterator<Item = Owner>) -> Plan {
    let mut plan = Plan::default();
    let mut pods: BTreeMap<&str, &Link> = links
        .iter()
        .filter(|link| veth::is_host_end(link))
        .map(|link| (link.name.as_str(), link))
        .collect();
    let mut kept = BTreeSet::new();
    for record in records {
        match pods.remove(record.interface.as_str()) {
            None => plan.gone.push(record.clone()),
            Some(link) => {
                kept.insert(record.owner.clone());
                if link.index != record.ifindex {
                    plan.renumbered.push(Record {
                        ifindex: link.index,
                        ..record.clone()
                    });
                }
            }
        }
    }
    plan.stray = pods.into_values().cloned().collect();
    // An unreadable allocation has an empty owner: nobody can say that it is not in use.
    plan.orphans = owners
        .into_iter()
        .filter(|owner| !kept.contains(owner) && !owner.container_id.is_empty())
        .collect();
    plan
}

/// Brings records, interfaces and allocations into agreement.
///
/// # Errors
///
/// When the interfaces cannot be listed. Single failures are logged: the next start tries again.
pub async fn restore(netlink: &Netlink, endpoints: &Endpoints, ipam: &mut Ipam) -> Result<()> {
    let links = netlink
        .links()
        .await
        .context("cannot compare endpoints and interfaces")?;
    let plan = plan(
        &endpoints.all(),
        &links,
        ipam.allocations().values().cloned(),
    );
    for record in plan.renumbered {
        if let Err(error) = endpoints.insert(record) {
            warn!(%error, "cannot correct an endpoint's record");
        }
    }
    for record in plan.gone {
        info!(pod = %record.endpoint().pod, interface = record.interface, "the interface of a \
            pod is gone; forgetting the pod");
        if let Err(error) = endpoints.remove(&record.interface) {
            warn!(interface = record.interface, %error, "cannot remove an endpoint's record");
        }
    }
    for link in plan.stray {
        info!(
            interface = link.name,
            "removing an interface that belongs to no pod"
        );
        if let Err(error) = netlink.delete_link(&link).await {
            warn!(interface = link.name, %error, "cannot remove an interface that belongs to no \
                pod");
        }
    }
    for owner in plan.orphans {
        match ipam.release(&owner) {
            Ok(addresses) => info!(%owner, ?addresses, "released addresses that no pod has"),
            Err(error) => warn!(%owner, %error, "cannot release addresses that no pod has"),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoints::tests::record;

    fn named(n: u8, index: u32) -> Record {
        Record {
            interface: format!("weft{n:011x}"),
            ifindex: index,
            ..record(n)
        }
    }

    fn link(name: &str, index: u32, kind: &str) -> Link {
        Link {
            name: name.to_owned(),
            index,
            kind: kind.to_owned(),
            ..Link::default()
        }
    }

    #[test]
    fn what_is_there_decides() {
        let records = [named(1, 11), named(2, 12), named(3, 13)];
        let links = [
            link("weft00000000001", 11, "veth"),
            link("weft00000000002", 99, "veth"),
            link("weft00000000007", 17, "veth"),
            link("weft_vxlan", 5, "vxlan"),
            link("weft-fabric", 6, "veth"),
            link("weftzzzzzzzzzzz", 7, "veth"),
        ];
        let unreadable = Owner {
            container_id: String::new(),
            ifname: String::new(),
        };
        let owners = [
            record(1).owner,
            record(2).owner,
            record(3).owner,
            record(4).owner,
            unreadable,
        ];
        let plan = plan(&records, &links, owners);
        assert_eq!(plan.renumbered, [named(2, 99)]);
        assert_eq!(plan.gone, [named(3, 13)]);
        assert_eq!(plan.stray, [link("weft00000000007", 17, "veth")]);
        assert_eq!(plan.orphans, [record(3).owner, record(4).owner].into());
    }
}
