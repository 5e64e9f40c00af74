//! Waiting for what should happen, without guessing how long it takes.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How long to wait for what should happen, unless the test says otherwise: generous, because it only
/// ever passes in full before a failure.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// An error that waiting does not help against.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Fatal(pub String);

/// Tries until it works, and returns what came out; the last error when it does not in time. A
/// [`Fatal`] error ends it at once.
///
/// # Errors
///
/// The last error of the attempts.
pub fn wait<T>(
    description: &str,
    timeout: Duration,
    mut attempt: impl FnMut() -> Result<T>,
) -> Result<T> {
    let deadline = Instant::now() + timeout;
    let mut pause = Duration::from_millis(5);
    loop {
        let error = match attempt() {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        if error.is::<Fatal>() || Instant::now() >= deadline {
            return Err(error.context(format!("waited {timeout:?} until {description}")));
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(100));
    }
}

/// Asks until it is so, with the usual [`PATIENCE`].
///
/// # Errors
///
/// When it takes too long, or with a [`Fatal`] error at once.
pub fn until(description: &str, mut is_so: impl FnMut() -> Result<bool>) -> Result<()> {
    wait(description, PATIENCE, || {
        if is_so()? {
            return Ok(());
        }
        bail!("it is not so")
    })
}
