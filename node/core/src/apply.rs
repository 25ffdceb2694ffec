//! `apply(view, context, command) -> Effects`: what one command does to a shard's state.
//!
//! The only writer of the state. Time enters with the command's batch, message ids come
//! from the shard's clock, and nothing depends on the batch's boundaries: the same
//! commands with the same times leave the same bytes on every replica. A refused command
//! changes nothing.
//!
//! A record that does not decode ends the process (it panics): the state is damaged, and
//! going on would spread the damage.

mod inbox;
mod members;
mod timeline;

use bytes::BytesMut;

use crate::command::Command;
use crate::ids::{ConversationId, InboxSeq, Seq, ShardId, Slot, SlotRange, TimestampMs, UserId};
use crate::map::Replica;
use crate::merging::{MergeId, MergeMark};
use crate::records::{MemberRecord, MessageRecord, Record, ShardClock};
use crate::reply::{Refusal, Reply};
use crate::view::View;

/// The largest number of members of a group.
pub const MEMBERS_MAX: u32 = 500;
/// How long a send's own id is remembered at least, milliseconds.
pub const DEDUP_WINDOW_MS: i64 = 24 * 60 * 60 * 1000;
/// Old dedup records of a conversation are looked for once in so many entries.
pub const DEDUP_PRUNE_EVERY: u64 = 64;
/// The most entries that are looked at then. More than [`DEDUP_PRUNE_EVERY`], so that
/// it catches up.
pub const DEDUP_PRUNE_ENTRIES_MAX: usize = 256;
/// The most undelivered earlier stays of one member ([`MemberRecord::earlier`]).
pub const EARLIER_STAYS_MAX: usize = 8;

/// What a batch brings along: whose shard it is and when it was made.
pub struct Context<'a> {
    shard: ShardId,
    slots: SlotRange,
    at: TimestampMs,
    clock: &'a mut ShardClock,
    merges: MergeMark,
    with_deliveries: bool,
    scratch: BytesMut,
}

impl<'a> Context<'a> {
    /// The context of a batch of `shard` made at `at` by the leader's clock, for a shard that no
    /// merge has touched. `slots` and `clock` are part of the shard's state: keep them with
    /// `last_applied`.
    pub fn new(
        shard: ShardId,
        slots: SlotRange,
        at: TimestampMs,
        clock: &'a mut ShardClock,
    ) -> Self {
        Context {
            shard,
            slots,
            at,
            clock,
            merges: MergeMark::default(),
            with_deliveries: true,
            scratch: BytesMut::with_capacity(256),
        }
    }

    /// What merges have done to the shard before: part of its state like `slots`.
    #[must_use]
    pub fn with_merges(mut self, merges: MergeMark) -> Self {
        self.merges = merges;
        self
    }

    /// What they have done to it with all that was applied in this context.
    pub fn merges(&self) -> MergeMark {
        self.merges
    }

    /// Leaves [`Event::Delivered`] out of the effects: a replica that does not lead tells
    /// nobody. The state does not depend on it.
    #[must_use]
    pub fn without_deliveries(mut self) -> Self {
        self.with_deliveries = false;
        self
    }

    /// Encodes `record` and puts it under `key`.
    #[inline]
    fn save(&mut self, view: &mut impl View, key: &[u8], record: &impl Record) {
        self.scratch.clear();
        record.encode(&mut self.scratch);
        view.put(key, &self.scratch);
    }
}

/// What follows from a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Effects {
    /// The answer for whoever proposed it.
    pub reply: Reply,
    /// Work for the replica that leads; others drop it.
    pub event: Option<Event>,
}

impl Effects {
    fn reply(reply: Reply) -> Effects {
        Effects { reply, event: None }
    }
}

impl From<Refusal> for Effects {
    fn from(refusal: Refusal) -> Effects {
        Effects::reply(Reply::Refused(refusal))
    }
}

/// Work that follows from a command. None of it is lost with the leader: what must be
/// done is in the state (outbox markers, inboxes).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// An entry of a timeline waits for its fan-out.
    Stored {
        /// The conversation.
        conversation: ConversationId,
        /// The entry's place.
        seq: Seq,
        /// The entry.
        message: MessageRecord,
    },
    /// An entry is in inboxes and can be pushed.
    Delivered {
        /// The conversation.
        conversation: ConversationId,
        /// The entry's place there.
        seq: Seq,
        /// Who got it now; users who had it already are not here.
        deliveries: Vec<Delivery>,
    },
    /// The state's checksum at this point is asked for.
    ChecksumRequested {
        /// Names the answer.
        nonce: u64,
    },
    /// The shard ends before `at` from here on; a new one has the rest. Unlike the others this
    /// is part of the state: every replica keeps it with the command.
    Split {
        /// The new shard.
        new_shard: ShardId,
        /// Its first slot.
        at: Slot,
        /// Its replicas.
        replicas: Vec<Replica>,
    },
    /// The shard has all that its right neighbour had, which is no more. Part of the state as
    /// well.
    Absorb {
        /// The merge.
        merge_id: MergeId,
        /// The neighbour.
        shard: ShardId,
        /// What it had.
        slots: SlotRange,
    },
}

/// One new inbox entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// Whose inbox.
    pub user: UserId,
    /// Its place there.
    pub inbox_seq: InboxSeq,
    /// The user's unread count of the conversation just after it.
    pub unread: u32,
}

/// Applies one command. Deterministic: see the module.
///
/// # Panics
/// When a record of the state is damaged.
pub fn apply<V: View>(view: &mut V, context: &mut Context<'_>, command: Command) -> Effects {
    if !command.is_within(context.slots) {
        // Proposed before a split, or by somebody who does not know of it.
        return Effects::reply(Reply::Moved);
    }
    if context.merges.frozen_by.is_some() && !command.passes_frozen() {
        return Effects::reply(Reply::Frozen);
    }
    match command {
        Command::Send {
            conversation,
            sender,
            client_message_id,
            content,
        } => timeline::send(
            view,
            context,
            conversation,
            sender,
            client_message_id,
            content,
        ),
        Command::CreateGroup {
            conversation,
            name,
            creator,
            members,
            request_id,
        } => {
            let group = members::NewGroup {
                name,
                creator,
                members,
                request_id,
            };
            members::create(view, context, conversation, group)
        }
        Command::AddMembers {
            conversation,
            actor,
            members,
        } => {
            members::add(view, context, conversation, actor, members).unwrap_or_else(Effects::from)
        }
        Command::RemoveMembers {
            conversation,
            actor,
            members,
        } => members::remove(view, context, conversation, actor, members)
            .unwrap_or_else(Effects::from),
        Command::AdvanceOutbox { items } => timeline::advance_outbox(view, context, &items),
        Command::Deliver {
            conversation,
            seq,
            at,
            sender,
            countable,
            users,
            leaving,
        } => {
            let entry = inbox::Entry {
                conversation,
                seq,
                at,
                sender,
                countable,
            };
            inbox::deliver(view, context, entry, users, &leaving)
        }
        Command::MarkRead {
            user,
            conversation,
            seq,
            verified_end,
        } => inbox::mark_read(view, context, &user, &conversation, seq, verified_end)
            .unwrap_or_else(Effects::from),
        Command::AckCursor {
            user,
            device,
            inbox_seq,
        } => inbox::ack_cursor(view, context, &user, &device, inbox_seq),
        Command::Probe { .. } => Effects::reply(Reply::Done),
        Command::Checksum { nonce } => Effects {
            reply: Reply::Done,
            event: Some(Event::ChecksumRequested { nonce }),
        },
        Command::Split {
            new_shard,
            at,
            replicas,
        } => {
            let event = context.slots.split(at).map(|(before, _)| {
                context.slots = before;
                Event::Split {
                    new_shard,
                    at,
                    replicas,
                }
            });
            let reply = Reply::Done;
            Effects { reply, event }
        }
        Command::Freeze { merge_id } => {
            let merges = &mut context.merges;
            // One that was thawed before it came is late.
            if merge_id > merges.seen {
                merges.frozen_by = Some(merge_id);
                merges.seen = merge_id;
            }
            Effects::reply(Reply::Done)
        }
        Command::Thaw { merge_id } => {
            let merges = &mut context.merges;
            if merge_id >= merges.seen {
                merges.frozen_by = None;
                merges.seen = merge_id;
            }
            Effects::reply(Reply::Done)
        }
        Command::Absorb {
            merge_id,
            shard,
            slots,
        } => {
            let joined = context.slots.joined(slots);
            let due = merge_id > context.merges.absorbed;
            let event = joined.filter(|_| due).map(|joined| {
                context.slots = joined;
                context.merges.absorbed = merge_id;
                Event::Absorb {
                    merge_id,
                    shard,
                    slots,
                }
            });
            let reply = Reply::Done;
            Effects { reply, event }
        }
    }
}

/// Who gets the entry `seq`: everyone whose stay, now or earlier, includes it. `members`
/// is what [`crate::read::members_all`] returned after the entry was stored.
pub fn recipients(members: &[(UserId, MemberRecord)], seq: Seq) -> impl Iterator<Item = &UserId> {
    let receiving = members
        .iter()
        .filter(move |(_, member)| member.receives(seq));
    receiving.map(|(user, _)| user)
}

/// Those of the recipients whom the entry `seq` removes.
pub fn leaving(members: &[(UserId, MemberRecord)], seq: Seq) -> impl Iterator<Item = &UserId> {
    let leaving = members
        .iter()
        .filter(move |(_, member)| member.leaves_at(seq));
    leaving.map(|(user, _)| user)
}
