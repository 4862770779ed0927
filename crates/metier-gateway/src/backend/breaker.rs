//! A circuit breaker: a backend that fails again and again is left alone for a while, so that its clients fall back at once
//! instead of waiting for its time-outs. Time is an argument.
//!
//! ```text
//! closed ──5 failures in a row──▶ open ──10 s──▶ half open ──one success──▶ closed
//!                                  ▲                 └──failure──┘
//! ```

use std::time::Duration;

use tokio::time::Instant;

/// Failures in a row after which it opens.
pub(crate) const MAX_FAILURES: u32 = 5;
/// How long it stays open.
pub(crate) const OPEN: Duration = Duration::from_secs(10);

/// State of one backend.
#[derive(Debug, Default)]
pub(crate) struct Breaker {
    failures: u32,
    open_until: Option<Instant>,
}

impl Breaker {
    /// Whether a call may go out now; else how long to wait. After the pause one call is let through, and the pause begins anew
    /// until it has succeeded.
    pub(crate) fn admit(&mut self, now: Instant) -> Result<(), Duration> {
        match self.open_until {
            Some(until) if now < until => Err(until - now),
            Some(_) => {
                self.open_until = Some(now + OPEN);
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// A call succeeded, or failed for a reason that is not the backend's.
    pub(crate) fn succeeded(&mut self) {
        *self = Self::default();
    }

    /// A call failed.
    pub(crate) fn failed(&mut self, now: Instant) {
        self.failures = self.failures.saturating_add(1);
        if self.failures >= MAX_FAILURES {
            self.open_until = Some(now + OPEN);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opens_and_closes() {
        let (mut breaker, start) = (Breaker::default(), Instant::now());
        for _ in 1..MAX_FAILURES {
            breaker.failed(start);
            assert_eq!(breaker.admit(start), Ok(()));
        }
        breaker.failed(start);
        assert_eq!(breaker.admit(start), Err(OPEN));
        let later = start + OPEN;
        assert_eq!(breaker.admit(later), Ok(()), "one probe");
        assert_eq!(breaker.admit(later), Err(OPEN), "and only one");
        breaker.failed(later);
        assert_eq!(breaker.admit(later + OPEN), Ok(()));
        breaker.succeeded();
        assert_eq!(breaker.admit(later), Ok(()));
        breaker.failed(later);
        assert_eq!(breaker.admit(later), Ok(()), "a success forgets what was before");
    }
}
