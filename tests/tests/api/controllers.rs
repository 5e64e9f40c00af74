//! What the controllers make of objects.

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::{Endpoints, Namespace, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Client, Resource, ResourceExt as _};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use weft_tests::controllers::Settings;

use crate::{Cluster, code, eventually};

async fn create<K>(client: &Client, namespace: Option<&str>, object: Value) -> K
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned + Serialize,
{
    let api: Api<kube::core::DynamicObject> = match namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &kind::<K>()),
        None => Api::all_with(client.clone(), &kind::<K>()),
    };
    let object = serde_json::from_value(object).unwrap();
    let made = api.create(&PostParams::default(), &object).await.unwrap();
    made.try_parse().unwrap()
}

fn kind<K: Resource<DynamicType = ()>>() -> kube::core::ApiResource {
    kube::core::ApiResource::erase::<K>(&())
}

async fn node(client: &Client, name: &str, labels: Value) {
    let _: Node = create(
        client,
        None,
        json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": { "name": name, "labels": labels },
            "status": { "conditions": [{ "type": "Ready", "status": "True" }] },
        }),
    )
    .await;
}

fn template() -> Value {
    let ports = json!([{ "name": "web", "containerPort": 8080 }]);
    json!({
        "metadata": { "labels": { "app": "a" } },
        "spec": { "containers": [{ "name": "a", "image": "i", "ports": ports }] },
    })
}

fn deployment(replicas: u32) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": { "name": "a" },
        "spec": {
            "replicas": replicas,
            "selector": { "matchLabels": { "app": "a" } },
            "template": template(),
        },
    })
}

/// Says that the pod runs, as its kubelet would. A pod that is gone meanwhile is none.
async fn run(pods: &Api<Pod>, name: &str, address: &str, ready: bool) {
    let ready = if ready { "True" } else { "False" };
    let status = json!({ "status": {
        "phase": "Running", "podIP": address, "podIPs": [{ "ip": address }],
        "conditions": [{
            "type": "Ready", "status": ready, "lastTransitionTime": "2026-01-01T00:00:00Z",
        }],
    } });
    match pods
        .patch_status(name, &PatchParams::default(), &Patch::Strategic(&status))
        .await
    {
        Err(kube::Error::Api(status)) if status.code == 404 => {}
        done => drop(done.unwrap()),
    }
}

/// Address, ready, serving, terminating.
type Seen = (String, bool, bool, bool);

async fn endpoints(client: &Client, namespace: &str) -> Vec<Seen> {
    let slices: Api<EndpointSlice> = Api::namespaced(client.clone(), namespace);
    let mut all = Vec::new();
    for slice in slices.list(&ListParams::default()).await.unwrap() {
        for endpoint in slice.endpoints.into_iter() {
            let c = endpoint.conditions.unwrap();
            let is = |condition: Option<bool>| condition.unwrap();
            let state = (is(c.ready), is(c.serving), is(c.terminating));
            all.push((endpoint.addresses[0].clone(), state.0, state.1, state.2));
        }
    }
    all.sort();
    all
}

#[tokio::test]
async fn deployments_become_pods_on_nodes() {
    let cluster = Cluster::with_controllers();
    let client = cluster.client();
    node(&client, "n1", json!({})).await;
    node(&client, "n2", json!({})).await;
    let nodes: Api<Node> = Api::all(client.clone());
    let ranges = eventually("pod ranges", async || {
        let list = nodes.list(&ListParams::default()).await.unwrap();
        list.into_iter()
            .map(|n| n.spec?.pod_cidr)
            .collect::<Option<Vec<_>>>()
    })
    .await;
    assert_eq!(ranges, ["10.244.0.0/24", "10.244.1.0/24"]);
    let _: Deployment = create(&client, Some("default"), deployment(4)).await;
    let pods: Api<Pod> = Api::namespaced(client.clone(), "default");
    let placed = eventually("four pods on nodes", async || {
        let list = pods.list(&ListParams::default()).await.unwrap();
        let nodes: Option<Vec<_>> = list.into_iter().map(|p| p.spec?.node_name).collect();
        nodes.filter(|nodes| nodes.len() == 4)
    })
    .await;
    assert_eq!(placed.iter().filter(|n| *n == "n1").count(), 2);
    // Ready pods make an available deployment.
    for (n, pod) in pods
        .list(&ListParams::default())
        .await
        .unwrap()
        .iter()
        .enumerate()
    {
        run(&pods, &pod.name_any(), &format!("10.244.0.{n}"), true).await;
    }
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), "default");
    eventually("availability", async || {
        let status = deployments.get("a").await.unwrap().status?;
        (status.available_replicas == Some(4)).then_some(())
    })
    .await;
    // Without the deployment there are no replica sets, and without those no pods but ending ones.
    deployments
        .delete("a", &DeleteParams::default())
        .await
        .unwrap();
    eventually("the pods' end", async || {
        let list = pods.list(&ListParams::default()).await.unwrap();
        list.iter()
            .all(|p| p.metadata.deletion_timestamp.is_some())
            .then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_new_template_replaces_the_pods() {
    let cluster = Cluster::with_controllers();
    let client = cluster.client();
    let _: Deployment = create(&client, Some("default"), deployment(2)).await;
    let pods: Api<Pod> = Api::namespaced(client.clone(), "default");
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), "default");
    let containers = json!([{ "name": "a", "image": "other" }]);
    let change = json!({ "spec": { "template": { "spec": { "containers": containers } } } });
    eventually("the first pods", async || {
        let list = pods.list(&ListParams::default()).await.unwrap();
        (list.items.len() == 2).then_some(())
    })
    .await;
    deployments
        .patch("a", &PatchParams::default(), &Patch::Strategic(&change))
        .await
        .unwrap();
    eventually("two pods of the new template", async || {
        let list = pods.list(&ListParams::default()).await.unwrap();
        for pod in &list.items {
            // Nobody else plays the kubelet here.
            run(&pods, &pod.name_any(), "10.244.0.9", true).await;
        }
        let is_new =
            |pod: &Pod| pod.spec.as_ref().unwrap().containers[0].image.as_deref() == Some("other");
        (list.items.len() == 2 && list.iter().all(is_new)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn pods_wait_for_a_node_that_fits() {
    let cluster = Cluster::with_controllers();
    let client = cluster.client();
    node(&client, "n1", json!({ "disk": "slow" })).await;
    let pods: Api<Pod> = Api::namespaced(client.clone(), "default");
    let mut spec = template()["spec"].clone();
    spec["nodeSelector"] = json!({ "disk": "fast" });
    let pod =
        json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "a" }, "spec": spec });
    let _: Pod = create(&client, Some("default"), pod).await;
    eventually("the reason", async || {
        let conditions = pods.get("a").await.unwrap().status?.conditions?;
        conditions
            .iter()
            .any(|c| c.reason.as_deref() == Some("Unschedulable"))
            .then_some(())
    })
    .await;
    node(&client, "n2", json!({ "disk": "fast" })).await;
    let found = eventually("a node", async || {
        pods.get("a").await.unwrap().spec?.node_name
    })
    .await;
    assert_eq!(found, "n2");
}

#[tokio::test]
async fn slices_follow_pods() {
    let cluster = Cluster::with_controllers();
    let client = cluster.client();
    let pods: Api<Pod> = Api::namespaced(client.clone(), "default");
    for name in ["a", "b"] {
        let mut pod = pod(name);
        pod["spec"]["nodeName"] = "n1".into();
        let _: Pod = create(&client, Some("default"), pod).await;
    }
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": "s" },
        "spec": { "selector": { "app": "a" }, "ports": [{ "port": 80, "targetPort": "web" }] },
    });
    let _: Service = create(&client, Some("default"), service).await;
    run(&pods, "a", "10.244.0.1", true).await;
    run(&pods, "b", "10.244.0.2", false).await;
    let expect = async |what: &str, expected: Vec<(&str, bool, bool, bool)>| {
        let expected: Vec<Seen> = expected
            .into_iter()
            .map(|(a, r, s, t)| (a.to_owned(), r, s, t))
            .collect();
        eventually(what, async || {
            (endpoints(&client, "default").await == expected).then_some(())
        })
        .await;
    };
    expect(
        "one ready of two",
        vec![
            ("10.244.0.1", true, true, false),
            ("10.244.0.2", false, false, false),
        ],
    )
    .await;
    let slices: Api<EndpointSlice> = Api::namespaced(client.clone(), "default");
    let list = slices
        .list(&ListParams::default().labels("kubernetes.io/service-name=s"))
        .await;
    let [slice] = list.unwrap().items.try_into().unwrap();
    assert_eq!(slice.address_type, "IPv4");
    assert_eq!(slice.ports.unwrap()[0].port, Some(8080));
    let endpoint = &slice.endpoints[0];
    assert_eq!(endpoint.node_name.as_deref(), Some("n1"));
    assert_eq!(
        endpoint.target_ref.as_ref().unwrap().kind.as_deref(),
        Some("Pod")
    );
    run(&pods, "b", "10.244.0.2", true).await;
    pods.delete("a", &DeleteParams::default()).await.unwrap();
    expect(
        "the ending one still serves",
        vec![
            ("10.244.0.1", false, true, true),
            ("10.244.0.2", true, true, false),
        ],
    )
    .await;
    let now = DeleteParams {
        grace_period_seconds: Some(0),
        ..DeleteParams::default()
    };
    pods.delete("a", &now).await.unwrap();
    expect(
        "the gone one is gone",
        vec![("10.244.0.2", true, true, false)],
    )
    .await;
    let publish = json!({ "spec": { "publishNotReadyAddresses": true } });
    let services: Api<Service> = Api::namespaced(client.clone(), "default");
    services
        .patch("s", &PatchParams::default(), &Patch::Merge(&publish))
        .await
        .unwrap();
    run(&pods, "b", "10.244.0.2", false).await;
    let change = json!({ "metadata": { "labels": { "x": "y" } } });
    services
        .patch("s", &PatchParams::default(), &Patch::Merge(&change))
        .await
        .unwrap();
    expect(
        "published although not ready",
        vec![("10.244.0.2", true, false, false)],
    )
    .await;
    services
        .delete("s", &DeleteParams::default())
        .await
        .unwrap();
    eventually("no slices", async || {
        slices
            .list(&ListParams::default())
            .await
            .unwrap()
            .items
            .is_empty()
            .then_some(())
    })
    .await;
}

#[tokio::test]
async fn large_services_have_several_slices() {
    let cluster = Cluster::with_controllers();
    let client = cluster.client();
    let pods: Api<Pod> = Api::namespaced(client.clone(), "default");
    for n in 0..130 {
        let mut pod = template();
        pod["apiVersion"] = "v1".into();
        pod["kind"] = "Pod".into();
        pod["metadata"]["name"] = format!("p{n}").into();
        let _: Pod = create(&client, Some("default"), pod).await;
        run(&pods, &format!("p{n}"), &format!("10.244.1.{n}"), true).await;
    }
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": "s" },
        "spec": { "selector": { "app": "a" }, "ports": [{ "port": 80 }] },
    });
    let _: Service = create(&client, Some("default"), service).await;
    let slices: Api<EndpointSlice> = Api::namespaced(client.clone(), "default");
    let mut sizes = eventually("all endpoints", async || {
        let list = slices.list(&ListParams::default()).await.unwrap();
        let sizes: Vec<_> = list.iter().map(|slice| slice.endpoints.len()).collect();
        (sizes.iter().sum::<usize>() == 130).then_some(sizes)
    })
    .await;
    sizes.sort_unstable();
    assert_eq!(sizes, [30, 100]);
}

#[tokio::test]
async fn daemons_run_once_on_every_node() {
    let cluster = Cluster::with_controllers();
    let client = cluster.client();
    node(&client, "n1", json!({})).await;
    let set = json!({
        "apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": { "name": "d" },
        "spec": { "selector": { "matchLabels": { "app": "a" } }, "template": template() },
    });
    let _: DaemonSet = create(&client, Some("default"), set).await;
    node(&client, "n2", json!({})).await;
    let pods: Api<Pod> = Api::namespaced(client.clone(), "default");
    let mut nodes = eventually("two daemons", async || {
        let list = pods.list(&ListParams::default()).await.unwrap();
        let nodes: Option<Vec<_>> = list.into_iter().map(|p| p.spec?.node_name).collect();
        nodes.filter(|nodes| nodes.len() == 2)
    })
    .await;
    nodes.sort();
    assert_eq!(nodes, ["n1", "n2"]);
}

#[tokio::test]
async fn namespaces_end_with_what_is_in_them() {
    let cluster = Cluster::with_controllers();
    let client = cluster.client();
    let space = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "x" } });
    let made: Namespace = create(&client, None, space).await;
    assert_eq!(made.labels()["kubernetes.io/metadata.name"], "x");
    let mut pod = template();
    pod["apiVersion"] = "v1".into();
    pod["kind"] = "Pod".into();
    pod["metadata"]["name"] = "a".into();
    pod["spec"]["nodeName"] = "n1".into();
    let _: Pod = create(&client, Some("x"), pod).await;
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let pods: Api<Pod> = Api::namespaced(client.clone(), "x");
    namespaces
        .delete("x", &DeleteParams::default())
        .await
        .unwrap();
    // The namespace waits for its pod, and the pod for its kubelet.
    eventually("the pod's end", async || {
        pods.get("a")
            .await
            .unwrap()
            .metadata
            .deletion_timestamp
            .map(drop)
    })
    .await;
    let phase = namespaces.get("x").await.unwrap().status.unwrap().phase;
    assert_eq!(phase.as_deref(), Some("Terminating"));
    let now = DeleteParams {
        grace_period_seconds: Some(0),
        ..DeleteParams::default()
    };
    pods.delete("a", &now).await.unwrap();
    eventually("the namespace's end", async || {
        namespaces
            .get_opt("x")
            .await
            .unwrap()
            .is_none()
            .then_some(())
    })
    .await;
}

fn pod(name: &str) -> Value {
    let mut pod = template();
    pod["apiVersion"] = "v1".into();
    pod["kind"] = "Pod".into();
    pod["metadata"]["name"] = name.into();
    pod
}

#[tokio::test]
async fn pods_with_one_address_are_several_endpoints() {
    let cluster = Cluster::with_controllers();
    let client = cluster.client();
    let pods: Api<Pod> = Api::namespaced(client.clone(), "default");
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": "s" },
        "spec": { "selector": { "app": "a" }, "ports": [{ "port": 80 }] },
    });
    create::<Service>(&client, Some("default"), service).await;
    for name in ["a", "b"] {
        create::<Pod>(&client, Some("default"), pod(name)).await;
        run(&pods, name, "172.30.0.10", true).await;
    }
    let slices: Api<EndpointSlice> = Api::namespaced(client.clone(), "default");
    let targets = async || -> Vec<String> {
        let list = slices.list(&ListParams::default()).await.unwrap();
        let all = list.into_iter().flat_map(|slice| slice.endpoints);
        let mut uids: Vec<_> = all.filter_map(|e| e.target_ref?.uid).collect();
        uids.sort();
        uids
    };
    eventually("both are endpoints", async || {
        (targets().await.len() == 2).then_some(())
    })
    .await;
    let now = DeleteParams::default().grace_period(0);
    pods.delete("a", &now).await.unwrap();
    let left = pods.get("b").await.unwrap().metadata.uid.unwrap();
    eventually("the other one stays", async || {
        (targets().await == [left.as_str()]).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_pods_addresses_are_one_of_each_family() {
    let cluster = Cluster::start();
    let client = cluster.client();
    let pods: Api<Pod> = Api::namespaced(client.clone(), "default");
    create::<Pod>(&client, Some("default"), pod("a")).await;
    let report = async |first: &str, all: &[&str]| {
        let all: Vec<_> = all.iter().map(|ip| json!({ "ip": ip })).collect();
        let status = json!({ "status": { "podIP": first, "podIPs": all } });
        let parameters = PatchParams::default();
        pods.patch_status("a", &parameters, &Patch::Merge(&status))
            .await
    };
    for (first, all) in [
        ("10.0.0.1", &["10.0.0.1", "10.0.0.2"][..]),
        ("10.0.0.1", &["fd00::1", "10.0.0.1"]),
        ("10.0.0.1", &["10.0.0.1", "none"]),
    ] {
        assert_eq!(code(report(first, all).await), 422, "{all:?}");
    }
    report("fd00::1", &["fd00::1", "10.0.0.1"]).await.unwrap();
}

/// A pod on a node, ready at this address.
async fn ready_pod(client: &Client, name: &str, node: &str, address: &str) {
    let pods: Api<Pod> = Api::namespaced(client.clone(), "default");
    let mut pod = pod(name);
    pod["spec"]["nodeName"] = node.into();
    let _: Pod = create(client, Some("default"), pod).await;
    run(&pods, name, address, true).await;
}

#[tokio::test]
async fn slices_are_as_small_as_they_are_to_be_and_tell_since_when() {
    let settings = Settings {
        slice_size: 2,
        ..Settings::default()
    };
    let cluster = Cluster::controlled(settings);
    let client = cluster.client();
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": "s" },
        "spec": { "clusterIP": "None", "selector": { "app": "a" }, "ports": [{ "port": 80 }] },
    });
    let _: Service = create(&client, Some("default"), service).await;
    for n in 1..=5 {
        ready_pod(&client, &format!("p{n}"), "n1", &format!("10.244.0.{n}")).await;
    }
    let slices: Api<EndpointSlice> = Api::namespaced(client.clone(), "default");
    let list = eventually("three slices", async || {
        let list = slices.list(&ListParams::default()).await.unwrap().items;
        let mut sizes: Vec<_> = list.iter().map(|slice| slice.endpoints.len()).collect();
        sizes.sort_unstable();
        (sizes == [1, 2, 2]).then_some(list)
    })
    .await;
    for slice in &list {
        assert!(
            slice
                .labels()
                .contains_key("service.kubernetes.io/headless")
        );
    }
    let time = "endpoints.kubernetes.io/last-change-trigger-time";
    let told = list
        .iter()
        .filter_map(|slice| slice.annotations().get(time));
    let told: Vec<_> = told.collect();
    assert_eq!(told, ["2026-01-01T00:00:00Z"; 3], "then the pods got ready");
}

#[tokio::test]
async fn ports_with_names_are_found_in_each_pod() {
    let cluster = Cluster::with_controllers();
    let client = cluster.client();
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": "s" },
        "spec": { "selector": { "app": "a" }, "ports": [{ "port": 80, "targetPort": "web" }] },
    });
    let _: Service = create(&client, Some("default"), service).await;
    let pods: Api<Pod> = Api::namespaced(client.clone(), "default");
    for (name, port, address) in [("a", 8080, "10.244.0.1"), ("b", 9090, "10.244.0.2")] {
        let mut pod = pod(name);
        pod["spec"]["nodeName"] = "n1".into();
        pod["spec"]["containers"][0]["ports"][0]["containerPort"] = port.into();
        let _: Pod = create(&client, Some("default"), pod).await;
        run(&pods, name, address, true).await;
    }
    let slices: Api<EndpointSlice> = Api::namespaced(client.clone(), "default");
    let found = eventually("a slice for each port", async || {
        let list = slices.list(&ListParams::default()).await.unwrap();
        let pair = |slice: &EndpointSlice| {
            let port = slice.ports.as_ref()?.first()?.port?;
            Some((port, slice.endpoints.first()?.addresses[0].clone()))
        };
        let mut found: Vec<_> = list.iter().filter_map(pair).collect();
        found.sort();
        (found.len() == 2).then_some(found)
    })
    .await;
    let expected = [(8080, "10.244.0.1"), (9090, "10.244.0.2")];
    assert_eq!(found, expected.map(|(port, ip)| (port, ip.to_owned())));
}

#[tokio::test]
async fn endpoints_hint_at_whom_they_are_for() {
    let cluster = Cluster::with_controllers();
    let client = cluster.client();
    for zone in ["a", "b"] {
        let labels = json!({ "topology.kubernetes.io/zone": zone });
        node(&client, &format!("n{zone}"), labels).await;
        let address = format!("10.244.0.{}", zone.as_bytes()[0]);
        ready_pod(&client, zone, &format!("n{zone}"), &address).await;
    }
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": "s" },
        "spec": { "selector": { "app": "a" }, "ports": [{ "port": 80 }],
                  "trafficDistribution": "PreferSameNode" },
    });
    let _: Service = create(&client, Some("default"), service).await;
    let slices: Api<EndpointSlice> = Api::namespaced(client.clone(), "default");
    let expect = async |what: &str, zone: bool, node: bool| {
        eventually(what, async || {
            let list = slices.list(&ListParams::default()).await.unwrap();
            let endpoints: Vec<_> = list.into_iter().flat_map(|slice| slice.endpoints).collect();
            let is_so = endpoints.iter().all(|endpoint| {
                let hints = endpoint.hints.clone().unwrap_or_default();
                let zones = hints.for_zones.unwrap_or_default().into_iter();
                let zones: Vec<_> = zones.map(|hint| hint.name).collect();
                let nodes = hints.for_nodes.unwrap_or_default().into_iter();
                let nodes: Vec<_> = nodes.map(|hint| hint.name).collect();
                let own = |wanted: bool, name: &Option<String>| -> Vec<String> {
                    name.iter().filter(|_| wanted).cloned().collect()
                };
                zones == own(zone, &endpoint.zone) && nodes == own(node, &endpoint.node_name)
            });
            (endpoints.len() == 2 && is_so).then_some(())
        })
        .await;
    };
    expect("hints at nodes and zones", true, true).await;
    let services: Api<Service> = Api::namespaced(client.clone(), "default");
    let parameters = PatchParams::default();
    let change = Patch::Merge(json!({ "spec": { "trafficDistribution": "PreferClose" } }));
    services.patch("s", &parameters, &change).await.unwrap();
    expect("hints at zones", true, false).await;
    let change = Patch::Merge(json!({ "spec": { "trafficDistribution": null } }));
    services.patch("s", &parameters, &change).await.unwrap();
    expect("no hints", false, false).await;
}

#[tokio::test]
async fn what_users_write_into_endpoints_is_in_slices() {
    let cluster = Cluster::with_controllers();
    let client = cluster.client();
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": "s" },
        "spec": { "ports": [{ "name": "a", "port": 80 }, { "name": "b", "port": 81 }] },
    });
    let _: Service = create(&client, Some("default"), service).await;
    let subset = |name: &str, port: u16, addresses: Value| json!({ "addresses": addresses, "ports": [{ "name": name, "port": port }] });
    let both = json!([{ "ip": "10.0.0.1" }, { "ip": "fd00::1" }]);
    let endpoints = json!({
        "apiVersion": "v1", "kind": "Endpoints", "metadata": { "name": "s" },
        "subsets": [subset("a", 8090, both), subset("b", 9090, json!([{ "ip": "10.0.0.1" }]))],
    });
    let _: Endpoints = create(&client, Some("default"), endpoints).await;
    let slices: Api<EndpointSlice> = Api::namespaced(client.clone(), "default");
    let expect = async |what: &str, expected: Vec<(&str, i32)>| {
        eventually(what, async || {
            let list = slices.list(&ListParams::default()).await.unwrap();
            let pair = |slice: &EndpointSlice| {
                let port = slice.ports.as_ref()?.first()?.port?;
                Some((slice.endpoints.first()?.addresses[0].clone(), port))
            };
            let mut found: Vec<_> = list.iter().filter_map(pair).collect();
            found.sort();
            let found: Vec<_> = found
                .iter()
                .map(|(ip, port)| (ip.as_str(), *port))
                .collect();
            (found == expected).then_some(())
        })
        .await;
    };
    let all = vec![("10.0.0.1", 8090), ("10.0.0.1", 9090), ("fd00::1", 8090)];
    expect("a slice for each family and port", all).await;
    let api: Api<Endpoints> = Api::namespaced(client.clone(), "default");
    let change = json!({ "subsets": [subset("b", 9090, json!([{ "ip": "10.0.0.2" }]))] });
    api.patch("s", &PatchParams::default(), &Patch::Merge(&change))
        .await
        .unwrap();
    expect("what is left", vec![("10.0.0.2", 9090)]).await;
    api.delete("s", &DeleteParams::default()).await.unwrap();
    expect("nothing", Vec::new()).await;
}
