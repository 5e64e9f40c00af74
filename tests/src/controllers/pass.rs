//! How a controller runs: one pass over everything whenever something changed, and again, after a
//! pause that grows, when something failed.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::cluster::Cluster;

/// The pause after the first failure, and the longest one.
const PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(5));

/// One concern of the control plane.
pub trait Controller: Send + Sync + 'static {
    /// Its name in logs.
    const NAME: &'static str;

    /// Brings the cluster closer to what it should be.
    ///
    /// An error makes another pass come even if nothing changes; what one object causes must not
    /// keep the others from being looked at.
    fn pass(&self, cluster: &Cluster) -> impl Future<Output = Result<()>> + Send;
}

/// Runs a controller for ever.
pub async fn run<C: Controller>(cluster: Arc<Cluster>, controller: C) {
    let mut changes = cluster.changes();
    cluster.listed().await;
    let mut pause = PAUSES.0;
    loop {
        changes.borrow_and_update();
        match controller.pass(&cluster).await {
            Ok(()) => {
                pause = PAUSES.0;
                if changes.changed().await.is_err() {
                    return;
                }
            }
            Err(error) => {
                if is_stale(&error) {
                    tracing::debug!(controller = C::NAME, "will try again: {error:#}");
                } else {
                    tracing::warn!(controller = C::NAME, "will try again: {error:#}");
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSES.1);
            }
        }
    }
}

/// Collects what went wrong in a pass, so that one object does not hold up the others.
#[derive(Debug, Default)]
pub struct Outcome {
    failure: Option<anyhow::Error>,
}

impl Outcome {
    /// Notes the result of a write on `object`, and passes on what succeeded.
    pub fn note<T>(
        &mut self,
        result: Result<T, impl Into<anyhow::Error>>,
        object: impl FnOnce() -> String,
    ) -> Option<T> {
        match result.map_err(Into::into).with_context(object) {
            Ok(value) => Some(value),
            Err(error) => {
                // What is not just a matter of trying again is what a person should hear of.
                if self.failure.as_ref().is_none_or(is_stale) {
                    self.failure = Some(error);
                }
                None
            }
        }
    }

    /// The pass's result.
    ///
    /// # Errors
    ///
    /// One of those that were noted.
    pub fn finish(self) -> Result<()> {
        self.failure.map_or(Ok(()), Err)
    }
}

/// Whether the API refused only because the caller's knowledge was old.
fn is_stale(error: &anyhow::Error) -> bool {
    let cause = error
        .chain()
        .find_map(|cause| cause.downcast_ref::<kube::Error>());
    matches!(cause, Some(kube::Error::Api(status)) if [404, 409].contains(&status.code))
}

/// Takes "it is not there" for done, as a deletion does.
///
/// # Errors
///
/// Any other error.
pub fn ignore_absent<T>(result: kube::Result<T>) -> kube::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    #[test]
    fn a_pass_fails_with_what_a_person_should_hear_of() {
        let stale =
            || kube::Error::Api(Box::new(kube::core::Status::failure("", "").with_code(409)));
        let mut outcome = Outcome::default();
        assert_eq!(outcome.note(Ok::<_, kube::Error>(1), String::new), Some(1));
        assert!(
            outcome
                .note(Err::<(), _>(stale()), || "a".to_owned())
                .is_none()
        );
        assert!(
            outcome
                .note(Err::<(), _>(anyhow!("no")), || "b".to_owned())
                .is_none()
        );
        assert!(
            outcome
                .note(Err::<(), _>(stale()), || "c".to_owned())
                .is_none()
        );
        assert_eq!(format!("{:#}", outcome.finish().unwrap_err()), "b: no");
    }

    #[test]
    fn a_pass_without_failures_is_done() {
        assert!(Outcome::default().finish().is_ok());
    }
}
