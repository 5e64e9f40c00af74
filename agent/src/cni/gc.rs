//! GC: what the runtime no longer knows goes.
//!
//! - Only a list that is there counts. Without one, nothing is touched: a runtime that does not say
//!   which attachments are valid has not said that none is.
//! - Attachments of other networks are left alone. What belongs to no attachment at all (addresses
//!   and interfaces of ADDs that a crash ended) has no network, and goes unless it is of a valid one.
//! - What is being added at any moment of the collection, or was just before, is left alone: the list
//!   may be older than it ([`super::adding`]).
//! - One failure does not keep the others; all are reported.

use std::collections::BTreeSet;

use tracing::{info, warn};
use weft_cni::error::{CniError, code};
use weft_cni::protocol::{Command, Request, Response};
use weft_cni::queue::Queue;

use super::adding::Collecting;
use super::attachments::{Attachments, blocking, interface_of, owner};
use crate::ipam::Owner;
use crate::netlink::{Netlink, veth};

impl Attachments {
    /// GC.
    ///
    /// # Errors
    ///
    /// A CNI error with everything that could not be removed.
    pub async fn gc(&self, request: &Request) -> Response {
        let Some(valid) = &request.config.valid_attachments else {
            info!("GC without a list of valid attachments: nothing to do");
            return Ok(None);
        };
        let _one_at_a_time = self.collection.lock().await;
        let collecting = self.adding.collect();
        let valid: BTreeSet<Owner> = valid
            .iter()
            .map(|attachment| Owner {
                container_id: attachment.container_id.clone(),
                ifname: attachment.ifname.clone(),
            })
            .collect();

        let mut errors = Vec::new();
        for owner in self.collectable(&request.config.name, &valid) {
            if let Err(error) = self.collect(&collecting, &owner).await {
                errors.push(format!("{owner}: {error}"));
            }
        }
        self.collect_queue(&collecting, &request.config.name, &valid, &mut errors)
            .await;
        self.collect_strays(&collecting, &valid, &mut errors).await;
        if errors.is_empty() {
            return Ok(None);
        }
        let error = CniError::new(code::IO, "GC could not remove everything");
        Err(error.with_details(errors.join("; ")))
    }

    /// The attachments of this network, and addresses of none, that are not valid.
    fn collectable(&self, network: &str, valid: &BTreeSet<Owner>) -> BTreeSet<Owner> {
        let records = self.shared.endpoints.all();
        let recorded: BTreeSet<&Owner> = records.iter().map(|record| &record.owner).collect();
        let of_network = records.iter().filter(|record| record.network == network);
        let ipam = self.shared.ipam();
        // An unreadable allocation has an empty owner: nobody can say that it is not in use.
        let orphans = ipam
            .allocations()
            .values()
            .filter(|owner| !recorded.contains(owner) && !owner.container_id.is_empty());
        of_network
            .map(|record| &record.owner)
            .chain(orphans)
            .filter(|owner| !valid.contains(owner))
            .cloned()
            .collect()
    }

    async fn collect(&self, collecting: &Collecting<'_>, owner: &Owner) -> Result<(), CniError> {
        let _one_at_a_time = self.locks.lock(&owner.container_id).await;
        // An ADD that begins from here on waits for the lock, and finds a clean place.
        if collecting.is_protected(owner) {
            info!(%owner, "GC: leaving an attachment alone that the list may be too old for");
            return Ok(());
        }
        info!(%owner, "GC: removing an attachment that the runtime does not know");
        self.clean_up(owner, &interface_of(owner)).await
    }

    /// DELs that still wait, because they failed when the agent started.
    async fn collect_queue(
        &self,
        collecting: &Collecting<'_>,
        network: &str,
        valid: &BTreeSet<Owner>,
        errors: &mut Vec<String>,
    ) {
        let queue = Queue::new(self.shared.config.cni_queue());
        let listing = queue.clone();
        let entries = match blocking(move || listing.entries()).await {
            Ok(Ok(entries)) => entries,
            Ok(Err(error)) => return errors.push(error.to_string()),
            Err(error) => return errors.push(error.to_string()),
        };
        for entry in entries {
            let Ok(request) = &entry.request else {
                continue;
            };
            let owner = owner(request);
            let waits = request.command == Command::Del && request.config.name == network;
            if !waits || valid.contains(&owner) {
                continue;
            }
            let result = self.collect(collecting, &owner).await;
            let removed = result
                .map_err(|error| error.to_string())
                .and_then(|()| queue.remove(&entry.path).map_err(|error| error.to_string()));
            if let Err(error) = removed {
                errors.push(format!("{owner}: {error}"));
            }
        }
    }

    /// Interfaces that only Weft makes, and no record knows.
    async fn collect_strays(
        &self,
        collecting: &Collecting<'_>,
        valid: &BTreeSet<Owner>,
        errors: &mut Vec<String>,
    ) {
        // A socket answers one listing at a time; that of attachments is everybody's.
        let links = match Netlink::host() {
            Ok(netlink) => netlink.links().await,
            Err(error) => Err(error),
        };
        let links = match links {
            Ok(links) => links,
            Err(error) => return errors.push(error.to_string()),
        };
        let records = self.shared.endpoints.all();
        let mut known: BTreeSet<String> =
            records.into_iter().map(|record| record.interface).collect();
        known.extend(valid.iter().map(interface_of));
        // After the listing: an interface that is listed was made by an ADD that had begun.
        known.extend(collecting.protected().iter().map(interface_of));
        for link in links {
            if !veth::is_host_end(&link) || known.contains(&link.name) {
                continue;
            }
            info!(
                interface = link.name,
                "GC: removing an interface that belongs to no pod"
            );
            if let Err(error) = self.netlink.delete_link(&link).await {
                warn!(interface = link.name, %error, "GC: an interface stays");
                errors.push(error.to_string());
            }
            let (shared, name) = (self.shared.clone(), link.name);
            if let Err(error) = blocking(move || shared.attacher().forget(&name)).await {
                errors.push(error.to_string());
            }
        }
    }
}
