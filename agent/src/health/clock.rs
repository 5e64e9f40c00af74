//! The time, so that tests have their own.

use std::fmt::Debug;
use std::time::{Instant, SystemTime};

/// A moment, by both clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// The time of day, which is told and may be set.
    pub wall: SystemTime,
    /// What durations are measured with.
    pub steady: Instant,
}

/// What knows the time.
pub trait Clock: Debug + Send + Sync {
    /// Now.
    fn now(&self) -> Moment;
}

/// The system's clocks.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Moment {
        Moment {
            wall: SystemTime::now(),
            steady: Instant::now(),
        }
    }
}

#[cfg(test)]
pub mod tests {
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use super::*;

    /// A clock that goes when it is told to.
    #[derive(Debug)]
    pub struct ManualClock(Mutex<Moment>);

    impl ManualClock {
        /// 2030-01-01.
        pub fn new() -> Arc<Self> {
            Arc::new(Self(Mutex::new(Moment {
                wall: SystemTime::UNIX_EPOCH + Duration::from_secs(1_893_456_000),
                steady: Instant::now(),
            })))
        }

        pub fn advance(&self, by: Duration) {
            let mut now = self.0.lock().expect("no panic");
            now.wall += by;
            now.steady += by;
        }
    }

    impl Clock for ManualClock {
        fn now(&self) -> Moment {
            *self.0.lock().expect("no panic")
        }
    }
}
