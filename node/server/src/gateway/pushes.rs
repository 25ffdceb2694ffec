//! When pushed messages leave: the first after a pause at once, under load all streams
//! together once an interval.
//!
//! Each shard commits its deliveries at a moment of its own. Streams that were woken at each
//! of them would make a write to the connection out of every few frames, here and a read at
//! the client; together, one write carries what came for all streams of a connection.
//!
//! Owner of the state: the list of wakers, under its mutex. Invariant: a stream's body is
//! listed at most once, since its waker is taken from it.

use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

/// Between two rounds under load.
const PUSH_INTERVAL: Duration = Duration::from_millis(5);

/// See the file's head.
#[derive(Debug, Default)]
pub(super) struct Pushes {
    waiting: Mutex<Vec<Waker>>,
    wake: Notify,
}

impl Pushes {
    /// Lists bodies for the next round.
    pub fn add(&self, wakers: Vec<Waker>) {
        if wakers.is_empty() {
            return;
        }
        let first = {
            let mut waiting = self.waiting.lock();
            let first = waiting.is_empty();
            waiting.extend(wakers);
            first
        };
        if first {
            self.wake.notify_one();
        }
    }

    /// Rounds, until the node stops.
    pub async fn run(self: Arc<Self>) {
        let mut next = Instant::now();
        loop {
            self.wake.notified().await;
            tokio::time::sleep_until(next).await;
            next = Instant::now() + PUSH_INTERVAL;
            let round = std::mem::take(&mut *self.waiting.lock());
            round.into_iter().for_each(Waker::wake);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::task::{ArcWake, waker};
    use std::sync::atomic::{AtomicU32, Ordering};

    #[derive(Default)]
    struct Count(AtomicU32);

    impl ArcWake for Count {
        fn wake_by_ref(me: &Arc<Self>) {
            me.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_leaves_at_once_and_others_together() {
        let (pushes, count) = (Arc::new(Pushes::default()), Arc::new(Count::default()));
        let woken = || count.0.load(Ordering::Relaxed);
        tokio::spawn(pushes.clone().run());
        pushes.add(vec![waker(count.clone())]);
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(woken(), 1);
        pushes.add(vec![waker(count.clone())]);
        pushes.add(vec![waker(count.clone()), waker(count.clone())]);
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(woken(), 1);
        tokio::time::sleep(PUSH_INTERVAL).await;
        assert_eq!(woken(), 4);
    }
}
