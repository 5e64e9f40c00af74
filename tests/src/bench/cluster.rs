//! What is measured in: a playground of two nodes, the paths through it, and the baseline beside it.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde::Serialize;

use super::bare::{Baseline, Node};
use super::load::{Cpus, Ends, Workload};
use super::programs::Programs;
use crate::playground::kubelet::Sandbox;
use crate::playground::{self, Playground, wait};

/// The namespace of the benchmark's objects.
const NAMESPACE: &str = "bench";
/// The address of the service whose backend is on the client's node.
const SERVICE_SAME: Ipv4Addr = Ipv4Addr::new(10, 96, 7, 1);
/// The address of the service whose backend is on the other node.
const SERVICE_OTHER: Ipv4Addr = Ipv4Addr::new(10, 96, 7, 2);

/// A way from a pod to a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Path {
    /// To a pod of the same node.
    Same,
    /// To a pod of another node, by VXLAN.
    Other,
    /// To a ClusterIP whose backend is on the same node.
    ServiceSame,
    /// To a ClusterIP whose backend is on the other node, by VXLAN.
    ServiceOther,
}

/// Which of the two data paths is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    /// Pods, through Weft.
    Weft(Path),
    /// The bare namespaces that correspond to the path, through the kernel's routing.
    Bare(Path),
}

impl Path {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::Same,
        Self::Other,
        Self::ServiceSame,
        Self::ServiceOther,
    ];

    /// Its name, for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Same => "same node",
            Self::Other => "other node",
            Self::ServiceSame => "ClusterIP, same node",
            Self::ServiceOther => "ClusterIP, other node",
        }
    }

    /// The path that a packet of this one takes if there are no services: what it is compared with.
    pub fn direct(self) -> Self {
        match self {
            Self::Same | Self::ServiceSame => Self::Same,
            Self::Other | Self::ServiceOther => Self::Other,
        }
    }
}

/// The cluster and the baseline, ready to be loaded.
pub struct Cluster {
    // Namespaces go before the nodes that they are joined to.
    baseline: Baseline,
    client: Pod,
    same: Pod,
    other: Pod,
    /// The programs of both nodes.
    pub programs: Programs,
    _playground: Playground,
}

/// A pod of the playground, as a load generator needs it.
struct Pod {
    sandbox: Arc<Sandbox>,
    address: Ipv4Addr,
}

impl Cluster {
    /// Makes it, and waits until every path carries traffic.
    ///
    /// # Errors
    ///
    /// When a node, pod or service does not come up.
    pub fn start() -> Result<Self> {
        let playground = Playground::builder().name("bench").nodes(2).start()?;
        playground.apply(&manifest())?;
        playground.wait_all_ready(NAMESPACE)?;
        let pod = |name: &str| {
            let sandbox = playground
                .nodes()
                .iter()
                .find_map(|node| node.sandboxes.get(NAMESPACE, name))
                .with_context(|| format!("pod {name} does not run"))?;
            match sandbox.address {
                IpAddr::V4(address) => Ok(Pod { sandbox, address }),
                IpAddr::V6(address) => bail!("pod {name} has only the address {address}"),
            }
        };
        let [first, second] = playground.nodes() else {
            bail!("the playground has not two nodes")
        };
        let baseline = Baseline::new([
            Node {
                netns: &first.netns,
                address: first
                    .addresses
                    .ipv4()
                    .context("a node has no IPv4 address")?,
            },
            Node {
                netns: &second.netns,
                address: second
                    .addresses
                    .ipv4()
                    .context("a node has no IPv4 address")?,
            },
        ])?;
        let cluster = Self {
            baseline,
            client: pod("client")?,
            same: pod("same")?,
            other: pod("other")?,
            programs: Programs::of_nodes(&[first.bpf_dir(), second.bpf_dir()])?,
            _playground: playground,
        };
        cluster.wait_until_open()?;
        Ok(cluster)
    }

    /// Client, server and address of one side.
    pub fn ends(&self, side: Side) -> Ends<'_> {
        let (client, server, address) = match side {
            Side::Weft(path) => {
                let (same, other) = (&self.same, &self.other);
                let (pod, address) = match path {
                    Path::Same => (same, same.address),
                    Path::Other => (other, other.address),
                    Path::ServiceSame => (same, SERVICE_SAME),
                    Path::ServiceOther => (other, SERVICE_OTHER),
                };
                (&*self.client.sandbox.netns, &*pod.sandbox.netns, address)
            }
            Side::Bare(path) => {
                let bare = &self.baseline;
                let server = match path.direct() {
                    Path::Other => &bare.other,
                    _ => &bare.same,
                };
                (&bare.client.netns, &server.netns, server.address)
            }
        };
        Ends {
            client,
            server,
            address,
            service: matches!(side, Side::Weft(Path::ServiceSame | Path::ServiceOther)),
        }
    }

    /// A pod's readiness and a service's endpoints reach the nodes a moment after the API.
    fn wait_until_open(&self) -> Result<()> {
        for path in Path::ALL {
            for side in [Side::Weft(path), Side::Bare(path)] {
                wait(
                    &format!("{side:?} carries traffic"),
                    playground::PATIENCE,
                    || {
                        Workload::RequestResponse.run(
                            self.ends(side),
                            Cpus::Shared,
                            Duration::from_millis(1),
                        )
                    },
                )?;
            }
        }
        Ok(())
    }
}

/// Pods that do nothing, for the load generators to work in, and services for two of them.
fn manifest() -> String {
    let mut text = format!("apiVersion: v1\nkind: Namespace\nmetadata: {{ name: {NAMESPACE} }}\n");
    for (name, node) in [("client", "node1"), ("same", "node1"), ("other", "node2")] {
        text += &format!(
            "---\napiVersion: v1\nkind: Pod\n\
             metadata: {{ name: {name}, namespace: {NAMESPACE}, labels: {{ app: {name} }} }}\n\
             spec:\n  nodeName: {node}\n  containers:\n    - {{ name: pause, image: testpod, \
             args: [pause] }}\n"
        );
    }
    for (name, address) in [("same", SERVICE_SAME), ("other", SERVICE_OTHER)] {
        text += &format!(
            "---\napiVersion: v1\nkind: Service\n\
             metadata: {{ name: {name}, namespace: {NAMESPACE} }}\n\
             spec:\n  clusterIP: {address}\n  selector: {{ app: {name} }}\n  ports:\n"
        );
        for workload in Workload::ALL {
            let (port, protocol) = (workload.port(), workload.protocol());
            let target = workload.backend_port();
            text += &format!(
                "    - {{ name: port{port}, port: {port}, targetPort: {target}, \
                 protocol: {protocol} }}\n"
            );
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use serde::Deserialize as _;

    use super::*;

    #[test]
    fn the_manifest_is_what_it_says() {
        let kinds: Vec<String> = serde_norway::Deserializer::from_str(&manifest())
            .map(|document| {
                let object = serde_json::Value::deserialize(document).unwrap();
                object["kind"].as_str().unwrap().to_owned()
            })
            .collect();
        assert_eq!(
            kinds,
            ["Namespace", "Pod", "Pod", "Pod", "Service", "Service"]
        );
    }

    #[test]
    fn every_path_is_compared_with_one_without_services() {
        for path in Path::ALL {
            assert_eq!(path.direct().direct(), path.direct());
            assert!(matches!(path.direct(), Path::Same | Path::Other));
        }
    }
}
