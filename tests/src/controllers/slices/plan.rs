//! Puts a Service's endpoints into slices with as few writes as it takes.
//!
//! Endpoints stay in the slice that they are in; new ones go where there is room, then into new
//! slices; a slice that runs empty is deleted. The names of new slices follow from their content's
//! place, so that a slice is not created twice.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::{Resource as _, ResourceExt as _};

use super::super::hash;
use super::endpoints::Group;

/// The most endpoints in a slice.
const CAPACITY: usize = 100;

/// The label with the Service's name.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// The label that says who keeps a slice, and what it says of these.
const MANAGED_BY: (&str, &str) = (
    "endpointslice.kubernetes.io/managed-by",
    "endpointslice-controller.k8s.io",
);

/// The label of headless Services' slices, which no service proxy looks at.
const HEADLESS: &str = "service.kubernetes.io/headless";

/// What is to be written.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Changes {
    /// New slices.
    pub create: Vec<EndpointSlice>,
    /// Slices with new content, at the version that was read.
    pub update: Vec<EndpointSlice>,
    /// Names of slices to delete.
    pub delete: Vec<String>,
}

/// The changes that make the Service's slices hold `groups`. `slices` are those of the Service's
/// namespace, whoever keeps them.
pub fn plan(service: &Service, groups: Vec<Group>, slices: &[Arc<EndpointSlice>]) -> Changes {
    let mut changes = Changes::default();
    let mut own: Vec<&EndpointSlice> = Vec::new();
    for slice in slices.iter().filter(|slice| is_kept(slice, service)) {
        if slice.metadata.deletion_timestamp.is_none() {
            own.push(slice);
        }
    }
    let mut names: BTreeSet<String> = slices.iter().map(|slice| slice.name_any()).collect();
    for group in groups {
        let (same, others) = own.into_iter().partition(|slice| is_of(slice, &group));
        own = others;
        place(service, group, same, &mut names, &mut changes);
    }
    // Slices of ports or families that no endpoint has any more.
    changes
        .delete
        .extend(own.iter().map(|slice| slice.name_any()));
    changes
}

fn is_kept(slice: &EndpointSlice, service: &Service) -> bool {
    let labels = slice.labels();
    labels.get(MANAGED_BY.0).map(String::as_str) == Some(MANAGED_BY.1)
        && labels.get(SERVICE_NAME) == service.metadata.name.as_ref()
        // The slices of an earlier Service of that name go with that.
        && slice.owner_references().iter().any(|owner| Some(&owner.uid) == service.metadata.uid.as_ref())
}

fn is_of(slice: &EndpointSlice, group: &Group) -> bool {
    let ports: &[EndpointPort] = slice.ports.as_deref().unwrap_or_default();
    slice.address_type == group.address_type && ports == group.ports
}

/// Distributes one group over the slices that have its ports and family.
fn place(
    service: &Service,
    group: Group,
    slices: Vec<&EndpointSlice>,
    names: &mut BTreeSet<String>,
    changes: &mut Changes,
) {
    let mut missing: BTreeMap<String, Endpoint> = BTreeMap::new();
    let mut order = Vec::new();
    for endpoint in &group.endpoints {
        let key = key(endpoint);
        if missing.insert(key.clone(), endpoint.clone()).is_none() {
            order.push(key);
        }
    }
    // Those that are somewhere already stay there.
    let mut filled: Vec<(&EndpointSlice, Vec<Endpoint>)> = Vec::new();
    for slice in slices {
        let kept = slice
            .endpoints
            .iter()
            .filter_map(|old| missing.remove(&key(old)));
        filled.push((slice, kept.take(CAPACITY).collect()));
    }
    let mut new = order
        .iter()
        .filter_map(|key| missing.remove(key))
        .peekable();
    for (_, endpoints) in &mut filled {
        let room = CAPACITY.saturating_sub(endpoints.len());
        endpoints.extend(new.by_ref().take(room));
    }
    let mut is_first = filled.is_empty();
    while new.peek().is_some() || is_first {
        is_first = false;
        let endpoints = new.by_ref().take(CAPACITY).collect();
        let name = name(service, &group, names);
        names.insert(name.clone());
        let slice = EndpointSlice {
            metadata: ObjectMeta {
                name: Some(name),
                namespace: service.metadata.namespace.clone(),
                ..ObjectMeta::default()
            },
            address_type: group.address_type.clone(),
            ports: Some(group.ports.clone()),
            endpoints,
        };
        changes.create.push(with_metadata(slice, service));
    }
    let mut keep_empty = group.endpoints.is_empty();
    for (old, endpoints) in filled {
        if endpoints.is_empty() && !std::mem::take(&mut keep_empty) {
            changes.delete.push(old.name_any());
            continue;
        }
        let mut slice = with_metadata(old.clone(), service);
        slice.endpoints = endpoints;
        if slice != *old {
            changes.update.push(slice);
        }
    }
}

/// What makes an endpoint the same one over changes of its conditions.
fn key(endpoint: &Endpoint) -> String {
    let uid = endpoint
        .target_ref
        .as_ref()
        .and_then(|target| target.uid.as_deref());
    format!(
        "{} {}",
        uid.unwrap_or_default(),
        endpoint.addresses.join(" ")
    )
}

fn name(service: &Service, group: &Group, names: &BTreeSet<String>) -> String {
    let uid = service.metadata.uid.as_deref().unwrap_or_default();
    let ports = serde_json::to_string(&group.ports).unwrap_or_default();
    let content = format!("{uid} {} {ports}", group.address_type);
    // The longest name of a Service leaves room for this.
    let numbered = |n: usize| {
        format!(
            "{}-{}",
            service.name_any(),
            hash::short(&format!("{content} {n}"), 5)
        )
    };
    let mut n = 0;
    while names.contains(&numbered(n)) {
        n += 1;
    }
    numbered(n)
}

/// The slice with labels and owner as they should be.
fn with_metadata(mut slice: EndpointSlice, service: &Service) -> EndpointSlice {
    let mut labels = service.labels().clone();
    labels.remove(HEADLESS);
    labels.insert(SERVICE_NAME.to_owned(), service.name_any());
    labels.insert(MANAGED_BY.0.to_owned(), MANAGED_BY.1.to_owned());
    let address = service
        .spec
        .as_ref()
        .and_then(|spec| spec.cluster_ip.as_deref());
    if address == Some("None") {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    slice.metadata.labels = Some(labels);
    let owner = service
        .controller_owner_ref(&())
        .map(|owner| OwnerReference {
            block_owner_deletion: Some(true),
            ..owner
        });
    slice.metadata.owner_references = owner.map(|owner| vec![owner]);
    slice
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ObjectReference;
    use serde_json::json;

    use super::*;

    fn service() -> Service {
        serde_json::from_value(json!({
            "metadata": { "name": "web", "namespace": "n", "uid": "s", "labels": { "team": "x" } },
            "spec": { "clusterIP": "10.96.0.20" },
        }))
        .unwrap()
    }

    fn group(port: i32, pods: impl IntoIterator<Item = usize>) -> Group {
        let endpoint = |n: usize| Endpoint {
            addresses: vec![format!("10.0.{}.{}", n / 200, n % 200)],
            target_ref: Some(ObjectReference {
                uid: Some(format!("pod{n}")),
                ..ObjectReference::default()
            }),
            ..Endpoint::default()
        };
        Group {
            address_type: "IPv4".to_owned(),
            ports: vec![EndpointPort {
                port: Some(port),
                ..EndpointPort::default()
            }],
            endpoints: pods.into_iter().map(endpoint).collect(),
        }
    }

    fn empty() -> Group {
        Group {
            ports: Vec::new(),
            ..group(0, [])
        }
    }

    /// The slices after the changes.
    fn apply(slices: &[Arc<EndpointSlice>], changes: Changes) -> Vec<Arc<EndpointSlice>> {
        let mut all: BTreeMap<String, Arc<EndpointSlice>> = slices
            .iter()
            .map(|slice| (slice.name_any(), slice.clone()))
            .collect();
        for name in changes.delete {
            assert!(all.remove(&name).is_some());
        }
        for slice in changes.update {
            assert!(all.insert(slice.name_any(), slice.into()).is_some());
        }
        for slice in changes.create {
            assert!(all.insert(slice.name_any(), slice.into()).is_none());
        }
        all.into_values().collect()
    }

    fn sizes(slices: &[Arc<EndpointSlice>]) -> Vec<usize> {
        let mut sizes: Vec<_> = slices.iter().map(|slice| slice.endpoints.len()).collect();
        sizes.sort_unstable();
        sizes
    }

    #[test]
    fn what_is_there_is_not_written_again() {
        let slices = apply(&[], plan(&service(), vec![group(80, 0..250)], &[]));
        assert_eq!(sizes(&slices), [50, 100, 100]);
        let changes = plan(&service(), vec![group(80, 0..250)], &slices);
        assert_eq!(changes, Changes::default());
    }

    #[test]
    fn a_pod_less_changes_one_slice_and_a_pod_more_takes_its_place() {
        let slices = apply(&[], plan(&service(), vec![group(80, 0..250)], &[]));
        let without = plan(
            &service(),
            vec![group(80, (0..250).filter(|n| *n != 7))],
            &slices,
        );
        assert_eq!(
            (
                without.create.len(),
                without.update.len(),
                without.delete.len()
            ),
            (0, 1, 0)
        );
        let slices = apply(&slices, without);
        let with = plan(
            &service(),
            vec![group(80, (0..251).filter(|n| *n != 7))],
            &slices,
        );
        assert_eq!(
            (with.create.len(), with.update.len(), with.delete.len()),
            (0, 1, 0)
        );
        assert_eq!(sizes(&apply(&slices, with)).iter().sum::<usize>(), 250);
    }

    #[test]
    fn slices_of_other_ports_go_and_come() {
        let slices = apply(
            &[],
            plan(&service(), vec![group(80, 0..2), group(81, 2..3)], &[]),
        );
        assert_eq!(sizes(&slices), [1, 2]);
        let slices = apply(&slices, plan(&service(), vec![group(81, 0..3)], &slices));
        assert_eq!(sizes(&slices), [3]);
        assert_eq!(slices[0].ports.as_ref().unwrap()[0].port, Some(81));
    }

    #[test]
    fn a_service_without_endpoints_has_one_empty_slice() {
        let slices = apply(&[], plan(&service(), vec![empty()], &[]));
        assert_eq!(sizes(&slices), [0]);
        assert_eq!(plan(&service(), vec![empty()], &slices), Changes::default());
        let slices = apply(&slices, plan(&service(), vec![group(80, 0..1)], &slices));
        assert_eq!(sizes(&slices), [1]);
    }

    #[test]
    fn labels_and_owner_are_kept_right_and_foreign_slices_alone() {
        let created = plan(&service(), vec![group(80, 0..1)], &[])
            .create
            .remove(0);
        let labels = created.labels();
        assert_eq!(labels[SERVICE_NAME], "web");
        assert_eq!(labels[MANAGED_BY.0], MANAGED_BY.1);
        assert_eq!(labels["team"], "x");
        assert_eq!(created.owner_references()[0].uid, "s");

        let mut headless = service();
        headless.spec.as_mut().unwrap().cluster_ip = Some("None".to_owned());
        let changes = plan(
            &headless,
            vec![group(80, 0..1)],
            &[Arc::new(created.clone())],
        );
        assert_eq!(changes.update.len(), 1);
        assert!(changes.update[0].labels().contains_key(HEADLESS));

        let mut foreign = created.clone();
        foreign
            .labels_mut()
            .insert(MANAGED_BY.0.to_owned(), "me".to_owned());
        foreign.metadata.name = Some("foreign".to_owned());
        let changes = plan(&service(), vec![group(80, 0..1)], &[Arc::new(foreign)]);
        assert_eq!(changes.create, [created]);
        assert!(changes.update.is_empty() && changes.delete.is_empty());
    }
}
