//! Which ImCluster is looked at when. Pure: it is told the time.
//!
//! Invariants: an ImCluster is looked at by at most one pass at a time; one that is touched during
//! its pass is looked at once more after it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Namespace and name.
pub type Key = (String, String);

/// What happens in quick succession is looked at once.
const GATHER: Duration = Duration::from_millis(300);
/// After a failure the first time, and at most.
const BACKOFF_MIN: Duration = Duration::from_secs(1);
const BACKOFF_MAX: Duration = Duration::from_secs(60);

struct Entry {
    due: Instant,
    failures: u32,
    running: bool,
    touched: bool,
}

#[derive(Default)]
pub struct Queue {
    entries: BTreeMap<Key, Entry>,
}

impl Queue {
    /// Something about it has changed.
    pub fn touch(&mut self, key: Key, now: Instant) {
        let due = now + GATHER;
        let entry = self.entries.entry(key).or_insert(Entry {
            due,
            failures: 0,
            running: false,
            touched: false,
        });
        entry.touched |= entry.running;
        // Somebody who changes what failed wants to see it tried.
        entry.due = entry.due.min(due);
    }

    pub fn keys(&self) -> Vec<Key> {
        self.entries.keys().cloned().collect()
    }

    /// One that is due, which counts as running from now on.
    pub fn take(&mut self, now: Instant) -> Option<Key> {
        let due = self.entries.iter_mut().filter(|(_, entry)| !entry.running);
        let (key, entry) = due.min_by_key(|(_, entry)| entry.due)?;
        (entry.due <= now).then(|| {
            entry.running = true;
            entry.touched = false;
            key.clone()
        })
    }

    /// When the next one is due.
    pub fn next_due(&self) -> Option<Instant> {
        let waiting = self.entries.values().filter(|entry| !entry.running);
        waiting.map(|entry| entry.due).min()
    }

    /// A pass has ended: well, and to be repeated after a while, or not. `jitter` is from 0 to 1.
    pub fn done(&mut self, key: &Key, result: Option<Duration>, now: Instant, jitter: f64) {
        let Some(entry) = self.entries.get_mut(key) else {
            return;
        };
        entry.running = false;
        let after = match result {
            Some(after) => {
                entry.failures = 0;
                after
            }
            None => {
                let after = BACKOFF_MIN * 2_u32.saturating_pow(entry.failures.min(16));
                entry.failures += 1;
                after.min(BACKOFF_MAX)
            }
        };
        // A tenth more or less keeps many from falling into step.
        let after = after.mul_f64(0.9 + 0.2 * jitter.clamp(0.0, 1.0));
        entry.due = match entry.touched && result.is_some() {
            true => now + GATHER,
            false => now + after,
        };
    }

    pub fn remove(&mut self, key: &Key) {
        self.entries.remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Key {
        ("prod".to_owned(), name.to_owned())
    }

    #[test]
    fn one_pass_at_a_time_and_once_more_when_touched_meanwhile() {
        let start = Instant::now();
        let mut queue = Queue::default();
        queue.touch(key("chat"), start);
        assert_eq!(queue.take(start), None, "changes are gathered first");
        let later = start + GATHER;
        assert_eq!(queue.take(later), Some(key("chat")));
        queue.touch(key("chat"), later);
        assert_eq!(queue.take(later + BACKOFF_MAX), None, "it is running");
        queue.done(&key("chat"), Some(Duration::from_secs(30)), later, 0.5);
        assert_eq!(
            queue.take(later + GATHER),
            Some(key("chat")),
            "it was touched"
        );
        queue.done(&key("chat"), Some(Duration::from_secs(30)), later, 0.5);
        assert_eq!(queue.next_due(), Some(later + Duration::from_secs(30)));
    }

    #[test]
    fn failures_are_repeated_later_and_later_and_independently() {
        let start = Instant::now();
        let mut queue = Queue::default();
        queue.touch(key("bad"), start);
        queue.touch(key("good"), start);
        let mut waits = Vec::new();
        let mut now = start + GATHER;
        for _ in 0..9 {
            while let Some(taken) = queue.take(now) {
                if taken == key("bad") {
                    queue.done(&taken, None, now, 0.5);
                } else {
                    queue.done(&taken, Some(Duration::from_secs(3_600)), now, 0.5);
                }
            }
            let due = queue.next_due().expect("both are known");
            waits.push((due - now).as_secs());
            now = due;
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        queue.touch(key("bad"), now - Duration::from_secs(59));
        assert!(queue.next_due() < Some(now), "a change is tried at once");
    }
}
