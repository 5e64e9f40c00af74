//! Where the programs are attached: pods and the overlay, uplinks, and the sockets of the node.
//!
//! Invariants:
//! - The programs of an earlier agent stay attached until the maps hold a complete compilation: nothing
//!   here is called before.
//! - An uplink is told to the datapath when its programs are in place and the maps are complete, and
//!   loses its programs when the datapath does not know it any more.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use tracing::{info, warn};

use super::shared::Shared;
use crate::bpf::cgroup;
use crate::endpoints::Record;
use crate::netlink::overlay;

/// What is attached.
#[derive(Debug)]
pub struct Programs {
    shared: Arc<Shared>,
    /// Whether this agent's programs are on the pods and the overlay, and on which: its index, 0
    /// without one.
    swapped: Option<Option<u32>>,
    /// The uplinks with this agent's programs: names by index.
    uplinks: BTreeMap<u32, String>,
    sockets_attached: bool,
}

impl Programs {
    /// Nothing attached yet.
    pub const fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            swapped: None,
            uplinks: BTreeMap::new(),
            sockets_attached: false,
        }
    }

    /// Puts this agent's programs in the place of an earlier one's, and on the overlay, once.
    ///
    /// # Errors
    ///
    /// When the overlay takes none, or a pod does not; the other pods have theirs then. The next call
    /// tries again.
    pub fn swap(&mut self, records: &[Record]) -> Result<()> {
        let overlay = self.shared.node.borrow().as_ref().map(|node| node.overlay);
        if self.swapped == Some(overlay) {
            return Ok(());
        }
        // Another device has no programs yet.
        self.swapped = None;
        let mut attacher = self.shared.attacher();
        let mut interfaces = BTreeSet::from([overlay::DEVICE.to_owned()]);
        if overlay.is_some_and(|index| index != 0) {
            attacher.attach_overlay()?;
        }
        let mut failed = None;
        for record in records {
            interfaces.insert(record.interface.clone());
            // A pod that is just being removed has no interface any more; the others go on.
            if let Err(error) = attacher.attach_pod(&record.interface)
                && self.shared.endpoints.get(&record.interface).is_some()
            {
                failed = Some(error);
            }
        }
        // Endpoints that came since are attached by CNI ADD.
        interfaces.extend(
            self.shared
                .endpoints
                .all()
                .into_iter()
                .map(|record| record.interface),
        );
        attacher.sweep(&interfaces);
        if let Some(error) = failed {
            return Err(error.into());
        }
        self.swapped = Some(overlay);
        info!(
            pods = records.len(),
            mode = attacher.mode(),
            "the datapath is in place"
        );
        Ok(())
    }

    /// Puts this agent's programs on the uplinks, tells the datapath of them, and takes the programs
    /// off what is no uplink any more.
    ///
    /// # Errors
    ///
    /// When one of them cannot be attached, or the map takes no more; the others are done.
    pub fn set_uplinks(&mut self) -> Result<()> {
        let Some(network) = self.shared.node.borrow().clone() else {
            return Ok(());
        };
        let mut failure = None;
        let mut entries = BTreeMap::new();
        let known = self.shared.maps().uplinks.clone();
        for uplink in &network.uplinks {
            if self.uplinks.get(&uplink.index) != Some(&uplink.name) {
                match self.shared.attacher().attach_uplink(&uplink.name) {
                    Ok(()) => {
                        self.uplinks.insert(uplink.index, uplink.name.clone());
                    }
                    Err(error) => {
                        failure = Some(error);
                        // An earlier agent's programs may be there: what leads to them stays.
                        if !known.contains_key(&uplink.index) {
                            continue;
                        }
                    }
                }
            }
            entries.insert(uplink.index, uplink.entry());
        }
        self.shared
            .maps()
            .set_uplinks(&entries, network.ways)
            .context("cannot tell the datapath of the uplinks")?;

        self.uplinks.retain(|index, _| entries.contains_key(index));
        let names: BTreeSet<&str> = network.uplinks.iter().map(|u| u.name.as_str()).collect();
        let gone = known.keys().filter(|index| !entries.contains_key(index));
        let gone = gone.filter_map(|index| nix::net::if_::if_indextoname(*index).ok());
        let gone = gone.map(|name| name.to_string_lossy().into_owned());
        let mut attacher = self.shared.attacher();
        let mut stale = attacher.pinned_uplinks();
        stale.extend(gone);
        for name in stale.iter().filter(|name| !names.contains(name.as_str())) {
            match attacher.detach_uplink(name) {
                Ok(()) => info!(interface = name, "an interface is no uplink any more"),
                Err(error) => failure = Some(error),
            }
        }
        failure.map_or(Ok(()), |error| Err(error.into()))
    }

    /// Attaches the socket programs, once.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn attach_sockets(&mut self) -> Result<()> {
        if self.sockets_attached {
            return Ok(());
        }
        let mut attacher = self.shared.attacher();
        if !attacher.loaded().has_socket_programs() {
            self.sockets_attached = true;
            return Ok(());
        }
        let root = match &self.shared.config.cgroup_root {
            Some(root) => Some(root.clone()),
            None => cgroup::find_root().context("cannot look for the cgroup2 file system")?,
        };
        match root {
            Some(root) if cgroup::is_cgroup2(&root) => attacher.attach_sockets(&root)?,
            root => warn!(
                cgroup = ?root,
                "no cgroup2 file system there: processes of the node itself reach no host ports on \
                 their own addresses. Mount one, and give --cgroup-root"
            ),
        }
        self.sockets_attached = true;
        Ok(())
    }
}
