//! Telling the server to misbehave, the way API servers do in bad hours.

use std::sync::Arc;

use tokio::sync::{broadcast, watch};

use super::registry::Registry;

/// What happens to running watches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interruption {
    /// The stream ends.
    Drop,
    /// The stream ends with `410 Gone`.
    Expire,
}

/// A handle on the server's faults. Clones share them.
#[derive(Debug, Clone)]
pub struct Faults {
    registry: Arc<Registry>,
    stalled: Arc<watch::Sender<bool>>,
    interruptions: broadcast::Sender<Interruption>,
}

impl Faults {
    pub(super) fn new(registry: Arc<Registry>) -> Self {
        let stalled = Arc::new(watch::Sender::new(false));
        Faults {
            registry,
            stalled,
            interruptions: broadcast::Sender::new(16),
        }
    }

    /// Ends every running watch. Clients can resume where they were.
    pub fn drop_watches(&self) {
        // Nobody may be watching.
        let _ = self.interruptions.send(Interruption::Drop);
    }

    /// Forgets all history and ends every running watch: a client that resumes at a version older
    /// than the newest one gets `410 Gone`, and so do continued lists.
    pub fn expire(&self) {
        self.registry.store().compact();
        let _ = self.interruptions.send(Interruption::Drop);
    }

    /// Ends every running watch with an `ERROR` event of `410 Gone`.
    pub fn expire_watches(&self) {
        let _ = self.interruptions.send(Interruption::Expire);
    }

    /// While stalled, connections are accepted and requests read, but nothing is answered and no
    /// event is sent. Nothing is lost.
    pub fn stall(&self, stalled: bool) {
        self.stalled.send_replace(stalled);
    }

    pub(super) fn is_stalled(&self) -> bool {
        *self.stalled.borrow()
    }

    pub(super) async fn unstalled(&self) {
        // The sender lives in this handle.
        let _ = self.stalled.subscribe().wait_for(|stalled| !stalled).await;
    }

    pub(super) fn interruptions(&self) -> broadcast::Receiver<Interruption> {
        self.interruptions.subscribe()
    }
}
