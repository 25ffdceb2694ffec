//! The binary forms of the map, of the meta group's state, and of its commands and
//! replies: a version byte, then the fields. They are on disk and cross nodes.

mod commands;
mod events;
mod replies;
mod splits;

use std::collections::BTreeMap;

use bytes::{BufMut, Bytes, BytesMut};

use super::{
    ConfigVersion, DrainPurpose, DrainStart, Event, JoinToken, MetaCommand, MetaReply, MetaState,
    Move, MoveId, MoveReason, MoveStep, NodeInfo, Policy, PolicyChange, Replica, ShardDescriptor,
    ShardMap, Split, Standing,
};
use crate::codec::{Corrupt, Reader, put_bytes, put_signed, put_varint};
use crate::ids::{Epoch, NodeId, ReplicaId, SLOTS, ShardId, Slot, SlotRange, TimestampMs};
use crate::placement::Zone;
use crate::records::{read_option, write_option};

/// The version that is written.
const VERSION: u8 = 2;
/// The oldest that is read. It has no splits.
const VERSION_MIN: u8 = 1;

/// Gives a type `encode` and `decode` around its `write` and `read`.
macro_rules! versioned {
    ($type:ident, $what:literal, $read:expr) => {
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
                let version = reader.u8()?;
                if !(VERSION_MIN..=VERSION).contains(&version) {
                    return Err(reader.corrupt("its version is unknown"));
                }
                let value = ($read)(&mut reader, version)?;
                reader.finish()?;
                Ok(value)
            }
        }
    };
}

versioned!(ShardMap, "shard map", |reader, _| ShardMap::read(reader));
versioned!(MetaState, "meta state", MetaState::read);
versioned!(MetaCommand, "meta command", MetaCommand::read);
versioned!(MetaReply, "meta reply", |reader, _| MetaReply::read(reader));

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
    fn write(&self, out: &mut BytesMut) {
        let Policy {
            down_after_s,
            failure_replacement_after_s,
            moves_max,
            moves_per_node_max,
            lost_nodes_max,
            snapshot_kib_per_s_max,
            balance,
            shard_gib_max,
            shard_commands_per_s_max,
        } = *self;
        for number in [
            down_after_s,
            failure_replacement_after_s,
            moves_max,
            moves_per_node_max,
            lost_nodes_max,
            snapshot_kib_per_s_max,
        ] {
            put_varint(out, u64::from(number));
        }
        out.put_u8(u8::from(balance));
        put_varint(out, u64::from(shard_gib_max));
        put_varint(out, u64::from(shard_commands_per_s_max));
    }

    fn read(reader: &mut Reader<'_>, version: u8) -> Result<Self, Corrupt> {
        let mut policy = Policy {
            down_after_s: reader.varint32()?,
            failure_replacement_after_s: reader.varint32()?,
            moves_max: reader.varint32()?,
            moves_per_node_max: reader.varint32()?,
            lost_nodes_max: reader.varint32()?,
            snapshot_kib_per_s_max: reader.varint32()?,
            balance: reader.flag()?,
            ..Policy::default()
        };
        if version > 1 {
            policy.shard_gib_max = reader.varint32()?;
            policy.shard_commands_per_s_max = reader.varint32()?;
        }
        Ok(policy)
    }
}

impl PolicyChange {
    fn write(&self, out: &mut BytesMut) {
        let PolicyChange {
            down_after_s,
            failure_replacement_after_s,
            moves_max,
            moves_per_node_max,
            lost_nodes_max,
            snapshot_kib_per_s_max,
            balance,
            shard_gib_max,
            shard_commands_per_s_max,
        } = *self;
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
        for number in [shard_gib_max, shard_commands_per_s_max] {
            write_option(out, number.as_ref(), |number, out| {
                put_varint(out, u64::from(*number));
            });
        }
    }

    fn read(reader: &mut Reader<'_>, version: u8) -> Result<Self, Corrupt> {
        let mut number = || read_option(reader, |reader| reader.varint32());
        let mut change = PolicyChange {
            down_after_s: number()?,
            failure_replacement_after_s: number()?,
            moves_max: number()?,
            moves_per_node_max: number()?,
            lost_nodes_max: number()?,
            snapshot_kib_per_s_max: number()?,
            balance: read_option(reader, |reader| reader.flag())?,
            ..PolicyChange::default()
        };
        if version > 1 {
            change.shard_gib_max = read_option(reader, |reader| reader.varint32())?;
            change.shard_commands_per_s_max = read_option(reader, |reader| reader.varint32())?;
        }
        Ok(change)
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

impl MetaState {
    fn write(&self, out: &mut BytesMut) {
        let MetaState {
            cluster_id,
            cluster_name,
            join_token,
            replication_factor,
            next_replica_id,
            last_founding_replica_id,
            next_node_id,
            next_move_id,
            next_shard_id,
            policy,
            map,
            standings,
            drains,
            moves,
            splits,
            last_split_at,
            events,
        } = self;
        put_text(out, cluster_id);
        put_text(out, cluster_name);
        put_text(out, &join_token.0);
        put_varint(out, u64::from(*replication_factor));
        put_varint(out, next_replica_id.0);
        put_varint(out, last_founding_replica_id.0);
        put_varint(out, next_node_id.0);
        put_varint(out, next_move_id.0);
        policy.write(out);
        map.write(out);
        put_varint(out, standings.len() as u64);
        for (node_id, standing) in standings {
            put_varint(out, node_id.0);
            standing.write(out);
        }
        put_varint(out, drains.len() as u64);
        for (node_id, start) in drains {
            put_varint(out, node_id.0);
            put_signed(out, start.at.0);
            put_varint(out, u64::from(start.replicas));
        }
        put_varint(out, moves.len() as u64);
        for running in moves.values() {
            running.write(out);
        }
        put_varint(out, events.len() as u64);
        for event in events {
            event.write(out);
        }
        put_varint(out, u64::from(next_shard_id.0));
        put_varint(out, splits.len() as u64);
        for split in splits.values() {
            split.write(out);
        }
        put_signed(out, last_split_at.0);
    }

    fn read(reader: &mut Reader<'_>, version: u8) -> Result<Self, Corrupt> {
        let mut state = MetaState {
            cluster_id: reader.text()?,
            cluster_name: reader.text()?,
            join_token: JoinToken(reader.text()?),
            replication_factor: reader.varint32()?,
            next_replica_id: ReplicaId(reader.varint()?),
            last_founding_replica_id: ReplicaId(reader.varint()?),
            next_node_id: NodeId(reader.varint()?),
            next_move_id: MoveId(reader.varint()?),
            next_shard_id: ShardId(0),
            policy: Policy::read(reader, version)?,
            map: ShardMap::read(reader)?,
            standings: read_list(reader, |reader| {
                Ok((read_node_id(reader)?, Standing::read(reader)?))
            })?
            .into_iter()
            .collect(),
            drains: read_list(reader, |reader| {
                let node_id = read_node_id(reader)?;
                let start = DrainStart {
                    at: TimestampMs(reader.signed()?),
                    replicas: reader.varint32()?,
                };
                Ok((node_id, start))
            })?
            .into_iter()
            .collect(),
            moves: read_moves(reader)?,
            splits: BTreeMap::new(),
            last_split_at: TimestampMs(0),
            events: read_list(reader, Event::read)?.into(),
        };
        if version == 1 {
            let last = state.map.shards.iter().map(|shard| shard.shard_id.0).max();
            state.next_shard_id = ShardId(last.unwrap_or(0) + 1);
        } else {
            state.next_shard_id = ShardId(reader.varint32()?);
            let splits = read_list(reader, Split::read)?.into_iter();
            state.splits = splits.map(|split| (split.shard_id, split)).collect();
            state.last_split_at = TimestampMs(reader.signed()?);
        }
        let registered = state.map.nodes.iter().map(|node| node.node_id);
        if !registered.eq(state.standings.keys().copied()) {
            return Err(reader.corrupt("nodes and standings differ"));
        }
        Ok(state)
    }
}

fn read_moves(reader: &mut Reader<'_>) -> Result<BTreeMap<ShardId, Move>, Corrupt> {
    let moves = read_list(reader, Move::read)?;
    let by_shard = moves.into_iter().map(|running| (running.shard_id, running));
    Ok(by_shard.collect())
}
