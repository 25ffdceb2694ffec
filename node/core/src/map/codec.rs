//! The binary forms of the map, of the meta group's state, and of its commands and
//! replies: a version byte, then the fields. They are on disk and cross nodes.

use bytes::{BufMut, Bytes, BytesMut};

use super::{
    MapError, MetaCommand, MetaRefusal, MetaReply, MetaState, NodeInfo, Replica, ShardDescriptor,
    ShardMap,
};
use crate::codec::{Corrupt, Reader, put_bytes, put_varint};
use crate::ids::{Epoch, NodeId, ReplicaId, SLOTS, ShardId, Slot, SlotRange};

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
versioned!(MetaState, "meta state");
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
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, Corrupt> {
        Ok(NodeInfo {
            node_id: NodeId(reader.varint()?),
            identity: reader.text()?,
            client_address: reader.text()?,
            peer_address: reader.text()?,
        })
    }
}

impl Replica {
    fn write(self, out: &mut BytesMut) {
        put_varint(out, self.replica_id.0);
        put_varint(out, self.node_id.0);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, Corrupt> {
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

impl MetaState {
    fn write(&self, out: &mut BytesMut) {
        put_text(out, &self.cluster_id);
        put_text(out, &self.cluster_name);
        put_varint(out, u64::from(self.replication_factor));
        put_varint(out, self.next_replica_id.0);
        self.map.write(out);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, Corrupt> {
        Ok(MetaState {
            cluster_id: reader.text()?,
            cluster_name: reader.text()?,
            replication_factor: reader.varint32()?,
            next_replica_id: ReplicaId(reader.varint()?),
            map: ShardMap::read(reader)?,
        })
    }
}

impl MetaCommand {
    fn write(&self, out: &mut BytesMut) {
        match self {
            MetaCommand::CreateCluster {
                cluster_id,
                cluster_name,
                shards,
                replication_factor,
                nodes,
            } => {
                out.put_u8(1);
                put_text(out, cluster_id);
                put_text(out, cluster_name);
                put_varint(out, u64::from(*shards));
                put_varint(out, u64::from(*replication_factor));
                put_varint(out, nodes.len() as u64);
                for node in nodes {
                    node.write(out);
                }
            }
            MetaCommand::UpdateNode { node } => {
                out.put_u8(2);
                node.write(out);
            }
        }
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, Corrupt> {
        Ok(match reader.u8()? {
            1 => MetaCommand::CreateCluster {
                cluster_id: reader.text()?,
                cluster_name: reader.text()?,
                shards: reader.varint32()?,
                replication_factor: reader.varint32()?,
                nodes: read_list(reader, NodeInfo::read)?,
            },
            2 => MetaCommand::UpdateNode {
                node: NodeInfo::read(reader)?,
            },
            _ => return Err(reader.corrupt("the command is unknown")),
        })
    }
}

impl MetaReply {
    fn write(&self, out: &mut BytesMut) {
        match self {
            MetaReply::Created { existed, epoch } => {
                out.put_u8(1);
                out.put_u8(u8::from(*existed));
                put_varint(out, epoch.0);
            }
            MetaReply::Updated { changed, epoch } => {
                out.put_u8(2);
                out.put_u8(u8::from(*changed));
                put_varint(out, epoch.0);
            }
            MetaReply::Refused(refusal) => {
                out.put_u8(3);
                refusal.write(out);
            }
        }
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, Corrupt> {
        Ok(match reader.u8()? {
            1 => MetaReply::Created {
                existed: reader.flag()?,
                epoch: Epoch(reader.varint()?),
            },
            2 => MetaReply::Updated {
                changed: reader.flag()?,
                epoch: Epoch(reader.varint()?),
            },
            3 => MetaReply::Refused(MetaRefusal::read(reader)?),
            _ => return Err(reader.corrupt("the reply is unknown")),
        })
    }
}

impl MetaRefusal {
    fn write(&self, out: &mut BytesMut) {
        match self {
            MetaRefusal::ClusterExists { cluster_id } => {
                out.put_u8(1);
                put_text(out, cluster_id);
            }
            MetaRefusal::NoCluster => out.put_u8(2),
            MetaRefusal::EmptyClusterId => out.put_u8(3),
            MetaRefusal::UnknownNode { node_id } => {
                out.put_u8(4);
                put_varint(out, node_id.0);
            }
            MetaRefusal::IdentityMismatch { node_id } => {
                out.put_u8(5);
                put_varint(out, node_id.0);
            }
            MetaRefusal::Map(error) => {
                out.put_u8(6);
                error.write(out);
            }
        }
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, Corrupt> {
        Ok(match reader.u8()? {
            1 => MetaRefusal::ClusterExists {
                cluster_id: reader.text()?,
            },
            2 => MetaRefusal::NoCluster,
            3 => MetaRefusal::EmptyClusterId,
            4 => MetaRefusal::UnknownNode {
                node_id: NodeId(reader.varint()?),
            },
            5 => MetaRefusal::IdentityMismatch {
                node_id: NodeId(reader.varint()?),
            },
            6 => MetaRefusal::Map(MapError::read(reader)?),
            _ => return Err(reader.corrupt("the refusal is unknown")),
        })
    }
}

impl MapError {
    fn write(&self, out: &mut BytesMut) {
        match self {
            MapError::NoNodes => out.put_u8(1),
            MapError::TooManyNodes { max, actual } => {
                out.put_u8(2);
                put_varint(out, *max as u64);
                put_varint(out, *actual as u64);
            }
            MapError::DuplicateNode { node_id } => {
                out.put_u8(3);
                put_varint(out, node_id.0);
            }
            MapError::ShardsOutOfRange { max, actual } => {
                out.put_u8(4);
                put_varint(out, u64::from(*max));
                put_varint(out, u64::from(*actual));
            }
            MapError::ReplicationOutOfRange { nodes, actual } => {
                out.put_u8(5);
                put_varint(out, *nodes as u64);
                put_varint(out, u64::from(*actual));
            }
        }
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, Corrupt> {
        Ok(match reader.u8()? {
            1 => MapError::NoNodes,
            2 => MapError::TooManyNodes {
                max: read_size(reader)?,
                actual: read_size(reader)?,
            },
            3 => MapError::DuplicateNode {
                node_id: NodeId(reader.varint()?),
            },
            4 => MapError::ShardsOutOfRange {
                max: reader.varint32()?,
                actual: reader.varint32()?,
            },
            5 => MapError::ReplicationOutOfRange {
                nodes: read_size(reader)?,
                actual: reader.varint32()?,
            },
            _ => return Err(reader.corrupt("the map error is unknown")),
        })
    }
}
