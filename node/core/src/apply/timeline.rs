//! Conversation timelines: sends, the first use of a direct conversation, the window in
//! which a send is recognised, and the outbox markers.
//!
//! Invariants: `seq` is dense; a message, its dedup record, the head and the outbox marker
//! are written by the same command; a marker exists iff `delivered_upto < last_seq`.

use std::ops::ControlFlow;

use bytes::Bytes;

use super::{Context, DEDUP_PRUNE_ENTRIES_MAX, DEDUP_PRUNE_EVERY, DEDUP_WINDOW_MS, Effects, Event};
use crate::ids::{ClientMessageId, ConversationId, ConversationName, Seq, TimestampMs, UserId};
use crate::keys::{ConversationKeys, Key};
use crate::records::{
    ConversationHead, ConversationInfo, ConversationKind, DedupRecord, MemberRecord, MessageRecord,
    OutboxRecord, Role,
};
use crate::reply::{Refusal, Reply};
use crate::view::{View, intact, load_plain};

/// What a new entry says.
pub(super) struct NewEntry {
    pub sender: UserId,
    /// None of a notice, which does not count as unread either.
    pub client_message_id: Option<ClientMessageId>,
    pub content: Bytes,
}

/// Puts an entry at the end of the timeline and makes sure that it waits for delivery.
/// The caller saves `head`.
pub(super) fn append(
    view: &mut impl View,
    cx: &mut Context<'_>,
    keys: &ConversationKeys<'_>,
    head: &mut ConversationHead,
    entry: NewEntry,
) -> MessageRecord {
    let (at, message_id) = cx.clock.stamp(cx.shard, cx.at);
    let seq = head.last_seq.next();
    let message = MessageRecord {
        message_id,
        sender: entry.sender,
        countable: entry.client_message_id.is_some(),
        client_message_id: entry.client_message_id,
        at,
        content: entry.content,
    };
    cx.save(view, &keys.message(seq), &message);
    let outbox = keys.outbox();
    if view.get(&outbox).is_none() {
        let marker = OutboxRecord {
            delivered_upto: head.last_seq,
        };
        cx.save(view, &outbox, &marker);
    }
    head.last_seq = seq;
    head.last_at = at;
    head.last_message_id = message_id;
    message
}

pub(super) fn send(
    view: &mut impl View,
    cx: &mut Context<'_>,
    conversation: ConversationId,
    sender: UserId,
    client_message_id: ClientMessageId,
    content: Bytes,
) -> Effects {
    let keys = ConversationKeys::new(&conversation);
    let dedup = keys.dedup(&sender, &client_message_id);
    if let Some(first) = load_plain::<DedupRecord>(view, &dedup) {
        // Answered as the first time, even if the sender has left since.
        return Effects::reply(Reply::Sent {
            seq: first.seq,
            message_id: first.message_id,
            at: first.at,
            duplicate: true,
        });
    }
    let (mut head, new_direct) = match writable(view, &keys, &conversation, &sender) {
        Ok(writable) => writable,
        Err(refusal) => return refusal.into(),
    };
    let entry = NewEntry {
        sender,
        client_message_id: Some(client_message_id),
        content,
    };
    let message = append(view, cx, &keys, &mut head, entry);
    if let Some((first, second)) = &new_direct {
        create_direct(view, cx, &keys, [first, second], message.at);
    }
    let stored = DedupRecord {
        seq: head.last_seq,
        message_id: message.message_id,
        at: message.at,
    };
    cx.save(view, &dedup, &stored);
    if stored.seq.0.is_multiple_of(DEDUP_PRUNE_EVERY) {
        prune_dedup(view, &keys, &mut head);
    }
    cx.save(view, &keys.head(), &head);
    Effects {
        reply: Reply::Sent {
            seq: stored.seq,
            message_id: stored.message_id,
            at: stored.at,
            duplicate: false,
        },
        event: Some(Event::Stored {
            conversation,
            seq: stored.seq,
            message,
        }),
    }
}

/// The head of the conversation if `sender` may write to it, and the members of a direct
/// one that this is the first message of.
fn writable(
    view: &impl View,
    keys: &ConversationKeys<'_>,
    conversation: &ConversationId,
    sender: &UserId,
) -> Result<(ConversationHead, Option<(UserId, UserId)>), Refusal> {
    if let Some(head) = load_plain::<ConversationHead>(view, &keys.head()) {
        return match load_plain::<MemberRecord>(view, &keys.member(sender)) {
            Some(member) if member.is_current() => Ok((head, None)),
            _ => Err(Refusal::NotAMember),
        };
    }
    let Some(pair) = conversation.direct_pair() else {
        return Err(Refusal::ConversationNotFound);
    };
    if *sender != pair.0 && *sender != pair.1 {
        return Err(Refusal::NotAMember);
    }
    let head = ConversationHead {
        member_count: 2,
        ..ConversationHead::default()
    };
    Ok((head, Some(pair)))
}

/// Writes what a direct conversation is and who is in it; both see it from its beginning.
fn create_direct(
    view: &mut impl View,
    cx: &mut Context<'_>,
    keys: &ConversationKeys<'_>,
    members: [&UserId; 2],
    created_at: TimestampMs,
) {
    let info = ConversationInfo {
        kind: ConversationKind::Direct,
        name: ConversationName::default(),
        creator: None,
        created_at,
        request_id: None,
    };
    cx.save(view, &keys.info(), &info);
    let record = MemberRecord::joined(Role::Member, Seq(1));
    for member in members {
        cx.save(view, &keys.member(member), &record);
    }
}

/// Deletes dedup records of entries older than the window: from where the last time ended,
/// at most [`DEDUP_PRUNE_ENTRIES_MAX`] entries, up to the first one that is younger.
fn prune_dedup(view: &mut impl View, keys: &ConversationKeys<'_>, head: &mut ConversationHead) {
    let kept_from = TimestampMs(head.last_at.0.saturating_sub(DEDUP_WINDOW_MS));
    let range = keys.messages(head.dedup_pruned_seq.next(), head.last_seq.previous());
    let mut stale: Vec<Key> = Vec::new();
    let mut looked_at = 0;
    view.scan(&range.from, &range.to, false, &mut |key, value| {
        let message = intact(key, MessageRecord::decode_origin(value));
        if message.at >= kept_from {
            return ControlFlow::Break(());
        }
        if let Some(id) = &message.client_message_id {
            stale.push(keys.dedup(&message.sender, id));
        }
        looked_at += 1;
        if looked_at == DEDUP_PRUNE_ENTRIES_MAX {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    });
    for key in &stale {
        view.delete(key);
    }
    head.dedup_pruned_seq = Seq(head.dedup_pruned_seq.0 + looked_at as u64);
}

pub(super) fn advance_outbox(
    view: &mut impl View,
    cx: &mut Context<'_>,
    items: &[(ConversationId, Seq)],
) -> Effects {
    for (conversation, upto) in items {
        if !cx.slots.contains(conversation.slot()) {
            // Another shard has it since a split, and delivers it by itself.
            continue;
        }
        let keys = ConversationKeys::new(conversation);
        let key = keys.outbox();
        // Without a marker everything is delivered: this is an old worker's late word.
        let Some(marker) = load_plain::<OutboxRecord>(view, &key) else {
            continue;
        };
        let head = load_plain::<ConversationHead>(view, &keys.head()).unwrap_or_default();
        if *upto >= head.last_seq {
            view.delete(&key);
        } else if *upto > marker.delivered_upto {
            let moved = OutboxRecord {
                delivered_upto: *upto,
            };
            cx.save(view, &key, &moved);
        }
    }
    Effects::reply(Reply::Done)
}

/// Everything up to here is in the inboxes.
pub(super) fn delivered_upto(
    view: &impl View,
    keys: &ConversationKeys<'_>,
    head: &ConversationHead,
) -> Seq {
    match load_plain::<OutboxRecord>(view, &keys.outbox()) {
        Some(marker) => marker.delivered_upto,
        None => head.last_seq,
    }
}
