//! Queueing disciplines: whether an interface sends packets at the departure times that the datapath
//! gives them. `fq` does; the others send at once.

use std::collections::BTreeMap;

use futures::TryStreamExt as _;
use rtnetlink::packet_route::tc::{TcAttribute, TcHandle, TcMessage};

use super::socket::{Netlink, NetlinkError, failed};

/// The discipline that sends at departure times.
const FAIR_QUEUE: &str = "fq";
/// The discipline that has one of its own for each hardware queue.
const MULTI_QUEUE: &str = "mq";

/// Whether all of these interfaces send packets at their departure times; not if there are none.
///
/// # Errors
///
/// When the kernel refuses.
pub async fn send_at_departure_times(
    netlink: &Netlink,
    interfaces: &[u32],
) -> Result<bool, NetlinkError> {
    if interfaces.is_empty() {
        return Ok(false);
    }
    let listed = netlink.handle().qdisc().get().execute();
    let listed: Vec<TcMessage> = listed
        .try_collect()
        .await
        .map_err(|error| failed("list the queueing disciplines", error))?;
    let mut by_interface = BTreeMap::<u32, Vec<Discipline<'_>>>::new();
    for message in &listed {
        let index = message.header.index.cast_unsigned();
        let disciplines = by_interface.entry(index).or_default();
        disciplines.extend(Discipline::of(message));
    }
    let waits = |index: &u32| by_interface.get(index).is_some_and(|all| is_fair(all));
    Ok(interfaces.iter().all(waits))
}

/// A discipline of an interface.
#[derive(Clone, Copy, Debug)]
struct Discipline<'a> {
    kind: &'a str,
    parent: TcHandle,
}

impl<'a> Discipline<'a> {
    fn of(message: &'a TcMessage) -> Option<Self> {
        message
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                TcAttribute::Kind(kind) => Some(Self {
                    kind,
                    parent: message.header.parent,
                }),
                _ => None,
            })
    }

    /// `clsact` and `ingress` sit beside the root.
    fn is_for_hooks(&self) -> bool {
        self.parent == TcHandle::INGRESS || self.parent == TcHandle::CLSACT
    }
}

fn is_fair(disciplines: &[Discipline<'_>]) -> bool {
    let root = disciplines.iter().find(|one| one.parent == TcHandle::ROOT);
    let mut leaves = disciplines
        .iter()
        .filter(|one| one.parent != TcHandle::ROOT && !one.is_for_hooks())
        .peekable();
    match root.map(|root| root.kind) {
        Some(FAIR_QUEUE) => true,
        Some(MULTI_QUEUE) => leaves.peek().is_some() && leaves.all(|leaf| leaf.kind == FAIR_QUEUE),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(kind: &str, parent: TcHandle) -> Discipline<'_> {
        Discipline { kind, parent }
    }

    #[test]
    fn only_fair_queues_wait_for_departure_times() {
        let leaf = |minor| TcHandle { major: 0, minor };
        let hooks = one("clsact", TcHandle::CLSACT);
        assert!(is_fair(&[one("fq", TcHandle::ROOT), hooks]));
        assert!(!is_fair(&[one("noqueue", TcHandle::ROOT), hooks]));
        assert!(!is_fair(&[one("fq_codel", TcHandle::ROOT)]));
        let mq = one("mq", TcHandle::ROOT);
        assert!(is_fair(&[
            mq,
            one("fq", leaf(1)),
            one("fq", leaf(2)),
            hooks
        ]));
        assert!(!is_fair(&[mq, one("fq", leaf(1)), one("pfifo", leaf(2))]));
        assert!(!is_fair(&[mq]));
        assert!(!is_fair(&[]));
    }
}
