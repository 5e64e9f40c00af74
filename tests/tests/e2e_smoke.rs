//! The shortest proof that the whole works: pods on two nodes, their agents, and every kind of path
//! between them once.
#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on should say where"
)]

use std::net::IpAddr;
use std::process::Output;

use weft_tests::playground::{PATIENCE, Playground, wait};

const MANIFEST: &str = r#"
apiVersion: v1
kind: Namespace
metadata: { name: shop }
---
apiVersion: v1
kind: Pod
metadata: { name: api-1, namespace: shop, labels: { app: api } }
spec:
  nodeName: node1
  containers:
    - name: api
      image: weft/testpod
      args: ["serve", "--http", "8080", "--tcp", "7000", "--udp", "5300"]
      ports:
        - { name: http, containerPort: 8080 }
        - { name: tcp, containerPort: 7000 }
        - { name: udp, containerPort: 5300, protocol: UDP }
      readinessProbe: { httpGet: { path: /healthz, port: http } }
---
apiVersion: v1
kind: Pod
metadata: { name: api-2, namespace: shop, labels: { app: api } }
spec:
  nodeName: node2
  containers:
    - name: api
      image: weft/testpod
      args: ["serve", "--http", "8080", "--tcp", "7000", "--udp", "5300"]
      ports:
        - { name: http, containerPort: 8080 }
        - { name: tcp, containerPort: 7000 }
        - { name: udp, containerPort: 5300, protocol: UDP }
      readinessProbe: { tcpSocket: { port: tcp } }
---
apiVersion: v1
kind: Pod
metadata: { name: client, namespace: shop, labels: { app: client } }
spec:
  nodeName: node1
  containers:
    - { name: client, image: weft/testpod }
---
apiVersion: v1
kind: Service
metadata: { name: api, namespace: shop }
spec:
  clusterIP: 10.96.7.7
  selector: { app: api }
  ports:
    - { name: http, port: 80, targetPort: http }
    - { name: udp, port: 53, targetPort: udp, protocol: UDP }
"#;

/// What a client printed; it must have succeeded.
#[track_caller]
fn said(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// The address that a server answered to have seen, in `NAME ADDRESS:PORT ...`.
fn seen(answer: &str) -> IpAddr {
    let address = answer.split_whitespace().nth(1).unwrap();
    address.parse::<std::net::SocketAddr>().unwrap().ip()
}

#[test]
fn pods_hosts_and_services_reach_each_other() {
    let playground = Playground::builder()
        .name("smoke")
        .nodes(2)
        .start()
        .unwrap();
    playground.apply(MANIFEST).unwrap();
    let addresses = playground.wait_all_ready("shop").unwrap();
    let (near, far, client) = (addresses["api-1"], addresses["api-2"], addresses["client"]);
    let exec = |args: &[&str]| playground.exec("shop", "client", args).unwrap();

    // To a pod on the same node and on the other one: the client's own address arrives.
    for (name, address) in [("api-1", near), ("api-2", far)] {
        assert_eq!(
            said(&exec(&["connect", "http", &format!("{address}:8080")])),
            name
        );
        for (protocol, port) in [("tcp", 7000), ("udp", 5300)] {
            let answer = said(&exec(&["connect", protocol, &format!("{address}:{port}")]));
            assert!(answer.starts_with(name), "{answer}");
            assert_eq!(seen(&answer), client, "{protocol} to {name}");
        }
        said(&exec(&["ping", &address.to_string()]));
    }

    // From a host to its own pod and to one on another node.
    for address in [near, far] {
        let target = format!("{address}:7000");
        let answer = playground
            .exec_host("node1", &["connect", "tcp", &target])
            .unwrap();
        assert_eq!(
            seen(&said(&answer)),
            playground.node_ip("node1").unwrap(),
            "{target}"
        );
        said(
            &playground
                .exec_host("node1", &["ping", &address.to_string()])
                .unwrap(),
        );
    }

    // From a pod to its own host and to another one.
    for node in ["node1", "node2"] {
        let address = playground.node_ip(node).unwrap();
        said(&exec(&["ping", &address.to_string()]));
        let refused = exec(&["connect", "tcp", &format!("{address}:9")]);
        assert_eq!(
            refused.status.code(),
            Some(10),
            "{node} says no itself: {refused:?}"
        );
    }

    // Through the service, to every backend.
    for (protocol, target) in [("http", "10.96.7.7:80"), ("udp", "10.96.7.7:53")] {
        for backend in ["api-1", "api-2"] {
            wait(&format!("{protocol} reaches {backend}"), PATIENCE, || {
                let output = playground.exec("shop", "client", &["connect", protocol, target])?;
                let answer = String::from_utf8_lossy(&output.stdout).into_owned();
                anyhow::ensure!(answer.starts_with(backend), "{answer:?} {output:?}");
                Ok(())
            })
            .unwrap();
        }
    }
}

#[test]
fn a_killed_agent_loses_no_packet_and_its_successor_serves() {
    let mut playground = Playground::builder()
        .name("smokekill")
        .nodes(2)
        .start()
        .unwrap();
    playground.apply(MANIFEST).unwrap();
    let far = playground.wait_all_ready("shop").unwrap()["api-2"];
    let stream = |protocol: &str, port: u16| {
        let target = format!("{far}:{port}");
        let args = [
            "stream",
            protocol,
            &target,
            "--rate",
            "500",
            "--duration",
            "4",
        ];
        playground.spawn("shop", "client", &args).unwrap()
    };
    let streams = [stream("tcp", 7000), stream("udp", 5300)];
    for node in ["node1", "node2"] {
        playground.kill_agent(node).unwrap();
        playground.start_agent(node).unwrap();
        playground.wait_agent_ready(node).unwrap();
    }
    for stream in streams {
        // Succeeds only when every message was answered, once and in order.
        said(&stream.finish().unwrap());
    }

    // A pod can go while its agent is away, and its name can come back with the next agent.
    playground.kill_agent("node1").unwrap();
    playground.delete_pod("shop", "api-1").unwrap();
    playground.start_agent("node1").unwrap();
    playground.wait_agent_ready("node1").unwrap();
    playground.apply(MANIFEST).unwrap();
    let near = playground.wait_all_ready("shop").unwrap()["api-1"];
    let target = format!("{near}:8080");
    let answer = playground
        .exec("shop", "client", &["connect", "http", &target])
        .unwrap();
    assert_eq!(said(&answer), "api-1");
}
