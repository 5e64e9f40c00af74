//! What an operator does to a running cluster: other MTUs, other addresses, nodes that come and go.

use std::net::IpAddr;

use anyhow::{Context as _, Result, bail};
use k8s_openapi::api::core::v1::{Node as NodeObject, Pod};
use kube::api::{DeleteParams, ListParams};
use kube::{Api, ResourceExt as _};
use nix::mount::{MntFlags, umount2};

use super::families::{Family, NODES};
use super::{Playground, Routing, cgroup, network};
use crate::netns;

impl Playground {
    /// Sets the MTU of a node's uplink and of the port at its other end, in bytes. The fabric's own
    /// MTU is the smallest of its ports'; node to node packets that do not fit the other's port are
    /// lost without a word, as on a real switch. At least 1280 with IPv6.
    ///
    /// # Errors
    ///
    /// When there is no such node or the kernel does not take it.
    pub fn set_uplink_mtu(&self, node: &str, mtu: u32) -> Result<()> {
        let node = self.node(node)?;
        network::set_mtu(&node.netns, network::UPLINK, mtu)?;
        network::set_mtu(&self.plane().fabric, &node.name, mtu)
    }

    /// Changes how pods' packets get from node to node. Agents that run keep to what they were started
    /// with; those that are started from now on are told the new way.
    pub fn set_routing(&mut self, routing: Routing) {
        self.plan.routing = routing;
    }

    /// Gives a node's uplink one more address of the nodes' network. The Node object does not show
    /// it.
    ///
    /// # Errors
    ///
    /// When there is no such node, it has the address, or it is not of the nodes' network.
    pub fn add_address(&self, node: &str, address: IpAddr) -> Result<()> {
        let subnet = NODES.of(Family::of(address));
        if !subnet.contains(&address) {
            bail!("{address} is not in {subnet}");
        }
        let interface = ipnet::IpNet::new(address, subnet.prefix_len())?;
        network::add_address(&self.node(node)?.netns, network::UPLINK, interface)
    }

    /// Takes an address from a node. The Node object does not follow.
    ///
    /// # Errors
    ///
    /// When there is no such node, or it has no such address.
    pub fn remove_address(&self, node: &str, address: IpAddr) -> Result<()> {
        network::remove_address(&self.node(node)?.netns, address)
    }

    /// Moves a node to another address in place of the one of that family, as an operator does with
    /// a running machine: the new one is added, the old one removed, and then its Node object
    /// follows. Returns the old one. Host-network pods keep the status that they have.
    ///
    /// # Errors
    ///
    /// When there is no such node, or it has no address of the family.
    pub fn readdress(&self, node: &str, new: IpAddr) -> Result<IpAddr> {
        let family = Family::of(new);
        let addresses = &self.node(node)?.addresses;
        let old = addresses
            .of(family)
            .with_context(|| format!("{node} has no {} address", family.name()))?;
        self.add_address(node, new)?;
        self.remove_address(node, old)?;
        addresses.replace(old, new);
        self.report_node(node)?;
        Ok(old)
    }

    /// Adds a node: machine, Node object, kubelet, and an agent if the playground has agents, ready.
    /// Returns its name, which no node had before.
    ///
    /// # Errors
    ///
    /// When anything of it cannot be made.
    pub fn add_node(&mut self) -> Result<String> {
        let name = self.join_node()?;
        if self.plan.agents {
            self.start_agent(&name)?;
            self.wait_agent_ready(&name)?;
        }
        Ok(name)
    }

    /// Removes a node for good, as when its machine is taken away: everything on it dies at once,
    /// its Node object goes, and then its pods do, as the pod garbage collector removes them.
    ///
    /// # Errors
    ///
    /// When there is no such node, or something of it cannot be removed.
    pub fn remove_node(&mut self, name: &str) -> Result<()> {
        self.crash_node(name)?;
        let nodes: Api<NodeObject> = Api::all(self.client());
        let pods: Api<Pod> = Api::all(self.client());
        self.block_on(async {
            nodes.delete(name, &DeleteParams::default()).await?;
            let of_node = ListParams::default().fields(&format!("spec.nodeName={name}"));
            for pod in pods.list(&of_node).await? {
                let namespace = pod.namespace().unwrap_or_default();
                let api: Api<Pod> = Api::namespaced(self.client(), &namespace);
                let now = DeleteParams::default().grace_period(0);
                match api.delete(&pod.name_any(), &now).await {
                    Err(kube::Error::Api(status)) if status.code == 404 => {}
                    done => drop(done?),
                }
            }
            anyhow::Ok(())
        })
        .with_context(|| format!("removing the objects of {name}"))
    }

    /// Takes a node's machine away without telling the API: its Node object and pods stay.
    ///
    /// # Errors
    ///
    /// When there is no such node, or something of it cannot be removed.
    pub fn crash_node(&mut self, name: &str) -> Result<()> {
        let index = self.nodes.iter().position(|node| node.name == name);
        let mut node = self
            .nodes
            .remove(index.with_context(|| format!("no node {name}"))?);
        node.kubelet = None;
        cgroup::remove(&node.cgroup)?;
        if let Some(mut agent) = node.agent.take() {
            // Dead already; this buries it.
            let _ = agent.wait();
        }
        for port in [
            name.to_owned(),
            format!("{name}-{}", network::SECOND_UPLINK),
        ] {
            if network::has_interface(&self.plane().fabric, &port)? {
                network::unplug(&self.plane().fabric, &port)?;
            }
        }
        let pods = super::cleanup::netns_name(&self.id, &format!("{name}-"));
        for pod in netns::names()? {
            if pod.starts_with(&pods) {
                netns::delete(&pod)?;
            }
        }
        netns::delete(node.netns.name())?;
        umount2(&node.bpf_dir(), MntFlags::MNT_DETACH)
            .with_context(|| format!("unmounting {}", node.bpf_dir().display()))?;
        std::fs::remove_dir_all(&node.dir)
            .with_context(|| format!("removing {}", node.dir.display()))
    }
}
