//! Tells in endpoint slices what users wrote into Endpoints, for Services without a selector.
//!
//! Subsets with the same ports share a slice of each family.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde_json::{Value, json};

use super::{Controller, pods};
use crate::api::object::{self, at, items, text};
use crate::api::registry::{DeleteOptions, Part};
use crate::api::resources::{ENDPOINTS, ENDPOINTSLICES, SERVICES};
use crate::api::{Change, Key, Object, Registry, Status};

const SERVICE_NAME: &str = "kubernetes.io/service-name";
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const MANAGER: &str = "endpointslicemirroring-controller.k8s.io";
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";

/// The most endpoints of a slice.
const LARGEST: usize = 1000;

/// See the module.
pub struct EndpointMirror;

/// What makes a slice another one: its family and its ports (as text, to have an order).
type Shape = (&'static str, String);

impl Controller for EndpointMirror {
    fn name(&self) -> &'static str {
        "endpointslice-mirroring-controller"
    }

    fn keys(&mut self, _: &Registry, change: &Change) -> Vec<Key> {
        let key = &change.key;
        let name = if *key.resource == SERVICES || *key.resource == ENDPOINTS {
            Some(key.name.as_str())
        } else if *key.resource == ENDPOINTSLICES && is_ours(&change.after) {
            object::label(&change.after, SERVICE_NAME)
        } else {
            None
        };
        name.map(|name| Key::new(&ENDPOINTS, &key.namespace, name))
            .into_iter()
            .collect()
    }

    fn reconcile(&mut self, registry: &Registry, key: &Key) -> Result<(), Status> {
        let mut there = registry.all(&ENDPOINTSLICES, &key.namespace);
        there.retain(|slice| {
            is_ours(slice) && object::label(slice, SERVICE_NAME) == Some(key.name.as_str())
        });
        let service = registry.get(&SERVICES, &key.namespace, &key.name).ok();
        let endpoints = registry.get(&ENDPOINTS, &key.namespace, &key.name).ok();
        let mirrored = endpoints
            .zip(service)
            .filter(|(endpoints, service)| is_mirrored(endpoints, service));
        let Some((endpoints, service)) = mirrored else {
            return there.iter().try_for_each(|slice| delete(registry, slice));
        };
        let mut wanted = shapes(&endpoints);
        for slice in there {
            let (family, ports) = (text(&slice, "/addressType"), slice["ports"].to_string());
            let shape = wanted
                .keys()
                .find(|(wanted, other)| *wanted == family && *other == ports)
                .cloned();
            let Some((shape, content)) = shape.and_then(|shape| wanted.remove_entry(&shape)) else {
                delete(registry, &slice)?;
                continue;
            };
            let new = self.slice(&endpoints, &service, &shape, &content);
            let is_same = slice["endpoints"] == new["endpoints"]
                && slice["metadata"]["labels"] == new["metadata"]["labels"];
            if !is_same {
                let namespace = object::namespace(&slice);
                let key = Key::new(&ENDPOINTSLICES, namespace, object::name(&slice));
                registry.modify(&key, Part::Main, &self.options(), |live| {
                    let mut live = live.clone();
                    live["metadata"]["labels"] = new["metadata"]["labels"].clone();
                    live["endpoints"] = new["endpoints"].clone();
                    Ok(live)
                })?;
            }
        }
        for (shape, content) in wanted {
            let slice = self.slice(&endpoints, &service, &shape, &content);
            registry.create(&ENDPOINTSLICES, &key.namespace, slice, &self.options())?;
        }
        Ok(())
    }
}

impl EndpointMirror {
    fn slice(
        &self,
        endpoints: &Value,
        service: &Value,
        (family, ports): &Shape,
        content: &[Value],
    ) -> Value {
        let mut labels = endpoints["metadata"]["labels"].clone();
        let map = object::as_map(&mut labels);
        map.insert(SERVICE_NAME.to_owned(), object::name(endpoints).into());
        map.insert(MANAGED_BY.to_owned(), MANAGER.into());
        if service["spec"]["clusterIP"] == "None" {
            map.insert("service.kubernetes.io/headless".to_owned(), "".into());
        }
        let ports: Value = serde_json::from_str(ports).unwrap_or_default();
        json!({
            "metadata": {
                "generateName": format!("{}-", object::name(endpoints)),
                "labels": labels,
                "ownerReferences": [pods::reference(endpoints)],
            },
            "addressType": family,
            "ports": ports,
            "endpoints": content,
        })
    }
}

fn is_ours(slice: &Value) -> bool {
    object::label(slice, MANAGED_BY) == Some(MANAGER)
}

fn is_mirrored(endpoints: &Value, service: &Value) -> bool {
    let selector = at(service, "/spec/selector").as_object();
    object::label(endpoints, SKIP) != Some("true")
        && !object::is_terminating(endpoints)
        && selector.is_none_or(serde_json::Map::is_empty)
}

fn shapes(endpoints: &Value) -> BTreeMap<Shape, Vec<Value>> {
    let mut shapes: BTreeMap<Shape, Vec<Value>> = BTreeMap::new();
    for subset in items(endpoints, "/subsets") {
        let ports: Vec<Value> = items(subset, "/ports").iter().map(port).collect();
        let ports = Value::from(ports).to_string();
        for (list, ready) in [("/addresses", true), ("/notReadyAddresses", false)] {
            for address in items(subset, list) {
                let Ok(ip) = text(address, "/ip").parse::<IpAddr>() else {
                    continue;
                };
                let family = if ip.is_ipv4() { "IPv4" } else { "IPv6" };
                let shape = shapes.entry((family, ports.clone())).or_default();
                if shape.len() < LARGEST {
                    shape.push(endpoint(address, ip, ready));
                }
            }
        }
    }
    shapes
}

fn port(port: &Value) -> Value {
    let protocol = match text(port, "/protocol") {
        "" => "TCP",
        protocol => protocol,
    };
    let mut mirrored = json!({
        "name": text(port, "/name"), "protocol": protocol, "port": port["port"],
    });
    if let Some(application) = port["appProtocol"].as_str() {
        mirrored["appProtocol"] = application.into();
    }
    mirrored
}

fn endpoint(address: &Value, ip: IpAddr, ready: bool) -> Value {
    let mut endpoint = json!({ "addresses": [ip], "conditions": { "ready": ready } });
    for field in ["hostname", "nodeName", "targetRef"] {
        if let Some(value) = address.get(field) {
            endpoint[field] = value.clone();
        }
    }
    endpoint
}

fn delete(registry: &Registry, slice: &Object) -> Result<(), Status> {
    let (namespace, name) = (object::namespace(slice), object::name(slice));
    let key = Key::new(&ENDPOINTSLICES, namespace, name);
    match registry.delete(&key, &DeleteOptions::default()) {
        Err(error) if error.code != 404 => Err(error),
        _ => Ok(()),
    }
}
