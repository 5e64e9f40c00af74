//! Why an address could not be had, in the operator's words.

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use thiserror::Error;

use super::Owner;

/// Why an address could not be given or taken back.
#[derive(Debug, Error)]
pub enum IpamError {
    /// The node has no pod network yet.
    #[error("the node has no pod network: its Node object has no spec.podCIDRs yet")]
    NoPool,
    /// Every address is taken.
    #[error("no free address: all {size} of {pool} are in use")]
    Exhausted {
        /// The pod network.
        pool: IpNet,
        /// How many addresses it has.
        size: u128,
    },
    /// An address was asked for that no pod of this node can have.
    #[error(
        "{address} was asked for, which is no pod address of this node; its pod networks: {pools}",
        pools = pools.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    )]
    NotOurs {
        /// The address.
        address: IpAddr,
        /// The pod networks.
        pools: Vec<IpNet>,
    },
    /// Two addresses of one family were asked for.
    #[error("{0} was asked for beside another address of its family; a pod has one of each")]
    Second(IpAddr),
    /// The address that was asked for is somebody else's.
    #[error("{address} was asked for, and {owner} has it")]
    Taken {
        /// The address.
        address: IpAddr,
        /// Who has it.
        owner: Owner,
    },
    /// The state on disk could not be read or written.
    #[error("{what} {path}: {error}", path = path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        error: io::Error,
    },
}
