//! ADD and DEL: a pod's interface, its addresses, its endpoint.
//!
//! ADD, in this order, so that a crash anywhere leaves nothing that a DEL or the next start does
//! not clean up, and so that no packet passes before the datapath sees it:
//!
//! 1. ports of the node are claimed (in memory), addresses are allocated (on disk),
//! 2. the interface pair is made, both ends down,
//! 3. the programs are attached to the host's end,
//! 4. the pod's end is configured,
//! 5. the endpoint's record is written (on disk): from here on the pod counts as running,
//! 6. the host's end is set up,
//! 7. the answer waits until the pod's policy set is in the maps.
//!
//! A failure in 1 to 6 undoes what was done. DEL goes the other way and collects its errors.
//!
//! Requests about one container are done one after the other; requests about others at once. What
//! they share is held for moments only: addresses are decided in memory and written down apart, the
//! kernel's own lock on interfaces is what takes turns.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;
use tracing::{debug, info, warn};
use weft_cni::error::{CniError, code};
use weft_cni::protocol::{Request, Response};
use weft_cni::queue::Queue;

use super::adding::Adding;
use super::answer;
use super::locks::Locks;
use super::programs;
use super::requested::Requested;
use crate::config::{MTU_MAX, MTU_MIN};
use crate::endpoints::{LimitRecord, PortRecord, PortTaken, Record};
use crate::ipam::{IpamError, Owner};
use crate::netlink::netns::NetNsError;
use crate::netlink::veth::{self, Pair};
use crate::netlink::{NetNs, Netlink, NetlinkError};
use crate::node::NodeNetwork;
use crate::reconcile::Shared;

/// How long ADD waits for the node's network, after a fresh start.
const NODE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long ADD waits for the pod's policy set. Longer would not help: the watch that brings the
/// pod is the same kind of watch that told the kubelet of it.
const READY_TIMEOUT: Duration = Duration::from_secs(10);
/// How long ADD waits for the pod's policy set while the API is away: enough for a pod that is
/// known.
const READY_TIMEOUT_OFFLINE: Duration = Duration::from_secs(1);

/// How many ADDs make interfaces at once. The kernel makes one at a time, and waits for all CPUs while
/// it attaches a program: more would not end sooner, but all of them only when the last one does.
const PLUMBING: usize = 8;

/// Attaches and detaches pods.
#[derive(Debug)]
pub struct Attachments {
    pub(super) shared: Arc<Shared>,
    pub(super) netlink: Netlink,
    /// One request about a container at a time.
    pub(super) locks: Locks,
    pub(super) adding: Adding,
    /// For [`PLUMBING`].
    plumbing: tokio::sync::Semaphore,
    /// One GC at a time.
    pub(super) collection: tokio::sync::Mutex<()>,
}

impl Attachments {
    /// Over what the agent's tasks share.
    ///
    /// # Errors
    ///
    /// When there is no netlink socket to be had.
    pub fn new(shared: Arc<Shared>) -> Result<Self, NetlinkError> {
        Ok(Self {
            shared,
            netlink: Netlink::host()?,
            locks: Locks::default(),
            adding: Adding::default(),
            plumbing: tokio::sync::Semaphore::new(PLUMBING),
            collection: tokio::sync::Mutex::default(),
        })
    }

    /// ADD.
    ///
    /// # Errors
    ///
    /// A CNI error; then nothing of the attachment is left.
    pub async fn add(&self, request: &Request) -> Response {
        let owner = owner(request);
        let _running = self.adding.begin(&owner);
        let _one_at_a_time = self.locks.lock(&owner.container_id).await;

        let requested = Requested::of(request)?;
        let previous = request.config.previous()?;
        let network = self.network().await?;
        let mut pair = Pair::new(&owner.container_id, &owner.ifname, mtu(request, &network)?);
        pair.mac = requested.mac.unwrap_or(pair.mac);
        let netns_path = request.netns.as_deref().unwrap_or_default();
        let netns = NetNs::open_pod(Path::new(netns_path)).map_err(|error| netns_error(&error))?;
        if self.shared.endpoints.get(&pair.host).is_some()
            && self
                .netlink
                .find_link(&pair.host)
                .await
                .map_err(|e| netlink_error(&e))?
                .is_some()
        {
            return Err(CniError::new(
                code::INVALID_ENVIRONMENT,
                format!(
                    "container {} has an interface {} already",
                    owner.container_id, owner.ifname
                ),
            )
            .with_details("call DEL before a second ADD"));
        }

        // A DEL of this container that still waits would take down what comes now.
        Queue::new(self.shared.config.cni_queue())
            .forget(request)
            .map_err(|error| {
                CniError::new(code::IO, "cannot forget an earlier DEL of this container")
                    .with_details(error.to_string())
            })?;
        if !requested.addresses.is_empty() && !self.shared.ipam().addresses_of(&owner).is_empty() {
            // Left by an ADD that a crash ended, and not what is asked for now.
            self.clean_up(&owner, &pair.host).await?;
        }
        let plumbed = {
            // Nobody closes it.
            let _turn = self.plumbing.acquire().await.ok();
            let plumb = self.plumb(request, &requested, &owner, &pair, &netns, &network);
            plumb.await
        };
        let record = match plumbed {
            Ok(record) => record,
            Err(error) => {
                if let Err(leftover) = self.clean_up(&owner, &pair.host).await {
                    warn!(%owner, error = %leftover, "a failed ADD left something behind; DEL \
                        or a restart removes it");
                }
                return Err(error);
            }
        };
        self.shared.cluster.notify();
        self.wait_until_ready(&record).await;
        info!(
            pod = %record.endpoint().pod, addresses = ?record.addresses,
            interface = record.interface, "pod attached"
        );
        Ok(Some(answer::result(&record, &pair, netns_path, previous)))
    }

    /// DEL. What is gone already is fine, and so is a missing network namespace.
    ///
    /// # Errors
    ///
    /// A CNI error that names everything that could not be removed.
    pub async fn del(&self, request: &Request) -> Response {
        let owner = owner(request);
        let _one_at_a_time = self.locks.lock(&owner.container_id).await;
        let interface = interface_of(&owner);
        let known = self.shared.endpoints.get(&interface);
        self.clean_up(&owner, &interface).await?;
        match known {
            Some(record) => {
                info!(
                    pod = %record.endpoint().pod, addresses = ?record.addresses,
                    interface = record.interface, "pod detached"
                );
            }
            None => debug!(%owner, "DEL of what is not there"),
        }
        Ok(None)
    }

    /// STATUS: whether ADD could be served.
    ///
    /// # Errors
    ///
    /// Code 50 and why not.
    pub async fn status(&self) -> Response {
        let unavailable = |why: String| {
            Err(CniError::new(code::NOT_AVAILABLE, "Weft cannot attach pods").with_details(why))
        };
        let network = self.shared.node.borrow().clone();
        let Some(network) = network else {
            return unavailable(
                "the node's network is not set up yet: its Node object is unknown".to_owned(),
            );
        };
        if network.facts.pod_cidrs.is_empty() {
            return unavailable("the Node object has no spec.podCIDRs".to_owned());
        }
        let usage = self.shared.ipam().usage();
        if let Some(full) = usage.iter().find(|usage| usage.is_exhausted()) {
            return unavailable(format!(
                "no free address: all {} of {} are in use",
                full.size, full.pool
            ));
        }
        if network.overlay != 0 {
            // A socket answers one listing at a time, and STATUS waits for nobody.
            let netlink = Netlink::host().map_err(|error| netlink_error(&error))?;
            match programs::missing_on_overlay(&netlink).await {
                Ok(missing) if missing.is_empty() => {}
                Ok(missing) => {
                    return unavailable(format!(
                        "the datapath is not in place: the overlay is without {}",
                        missing.join(", ")
                    ));
                }
                Err(error) => {
                    return unavailable(format!("the datapath is not in place: {error:#}"));
                }
            }
        }
        Ok(None)
    }

    async fn network(&self) -> Result<NodeNetwork, CniError> {
        let mut node = self.shared.node.subscribe();
        if let Ok(Ok(known)) = timeout(NODE_TIMEOUT, node.wait_for(Option::is_some)).await
            && let Some(network) = &*known
        {
            return Ok(network.clone());
        }
        let error = CniError::new(
            code::TRY_AGAIN_LATER,
            "the node's network is not set up yet",
        );
        Err(error
            .with_details("the agent waits for the Kubernetes API and this node's Node object"))
    }

    /// Steps 1 to 6.
    async fn plumb(
        &self,
        request: &Request,
        requested: &Requested,
        owner: &Owner,
        pair: &Pair,
        netns: &NetNs,
        network: &NodeNetwork,
    ) -> Result<Record, CniError> {
        let holder = match (&request.args.pod_namespace, &request.args.pod_name) {
            (Some(namespace), Some(name)) => format!("pod {namespace}/{name}"),
            _ => owner.to_string(),
        };
        self.shared
            .endpoints
            .claim(&pair.host, &holder, &requested.host_ports)
            .map_err(|taken| port_error(&taken))?;
        let addresses = self.allocate(owner, &requested.addresses).await?;
        let link = veth::create(&self.netlink, netns, pair)
            .await
            .map_err(|error| {
                if error.is(libc::EEXIST) {
                    CniError::new(
                        code::INVALID_ENVIRONMENT,
                        format!("the pod has an interface {} already (CNI_IFNAME)", pair.pod),
                    )
                } else {
                    netlink_error(&error)
                }
            })?;
        {
            let (shared, host) = (self.shared.clone(), pair.host.clone());
            blocking(move || shared.attacher().attach_pod(&host))
                .await?
                .map_err(|error| {
                    CniError::new(
                        code::INTERNAL,
                        "cannot attach the datapath to the pod's interface",
                    )
                    .with_details(error.to_string())
                })?;
        }
        veth::configure_pod(netns, pair, &addresses)
            .await
            .map_err(|error| netlink_error(&error))?;

        let record = Record {
            owner: owner.clone(),
            namespace: request.args.pod_namespace.clone().unwrap_or_default(),
            pod: request.args.pod_name.clone().unwrap_or_default(),
            uid: request.args.pod_uid.clone(),
            netns: netns.path().display().to_string(),
            interface: pair.host.clone(),
            ifindex: link.index,
            mac: pair.mac,
            mtu: pair.mtu,
            addresses: addresses.clone(),
            network: request.config.name.clone(),
            host_ports: requested.host_ports.iter().map(PortRecord::from).collect(),
            egress_limit: requested.egress_limit.map(LimitRecord::from),
            ingress_limit: requested.ingress_limit.map(LimitRecord::from),
        };
        {
            let (shared, record) = (self.shared.clone(), record.clone());
            blocking(move || shared.endpoints.insert(record))
                .await?
                .map_err(|error| {
                    CniError::new(code::IO, "cannot write the endpoint's record")
                        .with_details(error.to_string())
                })?;
        }
        veth::activate_host(
            &self.netlink,
            &link,
            pair.mac,
            &addresses,
            network.facts.addresses(),
        )
        .await
        .map_err(|error| netlink_error(&error))?;
        Ok(record)
    }

    /// Addresses are decided in memory; the disk is waited for without anybody else waiting for it.
    async fn allocate(&self, owner: &Owner, wanted: &[IpAddr]) -> Result<Vec<IpAddr>, CniError> {
        let (shared, owner, wanted) = (self.shared.clone(), owner.clone(), wanted.to_vec());
        blocking(move || {
            let reservation = shared.ipam().reserve(&owner, &wanted)?;
            match reservation.store() {
                Ok(()) => Ok(reservation.addresses().to_vec()),
                Err(error) => {
                    shared.ipam().abandon(&reservation);
                    Err(error)
                }
            }
        })
        .await?
        .map_err(|error| ipam_error(&error))
    }

    /// Waits until the policy set is in the maps. If it does not get there in time, the pod starts
    /// all the same and passes nothing but its own node's traffic until it does: failing closed,
    /// and not failing to start.
    async fn wait_until_ready(&self, record: &Record) {
        if record.pod.is_empty() {
            warn!(
                interface = record.interface,
                "the runtime did not say which pod this is (CNI_ARGS): it reaches and is \
                    reached by its own node only"
            );
            return;
        }
        let patience = if self.shared.cluster.pods_connected() {
            READY_TIMEOUT
        } else {
            READY_TIMEOUT_OFFLINE
        };
        let mut applied = self.shared.applied.subscribe();
        let ready = applied.wait_for(|applied| applied.is_ready(record));
        let outcome = timeout(patience, ready).await.map(drop);
        if outcome.is_err() {
            let error = self.shared.applied.borrow().error.clone();
            warn!(
                pod = %record.endpoint().pod, interface = record.interface,
                api_connected = self.shared.cluster.pods_connected(), error,
                "the pod's policy is not in place yet: until it is, the pod reaches and is \
                    reached by its own node only"
            );
        }
    }

    /// Removes whatever there is of an attachment: the record first, so that nobody looks for an
    /// interface that is just going, and the addresses last, when nobody can use them any more.
    /// Every part is tried; what a crash leaves in between, the next start removes.
    pub(super) async fn clean_up(&self, owner: &Owner, interface: &str) -> Result<(), CniError> {
        let mut errors = Vec::new();
        let (shared, host) = (self.shared.clone(), interface.to_owned());
        if let Err(error) = blocking(move || shared.endpoints.remove(&host)).await? {
            errors.push(format!("the endpoint's record: {error}"));
        }
        match self.netlink.find_link(interface).await {
            Ok(Some(link)) => {
                // The peer in the pod goes with it.
                if let Err(error) = self.netlink.delete_link(&link).await {
                    errors.push(error.to_string());
                }
            }
            Ok(None) => {}
            Err(error) => errors.push(error.to_string()),
        }
        let gone = errors.is_empty();
        let (shared, host, owner) = (self.shared.clone(), interface.to_owned(), owner.clone());
        let released = blocking(move || {
            shared.attacher().forget(&host);
            if !gone {
                return Ok(());
            }
            let release = shared.ipam().releasing(&owner);
            release.store()?;
            shared.ipam().released(&release);
            Ok::<_, IpamError>(())
        });
        errors.extend(released.await?.err().map(|error| error.to_string()));
        self.shared.cluster.notify();
        if errors.is_empty() {
            return Ok(());
        }
        let error = CniError::new(code::IO, "the attachment could not be removed completely");
        Err(error.with_details(errors.join("; ")))
    }
}

/// The name of the host's end of an attachment.
pub(super) fn interface_of(owner: &Owner) -> String {
    Pair::new(&owner.container_id, &owner.ifname, 0).host
}

/// The MTU of the pod's interface: the configuration's, else the node's.
fn mtu(request: &Request, network: &NodeNetwork) -> Result<u32, CniError> {
    match request.config.mtu {
        None => Ok(network.mtu),
        Some(mtu) if (MTU_MIN..=MTU_MAX).contains(&mtu) => Ok(mtu),
        Some(mtu) => Err(
            CniError::new(code::INVALID_CONFIG, format!("\"mtu\": {mtu} is invalid"))
                .with_details(format!("give a value from {MTU_MIN} to {MTU_MAX}, or none")),
        ),
    }
}

pub(super) fn owner(request: &Request) -> Owner {
    Owner {
        container_id: request.container_id.clone(),
        ifname: request.ifname.clone(),
    }
}

/// Runs what waits for the disk or the kernel where it does not hold up other tasks.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, CniError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| {
        CniError::new(code::INTERNAL, "the agent failed inside").with_details(error.to_string())
    })
}

pub(super) fn netns_error(error: &NetNsError) -> CniError {
    CniError::new(
        code::INVALID_NETNS,
        "CNI_NETNS is no usable network namespace",
    )
    .with_details(error.to_string())
}

pub(super) fn netlink_error(error: &NetlinkError) -> CniError {
    CniError::new(code::INTERNAL, "cannot set up the pod's interface")
        .with_details(error.to_string())
}

fn ipam_error(error: &IpamError) -> CniError {
    let code = match error {
        IpamError::NoPool | IpamError::Exhausted { .. } | IpamError::Taken { .. } => {
            code::TRY_AGAIN_LATER
        }
        IpamError::NotOurs { .. } | IpamError::Second(_) => code::INVALID_CONFIG,
        IpamError::Io { .. } => code::IO,
    };
    CniError::new(code, "cannot allocate an address").with_details(error.to_string())
}

/// The scheduler puts no two pods with the same host port on a node, so the one that has it is about
/// to go, most likely: the runtime should try again.
fn port_error(taken: &PortTaken) -> CniError {
    CniError::new(code::TRY_AGAIN_LATER, taken.to_string())
}
