//! Makes ServiceCIDRs ready, and holds those back whose addresses are in use.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::{Value, json};

use super::Controller;
use crate::api::object::{self, items, text};
use crate::api::registry::Part;
use crate::api::resources::{IPADDRESSES, SERVICECIDRS};
use crate::api::{Change, Key, Object, Registry, Status};

const FINALIZER: &str = "networking.k8s.io/service-cidr-finalizer";

/// See the module.
pub struct ServiceCidrs;

impl Controller for ServiceCidrs {
    fn name(&self) -> &'static str {
        "service-cidr-controller"
    }

    fn keys(&mut self, registry: &Registry, change: &Change) -> Vec<Key> {
        let key = &change.key;
        // A range may wait for an address to go, or for another range that has the address too.
        let frees = *key.resource == IPADDRESSES && change.deleted;
        if !frees && *key.resource != SERVICECIDRS {
            return Vec::new();
        }
        let all = registry.all(&SERVICECIDRS, "");
        all.iter()
            .filter(|range| object::name(range) == key.name || object::is_terminating(range))
            .map(|range| Key::new(&SERVICECIDRS, "", object::name(range)))
            .collect()
    }

    fn reconcile(&mut self, registry: &Registry, key: &Key) -> Result<(), Status> {
        let ranges = registry.all(&SERVICECIDRS, "");
        let Some(range) = ranges.iter().find(|range| object::name(range) == key.name) else {
            return Ok(());
        };
        if !object::is_terminating(range) {
            self.finalizers(registry, key, range, true)?;
            return self.report(
                registry,
                key,
                range,
                true,
                "",
                "Kubernetes Service CIDR is ready",
            );
        }
        let others: Vec<IpNet> = ranges
            .iter()
            .filter(|other| object::name(other) != key.name && !object::is_terminating(other))
            .flat_map(|other| networks(other))
            .collect();
        let own = networks(range);
        let is_orphaned = |address: &Object| {
            let parsed = object::name(address).parse::<IpAddr>();
            parsed.is_ok_and(|ip| {
                own.iter().any(|net| net.contains(&ip))
                    && !others.iter().any(|net| net.contains(&ip))
            })
        };
        if registry.all(&IPADDRESSES, "").iter().any(is_orphaned) {
            let why = "There are still IPAddresses referencing the ServiceCIDR, please remove them or \
                       create a new ServiceCIDR";
            return self.report(registry, key, range, false, "Terminating", why);
        }
        self.finalizers(registry, key, range, false)
    }
}

impl ServiceCidrs {
    /// Adds or removes the finalizer.
    fn finalizers(
        &self,
        registry: &Registry,
        key: &Key,
        range: &Value,
        wanted: bool,
    ) -> Result<(), Status> {
        let mut list = items(range, "/metadata/finalizers").to_vec();
        let had = list.contains(&FINALIZER.into());
        if had == wanted {
            return Ok(());
        }
        list.retain(|finalizer| finalizer != FINALIZER);
        if wanted {
            list.push(FINALIZER.into());
        }
        let done = registry.modify(key, Part::Main, &self.options(), |live| {
            let mut new = live.clone();
            object::metadata(&mut new).insert("finalizers".to_owned(), list.into());
            Ok(new)
        });
        done.map(drop)
    }

    fn report(
        &self,
        registry: &Registry,
        key: &Key,
        range: &Value,
        ready: bool,
        reason: &str,
        message: &str,
    ) -> Result<(), Status> {
        let status = if ready { "True" } else { "False" };
        let conditions = items(range, "/status/conditions").iter();
        let mut found = conditions.filter(|condition| condition["type"] == "Ready");
        if found.any(|condition| text(condition, "/status") == status) {
            return Ok(());
        }
        let condition = json!({
            "type": "Ready", "status": status, "reason": reason, "message": message,
            "lastTransitionTime": object::now(),
        });
        let done = registry.modify(key, Part::Status, &self.options(), |live| {
            let mut new = live.clone();
            new["status"] = json!({ "conditions": [condition] });
            Ok(new)
        });
        done.map(drop)
    }
}

fn networks(range: &Value) -> Vec<IpNet> {
    let texts = items(range, "/spec/cidrs").iter();
    texts
        .filter_map(|text| text.as_str()?.parse().ok())
        .collect()
}
