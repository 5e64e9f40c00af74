//! Sockets of the node's own processes that are connected to a backend which serves no more.
//!
//! As kube-proxy has it, only UDP sockets are ended: of a TCP connection both ends know when it is over,
//! and a backend that leaves may finish what it has begun.

use tracing::{debug, warn};
use weft_core::contents::ServiceContents;
use weft_core::diff::{Batch, Changes, FamilyBatch, Step, Writes};

use crate::bpf::tables::Tables;
use crate::netlink::diag::{self, Connected, DiagError};

/// Who ends them.
#[derive(Debug, Default)]
pub struct Deserted {
    /// Whether no backend went since the sockets were last looked at. An agent that ended in between
    /// has left some.
    looked: bool,
    /// Whether the kernel cannot end sockets; that is told once.
    unsupported: bool,
}

impl Deserted {
    /// Ends the sockets of backends that went with these changes, which were made; the mirror is what
    /// the maps hold now.
    pub fn end(&mut self, changes: &Changes, tables: &Tables, mirror: &ServiceContents) {
        self.looked &= !changes.steps.iter().any(takes_backends);
        if self.looked || self.unsupported {
            return;
        }
        let deserted = match tables.deserted_sockets(mirror) {
            Ok(deserted) => deserted,
            Err(error) => {
                warn!(%error, "cannot see which sockets have lost their backend");
                return;
            }
        };
        let udp = deserted
            .iter()
            .filter(|socket| i32::from(socket.protocol) == libc::IPPROTO_UDP);
        let udp = udp.map(|socket| Connected {
            cookie: socket.cookie,
            to: socket.backend,
        });
        match diag::end_udp(&udp.collect()) {
            Ok(0) => self.looked = true,
            Ok(ended) => {
                debug!(
                    ended,
                    "UDP sockets were connected to backends that are gone"
                );
                self.looked = true;
            }
            Err(error @ DiagError::Unsupported) => {
                warn!("{error}");
                self.unsupported = true;
            }
            Err(error) => warn!(%error, "UDP sockets stay connected to backends that are gone"),
        }
    }
}

fn takes_backends(step: &Step) -> bool {
    matches!(
        step,
        Step::Write(
            Batch::V4(FamilyBatch::Backends(Writes::Delete(_)))
                | Batch::V6(FamilyBatch::Backends(Writes::Delete(_)))
        )
    )
}
