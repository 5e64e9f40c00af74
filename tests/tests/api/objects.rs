//! Reading and writing objects.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Node, Pod, Service};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Client, ResourceExt as _};
use serde_json::{Value, json};

use crate::{Cluster, code};

fn pod(name: &str, labels: &Value) -> Pod {
    serde_json::from_value(json!({
        "metadata": { "name": name, "labels": labels },
        "spec": { "containers": [{ "name": "a", "image": "i" }] },
    }))
    .unwrap()
}

fn map(name: &str, value: &str) -> ConfigMap {
    serde_json::from_value(json!({ "metadata": { "name": name }, "data": { "k": value } })).unwrap()
}

async fn raw(client: &Client, method: &str, path: &str, accept: &str, body: &Value) -> Value {
    let body = if body.is_null() {
        Vec::new()
    } else {
        body.to_string().into_bytes()
    };
    let request = http::Request::builder()
        .method(method)
        .uri(path)
        .header("accept", accept)
        .header("content-type", "application/json")
        .body(body)
        .unwrap();
    client.request(request).await.unwrap()
}

#[tokio::test]
async fn objects_come_and_go() {
    let cluster = Cluster::start();
    let maps: Api<ConfigMap> = Api::namespaced(cluster.client(), "default");
    let created = maps
        .create(&PostParams::default(), &map("a", "1"))
        .await
        .unwrap();
    assert!(created.uid().is_some() && created.creation_timestamp().is_some());
    assert_eq!(created.namespace().as_deref(), Some("default"));
    assert_eq!(
        code(maps.create(&PostParams::default(), &map("a", "1")).await),
        409
    );
    assert_eq!(maps.get("a").await.unwrap(), created);
    maps.delete("a", &DeleteParams::default()).await.unwrap();
    assert_eq!(code(maps.get("a").await), 404);
    assert_eq!(code(maps.delete("a", &DeleteParams::default()).await), 404);
    let elsewhere: Api<ConfigMap> = Api::namespaced(cluster.client(), "nowhere");
    assert_eq!(
        code(
            elsewhere
                .create(&PostParams::default(), &map("a", "1"))
                .await
        ),
        404
    );
}

#[tokio::test]
async fn generated_names_differ() {
    let cluster = Cluster::start();
    let maps: Api<ConfigMap> = Api::namespaced(cluster.client(), "default");
    let template: ConfigMap =
        serde_json::from_value(json!({ "metadata": { "generateName": "a-" } })).unwrap();
    let one = maps
        .create(&PostParams::default(), &template)
        .await
        .unwrap()
        .name_any();
    let two = maps
        .create(&PostParams::default(), &template)
        .await
        .unwrap()
        .name_any();
    assert!(one.starts_with("a-") && one != two, "{one} {two}");
}

#[tokio::test]
async fn a_stale_update_is_a_conflict() {
    let cluster = Cluster::start();
    let maps: Api<ConfigMap> = Api::namespaced(cluster.client(), "default");
    let first = maps
        .create(&PostParams::default(), &map("a", "1"))
        .await
        .unwrap();
    let mut second = first.clone();
    second.data = Some(BTreeMap::from([("k".to_owned(), "2".to_owned())]));
    let second = maps
        .replace("a", &PostParams::default(), &second)
        .await
        .unwrap();
    assert_ne!(second.resource_version(), first.resource_version());
    assert_eq!(
        code(maps.replace("a", &PostParams::default(), &first).await),
        409
    );
    // The same again changes nothing, not even the version.
    let again = maps
        .replace("a", &PostParams::default(), &second)
        .await
        .unwrap();
    assert_eq!(again.resource_version(), second.resource_version());
    // Without a version it is unconditional.
    maps.replace("a", &PostParams::default(), &map("a", "3"))
        .await
        .unwrap();
    let other = Preconditions {
        uid: Some("other".to_owned()),
        ..Preconditions::default()
    };
    let delete = DeleteParams {
        preconditions: Some(other),
        ..DeleteParams::default()
    };
    assert_eq!(code(maps.delete("a", &delete).await), 409);
}

#[tokio::test]
async fn dry_runs_keep_nothing() {
    let cluster = Cluster::start();
    let services: Api<Service> = Api::namespaced(cluster.client(), "default");
    let service: Service = serde_json::from_value(json!({
        "metadata": { "name": "a" }, "spec": { "ports": [{ "port": 80 }] },
    }))
    .unwrap();
    let dry = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    let seen = services.create(&dry, &service).await.unwrap();
    assert!(seen.spec.unwrap().cluster_ip.is_some());
    assert_eq!(code(services.get("a").await), 404);
}

#[tokio::test]
async fn status_and_specification_are_written_apart() {
    let cluster = Cluster::start();
    let pods: Api<Pod> = Api::namespaced(cluster.client(), "default");
    pods.create(&PostParams::default(), &pod("a", &json!({})))
        .await
        .unwrap();
    let change = json!({
        "metadata": { "labels": { "x": "y" } },
        "spec": { "nodeName": "n" },
        "status": { "phase": "Running", "podIP": "10.0.0.1" },
    });
    let params = PatchParams::default();
    let seen = pods
        .patch_status("a", &params, &Patch::Merge(&change))
        .await
        .unwrap();
    assert_eq!(seen.spec.as_ref().unwrap().node_name, None);
    assert_eq!(seen.status.unwrap().phase.as_deref(), Some("Running"));
    let change = json!({ "status": { "phase": "Failed" }, "metadata": { "labels": { "x": "z" } } });
    let seen = pods
        .patch("a", &params, &Patch::Merge(&change))
        .await
        .unwrap();
    assert_eq!(seen.labels()["x"], "z");
    assert_eq!(seen.status.unwrap().phase.as_deref(), Some("Running"));
    // A pod's node is not for users to change.
    let change = json!({ "spec": { "nodeName": "n" } });
    assert_eq!(
        code(pods.patch("a", &params, &Patch::Merge(&change)).await),
        422
    );
}

#[tokio::test]
async fn generations_count_changes_of_the_specification() {
    let cluster = Cluster::start();
    let policies: Api<NetworkPolicy> = Api::namespaced(cluster.client(), "default");
    let policy = json!({ "metadata": { "name": "a" }, "spec": { "podSelector": {} } });
    let policy = serde_json::from_value(policy).unwrap();
    let first = policies
        .create(&PostParams::default(), &policy)
        .await
        .unwrap();
    assert_eq!(first.spec.unwrap().policy_types.unwrap(), ["Ingress"]);
    let label = json!({ "metadata": { "labels": { "a": "b" } } });
    let params = PatchParams::default();
    let second = policies
        .patch("a", &params, &Patch::Merge(&label))
        .await
        .unwrap();
    assert_eq!(second.metadata.generation, Some(1));
    let spec = json!({ "spec": { "policyTypes": ["Egress"] } });
    let third = policies
        .patch("a", &params, &Patch::Strategic(&spec))
        .await
        .unwrap();
    assert_eq!(third.metadata.generation, Some(2));
}

#[tokio::test]
async fn every_kind_of_patch() {
    let cluster = Cluster::start();
    let services: Api<Service> = Api::namespaced(cluster.client(), "default");
    let params = PatchParams::apply("tester");
    let wanted = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": "a", "labels": { "l": "1" } },
        "spec": { "ports": [{ "name": "web", "port": 80 }, { "name": "tls", "port": 443 }] },
    });
    // Apply makes what is not there.
    let made = services
        .patch("a", &params, &Patch::Apply(&wanted))
        .await
        .unwrap();
    let address = made.spec.unwrap().cluster_ip.unwrap();
    let numbers = |service: &Service| -> Vec<(i32, i32)> {
        let ports = service.spec.clone().unwrap().ports.unwrap();
        let target = |port: &Value| port.as_i64().unwrap_or(0);
        ports
            .iter()
            .map(|p| {
                (
                    p.port,
                    target(&serde_json::to_value(&p.target_port).unwrap()) as i32,
                )
            })
            .collect()
    };
    let strategic = json!({ "spec": { "ports": [{ "port": 80, "targetPort": 8080 }] } });
    let seen = services
        .patch("a", &PatchParams::default(), &Patch::Strategic(&strategic))
        .await;
    let seen = seen.unwrap();
    let mut sorted = numbers(&seen);
    sorted.sort_unstable();
    assert_eq!(sorted, [(80, 8080), (443, 443)]);
    let merge = json!({ "metadata": { "labels": { "l": null, "m": "2" } } });
    let seen = services
        .patch("a", &PatchParams::default(), &Patch::Merge(&merge))
        .await
        .unwrap();
    assert_eq!(
        seen.labels(),
        &BTreeMap::from([("m".to_owned(), "2".to_owned())])
    );
    let json: json_patch::Patch = serde_json::from_value(json!([
        { "op": "test", "path": "/metadata/labels/m", "value": "2" },
        { "op": "replace", "path": "/metadata/labels/m", "value": "3" },
    ]))
    .unwrap();
    let patch: Patch<Service> = Patch::Json(json);
    let seen = services
        .patch("a", &PatchParams::default(), &patch)
        .await
        .unwrap();
    assert_eq!(seen.labels()["m"], "3");
    assert_eq!(
        code(services.patch("a", &PatchParams::default(), &patch).await),
        422
    );
    // What the manager no longer wants is gone; what it never set stays.
    let less = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": "a" },
        "spec": { "ports": [{ "name": "web", "port": 80 }] },
    });
    let seen = services
        .patch("a", &params.clone().force(), &Patch::Apply(&less))
        .await
        .unwrap();
    assert_eq!(seen.labels()["m"], "3");
    assert_eq!(seen.spec.unwrap().cluster_ip.unwrap(), address);
    // Another manager's fields are a conflict.
    let other = PatchParams::apply("other");
    let renamed = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": "a" },
        "spec": { "ports": [{ "name": "http", "port": 80 }] },
    });
    assert_eq!(
        code(services.patch("a", &other, &Patch::Apply(&renamed)).await),
        409
    );
    let seen = services
        .patch("a", &other.force(), &Patch::Apply(&renamed))
        .await
        .unwrap();
    let ports = seen.spec.unwrap().ports.unwrap();
    assert!(
        ports
            .iter()
            .any(|port| port.name.as_deref() == Some("http"))
    );
}

#[tokio::test]
async fn selectors_and_chunks() {
    let cluster = Cluster::start();
    let pods: Api<Pod> = Api::namespaced(cluster.client(), "default");
    for n in 0..5 {
        let labels = json!({ "parity": if n % 2 == 0 { "even" } else { "odd" } });
        pods.create(&PostParams::default(), &pod(&format!("p{n}"), &labels))
            .await
            .unwrap();
    }
    let names = |list: kube::api::ObjectList<Pod>| -> Vec<String> {
        list.items.iter().map(kube::ResourceExt::name_any).collect()
    };
    let odd = pods
        .list(&ListParams::default().labels("parity in (odd)"))
        .await
        .unwrap();
    assert_eq!(names(odd), ["p1", "p3"]);
    let one = ListParams::default()
        .fields("metadata.name!=p1,status.phase=Pending")
        .labels("parity=odd");
    assert_eq!(names(pods.list(&one).await.unwrap()), ["p3"]);
    assert_eq!(
        code(
            pods.list(&ListParams::default().fields("spec.nosuch=1"))
                .await
        ),
        400
    );
    assert_eq!(
        code(pods.list(&ListParams::default().labels("a in")).await),
        400
    );

    let first = pods.list(&ListParams::default().limit(2)).await.unwrap();
    assert_eq!(first.metadata.remaining_item_count, Some(3));
    let token = first.metadata.continue_.clone().unwrap();
    let version = first.metadata.resource_version.clone();
    assert_eq!(names(first), ["p0", "p1"]);
    // What happens between two pages is not seen in them.
    pods.delete("p2", &DeleteParams::default()).await.unwrap();
    pods.create(&PostParams::default(), &pod("p9", &json!({})))
        .await
        .unwrap();
    let next = ListParams::default().limit(10).continue_token(&token);
    let second = pods.list(&next).await.unwrap();
    assert_eq!(second.metadata.resource_version, version);
    assert_eq!(names(second), ["p2", "p3", "p4"]);
    cluster.server.faults().expire();
    assert_eq!(code(pods.list(&next).await), 410);
}

#[tokio::test]
async fn pods_end_when_their_kubelet_says_so() {
    let cluster = Cluster::start();
    let pods: Api<Pod> = Api::namespaced(cluster.client(), "default");
    // Without a node there is nobody to wait for.
    pods.create(&PostParams::default(), &pod("a", &json!({})))
        .await
        .unwrap();
    pods.delete("a", &DeleteParams::default()).await.unwrap();
    assert_eq!(code(pods.get("a").await), 404);
    let mut bound = pod("b", &json!({}));
    bound.spec.as_mut().unwrap().node_name = Some("n".to_owned());
    pods.create(&PostParams::default(), &bound).await.unwrap();
    let ending = pods
        .delete("b", &DeleteParams::default())
        .await
        .unwrap()
        .left()
        .unwrap();
    assert_eq!(ending.metadata.deletion_grace_period_seconds, Some(30));
    assert!(
        pods.get("b")
            .await
            .unwrap()
            .metadata
            .deletion_timestamp
            .is_some()
    );
    let now = DeleteParams {
        grace_period_seconds: Some(0),
        ..DeleteParams::default()
    };
    pods.delete("b", &now).await.unwrap();
    assert_eq!(code(pods.get("b").await), 404);
}

#[tokio::test]
async fn finalizers_hold_an_object_back() {
    let cluster = Cluster::start();
    let maps: Api<ConfigMap> = Api::namespaced(cluster.client(), "default");
    let mut object = map("a", "1");
    object.metadata.finalizers = Some(vec!["x/y".to_owned()]);
    maps.create(&PostParams::default(), &object).await.unwrap();
    maps.delete("a", &DeleteParams::default()).await.unwrap();
    assert!(
        maps.get("a")
            .await
            .unwrap()
            .metadata
            .deletion_timestamp
            .is_some()
    );
    let free = json!({ "metadata": { "finalizers": null } });
    maps.patch("a", &PatchParams::default(), &Patch::Merge(&free))
        .await
        .unwrap();
    assert_eq!(code(maps.get("a").await), 404);
}

#[tokio::test]
async fn collections_are_deleted_by_selector() {
    let cluster = Cluster::start();
    let pods: Api<Pod> = Api::namespaced(cluster.client(), "default");
    for (name, app) in [("a", "x"), ("b", "y"), ("c", "x")] {
        pods.create(&PostParams::default(), &pod(name, &json!({ "app": app })))
            .await
            .unwrap();
    }
    let some = ListParams::default().labels("app=x");
    pods.delete_collection(&DeleteParams::default(), &some)
        .await
        .unwrap();
    let left = pods.list(&ListParams::default()).await.unwrap();
    assert_eq!(left.items.len(), 1);
}

#[tokio::test]
async fn malformed_objects_are_refused_with_the_field() {
    let cluster = Cluster::start();
    let client = cluster.client();
    let policies: Api<NetworkPolicy> = Api::namespaced(client.clone(), "default");
    let block = json!({ "from": [{ "ipBlock": { "cidr": "10.0.0.0/64" } }] });
    let policy = json!({
        "metadata": { "name": "a" }, "spec": { "podSelector": {}, "ingress": [block] },
    });
    let policy = serde_json::from_value(policy).unwrap();
    match policies.create(&PostParams::default(), &policy).await {
        Err(kube::Error::Api(status)) => {
            assert_eq!((status.code, status.reason.as_str()), (422, "Invalid"));
            assert!(
                status
                    .message
                    .contains("spec.ingress[0].from[0].ipBlock.cidr"),
                "{status:?}"
            );
        }
        other => panic!("{other:?}"),
    }
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let bad = json!({ "metadata": { "name": "Not_A_Name" } });
    let bad = serde_json::from_value(bad).unwrap();
    assert_eq!(
        code(namespaces.create(&PostParams::default(), &bad).await),
        422
    );
    for (body, expected) in [
        ("{ not json", 400),
        ("[]", 400),
        (r#"{"kind":"Pod","apiVersion":"v1"}"#, 400),
        (
            r#"{"metadata":{"name":"a"},"spec":{"ports":[{"port":"x"}]}}"#,
            400,
        ),
        (
            r#"{"metadata":{"name":"a"},"spec":{"ports":[{"port":70000}]}}"#,
            422,
        ),
        (
            r#"{"metadata":{"name":"a"},"spec":{"type":"Nonsense","ports":[{"port":1}]}}"#,
            422,
        ),
        (r#"{"metadata":7}"#, 400),
    ] {
        let request = http::Request::post("/api/v1/namespaces/default/services")
            .header("content-type", "application/json")
            .body(body.as_bytes().to_vec())
            .unwrap();
        assert_eq!(
            code(client.request::<Value>(request).await),
            expected,
            "{body}"
        );
    }
    for path in [
        "/apis/nosuch/v1/things",
        "/api/v1/nosuch",
        "/nosuch",
        "/api/v1/pods/x",
    ] {
        let request = http::Request::get(path).body(Vec::new()).unwrap();
        assert_eq!(code(client.request::<Value>(request).await), 404, "{path}");
    }
}

#[tokio::test]
async fn unknown_fields_are_refused_when_strict_and_dropped_otherwise() {
    let cluster = Cluster::start();
    let client = cluster.client();
    let body = json!({ "metadata": { "name": "a" }, "data": {}, "dta": 1 });
    let path = "/api/v1/namespaces/default/configmaps";
    let strict = http::Request::post(format!("{path}?fieldValidation=Strict"))
        .header("content-type", "application/json")
        .body(body.to_string().into_bytes())
        .unwrap();
    match client.request::<Value>(strict).await {
        Err(kube::Error::Api(status)) => {
            assert_eq!(status.code, 400);
            assert!(
                status.message.contains("unknown field \"dta\""),
                "{status:?}"
            );
        }
        other => panic!("{other:?}"),
    }
    let made = raw(&client, "POST", path, "application/json", &body).await;
    assert_eq!(made["dta"], Value::Null);
}

#[tokio::test]
async fn services_have_their_addresses_at_once() {
    let cluster = Cluster::start();
    let services: Api<Service> = Api::namespaced(cluster.client(), "default");
    let create = async |name: &str, spec: Value| {
        let service = json!({ "metadata": { "name": name }, "spec": spec });
        let service = serde_json::from_value(service).unwrap();
        services.create(&PostParams::default(), &service).await
    };
    let ports = json!([{ "port": 80 }]);
    let plain = create("plain", json!({ "ports": ports }))
        .await
        .unwrap()
        .spec
        .unwrap();
    let address = plain.cluster_ip.unwrap();
    assert!(address.starts_with("10.96."), "{address}");
    assert_eq!(plain.cluster_ips.unwrap(), std::slice::from_ref(&address));
    let node = create("node", json!({ "type": "NodePort", "ports": ports }))
        .await
        .unwrap();
    let number = node.spec.unwrap().ports.unwrap()[0].node_port.unwrap();
    assert!((30000..=32767).contains(&number));
    let headless = create("headless", json!({ "clusterIP": "None", "ports": ports }))
        .await
        .unwrap();
    assert_eq!(headless.spec.unwrap().cluster_ip.as_deref(), Some("None"));
    let taken = create("taken", json!({ "clusterIP": address, "ports": ports })).await;
    assert_eq!(code(taken), 422);
    services
        .delete("plain", &DeleteParams::default())
        .await
        .unwrap();
    create("again", json!({ "clusterIP": address, "ports": ports }))
        .await
        .unwrap();
}

#[tokio::test]
async fn replicas_can_be_scaled() {
    let cluster = Cluster::start();
    let deployments: Api<Deployment> = Api::namespaced(cluster.client(), "default");
    let deployment = serde_json::from_value(json!({
        "metadata": { "name": "a" },
        "spec": {
            "selector": { "matchLabels": { "app": "a" } },
            "template": {
                "metadata": { "labels": { "app": "a" } },
                "spec": { "containers": [{ "name": "a", "image": "i" }] },
            },
        },
    }))
    .unwrap();
    deployments
        .create(&PostParams::default(), &deployment)
        .await
        .unwrap();
    let patch = json!({ "spec": { "replicas": 3 } });
    let params = PatchParams::default();
    let scale = deployments
        .patch_scale("a", &params, &Patch::Merge(&patch))
        .await
        .unwrap();
    assert_eq!(scale.spec.unwrap().replicas, Some(3));
    assert_eq!(
        deployments.get("a").await.unwrap().spec.unwrap().replicas,
        Some(3)
    );
}

#[tokio::test]
async fn tables_and_metadata_instead_of_objects() {
    let cluster = Cluster::start();
    let client = cluster.client();
    let pods: Api<Pod> = Api::namespaced(client.clone(), "default");
    pods.create(&PostParams::default(), &pod("a", &json!({ "l": "1" })))
        .await
        .unwrap();
    let path = "/api/v1/namespaces/default/pods";
    let accept = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
    let table = raw(&client, "GET", path, accept, &Value::Null).await;
    assert_eq!(table["kind"], "Table");
    let names: Vec<_> = table["columnDefinitions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| c["name"].clone())
        .collect();
    assert_eq!(names[..5], ["Name", "Ready", "Status", "Restarts", "Age"]);
    let row = &table["rows"][0];
    assert_eq!(
        row["cells"].as_array().unwrap()[..4],
        ["a", "0/1", "Pending", "0"]
    );
    assert_eq!(row["object"]["kind"], "PartialObjectMetadata");
    let metas: Api<Pod> = Api::namespaced(client, "default");
    let list = metas.list_metadata(&ListParams::default()).await.unwrap();
    assert_eq!(list.items[0].labels()["l"], "1");
}

#[tokio::test]
async fn nodes_bring_their_status() {
    let cluster = Cluster::start();
    let nodes: Api<Node> = Api::all(cluster.client());
    let node = json!({
        "metadata": { "name": "n" },
        "status": { "conditions": [{ "type": "Ready", "status": "True" }] },
    });
    let node = serde_json::from_value(node).unwrap();
    let made = nodes.create(&PostParams::default(), &node).await.unwrap();
    assert_eq!(made.status.unwrap().conditions.unwrap().len(), 1);
}
