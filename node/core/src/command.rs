//! Commands, and the batch of them that is one Raft entry.
//!
//! A batch: version (u8), the leader's time (i64, big-endian), the number of commands
//! (u32, big-endian), then each command after its length (varint). Commands are encoded
//! by whoever makes them and travel as bytes; [`BatchReader`] decodes them from the
//! entry, and every id and content in them is a slice of its memory.
//!
//! The forms are in logs on disk: a new field takes a new tag, and old tags stay readable.

use bytes::{BufMut, Bytes, BytesMut};

use crate::codec::{Corrupt, Reader, put_bytes, put_signed, put_varint};
use crate::ids::{
    ClientMessageId, ConversationId, ConversationName, DeviceId, InboxSeq, RequestId, SLOTS, Seq,
    ShardId, Slot, SlotRange, TimestampMs, UserId,
};
use crate::map::Replica;
use crate::merging::MergeId;
use crate::records::{read_option, write_option};

/// The version of the batch that is written, and the only one so far.
const BATCH_VERSION: u8 = 1;
/// The bytes of a batch before its first command.
pub const BATCH_HEADER_BYTES: usize = 1 + 8 + 4;

mod tag {
    pub const SEND: u8 = 1;
    pub const CREATE_GROUP: u8 = 2;
    pub const ADD_MEMBERS: u8 = 3;
    pub const REMOVE_MEMBERS: u8 = 4;
    pub const ADVANCE_OUTBOX: u8 = 5;
    pub const DELIVER: u8 = 6;
    pub const MARK_READ: u8 = 7;
    pub const ACK_CURSOR: u8 = 8;
    pub const CHECKSUM: u8 = 9;
    pub const PROBE: u8 = 10;
    pub const SPLIT: u8 = 11;
    pub const FREEZE: u8 = 12;
    pub const THAW: u8 = 13;
    pub const ABSORB: u8 = 14;
}

/// One change of a shard's state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// A user's message.
    Send {
        /// Where to.
        conversation: ConversationId,
        /// Who sends it.
        sender: UserId,
        /// The sender's own id of it: a second one with the same id changes nothing.
        client_message_id: ClientMessageId,
        /// The encoded protobuf `Content`.
        content: Bytes,
    },
    /// Creates a group; its first entry is the notice of it.
    CreateGroup {
        /// The new id, without ':'.
        conversation: ConversationId,
        /// For people.
        name: ConversationName,
        /// Becomes its owner.
        creator: UserId,
        /// The other first members; the creator and repetitions in it do not count.
        members: Vec<UserId>,
        /// The same on every retry.
        request_id: RequestId,
    },
    /// Adds members to a group.
    AddMembers {
        /// The group.
        conversation: ConversationId,
        /// Who adds them; a member.
        actor: UserId,
        /// Who is to be a member.
        members: Vec<UserId>,
    },
    /// Removes members from a group.
    RemoveMembers {
        /// The group.
        conversation: ConversationId,
        /// Who removes them: the owner, or the one user who leaves.
        actor: UserId,
        /// Who is not to be a member.
        members: Vec<UserId>,
    },
    /// Everything up to these entries is in the inboxes.
    AdvanceOutbox {
        /// Conversations of one shard, each with its last delivered entry.
        items: Vec<(ConversationId, Seq)>,
    },
    /// Puts one entry into the inboxes of users of one shard.
    Deliver {
        /// The entry's conversation.
        conversation: ConversationId,
        /// The entry.
        seq: Seq,
        /// When it was accepted.
        at: TimestampMs,
        /// Who sent it.
        sender: UserId,
        /// Whether it counts as unread.
        countable: bool,
        /// Who gets it, in this shard.
        users: Vec<UserId>,
        /// Those of `users` whom this notice removes.
        leaving: Vec<UserId>,
    },
    /// Moves a user's read position forward.
    MarkRead {
        /// Whose.
        user: UserId,
        /// In which conversation.
        conversation: ConversationId,
        /// Everything up to here is read.
        seq: Seq,
        /// The conversation's end as its own shard told it; needed only when `seq` is
        /// beyond what was delivered to the user.
        verified_end: Option<Seq>,
    },
    /// Keeps how far a device has its user's inbox.
    AckCursor {
        /// Whose device.
        user: UserId,
        /// Which.
        device: DeviceId,
        /// The last entry that it has.
        inbox_seq: InboxSeq,
    },
    /// Changes nothing; every replica computes its state's checksum at this point.
    Checksum {
        /// Names the answer.
        nonce: u64,
    },
    /// Changes nothing: measures what replication costs by itself.
    Probe {
        /// Makes it as large as it should be.
        filler: Bytes,
    },
    /// Gives the shard's last slots to a new shard, with all that is in them. Does nothing
    /// when that has been done.
    Split {
        /// The new shard.
        new_shard: ShardId,
        /// Its first slot.
        at: Slot,
        /// Its replicas, on the nodes that have the shard's.
        replicas: Vec<Replica>,
    },
    /// Freezes the shard, so that its left neighbour can take it over: from here on nothing
    /// changes it but being thawed. Does nothing when the merge is not newer than the last one
    /// that has frozen or thawed it.
    Freeze {
        /// For which merge.
        merge_id: MergeId,
    },
    /// Thaws the shard, and keeps it from being frozen for this merge. Does nothing when a
    /// later one has frozen it.
    Thaw {
        /// Of which merge.
        merge_id: MergeId,
    },
    /// Takes over the shard's right neighbour with all that is in it, which must be frozen for
    /// this merge. Does nothing when that has been done.
    Absorb {
        /// The merge.
        merge_id: MergeId,
        /// The neighbour.
        shard: ShardId,
        /// What it has.
        slots: SlotRange,
    },
}

impl Command {
    /// The slot whose shard this command belongs to; none when any shard takes it, or
    /// when it is about nobody.
    pub fn slot(&self) -> Option<Slot> {
        match self {
            Command::Send { conversation, .. }
            | Command::CreateGroup { conversation, .. }
            | Command::AddMembers { conversation, .. }
            | Command::RemoveMembers { conversation, .. } => Some(conversation.slot()),
            Command::Deliver { users, .. } => users.first().map(UserId::slot),
            Command::MarkRead { user, .. } | Command::AckCursor { user, .. } => Some(user.slot()),
            Command::AdvanceOutbox { .. }
            | Command::Checksum { .. }
            | Command::Probe { .. }
            | Command::Split { .. }
            | Command::Freeze { .. }
            | Command::Thaw { .. }
            | Command::Absorb { .. } => None,
        }
    }

    /// Whether a shard with these slots has all that the command is about.
    pub(crate) fn is_within(&self, slots: SlotRange) -> bool {
        match self {
            Command::Deliver { users, .. } => users.iter().all(|user| slots.contains(user.slot())),
            other => other.slot().is_none_or(|slot| slots.contains(slot)),
        }
    }

    /// Whether a frozen shard does what the command says: what freezes and thaws it, and what
    /// changes nothing.
    pub(crate) fn passes_frozen(&self) -> bool {
        matches!(
            self,
            Command::Freeze { .. } | Command::Thaw { .. } | Command::Checksum { .. }
        )
    }

    /// Appends the command to `out`.
    pub fn encode(&self, out: &mut BytesMut) {
        match self {
            Command::Send {
                conversation,
                sender,
                client_message_id,
                content,
            } => encode_send(out, conversation, sender, client_message_id, content),
            Command::CreateGroup {
                conversation,
                name,
                creator,
                members,
                request_id,
            } => {
                out.put_u8(tag::CREATE_GROUP);
                conversation.write(out);
                name.write(out);
                creator.write(out);
                write_users(out, members.iter());
                request_id.write(out);
            }
            Command::AddMembers {
                conversation,
                actor,
                members,
            } => encode_members(out, tag::ADD_MEMBERS, conversation, actor, members),
            Command::RemoveMembers {
                conversation,
                actor,
                members,
            } => encode_members(out, tag::REMOVE_MEMBERS, conversation, actor, members),
            Command::AdvanceOutbox { items } => {
                encode_advance_outbox(out, items.iter().map(|(id, upto)| (id, *upto)));
            }
            Command::Deliver {
                conversation,
                seq,
                at,
                sender,
                countable,
                users,
                leaving,
            } => {
                let entry = DeliverEntry {
                    conversation,
                    seq: *seq,
                    at: *at,
                    sender,
                    countable: *countable,
                };
                encode_deliver(out, &entry, users.iter(), leaving.iter());
            }
            Command::MarkRead {
                user,
                conversation,
                seq,
                verified_end,
            } => {
                out.put_u8(tag::MARK_READ);
                user.write(out);
                conversation.write(out);
                put_varint(out, seq.0);
                write_option(out, verified_end.as_ref(), |end, out| {
                    put_varint(out, end.0);
                });
            }
            Command::AckCursor {
                user,
                device,
                inbox_seq,
            } => encode_ack_cursor(out, user, device, *inbox_seq),
            Command::Checksum { nonce } => {
                out.put_u8(tag::CHECKSUM);
                put_varint(out, *nonce);
            }
            Command::Probe { filler } => {
                out.put_u8(tag::PROBE);
                put_bytes(out, filler);
            }
            Command::Split {
                new_shard,
                at,
                replicas,
            } => {
                out.put_u8(tag::SPLIT);
                put_varint(out, u64::from(new_shard.0));
                put_varint(out, u64::from(at.0));
                put_varint(out, replicas.len() as u64);
                for replica in replicas {
                    replica.write(out);
                }
            }
            Command::Freeze { merge_id } => {
                out.put_u8(tag::FREEZE);
                put_varint(out, merge_id.0);
            }
            Command::Thaw { merge_id } => {
                out.put_u8(tag::THAW);
                put_varint(out, merge_id.0);
            }
            Command::Absorb {
                merge_id,
                shard,
                slots,
            } => {
                out.put_u8(tag::ABSORB);
                put_varint(out, merge_id.0);
                put_varint(out, u64::from(shard.0));
                put_varint(out, u64::from(slots.first.0));
                put_varint(out, u64::from(slots.last.0));
            }
        }
    }

    /// The command in a buffer of its own.
    pub fn encoded(&self) -> Bytes {
        let mut out = BytesMut::new();
        self.encode(&mut out);
        out.freeze()
    }

    /// Decodes one command; its strings are slices of `bytes`.
    ///
    /// # Errors
    /// [`Corrupt`] when it is none.
    pub fn decode(bytes: &Bytes) -> Result<Command, Corrupt> {
        let mut reader = Reader::shared("command", bytes);
        let command = read_command(&mut reader)?;
        reader.finish()?;
        Ok(command)
    }
}

fn encode_members(
    out: &mut BytesMut,
    tag: u8,
    conversation: &ConversationId,
    actor: &UserId,
    members: &[UserId],
) {
    out.put_u8(tag);
    conversation.write(out);
    actor.write(out);
    write_users(out, members.iter());
}

pub(crate) fn write_users<'a>(
    out: &mut BytesMut,
    users: impl ExactSizeIterator<Item = &'a UserId>,
) {
    put_varint(out, users.len() as u64);
    for user in users {
        user.write(out);
    }
}

pub(crate) fn read_users(reader: &mut Reader<'_>) -> Result<Vec<UserId>, Corrupt> {
    let count = reader.count()?;
    let mut users = Vec::with_capacity(count);
    for _ in 0..count {
        users.push(UserId::read(reader)?);
    }
    Ok(users)
}

/// Appends a [`Command::Send`] made of borrowed parts.
pub fn encode_send(
    out: &mut BytesMut,
    conversation: &ConversationId,
    sender: &UserId,
    client_message_id: &ClientMessageId,
    content: &[u8],
) {
    let ids = conversation.as_bytes().len()
        + sender.as_bytes().len()
        + client_message_id.as_bytes().len();
    out.reserve(16 + ids + content.len());
    out.put_u8(tag::SEND);
    conversation.write(out);
    sender.write(out);
    client_message_id.write(out);
    put_bytes(out, content);
}

/// What a [`Command::Deliver`] says of its entry.
#[derive(Clone, Copy, Debug)]
pub struct DeliverEntry<'a> {
    /// The entry's conversation.
    pub conversation: &'a ConversationId,
    /// The entry.
    pub seq: Seq,
    /// When it was accepted.
    pub at: TimestampMs,
    /// Who sent it.
    pub sender: &'a UserId,
    /// Whether it counts as unread.
    pub countable: bool,
}

/// Appends a [`Command::Deliver`] made of borrowed parts.
pub fn encode_deliver<'a>(
    out: &mut BytesMut,
    entry: &DeliverEntry<'_>,
    users: impl ExactSizeIterator<Item = &'a UserId>,
    leaving: impl ExactSizeIterator<Item = &'a UserId>,
) {
    out.put_u8(tag::DELIVER);
    entry.conversation.write(out);
    put_varint(out, entry.seq.0);
    put_signed(out, entry.at.0);
    entry.sender.write(out);
    out.put_u8(u8::from(entry.countable));
    write_users(out, users);
    write_users(out, leaving);
}

/// Appends a [`Command::AdvanceOutbox`] made of borrowed parts.
pub fn encode_advance_outbox<'a>(
    out: &mut BytesMut,
    items: impl ExactSizeIterator<Item = (&'a ConversationId, Seq)>,
) {
    out.put_u8(tag::ADVANCE_OUTBOX);
    put_varint(out, items.len() as u64);
    for (conversation, upto) in items {
        conversation.write(out);
        put_varint(out, upto.0);
    }
}

/// Appends a [`Command::AckCursor`] made of borrowed parts.
pub fn encode_ack_cursor(
    out: &mut BytesMut,
    user: &UserId,
    device: &DeviceId,
    inbox_seq: InboxSeq,
) {
    out.put_u8(tag::ACK_CURSOR);
    user.write(out);
    device.write(out);
    put_varint(out, inbox_seq.0);
}

fn read_command(reader: &mut Reader<'_>) -> Result<Command, Corrupt> {
    Ok(match reader.u8()? {
        tag::SEND => Command::Send {
            conversation: ConversationId::read(reader)?,
            sender: UserId::read(reader)?,
            client_message_id: ClientMessageId::read(reader)?,
            content: reader.bytes()?,
        },
        tag::CREATE_GROUP => Command::CreateGroup {
            conversation: ConversationId::read(reader)?,
            name: ConversationName::read(reader)?,
            creator: UserId::read(reader)?,
            members: read_users(reader)?,
            request_id: RequestId::read(reader)?,
        },
        tag::ADD_MEMBERS => Command::AddMembers {
            conversation: ConversationId::read(reader)?,
            actor: UserId::read(reader)?,
            members: read_users(reader)?,
        },
        tag::REMOVE_MEMBERS => Command::RemoveMembers {
            conversation: ConversationId::read(reader)?,
            actor: UserId::read(reader)?,
            members: read_users(reader)?,
        },
        tag::ADVANCE_OUTBOX => {
            let count = reader.count()?;
            let mut items = Vec::with_capacity(count);
            for _ in 0..count {
                items.push((ConversationId::read(reader)?, Seq(reader.varint()?)));
            }
            Command::AdvanceOutbox { items }
        }
        tag::DELIVER => Command::Deliver {
            conversation: ConversationId::read(reader)?,
            seq: Seq(reader.varint()?),
            at: TimestampMs(reader.signed()?),
            sender: UserId::read(reader)?,
            countable: reader.flag()?,
            users: read_users(reader)?,
            leaving: read_users(reader)?,
        },
        tag::MARK_READ => Command::MarkRead {
            user: UserId::read(reader)?,
            conversation: ConversationId::read(reader)?,
            seq: Seq(reader.varint()?),
            verified_end: read_option(reader, |reader| reader.varint().map(Seq))?,
        },
        tag::ACK_CURSOR => Command::AckCursor {
            user: UserId::read(reader)?,
            device: DeviceId::read(reader)?,
            inbox_seq: InboxSeq(reader.varint()?),
        },
        tag::CHECKSUM => Command::Checksum {
            nonce: reader.varint()?,
        },
        tag::PROBE => Command::Probe {
            filler: reader.bytes()?,
        },
        tag::SPLIT => {
            let new_shard = ShardId(reader.varint32()?);
            let at = read_slot(reader)?;
            let count = reader.count()?;
            let mut replicas = Vec::with_capacity(count);
            for _ in 0..count {
                replicas.push(Replica::read(reader)?);
            }
            Command::Split {
                new_shard,
                at,
                replicas,
            }
        }
        tag::FREEZE => Command::Freeze {
            merge_id: MergeId(reader.varint()?),
        },
        tag::THAW => Command::Thaw {
            merge_id: MergeId(reader.varint()?),
        },
        tag::ABSORB => {
            let merge_id = MergeId(reader.varint()?);
            let shard = ShardId(reader.varint32()?);
            let (first, last) = (read_slot(reader)?, read_slot(reader)?);
            if last < first {
                return Err(reader.corrupt("slots are reversed"));
            }
            Command::Absorb {
                merge_id,
                shard,
                slots: SlotRange { first, last },
            }
        }
        _ => return Err(reader.corrupt("the command is unknown")),
    })
}

fn read_slot(reader: &mut Reader<'_>) -> Result<Slot, Corrupt> {
    match u16::try_from(reader.varint()?) {
        Ok(slot) if slot < SLOTS => Ok(Slot(slot)),
        _ => Err(reader.corrupt("a slot is too large")),
    }
}

/// Appends the header of a batch of `count` commands, stamped with the leader's time.
pub fn encode_batch_header(out: &mut BytesMut, at: TimestampMs, count: u32) {
    out.put_u8(BATCH_VERSION);
    out.put_i64(at.0);
    out.put_u32(count);
}

/// Appends an encoded command to a batch.
#[inline]
pub fn push_command(batch: &mut BytesMut, command: &[u8]) {
    put_bytes(batch, command);
}

/// The bytes that [`push_command`] adds for a command of `command_bytes`.
pub fn pushed_bytes(command_bytes: usize) -> usize {
    crate::codec::varint_length(command_bytes as u64) + command_bytes
}

/// A whole batch of encoded commands, stamped with the leader's time.
///
/// # Panics
/// With more than `u32::MAX` commands.
pub fn encode_batch(at: TimestampMs, commands: &[Bytes]) -> Bytes {
    let size = commands
        .iter()
        .map(|command| pushed_bytes(command.len()))
        .sum::<usize>();
    let mut batch = BytesMut::with_capacity(BATCH_HEADER_BYTES + size);
    let count = u32::try_from(commands.len()).expect("a batch has fewer than 2^32 commands");
    encode_batch_header(&mut batch, at, count);
    for command in commands {
        push_command(&mut batch, command);
    }
    batch.freeze()
}

/// Whether an encoded command has to be the only one of its batch: the state right after
/// it is looked at, so nothing may follow it in the same write.
pub fn stands_alone(command: &[u8]) -> bool {
    matches!(
        command.first(),
        Some(&(tag::CHECKSUM | tag::SPLIT | tag::FREEZE | tag::THAW | tag::ABSORB))
    )
}

/// Whether an encoded command is for a frozen shard too: what freezes and thaws it, and what
/// changes nothing. All of them stand alone.
pub fn passes_frozen(command: &[u8]) -> bool {
    matches!(
        command.first(),
        Some(&(tag::CHECKSUM | tag::FREEZE | tag::THAW))
    )
}

/// Whether the first command of a batch is one that stands alone.
pub fn is_standing_alone(batch: &[u8]) -> bool {
    let Some(rest) = batch.get(BATCH_HEADER_BYTES..) else {
        return false;
    };
    // Its length is before it: all bytes of it but the last have the highest bit.
    let last = rest.iter().position(|byte| byte & 0x80 == 0);
    last.is_some_and(|last| stands_alone(&rest[last + 1..]))
}

/// The commands of a batch, one after another. After an error it yields nothing more.
pub struct BatchReader {
    at: TimestampMs,
    left: u32,
    rest: Bytes,
}

impl BatchReader {
    /// Reads the header of `batch`.
    ///
    /// # Errors
    /// [`Corrupt`] when it is no batch.
    pub fn new(batch: Bytes) -> Result<BatchReader, Corrupt> {
        let mut reader = Reader::borrowed("batch", &batch);
        if reader.u8()? != BATCH_VERSION {
            return Err(reader.corrupt("its version is unknown"));
        }
        let at = <[u8; 8]>::try_from(reader.take(8)?).map(i64::from_be_bytes);
        let count = <[u8; 4]>::try_from(reader.take(4)?).map(u32::from_be_bytes);
        let (Ok(at), Ok(left)) = (at, count) else {
            return Err(reader.corrupt("its header is too short"));
        };
        if left as usize > reader.remaining() {
            return Err(reader.corrupt("it has fewer commands than it says"));
        }
        if left == 0 {
            reader.finish()?;
        }
        Ok(BatchReader {
            at: TimestampMs(at),
            left,
            rest: batch.slice(BATCH_HEADER_BYTES..),
        })
    }

    /// The leader's time when it made the batch.
    pub fn at(&self) -> TimestampMs {
        self.at
    }

    /// How many commands are left.
    pub fn remaining(&self) -> usize {
        self.left as usize
    }

    /// The bytes of all commands that are left, for a group whose commands are of another
    /// kind.
    ///
    /// # Errors
    /// [`Corrupt`] when they are not as many as the header says.
    pub fn into_bytes(mut self) -> Result<Vec<Bytes>, Corrupt> {
        let mut commands = Vec::with_capacity(self.remaining());
        while self.left > 0 {
            commands.push(self.read_bytes()?);
        }
        Ok(commands)
    }

    fn read_next(&mut self) -> Result<Command, Corrupt> {
        Command::decode(&self.read_bytes()?)
    }

    fn read_bytes(&mut self) -> Result<Bytes, Corrupt> {
        let mut reader = Reader::shared("batch", &self.rest);
        let command = reader.bytes()?;
        self.left -= 1;
        if self.left == 0 {
            reader.finish()?;
        }
        let after = self.rest.len() - reader.remaining();
        self.rest = self.rest.slice(after..);
        Ok(command)
    }
}

impl Iterator for BatchReader {
    type Item = Result<Command, Corrupt>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            return None;
        }
        let command = self.read_next();
        if command.is_err() {
            self.left = 0;
        }
        Some(command)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (0, Some(self.left as usize))
    }
}
