//! What is on its way from the conversations led here to the inbox shards: the decisions
//! of the fan-out, without its I/O.
//!
//! A destination takes as much as one batch holds while another is under way; beyond it
//! conversations lag and are read from the store later.
//!
//! Owner of the state: [`FanoutState`], under the fan-out's mutex. Invariants per
//! conversation: delivered ≤ dispatched ≤ head; entries go to one destination in seq order,
//! and a destination has at most one batch under way, so a batch is applied only after
//! every earlier one. That, with the per-user idempotency in the inbox shard, makes
//! delivery exactly once and in order through any crash. What a shard has lost to another one by
//! a split is never taken for delivered here: the other one has the outbox of it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use carillon_core::command::{DeliverEntry, encode_deliver};
use carillon_core::ids::{ConversationId, Seq, ShardId, SlotRange, UserId};
use carillon_core::records::MessageRecord;
use hashbrown::hash_map::Entry;
use hashbrown::{HashMap, HashSet};

use super::batch::BatchWriter;

/// Who gets an entry, by inbox shard.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recipients {
    /// Per shard: the users in it, and those of them whom the entry removes.
    pub shards: Vec<(ShardId, Vec<UserId>, Vec<UserId>)>,
}

/// Where entries and recipients are read when they are not at hand.
pub trait Source {
    /// An entry of a conversation.
    fn message(
        &self,
        shard: ShardId,
        conversation: &ConversationId,
        seq: Seq,
    ) -> Option<MessageRecord>;
    /// Who gets it; none when that cannot be told now.
    fn recipients(
        &self,
        shard: ShardId,
        conversation: &ConversationId,
        seq: Seq,
    ) -> Option<Recipients>;
    /// The encoded `v1.Message` of it.
    fn encode(&self, conversation: &ConversationId, seq: Seq, record: &MessageRecord) -> Bytes;
}

struct Conversation {
    shard: ShardId,
    /// Distinguishes it from one of the same id that was led here before.
    generation: u64,
    delivered: Seq,
    dispatched: Seq,
    head: Seq,
    /// For each dispatched and undelivered entry: destinations that have not applied it.
    outstanding: VecDeque<usize>,
    /// Valid until the next notice.
    recipients: Option<Arc<Recipients>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct ItemRef {
    conversation: ConversationId,
    generation: u64,
    seq: Seq,
}

/// What is stored in a shard while its outbox is read: the first and the last entry of each
/// conversation.
struct TakeOver {
    generation: u64,
    stored: HashMap<ConversationId, (Seq, Seq)>,
}

#[derive(Default)]
struct Destination {
    writer: BatchWriter,
    refs: Vec<ItemRef>,
    under_way: Option<Vec<ItemRef>>,
    /// What is under way was not done, and is dispatched anew when the routing has changed.
    moved: bool,
}

/// See the file's head.
#[derive(Default)]
pub struct FanoutState {
    led: HashSet<ShardId>,
    taking_over: HashMap<ShardId, TakeOver>,
    conversations: HashMap<ConversationId, Conversation>,
    destinations: BTreeMap<ShardId, Destination>,
    lagging: VecDeque<ConversationId>,
    lagging_listed: HashSet<ConversationId>,
    advanced: BTreeMap<ShardId, HashMap<ConversationId, Seq>>,
    generation: u64,
    /// Shards that their neighbours have taken over, with their outboxes.
    ended: HashSet<ShardId>,
    /// How often everything was dispatched anew.
    reroutes: u64,
}

impl FanoutState {
    /// A shard is led here now, and its outbox is to be read; the number is for
    /// [`FanoutState::lead`].
    pub fn take_over(&mut self, shard: ShardId) -> u64 {
        self.follow(shard);
        self.generation += 1;
        let take_over = TakeOver {
            generation: self.generation,
            stored: HashMap::new(),
        };
        self.taking_over.insert(shard, take_over);
        self.generation
    }

    /// The routing has changed: what waits to leave was grouped by the old one, so it is
    /// dropped, and all shards led here are taken over anew, as by [`FanoutState::take_over`]:
    /// nothing may be dispatched behind what is dropped.
    pub fn reroute(&mut self) -> Vec<(ShardId, u64)> {
        self.reroutes += 1;
        for destination in self.destinations.values_mut() {
            destination.writer = BatchWriter::default();
            destination.refs.clear();
            if std::mem::take(&mut destination.moved) {
                destination.under_way = None;
            }
        }
        let taking_over = self.taking_over.keys();
        let led: Vec<ShardId> = self.led.iter().chain(taking_over).copied().collect();
        led.into_iter()
            .map(|shard| (shard, self.take_over(shard)))
            .collect()
    }

    /// How often that was.
    pub fn reroutes(&self) -> u64 {
        self.reroutes
    }

    /// The batch under way to a destination, which left after so many reroutes, was not done:
    /// some of its users have another shard.
    pub fn moved(&mut self, to: ShardId, reroutes: u64) {
        let Some(destination) = self.destinations.get_mut(&to) else {
            return;
        };
        if reroutes < self.reroutes {
            destination.under_way = None;
        } else {
            destination.moved = true;
        }
    }

    /// The outbox of a shard is read: (conversation, delivered up to, last entry). The slots are
    /// those that it still has; a split may have taken others away while it was read. Nothing
    /// happens when the shard was lost or taken over again meanwhile.
    pub fn lead(
        &mut self,
        shard: ShardId,
        generation: u64,
        undelivered: Vec<(ConversationId, Seq, Seq)>,
        slots: SlotRange,
    ) {
        let known = self.taking_over.get(&shard);
        if known.is_none_or(|known| known.generation != generation) {
            return;
        }
        let mut stored = self
            .taking_over
            .remove(&shard)
            .map_or_else(HashMap::new, |known| known.stored);
        self.led.insert(shard);
        let mut all: Vec<(ConversationId, Seq, Seq)> = undelivered
            .into_iter()
            .map(|(conversation, delivered, head)| {
                let newer = stored.remove(&conversation).map_or(head, |(_, last)| last);
                (conversation, delivered, head.max(newer))
            })
            .collect();
        // With nothing in the outbox, all before what was stored since is delivered.
        let rest = stored.into_iter();
        all.extend(
            rest.map(|(conversation, (first, last))| (conversation, Seq(first.0 - 1), last)),
        );
        // That what is gone is not in the outbox here says nothing.
        all.retain(|(conversation, _, _)| slots.contains(conversation.slot()));
        for (conversation, delivered, head) in all {
            self.generation += 1;
            self.list_lagging(&conversation);
            let state = Conversation {
                shard,
                generation: self.generation,
                delivered,
                dispatched: delivered,
                head,
                outstanding: VecDeque::new(),
                recipients: None,
            };
            self.conversations.insert(conversation, state);
        }
    }

    /// A shard is not led here any more: its new leader goes on from the outbox.
    pub fn follow(&mut self, shard: ShardId) {
        self.taking_over.remove(&shard);
        if self.led.remove(&shard) {
            self.conversations
                .retain(|_, conversation| conversation.shard != shard);
            self.advanced.remove(&shard);
        }
    }

    /// A shard was taken over by its neighbour, and is never led again.
    pub fn end(&mut self, shard: ShardId) {
        self.follow(shard);
        self.ended.insert(shard);
    }

    /// Whether that has happened.
    pub fn has_ended(&self, shard: ShardId) -> bool {
        self.ended.contains(&shard)
    }

    /// An entry was stored in a shard led here, which still has the conversation.
    pub fn stored(
        &mut self,
        shard: ShardId,
        id: &ConversationId,
        seq: Seq,
        record: &MessageRecord,
        source: &impl Source,
    ) {
        if let Some(take_over) = self.taking_over.get_mut(&shard) {
            let known = take_over.stored.entry(id.clone()).or_insert((seq, seq));
            known.1 = seq;
            return;
        }
        if !self.led.contains(&shard) {
            return;
        }
        let generation = &mut self.generation;
        let mut known_here = || {
            *generation += 1;
            let before = Seq(seq.0 - 1);
            Conversation {
                shard,
                generation: *generation,
                delivered: before,
                dispatched: before,
                head: before,
                outstanding: VecDeque::new(),
                recipients: None,
            }
        };
        let conversation = match self.conversations.entry(id.clone()) {
            Entry::Vacant(vacant) => vacant.insert(known_here()),
            Entry::Occupied(occupied) => {
                let conversation = occupied.into_mut();
                if conversation.shard != shard {
                    // Another shard had it, and this one's outbox had nothing of it.
                    *conversation = known_here();
                }
                conversation
            }
        };
        if seq <= conversation.head {
            return; // the outbox had it already when this shard was taken over
        }
        let next_in_line =
            conversation.dispatched.0 + 1 == seq.0 && conversation.head == conversation.dispatched;
        conversation.head = seq;
        if next_in_line && self.dispatch(id, seq, record, source) {
            return;
        }
        self.list_lagging(id);
    }

    /// Puts the next entry of a conversation into the destinations' batches; false when one
    /// of them is full, or it cannot be told who gets it.
    fn dispatch(
        &mut self,
        id: &ConversationId,
        seq: Seq,
        record: &MessageRecord,
        source: &impl Source,
    ) -> bool {
        let Some(conversation) = self.conversations.get_mut(id) else {
            return true;
        };
        let recipients = match &conversation.recipients {
            Some(recipients) if record.countable => recipients.clone(),
            _ => match source.recipients(conversation.shard, id, seq) {
                Some(recipients) => Arc::new(recipients),
                None => return false,
            },
        };
        let full = |(shard, _, _): &(ShardId, Vec<UserId>, Vec<UserId>)| {
            self.destinations
                .get(shard)
                .is_some_and(|destination| destination.writer.is_full())
        };
        if recipients.shards.iter().any(full) {
            return false;
        }
        let message = source.encode(id, seq, record);
        for (shard, users, leaving) in &recipients.shards {
            let destination = self.destinations.entry(*shard).or_default();
            let entry = DeliverEntry {
                conversation: id,
                seq,
                at: record.at,
                sender: &record.sender,
                countable: record.countable,
            };
            destination.writer.add(&message, |buffer| {
                encode_deliver(buffer, &entry, users.iter(), leaving.iter())
            });
            destination.refs.push(ItemRef {
                conversation: id.clone(),
                generation: conversation.generation,
                seq,
            });
        }
        conversation.dispatched = seq;
        conversation.outstanding.push_back(recipients.shards.len());
        // A notice may have changed who is a member after it.
        conversation.recipients = record.countable.then_some(recipients);
        self.advance(id);
        true
    }

    /// Dispatches what lags, as far as the destinations take it.
    pub fn fill(&mut self, source: &impl Source) {
        for _ in 0..self.lagging.len() {
            let Some(id) = self.lagging.pop_front() else {
                return;
            };
            self.lagging_listed.remove(&id);
            while let Some(conversation) = self.conversations.get(&id)
                && conversation.dispatched < conversation.head
            {
                let (shard, seq) = (conversation.shard, Seq(conversation.dispatched.0 + 1));
                let Some(record) = source.message(shard, &id, seq) else {
                    self.list_lagging(&id);
                    break;
                };
                if !self.dispatch(&id, seq, &record, source) {
                    self.list_lagging(&id);
                    break;
                }
            }
        }
    }

    /// Batches that can leave now: full ones and others alike, one a destination at most.
    pub fn batches(&mut self) -> Vec<(ShardId, Bytes)> {
        let mut out = Vec::new();
        for (shard, destination) in &mut self.destinations {
            if destination.under_way.is_none() && destination.writer.items() > 0 {
                let writer = std::mem::take(&mut destination.writer);
                destination.under_way = Some(std::mem::take(&mut destination.refs));
                out.push((*shard, writer.finish()));
            }
        }
        out
    }

    /// The batch under way to a destination is applied there.
    pub fn delivered(&mut self, to: ShardId) {
        let Some(refs) = self
            .destinations
            .get_mut(&to)
            .and_then(|destination| destination.under_way.take())
        else {
            return;
        };
        for item in refs {
            let Some(conversation) = self.conversations.get_mut(&item.conversation) else {
                continue;
            };
            if conversation.generation != item.generation || item.seq <= conversation.delivered {
                continue;
            }
            let index = (item.seq.0 - conversation.delivered.0 - 1) as usize;
            if let Some(left) = conversation.outstanding.get_mut(index) {
                *left = left.saturating_sub(1);
            }
            self.advance(&item.conversation);
        }
    }

    fn advance(&mut self, id: &ConversationId) {
        let Some(conversation) = self.conversations.get_mut(id) else {
            return;
        };
        let before = conversation.delivered;
        while conversation.outstanding.front() == Some(&0) {
            conversation.outstanding.pop_front();
            conversation.delivered.0 += 1;
        }
        if conversation.delivered > before {
            self.advanced
                .entry(conversation.shard)
                .or_default()
                .insert(id.clone(), conversation.delivered);
        }
    }

    /// Conversations whose outbox can be advanced, per shard led here. One that is wholly
    /// delivered is forgotten.
    pub fn take_advanced(&mut self) -> BTreeMap<ShardId, HashMap<ConversationId, Seq>> {
        let advanced = std::mem::take(&mut self.advanced);
        for id in advanced.values().flat_map(HashMap::keys) {
            if self.conversations.get(id).is_some_and(|conversation| {
                conversation.delivered == conversation.head && conversation.recipients.is_none()
            }) {
                self.conversations.remove(id);
            }
        }
        advanced
    }

    /// Over `keep` conversations, forgets those that are wholly delivered and the recipients of
    /// the others, which are read again: what is left is small, and one for each conversation
    /// with something undelivered.
    pub fn shrink(&mut self, keep: usize) {
        if self.conversations.len() > keep {
            self.conversations.retain(|_, conversation| {
                conversation.recipients = None;
                conversation.delivered < conversation.head
            });
        }
    }

    /// Entries stored here and not in all their inboxes.
    pub fn undelivered(&self) -> u64 {
        self.conversations
            .values()
            .map(|conversation| conversation.head.0 - conversation.delivered.0)
            .sum()
    }

    /// True when nothing waits to leave or lags.
    pub fn has_work(&self) -> bool {
        !self.lagging.is_empty()
            || self.destinations.values().any(|destination| {
                destination.under_way.is_none() && destination.writer.items() > 0
            })
    }

    fn list_lagging(&mut self, id: &ConversationId) {
        if self.lagging_listed.insert(id.clone()) {
            self.lagging.push_back(id.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use carillon_core::ids::{MessageId, TimestampMs};

    struct Fixed(Recipients);

    impl Source for Fixed {
        fn message(&self, _: ShardId, _: &ConversationId, _: Seq) -> Option<MessageRecord> {
            Some(record(true))
        }
        fn recipients(&self, _: ShardId, _: &ConversationId, _: Seq) -> Option<Recipients> {
            Some(self.0.clone())
        }
        fn encode(&self, _: &ConversationId, _: Seq, _: &MessageRecord) -> Bytes {
            Bytes::from_static(b"m")
        }
    }

    fn record(countable: bool) -> MessageRecord {
        MessageRecord {
            message_id: MessageId(1),
            sender: UserId::parse("alice").expect("an id"),
            client_message_id: None,
            at: TimestampMs(1),
            countable,
            content: Bytes::new(),
        }
    }

    fn two_shards() -> Fixed {
        let user = |id: &'static str| UserId::parse(id).expect("an id");
        Fixed(Recipients {
            shards: vec![
                (ShardId(1), vec![user("alice")], vec![]),
                (ShardId(2), vec![user("bob")], vec![]),
            ],
        })
    }

    fn group() -> ConversationId {
        ConversationId::parse("g").expect("an id")
    }

    /// Shard 7 is led here, and its outbox has this.
    fn lead(state: &mut FanoutState, undelivered: Vec<(ConversationId, Seq, Seq)>) {
        let generation = state.take_over(ShardId(7));
        state.lead(ShardId(7), generation, undelivered, SlotRange::ALL);
    }

    #[test]
    fn outbox_advances_when_every_destination_has_it() {
        let (mut state, source) = (FanoutState::default(), two_shards());
        lead(&mut state, vec![]);
        state.stored(ShardId(7), &group(), Seq(1), &record(true), &source);
        assert_eq!(state.batches().len(), 2);
        state.delivered(ShardId(1));
        assert!(state.take_advanced().is_empty());
        state.delivered(ShardId(2));
        assert_eq!(state.take_advanced()[&ShardId(7)][&group()], Seq(1));
        assert_eq!(state.undelivered(), 0);
    }

    #[test]
    fn one_batch_a_destination_is_under_way() {
        let (mut state, source) = (FanoutState::default(), two_shards());
        lead(&mut state, vec![]);
        state.stored(ShardId(7), &group(), Seq(1), &record(true), &source);
        assert_eq!(state.batches().len(), 2);
        state.stored(ShardId(7), &group(), Seq(2), &record(true), &source);
        assert!(state.batches().is_empty());
        state.delivered(ShardId(2));
        let next: Vec<ShardId> = state
            .batches()
            .into_iter()
            .map(|(shard, _)| shard)
            .collect();
        assert_eq!(next, [ShardId(2)]);
    }

    #[test]
    fn a_new_leader_goes_on_from_the_outbox() {
        let (mut state, source) = (FanoutState::default(), two_shards());
        lead(&mut state, vec![(group(), Seq(3), Seq(5))]);
        state.stored(ShardId(7), &group(), Seq(5), &record(true), &source);
        state.stored(ShardId(7), &group(), Seq(6), &record(true), &source);
        state.fill(&source);
        assert_eq!(state.batches().len(), 2);
        state.delivered(ShardId(1));
        state.delivered(ShardId(2));
        assert_eq!(state.take_advanced()[&ShardId(7)][&group()], Seq(6));
    }

    #[test]
    fn what_is_stored_while_the_outbox_is_read_is_delivered_too() {
        let (mut state, source) = (FanoutState::default(), two_shards());
        let other = ConversationId::parse("other").expect("an id");
        let given_up = state.take_over(ShardId(7));
        let generation = state.take_over(ShardId(7));
        state.stored(ShardId(7), &group(), Seq(6), &record(true), &source);
        state.stored(ShardId(7), &other, Seq(9), &record(true), &source);
        state.lead(ShardId(7), given_up, vec![], SlotRange::ALL);
        assert_eq!(state.undelivered(), 0, "it is not read yet");
        // Read before the sixth was stored, or after.
        state.lead(
            ShardId(7),
            generation,
            vec![(group(), Seq(3), Seq(5))],
            SlotRange::ALL,
        );
        assert_eq!(state.undelivered(), 4);
        state.fill(&source);
        assert_eq!(state.batches().len(), 2);
        state.delivered(ShardId(1));
        state.delivered(ShardId(2));
        let advanced = state.take_advanced();
        assert_eq!(advanced[&ShardId(7)][&group()], Seq(6));
        assert_eq!(advanced[&ShardId(7)][&other], Seq(9));
    }

    #[test]
    fn an_answer_for_an_earlier_leadership_counts_nothing() {
        let (mut state, source) = (FanoutState::default(), two_shards());
        lead(&mut state, vec![]);
        state.stored(ShardId(7), &group(), Seq(1), &record(true), &source);
        assert_eq!(state.batches().len(), 2);
        state.follow(ShardId(7));
        lead(&mut state, vec![(group(), Seq(0), Seq(1))]);
        state.fill(&source);
        state.delivered(ShardId(1));
        state.delivered(ShardId(2));
        assert!(state.take_advanced().is_empty());
        assert_eq!(state.batches().len(), 2);
        state.delivered(ShardId(1));
        state.delivered(ShardId(2));
        assert_eq!(state.take_advanced()[&ShardId(7)][&group()], Seq(1));
    }

    #[test]
    fn nothing_is_dispatched_behind_what_a_reroute_drops() {
        let (mut state, source) = (FanoutState::default(), two_shards());
        lead(&mut state, vec![]);
        state.stored(ShardId(7), &group(), Seq(1), &record(true), &source);
        let [(shard, generation)] = state.reroute()[..] else {
            panic!("one shard is led");
        };
        state.stored(ShardId(7), &group(), Seq(2), &record(true), &source);
        assert!(state.batches().is_empty(), "the first entry is not in it");
        state.lead(
            shard,
            generation,
            vec![(group(), Seq(0), Seq(1))],
            SlotRange::ALL,
        );
        state.fill(&source);
        assert_eq!(state.batches().len(), 2);
        state.delivered(ShardId(1));
        state.delivered(ShardId(2));
        assert_eq!(state.take_advanced()[&ShardId(7)][&group()], Seq(2));
    }

    #[test]
    fn a_destination_whose_users_have_moved_waits_for_the_reroute() {
        let (mut state, source) = (FanoutState::default(), two_shards());
        lead(&mut state, vec![]);
        state.stored(ShardId(7), &group(), Seq(1), &record(true), &source);
        let left_at = state.reroutes();
        assert_eq!(state.batches().len(), 2);
        state.moved(ShardId(1), left_at);
        let [(shard, generation)] = state.reroute()[..] else {
            panic!("one shard is led");
        };
        // The other one hears of it after the reroute.
        state.moved(ShardId(2), left_at);
        state.lead(
            shard,
            generation,
            vec![(group(), Seq(0), Seq(1))],
            SlotRange::ALL,
        );
        state.fill(&source);
        assert_eq!(state.batches().len(), 2, "both take batches again");
    }

    #[test]
    fn a_shard_that_takes_another_over_goes_on_from_the_others_outbox() {
        let (mut state, source) = (FanoutState::default(), two_shards());
        lead(&mut state, vec![]);
        state.stored(ShardId(7), &group(), Seq(1), &record(true), &source);
        assert_eq!(state.batches().len(), 2);
        state.end(ShardId(7));
        let generation = state.take_over(ShardId(6));
        // Stored by the one that has it now, while the outbox is read.
        state.stored(ShardId(6), &group(), Seq(2), &record(true), &source);
        assert!(state.batches().is_empty(), "the first entry is not in it");
        state.lead(
            ShardId(6),
            generation,
            vec![(group(), Seq(0), Seq(1))],
            SlotRange::ALL,
        );
        state.fill(&source);
        state.delivered(ShardId(1));
        state.delivered(ShardId(2));
        assert!(state.take_advanced().is_empty(), "of the one that is gone");
        assert_eq!(state.batches().len(), 2);
        state.delivered(ShardId(1));
        state.delivered(ShardId(2));
        assert_eq!(state.take_advanced()[&ShardId(6)][&group()], Seq(2));
        assert!(state.has_ended(ShardId(7)) && !state.has_ended(ShardId(6)));
    }

    #[test]
    fn what_a_split_takes_away_while_the_outbox_is_read_is_left_to_the_new_shard() {
        let (mut state, source) = (FanoutState::default(), two_shards());
        let slot = group().slot();
        let (before, _) = SlotRange::ALL.split(slot).expect("not the first slot");
        // Up to the third it is in the outbox, which the other shard has by the time of reading.
        let generation = state.take_over(ShardId(7));
        state.stored(ShardId(7), &group(), Seq(4), &record(true), &source);
        state.lead(ShardId(7), generation, vec![], before);
        assert_eq!(state.undelivered(), 0);
        // The same when it was read before.
        let generation = state.take_over(ShardId(7));
        let undelivered = vec![(group(), Seq(0), Seq(4))];
        state.lead(ShardId(7), generation, undelivered.clone(), before);
        assert_eq!(state.undelivered(), 0);
        let generation = state.take_over(ShardId(8));
        state.lead(ShardId(8), generation, undelivered, SlotRange::ALL);
        state.fill(&source);
        assert_eq!(state.batches().len(), 2);
        state.delivered(ShardId(1));
        state.delivered(ShardId(2));
        assert_eq!(state.take_advanced()[&ShardId(8)][&group()], Seq(4));
    }

    #[test]
    fn a_conversation_that_has_another_shard_is_that_shards() {
        let (mut state, source) = (FanoutState::default(), two_shards());
        lead(&mut state, vec![]);
        state.stored(ShardId(7), &group(), Seq(1), &record(true), &source);
        assert_eq!(state.batches().len(), 2);
        state.delivered(ShardId(1));
        state.delivered(ShardId(2));
        // By a split it is of shard 8; all is delivered, so its outbox is empty.
        let generation = state.take_over(ShardId(8));
        state.lead(ShardId(8), generation, vec![], SlotRange::ALL);
        state.stored(ShardId(8), &group(), Seq(2), &record(true), &source);
        assert_eq!(state.batches().len(), 2);
        // The shard that had it is led elsewhere: that changes nothing here.
        state.follow(ShardId(7));
        state.delivered(ShardId(1));
        state.delivered(ShardId(2));
        assert_eq!(state.take_advanced()[&ShardId(8)][&group()], Seq(2));
    }

    #[test]
    fn who_gets_it_is_asked_again_when_nobody_can_tell() {
        struct Gone;
        impl Source for Gone {
            fn message(&self, _: ShardId, _: &ConversationId, _: Seq) -> Option<MessageRecord> {
                Some(record(true))
            }
            fn recipients(&self, _: ShardId, _: &ConversationId, _: Seq) -> Option<Recipients> {
                None
            }
            fn encode(&self, _: &ConversationId, _: Seq, _: &MessageRecord) -> Bytes {
                Bytes::new()
            }
        }
        let mut state = FanoutState::default();
        lead(&mut state, vec![]);
        state.stored(ShardId(7), &group(), Seq(1), &record(true), &Gone);
        state.fill(&Gone);
        assert!(state.take_advanced().is_empty(), "nobody has it");
        state.fill(&two_shards());
        assert_eq!(state.batches().len(), 2);
    }

    #[test]
    fn a_full_destination_makes_conversations_lag_and_loses_nothing() {
        let (mut state, source) = (FanoutState::default(), two_shards());
        lead(&mut state, vec![]);
        let last = u64::from(super::super::batch::BATCH_ITEMS_MAX) + 100;
        for seq in 1..=last {
            state.stored(ShardId(7), &group(), Seq(seq), &record(true), &source);
        }
        for _ in 0..4 {
            state.fill(&source);
            for (shard, _) in state.batches() {
                state.delivered(shard);
            }
        }
        assert_eq!(state.undelivered(), 0);
        assert_eq!(state.take_advanced()[&ShardId(7)][&group()], Seq(last));
    }
}
