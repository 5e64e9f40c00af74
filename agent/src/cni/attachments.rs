//! ADD and DEL: a pod's interface, its addresses, its endpoint.
//!
//! ADD, in this order, so that a crash anywhere leaves nothing that a DEL or the next start does
//! not clean up, and so that no packet passes before the datapath sees it:
//!
//! 1. addresses are allocated (on disk),
//! 2. the interface pair is made, both ends down,
//! 3. the programs are attached to the host's end,
//! 4. the pod's end is configured,
//! 5. the endpoint's record is written (on disk): from here on the pod counts as running,
//! 6. the host's end is set up,
//! 7. the answer waits until the pod's policy set is in the maps.
//!
//! A failure in 1 to 6 undoes what was done. DEL goes the other way and collects its errors.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use tokio::time::timeout;
use tracing::{debug, info, warn};
use weft_cni::error::{CniError, code};
use weft_cni::protocol::{Request, Response};
use weft_cni::queue::Queue;
use weft_cni::result::{CniResult, Interface, IpConfig, Route};

use super::locks::Locks;
use crate::endpoints::Record;
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

/// Attaches and detaches pods.
#[derive(Debug)]
pub struct Attachments {
    shared: Arc<Shared>,
    netlink: Netlink,
    locks: Locks,
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
        })
    }

    /// ADD.
    ///
    /// # Errors
    ///
    /// A CNI error; then nothing of the attachment is left.
    pub async fn add(&self, request: &Request) -> Response {
        let owner = owner(request);
        let _one_at_a_time = self.locks.lock(&owner.container_id).await;

        let network = self.network().await?;
        let mtu = request.config.mtu.unwrap_or(network.mtu);
        let pair = Pair::new(&owner.container_id, &owner.ifname, mtu);
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
        let record = match self.plumb(request, &owner, &pair, &netns, &network).await {
            Ok(record) => record,
            Err(error) => {
                if let Err(leftover) = self.clean_up(&owner, &pair).await {
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
        Ok(Some(result(&record, &pair, netns_path)))
    }

    /// DEL. What is gone already is fine, and so is a missing network namespace.
    ///
    /// # Errors
    ///
    /// A CNI error that names everything that could not be removed.
    pub async fn del(&self, request: &Request) -> Response {
        let owner = owner(request);
        let _one_at_a_time = self.locks.lock(&owner.container_id).await;
        let pair = Pair::new(&owner.container_id, &owner.ifname, 0);
        let known = self.shared.endpoints.get(&pair.host);
        self.clean_up(&owner, &pair).await?;
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
    pub fn status(&self) -> Response {
        let unavailable = |why: &str| {
            Err(CniError::new(code::NOT_AVAILABLE, "Weft cannot attach pods").with_details(why))
        };
        match &*self.shared.node.borrow() {
            None => unavailable("the node's network is not set up yet: its Node object is unknown"),
            Some(network) if network.facts.pod_cidrs.is_empty() => {
                unavailable("the Node object has no spec.podCIDRs")
            }
            Some(_) => Ok(None),
        }
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
        owner: &Owner,
        pair: &Pair,
        netns: &NetNs,
        network: &NodeNetwork,
    ) -> Result<Record, CniError> {
        let addresses = {
            let (shared, owner) = (self.shared.clone(), owner.clone());
            blocking(move || shared.ipam().allocate(&owner))
                .await?
                .map_err(|error| ipam_error(&error))?
        };
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
            network.facts.address,
        )
        .await
        .map_err(|error| netlink_error(&error))?;
        Ok(record)
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
    async fn clean_up(&self, owner: &Owner, pair: &Pair) -> Result<(), CniError> {
        let mut errors = Vec::new();
        let (shared, host) = (self.shared.clone(), pair.host.clone());
        if let Err(error) = blocking(move || shared.endpoints.remove(&host)).await? {
            errors.push(format!("the endpoint's record: {error}"));
        }
        match self.netlink.find_link(&pair.host).await {
            Ok(Some(link)) => {
                // The peer in the pod goes with it.
                if let Err(error) = self.netlink.delete_link(&link).await {
                    errors.push(error.to_string());
                }
            }
            Ok(None) => {}
            Err(error) => errors.push(error.to_string()),
        }
        self.shared.attacher().forget(&pair.host);
        if errors.is_empty() {
            let (shared, owner) = (self.shared.clone(), owner.clone());
            let released = blocking(move || shared.ipam().release(&owner)).await?;
            errors.extend(released.err().map(|error| error.to_string()));
        }
        self.shared.cluster.notify();
        if errors.is_empty() {
            return Ok(());
        }
        let error = CniError::new(code::IO, "the attachment could not be removed completely");
        Err(error.with_details(errors.join("; ")))
    }
}

fn owner(request: &Request) -> Owner {
    Owner {
        container_id: request.container_id.clone(),
        ifname: request.ifname.clone(),
    }
}

/// Runs what waits for the disk or the kernel where it does not hold up other tasks.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, CniError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| {
        CniError::new(code::INTERNAL, "the agent failed inside").with_details(error.to_string())
    })
}

/// The result that the runtime gets.
fn result(record: &Record, pair: &Pair, netns: &str) -> CniResult {
    let mac = |mac: [u8; 6]| mac.map(|byte| format!("{byte:02x}")).join(":");
    let host = Interface {
        name: pair.host.clone(),
        mac: mac(weft_abi::GATEWAY_MAC),
        mtu: Some(pair.mtu),
        ..Interface::default()
    };
    let pod = Interface {
        name: pair.pod.clone(),
        mac: mac(pair.mac),
        mtu: Some(pair.mtu),
        sandbox: Some(netns.to_owned()),
        ..Interface::default()
    };
    let ips = record.addresses.iter().map(|address| IpConfig {
        address: IpNet::from(*address),
        gateway: Some(veth::gateway(*address)),
        interface: Some(1),
    });
    let routes = record.addresses.iter().map(|address| Route {
        dst: default_route(*address),
        gw: Some(veth::gateway(*address)),
        mtu: None,
        advmss: None,
        priority: None,
        table: None,
        scope: None,
    });
    CniResult {
        interfaces: vec![host, pod],
        ips: ips.collect(),
        routes: routes.collect(),
        ..CniResult::default()
    }
}

fn default_route(address: IpAddr) -> IpNet {
    match address {
        IpAddr::V4(_) => IpNet::V4(ipnet::Ipv4Net::default()),
        IpAddr::V6(_) => IpNet::V6(ipnet::Ipv6Net::default()),
    }
}

fn netns_error(error: &NetNsError) -> CniError {
    CniError::new(
        code::INVALID_NETNS,
        "CNI_NETNS is no usable network namespace",
    )
    .with_details(error.to_string())
}

fn netlink_error(error: &NetlinkError) -> CniError {
    CniError::new(code::INTERNAL, "cannot set up the pod's interface")
        .with_details(error.to_string())
}

fn ipam_error(error: &IpamError) -> CniError {
    let code = match error {
        IpamError::NoPool | IpamError::Exhausted { .. } => code::TRY_AGAIN_LATER,
        IpamError::Io { .. } => code::IO,
    };
    CniError::new(code, "cannot allocate an address").with_details(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoints::tests::record;

    #[test]
    fn the_result_says_what_runtimes_read() {
        let pair = Pair::new("c1", "eth0", 1450);
        let result = result(&record(1), &pair, "/run/netns/1");
        assert_eq!(result.interfaces[1].name, "eth0");
        assert_eq!(
            result.interfaces[1].sandbox.as_deref(),
            Some("/run/netns/1")
        );
        assert_eq!(result.interfaces[0].sandbox, None);
        assert_eq!(result.ips[0].address.to_string(), "10.0.0.1/32");
        assert_eq!(result.ips[0].interface, Some(1));
        assert_eq!(result.ips[0].gateway, Some([169, 254, 1, 1].into()));
        assert_eq!(result.routes[0].dst.to_string(), "0.0.0.0/0");
    }
}
