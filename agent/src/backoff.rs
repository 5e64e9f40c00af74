//! Growing pauses between attempts.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::time::Duration;

/// Pauses that double from a first one up to a longest one, until [`Self::reset`].
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    next: Duration,
}

impl Backoff {
    /// Begins with `first`, never pauses for more than `longest`.
    pub const fn new(first: Duration, longest: Duration) -> Self {
        Self {
            first,
            longest,
            next: first,
        }
    }

    /// The next pause.
    pub fn pause(&mut self) -> Duration {
        let pause = self.next;
        self.next = (pause * 2).min(self.longest);
        pause
    }

    /// Begins again: the last attempt succeeded.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}

/// For watches, with jitter: an API server that comes back is not to be met by every node at once.
impl Iterator for Backoff {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let pause = self.pause();
        // A new state of the standard library's hasher is random.
        let random = RandomState::new().build_hasher().finish() as u32;
        Some(pause / 2 + (pause / 2).mul_f64(f64::from(random) / f64::from(u32::MAX)))
    }
}

impl kube::runtime::utils::Backoff for Backoff {
    fn reset(&mut self) {
        Backoff::reset(self);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_the_longest_and_begin_again() {
        let seconds = Duration::from_secs;
        let mut backoff = Backoff::new(seconds(1), seconds(3));
        assert_eq!([(); 4].map(|()| backoff.pause()), [1, 2, 3, 3].map(seconds));
        backoff.reset();
        assert_eq!(backoff.pause(), seconds(1));
    }

    #[test]
    fn jitter_only_shortens() {
        let longest = Duration::from_secs(4);
        for pause in Backoff::new(longest, longest).take(100) {
            assert!((longest / 2..=longest).contains(&pause), "{pause:?}");
        }
    }
}
