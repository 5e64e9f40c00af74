//! Failed applications: when to try again, and what to tell.

use std::time::Duration;

use tracing::{debug, error};

use crate::backoff::Backoff;

/// The failures since the last success.
#[derive(Debug)]
pub struct Failures {
    backoff: Backoff,
    last: Option<String>,
}

impl Failures {
    /// No failure yet.
    pub const fn new() -> Self {
        Self {
            backoff: Backoff::new(Duration::from_millis(50), Duration::from_secs(10)),
            last: None,
        }
    }

    /// All is well again.
    pub fn end(&mut self) {
        self.backoff.reset();
        self.last = None;
    }

    /// Tells of a failure, loudly if it is another one than the last; how long to wait before the
    /// next attempt.
    pub fn add(&mut self, text: &str) -> Duration {
        let pause = self.backoff.pause();
        if self.last.as_deref() == Some(text) {
            debug!(
                error = text,
                ?pause,
                "the kernel still does not follow the cluster"
            );
        } else {
            error!(
                error = text,
                "the kernel does not follow the cluster; trying again until it does"
            );
        }
        self.last = Some(text.to_owned());
        pause
    }
}
