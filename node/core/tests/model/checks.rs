//! What must hold after a step, and at the end.

use carillon_core::command::encode_batch;
use carillon_core::memory::MemoryView;
use carillon_core::read::{
    self, Direction, Membership, MessagesQuery, inbox_page, messages_page, rows_page,
};
use carillon_core::records::{Record, Role, ShardClock};
use carillon_core::{BatchReader, Context, InboxSeq, Seq, SlotRange, apply};

use crate::driver::{Driver, SHARD, user};

impl Driver {
    /// Inboxes and conversation lists are exactly the model's.
    pub fn check_users(&self) {
        for of in (0..crate::USERS).map(user) {
            let inbox = self.chat.inbox(&of);
            let page = inbox_page(&self.view, &of, InboxSeq(0), usize::MAX);
            assert_eq!(page.head.0 as usize, inbox.entries.len());
            assert_eq!(page.entries.len(), inbox.entries.len());
            for (index, (inbox_seq, record)) in page.entries.into_iter().enumerate() {
                assert_eq!(inbox_seq.0 as usize, index + 1, "dense");
                let entry = self.chat.conversations[&record.conversation].entry(record.seq);
                assert_eq!(record.countable, entry.client_message_id.is_some());
                assert_eq!(record.sender_is_self, entry.sender == of);
                assert_eq!((record.conversation, record.seq), inbox.entries[index]);
            }
            let list = self.chat.list(&of);
            let mut rows = Vec::new();
            let mut after = None;
            loop {
                let page = rows_page(&self.view, &of, after.as_ref(), 2);
                let total: u64 = list.iter().map(|row| u64::from(row.2)).sum();
                assert_eq!(page.unread_total, total);
                rows.extend(page.rows);
                after = page.next;
                if after.is_none() {
                    break;
                }
            }
            let rows: Vec<_> = rows
                .into_iter()
                .map(|(id, row)| (id, row.last_delivered, row.unread, row.read_seq))
                .collect();
            assert_eq!(rows, list);
        }
    }

    /// Timelines, members and markers are exactly the model's.
    pub fn check_conversations(&self) {
        for (id, timeline) in &self.chat.conversations {
            let mut query = MessagesQuery {
                from: Seq(0),
                to: Seq(0),
                direction: Direction::Forward,
                limit: usize::MAX,
                bytes_max: usize::MAX,
                visible_from: Seq(1),
            };
            let forward = messages_page(&self.view, id, &query).messages;
            query.direction = Direction::Backward;
            let mut backward = messages_page(&self.view, id, &query).messages;
            backward.reverse();
            assert_eq!(forward, backward);
            assert_eq!(forward.len(), timeline.entries.len());
            for (index, (seq, message)) in forward.iter().enumerate() {
                assert_eq!(seq.0 as usize, index + 1, "dense");
                let entry = timeline.entry(*seq);
                assert_eq!(message.sender, entry.sender);
                assert_eq!(message.client_message_id, entry.client_message_id);
                assert_eq!(
                    (message.at, message.message_id.0),
                    (entry.at, entry.message_id)
                );
            }
            let summary = read::conversation(&self.view, id).expect("it exists");
            assert_eq!(summary.last_seq, timeline.end());
            assert_eq!(summary.member_count as usize, timeline.members().len());
            let page = read::members_page(&self.view, id, None, usize::MAX);
            let members: Vec<_> = page.members.iter().map(|(user, _)| user.clone()).collect();
            assert_eq!(members, timeline.members());
            for (user, member) in page.members {
                assert_eq!(Some(member.joined_seq), timeline.joined_seq(&user));
                let is_owner = timeline.owner.as_ref() == Some(&user);
                assert_eq!(member.role == Role::Owner, is_owner);
            }
            for user in (0..crate::USERS).map(user) {
                let membership = read::membership(&self.view, id, &user);
                let is_member = matches!(membership, Membership::Member(_));
                assert_eq!(is_member, timeline.is_member(&user));
            }
        }
    }

    /// Everyone has every entry of all of their stays once, in order, and nothing else.
    pub fn check_everyone_got_theirs(&self) {
        for (id, timeline) in &self.chat.conversations {
            for user in (0..crate::USERS).map(user) {
                let delivered = self.chat.delivered(&user, id);
                assert_eq!(delivered, timeline.entries_for(&user), "{user} in {id}");
            }
        }
    }

    /// A replica that gets the same commands in other batches, and remembers nothing from one
    /// batch to the next, has the same bytes.
    pub fn check_replay(&self, boundaries: &[usize]) {
        let mut view = MemoryView::new();
        let mut clock = ShardClock::default();
        let mut sizes = boundaries.iter().cycle();
        let mut rest = &self.log[..];
        while let Some((at, _, _)) = rest.first() {
            let same_time = rest.iter().take_while(|(other, _, _)| other == at).count();
            let size = same_time.min(*sizes.next().expect("a cycle does not end"));
            let (now, later) = rest.split_at(size);
            rest = later;
            let commands: Vec<_> = now.iter().map(|(_, command, _)| command.clone()).collect();
            let batch = BatchReader::new(encode_batch(*at, &commands)).expect("a batch");
            assert_eq!((batch.at(), batch.remaining()), (*at, size));
            let mut cx = Context::new(SHARD, SlotRange::ALL, batch.at(), &mut clock);
            for (command, (_, _, effects)) in batch.zip(now) {
                let command = command.expect("a command");
                assert_eq!(apply(&mut view, &mut cx, command), *effects);
            }
            clock = ShardClock::decode(&clock.encoded()).expect("a clock");
            view.forget();
        }
        assert_eq!(view, self.view);
        assert_eq!(clock, self.clock);
    }
}
