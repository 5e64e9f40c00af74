//! What nodes tell of themselves while the cluster changes: whether load balancers may use them, and
//! how far they have followed.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use weft_tests::playground::{Families, Family, Place, Playground};

use crate::scene::{NAMESPACE, Scene, client, host, http, pod, server, service};

/// kube-proxy's ports.
const HEALTH: u16 = 10_256;
const METRICS: u16 = 10_249;

#[test]
fn nodes_tell_how_they_are() {
    let plan = Playground::builder()
        .name("telling")
        .nodes(2)
        .families(Families::Dual);
    let objects = [
        client("a", "node2"),
        server("s", "node1", "web", "", ""),
        service(
            "web",
            "web",
            "type: NodePort\n  externalTrafficPolicy: Local\n  internalTrafficPolicy: Local",
        ),
        service("any", "web", ""),
    ];
    let scene = Scene::start(plan, &objects);
    for family in Family::BOTH {
        let to = scene.at_cluster_ip("any", family);
        scene.expect(pod("a"), "tcp", to, &["s"], None);
    }
    the_node_goes(&scene);
    // Long enough after the agents began: changes have whole seconds, and older ones do not count.
    let another = server("s2", "node1", "web", "", "");
    scene.playground.apply(&another).unwrap();
    scene.playground.wait_pod_ready(NAMESPACE, "s2").unwrap();
    metrics_follow(&scene);
    scene.finish();
}

/// Load balancers outside ask the node's addresses.
fn expect_health(scene: &Scene, node: &str, path: &str, expected: u16, tell: &[(&str, Value)]) {
    for family in Family::BOTH {
        let to = SocketAddr::new(scene.node(node, family), HEALTH);
        scene.soon(&format!("{to}{path} answers {expected}"), || {
            let (status, answer) = http(scene, Place::Outside, to, path)?;
            ensure!(status == expected, "{answer}");
            let body = answer.split("\r\n\r\n").nth(1).context("no body")?;
            let body: Value = serde_json::from_str(body)?;
            for (field, value) in tell {
                ensure!(body[field] == *value, "{answer}");
            }
            // Who is well is so now.
            let is_now = body["lastUpdated"] == body["currentTime"];
            ensure!(is_now == (status == 200), "{answer}");
            Ok(())
        });
    }
}

/// A node that is no node any more gets nothing new, and what is there goes on.
fn the_node_goes(scene: &Scene) {
    let well = [("nodeEligible", json!(true)), ("healthy", json!(true))];
    expect_health(scene, "node1", "/healthz", 200, &well);
    expect_health(
        scene,
        "node1",
        "/livez",
        200,
        &[("nodeEligible", json!(null))],
    );

    let nodes: Api<Node> = Api::all(scene.playground.client());
    let node = scene.playground.block_on(nodes.get("node2")).unwrap();
    let now = DeleteParams::default();
    let deleted = scene.playground.block_on(nodes.delete("node2", &now));
    deleted.unwrap();
    let gone = [("nodeEligible", json!(false)), ("healthy", json!(true))];
    expect_health(scene, "node2", "/healthz", 503, &gone);
    expect_health(scene, "node2", "/livez", 200, &[]);
    expect_health(scene, "node1", "/healthz", 200, &well);

    // A kubelet that is still there registers it anew.
    let again = json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": { "name": "node2", "labels": node.metadata.labels },
        "spec": node.spec, "status": node.status,
    });
    let again: Node = serde_json::from_value(again).unwrap();
    let create = async {
        nodes.create(&PostParams::default(), &again).await?;
        let status = Patch::Merge(json!({ "status": again.status }));
        let by = PatchParams::default();
        nodes.patch_status("node2", &by, &status).await
    };
    scene.playground.block_on(create).unwrap();
    expect_health(scene, "node2", "/healthz", 200, &well);
    for family in Family::BOTH {
        let to = scene.at_cluster_ip("any", family);
        scene.expect(host("node2"), "tcp", to, &["s"], None);
    }
}

/// The metrics that dashboards know, by their names and labels.
fn metrics_follow(scene: &Scene) {
    // One of the services has no endpoint on the second node, and two ports.
    for (node, without) in [("node1", 0.0), ("node2", 2.0)] {
        scene.soon(&format!("{node} tells what it has followed"), || {
            let metrics = metrics(scene, node)?;
            let read = |name: &str| {
                let found = metrics.get(name).copied();
                found.with_context(|| format!("no {name} in {metrics:?}"))
            };
            for family in ["IPv4", "IPv6"] {
                let of = |name: &str| read(&format!("kubeproxy_{name}{{ip_family=\"{family}\"}}"));
                for name in [
                    "sync_proxy_rules_duration_seconds_count",
                    "sync_full_proxy_rules_duration_seconds_count",
                    "sync_partial_proxy_rules_duration_seconds_count",
                    "sync_proxy_rules_last_timestamp_seconds",
                    "sync_proxy_rules_last_queued_timestamp_seconds",
                    "sync_proxy_rules_service_changes_total",
                    "sync_proxy_rules_endpoint_changes_total",
                    "network_programming_duration_seconds_count",
                ] {
                    ensure!(of(name)? > 0.0, "{name} of {family} in {metrics:?}");
                }
                for name in [
                    "sync_proxy_rules_service_changes_pending",
                    "sync_proxy_rules_endpoint_changes_pending",
                ] {
                    ensure!(of(name)?.abs() < 0.5, "{name} of {family} in {metrics:?}");
                }
                for policy in ["internal", "external"] {
                    let name = format!(
                        "kubeproxy_sync_proxy_rules_no_local_endpoints_total\
                         {{traffic_policy=\"{policy}\",ip_family=\"{family}\"}}"
                    );
                    ensure!(
                        (read(&name)? - without).abs() < 0.5,
                        "{name} in {metrics:?}"
                    );
                }
            }
            Ok(())
        });
    }
}

/// A node's metrics by name and labels, as a process of it reads them.
fn metrics(scene: &Scene, node: &str) -> Result<BTreeMap<String, f64>> {
    let to = SocketAddr::new(IpAddr::from([127, 0, 0, 1]), METRICS);
    let (status, answer) = http(scene, host(node), to, "/metrics")?;
    ensure!(status == 200, "{answer}");
    let lines = answer.lines().filter(|line| !line.starts_with('#'));
    let values = lines.filter_map(|line| {
        let (name, value) = line.rsplit_once(' ')?;
        Some((name.to_owned(), value.parse().ok()?))
    });
    Ok(values.collect())
}
