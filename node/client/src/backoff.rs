//! How long to wait before the next try. Owns nothing but the number of failed tries.

use std::time::Duration;

use rand::Rng;

/// The longest first wait after a failure.
pub(crate) const BACKOFF_FIRST: Duration = Duration::from_millis(100);
/// The longest wait between two tries.
pub(crate) const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// Exponential backoff with jitter: the n-th wait is between half of and the whole
/// `min(BACKOFF_FIRST * 2^n, BACKOFF_MAX)`, so that clients that lost the same node do
/// not come back in step.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The wait after one more failure.
    pub(crate) fn next_wait(&mut self) -> Duration {
        let whole = BACKOFF_FIRST
            .saturating_mul(1 << self.failures.min(16))
            .min(BACKOFF_MAX);
        self.failures = self.failures.saturating_add(1);
        whole.mul_f64(rand::rng().random_range(0.5..=1.0))
    }

    /// Forgets the failures, after a success.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_maximum_and_start_again() {
        let mut backoff = Backoff::default();
        let mut whole = BACKOFF_FIRST;
        for _ in 0..100 {
            let wait = backoff.next_wait();
            assert!(wait >= whole / 2 && wait <= whole, "{wait:?} of {whole:?}");
            whole = (whole * 2).min(BACKOFF_MAX);
        }
        backoff.reset();
        assert!(backoff.next_wait() <= BACKOFF_FIRST);
    }
}
