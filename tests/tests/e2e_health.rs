//! What a node answers to load balancers and operators, asked where they ask it: whether its proxy
//! follows the cluster, its metrics, and which services have endpoints on it.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::Event;
use kube::Api;
use kube::api::ListParams;
use serde_json::{Value, json};
use weft_tests::playground::{PATIENCE, Playground, wait};

const LOCAL4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const LOCAL6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

/// Head and body of the answer to a GET from this node.
fn ask(
    playground: &Playground,
    from: &str,
    to: (IpAddr, u16),
    path: &str,
) -> Result<(String, String)> {
    let netns = &playground.node(from)?.netns;
    let text = netns.run(|| {
        let mut stream = TcpStream::connect_timeout(&SocketAddr::from(to), PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {}\r\n\r\n", to.0)?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok::<_, std::io::Error>(text)
    })??;
    let (head, body) = text.split_once("\r\n\r\n").context("no whole answer")?;
    Ok((head.to_owned(), body.to_owned()))
}

/// Waits until the answer has this code; its head and body.
#[track_caller]
fn wait_code(
    playground: &Playground,
    from: &str,
    to: (IpAddr, u16),
    path: &str,
    code: &str,
) -> (String, String) {
    let answer = wait(&format!("{to:?}{path} answers {code}"), PATIENCE, || {
        let (head, body) = ask(playground, from, to, path)?;
        ensure!(
            head.starts_with(&format!("HTTP/1.1 {code} ")),
            "{head}\n{body}"
        );
        Ok((head, body))
    });
    answer.unwrap_or_else(|error| panic!("{error:#}"))
}

/// Waits until nobody listens there.
#[track_caller]
fn wait_closed(playground: &Playground, from: &str, to: (IpAddr, u16)) {
    let closed = wait(&format!("{to:?} is closed"), PATIENCE, || {
        let error = ask(playground, from, to, "/").err().context("it answers")?;
        let refused = error.downcast_ref::<std::io::Error>();
        let refused = refused.is_some_and(|error| error.kind() == ErrorKind::ConnectionRefused);
        ensure!(refused, "{error:#}");
        Ok(())
    });
    closed.unwrap_or_else(|error| panic!("{error:#}"));
}

const PROXY: (IpAddr, u16) = (LOCAL4, 10_256);
const METRICS: (IpAddr, u16) = (LOCAL4, 10_249);

#[test]
fn a_node_tells_of_its_proxy() {
    let playground = Playground::builder()
        .name("health")
        .nodes(1)
        .start()
        .unwrap();
    let (_, body) = wait_code(&playground, "node1", PROXY, "/healthz", "200");
    let health: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(health["nodeEligible"], true, "{body}");
    assert_eq!(health["healthy"], true, "{body}");
    assert_eq!(health["status"]["IPv4"]["healthy"], true, "{body}");
    assert!(health["lastUpdated"].is_string(), "{body}");
    wait_code(&playground, "node1", (LOCAL6, 10_256), "/livez", "200");

    // The autoscaler is about to delete the node: load balancers leave it, and the agent lives.
    let taint = json!({ "key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule" });
    let taints = |taints: &[&Value]| {
        let patch = json!({ "spec": { "taints": taints } });
        playground.patch_node("node1", &patch).unwrap();
    };
    taints(&[&taint]);
    let (_, body) = wait_code(&playground, "node1", PROXY, "/healthz", "503");
    assert!(body.contains(r#""nodeEligible":false"#), "{body}");
    wait_code(&playground, "node1", PROXY, "/livez", "200");
    taints(&[]);
    wait_code(&playground, "node1", PROXY, "/healthz", "200");

    let (_, mode) = wait_code(&playground, "node1", METRICS, "/proxyMode", "200");
    assert_eq!(mode, "ebpf");
    let (_, config) = wait_code(&playground, "node1", METRICS, "/configz", "200");
    let config: Value = serde_json::from_str(&config).unwrap();
    assert_eq!(config["weft"]["nodeName"], "node1", "{config}");
    let (_, metrics) = wait_code(&playground, "node1", METRICS, "/metrics", "200");
    for expected in [
        "kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"} ",
        "kubeproxy_sync_proxy_rules_service_changes_total{ip_family=\"IPv6\"} ",
        "kubeproxy_proxy_healthz_total{code=\"503\"} ",
        "weft_write_duration_seconds_count{concern=\"policy\"} ",
        "weft_drops_total{reason=\"policy-ingress\"} 0",
        "weft_map_capacity{map=\"policy\"} ",
        "weft_watch_connected{kind=\"services\"} 1",
        "weft_reconcile_follows 1",
    ] {
        let told = metrics.lines().any(|line| line.starts_with(expected));
        assert!(told, "{expected}\n{metrics}");
    }
}

const POD: &str = "---
apiVersion: v1
kind: Pod
metadata: { name: web, namespace: health, labels: { app: web } }
spec:
  nodeName: node1
  containers: [{ name: main, image: weft/testpod, args: [serve, --tcp, \"7000\"] }]
";

fn service(health_check: &str) -> String {
    format!(
        "---
apiVersion: v1
kind: Service
metadata: {{ name: web, namespace: health }}
spec: {{ type: LoadBalancer, externalTrafficPolicy: Local, selector: {{ app: web }},
  ports: [{{ port: 80, targetPort: 7000 }}]{health_check} }}
"
    )
}

#[test]
fn load_balancers_find_the_nodes_that_have_endpoints() {
    let plan = Playground::builder().name("checks").nodes(2);
    let playground = plan.start().unwrap();
    let namespace = "{ apiVersion: v1, kind: Namespace, metadata: { name: health } }\n";
    playground
        .apply(&format!("{namespace}{POD}{}", service("")))
        .unwrap();
    playground.wait_pod_ready("health", "web").unwrap();
    let object = playground.service("health", "web").unwrap();
    let port = object.spec.unwrap().health_check_node_port.unwrap();
    let port = u16::try_from(port).unwrap();
    let node = |name| (playground.node_ip(name).unwrap(), port);

    let (head, body) = wait_code(&playground, "node2", node("node1"), "/", "200");
    let lower = head.to_lowercase();
    assert!(
        lower.contains("x-load-balancing-endpoint-weight: 1"),
        "{head}"
    );
    assert_eq!(
        serde_json::from_str::<Value>(&body).unwrap(),
        json!({
            "service": { "namespace": "health", "name": "web" },
            "localEndpoints": 1,
            "serviceProxyHealthy": true,
        })
    );
    wait_code(&playground, "node1", node("node1"), "/healthz", "200");
    wait_code(&playground, "node1", node("node2"), "/healthz", "503");

    // Every node will do now: nobody asks.
    let policy = |policy: &str, port: u16| {
        let mut patch = json!({ "spec": { "externalTrafficPolicy": policy } });
        if port != 0 {
            patch["spec"]["healthCheckNodePort"] = port.into();
        }
        playground.patch_service("health", "web", &patch).unwrap();
    };
    policy("Cluster", 0);
    wait_closed(&playground, "node2", node("node1"));
    wait_closed(&playground, "node1", node("node2"));
    policy("Local", port);
    wait_code(&playground, "node2", node("node1"), "/", "200");
    wait_code(&playground, "node1", node("node2"), "/", "503");

    // A pod that ends is no reason to come here any more.
    playground.delete_pod("health", "web").unwrap();
    wait_code(&playground, "node2", node("node1"), "/", "503");
    playground.delete(&service("")).unwrap();
    wait_closed(&playground, "node2", node("node1"));

    // A port that another process has.
    let netns = &playground.node("node2").unwrap().netns;
    let listen = || TcpListener::bind((Ipv4Addr::UNSPECIFIED, port));
    let other = netns.run(listen).unwrap().unwrap();
    let asked = format!(", healthCheckNodePort: {port}");
    playground.apply(&service(&asked)).unwrap();
    let events = Api::<Event>::namespaced(playground.client(), "health");
    let event = wait("there is an event", PATIENCE, || {
        let all = ListParams::default();
        let list = playground.block_on(events.list(&all))?.items;
        let reason = Some("FailedToStartServiceHealthcheck");
        let mut found = list.into_iter();
        let event = found.find(|event| event.reason.as_deref() == reason);
        event.context("none yet")
    });
    let event = event.unwrap();
    assert_eq!(event.involved_object.name.as_deref(), Some("web"));
    let uid = playground.service("health", "web").unwrap().metadata.uid;
    assert_eq!(event.involved_object.uid, uid);
    let message = event.message.unwrap();
    assert!(
        message.starts_with("node node2 failed to start healthcheck \"health/web\""),
        "{message}"
    );
    wait_code(&playground, "node2", node("node1"), "/", "503");
    drop(other);
    wait_code(&playground, "node1", node("node2"), "/", "503");
}
