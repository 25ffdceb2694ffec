//! The way from the groups to the writer thread: one FIFO of requests, bounded in bytes.
//!
//! Owner of the state: both sides, under one lock. Invariants: the order of one group's requests
//! is the order in which its visible state changed; a committed value is handed over only together
//! with everything that was queued before it, so that it never reaches the disk before its entry.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::thread::ThreadId;

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};

use crate::group::Group;
use crate::options::FatalHook;
use crate::{GroupId, LogError};

/// What a request weighs beside its data, so that the bound on bytes also bounds their number.
const REQUEST_BYTES: u64 = 128;

/// A completion; runs on the writer thread.
pub(crate) type Callback = Box<dyn FnOnce(Result<(), LogError>) + Send>;

/// A change to a group that is to become durable. `generation` is the group's count of
/// truncations when the change was made visible.
pub(crate) enum Operation<E> {
    Append {
        entries: Vec<E>,
        generation: u64,
    },
    Vote(Bytes),
    Truncate {
        after: Option<u64>,
        next: u64,
        generation: u64,
    },
    Purge {
        upto: u64,
        log_id: Bytes,
    },
    Remove,
}

pub(crate) struct Request<E> {
    pub(crate) group: Arc<Group<E>>,
    pub(crate) operation: Operation<E>,
    pub(crate) on_durable: Option<Callback>,
    /// Bytes of the operation's data.
    pub(crate) bytes: u64,
}

impl<E> Request<E> {
    fn queue_bytes(&self) -> u64 {
        self.bytes + REQUEST_BYTES
    }

    pub(crate) fn complete(&mut self, result: Result<(), LogError>) {
        if let Some(on_durable) = self.on_durable.take() {
            on_durable(result);
        }
    }
}

/// A committed value that rides with the next write.
pub(crate) type Committed<E> = (Arc<Group<E>>, Bytes);

struct Waiting<E> {
    requests: VecDeque<Request<E>>,
    committed: HashMap<GroupId, Committed<E>>,
    writer_waits: bool,
    callers_wait: usize,
    closed: bool,
}

pub(crate) struct Queue<E> {
    waiting: Mutex<Waiting<E>>,
    work: Condvar,
    space: Condvar,
    bytes: AtomicU64,
    bytes_max: u64,
    writer: OnceLock<ThreadId>,
}

/// What the writer got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Taken {
    /// Perhaps something, perhaps (when it did not want to wait) nothing.
    Open,
    /// What was left; the queue is closed and nothing more will come.
    Closed,
}

impl<E> Queue<E> {
    pub(crate) fn new(bytes_max: u64) -> Self {
        let waiting = Waiting {
            requests: VecDeque::new(),
            committed: HashMap::new(),
            writer_waits: false,
            callers_wait: 0,
            closed: false,
        };
        Queue {
            waiting: Mutex::new(waiting),
            work: Condvar::new(),
            space: Condvar::new(),
            bytes: AtomicU64::new(0),
            bytes_max,
            writer: OnceLock::new(),
        }
    }

    /// Names the calling thread as the writer, which never waits for space.
    pub(crate) fn register_writer(&self) {
        self.writer.get_or_init(|| std::thread::current().id());
    }

    /// Blocks while the queue is full. Called before any lock of a group is taken, since the
    /// writer needs those to go on.
    pub(crate) fn wait_for_space(&self) {
        if self.bytes.load(Relaxed) < self.bytes_max
            || self.writer.get() == Some(&std::thread::current().id())
        {
            return;
        }
        let mut waiting = self.waiting.lock();
        waiting.callers_wait += 1;
        while self.bytes.load(Relaxed) >= self.bytes_max && !waiting.closed {
            self.space.wait(&mut waiting);
        }
        waiting.callers_wait -= 1;
    }

    /// Queues a request and wakes the writer. Returns it when the queue is closed.
    pub(crate) fn push(&self, request: Request<E>) -> Result<(), Request<E>> {
        let mut waiting = self.waiting.lock();
        if waiting.closed {
            return Err(request);
        }
        self.bytes.fetch_add(request.queue_bytes(), Relaxed);
        waiting.requests.push_back(request);
        if std::mem::take(&mut waiting.writer_waits) {
            drop(waiting);
            self.work.notify_one();
        }
        Ok(())
    }

    /// Leaves a committed value for the next write, instead of an older one of the group. Wakes
    /// nobody. False when the queue is closed.
    pub(crate) fn set_committed(&self, id: GroupId, group: Arc<Group<E>>, value: Bytes) -> bool {
        let mut waiting = self.waiting.lock();
        if !waiting.closed {
            waiting.committed.insert(id, (group, value));
        }
        !waiting.closed
    }

    /// Moves everything that waits to the writer; with `wait`, only returns with requests or when
    /// the queue is closed. Committed values alone are no reason to write before that.
    pub(crate) fn take(
        &self,
        requests: &mut VecDeque<Request<E>>,
        committed: &mut Vec<Committed<E>>,
        wait: bool,
    ) -> Taken {
        let mut waiting = self.waiting.lock();
        while wait && waiting.requests.is_empty() && !waiting.closed {
            waiting.writer_waits = true;
            self.work.wait(&mut waiting);
        }
        waiting.writer_waits = false;
        let taken_bytes: u64 = waiting.requests.iter().map(Request::queue_bytes).sum();
        self.bytes.fetch_sub(taken_bytes, Relaxed);
        if requests.is_empty() {
            std::mem::swap(requests, &mut waiting.requests);
        } else {
            requests.append(&mut waiting.requests);
        }
        if !requests.is_empty() || waiting.closed {
            committed.extend(waiting.committed.drain().map(|(_, committed)| committed));
        }
        if waiting.callers_wait > 0 {
            self.space.notify_all();
        }
        if waiting.closed {
            Taken::Closed
        } else {
            Taken::Open
        }
    }

    /// Accepts nothing more; what waits can still be taken.
    pub(crate) fn close(&self) {
        let mut waiting = self.waiting.lock();
        waiting.closed = true;
        waiting.writer_waits = false;
        drop(waiting);
        self.work.notify_all();
        self.space.notify_all();
    }

    /// Bytes and requests that wait.
    pub(crate) fn depth(&self) -> (u64, u64) {
        (
            self.bytes.load(Relaxed),
            self.waiting.lock().requests.len() as u64,
        )
    }
}

/// The first fatal failure, after which nothing is accepted any more.
pub(crate) struct Poison {
    reason: OnceLock<Arc<str>>,
    on_fatal: FatalHook,
}

impl Poison {
    pub(crate) fn new(on_fatal: FatalHook) -> Self {
        Poison {
            reason: OnceLock::new(),
            on_fatal,
        }
    }

    /// Remembers the first failure and calls the hook for it; later ones change nothing.
    pub(crate) fn set(&self, error: &LogError) {
        if self.reason.set(error.to_string().into()).is_ok() {
            (self.on_fatal)(error);
        }
    }

    pub(crate) fn check(&self) -> Result<(), LogError> {
        match self.reason.get() {
            Some(reason) => Err(LogError::Poisoned {
                reason: Arc::clone(reason),
            }),
            None => Ok(()),
        }
    }
}
