//! Gives Services of type LoadBalancer an address of each of their families, as an implementation does
//! that makes nodes answer for it themselves (`ipMode: VIP`).
//!
//! Addresses are those that Services have in their status: nothing else remembers them.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::{Value, json};

use super::Controller;
use crate::api::object::{self, items, text};
use crate::api::registry::Part;
use crate::api::resources::SERVICES;
use crate::api::{Cause, Change, Key, Registry, Status};

/// See the module.
pub struct LoadBalancers {
    /// Where addresses come from, at most one range per family.
    ranges: Vec<IpNet>,
}

impl LoadBalancers {
    pub fn new(ranges: Vec<IpNet>) -> Self {
        LoadBalancers { ranges }
    }

    /// An address of the range that nobody has; the one that is asked for, if any.
    fn pick(&self, is_v4: bool, wanted: Option<IpAddr>, used: &BTreeSet<IpAddr>) -> Option<IpAddr> {
        if wanted.is_some() {
            return wanted.filter(|wanted| !used.contains(wanted));
        }
        let mut ranges = self.ranges.iter();
        let range = ranges.find(|range| range.addr().is_ipv4() == is_v4)?;
        let mut free = range.hosts();
        free.find(|address| *address != range.network() && !used.contains(address))
    }
}

impl Controller for LoadBalancers {
    fn name(&self) -> &'static str {
        "load-balancer-controller"
    }

    fn keys(&mut self, registry: &Registry, change: &Change) -> Vec<Key> {
        if *change.key.resource != SERVICES {
            return Vec::new();
        }
        let had = change.before.as_ref().map(|before| addresses(before));
        let is_freed =
            had.is_some_and(|had| change.deleted || !had.is_subset(&addresses(&change.after)));
        if !is_freed {
            return vec![change.key.clone()];
        }
        // Others may wait for what is free now.
        let all = registry.all(&SERVICES, "");
        all.iter()
            .map(|s| Key::new(&SERVICES, object::namespace(s), object::name(s)))
            .collect()
    }

    fn reconcile(&mut self, registry: &Registry, key: &Key) -> Result<(), Status> {
        let all = registry.all(&SERVICES, "");
        let Some(service) = all.iter().find(|service| {
            object::name(service) == key.name && object::namespace(service) == key.namespace
        }) else {
            return Ok(());
        };
        let is_ours = text(service, "/spec/type") == "LoadBalancer"
            && text(service, "/spec/loadBalancerClass").is_empty()
            && !object::is_terminating(service);
        if !is_ours {
            return Ok(());
        }
        let mut used: BTreeSet<IpAddr> = all.iter().flat_map(|s| addresses(s)).collect();
        let own = addresses(service);
        let asked = text(service, "/spec/loadBalancerIP").parse::<IpAddr>().ok();
        let mut ingress = Vec::new();
        for family in items(service, "/spec/ipFamilies") {
            let is_v4 = family == "IPv4";
            let kept = own.iter().find(|ip| ip.is_ipv4() == is_v4).copied();
            let asked = asked.filter(|ip| ip.is_ipv4() == is_v4);
            let address = kept.or_else(|| self.pick(is_v4, asked, &used));
            let Some(address) = address else {
                let why = "no address is left for it";
                let cause = Cause::forbidden("status.loadBalancer", why);
                return Err(Status::invalid(&SERVICES, &key.name, &[cause]));
            };
            used.insert(address);
            ingress.push(address);
        }
        if ingress.iter().copied().collect::<BTreeSet<_>>() == own {
            return Ok(());
        }
        let ingress: Vec<Value> = ingress.iter().map(|ip| json!({ "ip": ip })).collect();
        let done = registry.modify(key, Part::Status, &self.options(), |live| {
            let mut new = live.clone();
            new["status"]["loadBalancer"] = json!({ "ingress": ingress });
            Ok(new)
        });
        done.map(drop)
    }
}

fn addresses(service: &Value) -> BTreeSet<IpAddr> {
    let ingress = items(service, "/status/loadBalancer/ingress").iter();
    ingress
        .filter_map(|entry| text(entry, "/ip").parse().ok())
        .collect()
}
