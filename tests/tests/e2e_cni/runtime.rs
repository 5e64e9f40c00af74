//! A container runtime, by hand: sandboxes, and a node's installed plugin and configuration.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::TryStreamExt as _;
use rtnetlink::Handle;
use rtnetlink::packet_route::link::LinkAttribute;
use serde_json::Value;
use weft_cni::{CniError, CniResult, Version};
use weft_tests::netns::Netns;
use weft_tests::playground::cni::{Attachment, Network, Runtime, kubernetes_args};
use weft_tests::playground::{Playground, cleanup};

pub const NODE: &str = "node1";

/// A sandbox as a runtime makes it: a namespace, and what is said about it.
pub struct Sandbox {
    netns: Option<Netns>,
    /// What the plugins are told.
    pub attachment: Attachment,
}

impl Sandbox {
    pub fn new(playground: &Playground, name: &str) -> Self {
        let netns = Netns::create(&cleanup::netns_name(playground.id(), name)).unwrap();
        let attachment = Attachment {
            container_id: format!("sandbox-{name}"),
            netns: netns.path(),
            ifname: "eth0".to_owned(),
            ..Attachment::default()
        };
        Self {
            netns: Some(netns),
            attachment,
        }
    }

    pub fn with(mut self, capability: &str, value: Value) -> Self {
        let capabilities = &mut self.attachment.capabilities;
        capabilities.insert(capability.to_owned(), value);
        self
    }

    /// The sandbox of a pod, whose object it makes.
    pub fn of_pod(playground: &Playground, name: &str) -> Self {
        let manifest = format!(
            "{{ apiVersion: v1, kind: Pod, metadata: {{ name: {name}, namespace: default }}, spec: {{ \
             nodeName: {NODE}, containers: [{{ name: main, image: none }}] }} }}"
        );
        playground.apply(&manifest).unwrap();
        let pod = playground.pod("default", name).unwrap().unwrap();
        let uid = pod.metadata.uid.unwrap();
        let mut sandbox = Sandbox::new(playground, name);
        let id = sandbox.attachment.container_id.clone();
        sandbox.attachment.args = kubernetes_args("default", name, &uid, &id);
        sandbox
    }

    /// Its namespace.
    pub fn netns(&self) -> &Netns {
        self.netns.as_ref().unwrap()
    }

    /// What happens inside, over a netlink socket of the namespace.
    pub fn inside<F: Future<Output = ()> + Send>(&self, work: impl FnOnce(Handle) -> F + Send) {
        inside(self.netns(), work);
    }

    /// The namespace ends, and everything in it.
    pub fn vanish(&mut self) {
        if let Some(netns) = self.netns.take() {
            netns.delete().unwrap();
        }
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        if let Some(netns) = self.netns.take() {
            let _ = netns.delete();
        }
    }
}

pub fn inside<F: Future<Output = ()> + Send>(netns: &Netns, work: impl FnOnce(Handle) -> F + Send) {
    let done = netns.run_async(|| async {
        let (connection, handle, _) = rtnetlink::new_connection().unwrap();
        let connection = tokio::spawn(connection);
        work(handle).await;
        connection.abort();
    });
    done.unwrap();
}

/// The names of a namespace's interfaces.
pub fn link_names(netns: &Netns) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    inside(netns, async |handle| {
        let links = handle.link().get().execute();
        let links: Vec<_> = links.try_collect().await.unwrap();
        for attribute in links.into_iter().flat_map(|link| link.attributes) {
            if let LinkAttribute::IfName(name) = attribute {
                names.insert(name);
            }
        }
    });
    names
}

/// The node's CNI set-up, and what it left on disk.
pub struct Node<'a> {
    pub playground: &'a Playground,
    pub runtime: Runtime,
    pub network: Network,
}

impl<'a> Node<'a> {
    pub fn of(playground: &'a Playground) -> Self {
        let runtime = playground.node(NODE).unwrap().cni();
        let network = runtime.network().unwrap().unwrap();
        Self {
            playground,
            runtime,
            network,
        }
    }

    pub fn netns(&self) -> &Netns {
        &self.playground.node(NODE).unwrap().netns
    }

    pub fn add(&self, sandbox: &Sandbox) -> anyhow::Result<Value> {
        self.runtime
            .add(self.netns(), &self.network, &sandbox.attachment)
    }

    pub fn del(&self, sandbox: &Sandbox, result: Option<&Value>) -> anyhow::Result<()> {
        self.runtime
            .del(self.netns(), &self.network, &sandbox.attachment, result)
    }

    pub fn check(&self, sandbox: &Sandbox, result: &Value) -> anyhow::Result<()> {
        self.runtime
            .check(self.netns(), &self.network, &sandbox.attachment, result)
    }

    pub fn gc(&self, valid: Option<&[&Sandbox]>) -> anyhow::Result<()> {
        let valid: Option<Vec<Attachment>> =
            valid.map(|valid| valid.iter().map(|s| s.attachment.clone()).collect());
        self.runtime
            .gc(self.netns(), &self.network, valid.as_deref())
    }

    pub fn status(&self) -> anyhow::Result<()> {
        self.runtime.status(self.netns(), &self.network)
    }

    /// The installed configuration, changed.
    pub fn changed(&self, change: impl FnOnce(&mut Value)) -> Node<'a> {
        let path = self.runtime.conf_dir.join("05-weft.conflist");
        let mut list: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        change(&mut list);
        Node {
            playground: self.playground,
            runtime: self.runtime.clone(),
            network: Network::parse(list.to_string().as_bytes()).unwrap(),
        }
    }

    pub fn state(&self) -> PathBuf {
        self.playground.node(NODE).unwrap().dir.join("state")
    }

    /// The records of the endpoints, by container.
    pub fn records(&self) -> BTreeMap<String, Value> {
        let files = files(&self.state().join("endpoints"));
        let records = files.into_iter().map(|(_, content)| {
            let record: Value = serde_json::from_slice(&content).unwrap();
            (record["container_id"].as_str().unwrap().to_owned(), record)
        });
        records.collect()
    }

    /// The allocated addresses.
    pub fn allocations(&self) -> BTreeSet<IpAddr> {
        let files = files(&self.state().join("ipam"));
        let names = files.into_iter().map(|(name, _)| name);
        names.filter_map(|name| name.parse().ok()).collect()
    }

    /// The host's ends of pods' interfaces.
    pub fn interfaces(&self) -> BTreeSet<String> {
        let mut names = link_names(self.netns());
        names.retain(|name| name.starts_with("weft") && name != "weft_vxlan");
        names
    }

    /// The pins of links, without those of the overlay, uplinks and sockets.
    pub fn pod_pins(&self) -> Vec<String> {
        let dir = self.playground.node(NODE).unwrap().bpf_dir();
        let mut names = names(&dir.join("weft/links"));
        names.retain(|name| name.ends_with("_container"));
        names
    }

    #[track_caller]
    pub fn assert_no_pods(&self) {
        assert_eq!(self.records(), BTreeMap::new());
        assert_eq!(self.allocations(), BTreeSet::new());
        assert_eq!(self.interfaces(), BTreeSet::new());
        assert_eq!(self.pod_pins(), Vec::<String>::new());
    }
}

pub fn files(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let names = names(dir).into_iter();
    let files = names.filter(|name| !name.starts_with('.'));
    // Others may go while these are listed.
    let read = files.filter_map(|name| Some((name.clone(), fs::read(dir.join(name)).ok()?)));
    read.collect()
}

pub fn names(dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir) else {
        return Vec::new();
    };
    let names = entries.flatten();
    names
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

/// The plugin must have failed so.
#[track_caller]
pub fn assert_code<T: std::fmt::Debug>(result: anyhow::Result<T>, code: u32, why: &str) {
    let error = result.unwrap_err();
    let cni = error.downcast_ref::<CniError>();
    assert_eq!(cni.map(|cni| cni.code), Some(code), "{error:#}");
    let text = format!("{error:#}");
    assert!(text.contains(why), "{text:?} does not say {why:?}");
}

pub fn parsed(result: &Value) -> CniResult {
    CniResult::parse(result, Version::LATEST).unwrap()
}

pub fn addresses(result: &Value) -> Vec<IpAddr> {
    let ips = parsed(result).ips;
    ips.iter().map(|ip| ip.address.addr()).collect()
}

/// Connects from one namespace to an address of another, over TCP; the client's address as the server
/// sees it.
pub fn connect(from: &Netns, to: &Netns, address: IpAddr) -> anyhow::Result<IpAddr> {
    let listen = || TcpListener::bind(SocketAddr::new(address, 0));
    let listener = to.run(listen)??;
    let target = listener.local_addr()?;
    from.run(|| TcpStream::connect_timeout(&target, Duration::from_secs(2)))??;
    // The connection is in the queue.
    Ok(listener.accept()?.1.ip())
}
