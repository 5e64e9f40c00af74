//! The cluster that the checks run in, and the words that they are written in.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::api::core::v1::Service;
use kube::Api;
use kube::api::DeleteParams;
use serde_json::{Value, json};
use weft_abi::{GATEWAY_V4, HAIRPIN_V6};
use weft_tests::playground::{Builder, Families, Family, PATIENCE, Place, Playground, Went, wait};

/// The namespace of everything.
pub const NAMESPACE: &str = "services";

/// The ports that pods serve, unless they are told others.
pub const TCP: u16 = 7000;
pub const UDP: u16 = 5300;

/// The ports that host-network pods serve: others than the pods', so that no mistake looks right.
pub const NODE_TCP: u16 = 7100;
pub const NODE_UDP: u16 = 5400;

/// How long to wait once something has failed: what is wrong then often never comes right, and the
/// other checks should still have their turn.
const IMPATIENCE: Duration = Duration::from_secs(5);

/// The protocols that most checks run over, in the words of `weft-testpod`.
pub const BOTH: [&str; 2] = ["tcp", "udp"];

/// A pod.
pub const fn pod(name: &str) -> Place<'_> {
    Place::Pod(NAMESPACE, name)
}

/// A process of a node.
pub const fn host(node: &str) -> Place<'_> {
    Place::Host(node)
}

/// What a pod serves: the name of the container's port, its number, its protocol.
pub type Port<'a> = (&'a str, u16, &'a str);

/// The ports that pods serve unless they are told others.
pub const USUAL: [Port<'_>; 2] = [("tcp", TCP, "TCP"), ("udp", UDP, "UDP")];

/// A pod that serves the usual ports.
pub fn server(name: &str, node: &str, app: &str) -> Value {
    server_of(name, node, app, &USUAL)
}

/// A pod that serves these ports, at least one of them TCP.
pub fn server_of(name: &str, node: &str, app: &str, ports: &[Port<'_>]) -> Value {
    let mut args = vec!["serve".to_owned(), "--name".to_owned(), name.to_owned()];
    for (_, number, protocol) in ports {
        args.push(format!("--{}={number}", protocol.to_lowercase()));
    }
    let probed = ports
        .iter()
        .find(|(.., protocol)| *protocol == "TCP")
        .unwrap();
    let shown = ports.iter().map(|(name, number, protocol)| {
        json!({ "name": name, "containerPort": number, "protocol": protocol })
    });
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": name, "namespace": NAMESPACE, "labels": { "app": app } },
        "spec": {
            "nodeName": node,
            "containers": [{
                "name": "server", "image": "weft/testpod", "args": args,
                "ports": shown.collect::<Vec<_>>(),
                "readinessProbe": { "tcpSocket": { "port": probed.1 } },
            }],
        },
    })
}

/// A port of a service: its name, number, protocol, and the pods' port, a number or a name.
pub fn port(name: &str, number: u16, protocol: &str, target: impl Into<Value>) -> Value {
    json!({ "name": name, "port": number, "protocol": protocol, "targetPort": target.into() })
}

/// Port 80 over TCP and UDP, to the usual ports.
pub fn usual_ports() -> Value {
    json!([port("tcp", 80, "TCP", TCP), port("udp", 80, "UDP", UDP)])
}

/// What a pod sees as its client when it reaches itself through a service.
pub fn hairpin(family: Family) -> IpAddr {
    match family {
        Family::V4 => IpAddr::from(GATEWAY_V4.octets),
        Family::V6 => IpAddr::from(HAIRPIN_V6.octets),
    }
}

/// The cluster, and what went wrong in it.
pub struct Scene {
    pub playground: Playground,
    pub families: &'static [Family],
    failures: RefCell<Vec<String>>,
}

impl Scene {
    /// Starts a cluster with both families and these pods, and waits until they are ready.
    pub fn start(plan: Builder, pods: &[Value]) -> Self {
        Self::start_with(Families::Dual, plan, pods)
    }

    /// As [`Scene::start`], with these families.
    pub fn start_with(families: Families, plan: Builder, pods: &[Value]) -> Self {
        let playground = plan.families(families).start().unwrap();
        let nodes = playground.nodes().iter().map(|node| &*node.netns);
        for machine in nodes.chain([playground.outside().netns()]) {
            // The checks want more errors in a short time than the kernel sends to one machine.
            for key in ["net/ipv4/icmp_ratelimit", "net/ipv6/icmp/ratelimit"] {
                machine.sysctl(key, "0").unwrap();
            }
        }
        let scene = Scene {
            playground,
            families: families.each(),
            failures: RefCell::default(),
        };
        scene.apply(&json!({
            "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": NAMESPACE },
        }));
        scene.add(pods);
        scene
    }

    /// Applies an object.
    pub fn apply(&self, object: &Value) {
        self.playground.apply(&object.to_string()).unwrap();
    }

    /// Creates pods and waits until they are ready.
    pub fn add(&self, pods: &[Value]) {
        for pod in pods {
            self.apply(pod);
        }
        for pod in pods {
            let name = pod["metadata"]["name"].as_str().unwrap();
            self.playground.wait_pod_ready(NAMESPACE, name).unwrap();
        }
    }

    /// A host-network pod of a node, ready; it serves at all of the node's addresses.
    pub fn add_host_pod(&self, name: &str, node: &str, app: &str) {
        let own = self.playground.node(node).unwrap().addresses.all();
        let own: Vec<String> = own.iter().map(IpAddr::to_string).collect();
        let ports = [("tcp", NODE_TCP, "TCP"), ("udp", NODE_UDP, "UDP")];
        let mut pod = server_of(name, node, app, &ports);
        pod["spec"]["hostNetwork"] = json!(true);
        let args = pod["spec"]["containers"][0]["args"].as_array_mut().unwrap();
        args.push(json!(format!("--address={}", own.join(","))));
        self.add(&[pod]);
    }

    /// Creates a service, with addresses of both families unless the specification says otherwise.
    pub fn create(&self, name: &str, spec: Value) {
        self.create_labelled(name, &json!({}), spec);
    }

    /// Creates a service with labels.
    pub fn create_labelled(&self, name: &str, labels: &Value, mut spec: Value) {
        if spec["type"] != "ExternalName" && spec.get("ipFamilyPolicy").is_none() {
            spec["ipFamilyPolicy"] = json!("PreferDualStack");
        }
        self.apply(&json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": { "name": name, "namespace": NAMESPACE, "labels": labels },
            "spec": spec,
        }));
    }

    /// Changes a service's specification by a merge patch.
    pub fn change(&self, name: &str, spec: Value) {
        let patch = Value::Object([("spec".to_owned(), spec)].into_iter().collect());
        self.playground
            .patch_service(NAMESPACE, name, &patch)
            .unwrap();
    }

    /// Deletes a service.
    pub fn remove(&self, name: &str) {
        let api: Api<Service> = Api::namespaced(self.playground.client(), NAMESPACE);
        self.playground
            .block_on(api.delete(name, &DeleteParams::default()))
            .unwrap();
    }

    /// A port of a service's cluster address.
    pub fn cluster(&self, service: &str, family: Family, port: u16) -> SocketAddr {
        let address = self.playground.cluster_ip(NAMESPACE, service, family);
        SocketAddr::new(address.unwrap(), port)
    }

    /// The number of a service's node port.
    pub fn node_port(&self, service: &str, port: u16, protocol: &str) -> u16 {
        let number = self
            .playground
            .node_port(NAMESPACE, service, port, protocol);
        number.unwrap()
    }

    /// A node's address with a port.
    pub fn at_node(&self, node: &str, family: Family, port: u16) -> SocketAddr {
        self.playground.node_socket(node, family, port).unwrap()
    }

    /// A node's address.
    pub fn node(&self, node: &str, family: Family) -> IpAddr {
        self.at_node(node, family, 0).ip()
    }

    /// A pod's address.
    pub fn pod(&self, name: &str, family: Family) -> IpAddr {
        let pod = self.playground.pod(NAMESPACE, name).unwrap().unwrap();
        let addresses = pod.status.unwrap().pod_ips.unwrap();
        let mut addresses = addresses.iter().map(|ip| ip.ip.parse().unwrap());
        addresses.find(|ip| Family::of(*ip) == family).unwrap()
    }

    /// What a machine outside is seen as, whoever it asks: the first of its addresses.
    pub fn outside(&self, family: Family) -> IpAddr {
        self.playground.outside().address(family)
    }

    /// Checks that soon these servers answer, each of them, and nobody else, and that no connection
    /// fails; and that it stays so.
    pub fn served(&self, from: Place<'_>, protocol: &str, to: SocketAddr, servers: &[&str]) {
        self.served_to(from, protocol, to, servers, &[]);
    }

    /// As [`Scene::served`], and that the servers see their clients with exactly these addresses, if
    /// any are given. A client outside uses its first address.
    pub fn served_to(
        &self,
        from: Place<'_>,
        protocol: &str,
        to: SocketAddr,
        servers: &[&str],
        clients: &[IpAddr],
    ) {
        let source = match from {
            Place::Outside => vec![self.outside(Family::of(to.ip())).to_string()],
            _ => Vec::new(),
        };
        let mut more = vec![];
        if let Some(source) = source.first() {
            more.extend(["--source", source]);
        }
        let once = || {
            self.playground
                .connect(from, protocol, to, &more)?
                .answer()?;
            // Enough that every server has its turn, but for less than one time in 100,000.
            let tries = 1 + 14 * servers.len();
            let counted = self.playground.count(from, protocol, to, tries, &more)?;
            same(counted.names(), servers.to_vec())?;
            ensure!(counted.failed.is_empty(), "{:?}", counted.failed);
            if !clients.is_empty() {
                let wanted: BTreeSet<IpAddr> = clients.iter().copied().collect();
                same(counted.clients, wanted)?;
            }
            Ok(())
        };
        self.soon(&format!("{from:?} to {protocol} {to}"), || {
            once().with_context(|| format!("{servers:?} should answer {clients:?}"))
        });
    }

    /// Checks that soon every connection is refused.
    pub fn refused(&self, from: Place<'_>, protocol: &str, to: SocketAddr) {
        self.goes(from, protocol, to, &[], &Went::Refused);
    }

    /// Checks that soon nobody says anything.
    pub fn silent(&self, from: Place<'_>, protocol: &str, to: SocketAddr) {
        self.goes(from, protocol, to, &["--timeout", "1"], &Went::TimedOut);
    }

    /// Checks that soon every connection goes so.
    pub fn goes(
        &self,
        from: Place<'_>,
        protocol: &str,
        to: SocketAddr,
        more: &[&str],
        wanted: &Went,
    ) {
        self.soon(&format!("{from:?} to {protocol} {to}"), || {
            same(&self.playground.connect(from, protocol, to, more)?, wanted)
        });
    }

    /// Checks that soon nobody answers, however that is said.
    pub fn gone(&self, from: Place<'_>, protocol: &str, to: SocketAddr) {
        self.soon(&format!("{from:?} to {protocol} {to}"), || {
            let more = ["--timeout", "0.5"];
            let counted = self.playground.count(from, protocol, to, 3, &more)?;
            ensure!(counted.answered == 0, "{:?} answer", counted.names());
            Ok(())
        });
    }

    /// Checks that one connection is answered with these words.
    pub fn answers(
        &self,
        from: Place<'_>,
        protocol: &str,
        to: SocketAddr,
        more: &[&str],
        is_right: impl Fn(&str) -> bool,
    ) {
        self.soon(&format!("{from:?} to {protocol} {to} {more:?}"), || {
            let answer = self
                .playground
                .connect(from, protocol, to, more)?
                .answer()?;
            ensure!(is_right(&answer), "the answer is {answer:?}");
            Ok(())
        });
    }

    /// Checks that something is soon so, and stays so.
    pub fn soon(&self, what: &str, so: impl Fn() -> Result<()>) {
        self.check(what, || {
            wait("it is so", self.patience(), &so)?;
            so().context("it did not stay so")
        });
    }

    /// Checks that something is soon so.
    pub fn comes(&self, what: &str, so: impl Fn() -> Result<()>) {
        self.check(what, || wait("it is so", self.patience(), so));
    }

    fn patience(&self) -> Duration {
        if self.failures.borrow().is_empty() {
            PATIENCE
        } else {
            IMPATIENCE
        }
    }

    /// Makes a check; what is wrong is remembered.
    pub fn check(&self, what: &str, check: impl FnOnce() -> Result<()>) {
        if let Err(error) = check() {
            let failure = format!("{what}: {error:#}");
            eprintln!("FAILED {failure}");
            self.failures.borrow_mut().push(failure);
        }
    }

    /// Fails if any check did.
    pub fn finish(self) {
        let failures = self.failures.take();
        if failures.is_empty() {
            return;
        }
        for node in self.playground.nodes() {
            match self.playground.ask_agent(&node.name, &["drops"]) {
                Ok(drops) => {
                    let drops = String::from_utf8_lossy(&drops.stdout).into_owned();
                    eprintln!("{} dropped:\n{drops}", node.name);
                }
                Err(error) => eprintln!("{error:#}"),
            }
        }
        panic!("{} checks failed:\n{}", failures.len(), failures.join("\n"));
    }
}

/// That two things are the same.
#[expect(
    clippy::needless_pass_by_value,
    reason = "callers make both on the spot"
)]
pub fn same<T: PartialEq + fmt::Debug>(actual: T, expected: T) -> Result<()> {
    if actual == expected {
        return Ok(());
    }
    bail!("{actual:?} is not {expected:?}")
}
