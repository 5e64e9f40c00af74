//! Node ports, as the real API server gives them: it counts numbers, whatever the protocol, so that
//! two Services never have the same one, and the ports of one Service may.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use serde_json::Value;

use super::super::object::{items, items_mut, map_mut};
use super::super::status::Cause;
use super::{Allocations, is_unset, needs_health_check, needs_node_ports, node_ports, owner};

impl Allocations {
    pub(super) fn ports_of(
        &mut self,
        service: &mut Value,
        old: Option<&Value>,
        causes: &mut Vec<Cause>,
    ) {
        let owner = owner(service);
        // What is asked for comes first, so that no allocation takes it away.
        for (n, port) in items(service, "/spec/ports").iter().enumerate() {
            let asked = port["nodePort"].as_u64().filter(|number| *number != 0);
            let path = || format!("spec.ports[{n}].nodePort");
            self.take(asked, &owner, path, causes);
        }
        let checked = needs_health_check(service);
        let asked = service["spec"]["healthCheckNodePort"].as_u64();
        let asked = asked.filter(|number| checked && *number != 0);
        let path = || "spec.healthCheckNodePort".to_owned();
        self.take(asked, &owner, path, causes);
        if !causes.is_empty() {
            return;
        }
        if needs_node_ports(service) {
            self.give(service, old, &owner, causes);
        }
        let spec = map_mut(service, "spec");
        if checked && is_unset(spec, "healthCheckNodePort") {
            let number = self.free_port(&owner, causes);
            spec.insert("healthCheckNodePort".to_owned(), number.into());
        }
        let kept: Vec<_> = node_ports(service).collect();
        self.ports
            .retain(|port, holder| *holder != owner || kept.contains(port));
    }

    /// Gives each port that has none a node port.
    fn give(
        &mut self,
        service: &mut Value,
        old: Option<&Value>,
        owner: &str,
        causes: &mut Vec<Cause>,
    ) {
        // In a new Service, ports of the same number share their node port.
        let mut shared: BTreeMap<i64, u64> = BTreeMap::new();
        if old.is_none() {
            for port in items(service, "/spec/ports") {
                if let (Some(number), Some(node @ 1..)) =
                    (port["port"].as_i64(), port["nodePort"].as_u64())
                {
                    shared.entry(number).or_insert(node);
                }
            }
        }
        for port in items_mut(service, "/spec/ports") {
            if port["nodePort"].as_u64().unwrap_or(0) != 0 {
                continue;
            }
            let number = port["port"].as_i64().filter(|_| old.is_none());
            let found = number.and_then(|number| shared.get(&number).copied());
            let node = found.unwrap_or_else(|| u64::from(self.free_port(owner, causes)));
            if let Some(number) = number {
                shared.insert(number, node);
            }
            port["nodePort"] = node.into();
        }
    }

    /// Takes the port that is asked for, if any, unless it is another's.
    fn take(
        &mut self,
        asked: Option<u64>,
        owner: &str,
        path: impl Fn() -> String,
        causes: &mut Vec<Cause>,
    ) {
        let Some(asked) = asked else { return };
        let number = u16::try_from(asked).ok();
        let Some(number) = number.filter(|n| self.node_ports.contains(n)) else {
            let range = &self.node_ports;
            let why = format!(
                "provided port is not in the valid range. The range of valid ports is {}-{}",
                range.start(),
                range.end()
            );
            causes.push(Cause::invalid(path(), &asked.into(), &why));
            return;
        };
        let holder = self.ports.entry(number).or_insert_with(|| owner.to_owned());
        if holder != owner {
            let why = "provided port is already allocated";
            causes.push(Cause::invalid(path(), &asked.into(), why));
        }
    }

    /// A port that was free; 0 and a cause when there is none.
    fn free_port(&mut self, owner: &str, causes: &mut Vec<Cause>) -> u16 {
        for _ in self.node_ports.clone() {
            let port = self.next_port;
            self.next_port = if port >= *self.node_ports.end() {
                *self.node_ports.start()
            } else {
                port + 1
            };
            if let Entry::Vacant(free) = self.ports.entry(port) {
                free.insert(owner.to_owned());
                return port;
            }
        }
        let why = "failed to allocate a nodePort: range is full";
        causes.push(Cause::invalid("spec.ports", &Value::Null, why));
        0
    }
}
