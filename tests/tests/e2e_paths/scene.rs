//! The cluster that the checks run in, and the words that they are written in.
//!
//! ```text
//!   node1: pods a, b    host-network pod host1       node2: pod c    host-network pod host2
//! ```
//!
//! Every pod serves the same ports, and has a service with its name. `b` has the hostPorts.

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::process::Output;
use std::sync::Mutex;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::Api;
use kube::api::ListParams;
use serde_json::Value;
use weft_tests::playground::{Background, Builder, Family, Machine, PATIENCE, Playground, wait};

/// The namespace of everything.
const NAMESPACE: &str = "paths";

/// The ports that every pod serves.
pub const TCP: u16 = 7000;
pub const UDP: u16 = 5300;
pub const BULK: u16 = 9000;

/// A port that nobody serves.
pub const CLOSED: u16 = 9;

/// The ports of every service: TCP, UDP, bulk, and one that leads to [`CLOSED`].
pub const SERVICE_TCP: u16 = 80;
pub const SERVICE_UDP: u16 = 53;
pub const SERVICE_CLOSED: u16 = 99;

/// The hostPorts of `b`, in the same order.
pub const HOST_TCP: u16 = 8001;
pub const HOST_UDP: u16 = 8002;
pub const HOST_BULK: u16 = 8003;
pub const HOST_CLOSED: u16 = 8009;

/// The port that three pods share, each its own part of it.
pub const SHARED: u16 = 54_323;

/// Ports that host-network pods serve: others than the pods', so that no mistake looks right.
pub const NODE_TCP: u16 = 7100;
pub const NODE_UDP: u16 = 5400;

/// Someone who sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// A pod.
    Pod(&'static str),
    /// A process of a node.
    Host(&'static str),
    /// A machine outside.
    Outside,
}

impl Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Pod(name) => write!(f, "pod {name}"),
            Place::Host(name) => write!(f, "a process of {name}"),
            Place::Outside => write!(f, "the outside"),
        }
    }
}

/// The cluster, and what went wrong in it.
pub struct Scene {
    pub playground: Playground,
    families: Vec<Family>,
    pods: BTreeMap<String, Vec<IpAddr>>,
    services: BTreeMap<String, Vec<IpAddr>>,
    failures: Mutex<Vec<String>>,
}

impl Scene {
    /// Starts everything, and waits until every agent knows of everything.
    pub fn start(plan: Builder) -> Self {
        let playground = plan.start().unwrap();
        let nodes = playground.nodes().iter().map(|node| &*node.netns);
        for machine in nodes.chain([playground.outside().netns()]) {
            // The checks want more errors in a short time than the kernel sends to one machine.
            for key in ["net/ipv4/icmp_ratelimit", "net/ipv6/icmp/ratelimit"] {
                machine.sysctl(key, "0").unwrap();
            }
        }
        playground.apply(&manifest(&playground)).unwrap();
        playground.wait_all_ready(NAMESPACE).unwrap();
        let (pods, services) = playground.block_on(addresses(&playground)).unwrap();
        let scene = Scene {
            families: Family::BOTH
                .into_iter()
                .filter(|family| of(&pods["a"], *family).is_some())
                .collect(),
            playground,
            pods,
            services,
            failures: Mutex::default(),
        };
        scene.settle().unwrap();
        scene
    }

    /// Agents learn from the API in their own time, and each thing by itself: waits for each that the
    /// checks rely on.
    fn settle(&self) -> Result<()> {
        for family in &self.families {
            let mut ways = Vec::new();
            if self.nodes_have(*family) {
                let target = SocketAddr::new(self.node("node1", *family), HOST_TCP);
                ways.push((Place::Outside, target));
            }
            for from in ["a", "b", "c"].map(Place::Pod) {
                for to in ["a", "b", "c"] {
                    ways.push((
                        from,
                        SocketAddr::new(self.service(to, *family), SERVICE_TCP),
                    ));
                }
            }
            for (from, to) in ways {
                wait(&format!("{from} reaches {to}"), PATIENCE, || {
                    self.says(from, &["connect", "tcp", &to.to_string()])
                        .map(drop)
                })?;
            }
        }
        Ok(())
    }

    /// The families of pods and services.
    pub fn families(&self) -> &[Family] {
        &self.families
    }

    /// A pod's address.
    pub fn pod(&self, name: &str, family: Family) -> IpAddr {
        of(&self.pods[name], family).unwrap()
    }

    /// Whether nodes have addresses of that family.
    pub fn nodes_have(&self, family: Family) -> bool {
        let nodes = self.playground.nodes();
        nodes.iter().all(|node| node.addresses.of(family).is_some())
    }

    /// A node's address.
    pub fn node(&self, name: &str, family: Family) -> IpAddr {
        let node = self.playground.node(name).unwrap();
        node.addresses.of(family).unwrap()
    }

    /// The address of a pod's service.
    pub fn service(&self, name: &str, family: Family) -> IpAddr {
        of(&self.services[name], family).unwrap()
    }

    /// The world outside.
    pub fn outside(&self) -> Machine<'_> {
        self.playground.outside()
    }

    /// Of the outside's addresses, the one that its kernel prefers towards the nodes.
    pub fn client(&self, family: Family) -> IpAddr {
        let to = SocketAddr::new(self.node("node1", family), HOST_UDP);
        let any = match family {
            Family::V4 => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
            Family::V6 => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
        };
        let local = || {
            let socket = UdpSocket::bind(any)?;
            socket.connect(to)?;
            socket.local_addr()
        };
        self.outside().netns().run(local).unwrap().unwrap().ip()
    }

    /// Starts servers outside, with the pods' ports.
    pub fn serve_outside(&self, family: Family) -> Background {
        let addresses: Vec<_> = self.outside().addresses(family);
        let addresses = addresses.iter().map(IpAddr::to_string);
        let addresses = addresses.collect::<Vec<_>>().join(",");
        let (tcp, udp, bulk) = (TCP.to_string(), UDP.to_string(), BULK.to_string());
        let args = [
            "serve",
            "--name",
            "outside",
            "--address",
            &addresses,
            "--tcp",
            &tcp,
            "--udp",
            &udp,
            "--bulk",
            &bulk,
        ];
        self.outside().spawn(&args).unwrap()
    }

    /// Runs the pods' program somewhere.
    pub fn run(&self, place: Place, args: &[&str]) -> Result<Output> {
        match place {
            Place::Pod(name) => self.playground.exec(NAMESPACE, name, args),
            Place::Host(name) => self.playground.exec_host(name, args),
            Place::Outside => self.outside().exec(args),
        }
    }

    /// What the pods' program prints somewhere; it must succeed.
    pub fn says(&self, place: Place, args: &[&str]) -> Result<String> {
        let output = self.run(place, args)?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
        let code = output.status.code();
        ensure!(output.status.success(), "{code:?} {stdout} {stderr}");
        Ok(stdout)
    }

    /// The JSON that the pods' program prints somewhere, however it ends.
    pub fn report(&self, place: Place, args: &[&str]) -> Result<Value> {
        let output = self.run(place, args)?;
        serde_json::from_slice(&output.stdout).with_context(|| format!("{output:?}"))
    }

    /// The server that answers a request, and whom it sees.
    pub fn ask(
        &self,
        from: Place,
        protocol: &str,
        to: SocketAddr,
        more: &[&str],
    ) -> Result<(String, SocketAddr)> {
        let to = to.to_string();
        let answer = self.says(from, &[&["connect", protocol, &to], more].concat())?;
        let mut words = answer.lines().last().unwrap_or_default().split_whitespace();
        let (Some(server), Some(client)) = (words.next(), words.next()) else {
            anyhow::bail!("the answer is {answer:?}");
        };
        Ok((server.to_owned(), client.parse()?))
    }

    /// Checks that a server answers, and that it sees a client with this address.
    pub fn expect(
        &self,
        from: Place,
        protocol: &str,
        to: SocketAddr,
        more: &[&str],
        expected: (&str, IpAddr),
    ) {
        let what = format!("{from} to {protocol} {to} {}", more.join(" "));
        self.check(&what, || {
            let (server, client) = self.ask(from, protocol, to, more)?;
            same((server.as_str(), client.ip()), expected)
        });
    }

    /// Checks that an address answers echo requests, also large ones.
    pub fn expect_echo(&self, from: Place, to: IpAddr) {
        for size in ["56", "4000"] {
            self.check(&format!("{from} pings {to} with {size} bytes"), || {
                self.says(from, &["ping", &to.to_string(), "--size", size])
                    .map(drop)
            });
        }
    }

    /// Checks that a program ends with this code: see `weft-testpod`'s outcomes.
    pub fn expect_code(&self, from: Place, args: &[&str], code: i32) {
        self.check(&format!("{from}: {}", args.join(" ")), || {
            let output = self.run(from, args)?;
            ensure!(output.status.code() == Some(code), "{output:?}");
            Ok(())
        });
    }

    /// Makes a check; what is wrong is remembered.
    pub fn check(&self, what: &str, check: impl FnOnce() -> Result<()>) {
        if let Err(error) = check() {
            let failure = format!("{what}: {error:#}");
            eprintln!("FAILED {failure}");
            self.failures.lock().unwrap().push(failure);
        }
    }

    /// Fails if any check did.
    pub fn finish(self) {
        let failures = self.failures.into_inner().unwrap();
        if failures.is_empty() {
            return;
        }
        for node in ["node1", "node2"] {
            let drops = self.playground.ask_agent(node, &["drops"]).unwrap();
            eprintln!(
                "{node} dropped:\n{}",
                String::from_utf8_lossy(&drops.stdout)
            );
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
    ensure!(actual == expected, "{actual:?} is not {expected:?}");
    Ok(())
}

fn of(addresses: &[IpAddr], family: Family) -> Option<IpAddr> {
    let mut all = addresses.iter().copied();
    all.find(|address| Family::of(*address) == family)
}

/// The addresses of pods and of services by their names.
async fn addresses(
    playground: &Playground,
) -> Result<(BTreeMap<String, Vec<IpAddr>>, BTreeMap<String, Vec<IpAddr>>)> {
    let parse = |ip: String| ip.parse::<IpAddr>().with_context(|| ip.clone());
    let pods: Api<Pod> = Api::namespaced(playground.client(), NAMESPACE);
    let mut of_pods = BTreeMap::new();
    for pod in pods.list(&ListParams::default()).await? {
        let all = pod.status.and_then(|status| status.pod_ips);
        let all = all.unwrap_or_default().into_iter().map(|ip| parse(ip.ip));
        let name = pod.metadata.name.unwrap_or_default();
        of_pods.insert(name, all.collect::<Result<Vec<_>>>()?);
    }
    let services: Api<Service> = Api::namespaced(playground.client(), NAMESPACE);
    let mut of_services = BTreeMap::new();
    for service in services.list(&ListParams::default()).await? {
        let all = service.spec.and_then(|spec| spec.cluster_ips);
        let all = all.unwrap_or_default().into_iter().map(parse);
        let name = service.metadata.name.unwrap_or_default();
        of_services.insert(name, all.collect::<Result<Vec<_>>>()?);
    }
    Ok((of_pods, of_services))
}

fn manifest(playground: &Playground) -> String {
    let mut yaml =
        format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: {NAMESPACE}}}}}\n");
    let host_ports = format!(
        "{{containerPort: {TCP}, hostPort: {HOST_TCP}}}, \
         {{containerPort: {UDP}, hostPort: {HOST_UDP}, protocol: UDP}}, \
         {{containerPort: {BULK}, hostPort: {HOST_BULK}}}, \
         {{containerPort: {CLOSED}, hostPort: {HOST_CLOSED}, protocol: UDP}}"
    );
    for (name, node, ports) in [
        ("a", "node1", ""),
        ("b", "node1", &host_ports),
        ("c", "node2", ""),
    ] {
        yaml += &pod(name, node, ports);
        yaml += &format!(
            r#"---
apiVersion: v1
kind: Service
metadata: {{ name: {name}, namespace: {NAMESPACE} }}
spec:
  selector: {{ app: {name} }}
  ipFamilyPolicy: PreferDualStack
  ports:
    - {{ name: tcp, port: {SERVICE_TCP}, targetPort: {TCP} }}
    - {{ name: udp, port: {SERVICE_UDP}, targetPort: {UDP}, protocol: UDP }}
    - {{ name: closed, port: {SERVICE_CLOSED}, targetPort: {CLOSED}, protocol: UDP }}
"#
        );
    }
    let own = playground.node("node1").unwrap().addresses.all();
    let loopbacks = own
        .iter()
        .map(|ip| if ip.is_ipv4() { "127.0.0.1" } else { "::1" });
    let shared = |ip: &dyn Display, port: u16, protocol: &str| {
        format!(
            "{{containerPort: {port}, hostPort: {SHARED}, hostIP: \"{ip}\", protocol: {protocol}}}"
        )
    };
    let list = |ports: Vec<String>| ports.join(", ");
    let loopback = list(loopbacks.map(|ip| shared(&ip, TCP, "TCP")).collect());
    let tcp = list(own.iter().map(|ip| shared(ip, TCP, "TCP")).collect());
    let udp = list(own.iter().map(|ip| shared(ip, UDP, "UDP")).collect());
    for (name, ports) in [
        ("shared-loopback", loopback),
        ("shared-tcp", tcp),
        ("shared-udp", udp),
    ] {
        yaml += &pod(name, "node1", &ports);
    }
    for (name, node) in [("host1", "node1"), ("host2", "node2")] {
        let own = playground.node(node).unwrap().addresses.all();
        let own = list(own.iter().map(IpAddr::to_string).collect());
        yaml += &format!(
            r#"---
apiVersion: v1
kind: Pod
metadata: {{ name: {name}, namespace: {NAMESPACE} }}
spec:
  nodeName: {node}
  hostNetwork: true
  containers:
    - name: server
      image: weft/testpod
      args: [serve, --name, {name}, --tcp, "{NODE_TCP}", --udp, "{NODE_UDP}", --address, "{own}"]
      readinessProbe: {{ tcpSocket: {{ port: {NODE_TCP} }} }}
"#,
            own = own.replace(' ', "")
        );
    }
    yaml
}

fn pod(name: &str, node: &str, ports: &str) -> String {
    format!(
        r#"---
apiVersion: v1
kind: Pod
metadata: {{ name: {name}, namespace: {NAMESPACE}, labels: {{ app: {name} }} }}
spec:
  nodeName: {node}
  containers:
    - name: server
      image: weft/testpod
      args: [serve, --name, {name}, --tcp, "{TCP}", --udp, "{UDP}", --bulk, "{BULK}"]
      ports: [{ports}]
      readinessProbe: {{ tcpSocket: {{ port: {TCP} }} }}
"#
    )
}
