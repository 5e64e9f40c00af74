//! Ctrl-C and SIGTERM: what runs in the playground is ended, so that every step of the story returns
//! at once, and the playground is then removed the ordinary way.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;

use anyhow::{Context as _, Result};
use tokio::signal::unix::{SignalKind, signal};

use crate::playground::{Fatal, cgroup, cleanup};

/// Whether the user has had enough.
#[derive(Clone, Debug, Default)]
pub struct Interrupt(Arc<(Mutex<bool>, Condvar)>);

impl Interrupt {
    /// Catches the signals from here on, and calls the function once when the first comes.
    ///
    /// # Errors
    ///
    /// When the handlers cannot be installed.
    pub fn catch(then: impl FnOnce() + Send + 'static) -> Result<Self> {
        let interrupt = Interrupt::default();
        let flag = interrupt.clone();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let mut signals = {
            let _context = runtime.enter();
            (
                signal(SignalKind::interrupt())?,
                signal(SignalKind::terminate())?,
            )
        };
        let wait = move || {
            runtime.block_on(async {
                tokio::select! {
                    _ = signals.0.recv() => {}
                    _ = signals.1.recv() => {}
                }
            });
            flag.set();
            then();
            // Later signals change nothing: the removal goes on.
            runtime.block_on(std::future::pending::<()>());
        };
        thread::Builder::new()
            .name("signals".to_owned())
            .spawn(wait)
            .context("starting the thread that waits for signals")?;
        Ok(interrupt)
    }

    /// Like [`Interrupt::catch`], ending everything that runs in a playground.
    ///
    /// # Errors
    ///
    /// When the handlers cannot be installed.
    pub fn of_playground(id: &str) -> Result<Self> {
        let id = id.to_owned();
        Self::catch(move || {
            // The removal that follows tells of what remains.
            let _ = cleanup::cgroup_dir(&id).and_then(|dir| cgroup::remove(&dir));
        })
    }

    /// Whether a signal came.
    pub fn came(&self) -> bool {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a signal.
    pub fn wait(&self) {
        let mut came = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        while !*came {
            came = self.0.1.wait(came).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn set(&self) {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.0.1.notify_all();
    }

    /// An error that ends all waiting, if a signal came.
    ///
    /// # Errors
    ///
    /// When a signal came.
    pub fn check(&self) -> Result<()> {
        if self.came() {
            Err(Fatal("interrupted".to_owned()).into())
        } else {
            Ok(())
        }
    }
}
