//! Reads that change nothing, over any [`ReadView`]: pages of timelines, inboxes, rows and
//! members, and what a new leader has to look for.
//!
//! Every page has a limit in entries, and pages of messages one in bytes too. Whether the
//! view is fresh enough to answer from is the caller's business.
//!
//! # Panics
//! All of these panic when a record of the state is damaged, as `apply` does.

use std::collections::BinaryHeap;
use std::ops::ControlFlow;

use crate::ids::{ConversationId, DeviceId, InboxSeq, Seq, SlotRange, TimestampMs, UserId};
use crate::keys::{
    self, ConversationKeys, UserKeys, outbox_of_slot, parse_inbox, parse_member, parse_message,
    parse_outbox, parse_row,
};
use crate::records::{
    ConversationHead, ConversationInfo, CursorRecord, InboxRecord, MemberRecord, MessageRecord,
    OutboxRecord, Record, Row,
};
use crate::reply::ConversationSummary;
use crate::view::{ReadView, intact, load};

/// More than the bytes that protobuf spends on a message besides its texts and content:
/// three numbers, the tags and lengths of four texts, of the content and of the message.
const MESSAGE_OVERHEAD_BYTES: usize = 64;

/// Which way a page goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Oldest first.
    Forward,
    /// Newest first.
    Backward,
}

/// Which messages a page is to have.
#[derive(Clone, Copy, Debug)]
pub struct MessagesQuery {
    /// Where to begin, inclusive; 0: at the first entry forward, at the last one backward.
    pub from: Seq,
    /// Where to end, inclusive; 0: no bound.
    pub to: Seq,
    /// Which way.
    pub direction: Direction,
    /// At most this many entries.
    pub limit: usize,
    /// At most this many bytes of encoded messages, but always one message.
    pub bytes_max: usize,
    /// The first entry that the reader may see.
    pub visible_from: Seq,
}

/// A page of a timeline.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MessagesPage {
    /// In the order asked for.
    pub messages: Vec<(Seq, MessageRecord)>,
    /// The last entry of the conversation.
    pub last_seq: Seq,
    /// Where the next page begins; 0 at the end.
    pub next_seq: Seq,
}

/// A page of a conversation's timeline. Of an unknown conversation it is empty.
pub fn messages_page(
    view: &impl ReadView,
    conversation: &ConversationId,
    query: &MessagesQuery,
) -> MessagesPage {
    let keys = ConversationKeys::new(conversation);
    let head = load::<ConversationHead>(view, &keys.head()).unwrap_or_default();
    let mut page = MessagesPage {
        last_seq: head.last_seq,
        ..MessagesPage::default()
    };
    let Some((first, last)) = bounds(query, head.last_seq) else {
        return page;
    };
    let range = keys.messages(first, last);
    let backward = query.direction == Direction::Backward;
    let mut bytes = 0;
    view.scan(&range.from, &range.to, backward, &mut |key, value| {
        let seq = intact(key, parse_message(key));
        let message_bytes = value.len() + conversation.as_bytes().len() + MESSAGE_OVERHEAD_BYTES;
        let full = page.messages.len() >= query.limit || bytes + message_bytes > query.bytes_max;
        if full && !page.messages.is_empty() {
            page.next_seq = seq;
            return ControlFlow::Break(());
        }
        bytes += message_bytes;
        let message = intact(key, MessageRecord::decode_slice(value));
        page.messages.push((seq, message));
        ControlFlow::Continue(())
    });
    page
}

/// The first and last entry that a query is about; none when there are none.
fn bounds(query: &MessagesQuery, last_seq: Seq) -> Option<(Seq, Seq)> {
    let visible = query.visible_from.max(Seq(1));
    let (first, last) = match query.direction {
        Direction::Forward => {
            let to = if query.to == Seq(0) {
                last_seq
            } else {
                query.to
            };
            (query.from, to)
        }
        Direction::Backward => {
            let from = if query.from == Seq(0) {
                last_seq
            } else {
                query.from
            };
            (query.to, from)
        }
    };
    let (first, last) = (first.max(visible), last.min(last_seq));
    (first <= last).then_some((first, last))
}

/// One entry of a timeline.
pub fn message(
    view: &impl ReadView,
    conversation: &ConversationId,
    seq: Seq,
) -> Option<MessageRecord> {
    load(view, &ConversationKeys::new(conversation).message(seq))
}

/// Entries of timelines, in the order of `wanted`; none for one that does not exist.
pub fn messages<'a>(
    view: &impl ReadView,
    wanted: impl IntoIterator<Item = (&'a ConversationId, Seq)>,
) -> Vec<Option<MessageRecord>> {
    let wanted = wanted.into_iter();
    wanted
        .map(|(conversation, seq)| message(view, conversation, seq))
        .collect()
}

/// A page of an inbox.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InboxPage {
    /// In inbox order, dense after the cursor that was given.
    pub entries: Vec<(InboxSeq, InboxRecord)>,
    /// The last entry of the inbox. A cursor beyond it never came from this inbox.
    pub head: InboxSeq,
}

/// The inbox entries after `after`, at most `limit`.
pub fn inbox_page(view: &impl ReadView, user: &UserId, after: InboxSeq, limit: usize) -> InboxPage {
    let keys = UserKeys::new(user);
    let mut page = InboxPage {
        entries: Vec::new(),
        head: inbox_head(view, user),
    };
    if after >= page.head || limit == 0 {
        return page;
    }
    let range = keys.inbox_after(after);
    view.scan(&range.from, &range.to, false, &mut |key, value| {
        let inbox_seq = intact(key, parse_inbox(key));
        let record = intact(key, InboxRecord::decode_slice(value));
        page.entries.push((inbox_seq, record));
        if page.entries.len() < limit {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        }
    });
    page
}

/// The last entry of a user's inbox; 0 when it is empty.
pub fn inbox_head(view: &impl ReadView, user: &UserId) -> InboxSeq {
    let range = UserKeys::new(user).inbox_all();
    let mut head = InboxSeq(0);
    view.scan(&range.from, &range.to, true, &mut |key, _| {
        head = intact(key, parse_inbox(key));
        ControlFlow::Break(())
    });
    head
}

/// How far a device has its user's inbox; 0 for one that never said.
pub fn cursor(view: &impl ReadView, user: &UserId, device: &DeviceId) -> InboxSeq {
    let key = UserKeys::new(user).cursor(device);
    load::<CursorRecord>(view, &key).map_or(InboxSeq(0), |cursor| cursor.inbox_seq)
}

/// A place in a conversation list: the last row of a page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowCursor {
    /// When that conversation was last active.
    pub last_at: TimestampMs,
    /// That conversation.
    pub conversation: ConversationId,
}

/// A page of a user's conversation list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RowsPage {
    /// The most recently active first; of equal ones the smaller id first.
    pub rows: Vec<(ConversationId, Row)>,
    /// Where the next page goes on; none at the end.
    pub next: Option<RowCursor>,
    /// Unread messages over all conversations, whatever the page.
    pub unread_total: u64,
}

/// A user's conversations after `after`, at most `limit`, without those they have left.
///
/// Looks at every row of the user and keeps one page of them in memory.
pub fn rows_page(
    view: &impl ReadView,
    user: &UserId,
    after: Option<&RowCursor>,
    limit: usize,
) -> RowsPage {
    // In list order: the smallest is shown first, so the heap's top is shown last.
    type Place = (std::cmp::Reverse<TimestampMs>, ConversationId);
    let after = after.map(|cursor| {
        let reversed = std::cmp::Reverse(cursor.last_at);
        (reversed, cursor.conversation.as_bytes())
    });
    let mut first: BinaryHeap<Place> = BinaryHeap::new();
    let mut unread_total = 0;
    let range = UserKeys::new(user).rows();
    view.scan(&range.from, &range.to, false, &mut |key, value| {
        let row = intact(key, Row::decode_slice(value));
        if row.left {
            return ControlFlow::Continue(());
        }
        unread_total += u64::from(row.unread);
        let place = (std::cmp::Reverse(row.last_at), intact(key, parse_row(key)));
        let too_early = after.as_ref().is_some_and(|after| place <= *after);
        let too_late = first.len() > limit
            && first
                .peek()
                .is_some_and(|last| place >= (last.0, last.1.as_bytes()));
        if !too_early && !too_late {
            let conversation = intact(key, keys::conversation(place.1));
            if first.len() > limit {
                first.pop();
            }
            first.push((place.0, conversation));
        }
        ControlFlow::Continue(())
    });
    let user_keys = UserKeys::new(user);
    let mut places = first.into_sorted_vec();
    let more = places.len() > limit;
    places.truncate(limit);
    let mut rows = Vec::with_capacity(places.len());
    for (_, conversation) in places {
        // Gone since the scan when the replica is being deleted; its answers are dropped.
        if let Some(row) = load::<Row>(view, &user_keys.row(&conversation)) {
            rows.push((conversation, row));
        }
    }
    let next = rows
        .last()
        .filter(|_| more)
        .map(|(conversation, row)| RowCursor {
            last_at: row.last_at,
            conversation: conversation.clone(),
        });
    RowsPage {
        rows,
        next,
        unread_total,
    }
}

/// A user's row of one conversation; none before the first delivery.
pub fn row(view: &impl ReadView, user: &UserId, conversation: &ConversationId) -> Option<Row> {
    load(view, &UserKeys::new(user).row(conversation))
}

/// What a conversation is and how far it goes; none when there is no such conversation.
pub fn conversation(
    view: &impl ReadView,
    conversation: &ConversationId,
) -> Option<ConversationSummary> {
    let keys = ConversationKeys::new(conversation);
    let info = load::<ConversationInfo>(view, &keys.info())?;
    let head = load::<ConversationHead>(view, &keys.head()).unwrap_or_default();
    Some(ConversationSummary::new(conversation, info, &head))
}

/// Whether a user may see a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Membership {
    /// There is no such conversation.
    NoConversation,
    /// They are not in it (any more).
    NotAMember,
    /// They are: from `joined_seq` on.
    Member(MemberRecord),
}

/// Whether `user` may see `conversation`. Right also while commands are applied between the
/// reads: a conversation begins in one step with its members.
pub fn membership(
    view: &impl ReadView,
    conversation: &ConversationId,
    user: &UserId,
) -> Membership {
    let keys = ConversationKeys::new(conversation);
    let member = || load::<MemberRecord>(view, &keys.member(user));
    let found = match member() {
        // It may have begun since: only now it is known whether they are in it.
        None if view.get(&keys.head()).is_some() => member(),
        None => return Membership::NoConversation,
        found => found,
    };
    match found {
        Some(member) if member.is_current() => Membership::Member(member),
        _ => Membership::NotAMember,
    }
}

/// A page of a conversation's members.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MembersPage {
    /// By user id, in byte order.
    pub members: Vec<(UserId, MemberRecord)>,
    /// Where the next page goes on; none at the end.
    pub next: Option<UserId>,
}

/// The members of a conversation now, after `after`, at most `limit`.
pub fn members_page(
    view: &impl ReadView,
    conversation: &ConversationId,
    after: Option<&UserId>,
    limit: usize,
) -> MembersPage {
    let mut page = MembersPage::default();
    let mut more = false;
    each_member(view, conversation, after, &mut |user, member| {
        if !member.is_current() {
            return ControlFlow::Continue(());
        }
        if page.members.len() >= limit {
            more = true;
            return ControlFlow::Break(());
        }
        page.members.push((user, member));
        ControlFlow::Continue(())
    });
    if more {
        page.next = page.members.last().map(|(user, _)| user.clone());
    }
    page
}

/// The members of a conversation by user id, with those who left a while ago: what
/// [`crate::apply::recipients`] chooses from.
pub fn members_all(
    view: &impl ReadView,
    conversation: &ConversationId,
) -> Vec<(UserId, MemberRecord)> {
    let mut members = Vec::new();
    each_member(view, conversation, None, &mut |user, member| {
        members.push((user, member));
        ControlFlow::Continue(())
    });
    members
}

fn each_member(
    view: &impl ReadView,
    conversation: &ConversationId,
    after: Option<&UserId>,
    f: &mut dyn FnMut(UserId, MemberRecord) -> ControlFlow<()>,
) {
    let range = ConversationKeys::new(conversation).members(after);
    view.scan(&range.from, &range.to, false, &mut |key, value| {
        let user = intact(key, parse_member(key));
        f(user, intact(key, MemberRecord::decode_slice(value)))
    });
}

/// How far a conversation is delivered; none when everything is.
pub fn outbox_marker(view: &impl ReadView, conversation: &ConversationId) -> Option<Seq> {
    let key = ConversationKeys::new(conversation).outbox();
    load::<OutboxRecord>(view, &key).map(|marker| marker.delivered_upto)
}

/// The conversations of a slot range that have entries to deliver, each with how far it is
/// delivered: by slot and id, after `after`, at most `limit`. For a new leader.
pub fn outbox_markers(
    view: &impl ReadView,
    slots: SlotRange,
    after: Option<&ConversationId>,
    limit: usize,
) -> Vec<(ConversationId, Seq)> {
    let mut markers = Vec::new();
    let first = after.map_or(slots.first, ConversationId::slot);
    for slot in slots.slots().filter(|slot| *slot >= first) {
        if markers.len() >= limit {
            break;
        }
        let after = after.filter(|_| slot == first);
        let range = outbox_of_slot(slot, after);
        view.scan(&range.from, &range.to, false, &mut |key, value| {
            let conversation = intact(key, parse_outbox(key));
            let marker = intact(key, OutboxRecord::decode_slice(value));
            markers.push((conversation, marker.delivered_upto));
            if markers.len() < limit {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        });
    }
    markers
}
