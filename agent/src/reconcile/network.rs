//! The node's network: addresses, routes and the overlay device, by what the API says of the nodes.
//!
//! Invariants:
//! - What an earlier agent knew of the node holds until the API says otherwise, also when it has no
//!   Node object any more: pods go on.
//! - The overlay device is not used before it has programs.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use tracing::warn;
use weft_core::model::Routing;

use super::shared::Shared;
use crate::node::{NodeFacts, NodeNetwork, NodeSetup, View, Wanted};

/// The node's network.
#[derive(Debug)]
pub struct Network {
    shared: Arc<Shared>,
    setup: NodeSetup,
    /// What is known of the node, by the API or from an earlier time.
    facts: Option<NodeFacts>,
    /// Whether no overlay of an earlier time is left, in native routing.
    overlay_gone: bool,
}

impl Network {
    /// Nothing known yet.
    pub const fn new(shared: Arc<Shared>, setup: NodeSetup) -> Self {
        Self {
            shared,
            setup,
            facts: None,
            overlay_gone: false,
        }
    }

    /// What makes the network.
    pub const fn setup(&self) -> &NodeSetup {
        &self.setup
    }

    /// Makes the network by what an earlier agent knew, if there was one.
    pub async fn restore(&mut self) {
        let Some(remembered) = self.setup.remembered() else {
            return;
        };
        self.facts = Some(remembered.facts.clone());
        let previous = self.shared.maps().uplinks.clone();
        let mut attach = self.overlay_programs();
        match self.setup.restore(remembered, &previous, &mut attach).await {
            Ok(network) => self.set(network),
            Err(error) => warn!(
                error = format!("{error:#}"),
                "cannot restore the node's network"
            ),
        }
    }

    /// Makes the node's network follow the cluster; `view` is what the kernel showed.
    ///
    /// # Errors
    ///
    /// When the API does not know the node, or the kernel refuses; what could be done is done.
    pub async fn follow(&mut self, view: &View) -> Result<()> {
        let own_addresses = view.node.own_addresses();
        let config = &self.shared.config;
        let given = config.node_addresses.as_slice();
        let wanted = self.shared.cluster.update(|state| {
            state.own_addresses = own_addresses;
            let wanted = Wanted::of(state, given);
            if wanted.is_some() || self.facts.is_none() {
                return wanted;
            }
            // A Node object that was deleted, or lost its address, under running pods: they go on
            // with what was known of the node.
            let node = self.facts.as_ref()?.as_node(&state.node_name);
            state.nodes.insert(node.name.clone(), node);
            warn!(
                node = state.node_name,
                "the API's Node object is gone or has no InternalIP; \
                the last known address and pod networks stay"
            );
            Wanted::of(state, given)
        });
        let Some(wanted) = wanted else {
            anyhow::bail!(
                "the API has no Node {} with an InternalIP: check --node-name, or wait for the \
                 kubelet to register the node",
                self.shared.config.node_name
            );
        };
        let previous = self.shared.maps().uplinks.clone();
        let mut attach = self.overlay_programs();
        let outcome = self
            .setup
            .apply(
                &wanted,
                view,
                &previous,
                &self.shared.endpoints,
                &mut attach,
            )
            .await
            .context("cannot set up the node's network")?;
        if let Some(network) = outcome.network {
            self.set(network);
        }
        outcome.failure.map_or(Ok(()), Err)
    }

    /// Removes the overlay of an earlier time, which nothing uses any more in native routing.
    ///
    /// # Errors
    ///
    /// When the kernel refuses; the next call tries again.
    pub async fn leave_overlay(&mut self) -> Result<()> {
        let routing = self.shared.node.borrow().as_ref().map(|node| node.routing);
        if self.overlay_gone || routing != Some(Routing::Native) {
            return Ok(());
        }
        let removed = self.setup.remove_overlay().await;
        removed.context("cannot remove the overlay device")?;
        self.shared.attacher().forget_overlay();
        self.overlay_gone = true;
        Ok(())
    }

    /// What attaches the datapath to the overlay.
    fn overlay_programs(&self) -> impl FnMut() -> Result<()> + Send + use<> {
        let shared = Arc::clone(&self.shared);
        move || {
            Ok(tokio::task::block_in_place(|| {
                shared.attacher().attach_overlay()
            })?)
        }
    }

    fn set(&mut self, network: NodeNetwork) {
        self.facts = Some(network.facts.clone());
        self.shared.ipam().set_pools(&network.facts.pod_cidrs);
        self.shared.node.send_replace(Some(network));
    }
}
