//! UDP flows with one source port, whose sender never stops: they move to where there is a server, from
//! before there is any.

use std::net::SocketAddr;

use anyhow::ensure;
use serde_json::{Value, json};
use weft_tests::playground::{Background, Families, Family, Place, Playground};

use crate::scene::{NAMESPACE, PORT, Scene, annotated, client, host, pod, server, service};

/// Where every flow comes from: a port for each family, which a machine has only one socket at.
const fn source_port(to: SocketAddr) -> &'static str {
    if to.is_ipv4() { "12345" } else { "12346" }
}

/// The port of a pod's second server.
const OTHER_PORT: u16 = 7001;

/// A flow that is told to go on whatever happens to it.
struct Flow {
    what: String,
    /// Whether only servers of the sender's node will do.
    is_near: bool,
    stream: Background,
}

impl Flow {
    fn start(scene: &Scene, from: Place<'_>, to: SocketAddr, more: &[&str]) -> Self {
        let target = to.to_string();
        let mut args = vec!["stream", "udp", &target, "--source-port", source_port(to)];
        args.extend(["--rate", "20", "--duration", "50", "--persistent"]);
        args.extend(more);
        Flow {
            what: format!("{from:?} to {to} {}", more.join(" ")),
            is_near: false,
            stream: scene.playground.spawn_at(from, &args).unwrap(),
        }
    }

    /// Waits until this server answers, or something else becomes of the flow. The program that sends
    /// bounds the time.
    fn follow(&mut self, scene: &Scene, server: &str) {
        let what = format!("{} reaches {server}", self.what);
        let mut heard = Vec::new();
        scene.check(&what, || {
            loop {
                let line = self.stream.next_line();
                let line = line.map_err(|error| error.context(format!("heard {heard:?}")))?;
                if line == server {
                    return Ok(());
                }
                // The report is the end.
                ensure!(
                    !line.starts_with('{'),
                    "heard {heard:?}, and at the end {line}"
                );
                heard.push(line);
            }
        });
    }
}

fn follow(scene: &Scene, flows: &mut [Flow], server: &str) {
    for flow in flows {
        flow.follow(scene, server);
    }
}

/// A flow from everyone who has none of that source port to the service yet.
fn flows(scene: &Scene) -> Vec<Flow> {
    let mut flows = Vec::new();
    for family in Family::BOTH {
        let any = scene.at_cluster_ip("any", family);
        let near = scene.at_cluster_ip("near", family);
        let node = |name| scene.at_node("any", name, family, "UDP");
        let balancer = scene.at_balancer("any", "node2", family);
        for (from, to, more) in [
            (pod("a"), any, &[][..]),
            (pod("b"), node("node2"), &[]),
            (pod("c"), near, &[]),
            (pod("d"), balancer, &[]),
            // A connected socket would be refused before it could send.
            (host("node1"), any, &["--unconnected"]),
        ] {
            let flow = Flow::start(scene, from, to, more);
            let is_near = to == near;
            flows.push(Flow { is_near, ..flow });
        }
        let outside = scene.playground.outside().addresses(family);
        for (source, to) in [(outside[0], node("node1")), (outside[1], balancer)] {
            let source = source.to_string();
            flows.push(Flow::start(
                scene,
                Place::Outside,
                to,
                &["--source", &source],
            ));
        }
    }
    flows
}

fn start(name: &str) -> Scene {
    start_annotated(name, "{}")
}

/// The same with annotations of the service that is asked from everywhere.
fn start_annotated(name: &str, annotations: &str) -> Scene {
    let plan = Playground::builder()
        .name(name)
        .nodes(2)
        .families(Families::Dual)
        .load_balancers();
    let mut objects = vec![
        annotated("any", "web", "type: LoadBalancer", annotations),
        service("near", "web", "internalTrafficPolicy: Local"),
    ];
    objects.extend(["a", "b", "c", "d"].map(|name| client(name, "node1")));
    Scene::start(plan, &objects)
}

/// Flows of a node's process that connected its sockets: it needs a server to begin with.
fn connect(scene: &Scene, server: &str) -> Vec<Flow> {
    let flow = |family| {
        let to = scene.at_cluster_ip("any", family);
        // Agents learn of a server in their own time.
        scene.expect(host("node2"), "udp", to, &[server], None);
        let mut flow = Flow::start(scene, host("node2"), to, &[]);
        flow.follow(scene, server);
        flow
    };
    Family::BOTH.map(flow).into()
}

fn add(scene: &Scene, yaml: &str) {
    scene.playground.apply(yaml).unwrap();
}

#[test]
fn flows_follow_servers_that_come_and_go() {
    let scene = start("udp");
    // Before there is any server.
    let mut flows = flows(&scene);
    add(&scene, &server("s1", "node1", "web", "", ""));
    follow(&scene, &mut flows, "s1");

    let mut connected = connect(&scene, "s1");

    // The next one is there, and the first goes.
    for (next, gone) in [("s2", "s1"), ("s3", "s2")] {
        add(&scene, &server(next, "node1", "web", "", ""));
        scene.playground.wait_pod_ready(NAMESPACE, next).unwrap();
        scene.playground.delete_pod(NAMESPACE, gone).unwrap();
        follow(&scene, &mut flows, next);
        // A connected socket cannot follow: its process is told, and its next one does.
        follow(&scene, &mut connected, "Failed");
        drop(connected);
        connected = connect(&scene, next);
    }

    // For a while there is none.
    scene.playground.delete_pod(NAMESPACE, "s3").unwrap();
    let to = scene.at_cluster_ip("any", Family::V4);
    scene.expect_refusal(pod("a"), "udp", to);
    add(&scene, &server("s4", "node1", "web", "", ""));
    follow(&scene, &mut flows, "s4");
    scene.finish();
}

#[test]
fn flows_move_between_nodes_and_from_what_is_not_ready() {
    moves(&start("udpready"));
}

#[test]
fn flows_that_are_answered_directly_move_as_well() {
    let annotations = "{ weft.dev/load-balancing: maglev, weft.dev/load-balancing-return: direct }";
    moves(&start_annotated("udpdirect", annotations));
}

fn moves(scene: &Scene) {
    const GATE: &str = "test/open";
    let gate = format!("readinessGates: [{{ conditionType: {GATE} }}]");
    let set = |name: &str, open: bool| {
        scene
            .playground
            .set_gate(NAMESPACE, name, GATE, open)
            .unwrap();
        let ready = scene.playground.wait_readiness(NAMESPACE, name, open);
        ready.unwrap();
    };
    let add_shut = |name: &str, node: &str| {
        add(scene, &server(name, node, "web", "", &gate));
        scene.soon(&format!("{name} runs"), || {
            let pod = scene.playground.pod(NAMESPACE, name)?.unwrap_or_default();
            let phase = pod.status.and_then(|status| status.phase);
            ensure!(phase.as_deref() == Some("Running"), "{phase:?}");
            Ok(())
        });
    };
    // A server that is there and not ready.
    add_shut("s1", "node2");
    let mut flows = flows(scene);
    // What only goes to the clients' own node has nothing here.
    flows.retain(|flow| !flow.is_near);
    set("s1", true);
    follow(scene, &mut flows, "s1");

    // To the other node and back: a server that is not ready any more, and one that is gone.
    for (next, node, last) in [("s2", "node1", "s1"), ("s3", "node2", "s2")] {
        add_shut(next, node);
        set(next, true);
        if last == "s1" {
            set(last, false);
        } else {
            scene.playground.delete_pod(NAMESPACE, last).unwrap();
        }
        follow(scene, &mut flows, next);
    }
    scene.finish();
}

#[test]
fn flows_stay_while_their_server_serves() {
    let scene = start("udpstay");
    let lingering = r#", --linger, "60""#;
    add(&scene, &server("s1", "node1", "web", lingering, ""));
    scene.playground.wait_pod_ready(NAMESPACE, "s1").unwrap();
    let mut flows = flows(&scene);
    follow(&scene, &mut flows, "s1");
    flows.extend(connect(&scene, "s1"));
    let connections = Family::BOTH.map(|family| {
        let inside = (pod("a"), scene.at_cluster_ip("any", family));
        let outside = (Place::Outside, scene.at_node("any", "node2", family, "TCP"));
        [inside, outside].map(|(from, to)| {
            let target = to.to_string();
            let args = ["stream", "tcp", &target, "--rate", "20", "--duration", "50"];
            let stream = scene.playground.spawn_at(from, &args).unwrap();
            (format!("the connection of {from:?} to {to} stays"), stream)
        })
    });

    // It ends, and another one takes what is new.
    add(&scene, &server("s2", "node2", "web", "", ""));
    scene.playground.wait_pod_ready(NAMESPACE, "s2").unwrap();
    scene.playground.begin_delete_pod(NAMESPACE, "s1").unwrap();
    for family in Family::BOTH {
        let to = scene.at_cluster_ip("any", family);
        for from in [pod("a"), host("node1"), host("node2")] {
            scene.expect(from, "udp", to, &["s2"], None);
        }
        let to = scene.at_node("any", "node1", family, "UDP");
        scene.expect(Place::Outside, "udp", to, &["s2"], None);
    }
    // Policies by which some of them would go elsewhere if they were new.
    let policies = json!({ "spec": {
        "externalTrafficPolicy": "Local", "internalTrafficPolicy": "Local",
    } });
    scene.patch("any", &policies);
    for family in Family::BOTH {
        let to = scene.at_cluster_ip("any", family);
        scene.expect(host("node2"), "udp", to, &["s2"], None);
        let to = scene.at_node("any", "node2", family, "UDP");
        scene.expect(Place::Outside, "udp", to, &["s2"], None);
    }
    for (what, stream) in connections.into_iter().flatten() {
        let output = stream.stop().unwrap();
        scene.check(&what, || {
            let report: Value = serde_json::from_slice(&output.stdout)?;
            let is_whole = output.status.success() && report["servers"] == json!(["s1"]);
            ensure!(is_whole, "{report}");
            Ok(())
        });
    }
    for flow in flows {
        let what = format!("{} stays", flow.what);
        let output = flow.stream.stop().unwrap();
        scene.check(&what, || {
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let report = text.lines().last().unwrap_or_default();
            let report: Value = serde_json::from_str(report)?;
            ensure!(report["servers"] == json!(["s1"]), "{report}");
            // Nothing is lost from the first answer to the end.
            let errors = report["errors"].as_u64();
            ensure!(report["lost"].as_u64() <= errors, "{report}");
            let last = report["changes"].as_array().and_then(|all| all.last());
            ensure!(last == Some(&json!("s1")), "{report}");
            Ok(())
        });
    }
    scene.finish();
}

#[test]
fn flows_follow_a_target_port() {
    let scene = start("udpport");
    let pods = format!(
        r#"---
apiVersion: v1
kind: Pod
metadata: {{ name: two, namespace: {NAMESPACE}, labels: {{ app: web }} }}
spec:
  nodeName: node1
  containers:
    - {{ name: one, image: weft/testpod, args: [serve, --name, one, --udp, "{PORT}"] }}
    - {{ name: other, image: weft/testpod, args: [serve, --name, other, --udp, "{OTHER_PORT}"] }}
"#
    );
    add(&scene, &pods);
    scene.playground.wait_pod_ready(NAMESPACE, "two").unwrap();
    let mut flows = flows(&scene);
    follow(&scene, &mut flows, "one");
    let mut connected = connect(&scene, "one");
    for (port, server) in [(OTHER_PORT, "other"), (PORT, "one")] {
        for name in ["any", "near"] {
            let object = scene.playground.service(NAMESPACE, name).unwrap();
            let mut spec = serde_json::to_value(object.spec).unwrap();
            spec["ports"][1]["targetPort"] = port.into();
            scene.patch(name, &json!({ "spec": { "ports": spec["ports"] } }));
        }
        follow(&scene, &mut flows, server);
        follow(&scene, &mut connected, "Failed");
        drop(connected);
        connected = connect(&scene, server);
    }
    scene.finish();
}
