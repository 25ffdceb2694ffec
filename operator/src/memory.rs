//! What is remembered of an ImCluster between two passes over it, to save requests.
//!
//! Owner of nothing: all of it may be lost, and is then read or applied once more.

use std::ops::Range;
use std::time::{Duration, Instant};

use carillon_crds::imcluster::CertificateStatus;
use rand::Rng as _;

use crate::certify::Rotating;
use crate::cluster::Credentials;

/// What was applied is applied again after this, a moment of its own for each ImCluster: what
/// others change of most of it is seen at once, and certificates have a month left when they are
/// due.
const APPLY_AGAIN_AFTER: Range<Duration> =
    Duration::from_secs(5 * 3_600)..Duration::from_secs(7 * 3_600);
/// What others change without a word is looked at again after this: a Secret with an authority of
/// theirs, and the token that members join with, which the cluster's own operators exchange.
const LOOK_AGAIN_AFTER: Duration = Duration::from_secs(300);
/// When others changed or deleted one of them, all are applied again, at most this often: two that do not agree must
/// not keep the API server busy.
const RESTORE_AGAIN_AFTER: Duration = Duration::from_secs(5);

/// What was applied, and until when it counts.
struct Applied {
    hash: String,
    when: Instant,
    again_after: Duration,
}

/// See the file's head.
#[derive(Default)]
pub(crate) struct Memory {
    applied: Option<Applied>,
    /// When what others change without a word was looked at.
    pub looked: Option<Instant>,
    /// The token that is in the Secret which members join with.
    pub join_token: Option<String>,
    /// Others changed or deleted something since it was applied.
    pub disturbed: bool,
    /// The uid of an ImCluster whose namespace is being deleted.
    pub namespace_ends: Option<String>,
    pub credentials: Option<Credentials>,
    pub certificates: Option<CertificateStatus>,
    pub rotating: Option<Rotating>,
}

impl Memory {
    /// Whether what is applied may be left as it is.
    pub fn is_current(&self, hash: &str) -> bool {
        self.applied.as_ref().is_some_and(|applied| {
            let after = match self.disturbed {
                true => RESTORE_AGAIN_AFTER,
                false => applied.again_after,
            };
            applied.hash == hash && applied.when.elapsed() < after
        })
    }

    /// Whether what others change without a word was looked at lately.
    pub fn looked_lately(&self) -> bool {
        let looked = self.looked;
        looked.is_some_and(|when| when.elapsed() < LOOK_AGAIN_AFTER)
    }

    /// All is as the spec with this hash wants it.
    pub fn applied(&mut self, hash: String) {
        self.applied = Some(Applied {
            hash,
            when: Instant::now(),
            again_after: rand::rng().random_range(APPLY_AGAIN_AFTER),
        });
        self.disturbed = false;
    }

    /// When to look again, if it would be after `after` otherwise.
    pub fn again_after(&self, after: Duration) -> Duration {
        let mut after = after;
        if let Some(applied) = self.applied.as_ref().filter(|_| self.disturbed) {
            after = after.min(RESTORE_AGAIN_AFTER.saturating_sub(applied.when.elapsed()));
        }
        if let Some(rotating) = &self.rotating {
            let left = rotating.again_at.saturating_duration_since(Instant::now());
            after = after.min(left);
        }
        after
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_applied_counts_for_hours_unless_others_change_it() {
        let mut memory = Memory::default();
        assert!(!memory.is_current("one"));
        memory.applied("one".to_owned());
        assert!(memory.is_current("one"));
        assert!(!memory.is_current("another"));
        let minute = Duration::from_secs(60);
        assert_eq!(memory.again_after(minute), minute);
        let back = |memory: &mut Memory, by: Duration| {
            if let Some(applied) = &mut memory.applied {
                applied.when -= by;
            }
        };
        back(&mut memory, Duration::from_secs(3_600));
        assert!(memory.is_current("one"));
        memory.disturbed = true;
        assert!(!memory.is_current("one"));
        memory.applied("one".to_owned());
        assert!(!memory.disturbed);
        back(&mut memory, APPLY_AGAIN_AFTER.end);
        assert!(!memory.is_current("one"));
    }

    #[test]
    fn what_others_change_without_a_word_is_looked_at_every_few_minutes() {
        let mut memory = Memory::default();
        assert!(!memory.looked_lately());
        let now = Instant::now();
        memory.looked = Some(now);
        assert!(memory.looked_lately());
        memory.looked = now.checked_sub(LOOK_AGAIN_AFTER);
        assert!(memory.looked.is_some() && !memory.looked_lately());
    }
}
