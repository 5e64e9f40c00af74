//! What the tests have in common: pods that serve, services that are changed while they run, and
//! clients that are told what to expect.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::net::{IpAddr, SocketAddr};
use std::sync::Mutex;
use std::thread;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use weft_tests::playground::{Builder, Counted, Family, PATIENCE, Place, Playground, Went, wait};

/// Where everything is.
pub const NAMESPACE: &str = "balancing";

/// What every server serves, both over TCP and UDP.
pub const PORT: u16 = 7000;

/// The port of every service.
pub const SERVICE_PORT: u16 = 80;

/// A pod of the cluster.
pub const fn pod(name: &str) -> Place<'_> {
    Place::Pod(NAMESPACE, name)
}

/// A process of a node.
pub const fn host(node: &str) -> Place<'_> {
    Place::Host(node)
}

/// Both protocols that servers serve, as clients and as services name them.
pub const PROTOCOLS: [(&str, &str); 2] = [("tcp", "TCP"), ("udp", "UDP")];

/// A pod that serves, with more arguments and more fields of its spec. `app` is what services select.
pub fn server(name: &str, node: &str, app: &str, arguments: &str, spec: &str) -> String {
    format!(
        r#"---
apiVersion: v1
kind: Pod
metadata: {{ name: {name}, namespace: {NAMESPACE}, labels: {{ app: {app} }} }}
spec:
  nodeName: {node}
  terminationGracePeriodSeconds: 60
  containers:
    - name: server
      image: weft/testpod
      args: [serve, --name, {name}, --tcp, "{PORT}", --udp, "{PORT}"{arguments}]
  {spec}
"#
    )
}

/// A pod of clients: nobody selects it.
pub fn client(name: &str, node: &str) -> String {
    server(name, node, name, "", "")
}

/// A dual-stack service of the pods with this label, with more fields of its spec.
pub fn service(name: &str, app: &str, spec: &str) -> String {
    annotated(name, app, spec, "{}")
}

/// The same with annotations.
pub fn annotated(name: &str, app: &str, spec: &str, annotations: &str) -> String {
    format!(
        r#"---
apiVersion: v1
kind: Service
metadata: {{ name: {name}, namespace: {NAMESPACE}, annotations: {annotations} }}
spec:
  selector: {{ app: {app} }}
  ipFamilyPolicy: PreferDualStack
  ports:
    - {{ name: tcp, port: {SERVICE_PORT}, targetPort: {PORT} }}
    - {{ name: udp, port: {SERVICE_PORT}, targetPort: {PORT}, protocol: UDP }}
  {spec}
"#
    )
}

/// Someone who asks, by a protocol, somewhere.
pub type Way<'a> = (Place<'a>, &'a str, SocketAddr);

/// The cluster, and what went wrong in it.
pub struct Scene {
    pub playground: Playground,
    failures: Mutex<Vec<String>>,
}

impl Scene {
    /// Starts everything, and waits until its pods are ready.
    pub fn start(plan: Builder, objects: &[String]) -> Self {
        let playground = plan.start().unwrap();
        let namespace =
            format!("{{ apiVersion: v1, kind: Namespace, metadata: {{ name: {NAMESPACE} }} }}\n");
        playground.apply(&(namespace + &objects.concat())).unwrap();
        playground.wait_all_ready(NAMESPACE).unwrap();
        Scene {
            playground,
            failures: Mutex::default(),
        }
    }

    /// A pod's address.
    pub fn pod(&self, name: &str, family: Family) -> IpAddr {
        let nodes = self.playground.nodes().iter();
        let mut sandboxes = nodes.filter_map(|node| node.sandboxes.get(NAMESPACE, name));
        let addresses = sandboxes.next().unwrap().addresses.clone();
        let mut addresses = addresses.into_iter();
        addresses.find(|ip| Family::of(*ip) == family).unwrap()
    }

    /// A node's address.
    pub fn node(&self, name: &str, family: Family) -> IpAddr {
        let node = self.playground.node(name).unwrap();
        node.addresses.of(family).unwrap()
    }

    /// A service at its cluster address.
    pub fn at_cluster_ip(&self, service: &str, family: Family) -> SocketAddr {
        let address = self.playground.cluster_ip(NAMESPACE, service, family);
        SocketAddr::new(address.unwrap(), SERVICE_PORT)
    }

    /// A service at a node's address and its node port; `protocol` as services name it.
    pub fn at_node(&self, service: &str, node: &str, family: Family, protocol: &str) -> SocketAddr {
        let port = self
            .playground
            .node_port(NAMESPACE, service, SERVICE_PORT, protocol);
        SocketAddr::new(self.node(node, family), port.unwrap())
    }

    /// A service at its load balancer's address, which a node answers for from outside.
    pub fn at_balancer(&self, service: &str, node: &str, family: Family) -> SocketAddr {
        let address = self.playground.wait_balancer_ip(NAMESPACE, service, family);
        let address = address.unwrap();
        let node = self.node(node, family);
        self.playground.show_outside(address, node).unwrap();
        SocketAddr::new(address, SERVICE_PORT)
    }

    /// Changes a service.
    #[track_caller]
    pub fn patch(&self, service: &str, patch: &Value) {
        let patched = self.playground.patch_service(NAMESPACE, service, patch);
        patched.unwrap();
    }

    /// Checks that connections are answered by exactly these servers, who see only these clients, if
    /// any are given.
    pub fn expect(
        &self,
        from: Place<'_>,
        protocol: &str,
        to: SocketAddr,
        servers: &[&str],
        clients: Option<&BTreeSet<IpAddr>>,
    ) {
        let what = format!("{from:?} reaches {servers:?} by {protocol} {to}");
        // That one of a few is never chosen in so many is less likely than one in ten thousand.
        let connections = 4 + 12 * (servers.len() - 1);
        let all = servers.iter().copied().collect::<BTreeSet<_>>();
        self.soon(&what, || {
            let counted = self.count(from, protocol, to, connections)?;
            let found = counted.names().into_iter().collect::<BTreeSet<_>>();
            same(&found, &all)?;
            clients.map_or(Ok(()), |clients| same(&counted.clients, clients))
        });
    }

    /// Counts connections that must all be answered.
    pub fn count(
        &self,
        from: Place<'_>,
        protocol: &str,
        to: SocketAddr,
        connections: usize,
    ) -> Result<Counted> {
        let counted = self
            .playground
            .count(from, protocol, to, connections, &[])?;
        ensure!(counted.failed.is_empty(), "{counted:?}");
        Ok(counted)
    }

    /// Checks that a service does not let these through, without a word. A process of a node is told
    /// by its kernel that there is no way: it has nothing to wait for. Nothing is as slow as silence, so
    /// all of them try at the same time.
    pub fn expect_silence(&self, ways: &[Way<'_>]) {
        let check = |(from, protocol, to): Way<'_>| {
            let what = format!("{from:?} hears nothing of {protocol} {to}");
            let silent: &[Went] = match from {
                Place::Host(_) => &[Went::TimedOut, Went::Unreachable],
                Place::Pod(..) | Place::Outside => &[Went::TimedOut],
            };
            self.expect_end(&what, from, protocol, to, silent);
        };
        thread::scope(|scope| {
            for way in ways {
                scope.spawn(|| check(*way));
            }
        });
    }

    /// Checks that a service refuses connections.
    pub fn expect_refusal(&self, from: Place<'_>, protocol: &str, to: SocketAddr) {
        let what = format!("{from:?} is refused by {protocol} {to}");
        self.expect_end(&what, from, protocol, to, &[Went::Refused]);
    }

    fn expect_end(
        &self,
        what: &str,
        from: Place<'_>,
        protocol: &str,
        to: SocketAddr,
        ends: &[Went],
    ) {
        self.soon(what, || {
            let more = ["--timeout", "1"];
            let went = self.playground.connect(from, protocol, to, &more)?;
            ensure!(ends.contains(&went), "{went:?}");
            Ok(())
        });
    }

    /// Waits until it is so; if it never is, that is remembered.
    pub fn soon<T>(&self, what: &str, attempt: impl FnMut() -> Result<T>) -> Option<T> {
        match wait(what, PATIENCE, attempt) {
            Ok(value) => Some(value),
            Err(error) => {
                self.fail(&format!("{error:#}"));
                None
            }
        }
    }

    /// Checks something at once.
    pub fn check(&self, what: &str, check: impl FnOnce() -> Result<()>) {
        if let Err(error) = check() {
            self.fail(&format!("{what}: {error:#}"));
        }
    }

    fn fail(&self, failure: &str) {
        eprintln!("FAILED {failure}");
        self.failures.lock().unwrap().push(failure.to_owned());
    }

    /// Fails if any check did.
    pub fn finish(&self) {
        let failures = self.failures.lock().unwrap().clone();
        if failures.is_empty() {
            return;
        }
        for node in self.playground.nodes() {
            for ask in ["services", "drops"] {
                let told = self.playground.ask_agent(&node.name, &[ask]).unwrap();
                let told = String::from_utf8_lossy(&told.stdout).into_owned();
                eprintln!("{}'s {ask}:\n{told}", node.name);
            }
        }
        panic!("{} checks failed:\n{}", failures.len(), failures.join("\n"));
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        if thread::panicking() {
            let failures = self.failures.lock().unwrap();
            eprintln!("failed before:\n{}", failures.join("\n"));
        }
    }
}

/// That two things are the same.
pub fn same<T: PartialEq + Debug>(actual: &T, expected: &T) -> Result<()> {
    ensure!(actual == expected, "{actual:?} is not {expected:?}");
    Ok(())
}

/// One address, as a set.
pub fn only(address: IpAddr) -> BTreeSet<IpAddr> {
    [address].into()
}

/// Status and body of the answer to a GET.
pub fn http(scene: &Scene, from: Place<'_>, to: SocketAddr, path: &str) -> Result<(u16, String)> {
    let more = ["--whole", "--path", path];
    let answer = scene
        .playground
        .connect(from, "http", to, &more)?
        .answer()?;
    let status = answer.split(' ').nth(1).and_then(|code| code.parse().ok());
    match status {
        Some(status) => Ok((status, answer)),
        None => bail!("{answer:?} has no status"),
    }
}

/// The port at which a node tells whether it has endpoints of a service.
pub fn health_check_port(scene: &Scene, service: &str) -> Result<u16> {
    let spec = scene.playground.service(NAMESPACE, service)?.spec;
    let port = spec.unwrap_or_default().health_check_node_port;
    Ok(port.context("there is no such port")?.try_into()?)
}
