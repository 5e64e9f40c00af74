//! The flow tables of both families as one: IPv4 addresses in mapped form.

use std::net::{IpAddr, Ipv6Addr};

use weft_abi::{
    addr::{Addr4, Addr6},
    flow::{Flow, FlowKey, Side, Tuple},
};

use super::Family;

/// An entry of a flow table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowEntry {
    /// The key.
    pub key: FlowKey<Addr6>,
    /// The flow.
    pub flow: Flow<Addr6>,
}

impl FlowEntry {
    /// Its family.
    #[must_use]
    pub const fn family(&self) -> Family {
        match self.key.low.as_mapped() {
            Some(_) => Family::V4,
            None => Family::V6,
        }
    }

    /// Whether one of its ends has this address.
    #[must_use]
    pub fn has(&self, address: IpAddr) -> bool {
        [self.key.low, self.key.high].map(ip).contains(&address)
    }

    /// What its packets are rewritten to: source, destination, and their ports.
    #[must_use]
    pub fn translation(&self) -> ((IpAddr, u16), (IpAddr, u16)) {
        let xlat = &self.flow.xlat;
        (
            (ip(xlat.source), xlat.source_port),
            (ip(xlat.destination), xlat.destination_port),
        )
    }

    /// The side that opened it.
    #[must_use]
    pub fn initiator(&self) -> &Side {
        &self.flow.sides[usize::from(self.flow.initiator)]
    }

    /// The other side.
    #[must_use]
    pub fn responder(&self) -> &Side {
        &self.flow.sides[1 - usize::from(self.flow.initiator)]
    }

    pub(super) fn of_v4(key: &FlowKey<Addr4>, flow: &Flow<Addr4>) -> Self {
        Self {
            key: convert_key(key, Addr6::mapped),
            flow: convert(flow, Addr6::mapped),
        }
    }

    /// As an entry of the IPv4 table, if it is one.
    pub(super) fn to_v4(self) -> Option<(FlowKey<Addr4>, Flow<Addr4>)> {
        self.key.low.as_mapped()?;
        // Tuples without a translation are zeros.
        let narrow = |address: Addr6| address.as_mapped().unwrap_or_default();
        Some((convert_key(&self.key, narrow), convert(&self.flow, narrow)))
    }
}

/// The address in its own family.
fn ip(address: Addr6) -> IpAddr {
    Ipv6Addr::from(address).to_canonical()
}

fn convert_key<A: Copy, B>(key: &FlowKey<A>, to: impl Fn(A) -> B) -> FlowKey<B> {
    FlowKey {
        low: to(key.low),
        high: to(key.high),
        low_port: key.low_port,
        high_port: key.high_port,
        protocol: key.protocol,
        reserved: key.reserved,
    }
}

fn convert<A: Copy, B>(flow: &Flow<A>, to: impl Fn(A) -> B) -> Flow<B> {
    Flow {
        sides: flow.sides,
        epoch: flow.epoch,
        last_seen: flow.last_seen,
        egress_rule: flow.egress_rule,
        ingress_rule: flow.ingress_rule,
        service: flow.service,
        backend: flow.backend,
        xlat: Tuple {
            source: to(flow.xlat.source),
            destination: to(flow.xlat.destination),
            source_port: flow.xlat.source_port,
            destination_port: flow.xlat.destination_port,
        },
        initiator: flow.initiator,
        flags: flow.flags,
        backends_epoch: flow.backends_epoch,
    }
}
