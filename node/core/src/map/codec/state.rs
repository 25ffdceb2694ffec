//! The binary forms of the meta group's state. The first, of a cluster at version 1, has no
//! recoveries, no splits and no merges, a policy with less in it, and events of nobody in
//! particular. A cluster keeps its state in the oldest form that suffices at its version.

use std::collections::BTreeMap;

use bytes::{BufMut, Bytes, BytesMut};

use super::{put_text, read_list, read_node_id};
use crate::codec::{Corrupt, Reader, put_signed, put_varint};
use crate::ids::{NodeId, ReplicaId, ShardId, TimestampMs};
use crate::map::{
    ClusterVersion, DrainStart, Event, JoinToken, Merge, MetaState, Move, MoveId, Policy, Recovery,
    ShardMap, Split, Standing,
};
use crate::merging::MergeId;

/// The form of a cluster at version 1.
const FIRST_FORM: u8 = 1;
/// The form of later ones.
const FORM: u8 = 2;

impl MetaState {
    /// The form and the fields in a buffer of their own.
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        let first = self.cluster_version == ClusterVersion::V1;
        out.put_u8(if first { FIRST_FORM } else { FORM });
        self.write(&mut out);
        if !first {
            self.write_later(&mut out);
        }
        out.freeze()
    }

    /// Decodes all of `bytes`, in this form or an older one.
    ///
    /// # Errors
    /// [`Corrupt`] when it is something else.
    pub fn decode(bytes: &[u8]) -> Result<Self, Corrupt> {
        let mut reader = Reader::borrowed("meta state", bytes);
        let form = reader.u8()?;
        if form > FORM {
            let why =
                "a later release wrote it; install the one that the cluster's other nodes run";
            return Err(reader.corrupt(why));
        }
        if form < FIRST_FORM {
            return Err(reader.corrupt("its form is unknown"));
        }
        let state = Self::read(form, &mut reader)?;
        reader.finish()?;
        Ok(state)
    }

    /// But for what the first form has not.
    fn write(&self, out: &mut BytesMut) {
        let MetaState {
            cluster_version,
            cluster_id,
            cluster_name,
            join_token,
            replication_factor,
            next_replica_id,
            last_founding_replica_id,
            next_node_id,
            next_move_id,
            policy,
            map,
            standings,
            drains,
            moves,
            next_shard_id: _,
            splits: _,
            last_split_at: _,
            next_merge_id: _,
            merges: _,
            recoveries: _,
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
        let event = match *cluster_version {
            ClusterVersion::V1 => Event::write_v1,
            _ => Event::write,
        };
        for one in events {
            event(one, out);
        }
    }

    /// What the first form has not.
    fn write_later(&self, out: &mut BytesMut) {
        let MetaState {
            cluster_version,
            policy,
            next_shard_id,
            splits,
            last_split_at,
            next_merge_id,
            merges,
            recoveries,
            ..
        } = self;
        put_varint(out, u64::from(cluster_version.0));
        policy.write_later(out);
        put_varint(out, recoveries.len() as u64);
        for recovery in recoveries.values() {
            recovery.write(out);
        }
        put_varint(out, u64::from(next_shard_id.0));
        put_varint(out, splits.len() as u64);
        for split in splits.values() {
            split.write(out);
        }
        put_signed(out, last_split_at.0);
        put_varint(out, next_merge_id.0);
        put_varint(out, merges.len() as u64);
        for merge in merges.values() {
            merge.write(out);
        }
    }

    fn read(form: u8, reader: &mut Reader<'_>) -> Result<Self, Corrupt> {
        let event = match form {
            FIRST_FORM => Event::read_v1,
            _ => Event::read,
        };
        let mut state = MetaState {
            cluster_version: ClusterVersion::V1,
            cluster_id: reader.text()?,
            cluster_name: reader.text()?,
            join_token: JoinToken(reader.text()?),
            replication_factor: reader.varint32()?,
            next_replica_id: ReplicaId(reader.varint()?),
            last_founding_replica_id: ReplicaId(reader.varint()?),
            next_node_id: NodeId(reader.varint()?),
            next_move_id: MoveId(reader.varint()?),
            policy: Policy::read(reader)?,
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
            events: read_list(reader, event)?.into(),
            recoveries: BTreeMap::new(),
            next_shard_id: ShardId(0),
            splits: BTreeMap::new(),
            last_split_at: TimestampMs(0),
            next_merge_id: MergeId(0),
            merges: BTreeMap::new(),
        };
        if form == FIRST_FORM && state.exists() {
            let last = state.map.shards.iter().map(|shard| shard.shard_id.0).max();
            state.next_shard_id = ShardId(last.unwrap_or(0) + 1);
            state.policy.shards_min = (state.map.shards.len() as u32).max(1);
            state.next_merge_id = MergeId(1);
        } else if form != FIRST_FORM {
            state.cluster_version = ClusterVersion(reader.varint32()?);
            state.policy.read_later(reader)?;
            let recoveries = read_list(reader, Recovery::read)?;
            let by_shard = recoveries.into_iter();
            state.recoveries = by_shard.map(|one| (one.shard_id, one)).collect();
            state.next_shard_id = ShardId(reader.varint32()?);
            let splits = read_list(reader, Split::read)?.into_iter();
            state.splits = splits.map(|split| (split.shard_id, split)).collect();
            state.last_split_at = TimestampMs(reader.signed()?);
            state.next_merge_id = MergeId(reader.varint()?);
            let merges = read_list(reader, Merge::read)?.into_iter();
            state.merges = merges.map(|merge| (merge.shard_id, merge)).collect();
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
