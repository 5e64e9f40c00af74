//! The endpoints of this node: one record per pod interface, on disk and in memory.
//!
//! Invariants:
//! - A record is on disk before the runtime learns that the pod's interface is there, and goes when
//!   the runtime wants the interface gone. So what is running is always known, whatever happened to
//!   the agent.
//! - Records are keyed by the host's interface name, which follows from container and interface.
//! - No two endpoints have the same port of the node: an ADD claims its ports before it does
//!   anything else ([`Endpoints::claim`]).

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use thiserror::Error;
use tracing::warn;
use weft_core::model::{HostPort, Limit, LocalEndpoint, ObjectKey, Protocol};

use crate::ipam::Owner;
use crate::persist;

/// The network of records that do not name one: they are of releases that knew one network only.
pub const DEFAULT_NETWORK: &str = "weft";

/// One pod interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The container (sandbox) and the interface's name in it.
    #[serde(flatten)]
    pub owner: Owner,
    /// Namespace of the pod; empty if the runtime did not say.
    pub namespace: String,
    /// Name of the pod; empty if the runtime did not say.
    pub pod: String,
    /// UID of the pod, if the runtime said.
    pub uid: Option<String>,
    /// Path of the pod's network namespace when it was added.
    pub netns: String,
    /// Name of the host's end.
    pub interface: String,
    /// Index of the host's end.
    pub ifindex: u32,
    /// MAC address of the pod's end.
    pub mac: [u8; 6],
    /// MTU of both ends, in bytes.
    pub mtu: u32,
    /// The pod's addresses.
    pub addresses: Vec<IpAddr>,
    /// The name of the CNI network that it was attached to: GC is of one network.
    #[serde(default = "default_network")]
    pub network: String,
    /// Ports of the node that lead to the pod.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub host_ports: Vec<PortRecord>,
    /// What the pod may send.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress_limit: Option<LimitRecord>,
    /// What the pod may receive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingress_limit: Option<LimitRecord>,
}

/// A host port, as it is written down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortRecord {
    /// The node's address that has the port; all of them if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_ip: Option<IpAddr>,
    /// The port on the node.
    pub host_port: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// The pod's port.
    pub container_port: u16,
}

impl PortRecord {
    /// As the compiler reads it. `None` for a protocol that this release does not know.
    fn model(&self) -> Option<HostPort> {
        Some(HostPort {
            host_ip: self.host_ip,
            host_port: self.host_port,
            protocol: Protocol::from_number(self.protocol)?,
            container_port: self.container_port,
        })
    }
}

impl From<&HostPort> for PortRecord {
    fn from(port: &HostPort) -> Self {
        Self {
            host_ip: port.host_ip,
            host_port: port.host_port,
            protocol: port.protocol.number(),
            container_port: port.container_port,
        }
    }
}

/// A limit of bandwidth, as it is written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitRecord {
    /// Bytes per second.
    pub bytes_per_second: u64,
    /// Bytes that may pass at once after a pause.
    pub burst: u64,
}

impl LimitRecord {
    /// As the compiler reads it, which knows no limit of nothing.
    fn model(self) -> Option<Limit> {
        (self.bytes_per_second > 0).then_some(Limit {
            bytes_per_second: self.bytes_per_second,
            burst: self.burst,
        })
    }
}

impl From<Limit> for LimitRecord {
    fn from(limit: Limit) -> Self {
        Self {
            bytes_per_second: limit.bytes_per_second,
            burst: limit.burst,
        }
    }
}

fn default_network() -> String {
    DEFAULT_NETWORK.to_owned()
}

impl Record {
    /// The endpoint as the compiler reads it.
    pub fn endpoint(&self) -> LocalEndpoint {
        LocalEndpoint {
            pod: ObjectKey::new(self.namespace.clone(), self.pod.clone()),
            uid: self.uid.clone(),
            container_id: self.owner.container_id.clone(),
            ips: self.addresses.clone(),
            ifindex: self.ifindex,
            mac: self.mac,
            host_ports: self
                .host_ports
                .iter()
                .filter_map(PortRecord::model)
                .collect(),
            egress_limit: self.egress_limit.and_then(LimitRecord::model),
            ingress_limit: self.ingress_limit.and_then(LimitRecord::model),
        }
    }
}

/// A port of the node that another pod has.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("host port {} of {protocol} on {} belongs to {holder}", port.host_port,
    port.host_ip.map_or_else(|| "every address".to_owned(), |ip| ip.to_string()),
    protocol = port.protocol)]
pub struct PortTaken {
    /// The port that was asked for.
    pub port: HostPort,
    /// Who has it.
    pub holder: String,
}

/// The endpoints of this node, by the host's interface name.
#[derive(Debug)]
pub struct Endpoints {
    dir: PathBuf,
    state: Mutex<State>,
}

/// What is in memory.
#[derive(Debug, Default)]
struct State {
    records: BTreeMap<String, Record>,
    /// Ports of ADDs that have no record yet, by interface; and who they are.
    claims: BTreeMap<String, (String, Vec<HostPort>)>,
}

impl Endpoints {
    /// Opens the records in this directory, which is made when missing. Unreadable ones are
    /// reported and removed: without its addresses a record says nothing.
    ///
    /// # Errors
    ///
    /// When the directory cannot be made or read.
    pub fn open(dir: &Path) -> io::Result<Self> {
        persist::open_dir(dir)?;
        let mut records = BTreeMap::new();
        for (name, content) in persist::read_all(dir)? {
            match serde_json::from_slice::<Record>(&content) {
                Ok(record) if record.interface == name => {
                    records.insert(name, record);
                }
                Ok(record) => warn!(
                    file = name,
                    interface = record.interface,
                    "endpoint record under a wrong name; ignored"
                ),
                Err(error) => {
                    warn!(file = name, %error, "unreadable endpoint record; removed");
                    persist::remove(&dir.join(name))?;
                }
            }
        }
        Ok(Self {
            dir: dir.to_owned(),
            state: Mutex::new(State {
                records,
                claims: BTreeMap::new(),
            }),
        })
    }

    /// Keeps a record, on disk first.
    ///
    /// # Errors
    ///
    /// When it cannot be written; then it is not kept.
    pub fn insert(&self, record: Record) -> io::Result<()> {
        let content = serde_json::to_vec_pretty(&record)?;
        persist::write(&self.dir.join(&record.interface), &content, 0o600)?;
        let mut state = self.lock();
        state.claims.remove(&record.interface);
        state.records.insert(record.interface.clone(), record);
        Ok(())
    }

    /// Claims ports of the node for an interface that is being added, until its record is inserted or
    /// removed. `holder` is told to others who want them.
    ///
    /// # Errors
    ///
    /// The first port that another endpoint has; then nothing is claimed.
    pub fn claim(
        &self,
        interface: &str,
        holder: &str,
        ports: &[HostPort],
    ) -> Result<(), PortTaken> {
        let mut state = self.lock();
        for port in ports {
            if let Some(holder) = state.holder_of(port, interface) {
                let port = port.clone();
                return Err(PortTaken { port, holder });
            }
        }
        let claim = (holder.to_owned(), ports.to_vec());
        state.claims.insert(interface.to_owned(), claim);
        Ok(())
    }

    /// Removes a record; none is fine.
    ///
    /// # Errors
    ///
    /// When its file cannot be removed; then it stays.
    pub fn remove(&self, interface: &str) -> io::Result<Option<Record>> {
        persist::remove(&self.dir.join(interface))?;
        let mut state = self.lock();
        state.claims.remove(interface);
        Ok(state.records.remove(interface))
    }

    /// One record.
    pub fn get(&self, interface: &str) -> Option<Record> {
        self.lock().records.get(interface).cloned()
    }

    /// All records.
    pub fn all(&self) -> Vec<Record> {
        self.lock().records.values().cloned().collect()
    }

    /// All endpoints, as the compiler reads them.
    pub fn for_compiler(&self) -> BTreeMap<String, LocalEndpoint> {
        self.lock()
            .records
            .iter()
            .map(|(name, record)| (name.clone(), record.endpoint()))
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Each change is of one interface, so the maps are whole even after a panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Which other endpoint has a port.
    fn holder_of(&self, port: &HostPort, interface: &str) -> Option<String> {
        let claimed = self.claims.iter().filter(|(name, _)| *name != interface);
        let claimed = claimed
            .filter(|(_, (_, ports))| ports.iter().any(|other| overlap(port, other)))
            .map(|(_, (holder, _))| holder.clone())
            .next();
        claimed.or_else(|| {
            let others = self.records.values();
            let mut others = others.filter(|record| record.interface != interface);
            let holder = others.find(|record| {
                let ports = &record.host_ports;
                let mut ports = ports.iter().filter_map(PortRecord::model);
                ports.any(|other| overlap(port, &other))
            })?;
            Some(format!("pod {}", holder.endpoint().pod))
        })
    }
}

/// Whether a packet could be meant for both.
fn overlap(a: &HostPort, b: &HostPort) -> bool {
    let addresses = a.host_ip.is_none() || b.host_ip.is_none() || a.host_ip == b.host_ip;
    a.protocol == b.protocol && a.host_port == b.host_port && addresses
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn record(n: u8) -> Record {
        Record {
            owner: Owner {
                container_id: format!("c{n}"),
                ifname: "eth0".to_owned(),
            },
            namespace: "shop".to_owned(),
            pod: format!("pod-{n}"),
            uid: Some(format!("uid-{n}")),
            netns: format!("/run/netns/{n}"),
            interface: format!("weft{n}"),
            ifindex: n.into(),
            mac: [2, 0, 0, 0, 0, n],
            mtu: 1450,
            addresses: vec![IpAddr::from([10, 0, 0, n])],
            network: "weft".to_owned(),
            host_ports: Vec::new(),
            egress_limit: None,
            ingress_limit: None,
        }
    }

    fn port(host_ip: Option<[u8; 4]>, host_port: u16, protocol: Protocol) -> HostPort {
        HostPort {
            host_ip: host_ip.map(IpAddr::from),
            host_port,
            protocol,
            container_port: 80,
        }
    }

    #[test]
    fn a_port_of_the_node_has_one_pod() {
        let dir = tempfile::tempdir().expect("tempdir");
        let endpoints = Endpoints::open(dir.path()).expect("opens");
        let every = port(None, 8080, Protocol::Tcp);
        let claim = |interface: &str, port: &HostPort| {
            endpoints.claim(
                interface,
                &format!("pod of {interface}"),
                std::slice::from_ref(port),
            )
        };
        claim("weft1", &every).expect("free");
        claim("weft1", &every).expect("its own");
        let taken = claim("weft2", &port(Some([192, 0, 2, 1]), 8080, Protocol::Tcp));
        assert_eq!(
            taken.expect_err("taken").to_string(),
            "host port 8080 of TCP on 192.0.2.1 belongs to pod of weft1"
        );
        claim("weft2", &port(None, 8080, Protocol::Udp)).expect("another protocol");
        claim("weft3", &port(None, 8081, Protocol::Tcp)).expect("another port");
        // A record keeps what was claimed, also across a restart.
        let mut with_port = record(1);
        with_port.host_ports = vec![PortRecord::from(&every)];
        endpoints.insert(with_port).expect("writes");
        claim("weft4", &every).expect_err("taken");
        let endpoints = Endpoints::open(dir.path()).expect("opens");
        let taken = endpoints.claim("weft4", "x", std::slice::from_ref(&every));
        assert_eq!(taken.expect_err("taken").holder, "pod shop/pod-1");
        endpoints.remove("weft1").expect("removes");
        endpoints.claim("weft4", "x", &[every]).expect("free again");
        endpoints.remove("weft4").expect("there is only a claim");
        let one = port(Some([192, 0, 2, 1]), 80, Protocol::Tcp);
        let other = port(Some([192, 0, 2, 2]), 80, Protocol::Tcp);
        endpoints.claim("weft5", "x", &[one]).expect("free");
        endpoints
            .claim("weft6", "x", &[other])
            .expect("another address");
    }

    #[test]
    fn records_of_older_releases_are_of_the_one_network() {
        let mut old = serde_json::to_value(record(1)).expect("json");
        old.as_object_mut().expect("an object").remove("network");
        let read: Record = serde_json::from_value(old).expect("reads");
        assert_eq!(read, record(1));
    }

    #[test]
    fn what_was_asked_for_reaches_the_compiler() {
        let asked = Record {
            host_ports: vec![
                PortRecord::from(&port(None, 8080, Protocol::Sctp)),
                PortRecord {
                    protocol: 99,
                    ..PortRecord::from(&port(None, 1, Protocol::Tcp))
                },
            ],
            egress_limit: Some(LimitRecord {
                bytes_per_second: 1000,
                burst: 5,
            }),
            ingress_limit: Some(LimitRecord {
                bytes_per_second: 0,
                burst: 5,
            }),
            ..record(1)
        };
        let endpoint = asked.endpoint();
        assert_eq!(endpoint.host_ports, [port(None, 8080, Protocol::Sctp)]);
        let limit = endpoint.egress_limit.expect("a limit");
        assert_eq!((limit.bytes_per_second, limit.burst), (1000, 5));
        assert_eq!(endpoint.ingress_limit, None);
    }

    #[test]
    fn records_survive_a_restart() {
        let dir = tempfile::tempdir().expect("tempdir");
        let endpoints = Endpoints::open(dir.path()).expect("opens");
        endpoints.insert(record(1)).expect("writes");
        endpoints.insert(record(2)).expect("writes");
        assert_eq!(endpoints.remove("weft1").expect("removes"), Some(record(1)));
        assert_eq!(endpoints.remove("weft1").expect("is gone"), None);
        let endpoints = Endpoints::open(dir.path()).expect("opens");
        assert_eq!(endpoints.all(), [record(2)]);
        let local = &endpoints.for_compiler()["weft2"];
        assert_eq!(
            (local.pod.to_string(), local.ifindex),
            ("shop/pod-2".to_owned(), 2)
        );
    }

    #[test]
    fn broken_records_do_not_stop_the_agent() {
        let dir = tempfile::tempdir().expect("tempdir");
        std::fs::write(dir.path().join("weft9"), "{").expect("writes");
        std::fs::write(
            dir.path().join("weft8"),
            serde_json::to_vec(&record(1)).expect("json"),
        )
        .expect("writes");
        let endpoints = Endpoints::open(dir.path()).expect("opens");
        assert_eq!(endpoints.all(), []);
        assert!(!dir.path().join("weft9").exists());
    }
}
