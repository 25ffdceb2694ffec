//! The binary forms of the map, of the meta group's state, and of its commands and
//! replies: a version byte, then the fields. They are on disk and cross nodes.
//! The state has versions of its own, in `state`.

mod commands;
mod events;
mod merges;
mod replies;
mod splits;
mod state;

use bytes::{BufMut, Bytes, BytesMut};

use super::{
    ConfigVersion, DrainPurpose, LogPosition, MetaCommand, MetaReply, Move, MoveId, MoveReason,
    MoveStep, NodeInfo, Policy, PolicyChange, Recovery, Replica, ShardDescriptor, ShardMap,
    Standing,
};
use crate::codec::{Corrupt, Reader, put_bytes, put_signed, put_varint};
use crate::ids::{Epoch, NodeId, ReplicaId, SLOTS, ShardId, Slot, SlotRange, TimestampMs};
use crate::placement::Zone;
use crate::records::{read_option, write_option};

/// The version that is written, and the only one so far.
const VERSION: u8 = 1;

/// Gives a type `encode` and `decode` around its `write` and `read`.
macro_rules! versioned {
    ($type:ident, $what:literal) => {
        impl $type {
            /// The version and the fields in a buffer of their own.
            pub fn encode(&self) -> Bytes {
                let mut out = BytesMut::new();
                out.put_u8(VERSION);
                self.write(&mut out);
                out.freeze()
            }

            /// Decodes all of `bytes`.
            ///
            /// # Errors
            /// [`Corrupt`] when it is something else.
            pub fn decode(bytes: &[u8]) -> Result<Self, Corrupt> {
                let mut reader = Reader::borrowed($what, bytes);
                if reader.u8()? != VERSION {
                    return Err(reader.corrupt("its version is unknown"));
                }
                let value = $type::read(&mut reader)?;
                reader.finish()?;
                Ok(value)
            }
        }
    };
}

versioned!(ShardMap, "shard map");
versioned!(MetaCommand, "meta command");
versioned!(MetaReply, "meta reply");

fn put_text(out: &mut BytesMut, text: &str) {
    put_bytes(out, text.as_bytes());
}

fn read_list<T>(
    reader: &mut Reader<'_>,
    read: impl Fn(&mut Reader<'_>) -> Result<T, Corrupt>,
) -> Result<Vec<T>, Corrupt> {
    let count = reader.count()?;
    let mut items = Vec::new();
    for _ in 0..count {
        items.push(read(reader)?);
    }
    Ok(items)
}

fn read_slot(reader: &mut Reader<'_>) -> Result<Slot, Corrupt> {
    match u16::try_from(reader.varint()?) {
        Ok(slot) if slot < SLOTS => Ok(Slot(slot)),
        _ => Err(reader.corrupt("a slot is too large")),
    }
}

fn read_size(reader: &mut Reader<'_>) -> Result<usize, Corrupt> {
    let size = reader.varint()?;
    usize::try_from(size).map_err(|_| reader.corrupt("a size is too large"))
}

impl NodeInfo {
    fn write(&self, out: &mut BytesMut) {
        put_varint(out, self.node_id.0);
        put_text(out, &self.identity);
        put_text(out, &self.client_address);
        put_text(out, &self.peer_address);
        put_text(out, &self.zone.0);
        put_varint(out, u64::from(self.weight));
        put_varint(out, self.capacity_bytes);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, Corrupt> {
        Ok(NodeInfo {
            node_id: NodeId(reader.varint()?),
            identity: reader.text()?,
            client_address: reader.text()?,
            peer_address: reader.text()?,
            zone: Zone(reader.text()?),
            weight: reader.varint32()?,
            capacity_bytes: reader.varint()?,
        })
    }
}

impl Replica {
    pub(crate) fn write(self, out: &mut BytesMut) {
        put_varint(out, self.replica_id.0);
        put_varint(out, self.node_id.0);
    }

    pub(crate) fn read(reader: &mut Reader<'_>) -> Result<Self, Corrupt> {
        Ok(Replica {
            replica_id: ReplicaId(reader.varint()?),
            node_id: NodeId(reader.varint()?),
        })
    }
}

impl ShardDescriptor {
    fn write(&self, out: &mut BytesMut) {
        put_varint(out, u64::from(self.shard_id.0));
        put_varint(out, u64::from(self.slots.first.0));
        put_varint(out, u64::from(self.slots.last.0));
        put_varint(out, self.preferred_leader.0);
        put_varint(out, self.replicas.len() as u64);
        for replica in &self.replicas {
            replica.write(out);
        }
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, Corrupt> {
        let shard_id = ShardId(reader.varint32()?);
        let first = read_slot(reader)?;
        let last = read_slot(reader)?;
        if last < first {
            return Err(reader.corrupt("a slot range is reversed"));
        }
        Ok(ShardDescriptor {
            shard_id,
            slots: SlotRange { first, last },
            preferred_leader: NodeId(reader.varint()?),
            replicas: read_list(reader, Replica::read)?,
        })
    }
}

impl ShardMap {
    fn write(&self, out: &mut BytesMut) {
        put_varint(out, self.epoch.0);
        put_varint(out, self.shards.len() as u64);
        for shard in &self.shards {
            shard.write(out);
        }
        put_varint(out, self.nodes.len() as u64);
        for node in &self.nodes {
            node.write(out);
        }
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, Corrupt> {
        Ok(ShardMap {
            epoch: Epoch(reader.varint()?),
            shards: read_list(reader, ShardDescriptor::read)?,
            nodes: read_list(reader, NodeInfo::read)?,
        })
    }
}

impl Standing {
    fn write(self, out: &mut BytesMut) {
        out.put_u8(match self {
            Standing::Active => 1,
            Standing::Cordoned => 2,
            Standing::Draining {
                purpose: DrainPurpose::Restart,
            } => 3,
            Standing::Draining {
                purpose: DrainPurpose::Removal,
            } => 4,
            Standing::Lost => 5,
        });
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, Corrupt> {
        Ok(match reader.u8()? {
            1 => Standing::Active,
            2 => Standing::Cordoned,
            3 => Standing::DRAINING_FOR_RESTART,
            4 => Standing::DRAINING_FOR_REMOVAL,
            5 => Standing::Lost,
            _ => return Err(reader.corrupt("a standing is unknown")),
        })
    }
}

impl Policy {
    /// But for what came later.
    fn write(&self, out: &mut BytesMut) {
        let Policy {
            down_after_s,
            failure_replacement_after_s,
            moves_max,
            moves_per_node_max,
            lost_nodes_max,
            snapshot_kib_per_s_max,
            balance,
            leader_zone: _,
            shard_gib_max: _,
            shard_commands_per_s_max: _,
            shards_min: _,
            finalize_upgrade_after_s: _,
        } = self;
        for number in [
            down_after_s,
            failure_replacement_after_s,
            moves_max,
            moves_per_node_max,
            lost_nodes_max,
            snapshot_kib_per_s_max,
        ] {
            put_varint(out, u64::from(*number));
        }
        out.put_u8(u8::from(*balance));
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, Corrupt> {
        Ok(Policy {
            down_after_s: reader.varint32()?,
            failure_replacement_after_s: reader.varint32()?,
            moves_max: reader.varint32()?,
            moves_per_node_max: reader.varint32()?,
            lost_nodes_max: reader.varint32()?,
            snapshot_kib_per_s_max: reader.varint32()?,
            balance: reader.flag()?,
            ..Policy::default()
        })
    }

    /// What the first version had not.
    fn write_later(&self, out: &mut BytesMut) {
        put_text(out, &self.leader_zone.0);
        put_varint(out, u64::from(self.shard_gib_max));
        put_varint(out, u64::from(self.shard_commands_per_s_max));
        put_varint(out, u64::from(self.shards_min));
        put_varint(out, u64::from(self.finalize_upgrade_after_s));
    }

    fn read_later(&mut self, reader: &mut Reader<'_>) -> Result<(), Corrupt> {
        self.leader_zone = Zone(reader.text()?);
        self.shard_gib_max = reader.varint32()?;
        self.shard_commands_per_s_max = reader.varint32()?;
        self.shards_min = reader.varint32()?;
        self.finalize_upgrade_after_s = reader.varint32()?;
        Ok(())
    }
}

impl PolicyChange {
    /// But for what came later.
    fn write(&self, out: &mut BytesMut) {
        let PolicyChange {
            down_after_s,
            failure_replacement_after_s,
            moves_max,
            moves_per_node_max,
            lost_nodes_max,
            snapshot_kib_per_s_max,
            balance,
            leader_zone: _,
            shard_gib_max: _,
            shard_commands_per_s_max: _,
            shards_min: _,
            finalize_upgrade_after_s: _,
        } = self;
        for number in [
            down_after_s,
            failure_replacement_after_s,
            moves_max,
            moves_per_node_max,
            lost_nodes_max,
            snapshot_kib_per_s_max,
        ] {
            write_option(out, number.as_ref(), |number, out| {
                put_varint(out, u64::from(*number));
            });
        }
        write_option(out, balance.as_ref(), |balance, out| {
            out.put_u8(u8::from(*balance));
        });
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, Corrupt> {
        let mut number = || read_option(reader, |reader| reader.varint32());
        Ok(PolicyChange {
            down_after_s: number()?,
            failure_replacement_after_s: number()?,
            moves_max: number()?,
            moves_per_node_max: number()?,
            lost_nodes_max: number()?,
            snapshot_kib_per_s_max: number()?,
            balance: read_option(reader, |reader| reader.flag())?,
            ..PolicyChange::default()
        })
    }

    /// Something is changed that the first version had not.
    pub(super) fn has_later(&self) -> bool {
        self.leader_zone.is_some()
            || self.shard_gib_max.is_some()
            || self.shard_commands_per_s_max.is_some()
            || self.shards_min.is_some()
            || self.finalize_upgrade_after_s.is_some()
    }

    /// What the first version had not.
    fn write_later(&self, out: &mut BytesMut) {
        write_option(out, self.leader_zone.as_ref(), |zone, out| {
            put_text(out, &zone.0);
        });
        for number in [
            self.shard_gib_max,
            self.shard_commands_per_s_max,
            self.shards_min,
            self.finalize_upgrade_after_s,
        ] {
            write_option(out, number.as_ref(), |number, out| {
                put_varint(out, u64::from(*number));
            });
        }
    }

    fn read_later(&mut self, reader: &mut Reader<'_>) -> Result<(), Corrupt> {
        self.leader_zone = read_option(reader, |reader| Ok(Zone(reader.text()?)))?;
        self.shard_gib_max = read_option(reader, |reader| reader.varint32())?;
        self.shard_commands_per_s_max = read_option(reader, |reader| reader.varint32())?;
        self.shards_min = read_option(reader, |reader| reader.varint32())?;
        self.finalize_upgrade_after_s = read_option(reader, |reader| reader.varint32())?;
        Ok(())
    }
}

impl ConfigVersion {
    fn write(self, out: &mut BytesMut) {
        put_varint(out, self.term);
        put_varint(out, self.leader.0);
        put_varint(out, self.index);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, Corrupt> {
        Ok(ConfigVersion {
            term: reader.varint()?,
            leader: ReplicaId(reader.varint()?),
            index: reader.varint()?,
        })
    }
}

impl LogPosition {
    fn write(self, out: &mut BytesMut) {
        put_varint(out, self.term);
        put_varint(out, self.leader.0);
        put_varint(out, self.index);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, Corrupt> {
        Ok(LogPosition {
            term: reader.varint()?,
            leader: ReplicaId(reader.varint()?),
            index: reader.varint()?,
        })
    }
}

impl Recovery {
    fn write(&self, out: &mut BytesMut) {
        let Recovery {
            shard_id,
            from,
            to,
            others,
            started_at,
        } = self;
        put_varint(out, u64::from(shard_id.0));
        from.write(out);
        to.write(out);
        write_list(out, others, |replica, out| replica.write(out));
        put_signed(out, started_at.0);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, Corrupt> {
        Ok(Recovery {
            shard_id: ShardId(reader.varint32()?),
            from: Replica::read(reader)?,
            to: Replica::read(reader)?,
            others: read_list(reader, Replica::read)?,
            started_at: TimestampMs(reader.signed()?),
        })
    }
}

impl MoveStep {
    fn write(self, out: &mut BytesMut) {
        match self {
            MoveStep::CatchingUp => out.put_u8(1),
            MoveStep::Switching { config } => {
                out.put_u8(2);
                config.write(out);
            }
            MoveStep::Cancelling => out.put_u8(3),
        }
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, Corrupt> {
        Ok(match reader.u8()? {
            1 => MoveStep::CatchingUp,
            2 => MoveStep::Switching {
                config: ConfigVersion::read(reader)?,
            },
            3 => MoveStep::Cancelling,
            _ => return Err(reader.corrupt("a move's step is unknown")),
        })
    }
}

impl MoveReason {
    fn read(reader: &mut Reader<'_>) -> Result<Self, Corrupt> {
        Ok(match reader.u8()? {
            1 => MoveReason::Repair,
            2 => MoveReason::Drain,
            3 => MoveReason::Balance,
            4 => MoveReason::Asked,
            5 => MoveReason::Merge,
            _ => return Err(reader.corrupt("a move's reason is unknown")),
        })
    }
}

impl Move {
    fn write(&self, out: &mut BytesMut) {
        put_varint(out, self.move_id.0);
        put_varint(out, u64::from(self.shard_id.0));
        for replica in [&self.add, &self.remove] {
            write_option(out, replica.as_ref(), |replica, out| replica.write(out));
        }
        put_varint(out, self.preferred_leader.0);
        self.step.write(out);
        out.put_u8(self.reason as u8);
        put_signed(out, self.started_at.0);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, Corrupt> {
        Ok(Move {
            move_id: MoveId(reader.varint()?),
            shard_id: ShardId(reader.varint32()?),
            add: read_option(reader, Replica::read)?,
            remove: read_option(reader, Replica::read)?,
            preferred_leader: NodeId(reader.varint()?),
            step: MoveStep::read(reader)?,
            reason: MoveReason::read(reader)?,
            started_at: TimestampMs(reader.signed()?),
        })
    }
}

fn write_list<T>(out: &mut BytesMut, items: &[T], write: impl Fn(&T, &mut BytesMut)) {
    put_varint(out, items.len() as u64);
    for item in items {
        write(item, out);
    }
}

fn write_node(out: &mut BytesMut, node: Option<NodeId>) {
    write_option(out, node.as_ref(), |node, out| put_varint(out, node.0));
}

fn read_node_id(reader: &mut Reader<'_>) -> Result<NodeId, Corrupt> {
    Ok(NodeId(reader.varint()?))
}
