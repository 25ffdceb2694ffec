//! Runs steps on the core and on the model, and compares.
//!
//! The fan-out here does what the node's does: it reads who gets an entry from the state,
//! delivers in the order of the timeline to two inbox shards, and moves the outbox when it
//! is told to. Its position is only in memory: after a crash it begins at the marker.

use std::collections::BTreeMap;

use bytes::Bytes;
use carillon_core::memory::MemoryView;
use carillon_core::read::{self, members_all};
use carillon_core::records::ShardClock;
use carillon_core::{
    ClientMessageId, Command, Context, ConversationId, ConversationName, DeviceId, Effects, Event,
    InboxSeq, MESSAGE_ID_EPOCH_MS, Refusal, Reply, RequestId, Seq, ShardId, SlotRange, TimestampMs,
    UserId, apply,
};

use crate::oracle::{Chat, Conversation, Entry};

pub const SHARD: ShardId = ShardId(3);
const WINDOW_MS: i64 = 24 * 3_600_000;

#[derive(Clone, Debug)]
pub enum Op {
    Send {
        sender: u8,
        conversation: u8,
        message: u8,
    },
    Create {
        creator: u8,
        group: u8,
        members: u8,
        request: u8,
    },
    Add {
        actor: u8,
        conversation: u8,
        members: u8,
    },
    Remove {
        actor: u8,
        conversation: u8,
        members: u8,
    },
    Leave {
        actor: u8,
        conversation: u8,
    },
    FanOut {
        conversation: u8,
        entries: u8,
        crash: bool,
    },
    Redeliver {
        which: u16,
    },
    Advance {
        conversation: u8,
    },
    AdvanceLate {
        conversation: u8,
        upto: u8,
    },
    MarkRead {
        user: u8,
        conversation: u8,
        seq: u8,
        verified: bool,
    },
    Ack {
        user: u8,
        device: u8,
        inbox_seq: u8,
    },
    Tick {
        ms: i64,
    },
    /// The store forgets what it remembers beside the state.
    Forget,
}

pub fn user(index: u8) -> UserId {
    UserId::copied(&format!("user{index}")).expect("a valid id")
}

fn users(mask: u8) -> Vec<UserId> {
    (0..8)
        .filter(|bit| mask & (1 << bit) != 0)
        .map(user)
        .collect()
}

/// Two groups and three direct conversations.
fn conversation(index: u8) -> ConversationId {
    let id = match index {
        0 => "group0",
        1 => "group1",
        2 => "direct:user0:user1",
        3 => "direct:user0:user2",
        _ => "direct:user3:user4",
    };
    ConversationId::copied(id).expect("a valid id")
}

pub struct Driver {
    pub view: MemoryView,
    pub clock: ShardClock,
    now: TimestampMs,
    pub chat: Chat,
    /// Where the fan-out is; lost with a crash.
    positions: BTreeMap<ConversationId, Seq>,
    cursors: BTreeMap<(UserId, DeviceId), InboxSeq>,
    deliveries: Vec<Command>,
    pub log: Vec<(TimestampMs, Bytes, Effects)>,
    last_message_id: u64,
}

impl Driver {
    pub fn new() -> Driver {
        Driver {
            view: MemoryView::new(),
            clock: ShardClock::default(),
            now: TimestampMs(MESSAGE_ID_EPOCH_MS + 1_000_000_000),
            chat: Chat::default(),
            positions: BTreeMap::new(),
            cursors: BTreeMap::new(),
            deliveries: Vec::new(),
            log: Vec::new(),
            last_message_id: 0,
        }
    }

    fn apply(&mut self, command: &Command) -> Effects {
        let encoded = command.encoded();
        let decoded = Command::decode(&encoded).expect("what was encoded decodes");
        assert_eq!(decoded, *command);
        let before = self.view.clone();
        let mut cx = Context::new(SHARD, SlotRange::ALL, self.now, &mut self.clock);
        let effects = apply(&mut self.view, &mut cx, decoded);
        if matches!(effects.reply, Reply::Refused(_)) {
            assert_eq!(self.view, before, "a refused command changes nothing");
        }
        let reply = effects.reply.encoded();
        assert_eq!(Reply::decode(&reply).as_ref(), Ok(&effects.reply));
        self.log.push((self.now, encoded, effects.clone()));
        effects
    }

    pub fn step(&mut self, op: &Op) {
        match *op {
            Op::Send {
                sender,
                conversation: to,
                message,
            } => {
                self.send(user(sender), conversation(to), message);
            }
            Op::Create {
                creator,
                group,
                members,
                request,
            } => {
                self.create(user(creator), conversation(group), users(members), request);
            }
            Op::Add {
                actor,
                conversation: to,
                members,
            } => {
                self.add(user(actor), conversation(to), users(members));
            }
            Op::Remove {
                actor,
                conversation: to,
                members,
            } => {
                self.remove(user(actor), conversation(to), users(members));
            }
            Op::Leave {
                actor,
                conversation: to,
            } => {
                self.remove(user(actor), conversation(to), vec![user(actor)]);
            }
            Op::FanOut {
                conversation: of,
                entries,
                crash,
            } => {
                self.fan_out(&conversation(of), entries.into(), crash);
            }
            Op::Redeliver { which } => self.redeliver(which.into()),
            Op::Advance { conversation: of } => {
                let of = conversation(of);
                let upto = self.position(&of);
                self.advance(of, upto);
            }
            Op::AdvanceLate {
                conversation: of,
                upto,
            } => {
                let of = conversation(of);
                let upto = self.position(&of).min(Seq(upto.into()));
                self.advance(of, upto);
            }
            Op::MarkRead {
                user: of,
                conversation: to,
                seq,
                verified,
            } => {
                self.mark_read(user(of), conversation(to), Seq(seq.into()), verified);
            }
            Op::Ack {
                user: of,
                device,
                inbox_seq,
            } => {
                self.ack(user(of), device, InboxSeq(inbox_seq.into()));
            }
            Op::Tick { ms } => self.now.0 += ms,
            Op::Forget => self.view.forget(),
        }
    }

    /// Takes the entry that the core says it stored into the model.
    fn stored(&mut self, to: &ConversationId, effects: &Effects) -> Seq {
        let Some(Event::Stored {
            conversation,
            seq,
            message,
        }) = &effects.event
        else {
            panic!("nothing stored by {effects:?}");
        };
        assert_eq!(conversation, to);
        let timeline = self.chat.conversations.entry(to.clone()).or_default();
        assert_eq!(*seq, timeline.end().next(), "dense");
        assert!(message.message_id.0 > self.last_message_id, "ids grow");
        assert!(message.at >= self.now, "never before the leader's clock");
        if let Some(last) = timeline.entries.last() {
            assert!(message.at >= last.at, "times never go back");
        }
        self.last_message_id = message.message_id.0;
        timeline.entries.push(Entry {
            sender: message.sender.clone(),
            client_message_id: message.client_message_id.clone(),
            at: message.at,
            message_id: message.message_id.0,
        });
        *seq
    }

    fn send(&mut self, sender: UserId, to: ConversationId, message: u8) {
        let id = ClientMessageId::copied(&format!("m{message}")).expect("a valid id");
        let effects = self.apply(&Command::Send {
            conversation: to.clone(),
            sender: sender.clone(),
            client_message_id: id.clone(),
            content: Bytes::from(format!("message {message} of {sender}")),
        });
        let key = (to.clone(), sender.clone(), id);
        let first = self.chat.sent.get(&key).copied();
        if let Reply::Sent {
            seq,
            message_id,
            at,
            duplicate: true,
        } = effects.reply
        {
            assert_eq!(first, Some((seq, at)), "the first answer");
            let entry = self.chat.conversations[&to].entry(seq);
            assert_eq!(entry.message_id, message_id.0);
            assert_eq!(effects.event, None);
            return;
        }
        if let Some((_, at)) = first {
            let now = self.now.0.max(self.clock.last_ms.0);
            assert!(now - at.0 > WINDOW_MS, "recognised for 24 h");
        }
        let expected = match self.chat.conversations.get(&to) {
            Some(timeline) if timeline.is_member(&sender) => None,
            Some(_) => Some(Refusal::NotAMember),
            None => match to.direct_pair() {
                Some((a, b)) if sender == a || sender == b => None,
                Some(_) => Some(Refusal::NotAMember),
                None => Some(Refusal::ConversationNotFound),
            },
        };
        if let Some(refusal) = expected {
            assert_eq!(
                effects,
                Effects {
                    reply: Reply::Refused(refusal),
                    event: None
                }
            );
            return;
        }
        let seq = self.stored(&to, &effects);
        let timeline = self.chat.conversations.get_mut(&to).expect("just stored");
        if let Some((a, b)) = to.direct_pair().filter(|_| seq == Seq(1)) {
            timeline.direct = true;
            timeline.stays = [a, b].map(|user| (user, vec![(Seq(1), None)])).into();
        }
        let entry = timeline.entry(seq);
        let sent = Reply::Sent {
            seq,
            message_id: carillon_core::MessageId(entry.message_id),
            at: entry.at,
            duplicate: false,
        };
        assert_eq!(effects.reply, sent);
        self.chat.sent.insert(key, (seq, entry.at));
    }

    fn create(
        &mut self,
        creator: UserId,
        to: ConversationId,
        mut members: Vec<UserId>,
        request: u8,
    ) {
        let request = RequestId::copied(&format!("request{request}")).expect("a valid id");
        let effects = self.apply(&Command::CreateGroup {
            conversation: to.clone(),
            name: ConversationName::parse("a group").expect("a valid name"),
            creator: creator.clone(),
            members: members.clone(),
            request_id: request.clone(),
        });
        let request = Some((creator.clone(), request));
        if let Some(timeline) = self.chat.conversations.get(&to) {
            if timeline.request == request {
                let Reply::Created {
                    summary,
                    existed: true,
                } = effects.reply
                else {
                    panic!("a retry was answered with {effects:?}");
                };
                assert_eq!(summary.last_seq, timeline.end());
            } else {
                assert_eq!(effects.reply, Reply::Refused(Refusal::ConversationExists));
            }
            return;
        }
        let seq = self.stored(&to, &effects);
        assert_eq!(seq, Seq(1));
        members.push(creator.clone());
        let timeline = self.chat.conversations.get_mut(&to).expect("just stored");
        timeline.request = request;
        timeline.owner = Some(creator);
        for member in members {
            timeline.stays.insert(member, vec![(seq, None)]);
        }
        let Reply::Created {
            summary,
            existed: false,
        } = effects.reply
        else {
            panic!("a creation was answered with {effects:?}");
        };
        assert_eq!(summary.member_count as usize, timeline.members().len());
    }

    /// What refuses any change of members, for whoever asks.
    fn refusal_of_change(&self, actor: &UserId, to: &ConversationId) -> Option<Refusal> {
        match self.chat.conversations.get(to) {
            None => Some(Refusal::ConversationNotFound),
            Some(timeline) if !timeline.is_member(actor) => Some(Refusal::NotAMember),
            Some(timeline) if timeline.direct => Some(Refusal::DirectFixed),
            Some(_) => None,
        }
    }

    /// Checks the answer to a change of members; the seq of its notice when there is one.
    fn members_changed(
        &mut self,
        to: &ConversationId,
        effects: &Effects,
        expected: &[UserId],
    ) -> Option<Seq> {
        let Reply::Members { changed, summary } = &effects.reply else {
            panic!("a change of members was answered with {effects:?}");
        };
        assert_eq!(changed, expected);
        if expected.is_empty() {
            assert_eq!(effects.event, None);
            return None;
        }
        let seq = self.stored(to, effects);
        assert_eq!(summary.last_seq, seq);
        Some(seq)
    }

    fn add(&mut self, actor: UserId, to: ConversationId, members: Vec<UserId>) {
        let effects = self.apply(&Command::AddMembers {
            conversation: to.clone(),
            actor: actor.clone(),
            members: members.clone(),
        });
        if let Some(refusal) = self.refusal_of_change(&actor, &to) {
            assert_eq!(effects.reply, Reply::Refused(refusal));
            return;
        }
        let timeline = &self.chat.conversations[&to];
        let mut added = members;
        added.retain(|user| !timeline.is_member(user));
        if effects.reply == Reply::Refused(Refusal::NotDeliveredYet) {
            let delivered = read::outbox_marker(&self.view, &to).expect("undelivered entries");
            let waiting = |user: &UserId| {
                let stays = timeline.stays.get(user).cloned().unwrap_or_default();
                let ends = stays
                    .into_iter()
                    .filter(|(_, left)| *left > Some(delivered));
                ends.count() > carillon_core::apply::EARLIER_STAYS_MAX
            };
            assert!(added.iter().any(waiting));
            return;
        }
        if let Some(seq) = self.members_changed(&to, &effects, &added) {
            let timeline = self.chat.conversations.get_mut(&to).expect("it is there");
            for user in added {
                timeline.stays.entry(user).or_default().push((seq, None));
            }
        }
    }

    fn remove(&mut self, actor: UserId, to: ConversationId, members: Vec<UserId>) {
        let effects = self.apply(&Command::RemoveMembers {
            conversation: to.clone(),
            actor: actor.clone(),
            members: members.clone(),
        });
        let mut refusal = self.refusal_of_change(&actor, &to);
        if refusal.is_none() {
            let is_owner = self.chat.conversations[&to].owner.as_ref() == Some(&actor);
            if !is_owner && members.iter().any(|user| *user != actor) {
                refusal = Some(Refusal::NotOwner);
            }
        }
        if let Some(refusal) = refusal {
            assert_eq!(effects.reply, Reply::Refused(refusal));
            return;
        }
        let mut removed = members;
        removed.retain(|user| self.chat.conversations[&to].is_member(user));
        let Some(seq) = self.members_changed(&to, &effects, &removed) else {
            return;
        };
        let timeline = self.chat.conversations.get_mut(&to).expect("it is there");
        for user in &removed {
            let stays = timeline.stays.get_mut(user).expect("a member has a stay");
            stays.last_mut().expect("a member has a stay").1 = Some(seq);
        }
        if timeline
            .owner
            .as_ref()
            .is_some_and(|owner| removed.contains(owner))
        {
            let members = timeline.members().into_iter();
            timeline.owner = members.min_by_key(|user| (timeline.joined_seq(user), user.clone()));
        }
    }

    fn position(&mut self, of: &ConversationId) -> Seq {
        let marker = read::outbox_marker(&self.view, of);
        let end = self
            .chat
            .conversations
            .get(of)
            .map_or(Seq(0), Conversation::end);
        let position = self.positions.entry(of.clone());
        *position.or_insert_with(|| marker.unwrap_or(end))
    }

    fn fan_out(&mut self, of: &ConversationId, entries: u64, crash: bool) {
        let position = self.position(of);
        let end = self
            .chat
            .conversations
            .get(of)
            .map_or(Seq(0), Conversation::end);
        let last = Seq(end.0.min(position.0 + entries));
        for seq in (position.0 + 1..=last.0).map(Seq) {
            let members = members_all(&self.view, of);
            let message = read::message(&self.view, of, seq).expect("it is stored");
            let leaving: Vec<_> = carillon_core::apply::leaving(&members, seq)
                .cloned()
                .collect();
            let everyone = carillon_core::apply::recipients(&members, seq);
            let (even, odd): (Vec<_>, Vec<_>) = everyone
                .cloned()
                .partition(|user| user.slot().0.is_multiple_of(2));
            for (index, users) in [even, odd].into_iter().enumerate() {
                if users.is_empty() {
                    continue;
                }
                let command = Command::Deliver {
                    conversation: of.clone(),
                    seq,
                    at: message.at,
                    sender: message.sender.clone(),
                    countable: message.countable,
                    leaving: leaving
                        .iter()
                        .filter(|user| users.contains(user))
                        .cloned()
                        .collect(),
                    users,
                };
                self.deliver(&command);
                self.deliveries.push(command);
                if crash && seq == last && index == 0 {
                    self.positions.clear();
                    return;
                }
            }
        }
        if crash {
            self.positions.clear();
        } else {
            self.positions.insert(of.clone(), last.max(position));
        }
    }

    fn deliver(&mut self, command: &Command) {
        let Command::Deliver {
            conversation,
            seq,
            users,
            ..
        } = command
        else {
            panic!("not a delivery: {command:?}");
        };
        let effects = self.apply(command);
        assert_eq!(effects.reply, Reply::Delivered);
        let mut expected = Vec::new();
        for user in users {
            if self.chat.deliver(user, conversation, *seq) {
                let inbox_seq = InboxSeq(self.chat.inboxes[user].entries.len() as u64);
                let unread = self.chat.unread(user, conversation);
                expected.push((user.clone(), inbox_seq, unread));
            }
        }
        let actual = match effects.event {
            Some(Event::Delivered { deliveries, .. }) => deliveries,
            None => Vec::new(),
            other => panic!("a delivery led to {other:?}"),
        };
        let actual: Vec<_> = actual
            .into_iter()
            .map(|delivery| (delivery.user, delivery.inbox_seq, delivery.unread))
            .collect();
        assert_eq!(actual, expected);
    }

    fn redeliver(&mut self, which: usize) {
        if self.deliveries.is_empty() {
            return;
        }
        let before = self.view.clone();
        let command = self.deliveries[which % self.deliveries.len()].clone();
        self.deliver(&command);
        assert_eq!(self.view, before, "a second delivery changes nothing");
    }

    fn advance(&mut self, of: ConversationId, upto: Seq) {
        let effects = self.apply(&Command::AdvanceOutbox {
            items: vec![(of, upto)],
        });
        assert_eq!(
            effects,
            Effects {
                reply: Reply::Done,
                event: None
            }
        );
    }

    fn mark_read(&mut self, of: UserId, to: ConversationId, seq: Seq, verified: bool) {
        let end = self
            .chat
            .conversations
            .get(&to)
            .map_or(Seq(0), Conversation::end);
        let effects = self.apply(&Command::MarkRead {
            user: of.clone(),
            conversation: to.clone(),
            seq,
            verified_end: verified.then_some(end),
        });
        let last = self.chat.delivered(&of, &to).last().copied();
        let inbox = self.chat.inboxes.entry(of.clone()).or_default();
        let reply = match last.filter(|_| !inbox.left.contains(&to)) {
            None => Reply::Refused(Refusal::ConversationNotFound),
            Some(last) => {
                let read = inbox.read.entry(to.clone()).or_default();
                if seq > *read && seq > last && !(verified && seq <= end) {
                    Reply::Refused(Refusal::SeqBeyondEnd { end: last })
                } else {
                    *read = seq.max(*read);
                    let read_seq = *read;
                    let unread = self.chat.unread(&of, &to);
                    Reply::Read { read_seq, unread }
                }
            }
        };
        assert_eq!(effects.reply, reply);
    }

    fn ack(&mut self, of: UserId, device: u8, inbox_seq: InboxSeq) {
        let device = DeviceId::copied(&format!("device{device}")).expect("a valid id");
        self.apply(&Command::AckCursor {
            user: of.clone(),
            device: device.clone(),
            inbox_seq,
        });
        let head = InboxSeq(self.chat.inbox(&of).entries.len() as u64);
        let kept = self
            .cursors
            .entry((of.clone(), device.clone()))
            .or_default();
        *kept = (*kept).max(inbox_seq.min(head));
        assert_eq!(read::cursor(&self.view, &of, &device), *kept);
    }

    /// Restarts the fan-out from the markers and lets it finish.
    pub fn drain(&mut self) {
        self.positions.clear();
        let mut after = None;
        loop {
            let markers = read::outbox_markers(&self.view, SlotRange::ALL, after.as_ref(), 1);
            let Some((of, delivered_upto)) = markers.into_iter().next() else {
                break;
            };
            assert_eq!(self.position(&of), delivered_upto);
            self.fan_out(&of, u64::from(u32::MAX), false);
            let upto = self.position(&of);
            self.advance(of.clone(), upto);
            after = Some(of);
        }
        let left = read::outbox_markers(&self.view, SlotRange::ALL, None, usize::MAX);
        assert_eq!(left, [], "everything is delivered");
    }
}
