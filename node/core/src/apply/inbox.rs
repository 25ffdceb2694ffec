//! Users' inboxes: deliveries, the rows of the conversation list, read positions, cursors.
//!
//! Invariants, per user and conversation: `inbox_seq` is dense; an entry is delivered once,
//! in the order of `seq` (`row.last_delivered` grows); `row.unread` is exact (see
//! [`crate::records::Row`]). A user's own messages are in their inbox, for their other
//! devices, and neither count as unread nor move the read position.

use super::{Context, Delivery, Effects, Event};
use crate::ids::{ConversationId, DeviceId, InboxSeq, Seq, TimestampMs, UserId};
use crate::keys::UserKeys;
use crate::read;
use crate::records::{CursorRecord, InboxRecord, Row, SKIP_STRIDES, Skips};
use crate::reply::{Refusal, Reply};
use crate::view::{View, load, load_plain};

/// The entry of a conversation that is delivered.
pub(super) struct Entry {
    pub conversation: ConversationId,
    pub seq: Seq,
    pub at: TimestampMs,
    pub sender: UserId,
    pub countable: bool,
}

/// The last entry of the inbox: as remembered, else as found.
fn inbox_head(view: &impl View, keys: &UserKeys<'_>, user: &UserId) -> InboxSeq {
    match view.recall(&keys.inbox_head()) {
        Some(head) => InboxSeq(head),
        None => read::inbox_head(view, user),
    }
}

pub(super) fn deliver(
    view: &mut impl View,
    cx: &mut Context<'_>,
    entry: Entry,
    users: Vec<UserId>,
    leaving: &[UserId],
) -> Effects {
    let mut deliveries = Vec::with_capacity(if cx.with_deliveries { users.len() } else { 0 });
    let mut record = InboxRecord {
        conversation: entry.conversation,
        seq: entry.seq,
        sender_is_self: false,
        countable: entry.countable,
        previous: InboxSeq(0),
        counted: 0,
        skips: Skips::default(),
    };
    for user in users {
        let keys = UserKeys::new(&user);
        let row_key = keys.row(&record.conversation);
        let mut row = load_plain::<Row>(view, &row_key).unwrap_or_default();
        if entry.seq <= row.last_delivered {
            continue;
        }
        let inbox_seq = inbox_head(view, &keys, &user).next();
        record.sender_is_self = user == entry.sender;
        let counts = entry.countable && !record.sender_is_self;
        record.previous = row.last_inbox_seq;
        row.delivered += 1;
        row.counted += u64::from(counts);
        record.counted = row.counted;
        for (level, stride) in SKIP_STRIDES.into_iter().enumerate() {
            let on_level = row.delivered.is_multiple_of(stride);
            record.skips[level] = if on_level {
                std::mem::replace(&mut row.skips[level], inbox_seq)
            } else {
                InboxSeq(0)
            };
        }
        row.last_delivered = entry.seq;
        row.last_inbox_seq = inbox_seq;
        row.last_at = entry.at;
        row.left = leaving.contains(&user);
        if row.left {
            // Nothing of it is in their list any more; if they come back, they begin anew.
            row.read_seq = row.read_seq.max(entry.seq);
            row.unread = 0;
        } else if counts && entry.seq > row.read_seq {
            row.unread += 1;
        }
        cx.save(view, &keys.inbox(inbox_seq), &record);
        cx.save(view, &row_key, &row);
        view.remember(&keys.inbox_head(), inbox_seq.0);
        if cx.with_deliveries {
            deliveries.push(Delivery {
                inbox_seq,
                unread: row.unread,
                user,
            });
        }
    }
    let event = (!deliveries.is_empty()).then_some(Event::Delivered {
        conversation: record.conversation,
        seq: entry.seq,
        deliveries,
    });
    Effects {
        reply: Reply::Delivered,
        event,
    }
}

pub(super) fn mark_read(
    view: &mut impl View,
    cx: &mut Context<'_>,
    user: &UserId,
    conversation: &ConversationId,
    seq: Seq,
    verified_end: Option<Seq>,
) -> Result<Effects, Refusal> {
    let keys = UserKeys::new(user);
    let row_key = keys.row(conversation);
    let Some(mut row) = load_plain::<Row>(view, &row_key).filter(|row| !row.left) else {
        return Err(Refusal::ConversationNotFound);
    };
    let exists = seq <= row.last_delivered || verified_end.is_some_and(|end| seq <= end);
    if !exists && seq > row.read_seq {
        return Err(Refusal::SeqBeyondEnd {
            end: row.last_delivered,
        });
    }
    if seq > row.read_seq {
        row.read_seq = seq;
        row.unread = unread_after(view, &keys, &row, seq);
        cx.save(view, &row_key, &row);
    }
    Ok(Effects::reply(Reply::Read {
        read_seq: row.read_seq,
        unread: row.unread,
    }))
}

/// Counts the countable entries of others after `seq`: all that were counted, less those
/// that had been counted at the last entry up to `seq`.
fn unread_after(view: &impl View, keys: &UserKeys<'_>, row: &Row, seq: Seq) -> u32 {
    if seq >= row.last_delivered || row.unread == 0 {
        return 0;
    }
    let after = row.counted - counted_upto(view, keys, row, seq);
    u32::try_from(after).unwrap_or(u32::MAX)
}

/// How many entries up to `seq` were counted. Finds the last entry up to `seq`, which is
/// not the row's last one, from the end backward: along the links of the longest stride
/// first, then of the shorter ones (each fewer than one stride of the level above), then
/// one by one (fewer than [`SKIP_STRIDES`]`[0]`).
fn counted_upto(view: &impl View, keys: &UserKeys<'_>, row: &Row, seq: Seq) -> u64 {
    let entry = |at: InboxSeq| -> InboxRecord {
        let record = load(view, &keys.inbox(at));
        record.expect("every entry that a row or an entry names is in the inbox")
    };
    // The entry at `after` is after `seq`, always.
    let mut after = row.last_inbox_seq;
    let mut skips = row.skips;
    for level in (0..SKIP_STRIDES.len()).rev() {
        while skips[level] != InboxSeq(0) {
            let earlier = entry(skips[level]);
            if earlier.seq <= seq {
                break;
            }
            after = skips[level];
            skips = earlier.skips;
        }
    }
    let mut at = entry(after).previous;
    while at != InboxSeq(0) {
        let earlier = entry(at);
        if earlier.seq <= seq {
            return earlier.counted;
        }
        at = earlier.previous;
    }
    0
}

pub(super) fn ack_cursor(
    view: &mut impl View,
    cx: &mut Context<'_>,
    user: &UserId,
    device: &DeviceId,
    inbox_seq: InboxSeq,
) -> Effects {
    let keys = UserKeys::new(user);
    let moved = CursorRecord {
        inbox_seq: inbox_seq.min(inbox_head(view, &keys, user)),
    };
    let key = keys.cursor(device);
    let kept = load_plain::<CursorRecord>(view, &key);
    if kept.is_none_or(|kept| kept.inbox_seq < moved.inbox_seq) {
        cx.save(view, &key, &moved);
    }
    Effects::reply(Reply::Done)
}
