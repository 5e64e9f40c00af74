//! The playground by itself, without agents: control plane, kubelet with host-network pods, removal.

use weft_tests::netns;
use weft_tests::playground::{PATIENCE, Playground, cleanup, wait};

const MANIFEST: &str = r#"
apiVersion: v1
kind: Namespace
metadata: { name: system }
---
apiVersion: v1
kind: Pod
metadata: { name: web, namespace: system, labels: { app: web } }
spec:
  hostNetwork: true
  nodeName: node1
  containers:
    - name: web
      image: registry.example/web:1
      env:
        - { name: PORT, value: "8080" }
        - { name: NODE, valueFrom: { fieldRef: { fieldPath: spec.nodeName } } }
      args: ["serve", "--http", "$(PORT)", "--name", "$(NODE)-web"]
      ports: [{ name: http, containerPort: 8080 }]
      readinessProbe: { httpGet: { path: /healthz, port: http }, periodSeconds: 1 }
---
apiVersion: v1
kind: Pod
metadata: { name: idle, namespace: system }
spec:
  hostNetwork: true
  nodeName: node2
  containers:
    - { name: idle, image: pause }
"#;

#[test]
fn host_network_pods_run_answer_and_go() {
    let playground = Playground::builder()
        .name("hostnet")
        .nodes(2)
        .without_agents()
        .start()
        .unwrap();
    playground.apply(MANIFEST).unwrap();
    let address = playground.wait_pod_ready("system", "web").unwrap();
    assert_eq!(address, playground.node_ip("node1").unwrap());
    playground.wait_pod_ready("system", "idle").unwrap();

    let target = format!("{address}:8080");
    let answer = playground
        .exec("system", "idle", &["connect", "http", &target])
        .unwrap();
    assert_eq!(
        String::from_utf8_lossy(&answer.stdout).trim(),
        "node1-web",
        "{answer:?}"
    );
    // The nodes find the API server where their kubeconfig says.
    let api = playground.exec_host(
        "node2",
        &["connect", "http", "172.30.0.1:6443", "--path", "/version"],
    );
    assert!(api.unwrap().status.success());

    playground.delete_pod("system", "web").unwrap();
    let refused = playground
        .exec_host("node2", &["connect", "http", &target])
        .unwrap();
    assert_eq!(refused.status.code(), Some(10), "{refused:?}");
}

#[test]
fn a_pod_without_a_network_says_why_and_can_go() {
    let playground = Playground::builder()
        .name("nonet")
        .without_agents()
        .start()
        .unwrap();
    let manifest = "{apiVersion: v1, kind: Pod, metadata: {name: a, namespace: default}, \
                    spec: {nodeName: node1, containers: [{name: a, image: pause}]}}";
    playground.apply(manifest).unwrap();
    wait("the pod says why", PATIENCE, || {
        let pod = playground.pod("default", "a")?;
        let text = serde_json::to_string(&pod)?;
        anyhow::ensure!(text.contains("no CNI network configuration"), "{text}");
        Ok(())
    })
    .unwrap();
    playground.delete_pod("default", "a").unwrap();
}

#[test]
fn nothing_is_left_behind() {
    let playground = Playground::builder()
        .name("gone")
        .nodes(2)
        .without_agents()
        .start()
        .unwrap();
    let id = playground.id().to_owned();
    playground.apply(MANIFEST).unwrap();
    playground.wait_all_ready("system").unwrap();
    let prefix = cleanup::netns_name(&id, "");
    let names = || {
        netns::names()
            .unwrap()
            .into_iter()
            .filter(|name| name.starts_with(&prefix))
    };
    assert_eq!(names().count(), 5);
    let (dir, cgroup) = (playground.dir(), cleanup::cgroup_dir(&id).unwrap());
    assert!(dir.exists() && cgroup.exists());
    drop(playground);
    assert_eq!(names().count(), 0);
    assert!(!dir.exists() && !cgroup.exists());
}

#[test]
fn a_completed_pod_keeps_its_object_and_loses_its_sandbox() {
    let playground = Playground::builder()
        .name("done")
        .without_agents()
        .start()
        .unwrap();
    let manifest = r#"
apiVersion: v1
kind: Pod
metadata: { name: once, namespace: default }
spec:
  hostNetwork: true
  nodeName: node1
  restartPolicy: Never
  containers: [{ name: once, image: ping, args: ["ping", "127.0.0.1"] }]
"#;
    playground.apply(manifest).unwrap();
    let node = playground.node("node1").unwrap();
    wait("the pod is complete", PATIENCE, || {
        let pod = playground.pod("default", "once")?;
        let status = pod.and_then(|pod| pod.status).unwrap_or_default();
        anyhow::ensure!(status.phase.as_deref() == Some("Succeeded"), "{status:?}");
        anyhow::ensure!(status.pod_ip.is_some(), "{status:?}");
        anyhow::ensure!(node.sandboxes.get("default", "once").is_none());
        Ok(())
    })
    .unwrap();
    let cgroups = std::fs::read_dir(node.cgroup.join("pods")).unwrap();
    let left = cgroups.filter(|entry| entry.as_ref().unwrap().path().is_dir());
    assert_eq!(left.count(), 0);
    playground.delete_pod("default", "once").unwrap();
}
