//! Ends: of pods, which keep their network until nothing of them is left, and then leave nothing of
//! themselves to the next with their address; and of Weft on a node, which leaves nothing at all.
#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on should say where"
)]

use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::process::Output;

use anyhow::{Context as _, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::DeleteParams;
use serde_json::{Value, json};
use weft_tests::netns::Netns;
use weft_tests::playground::{PATIENCE, Playground, wait};

/// What pods serve.
const PORT: u16 = 7000;

/// `weft-testpod`'s exit code for silence.
const TIMEOUT: i32 = 11;

fn pod(name: &str, node: &str, role: &str, args: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{ name: {name}, namespace: ends, labels: {{ \
         app: {name}, role: {role} }} }}\nspec: {{ nodeName: {node}, restartPolicy: Never, \
         terminationGracePeriodSeconds: 10, containers: [{{ name: main, image: weft/testpod, \
         args: {args} }}] }}\n"
    )
}

fn service(name: &str, address: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{ name: {name}, namespace: ends }}\nspec: {{ \
         clusterIP: {address}, selector: {{ app: {name} }}, ports: [{{ port: 80, targetPort: {PORT} \
         }}] }}\n"
    )
}

fn start(name: &str, pods: &str) -> Playground {
    let small: ipnet::IpNet = "10.244.0.0/24".parse().unwrap();
    let plan = Playground::builder().name(name).nodes(2);
    let playground = plan.pod_cidr(small, 29).start().unwrap();
    let namespace = "{ apiVersion: v1, kind: Namespace, metadata: { name: ends } }\n";
    playground.apply(&format!("{namespace}{pods}")).unwrap();
    playground
}

fn connect(playground: &Playground, from: &str, to: &str) -> Output {
    let args = ["connect", "tcp", to, "--timeout", "1"];
    playground.exec("ends", from, &args).unwrap()
}

#[track_caller]
fn wait_reaches(playground: &Playground, from: &str, to: &str) {
    let done = wait(&format!("{from} reaches {to}"), PATIENCE, || {
        let output = connect(playground, from, to);
        ensure!(output.status.success(), "{output:?}");
        Ok(())
    });
    done.unwrap_or_else(|error| panic!("{error:#}"));
}

fn is_terminating(playground: &Playground, name: &str) -> bool {
    let pod = playground.pod("ends", name).unwrap();
    pod.is_some_and(|pod| pod.metadata.deletion_timestamp.is_some())
}

#[test]
fn a_terminating_pod_keeps_its_network() {
    let serve = format!("[serve, --tcp, \"{PORT}\"]");
    let linger = format!("[serve, --tcp, \"{PORT}\", --linger, \"9\"]");
    let manifest = [
        pod("leaving", "node1", "server", &linger),
        pod("near", "node1", "client", &serve),
        pod("far", "node2", "client", &serve),
        service("leaving", "10.96.3.3"),
        service("far", "10.96.3.4"),
    ];
    let playground = start("leaving", &manifest.concat());
    let addresses = playground.wait_all_ready("ends").unwrap();
    let target = |name: &str| format!("{}:{PORT}", addresses[name]);
    // What its traffic depends on also comes from policies, which go on as well.
    let policy = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: { name: p, \
        namespace: ends }\nspec: { podSelector: { matchLabels: { app: leaving } }, ingress: [{ from: \
        [{ podSelector: { matchLabels: { role: client } } }] }], egress: [{ to: [{ podSelector: { \
        matchLabels: { role: client } } }] }], policyTypes: [Ingress, Egress] }\n";
    playground.apply(policy).unwrap();
    for from in ["near", "far"] {
        wait_reaches(&playground, from, "10.96.3.3:80");
    }
    wait_reaches(&playground, "leaving", "10.96.3.4:80");
    wait("the policy holds", PATIENCE, || {
        let refused = playground.exec_host("node2", &["connect", "tcp", &target("leaving")])?;
        ensure!(refused.status.code() == Some(TIMEOUT), "{refused:?}");
        Ok(())
    })
    .unwrap();

    let streams = ["near", "far"].map(|from| {
        let to = if from == "near" {
            "10.96.3.3:80".to_owned()
        } else {
            target("leaving")
        };
        let args = ["stream", "tcp", &to, "--rate", "200", "--duration", "4"];
        playground.spawn("ends", from, &args).unwrap()
    });
    let outgoing = ["10.96.3.4:80".to_owned(), target("near")];
    let out = |to: &str| {
        let args = ["stream", "tcp", to, "--rate", "200", "--duration", "4"];
        playground.spawn("ends", "leaving", &args).unwrap()
    };
    let outgoing = outgoing.map(|to| out(&to));
    let api: Api<Pod> = Api::namespaced(playground.client(), "ends");
    playground
        .block_on(api.delete("leaving", &DeleteParams::default()))
        .unwrap();
    wait("it terminates", PATIENCE, || {
        ensure!(is_terminating(&playground, "leaving"));
        Ok(())
    })
    .unwrap();
    // New connections both ways, and those that there were.
    for from in ["near", "far"] {
        let output = connect(&playground, from, &target("leaving"));
        assert!(output.status.success(), "{from}: {output:?}");
    }
    for to in [target("near"), target("far"), "10.96.3.4:80".to_owned()] {
        let output = connect(&playground, "leaving", &to);
        assert!(output.status.success(), "{to}: {output:?}");
    }
    for stream in streams.into_iter().chain(outgoing) {
        let output = stream.finish().unwrap();
        assert!(output.status.success(), "{output:?}");
    }
    assert!(
        is_terminating(&playground, "leaving"),
        "it was gone before it was looked at"
    );

    playground.delete_pod("ends", "leaving").unwrap();
    wait("the address leads nowhere", PATIENCE, || {
        for from in ["near", "far"] {
            let output = connect(&playground, from, &target("leaving"));
            ensure!(!output.status.success(), "{from} reaches it");
        }
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_completed_pods_address_carries_nothing_of_it() {
    let pause = "[pause]";
    let mut manifest = vec![
        pod("db", "node1", "db", &format!("[serve, --tcp, \"{PORT}\"]")),
        // They end by themselves, and their objects stay.
        pod("old1", "node1", "trusted", "[ping, 127.0.0.1]"),
        pod("old2", "node2", "trusted", "[ping, 127.0.0.1]"),
    ];
    // Every other address of both nodes is taken.
    for (node, count) in [("node1", 4), ("node2", 5)] {
        for number in 0..count {
            let name = format!("{node}-{number}");
            manifest.push(pod(&name, node, "trusted", pause));
        }
    }
    manifest.push(
        "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: { name: p, namespace: \
         ends }\nspec: { podSelector: { matchLabels: { app: db } }, ingress: [{ from: [{ \
         podSelector: { matchLabels: { role: trusted } } }] }] }\n"
            .to_owned(),
    );
    let playground = start("done", &manifest.concat());
    let completed = ["old1", "old2"].map(|name| {
        wait(&format!("{name} is complete"), PATIENCE, || {
            let pod = playground.pod("ends", name)?.context("no pod")?;
            let status = pod.status.context("no status")?;
            ensure!(status.phase.as_deref() == Some("Succeeded"), "{status:?}");
            Ok(status.pod_ip.context("no address")?.parse::<IpAddr>()?)
        })
        .unwrap()
    });
    let db = format!(
        "{}:{PORT}",
        playground.wait_pod_ready("ends", "db").unwrap()
    );
    for trusted in ["node1-0", "node2-0"] {
        playground.wait_pod_ready("ends", trusted).unwrap();
        wait_reaches(&playground, trusted, &db);
    }
    for ((new, node), address) in [("new1", "node1"), ("new2", "node2")]
        .into_iter()
        .zip(completed)
    {
        playground
            .apply(&pod(new, node, "stranger", pause))
            .unwrap();
        let own = playground.wait_pod_ready("ends", new).unwrap();
        assert_eq!(own, address, "there is no other address");
        // From its first packet on.
        for _ in 0..3 {
            let output = connect(&playground, new, &db);
            assert_eq!(output.status.code(), Some(TIMEOUT), "{new}: {output:?}");
        }
        let old = new.replace("new", "old");
        let pod = playground.pod("ends", &old).unwrap().unwrap();
        let still = pod.status.unwrap().pod_ip;
        assert_eq!(
            still,
            Some(address.to_string()),
            "its object still has the address"
        );
    }
    // The other way round: what may reach the new one is its own policy's to say, not the old one's.
    for trusted in ["node1-0", "node2-0"] {
        wait_reaches(&playground, trusted, &db);
    }
}

/// A kernel setting as a process of the namespace reads it.
fn setting(netns: &Netns, name: &str) -> String {
    let path = Path::new("/proc/sys").join(name);
    let content = netns.run(|| fs::read_to_string(path)).unwrap().unwrap();
    content.trim().to_owned()
}

#[test]
fn reserved_ports_are_given_back() {
    const RESERVED: &str = "net/ipv4/ip_local_reserved_ports";
    const RANGE: &str = "net/ipv4/ip_local_port_range";
    let mut playground = Playground::builder()
        .name("ports")
        .without_agents()
        .start()
        .unwrap();
    let netns = Netns::open(playground.node("node1").unwrap().netns.name()).unwrap();
    let dir = playground.node("node1").unwrap().dir.clone();
    netns.sysctl(RANGE, "1024 65535").unwrap();
    netns.sysctl(RESERVED, "8080,20000-20010,31000").unwrap();
    for _ in 0..2 {
        // The second agent finds them reserved, and does not take them for the operator's.
        playground.start_agent("node1").unwrap();
        playground.wait_agent_ready("node1").unwrap();
        assert_eq!(setting(&netns, RESERVED), "1024-29999,31000");
        playground.kill_agent("node1").unwrap();
    }
    netns.sysctl(RESERVED, "1024-29999,31000,40000").unwrap();
    let path = |part: &str| dir.join(part).display().to_string();
    let args = [
        "cleanup".to_owned(),
        format!("--bpf-root={}", path("bpf")),
        format!("--state-dir={}", path("state")),
        format!("--cni-bin-dir={}", path("cni/bin")),
        format!("--cni-conf-dir={}", path("cni/net.d")),
        "--output=json".to_owned(),
    ];
    let clean = |more: &[&str]| -> Value {
        let args = args.iter().map(String::as_str).chain(more.iter().copied());
        let output = playground
            .ask_agent("node1", &args.collect::<Vec<_>>())
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let ours = json!({ "kind": "reserved ports", "name": "1024-8079,8081-19999,20011-29999" });
    let planned = clean(&["--dry-run"]);
    assert!(
        planned["removed"].as_array().unwrap().contains(&ours),
        "{planned}"
    );
    assert_eq!(setting(&netns, RESERVED), "1024-29999,31000,40000");
    let removed = clean(&[]);
    assert!(
        removed["removed"].as_array().unwrap().contains(&ours),
        "{removed}"
    );
    assert_eq!(setting(&netns, RESERVED), "8080,20000-20010,31000,40000");
    assert_eq!(clean(&[])["removed"], json!([]));
}
