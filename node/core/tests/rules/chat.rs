//! One shard with its clock, driven by short names.

use bytes::Bytes;
use carillon_core::apply::{leaving, recipients};
use carillon_core::memory::MemoryView;
use carillon_core::read::{self, inbox_page, members_all};
use carillon_core::records::ShardClock;
use carillon_core::view::{ReadView, Visitor};
use carillon_core::*;

pub const START: TimestampMs = TimestampMs(MESSAGE_ID_EPOCH_MS + 1_000);

pub fn user(id: &str) -> UserId {
    UserId::copied(id).expect("a valid id")
}

pub fn users(ids: &[&str]) -> Vec<UserId> {
    ids.iter().map(|id| user(id)).collect()
}

pub fn conversation(id: &str) -> ConversationId {
    ConversationId::copied(id).expect("a valid id")
}

/// One shard with its clock.
pub struct Chat {
    pub view: MemoryView,
    pub clock: ShardClock,
    pub now: TimestampMs,
}

impl Chat {
    pub fn new() -> Chat {
        Chat {
            view: MemoryView::new(),
            clock: ShardClock::default(),
            now: START,
        }
    }

    pub fn apply(&mut self, command: Command) -> Effects {
        let mut cx = Context::new(ShardId(1), SlotRange::ALL, self.now, &mut self.clock);
        apply(&mut self.view, &mut cx, command)
    }

    pub fn send(&mut self, to: &str, sender: &str, id: &str) -> Reply {
        let command = Command::Send {
            conversation: conversation(to),
            sender: user(sender),
            client_message_id: ClientMessageId::copied(id).expect("a valid id"),
            content: Bytes::from_static(b"hello"),
        };
        self.apply(command).reply
    }

    pub fn sent(&mut self, to: &str, sender: &str, id: &str) -> (u64, bool) {
        match self.send(to, sender, id) {
            Reply::Sent { seq, duplicate, .. } => (seq.0, duplicate),
            other => panic!("not sent: {other:?}"),
        }
    }

    pub fn create(&mut self, id: &str, creator: &str, members: &[&str]) -> Reply {
        let command = Command::CreateGroup {
            conversation: conversation(id),
            name: ConversationName::parse("a group").expect("a valid name"),
            creator: user(creator),
            members: users(members),
            request_id: RequestId::copied("request").expect("a valid id"),
        };
        self.apply(command).reply
    }

    pub fn add(&mut self, to: &str, actor: &str, members: Vec<UserId>) -> Reply {
        let command = Command::AddMembers {
            conversation: conversation(to),
            actor: user(actor),
            members,
        };
        self.apply(command).reply
    }

    pub fn remove(&mut self, to: &str, actor: &str, members: &[&str]) -> Reply {
        let command = Command::RemoveMembers {
            conversation: conversation(to),
            actor: user(actor),
            members: users(members),
        };
        self.apply(command).reply
    }

    pub fn read(&mut self, to: &str, of: &str, seq: u64, verified_end: Option<u64>) -> Reply {
        let command = Command::MarkRead {
            user: user(of),
            conversation: conversation(to),
            seq: Seq(seq),
            verified_end: verified_end.map(Seq),
        };
        self.apply(command).reply
    }

    /// Delivers everything of a conversation that waits.
    pub fn deliver_all(&mut self, of: &str) {
        let of = conversation(of);
        let Some(delivered) = read::outbox_marker(&self.view, &of) else {
            return;
        };
        let end = read::conversation(&self.view, &of)
            .expect("it exists")
            .last_seq;
        for seq in (delivered.0 + 1..=end.0).map(Seq) {
            let message = read::message(&self.view, &of, seq).expect("it is stored");
            let members = members_all(&self.view, &of);
            self.apply(Command::Deliver {
                conversation: of.clone(),
                seq,
                at: message.at,
                sender: message.sender,
                countable: message.countable,
                users: recipients(&members, seq).cloned().collect(),
                leaving: leaving(&members, seq).cloned().collect(),
            });
        }
        let items = vec![(of, end)];
        self.apply(Command::AdvanceOutbox { items });
    }

    /// The seqs of `of` in the inbox of `user`.
    pub fn delivered(&self, of: &str, to: &str) -> Vec<u64> {
        let page = inbox_page(&self.view, &user(to), InboxSeq(0), usize::MAX);
        let entries = page.entries.into_iter();
        let entries = entries.filter(|(_, record)| record.conversation == conversation(of));
        entries.map(|(_, record)| record.seq.0).collect()
    }
}

pub fn refused(refusal: Refusal) -> Reply {
    Reply::Refused(refusal)
}

/// A view whose state changes to another one after some reads: what a query sees that reads
/// while commands are applied.
pub struct Changing<'a> {
    pub before: &'a MemoryView,
    pub after: &'a MemoryView,
    /// Reads that still see the state before.
    pub reads_left: std::cell::Cell<u32>,
}

impl Changing<'_> {
    fn now(&self) -> &MemoryView {
        match self.reads_left.get() {
            0 => self.after,
            left => {
                self.reads_left.set(left - 1);
                self.before
            }
        }
    }
}

impl ReadView for Changing<'_> {
    fn get(&self, key: &[u8]) -> Option<Bytes> {
        self.now().get(key)
    }

    fn scan(&self, from: &[u8], to: &[u8], reverse: bool, f: Visitor<'_>) {
        self.now().scan(from, to, reverse, f);
    }
}
