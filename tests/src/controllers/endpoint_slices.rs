//! Tells in endpoint slices which pods serve a Service, on which ports, and whether they are ready.
//!
//! Endpoints stay in the slice they are in, so that a change writes as few slices as it can.

mod hints;
mod triggers;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde_json::{Value, json};

use super::{Controller, pods};
use crate::api::object::{self, at, items, text};
use crate::api::registry::{DeleteOptions, Part, WriteOptions};
use crate::api::resources::{ENDPOINTSLICES, NODES, PODS, SERVICES};
use crate::api::{Change, Key, Object, Registry, Selector, Status};

const SERVICE_NAME: &str = "kubernetes.io/service-name";
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const MANAGER: &str = "endpointslice-controller.k8s.io";
const ZONE: &str = "topology.kubernetes.io/zone";
const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// See the module.
pub struct EndpointSlices {
    /// The most endpoints of a slice.
    largest: usize,
    triggers: triggers::Triggers,
}

impl EndpointSlices {
    pub fn new(largest: usize) -> Self {
        EndpointSlices {
            largest: largest.max(1),
            triggers: triggers::Triggers::default(),
        }
    }
}

impl Controller for EndpointSlices {
    fn name(&self) -> &'static str {
        "endpointslice-controller"
    }

    fn keys(&mut self, registry: &Registry, change: &Change) -> Vec<Key> {
        let key = &change.key;
        if *key.resource == SERVICES {
            return vec![key.clone()];
        }
        if *key.resource == ENDPOINTSLICES {
            let service = object::label(&change.after, SERVICE_NAME);
            return service
                .map(|name| Key::new(&SERVICES, &key.namespace, name))
                .into_iter()
                .collect();
        }
        if *key.resource == NODES {
            // Where the zones decide, all of them do.
            let all = registry.all(&SERVICES, "");
            let concerned = all.iter().filter(|service| hints::follow_zones(service));
            return concerned
                .map(|s| Key::new(&SERVICES, object::namespace(s), object::name(s)))
                .collect();
        }
        if *key.resource != PODS {
            return Vec::new();
        }
        let services = registry.all(&SERVICES, &key.namespace);
        let is_concerned = |service: &&Object| {
            let selector = Selector::from_map(at(service, "/spec/selector"));
            let before = change
                .before
                .as_ref()
                .is_some_and(|before| selector.matches(before));
            has_selector(service) && (before || selector.matches(&change.after))
        };
        let concerned = services.iter().filter(is_concerned);
        concerned
            .map(|s| Key::new(&SERVICES, &key.namespace, object::name(s)))
            .collect()
    }

    fn reconcile(&mut self, registry: &Registry, key: &Key) -> Result<(), Status> {
        let mut slices = registry.all(&ENDPOINTSLICES, &key.namespace);
        slices.retain(|slice| {
            object::label(slice, SERVICE_NAME) == Some(key.name.as_str())
                && object::label(slice, MANAGED_BY) == Some(MANAGER)
                && !object::is_terminating(slice)
        });
        let service = registry.get(&SERVICES, &key.namespace, &key.name);
        let Some(service) = service
            .ok()
            .filter(|s| has_selector(s) && !object::is_terminating(s))
        else {
            self.triggers.forget(key);
            return slices.iter().try_for_each(|slice| delete(registry, slice));
        };
        let selector = Selector::from_map(at(&service, "/spec/selector"));
        let mut pods = registry.all(&PODS, &key.namespace);
        pods.retain(|pod| selector.matches(pod) && !pods::is_over(pod));
        let nodes: BTreeMap<String, Object> = registry
            .all(&NODES, "")
            .into_iter()
            .map(|n| (object::name(&n).to_owned(), n))
            .collect();
        let families: BTreeSet<&str> = items(&service, "/spec/ipFamilies")
            .iter()
            .filter_map(Value::as_str)
            .collect();
        let (kept, foreign): (Vec<_>, Vec<_>) = slices
            .into_iter()
            .partition(|s| families.contains(text(s, "/addressType")));
        foreign
            .iter()
            .try_for_each(|slice| delete(registry, slice))?;
        let trigger = self.triggers.note(key, &service, &pods);
        for family in families {
            let there: Vec<_> = kept
                .iter()
                .filter(|slice| slice["addressType"] == family)
                .cloned()
                .collect();
            let mut wanted = group(&service, &pods, &nodes, family);
            let endpoints = wanted.values_mut().flat_map(BTreeMap::values_mut);
            hints::give(&service, nodes.values(), endpoints.collect());
            let write = Write {
                registry,
                service: &service,
                options: self.options(),
                largest: self.largest,
                trigger: trigger.as_deref(),
            };
            write.write(family, wanted, there)?;
        }
        Ok(())
    }
}

/// Endpoints by [`identity`], for each list of resolved ports (as text, to have an order).
type Groups = BTreeMap<String, BTreeMap<Identity, Value>>;

/// Which endpoint it is: an address alone may have been another pod's just before, and two pods have
/// the same one where they are on their node's network.
type Identity = (String, String);

fn identity(endpoint: &Value) -> Identity {
    let part = |pointer| text(endpoint, pointer).to_owned();
    (part("/addresses/0"), part("/targetRef/uid"))
}

fn group(
    service: &Value,
    pods: &[Object],
    nodes: &BTreeMap<String, Object>,
    family: &str,
) -> Groups {
    let mut groups = Groups::new();
    for pod in pods {
        let Some(address) = address(pod, family) else {
            continue;
        };
        let ports = ports(service, pod);
        let node = nodes.get(text(pod, "/spec/nodeName"));
        let endpoint = endpoint(service, pod, node.map(|node| &**node), &address);
        groups
            .entry(ports.to_string())
            .or_default()
            .insert(identity(&endpoint), endpoint);
    }
    if groups.is_empty() {
        // One slice without endpoints tells that the Service has none.
        groups.insert(json!([]).to_string(), BTreeMap::new());
    }
    groups
}

/// The pod's address of the family.
fn address(pod: &Value, family: &str) -> Option<String> {
    let listed = items(pod, "/status/podIPs")
        .iter()
        .map(|ip| text(ip, "/ip"));
    let mut all = listed.chain([text(pod, "/status/podIP")]);
    let fits = |ip: &&str| {
        ip.parse::<IpAddr>()
            .is_ok_and(|ip| ip.is_ipv4() == (family == "IPv4"))
    };
    all.find(fits).map(str::to_owned)
}

/// The Service's ports as this pod serves them; a named one that the pod has not is left out.
fn ports(service: &Value, pod: &Value) -> Value {
    let resolve = |port: &Value| -> Option<Value> {
        let target = match &port["targetPort"] {
            Value::String(name) => container_port(pod, name, text(port, "/protocol"))?,
            Value::Null => port["port"].clone(),
            number => number.clone(),
        };
        let mut resolved = json!({
            "name": text(port, "/name"), "protocol": port["protocol"], "port": target,
        });
        if let Some(application) = port["appProtocol"].as_str() {
            resolved["appProtocol"] = application.into();
        }
        Some(resolved)
    };
    items(service, "/spec/ports")
        .iter()
        .filter_map(resolve)
        .collect::<Vec<_>>()
        .into()
}

fn container_port(pod: &Value, name: &str, protocol: &str) -> Option<Value> {
    // Sidecars are init containers that keep running.
    let sidecars = items(pod, "/spec/initContainers").iter();
    let sidecars = sidecars.filter(|container| container["restartPolicy"] == "Always");
    items(pod, "/spec/containers")
        .iter()
        .chain(sidecars)
        .flat_map(|container| items(container, "/ports"))
        .find(|port| port["name"] == name && port["protocol"] == protocol)
        .map(|port| port["containerPort"].clone())
}

fn endpoint(service: &Value, pod: &Value, node: Option<&Value>, address: &str) -> Value {
    let is_terminating = object::is_terminating(pod);
    let is_serving = pods::is_ready(pod);
    let is_published = service["spec"]["publishNotReadyAddresses"] == true;
    let mut endpoint = json!({
        "addresses": [address],
        "conditions": {
            "ready": is_published || (is_serving && !is_terminating),
            "serving": is_serving,
            "terminating": is_terminating,
        },
        "targetRef": {
            "kind": "Pod",
            "namespace": object::namespace(pod),
            "name": object::name(pod),
            "uid": object::uid(pod),
        },
    });
    let node_name = text(pod, "/spec/nodeName");
    if !node_name.is_empty() {
        endpoint["nodeName"] = node_name.into();
    }
    if let Some(zone) = node.and_then(|node| object::label(node, ZONE)) {
        endpoint["zone"] = zone.into();
    }
    let host = text(pod, "/spec/hostname");
    if !host.is_empty() && text(pod, "/spec/subdomain") == object::name(service) {
        endpoint["hostname"] = host.into();
    }
    endpoint
}

/// Writing the slices of one Service.
struct Write<'a> {
    registry: &'a Registry,
    service: &'a Value,
    options: WriteOptions,
    /// The most endpoints of a slice.
    largest: usize,
    /// What the slices that are written are marked with: when it happened that they tell.
    trigger: Option<&'a str>,
}

impl Write<'_> {
    /// Writes the difference between the groups and the slices that are there.
    fn write(&self, family: &str, mut wanted: Groups, there: Vec<Object>) -> Result<(), Status> {
        let mut open: Vec<(Object, Value, Vec<Value>)> = Vec::new();
        let mut surplus = Vec::new();
        for slice in there {
            let ports = without_nulls(&slice["ports"]);
            let Some(group) = wanted.get_mut(&ports.to_string()) else {
                surplus.push(slice);
                continue;
            };
            let kept = items(&slice, "/endpoints")
                .iter()
                .filter_map(|old| group.remove(&identity(old)))
                .collect();
            open.push((slice, ports, kept));
        }
        for (ports, endpoints) in wanted {
            let ports: Value = serde_json::from_str(&ports).unwrap_or_default();
            let mut rest = endpoints.into_values();
            for (_, _, kept) in open.iter_mut().filter(|(_, other, _)| *other == ports) {
                kept.extend(rest.by_ref().take(self.largest.saturating_sub(kept.len())));
            }
            let mut rest: Vec<_> = rest.collect();
            let is_placeholder = rest.is_empty() && open.is_empty();
            while !rest.is_empty() || is_placeholder {
                let more = rest.split_off(rest.len().min(self.largest));
                // What was left over from other ports is used again.
                match surplus.pop() {
                    Some(slice) => open.push((slice, ports.clone(), rest)),
                    None => self.create(family, &ports, &rest)?,
                }
                rest = more;
                if is_placeholder {
                    break;
                }
            }
        }
        let are_all_empty = open.iter().all(|(_, _, endpoints)| endpoints.is_empty());
        for (n, (slice, ports, endpoints)) in open.iter().enumerate() {
            let is_kept = !endpoints.is_empty() || (are_all_empty && n == 0);
            if is_kept {
                self.update(slice, ports, endpoints)?;
            } else {
                delete(self.registry, slice)?;
            }
        }
        surplus
            .iter()
            .try_for_each(|slice| delete(self.registry, slice))
    }

    fn create(&self, family: &str, ports: &Value, endpoints: &[Value]) -> Result<(), Status> {
        let service = self.service;
        let mut slice = json!({
            "metadata": {
                "generateName": format!("{}-", object::name(service)),
                "labels": labels(service),
                "ownerReferences": [pods::reference(service)],
            },
            "addressType": family,
            "ports": ports,
            "endpoints": endpoints,
        });
        self.mark(&mut slice);
        let namespace = object::namespace(service);
        let created = self
            .registry
            .create(&ENDPOINTSLICES, namespace, slice, &self.options);
        created.map(drop)
    }

    fn update(&self, slice: &Object, ports: &Value, endpoints: &[Value]) -> Result<(), Status> {
        let labels = labels(self.service);
        let is_same = items(slice, "/endpoints") == endpoints
            && without_nulls(&slice["ports"]) == *ports
            && slice["metadata"]["labels"] == labels;
        if is_same {
            return Ok(());
        }
        let key = Key::new(
            &ENDPOINTSLICES,
            object::namespace(slice),
            object::name(slice),
        );
        let changed = self
            .registry
            .modify(&key, Part::Main, &self.options, |live| {
                let mut new = live.clone();
                new["metadata"]["labels"] = labels;
                new["ports"] = ports.clone();
                new["endpoints"] = endpoints.into();
                self.mark(&mut new);
                Ok(new)
            });
        changed.map(drop)
    }

    fn mark(&self, slice: &mut Value) {
        let metadata = object::metadata(slice);
        match self.trigger {
            Some(time) => {
                let annotations = metadata.entry("annotations").or_insert(Value::Null);
                object::as_map(annotations).insert(TRIGGER_TIME.to_owned(), time.into());
            }
            None => {
                if let Some(annotations) = metadata.get_mut("annotations") {
                    object::as_map(annotations).remove(TRIGGER_TIME);
                }
            }
        }
    }
}

/// The slices carry the Service's labels besides their own.
fn labels(service: &Value) -> Value {
    let mut labels = service["metadata"]["labels"].clone();
    let map = object::as_map(&mut labels);
    map.insert(SERVICE_NAME.to_owned(), object::name(service).into());
    map.insert(MANAGED_BY.to_owned(), MANAGER.into());
    if service["spec"]["clusterIP"] == "None" {
        map.insert("service.kubernetes.io/headless".to_owned(), "".into());
    }
    labels
}

fn has_selector(service: &Value) -> bool {
    text(service, "/spec/type") != "ExternalName"
        && at(service, "/spec/selector")
            .as_object()
            .is_some_and(|map| !map.is_empty())
}

fn without_nulls(ports: &Value) -> Value {
    if ports.is_null() {
        json!([])
    } else {
        ports.clone()
    }
}

fn delete(registry: &Registry, slice: &Value) -> Result<(), Status> {
    let key = Key::new(
        &ENDPOINTSLICES,
        object::namespace(slice),
        object::name(slice),
    );
    match registry.delete(&key, &DeleteOptions::default()) {
        Err(error) if error.code != 404 => Err(error),
        _ => Ok(()),
    }
}
