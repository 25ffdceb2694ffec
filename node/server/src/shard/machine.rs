//! What a shard does with its committed entries: the shell around `carillon_core::apply`.
//!
//! Owner of the state: the shard's part of the state store, through [`ShardStore`], and the
//! clock of message ids. Invariant: state, clock and applied record change in one write.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use carillon_core::apply::{Context, Effects, Event, apply};
use carillon_core::command::BatchReader;
use carillon_core::ids::{ConversationId, Seq, ShardId};
use carillon_core::merging::MergeMark;
use carillon_core::records::{MessageRecord, ShardClock};
use carillon_log::failpoint;
use carillon_raft::{AppliedRecord, CommittedEntry, FlushJob, Machine, Member, SnapshotContent};
use carillon_store::{Absorbed, ShardStore, SplitOff};
use futures_util::future::BoxFuture;
use tokio::sync::oneshot;

use super::Shared;
use crate::fanout::Fanout;
use crate::flush::Flusher;
use crate::peer::group::member_of;
use crate::peer::snapshot::{Content, ReceivedSnapshot, clock_of};

/// The state machine of one replica.
pub struct ShardMachine {
    shard: ShardId,
    flusher: Arc<Flusher>,
    state: ShardStore,
    clock: ShardClock,
    shared: Shared,
    fanout: Arc<Fanout>,
    stored: Vec<(ConversationId, Seq, MessageRecord)>,
    /// Dropped with the machine, after the store's shard.
    _lives: oneshot::Sender<Infallible>,
}

/// Resolves when a machine is gone, and with it its hold on the shard's part of the store.
pub type MachineEnded = oneshot::Receiver<Infallible>;

impl ShardMachine {
    /// The machine over a shard's part of the store.
    pub fn new(
        flusher: Arc<Flusher>,
        state: ShardStore,
        shared: Shared,
        fanout: Arc<Fanout>,
    ) -> (Self, MachineEnded) {
        let (shard, clock) = (state.id(), state.clock());
        let merges = state.merges();
        shared.merges.send_replace(merges);
        if let Some(merge_id) = merges.frozen_by {
            // It is as it was found on the disk.
            shared.keep(merge_id);
        }
        let (lives, ended) = oneshot::channel();
        let machine = Self {
            shard,
            flusher,
            state,
            clock,
            shared,
            fanout,
            stored: Vec::new(),
            _lives: lives,
        };
        (machine, ended)
    }
}

impl ShardMachine {
    /// The shard has taken another one over.
    fn absorbed(&self, right: ShardId) {
        // As it is now: a leader from here on reads the outbox later than this.
        let leading = self.shared.leading.load(Ordering::Acquire);
        self.fanout.on_absorbed(self.shard, right, leading);
        self.shared.slots_changed.notify_one();
    }

    /// A merge has done something to the shard, and it is committed.
    fn marked(&self, before: MergeMark, now: MergeMark) {
        if now.absorbed != before.absorbed {
            failpoint::hit("shard.absorbed");
        } else if now.frozen_by.is_some() {
            tracing::info!(shard = self.shard.0, merge = now.seen.0, "is frozen");
            failpoint::hit("shard.frozen");
        } else {
            tracing::info!(shard = self.shard.0, merge = now.seen.0, "is thawed");
            failpoint::hit("shard.thawed");
        }
        self.shared.merges.send_replace(now);
    }
}

impl Machine for ShardMachine {
    fn applied(&self) -> Option<Bytes> {
        self.state.applied().cloned()
    }

    fn apply(&mut self, entries: &[CommittedEntry], applied: Bytes) -> Vec<Vec<Effects>> {
        let leading = self.shared.leading.load(Ordering::Acquire);
        let mut all = Vec::with_capacity(entries.len());
        let mut checksum = None;
        let mut split = None;
        let mut absorb = None;
        let slots = self.state.slots();
        let before = self.state.merges();
        let mut merges = before;
        let mut batch = self.state.begin();
        for entry in entries {
            let Some(payload) = &entry.payload else {
                all.push(Vec::new());
                continue;
            };
            let commands = match BatchReader::new(payload.clone()) {
                Ok(commands) => commands,
                Err(error) => damaged_entry(self.shard, entry.index, &error),
            };
            let at = commands.at();
            self.shared.load.applied(commands.remaining() as u64);
            let mut effects = Vec::with_capacity(if entry.proposed_here {
                commands.remaining()
            } else {
                0
            });
            let mut context =
                Context::new(self.shard, slots, at, &mut self.clock).with_merges(merges);
            if !entry.proposed_here {
                context = context.without_deliveries();
            }
            for command in commands {
                let command = match command {
                    Ok(command) => command,
                    Err(error) => damaged_entry(self.shard, entry.index, &error),
                };
                let mut effect = apply(&mut batch, &mut context, command);
                match effect.event.take() {
                    Some(Event::Stored {
                        conversation,
                        seq,
                        message,
                    }) if leading => {
                        self.stored.push((conversation, seq, message));
                    }
                    Some(Event::ChecksumRequested { nonce }) => {
                        checksum = Some((nonce, entry.index))
                    }
                    Some(Event::Split {
                        new_shard,
                        at,
                        replicas,
                    }) => split = Some((new_shard, at, replicas)),
                    Some(Event::Absorb { shard, slots, .. }) => {
                        absorb = Some(Absorbed { id: shard, slots })
                    }
                    Some(event @ Event::Delivered { .. }) if entry.proposed_here => {
                        effect.event = Some(event)
                    }
                    _ => {}
                }
                if entry.proposed_here {
                    effects.push(effect);
                }
            }
            merges = context.merges();
            all.push(effects);
        }
        let committed = match (&split, &absorb) {
            (None, None) => batch.commit_marked(&applied, self.clock, merges),
            (None, Some(right)) => {
                failpoint::hit("shard.absorbing");
                let clock = batch.commit_absorb(&applied, self.clock, merges, right);
                clock.map(|clock| self.clock = clock)
            }
            (Some((new_shard, at, replicas)), _) => {
                let voters: Vec<Member> = replicas.iter().map(member_of).collect();
                let new = SplitOff {
                    id: *new_shard,
                    at: *at,
                    applied: &AppliedRecord::beginning(&voters).encode(),
                };
                failpoint::hit("shard.split");
                batch.commit_split(&applied, self.clock, &new)
            }
        };
        if let Err(error) = committed {
            fatal(self.shard, "write of applied state", &error);
        }
        if let Some((new_shard, at, _)) = split {
            failpoint::hit("shard.split_applied");
            tracing::info!(
                shard = self.shard.0,
                new_shard = new_shard.0,
                slot = at.0,
                "was split"
            );
            self.shared.slots_changed.notify_one();
        }
        if let Some(right) = absorb {
            tracing::info!(
                shard = self.shard.0,
                absorbed = right.id.0,
                "took its neighbour over"
            );
            self.absorbed(right.id);
        }
        if merges != before {
            self.marked(before, merges);
        }
        if let Some((nonce, index)) = checksum
            && self.shared.checksums.is_first(nonce)
        {
            match self.state.snapshot() {
                Ok(snapshot) => self.shared.checksums.compute(nonce, index, snapshot),
                Err(error) => fatal(self.shard, "snapshot for a checksum", &error),
            }
        }
        if !leading && self.shared.leading.load(Ordering::Acquire) {
            // It leads since: whoever read the outbox then may have read it before this was kept.
            self.fanout.on_leading(self.shard, true);
        }
        if self.state.slots() != slots {
            // The new shard has the outbox of what it has.
            let slots = self.state.slots();
            self.stored
                .retain(|(conversation, ..)| slots.contains(conversation.slot()));
        }
        if !self.stored.is_empty() {
            self.fanout.stored(self.shard, &self.stored);
            self.stored.clear();
        }
        all
    }

    fn ends_batch(&self, payload: &Bytes) -> bool {
        // A checksum is of the state right after its entry, the same on every replica; a split
        // and a merge are kept in one write with it.
        carillon_core::command::is_standing_alone(payload)
    }

    fn room(&self) -> Option<BoxFuture<'static, ()>> {
        self.flusher.room()
    }

    fn flush(&self) -> FlushJob {
        let job = self.flusher.job(self.shard);
        let (reader, last) = (self.state.reader(), self.state.applied().cloned());
        Box::new(move || match job() {
            // Nothing of it is on the disk any more, and nothing of its log is needed.
            Err(error) if reader.is_absorbed() => last.ok_or(error),
            flushed => flushed,
        })
    }

    fn snapshot(&self) -> io::Result<(Bytes, SnapshotContent)> {
        let snapshot = self.state.snapshot().map_err(io::Error::other)?;
        let applied = snapshot.applied().cloned().ok_or_else(|| {
            io::Error::other(format!("shard {} has nothing applied", self.shard.0))
        })?;
        Ok((applied, Arc::new(Content::Shard(Arc::new(snapshot)))))
    }

    fn install(&mut self, applied: Bytes, data: SnapshotContent) -> io::Result<()> {
        let received = data
            .downcast::<ReceivedSnapshot>()
            .map_err(|_| io::Error::other("a snapshot of another kind was handed to a shard"))?;
        let clock = clock_of(&received)?;
        let had = self.state.slots();
        let slots = received.slots().unwrap_or(had);
        let (before, merges) = (self.state.merges(), received.merges());
        let absorbed = self
            .state
            .install(received.files(), &applied, clock, slots, merges)
            .map_err(io::Error::other)?;
        self.clock = clock;
        self.shared.checksums.passed_over();
        if let Some(absorbed) = absorbed {
            tracing::info!(
                shard = self.shard.0,
                absorbed = absorbed.0,
                "has its neighbour by a snapshot"
            );
            self.absorbed(absorbed);
        }
        if merges != before {
            self.shared.merges.send_replace(merges);
        }
        if slots != had {
            self.shared.slots_changed.notify_one();
        }
        Ok(())
    }
}

/// The log passed its checksums and still does not decode: a bug or a newer format. Going
/// on would make this replica differ from the others.
fn damaged_entry(shard: ShardId, index: u64, error: &dyn std::error::Error) -> ! {
    tracing::error!(shard = shard.0, index, %error, "a committed entry cannot be decoded; is this binary older than the cluster?");
    std::process::abort()
}

fn fatal(shard: ShardId, what: &str, error: &dyn std::error::Error) -> ! {
    tracing::error!(shard = shard.0, %error, "{what} failed; the node stops and recovers from what is durable");
    std::process::abort()
}
