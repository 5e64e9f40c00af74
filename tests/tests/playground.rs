//! The playground by itself, without agents: control plane, kubelet with host-network pods, removal.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on should say where"
)]

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, ensure};
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use weft_tests::netns;
use weft_tests::playground::{
    Families, Family, PATIENCE, Place, Playground, Went, cleanup, network, until, wait,
};

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
    let family = Family::V4;
    let published = playground.cluster_ip("default", "kubernetes", family);
    assert_eq!(published.unwrap().to_string(), "10.96.0.1");
    let endpoints = playground.endpoints("default", "kubernetes", family);
    assert_eq!(endpoints.unwrap()[0].addresses, ["172.30.0.1"]);

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
    until("its cgroup is gone", || {
        let mut left = std::fs::read_dir(node.cgroup.join("pods"))?;
        Ok(!left.any(|entry| entry.is_ok_and(|entry| entry.path().is_dir())))
    })
    .unwrap();
    playground.delete_pod("default", "once").unwrap();
}

fn dual(name: &str) -> Playground {
    let plan = Playground::builder().name(name).nodes(2).without_agents();
    plan.families(Families::Dual)
        .second_uplink()
        .start()
        .unwrap()
}

/// What a successful program printed.
#[track_caller]
fn says(output: anyhow::Result<std::process::Output>) -> String {
    let output = output.unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
fn the_outside_and_the_second_network_see_the_nodes_by_their_addresses() {
    let playground = dual("outside");
    let node = playground.node("node1").unwrap();
    let (outside, second) = (playground.outside(), playground.second_machine().unwrap());
    let serve = ["serve", "--tcp", "7", "--name", "far"];
    let servers = [
        outside.spawn(&serve).unwrap(),
        second.spawn(&serve).unwrap(),
    ];
    for family in Family::BOTH {
        let own = node.addresses.of(family).unwrap();
        let addresses = outside.addresses(family);
        assert_eq!(addresses.len(), 4);
        for address in addresses {
            let target = SocketAddr::new(address, 7).to_string();
            let from = ["--source-port", "4001"];
            let args = [&["connect", "tcp", &target][..], &from[..]].concat();
            assert_eq!(
                says(playground.exec_host("node1", &args)),
                format!("far {}", SocketAddr::new(own, 4001))
            );
        }
        let target = SocketAddr::new(second.address(family), 7).to_string();
        let seen = says(playground.exec_host("node1", &["connect", "tcp", &target]));
        let by_second = match family {
            Family::V4 => "far 172.31.0.10:",
            Family::V6 => "far [fd00:172:31::a]:",
        };
        assert!(seen.starts_with(by_second), "{seen}");
        // The outside finds the nodes, and has no way to what it knows nothing of.
        says(outside.exec(&["ping", &own.to_string()]));
        let pod = match family {
            Family::V4 => "10.244.0.1",
            Family::V6 => "fd00:10:244::1",
        };
        let unknown = outside.exec(&["ping", pod, "--timeout", "0.5"]).unwrap();
        assert_eq!(unknown.status.code(), Some(12), "{unknown:?}");
    }
    drop(servers);
}

#[test]
fn routers_on_the_way_are_seen_and_say_what_is_too_big() {
    let playground = dual("routers");
    let outside = playground.outside();
    let own = Family::BOTH.map(|family| outside.address(family).to_string());
    let server = ["serve", "--udp", "53", "--address", &own.join(",")];
    let server = outside.spawn(&server).unwrap();
    for family in Family::BOTH {
        let address = outside.address(family).to_string();
        let routers = playground.routers_to_outside(family);
        let expected = format!("1 {}\n2 {}\n3 {address} reached", routers[0], routers[1]);
        for protocol in ["udp", "icmp"] {
            let trace = playground.exec_host("node1", &["trace", protocol, &address]);
            assert_eq!(says(trace), expected, "{protocol}");
        }
    }
    playground.set_outside_mtu(1400).unwrap();
    for family in Family::BOTH {
        let target = SocketAddr::new(outside.address(family), 53).to_string();
        let report = says(playground.exec_host("node1", &["path-mtu", &target]));
        let report: serde_json::Value = serde_json::from_str(&report).unwrap();
        let fabric = playground.routers_to_outside(family)[0];
        assert_eq!(report["answered"], false, "{report}");
        assert_eq!(report["mtu"], 1400, "{report}");
        assert_eq!(report["told"], 1400, "{report}");
        assert_eq!(report["told_by"], fabric.to_string(), "{report}");
        assert_eq!(report["fitting_answered"], true, "{report}");
    }
    drop(server);
}

#[test]
fn nodes_come_go_and_change() {
    let mut playground = dual("changes");
    let ip = |number: u8| IpAddr::from([172, 30, 0, number]);
    let internal = |playground: &Playground, name: &str| {
        let api: kube::Api<Node> = kube::Api::all(playground.client());
        let node = playground.block_on(api.get_opt(name)).unwrap()?;
        let all = node.status?.addresses?;
        let internal = all.into_iter().filter(|a| a.type_ == "InternalIP");
        Some(internal.map(|a| a.address).collect::<Vec<_>>())
    };
    let reach = |playground: &Playground, address: IpAddr| {
        let address = address.to_string();
        says(playground.exec_host("node1", &["ping", &address, "--timeout", "10"]));
    };
    let lost = |playground: &Playground, address: IpAddr| {
        let address = address.to_string();
        let ping = ["ping", &address, "--timeout", "0.5"];
        let output = playground.exec_host("node1", &ping).unwrap();
        assert!(!output.status.success(), "{output:?}");
    };
    assert_eq!(
        internal(&playground, "node2").unwrap(),
        ["172.30.0.11", "fd00:172:30::b"]
    );
    assert_eq!(playground.readdress("node2", ip(77)).unwrap(), ip(11));
    assert_eq!(
        internal(&playground, "node2").unwrap(),
        ["172.30.0.77", "fd00:172:30::b"]
    );
    assert_eq!(playground.node_ip("node2").unwrap(), ip(77));
    reach(&playground, ip(77));
    lost(&playground, ip(11));
    let six = "fd00:172:30::77".parse().unwrap();
    playground.readdress("node2", six).unwrap();
    reach(&playground, six);
    // The default routes are still there.
    for family in Family::BOTH {
        let address = playground.outside().address(family).to_string();
        says(playground.exec_host("node2", &["ping", &address]));
    }

    playground.set_uplink_mtu("node2", 1400).unwrap();
    let mtu = playground
        .node("node2")
        .unwrap()
        .netns
        .run(|| std::fs::read_to_string("/proc/sys/net/ipv6/conf/eth0/mtu").unwrap());
    assert_eq!(mtu.unwrap().trim(), "1400");

    assert_eq!(playground.add_node().unwrap(), "node3");
    reach(&playground, ip(12));
    playground.apply(MANIFEST).unwrap();
    playground.wait_pod_ready("system", "idle").unwrap();
    playground.remove_node("node2").unwrap();
    assert_eq!(internal(&playground, "node2"), None);
    assert!(playground.pod("system", "idle").unwrap().is_none());
    assert!(playground.node("node2").is_err());
    lost(&playground, ip(77));
    let left = netns::names().unwrap();
    let prefix = cleanup::netns_name(playground.id(), "node2");
    assert!(
        !left.iter().any(|name| name.starts_with(&prefix)),
        "{left:?}"
    );
    assert_eq!(playground.add_node().unwrap(), "node4");
    reach(&playground, ip(13));
}

#[test]
fn the_cluster_has_the_families_that_were_asked_for_in_their_order() {
    let (six, both) = (["fd00:172:30::a"], ["fd00:172:30::a", "172.30.0.10"]);
    for (families, nodes, ranges, services) in [
        (
            Families::V6,
            &six[..],
            &["fd00:10:244::/64"][..],
            &["fd00:10:96::"][..],
        ),
        (
            Families::DualV6First,
            &both,
            &["fd00:10:244::/64", "10.244.0.0/24"],
            &["fd00:10:96::", "10.96.0."],
        ),
    ] {
        let plan = Playground::builder().name("families").nodes(2);
        let plan = plan.families(families).without_agents();
        let playground = plan.start().unwrap();
        playground.apply(MANIFEST).unwrap();
        let service = "{apiVersion: v1, kind: Service, metadata: {name: a, namespace: system}, \
                       spec: {ipFamilyPolicy: PreferDualStack, ports: [{port: 80}]}}";
        playground.apply(service).unwrap();

        let first = playground.wait_pod_ready("system", "web").unwrap();
        assert_eq!(first.to_string(), nodes[0]);
        let pod = playground.pod("system", "web").unwrap().unwrap();
        let status = pod.status.unwrap();
        let pod_ips: Vec<_> = status.pod_ips.unwrap().into_iter().map(|p| p.ip).collect();
        let host_ips: Vec<_> = status.host_ips.unwrap().into_iter().map(|h| h.ip).collect();
        assert_eq!(pod_ips, nodes);
        assert_eq!(host_ips, nodes);

        let api: kube::Api<Node> = kube::Api::all(playground.client());
        wait("the node has its ranges", PATIENCE, || {
            let spec = playground.block_on(api.get("node1"))?.spec;
            let given = spec.and_then(|spec| spec.pod_cidrs).unwrap_or_default();
            anyhow::ensure!(given == ranges, "{given:?}");
            Ok(())
        })
        .unwrap();

        let api: kube::Api<Service> = kube::Api::namespaced(playground.client(), "system");
        let spec = playground.block_on(api.get("a")).unwrap().spec.unwrap();
        let given = spec.cluster_ips.unwrap();
        assert_eq!(given.len(), services.len());
        for (given, start) in given.iter().zip(services) {
            assert!(given.starts_with(start), "{given}");
        }
    }
}

#[test]
fn what_runs_on_a_node_is_in_its_cgroup() {
    let playground = dual("cgroups");
    playground.apply(MANIFEST).unwrap();
    playground.wait_pod_ready("system", "web").unwrap();
    let running = playground
        .spawn_host("node1", &["serve", "--tcp", "7"])
        .unwrap();
    let node = playground.node("node1").unwrap();
    let processes = |part: &str| {
        let mut found = 0;
        let mut dirs = vec![node.cgroup.join(part)];
        while let Some(dir) = dirs.pop() {
            let procs = std::fs::read_to_string(dir.join("cgroup.procs")).unwrap();
            found += procs.lines().count();
            let entries = std::fs::read_dir(dir).unwrap();
            dirs.extend(
                entries
                    .map(|e| e.unwrap().path())
                    .filter(|path| path.is_dir()),
            );
        }
        found
    };
    assert_eq!((processes("host"), processes("pods")), (1, 1));
    drop(running);
}

const GATED: &str = r#"
apiVersion: v1
kind: Namespace
metadata: { name: a }
---
apiVersion: v1
kind: Service
metadata: { name: web, namespace: a }
spec:
  type: LoadBalancer
  selector: { app: web }
  ports: [{ port: 80, targetPort: 8080 }]
---
apiVersion: v1
kind: Pod
metadata: { name: web, namespace: a, labels: { app: web } }
spec:
  hostNetwork: true
  nodeName: node1
  readinessGates: [{ conditionType: example.org/open }]
  terminationGracePeriodSeconds: 40
  containers:
    - name: web
      image: any
      args: ["serve", "--http", "8080"]
      readinessProbe:
        { httpGet: { path: /readyz, port: 8080 }, periodSeconds: 1, failureThreshold: 1 }
      lifecycle: { preStop: { sleep: { seconds: 30 } } }
"#;

#[test]
fn a_pod_is_ready_as_its_gate_and_its_probe_say_and_serves_while_it_ends() {
    let playground = Playground::builder()
        .name("gate")
        .nodes(2)
        .zones(&["east", "west"])
        .families(Families::Dual)
        .load_balancers()
        .without_agents()
        .start()
        .unwrap();
    playground.apply(GATED).unwrap();
    let ready = |ready| playground.wait_readiness("a", "web", ready).unwrap();
    let family = Family::V4;
    wait("there is an endpoint", PATIENCE, || {
        let all = playground.endpoints("a", "web", family)?;
        let endpoint = all.first().context("there is none")?;
        ensure!(endpoint.zone.as_deref() == Some("east"), "{endpoint:?}");
        Ok(())
    })
    .unwrap();
    playground.wait_endpoints("a", "web", family, &[]).unwrap();
    let open = |open| {
        let gate = "example.org/open";
        playground.set_gate("a", "web", gate, open).unwrap();
    };
    open(true);
    ready(true);
    playground
        .wait_endpoints("a", "web", family, &["web"])
        .unwrap();
    open(false);
    ready(false);
    open(true);
    ready(true);
    let target = playground.node_socket("node1", family, 8080).unwrap();
    let get = |path: &str| {
        let from = Place::Host("node2");
        playground
            .connect(from, "http", target, &["--path", path])
            .unwrap()
    };
    get("/unready").answer().unwrap();
    ready(false);
    get("/ready").answer().unwrap();
    ready(true);

    // It goes on serving, and being probed, until its hook has slept.
    playground.begin_delete_pod("a", "web").unwrap();
    playground.wait_endpoints("a", "web", family, &[]).unwrap();
    let serving = |expected: bool| {
        let what = format!("it is serving: {expected}");
        until(&what, || {
            let all = playground.endpoints("a", "web", family)?;
            let conditions = all.first().and_then(|e| e.conditions.clone());
            let conditions = conditions.context("there is no endpoint")?;
            Ok(conditions.terminating == Some(true) && conditions.serving == Some(expected))
        })
        .unwrap();
    };
    serving(true);
    let counted = playground
        .count(Place::Outside, "http", target, 3, &[])
        .unwrap();
    assert_eq!((counted.answered, counted.names()), (3, vec!["web"]));
    get("/unready").answer().unwrap();
    serving(false);
    // A shorter grace counts.
    playground
        .block_on(async {
            let api: kube::Api<Pod> = kube::Api::namespaced(playground.client(), "a");
            api.delete("web", &kube::api::DeleteParams::default().grace_period(1))
                .await
        })
        .unwrap();
    until("it is gone", || Ok(playground.pod("a", "web")?.is_none())).unwrap();
    assert_eq!(
        playground
            .connect(Place::Host("node2"), "tcp", target, &[])
            .unwrap(),
        Went::Refused
    );

    // The outside finds the load balancer at the node that it is told, and then at another.
    let address = playground.wait_balancer_ip("a", "web", family).unwrap();
    for node in ["node1", "node2"] {
        let own = playground.node(node).unwrap().addresses.of(family).unwrap();
        playground.show_outside(address, own).unwrap();
        let at = ipnet::IpNet::from(address);
        let netns = std::sync::Arc::clone(&playground.node(node).unwrap().netns);
        network::add_address(&netns, network::UPLINK, at).unwrap();
        let port = SocketAddr::new(address, 9000);
        let args = ["serve", "--http", "9000", "--name", node];
        let server = playground.spawn_host(node, &args).unwrap();
        let answer = playground
            .connect(Place::Outside, "http", port, &[])
            .unwrap();
        assert_eq!(answer, Went::Answered(node.to_owned()));
        drop(server);
        network::remove_address(&netns, address).unwrap();
    }
}

#[test]
fn a_container_that_ends_is_started_again() {
    let playground = Playground::builder()
        .name("again")
        .without_agents()
        .start()
        .unwrap();
    let manifest = r#"{apiVersion: v1, kind: Pod, metadata: {name: a, namespace: default}, spec: {
        hostNetwork: true, nodeName: node1, restartPolicy: OnFailure,
        containers: [{name: a, image: any, args: ["connect", "tcp", "172.30.0.10:9"]}]}}"#;
    playground.apply(manifest).unwrap();
    until("it was started three times", || {
        let pod = playground.pod("default", "a")?.context("no pod")?;
        let containers = pod.status.unwrap_or_default().container_statuses;
        let restarts = containers
            .unwrap_or_default()
            .first()
            .map(|c| c.restart_count);
        Ok(restarts >= Some(2))
    })
    .unwrap();
    let args = ["serve", "--tcp", "9"];
    let _server = playground.spawn_host("node1", &args).unwrap();
    until("it has succeeded", || {
        let pod = playground.pod("default", "a")?.context("no pod")?;
        let phase = pod.status.unwrap_or_default().phase;
        Ok(phase.as_deref() == Some("Succeeded"))
    })
    .unwrap();
}
