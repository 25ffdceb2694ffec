//! The log of a node as a whole: opening, groups, counters, shutdown.
//!
//! Owner of the set of groups: `Shared::groups`. A group leaves it under the same lock under which
//! its removal is queued, so that a new group of the same id is written after it.

use std::collections::HashMap;
use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::Mutex;

use crate::group::{Group, GroupLog};
use crate::index::Written;
use crate::options::LogOptions;
use crate::queue::{Operation, Poison, Queue, Request};
use crate::segment::SegmentSet;
use crate::stats::{Counters, LogStats};
use crate::writer::Writer;
use crate::{GroupId, LogEntry, LogError, recovery};

/// What the groups, the writer and the readers share.
pub(crate) struct Shared<E> {
    pub(crate) queue: Queue<E>,
    pub(crate) poison: Arc<Poison>,
    pub(crate) segments: SegmentSet,
    pub(crate) counters: Counters,
    pub(crate) groups: Mutex<HashMap<GroupId, Arc<Group<E>>>>,
}

impl<E> Shared<E> {
    /// Why the queue takes nothing more.
    pub(crate) fn closed_error(&self) -> LogError {
        self.poison.check().err().unwrap_or(LogError::Closed)
    }
}

/// The log of a node. Clones share it; when the last one goes, it shuts down.
pub struct LogEngine<E: LogEntry> {
    owner: Arc<Owner<E>>,
}

impl<E: LogEntry> Clone for LogEngine<E> {
    fn clone(&self) -> Self {
        LogEngine {
            owner: Arc::clone(&self.owner),
        }
    }
}

impl<E: LogEntry> std::fmt::Debug for LogEngine<E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LogEngine")
            .field("options", &self.owner.options)
            .finish_non_exhaustive()
    }
}

struct Owner<E: LogEntry> {
    shared: Arc<Shared<E>>,
    options: LogOptions,
    writer: Mutex<Option<JoinHandle<()>>>,
}

impl<E: LogEntry> LogEngine<E> {
    /// Opens the log in `options.dir`, recovers what is durable, and starts the writer thread.
    ///
    /// # Errors
    /// `Locked` when another process has it open; `Corrupt` when durable data is damaged, with the
    /// file, the offset and what to do.
    pub fn open(options: LogOptions) -> Result<Self, LogError> {
        options.validate()?;
        let recovered = recovery::recover(&options)?;
        let groups = recovered
            .groups
            .into_iter()
            .map(|(id, written)| (id, Group::recovered(id, written)));
        let groups: HashMap<GroupId, Arc<Group<E>>> = groups.collect();
        let shared = Arc::new(Shared {
            queue: Queue::new(options.queue_bytes_max),
            poison: Arc::new(Poison::new(Arc::clone(&options.on_fatal))),
            segments: SegmentSet::default(),
            counters: Counters::default(),
            groups: Mutex::new(groups.clone()),
        });
        let writer = Writer::new(Arc::clone(&shared), &options, recovered.files, groups)?;
        let writer = std::thread::Builder::new()
            .name("carillon-log".to_owned())
            .spawn(move || writer.run())
            .map_err(LogError::io("start the writer thread for", &options.dir))?;
        Ok(LogEngine {
            owner: Arc::new(Owner {
                shared,
                options,
                writer: Mutex::new(Some(writer)),
            }),
        })
    }

    /// The log of group `id`; an empty one, when the group is unknown.
    pub fn group(&self, id: GroupId) -> GroupLog<E> {
        let shared = &self.owner.shared;
        let mut groups = shared.groups.lock();
        let group = groups
            .entry(id)
            .or_insert_with(|| Group::recovered(id, Written::default()));
        GroupLog {
            group: Arc::clone(group),
            shared: Arc::clone(shared),
        }
    }

    /// All groups, in order.
    pub fn groups(&self) -> Vec<GroupId> {
        let mut ids: Vec<GroupId> = self.owner.shared.groups.lock().keys().copied().collect();
        ids.sort_unstable();
        ids
    }

    /// Removes a group with all of its state, and blocks until that is durable (a few
    /// milliseconds). Its handles fail from then on. Must not be called from a completion.
    ///
    /// # Errors
    /// `Poisoned` or `Closed`; a group that does not exist is no error.
    pub fn remove_group(&self, id: GroupId) -> Result<(), LogError> {
        let shared = &self.owner.shared;
        shared.poison.check()?;
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        {
            let mut groups = shared.groups.lock();
            let Some(group) = groups.remove(&id) else {
                return Ok(());
            };
            let mut state = group.state.lock();
            state.remove(&shared.counters);
            let request = Request {
                group: Arc::clone(&group),
                operation: Operation::Remove,
                on_durable: Some(Box::new(move |result| _ = sender.send(result))),
                bytes: 0,
            };
            shared
                .queue
                .push(request)
                .map_err(|_| shared.closed_error())?;
        }
        receiver
            .recv()
            .unwrap_or_else(|_| Err(shared.closed_error()))
    }

    /// A reading of the counters.
    pub fn stats(&self) -> LogStats {
        let shared = &self.owner.shared;
        let (queue_bytes, queue_requests) = shared.queue.depth();
        shared.counters.read(queue_bytes, queue_requests)
    }

    /// Writes what is queued, syncs, marks the end of the log and stops the threads. Later calls
    /// fail with `Closed`. Blocks; must not be called from a completion.
    ///
    /// # Errors
    /// `Poisoned` when the log failed before or during this.
    pub fn shutdown(&self) -> Result<(), LogError> {
        self.owner.shutdown()
    }
}

impl<E: LogEntry> Owner<E> {
    fn shutdown(&self) -> Result<(), LogError> {
        self.shared.queue.close();
        let writer = self.writer.lock().take();
        if let Some(writer) = writer
            && writer.thread().id() != std::thread::current().id()
            && writer.join().is_err()
        {
            self.shared.poison.set(&LogError::Closed);
        }
        self.shared.poison.check()
    }
}

impl<E: LogEntry> Drop for Owner<E> {
    fn drop(&mut self) {
        if let Err(error) = self.shutdown() {
            tracing::error!(%error, "raft log did not shut down cleanly");
        }
    }
}
