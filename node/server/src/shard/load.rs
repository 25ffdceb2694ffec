//! How much a replica has to do: commands that it applies per second, a mean over about a
//! minute. Followers apply what leaders do, so the figure outlives a change of leader, and a
//! change of who looks at it.
//!
//! Owner of the state: this file.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// A change of the load shows by two thirds after this.
const MEAN_OVER: Duration = Duration::from_secs(60);

/// See the file's head.
#[derive(Debug)]
pub struct Load {
    applied: AtomicU64,
    mean: Mutex<Mean>,
}

#[derive(Debug)]
struct Mean {
    at: Instant,
    applied: u64,
    per_second: f64,
}

impl Default for Load {
    fn default() -> Self {
        Self::since(Instant::now())
    }
}

impl Load {
    fn since(at: Instant) -> Self {
        Self {
            applied: AtomicU64::new(0),
            mean: Mutex::new(Mean {
                at,
                applied: 0,
                per_second: 0.0,
            }),
        }
    }

    /// So many commands more were applied.
    pub fn applied(&self, commands: u64) {
        self.applied.fetch_add(commands, Ordering::Relaxed);
    }

    /// Commands per second.
    pub fn per_second(&self) -> u64 {
        self.per_second_at(Instant::now())
    }

    fn per_second_at(&self, now: Instant) -> u64 {
        let mut mean = self.mean.lock();
        let seconds = now.saturating_duration_since(mean.at).as_secs_f64();
        if seconds > 0.0 {
            let applied = self.applied.load(Ordering::Relaxed);
            let newest = (applied - mean.applied) as f64 / seconds;
            let weight = 1.0 - (-seconds / MEAN_OVER.as_secs_f64()).exp();
            let per_second = mean.per_second + (newest - mean.per_second) * weight;
            *mean = Mean {
                at: now,
                applied,
                per_second,
            };
        }
        mean.per_second as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A thousand a second for so long, looked at so often; then what it says.
    fn after(seconds: u64, looks: u64) -> u64 {
        let begin = Instant::now();
        let load = Load::since(begin);
        let between = Duration::from_secs(seconds) / looks as u32;
        for look in 1..=looks {
            load.applied(1_000 * seconds / looks);
            load.per_second_at(begin + between * look as u32);
        }
        load.per_second_at(begin + Duration::from_secs(seconds))
    }

    #[test]
    fn it_is_a_mean_over_a_minute_however_often_it_is_looked_at() {
        assert!((990..=1_000).contains(&after(600, 600)));
        assert!((990..=1_000).contains(&after(600, 10)));
        let (often, seldom) = (after(60, 60), after(60, 2));
        assert!((620..=640).contains(&often), "{often}");
        assert!(often.abs_diff(seldom) <= 1, "{often} and {seldom}");
    }

    #[test]
    fn a_second_is_no_load() {
        let begin = Instant::now();
        let load = Load::since(begin);
        load.applied(30_000);
        assert!(load.per_second_at(begin + Duration::from_secs(1)) < 500);
        assert!(load.per_second_at(begin + Duration::from_secs(600)) < 10);
    }
}
