//! The endpoints of this node: one record per pod interface, on disk and in memory.
//!
//! Invariants:
//! - A record is on disk before the runtime learns that the pod's interface is there, and goes when
//!   the runtime wants the interface gone. So what is running is always known, whatever happened to
//!   the agent.
//! - Records are keyed by the host's interface name, which follows from container and interface.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use tracing::warn;
use weft_core::model::{LocalEndpoint, ObjectKey};

use crate::ipam::Owner;
use crate::persist;

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
            host_ports: Vec::new(),
            egress_limit: None,
            ingress_limit: None,
        }
    }
}

/// The endpoints of this node, by the host's interface name.
#[derive(Debug)]
pub struct Endpoints {
    dir: PathBuf,
    records: Mutex<BTreeMap<String, Record>>,
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
            records: Mutex::new(records),
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
        self.lock().insert(record.interface.clone(), record);
        Ok(())
    }

    /// Removes a record; none is fine.
    ///
    /// # Errors
    ///
    /// When its file cannot be removed; then it stays.
    pub fn remove(&self, interface: &str) -> io::Result<Option<Record>> {
        persist::remove(&self.dir.join(interface))?;
        Ok(self.lock().remove(interface))
    }

    /// One record.
    pub fn get(&self, interface: &str) -> Option<Record> {
        self.lock().get(interface).cloned()
    }

    /// All records.
    pub fn all(&self) -> Vec<Record> {
        self.lock().values().cloned().collect()
    }

    /// All endpoints, as the compiler reads them.
    pub fn for_compiler(&self) -> BTreeMap<String, LocalEndpoint> {
        self.lock()
            .iter()
            .map(|(name, record)| (name.clone(), record.endpoint()))
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Record>> {
        // Each change is one insert or removal, so the map is whole even after a panic.
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }
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
        }
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
