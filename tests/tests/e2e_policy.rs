//! Services and network policies between real pods: hairpin, both directions, live connections, an
//! API server that vanishes, input that makes no sense, and what an operator sees of it.
#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on should say where"
)]

use std::{
    collections::BTreeSet,
    net::IpAddr,
    process::{Command, Output},
};

use anyhow::ensure;
use weft_tests::playground::{PATIENCE, Playground, wait};

/// Exit codes of `weft-testpod connect` and `stream` for what was reached, and for silence.
const REACHED: i32 = 0;

const PODS: &str = r#"
apiVersion: v1
kind: Namespace
metadata: { name: shop, labels: { team: shop } }
---
apiVersion: v1
kind: Namespace
metadata: { name: other, labels: { team: other } }
---
apiVersion: v1
kind: Pod
metadata: { name: db, namespace: shop, labels: { app: db } }
spec:
  nodeName: node1
  containers:
    - name: db
      image: weft/testpod
      args: ["serve", "--tcp", "5432,9000", "--udp", "5300"]
      ports: [{ name: sql, containerPort: 5432 }]
      readinessProbe: { tcpSocket: { port: sql } }
---
apiVersion: v1
kind: Pod
metadata: { name: near, namespace: shop, labels: { app: client } }
spec: { nodeName: node1, containers: [{ name: c, image: weft/testpod }] }
---
apiVersion: v1
kind: Pod
metadata: { name: far, namespace: shop, labels: { app: client } }
spec: { nodeName: node2, containers: [{ name: c, image: weft/testpod }] }
---
apiVersion: v1
kind: Pod
metadata: { name: stranger, namespace: other, labels: { app: client } }
spec: { nodeName: node2, containers: [{ name: c, image: weft/testpod }] }
---
apiVersion: v1
kind: Service
metadata: { name: db, namespace: shop }
spec:
  clusterIP: 10.96.5.5
  selector: { app: db }
  ports:
    - { name: sql, port: 80, targetPort: sql }
    - { name: udp, port: 53, targetPort: 5300, protocol: UDP }
"#;

const CLIENTS: [(&str, &str); 3] = [("shop", "near"), ("shop", "far"), ("other", "stranger")];

fn playground(name: &str) -> Playground {
    let playground = Playground::builder().name(name).nodes(2).start().unwrap();
    playground.apply(PODS).unwrap();
    playground.wait_all_ready("shop").unwrap();
    playground.wait_all_ready("other").unwrap();
    playground
}

fn address(playground: &Playground, namespace: &str, pod: &str) -> IpAddr {
    playground.wait_pod_ready(namespace, pod).unwrap()
}

fn connect(playground: &Playground, from: (&str, &str), protocol: &str, target: &str) -> Output {
    let args = ["connect", protocol, target, "--timeout", "1"];
    playground.exec(from.0, from.1, &args).unwrap()
}

fn reaches(playground: &Playground, from: (&str, &str), protocol: &str, target: &str) -> bool {
    connect(playground, from, protocol, target).status.code() == Some(REACHED)
}

/// Waits until exactly these clients reach the target, by address and through the service.
#[track_caller]
fn wait_reached_by(playground: &Playground, expected: &[&str]) {
    let db = address(playground, "shop", "db");
    for target in [format!("{db}:5432"), "10.96.5.5:80".to_owned()] {
        wait(
            &format!("{target} is reached by {expected:?} only"),
            PATIENCE,
            || {
                let reached: BTreeSet<_> = CLIENTS
                    .into_iter()
                    .filter(|client| reaches(playground, *client, "tcp", &target))
                    .map(|(_, name)| name)
                    .collect();
                ensure!(
                    reached == expected.iter().copied().collect(),
                    "reached by {reached:?}"
                );
                Ok(())
            },
        )
        .unwrap();
    }
}

fn policy(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{ name: {name}, \
         namespace: shop }}\nspec: {spec}\n"
    )
}

#[test]
fn policies_stop_what_they_should_in_both_directions() {
    let playground = playground("policy");
    let db = address(&playground, "shop", "db");
    wait_reached_by(&playground, &["near", "far", "stranger"]);

    // Ingress: nobody, then some by pod labels and port, then by namespace labels.
    let deny = policy(
        "deny",
        "{ podSelector: { matchLabels: { app: db } }, policyTypes: [Ingress] }",
    );
    playground.apply(&deny).unwrap();
    wait_reached_by(&playground, &[]);
    // The pod's own node is always let in; another node's processes are not.
    let target = format!("{db}:5432");
    let args = ["connect", "tcp", &target, "--timeout", "1"];
    assert_eq!(
        playground.exec_host("node1", &args).unwrap().status.code(),
        Some(REACHED)
    );
    assert_ne!(
        playground.exec_host("node2", &args).unwrap().status.code(),
        Some(REACHED)
    );

    let allow = policy(
        "allow",
        "{ podSelector: { matchLabels: { app: db } }, ingress: [{ from: [{ podSelector: \
         { matchLabels: { app: client } } }], ports: [{ port: sql }] }] }",
    );
    playground.apply(&allow).unwrap();
    wait_reached_by(&playground, &["near", "far"]);
    assert!(!reaches(
        &playground,
        ("shop", "near"),
        "tcp",
        &format!("{db}:9000")
    ));
    assert!(!reaches(
        &playground,
        ("shop", "far"),
        "udp",
        &format!("{db}:5300")
    ));

    let by_namespace = policy(
        "allow",
        "{ podSelector: { matchLabels: { app: db } }, ingress: [{ from: [{ namespaceSelector: \
         { matchLabels: { team: other } } }] }] }",
    );
    playground.apply(&by_namespace).unwrap();
    wait_reached_by(&playground, &["stranger"]);

    // Egress, on another node than the destination, judged on the backend of the service.
    playground.delete(&by_namespace).unwrap();
    playground.delete(&deny).unwrap();
    wait_reached_by(&playground, &["near", "far", "stranger"]);
    let egress = policy(
        "egress",
        "{ podSelector: { matchLabels: { app: client } }, policyTypes: [Egress], egress: [{ to: \
         [{ podSelector: { matchLabels: { app: db } } }], ports: [{ port: 9000 }] }] }",
    );
    playground.apply(&egress).unwrap();
    wait_reached_by(&playground, &["stranger"]);
    for client in ["near", "far"] {
        assert!(
            reaches(&playground, ("shop", client), "tcp", &format!("{db}:9000")),
            "{client}"
        );
    }

    // The drops are counted and explained on the node that dropped.
    wait("the agent names the policy of a drop", PATIENCE, || {
        let output = playground.ask_agent("node2", &["drops", "-o", "json"])?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(
            text.contains("policy-egress") && text.contains("shop/egress"),
            "{text}"
        );
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_policy_ends_a_live_connection_and_its_removal_lets_it_go_on() {
    let playground = playground("live");
    let db = address(&playground, "shop", "db");
    let deny = policy(
        "deny",
        "{ podSelector: { matchLabels: { app: db } }, policyTypes: [Ingress] }",
    );
    for (client, target) in [
        ("near", format!("{db}:9000")),
        ("far", "10.96.5.5:80".to_owned()),
    ] {
        let args = [
            "stream",
            "tcp",
            &target,
            "--rate",
            "100",
            "--duration",
            "3",
            "--timeout",
            "1",
        ];
        // Undisturbed, the stream is complete: the measure works.
        let whole = playground
            .spawn("shop", client, &args)
            .unwrap()
            .finish()
            .unwrap();
        assert!(whole.status.success(), "{whole:?}");

        let cut = playground.spawn("shop", client, &args).unwrap();
        playground.apply(&deny).unwrap();
        let cut = cut.finish().unwrap();
        assert!(
            !cut.status.success(),
            "{client} went on under the policy: {cut:?}"
        );
        playground.delete(&deny).unwrap();
        wait("the way is open again", PATIENCE, || {
            ensure!(reaches(&playground, ("shop", client), "tcp", &target));
            Ok(())
        })
        .unwrap();
    }
}

#[test]
fn a_pod_reaches_itself_through_its_service_whatever_the_policy() {
    let playground = playground("hairpin");
    let deny = policy(
        "deny",
        "{ podSelector: {}, policyTypes: [Ingress, Egress] }",
    );
    for manifest in [None, Some(deny)] {
        if let Some(manifest) = &manifest {
            playground.apply(manifest).unwrap();
            wait_reached_by(&playground, &[]);
        }
        for (protocol, target) in [("tcp", "10.96.5.5:80"), ("udp", "10.96.5.5:53")] {
            let output = connect(&playground, ("shop", "db"), protocol, target);
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(
                output.status.success() && said.starts_with("db "),
                "{output:?}"
            );
        }
    }
}

#[test]
fn without_an_api_server_everything_stays_as_it_was() {
    let mut playground = playground("noapi");
    let deny = policy(
        "deny",
        "{ podSelector: { matchLabels: { app: db } }, policyTypes: [Ingress] }",
    );
    playground.apply(&deny).unwrap();
    wait_reached_by(&playground, &[]);
    let db = address(&playground, "shop", "db");
    playground.stop_api();
    // Nothing opens, and nothing that was open closes; also for an agent that starts now.
    for round in ["with the old agent", "with a new agent"] {
        for client in CLIENTS {
            assert!(
                !reaches(&playground, client, "tcp", &format!("{db}:5432")),
                "{round}"
            );
        }
        let args = ["connect", "tcp", &format!("{db}:5432"), "--timeout", "1"];
        let probe = playground.exec_host("node1", &args).unwrap();
        assert_eq!(probe.status.code(), Some(REACHED), "{round}: {probe:?}");
        for node in ["node1", "node2"] {
            playground.kill_agent(node).unwrap();
            playground.start_agent(node).unwrap();
        }
    }
    playground.restart_api().unwrap();
    playground.delete(&deny).unwrap();
    wait_reached_by(&playground, &["near", "far", "stranger"]);
}

#[test]
fn input_that_makes_no_sense_changes_nothing_and_is_named() {
    let playground = playground("nonsense");
    // What the API server refuses.
    for manifest in [
        policy(
            "bad",
            "{ podSelector: {}, ingress: [{ from: [{ ipBlock: { cidr: nonsense } }] }] }",
        ),
        policy(
            "bad",
            "{ podSelector: {}, ingress: [{ ports: [{ port: 90, endPort: 80 }] }] }",
        ),
        policy("Bad_Name", "{ podSelector: {} }"),
        policy("bad", "{ podSelector: 7 }"),
    ] {
        let error = playground.apply(&manifest).unwrap_err();
        assert!(!format!("{error:#}").is_empty());
    }
    wait_reached_by(&playground, &["near", "far", "stranger"]);
    // An address in a slice that nobody has, a port that is none: the others stay reachable.
    playground
        .apply(
            r#"
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: { name: odd, namespace: shop, labels: { kubernetes.io/service-name: nowhere } }
addressType: FQDN
ports: [{ name: x }]
endpoints: [{ addresses: ["example.test"] }]
"#,
        )
        .unwrap();
    wait_reached_by(&playground, &["near", "far", "stranger"]);
    for node in ["node1", "node2"] {
        let status = playground.ask_agent(node, &["status"]).unwrap();
        assert!(status.status.success(), "{status:?}");
    }
}

#[test]
fn bpftool_prints_every_pinned_map_with_named_fields() {
    if Command::new("bpftool").arg("version").output().is_err() {
        println!("skipped: no bpftool on this machine (Debian: apt-get install bpftool)");
        return;
    }
    let playground = playground("bpftool");
    let deny = policy(
        "deny",
        "{ podSelector: { matchLabels: { app: db } }, policyTypes: [Ingress] }",
    );
    playground.apply(&deny).unwrap();
    wait_reached_by(&playground, &[]);
    let pins = playground
        .node("node1")
        .unwrap()
        .bpf_dir()
        .join(format!("weft/v{}", weft_abi::ABI_VERSION));
    for (map, field) in [
        ("config", "epoch"),
        ("flows4", "last_seen"),
        ("endpoints4", "policy_set"),
        ("ipcache4", "tunnel"),
        ("policy", "verdict"),
        ("frontends4", "service"),
        ("slots", "backend"),
        ("backends4", "port"),
        ("drops", "packets"),
    ] {
        let output = Command::new("bpftool")
            .args(["map", "dump", "pinned"])
            .arg(pins.join(map))
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{map}: {output:?}");
        assert!(
            text.contains(&format!("\"{field}\":")),
            "{map} has no {field}: {text:.400}"
        );
    }
    for name in weft_abi::maps::PINNED {
        assert!(pins.join(name).exists(), "{name} is not pinned");
    }
}
