//! Changes between memory and disk: taken in memory and not yet on disk, or free on disk and not yet
//! in memory. Their disk's half needs no lock.

use std::net::IpAddr;

use super::store::Store;
use super::{IpamError, Owner};

/// Addresses that are to be an owner's: taken in memory, not yet on disk.
#[derive(Debug)]
#[must_use = "an address whose allocation is not on disk must not be given out"]
pub struct Reservation {
    pub(super) store: Store,
    pub(super) owner: Owner,
    pub(super) addresses: Vec<IpAddr>,
    /// Those of the addresses that the owner did not have before.
    pub(super) fresh: Vec<IpAddr>,
}

impl Reservation {
    /// The owner's addresses, one of each pod network.
    pub fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    /// Writes the allocations down.
    ///
    /// # Errors
    ///
    /// When the disk fails; then none is on disk, as far as the disk lets, and the caller abandons
    /// the reservation.
    pub fn store(&self) -> Result<(), IpamError> {
        self.store.allocate(&self.fresh, &self.owner)
    }
}

/// Addresses that are to be free: free on disk first, then in memory.
#[derive(Debug)]
#[must_use = "the addresses are taken until they are noted as free"]
pub struct Release {
    pub(super) store: Store,
    pub(super) addresses: Vec<IpAddr>,
}

impl Release {
    /// The addresses.
    pub fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    /// Notes on disk that the addresses are free.
    ///
    /// # Errors
    ///
    /// When the disk fails; what is noted already may be noted again.
    pub fn store(&self) -> Result<(), IpamError> {
        self.store.free(&self.addresses)
    }
}
