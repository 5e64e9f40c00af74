//! What load balancers and operators ask a node: whether its proxy follows the cluster, and which
//! services have endpoints here.
//!
//! ```text
//!   reconcile loop --queued, applied, node--> [ProxyHealth] <--asks-- /healthz, /livez
//!                                                  ^
//!                  --[HealthChecks] (watch)--> [checks]: a listener per healthCheckNodePort
//!                                                  `--cannot listen--> [events]: Event on the service
//! ```
//!
//! Paths, fields, headers and codes are those of kube-proxy: cloud load balancers, the cluster
//! autoscaler and the conformance tests read them.
//!
//! Invariants:
//! - Nothing here changes a packet's way, and nothing waits for it: an answer is made of what is in
//!   memory, and a port that is another's is tried again while the rest goes on.
//! - What is not wanted any more has no socket when the next set is applied.

pub mod checks;
mod clock;
pub mod events;
mod flags;
pub mod http;
mod local;
mod probes;
mod progress;
mod state;

use std::fmt;
use std::net::IpAddr;

pub use self::checks::{Addresses, HealthChecks, ServiceHealth};
pub use self::clock::{Clock, Moment, SystemClock};
pub use self::flags::{BindAddresses, ServerArgs};
pub use self::local::LocalServices;
pub use self::probes::probes;
pub use self::progress::{Counts, Progress};
pub use self::state::{Health, Observation, ProxyHealth, TIMEOUT};

/// An IP family: kube-proxy is one proxy for each, and tells of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address.
    pub const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// The name that Kubernetes has for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
