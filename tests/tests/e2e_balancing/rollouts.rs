//! Rolling updates under traffic from outside: through an address that any node answers for, and
//! through the nodes that say that they have endpoints.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Result, ensure};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::ListParams;
use weft_tests::playground::{Families, Family, Place, Playground};

use crate::prober::{Prober, Tally};
use crate::scene::{NAMESPACE, PORT, Scene, health_check_port, service};

const REPLICAS: usize = 3;

/// Requests per second, and the share of them that must be answered, as Kubernetes' own tests ask.
const RATE: u32 = 100;
const SHARE: f64 = 0.95;

/// Pods that go on serving for a while when they are told to end.
fn deployment(version: u8) -> String {
    format!(
        r#"---
apiVersion: apps/v1
kind: Deployment
metadata: {{ name: web, namespace: {NAMESPACE} }}
spec:
  replicas: {REPLICAS}
  selector: {{ matchLabels: {{ app: web }} }}
  strategy: {{ rollingUpdate: {{ maxSurge: 1, maxUnavailable: 0 }} }}
  template:
    metadata: {{ labels: {{ app: web, version: v{version} }} }}
    spec:
      terminationGracePeriodSeconds: 60
      containers:
        - name: server
          image: weft/testpod
          args: [serve, --tcp, "{PORT}", --udp, "{PORT}", --linger, "3"]
          readinessProbe: {{ tcpSocket: {{ port: {PORT} }}, periodSeconds: 1 }}
"#
    )
}

#[test]
fn rolling_updates_go_unnoticed() {
    check("rollouts", &[]);
}

#[test]
fn rolling_updates_go_unnoticed_with_direct_return() {
    let flags = ["--load-balancing=maglev", "--load-balancing-return=direct"];
    check("rolloutsd", &flags);
}

fn check(name: &str, flags: &[&str]) {
    let plan = Playground::builder()
        .name(name)
        .nodes(2)
        .agent_flags(flags)
        .families(Families::Dual)
        .load_balancers();
    let objects = [
        deployment(1),
        service("any", "web", "type: LoadBalancer"),
        service(
            "near",
            "web",
            "type: LoadBalancer\n  externalTrafficPolicy: Local",
        ),
    ];
    let scene = Scene::start(plan, &objects);
    rolled_out(&scene, 1);
    let outside = scene.playground.outside();
    let netns = outside.netns();
    for (version, family) in (2..).zip(Family::BOTH) {
        let target = scene.at_balancer("any", "node1", family);
        scene.soon(&format!("{target} answers"), || {
            scene.count(Place::Outside, "tcp", target, 20)
        });
        let any = Prober::start(netns, RATE, move || Some(target));
        let balancer = Balancer::start(&scene, family);
        let choose = balancer.chooser();
        let near = Prober::start(netns, RATE, choose);
        scene.playground.apply(&deployment(version)).unwrap();
        rolled_out(&scene, version);
        for (what, tally) in [("any node", any.stop()), ("a near node", near.stop())] {
            scene.check(&format!("{family:?} through {what}"), || enough(&tally));
        }
        drop(balancer);
    }
    scene.finish();
}

fn enough(tally: &Tally) -> Result<()> {
    eprintln!("{tally:?}");
    ensure!(tally.share() >= SHARE, "{tally:?}");
    // Of both versions of the pods.
    ensure!(tally.servers.len() > REPLICAS, "{tally:?}");
    Ok(())
}

/// Waits until there are pods of this version only, all of them ready.
fn rolled_out(scene: &Scene, version: u8) {
    let what = format!("version {version} is rolled out");
    scene.soon(&what, || {
        let client = scene.playground.client();
        let deployments: Api<Deployment> = Api::namespaced(client.clone(), NAMESPACE);
        let pods: Api<Pod> = Api::namespaced(client, NAMESPACE);
        let (deployment, pods) = scene.playground.block_on(async {
            let of_it = ListParams::default().labels("app=web");
            anyhow::Ok((deployments.get("web").await?, pods.list(&of_it).await?))
        })?;
        let ready = deployment.status.and_then(|status| status.ready_replicas);
        ensure!(ready == i32::try_from(REPLICAS).ok(), "{ready:?} are ready");
        let label = format!("v{version}");
        let versions = pods.iter().map(|pod| {
            let labels = pod.metadata.labels.as_ref();
            labels.and_then(|labels| labels.get("version"))
        });
        let versions: Vec<_> = versions.collect();
        let all = versions.iter().all(|version| *version == Some(&label));
        ensure!(all && versions.len() == REPLICAS, "{versions:?}");
        Ok(())
    });
}

/// A load balancer: asks each node for its health, and sends requests to those that are well.
struct Balancer {
    /// Where a node answers, and whether it is well.
    nodes: Vec<(SocketAddr, Arc<AtomicBool>)>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Balancer {
    fn start(scene: &Scene, family: Family) -> Self {
        let check = health_check_port(scene, "near").unwrap();
        let nodes = ["node1", "node2"].map(|node| {
            let target = scene.at_node("near", node, family, "TCP");
            (target, Arc::new(AtomicBool::new(false)))
        });
        let checked = nodes.clone();
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let netns = File::open(scene.playground.outside().netns().path()).unwrap();
        let thread = thread::spawn(move || {
            nix::sched::setns(&netns, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            while !told.load(Ordering::Relaxed) {
                for (target, well) in &checked {
                    let is_well = is_well(SocketAddr::new(target.ip(), check));
                    well.store(is_well.unwrap_or(false), Ordering::Relaxed);
                }
                thread::sleep(Duration::from_millis(100));
            }
        });
        Balancer {
            nodes: nodes.into(),
            stop,
            thread: Some(thread),
        }
    }

    /// The next node, in turn.
    fn chooser(&self) -> impl FnMut() -> Option<SocketAddr> + Send + use<> {
        let nodes = self.nodes.clone();
        let mut turn = 0;
        move || {
            let well = nodes
                .iter()
                .filter(|(_, well)| well.load(Ordering::Relaxed));
            let well: Vec<_> = well.collect();
            turn += 1;
            well.get(turn % well.len().max(1))
                .map(|(target, _)| *target)
        }
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn is_well(node: SocketAddr) -> Result<bool> {
    let patience = Duration::from_secs(1);
    let mut stream = TcpStream::connect_timeout(&node, patience)?;
    stream.set_read_timeout(Some(patience))?;
    write!(
        stream,
        "GET /healthz HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer.starts_with("HTTP/1.1 200 "))
}
