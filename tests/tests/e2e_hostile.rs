//! Agents that are killed, watches that break, and a runtime in a hurry, all at once: nothing that
//! is denied passes, nothing that is allowed is lost, no address has two owners, nothing stays.
#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on should say where"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use futures::TryStreamExt as _;
use rtnetlink::packet_route::address::AddressAttribute;
use weft_tests::netns::Netns;
use weft_tests::playground::cni::{Attachment, Network, Runtime};
use weft_tests::playground::{PATIENCE, Playground, cleanup, network, wait};

/// What an agent's log says at the stages of its start; an agent is killed after each of them.
const STAGES: [&str; 4] = [
    " starting ",
    "datapath loaded",
    "the node's network is set up",
    "the datapath is in place",
];

const PODS: &str = r#"
apiVersion: v1
kind: Namespace
metadata: { name: shop }
---
apiVersion: v1
kind: Pod
metadata: { name: db, namespace: shop, labels: { app: db } }
spec:
  nodeName: node1
  containers:
    - name: db
      image: weft/testpod
      args: ["serve", "--tcp", "5432,9000", "--udp", "5300,9001"]
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
"#;

/// Lets clients to the ports 9000 and 9001 of the database, and nobody anywhere else.
const PARTLY: &str = r#"
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: { name: partly, namespace: shop }
spec:
  podSelector: { matchLabels: { app: db } }
  ingress:
    - from: [{ podSelector: { matchLabels: { app: client } } }]
      ports: [{ port: 9000 }, { port: 9001, protocol: UDP }]
"#;

fn playground(name: &str) -> Playground {
    let playground = Playground::builder().name(name).nodes(2).start().unwrap();
    playground.apply(PODS).unwrap();
    playground.wait_all_ready("shop").unwrap();
    playground
}

fn netns_of(playground: &Playground, namespace: &str, pod: &str) -> Arc<Netns> {
    let sandbox = playground
        .nodes()
        .iter()
        .find_map(|node| node.sandboxes.get(namespace, pod));
    Arc::clone(&sandbox.unwrap().netns)
}

/// Tries without pause to reach what it must not reach: connections, and datagrams of one flow.
struct Prober {
    stop: Arc<AtomicBool>,
    attempts: Arc<AtomicU64>,
    reached: Arc<AtomicU64>,
    worker: Option<JoinHandle<()>>,
}

impl Prober {
    fn start(netns: Arc<Netns>, tcp: Vec<SocketAddr>, udp: Vec<SocketAddr>) -> Self {
        let (stop, attempts, reached) =
            <(Arc<AtomicBool>, Arc<AtomicU64>, Arc<AtomicU64>)>::default();
        let worker = {
            let (stop, attempts, reached) = (stop.clone(), attempts.clone(), reached.clone());
            thread::spawn(move || {
                netns
                    .run(|| {
                        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
                        socket.set_nonblocking(true).unwrap();
                        while !stop.load(Ordering::Relaxed) {
                            for target in &udp {
                                // A refused send is an attempt as well.
                                let _ = socket.send_to(b"probe", target);
                                attempts.fetch_add(1, Ordering::Relaxed);
                            }
                            for target in &tcp {
                                let opened =
                                    TcpStream::connect_timeout(target, Duration::from_millis(10));
                                attempts.fetch_add(1, Ordering::Relaxed);
                                reached.fetch_add(u64::from(opened.is_ok()), Ordering::Relaxed);
                            }
                            while socket.recv_from(&mut [0; 64]).is_ok() {
                                reached.fetch_add(1, Ordering::Relaxed);
                            }
                        }
                    })
                    .unwrap();
            })
        };
        Self {
            stop,
            attempts,
            reached,
            worker: Some(worker),
        }
    }

    fn attempts(&self) -> u64 {
        self.attempts.load(Ordering::Relaxed)
    }

    fn reached(&self) -> u64 {
        self.reached.load(Ordering::Relaxed)
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(worker) = self.worker.take() {
            let _ = worker.join();
        }
    }
}

fn log_of(playground: &Playground, node: &str) -> String {
    std::fs::read_to_string(playground.node(node).unwrap().agent_log()).unwrap()
}

/// Kills a node's agent, starts another one, and returns when that one has got to this stage.
fn restart_until(playground: &mut Playground, node: &str, stage: &str) {
    // Also an agent that ended by itself would be found here.
    playground.kill_agent(node).unwrap();
    let before = log_of(playground, node).len();
    playground.start_agent(node).unwrap();
    wait(&format!("{node}'s agent says {stage:?}"), PATIENCE, || {
        let log = log_of(playground, node);
        let said = log.get(before..).unwrap_or_default();
        ensure!(said.contains(stage), "{said}");
        Ok(())
    })
    .unwrap();
}

#[test]
fn killing_agents_lets_nothing_denied_pass_and_nothing_allowed_be_lost() {
    let mut playground = playground("killed");
    playground.apply(PARTLY).unwrap();
    let db = playground.wait_pod_ready("shop", "db").unwrap();
    let to = |port: u16| SocketAddr::new(db, port);
    wait("the policy is enforced", PATIENCE, || {
        for client in ["near", "far"] {
            let prober = [to(5432).to_string()];
            let args = ["connect", "tcp", &prober[0], "--timeout", "0.3"];
            ensure!(!playground.exec("shop", client, &args)?.status.success());
            let allowed = to(9000).to_string();
            let args = ["connect", "tcp", &allowed, "--timeout", "1"];
            ensure!(playground.exec("shop", client, &args)?.status.success());
        }
        Ok(())
    })
    .unwrap();

    let streams: Vec<_> = [
        ("near", "udp", 9001),
        ("far", "udp", 9001),
        ("far", "tcp", 9000),
    ]
    .into_iter()
    .map(|(client, protocol, port)| {
        let target = to(port).to_string();
        let args = [
            "stream",
            protocol,
            &target,
            "--rate",
            "200",
            "--duration",
            "12",
        ];
        (
            format!("{client} {protocol}"),
            playground.spawn("shop", client, &args).unwrap(),
        )
    })
    .collect();
    let probers: Vec<_> = ["near", "far"]
        .into_iter()
        .map(|client| {
            let netns = netns_of(&playground, "shop", client);
            Prober::start(netns, vec![to(5432)], vec![to(5300)])
        })
        .collect();
    let started = Instant::now();
    for stage in STAGES.into_iter().cycle() {
        for node in ["node1", "node2"] {
            restart_until(&mut playground, node, stage);
        }
        if started.elapsed() > Duration::from_secs(11) && stage == STAGES[3] {
            break;
        }
    }
    for (what, stream) in streams {
        let output = stream.finish().unwrap();
        assert!(output.status.success(), "{what}: {output:?}");
    }
    for prober in &probers {
        assert!(prober.attempts() > 100, "{} attempts", prober.attempts());
        assert_eq!(prober.reached(), 0, "of {} attempts", prober.attempts());
    }
    // What the probers ask for is there, but for the policy.
    playground.delete(PARTLY).unwrap();
    for prober in &probers {
        wait("without the policy, probes get through", PATIENCE, || {
            ensure!(prober.reached() > 0);
            Ok(())
        })
        .unwrap();
    }
}

#[test]
fn what_happens_while_watches_break_is_not_missed() {
    let mut playground = playground("gap");
    let db = playground.wait_pod_ready("shop", "db").unwrap();
    let target = SocketAddr::new(db, 5432).to_string();
    let wait_open = |playground: &Playground, open: bool, fault: &str| {
        wait(&format!("after {fault}: open is {open}"), PATIENCE, || {
            for client in ["near", "far"] {
                let args = ["connect", "tcp", &target, "--timeout", "0.3"];
                let reached = playground.exec("shop", client, &args)?.status.success();
                ensure!(reached == open, "{client}: {reached}");
            }
            Ok(())
        })
        .unwrap();
    };
    wait_open(&playground, true, "nothing");
    for fault in [
        "drop",
        "expire",
        "compact",
        "restart",
        "restart and compact",
    ] {
        for open in [false, true] {
            match fault {
                "drop" => playground.api().faults().drop_watches(),
                "expire" => playground.api().faults().expire_watches(),
                "compact" => playground.api().faults().expire(),
                _ => {
                    playground.stop_api();
                    playground.restart_api().unwrap();
                }
            }
            if open {
                playground.delete(PARTLY).unwrap();
            } else {
                playground.apply(PARTLY).unwrap();
            }
            if fault == "restart and compact" {
                // What was done since is in no history any more.
                playground.api().faults().expire();
            }
            wait_open(&playground, open, fault);
        }
    }
}

#[test]
fn a_pod_that_starts_while_agents_are_killed_is_never_open() {
    let mut playground = playground("opening");
    let vault = r#"
apiVersion: v1
kind: Namespace
metadata: { name: vault }
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: { name: shut, namespace: vault }
spec: { podSelector: {}, policyTypes: [Ingress] }
"#;
    playground.apply(vault).unwrap();
    // The addresses that the pods to come may get: those not yet used come first.
    let IpAddr::V4(db) = playground.wait_pod_ready("shop", "db").unwrap() else {
        panic!("the playground is IPv4")
    };
    let first = db.to_bits() & !0xff;
    let used: BTreeSet<IpAddr> = playground
        .wait_all_ready("shop")
        .unwrap()
        .into_values()
        .collect();
    let next: Vec<SocketAddr> = (1..12)
        .map(|n| IpAddr::from((first + n).to_be_bytes()))
        .filter(|address| !used.contains(address))
        .map(|address| SocketAddr::new(address, 9001))
        .collect();
    let probers: Vec<_> = ["near", "far"]
        .into_iter()
        .map(|client| Prober::start(netns_of(&playground, "shop", client), vec![], next.clone()))
        .collect();
    let pod = |name: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{ name: {name}, namespace: vault }}\nspec: {{ \
             nodeName: node1, containers: [{{ name: c, image: weft/testpod, args: [serve, \
             --udp, '9001'] }}] }}\n"
        )
    };
    let names: Vec<String> = STAGES
        .iter()
        .enumerate()
        .map(|(n, _)| format!("vault-{n}"))
        .collect();
    for (stage, name) in STAGES.into_iter().zip(&names) {
        playground.apply(&pod(name)).unwrap();
        restart_until(&mut playground, "node1", stage);
    }
    let addresses = playground.wait_all_ready("vault").unwrap();
    for (name, address) in addresses {
        assert!(
            next.iter().any(|target| target.ip() == address),
            "{name} has {address}, which nobody tried"
        );
    }
    for prober in &probers {
        assert_eq!(prober.reached(), 0, "of {} attempts", prober.attempts());
    }
    playground
        .delete(vault.split("---").nth(1).unwrap())
        .unwrap();
    wait("without the policy, probes get through", PATIENCE, || {
        ensure!(probers.iter().all(|prober| prober.reached() > 0));
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_pod_of_the_same_name_is_another_pod() {
    let playground = playground("again");
    playground.apply(PARTLY).unwrap();
    let db = playground.wait_pod_ready("shop", "db").unwrap();
    let target = SocketAddr::new(db, 9000).to_string();
    let args = ["connect", "tcp", &target, "--timeout", "0.5"];
    for round in 0..3 {
        for (label, reaches) in [("client", true), ("stranger", false)] {
            playground.delete_pod("shop", "near").unwrap();
            let pod = format!(
                "apiVersion: v1\nkind: Pod\nmetadata: {{ name: near, namespace: shop, labels: \
                 {{ app: {label} }} }}\nspec: {{ nodeName: node1, containers: [{{ name: c, \
                 image: weft/testpod }}] }}\n"
            );
            playground.apply(&pod).unwrap();
            playground.wait_pod_ready("shop", "near").unwrap();
            // At once: the pod is ready, so its policy is in place.
            let output = playground.exec("shop", "near", &args).unwrap();
            assert_eq!(
                output.status.success(),
                reaches,
                "{round} {label}: {output:?}"
            );
        }
    }
}

#[test]
fn nodes_that_make_no_sense_cut_nobody_off() {
    let playground = playground("nodes");
    let db = playground.wait_pod_ready("shop", "db").unwrap();
    let target = SocketAddr::new(db, 5432).to_string();
    let connect = |client: &str| {
        let args = ["connect", "tcp", &target, "--timeout", "0.5"];
        let output = playground.exec("shop", client, &args)?;
        anyhow::Ok(output.status.success())
    };
    let node = |name: &str, address: &str, cidr: &str| {
        format!(
            "apiVersion: v1\nkind: Node\nmetadata: {{ name: {name} }}\nspec: {{ podCIDR: {cidr}, \
             podCIDRs: [{cidr}] }}\nstatus: {{ addresses: [{{ type: InternalIP, address: \
             {address} }}] }}\n"
        )
    };
    let bad = [
        node("everything", "172.30.0.201", "0.0.0.0/0"),
        node("fabric", "172.30.0.202", "172.30.0.0/16"),
        node("loop", "127.0.0.1", "127.0.0.0/8"),
        node("group", "224.0.0.1", "224.0.0.0/4"),
    ];
    for object in &bad {
        playground.apply(object).unwrap();
        // Its address is part of the status.
        let value: serde_json::Value = serde_norway::from_str(object).unwrap();
        let name = value["metadata"]["name"].as_str().unwrap().to_owned();
        let api: kube::Api<k8s_openapi::api::core::v1::Node> = kube::Api::all(playground.client());
        let status = kube::api::Patch::Merge(serde_json::json!({ "status": value["status"] }));
        playground
            .block_on(api.patch_status(&name, &kube::api::PatchParams::default(), &status))
            .unwrap();
    }
    playground.apply(PARTLY).unwrap();
    wait("the policy is enforced all the same", PATIENCE, || {
        ensure!(!connect("near")? && !connect("far")?);
        Ok(())
    })
    .unwrap();
    playground.delete(PARTLY).unwrap();
    wait("everyone is reached all the same", PATIENCE, || {
        ensure!(connect("near")? && connect("far")?);
        Ok(())
    })
    .unwrap();
    let db_only = ["connect", "tcp", &target, "--timeout", "1"];
    let from_host = playground.exec_host("node1", &db_only).unwrap();
    assert!(from_host.status.success(), "{from_host:?}");
}

/// Gives a node another address, as an operator does with a running machine: what goes on over the
/// old one ends without a word.
fn readdress(playground: &Playground, name: &str, new: IpAddr) -> Result<()> {
    let node = playground.node(name)?;
    let old = node.address();
    // Otherwise the new address goes with the old one, which is of the same network.
    node.netns
        .sysctl("net/ipv4/conf/all/promote_secondaries", "1")?;
    node.netns.run_async(|| async {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        let connection = tokio::spawn(connection);
        let index = nix::net::if_::if_nametoindex("eth0")?;
        handle.address().add(index, new, 16).execute().await?;
        let all: Vec<_> = handle.address().get().execute().try_collect().await?;
        for message in all {
            let is_old = |attribute: &AddressAttribute| {
                matches!(attribute, AddressAttribute::Local(address) if *address == old)
            };
            if message.attributes.iter().any(is_old) {
                handle.address().del(message).execute().await?;
            }
        }
        connection.abort();
        anyhow::Ok(())
    })??;
    let mut status = node.status();
    let addresses = status["status"]["addresses"].as_array_mut();
    for address in addresses.context("no addresses")? {
        if address["type"] == "InternalIP" {
            address["address"] = new.to_string().into();
        }
    }
    let api: kube::Api<k8s_openapi::api::core::v1::Node> = kube::Api::all(playground.client());
    let patch = kube::api::Patch::Merge(status);
    playground.block_on(api.patch_status(name, &kube::api::PatchParams::default(), &patch))?;
    Ok(())
}

#[test]
fn a_node_with_another_address_is_found_and_follows_the_cluster_again() {
    let playground = Playground::builder()
        .name("moved")
        .nodes(2)
        .agent_flags(&["--watch-timeout", "2"])
        .start()
        .unwrap();
    playground.apply(PODS).unwrap();
    playground.wait_all_ready("shop").unwrap();
    let db = playground.wait_pod_ready("shop", "db").unwrap();
    let far = playground.wait_pod_ready("shop", "far").unwrap();
    readdress(&playground, "node2", [172, 30, 0, 77].into()).unwrap();
    let target = SocketAddr::new(db, 5432).to_string();
    let wait_open = |open: bool| {
        wait(&format!("open is {open}"), PATIENCE, || {
            let args = ["connect", "tcp", &target, "--timeout", "0.5"];
            let reached = playground.exec("shop", "far", &args)?.status.success();
            ensure!(reached == open, "{reached}");
            Ok(())
        })
        .unwrap();
    };
    wait_open(true);
    wait("the node reaches its own pod", PATIENCE, || {
        let output = playground.exec_host("node2", &["ping", &far.to_string()])?;
        ensure!(output.status.success(), "{output:?}");
        Ok(())
    })
    .unwrap();
    // This node's agent is the one that must hear of it.
    let shut = r#"
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: { name: shut, namespace: shop }
spec: { podSelector: { matchLabels: { app: client } }, policyTypes: [Egress] }
"#;
    playground.apply(shut).unwrap();
    wait_open(false);
}

/// What the runtime believes to run: container and address, of all workers.
type Live = Arc<Mutex<BTreeMap<IpAddr, String>>>;

/// One worker of a runtime in a hurry: sandboxes come and go, and each ADD is followed by a DEL.
struct Storm {
    id: String,
    worker: usize,
    node: Arc<Netns>,
    cni: Runtime,
    network: Network,
    links: std::path::PathBuf,
    live: Live,
    stop: Arc<AtomicBool>,
}

impl Storm {
    fn run(&self) -> Result<u64> {
        let mut added = 0;
        for round in 0_u64.. {
            if self.stop.load(Ordering::Relaxed) {
                break;
            }
            let netns = Netns::create(&cleanup::netns_name(
                &self.id,
                &format!("storm-{}-{round}", self.worker),
            ))?;
            let outcome = network::prepare_pod(&netns).and_then(|()| self.once(&netns, round));
            netns.delete()?;
            added += u64::from(outcome?);
        }
        Ok(added)
    }

    fn once(&self, netns: &Netns, round: u64) -> Result<bool> {
        let container_id = format!("{:08x}{round:056x}", self.worker);
        let attachment = Attachment {
            container_id: container_id.clone(),
            netns: netns.path(),
            ifname: "eth0".to_owned(),
            args: "IgnoreUnknown=1".to_owned(),
            ..Attachment::default()
        };
        let result = self.cni.add(&self.node, &self.network, &attachment).ok();
        if let Some(value) = &result {
            let result = self.network.result(value)?;
            let address = result.ips.first().context("no address")?.address.addr();
            let holder = self
                .live
                .lock()
                .unwrap()
                .insert(address, container_id.clone());
            if let Some(holder) = holder {
                bail!("{address} was given to {holder} and to {container_id}");
            }
            let interface = &result.interfaces.first().context("no interface")?.name;
            for program in ["from_container", "to_container"] {
                let pin = self.links.join(format!("{interface}-{program}"));
                ensure!(
                    pin.exists(),
                    "{interface} of a running pod is without {program}"
                );
            }
            // Before the DEL: from then on the address may be another's.
            self.live.lock().unwrap().remove(&address);
        }
        wait("DEL is taken", PATIENCE, || {
            self.cni
                .del(&self.node, &self.network, &attachment, result.as_ref())
        })?;
        Ok(result.is_some())
    }
}

fn names_in(dir: &Path) -> Result<BTreeSet<String>> {
    match std::fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(BTreeSet::new()),
        listing => listing?
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect(),
    }
}

/// Everything that the pods of a node have on it.
fn remains(
    playground: &Playground,
    name: &str,
) -> Result<BTreeMap<&'static str, BTreeSet<String>>> {
    let node = playground.node(name)?;
    let read = |file: &str| {
        let path = Path::new("/proc/thread-self/net").join(file);
        node.netns.run(|| std::fs::read_to_string(path))?
    };
    let interfaces = read("dev")?
        .lines()
        .filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned()))
        .filter(|name| name.starts_with("weft") && name.len() == 15)
        .collect();
    let routes = read("route")?
        .lines()
        .filter_map(|line| Some(line.split_whitespace().next()?.to_owned()))
        .filter(|name| name.starts_with("weft") && name.len() == 15)
        .collect();
    let allocations = names_in(&node.dir.join("state/ipam"))?
        .into_iter()
        .filter(|name| !name.starts_with("freed-"))
        .collect();
    let links = names_in(&node.bpf_dir().join("weft/links"))?
        .into_iter()
        .filter(|name| !name.starts_with("weft_vxlan"))
        .collect();
    Ok([
        ("interfaces", interfaces),
        ("routes", routes),
        ("allocations", allocations),
        ("links", links),
        ("records", names_in(&node.dir.join("state/endpoints"))?),
        ("waiting", names_in(&node.dir.join("state/cni-queue"))?),
    ]
    .into())
}

#[test]
fn a_storm_of_pods_and_kills_gives_no_address_twice_and_leaves_nothing() {
    let mut playground = playground("storm");
    let before = remains(&playground, "node1").unwrap();
    assert_eq!(before["allocations"].len(), 2, "{before:?}");
    let (live, stop) = <(Live, Arc<AtomicBool>)>::default();
    let node = playground.node("node1").unwrap();
    let workers: Vec<_> = (0..4)
        .map(|worker| {
            let storm = Storm {
                id: playground.id().to_owned(),
                worker,
                node: Arc::clone(&node.netns),
                cni: node.cni(),
                network: node.cni().network().unwrap().unwrap(),
                links: node.bpf_dir().join("weft/links"),
                live: live.clone(),
                stop: stop.clone(),
            };
            thread::spawn(move || storm.run())
        })
        .collect();
    let started = Instant::now();
    for stage in STAGES.into_iter().cycle() {
        restart_until(&mut playground, "node1", stage);
        if started.elapsed() > Duration::from_secs(12) {
            break;
        }
    }
    stop.store(true, Ordering::Relaxed);
    let added: Vec<_> = workers
        .into_iter()
        .map(|worker| worker.join().unwrap())
        .collect();
    let log = || playground.node("node1").unwrap().agent_log_tail(40);
    let added: u64 = added
        .into_iter()
        .map(|added| added.unwrap_or_else(|error| panic!("{error:#}\n{}", log())))
        .sum();
    assert!(added > 0, "no ADD succeeded");
    wait("nothing of the storm is left", PATIENCE, || {
        let after = remains(&playground, "node1")?;
        ensure!(after == before, "{after:?}, and before: {before:?}");
        Ok(())
    })
    .unwrap();
}
