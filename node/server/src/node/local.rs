//! What this disk knows of the replicas on it, whatever the map says at the moment: after a
//! crash the meta group's state here may be older than what was done because of a newer one.
//!
//! Owner of the state: one record of the node in the state store, and its copy in memory.
//!
//! Invariants: a replica's record is durable before the replica starts, so what is on the disk
//! is never taken for another one's. A replica whose deletion was begun never starts again,
//! and neither does an older one of its shard: its votes are gone. Nor does one start of which
//! a newer one is being made. Replica ids grow, so the
//! last one of each shard tells.

use std::collections::BTreeMap;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use carillon_core::ids::{Epoch, ReplicaId, SLOTS, ShardId, Slot, SlotRange};
use carillon_store::{Store, StoreError};
use parking_lot::Mutex;

const RECORD: &[u8] = b"replicas";
const VERSION: u8 = 1;

/// How it is with the last replica of a shard on this disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// It is here.
    Live = 1,
    /// It is being deleted.
    Leaving = 2,
    /// It is gone.
    Gone = 3,
    /// It is being made of the one that was here before, whose state and log it takes.
    Rebuilding = 4,
}

/// The last replica of a shard on this disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocalReplica {
    /// Its id.
    pub replica_id: ReplicaId,
    /// The slots whose keys it has.
    pub slots: SlotRange,
    /// The map's epoch when it was started; its end has a later one.
    pub since: Epoch,
    /// How it is with it.
    pub presence: Presence,
}

/// Why the record cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// The store could not read or keep it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It is damaged.
    #[error("the data directory's record of replicas is damaged; replace this node by a new one")]
    Damaged,
}

/// See the file's head.
pub struct LocalReplicas {
    store: Store,
    all: Mutex<BTreeMap<ShardId, LocalReplica>>,
}

impl LocalReplicas {
    /// Reads the record.
    ///
    /// # Errors
    /// [`LocalError`].
    pub fn open(store: Store) -> Result<Self, LocalError> {
        let all = match store.meta_get(RECORD)? {
            Some(record) => decode(record).ok_or(LocalError::Damaged)?,
            None => BTreeMap::new(),
        };
        Ok(Self {
            store,
            all: Mutex::new(all),
        })
    }

    /// All of them.
    pub fn all(&self) -> BTreeMap<ShardId, LocalReplica> {
        self.all.lock().clone()
    }

    /// Keeps these. Durable when this returns; blocks for a flush of the disk.
    ///
    /// # Errors
    /// [`StoreError`]: the process must stop.
    pub fn put(
        &self,
        replicas: impl IntoIterator<Item = (ShardId, LocalReplica)>,
    ) -> Result<(), StoreError> {
        let mut all = self.all.lock();
        let mut next = all.clone();
        next.extend(replicas);
        if next != *all {
            self.store.meta_put(RECORD, &encode(&next))?;
            *all = next;
        }
        Ok(())
    }
}

fn encode(all: &BTreeMap<ShardId, LocalReplica>) -> Bytes {
    let mut out = BytesMut::new();
    out.put_u8(VERSION);
    for (shard, replica) in all {
        out.put_u32_le(shard.0);
        out.put_u64_le(replica.replica_id.0);
        out.put_u16_le(replica.slots.first.0);
        out.put_u16_le(replica.slots.last.0);
        out.put_u64_le(replica.since.0);
        out.put_u8(replica.presence as u8);
    }
    out.freeze()
}

fn decode(mut record: Bytes) -> Option<BTreeMap<ShardId, LocalReplica>> {
    const REPLICA_BYTES: usize = 4 + 8 + 2 + 2 + 8 + 1;
    if record.is_empty()
        || record.get_u8() != VERSION
        || !record.len().is_multiple_of(REPLICA_BYTES)
    {
        return None;
    }
    let mut all = BTreeMap::new();
    while record.has_remaining() {
        let shard = ShardId(record.get_u32_le());
        let replica_id = ReplicaId(record.get_u64_le());
        let (first, last) = (record.get_u16_le(), record.get_u16_le());
        let since = Epoch(record.get_u64_le());
        let presence = match record.get_u8() {
            1 => Presence::Live,
            2 => Presence::Leaving,
            3 => Presence::Gone,
            4 => Presence::Rebuilding,
            _ => return None,
        };
        if first > last || last >= SLOTS {
            return None;
        }
        let slots = SlotRange {
            first: Slot(first),
            last: Slot(last),
        };
        let replica = LocalReplica {
            replica_id,
            slots,
            since,
            presence,
        };
        all.insert(shard, replica);
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replica(id: u64, presence: Presence) -> LocalReplica {
        LocalReplica {
            replica_id: ReplicaId(id),
            slots: SlotRange {
                first: Slot(256),
                last: Slot(511),
            },
            since: Epoch(7),
            presence,
        }
    }

    #[test]
    fn the_record_is_found_again_and_damage_is_noticed() {
        let all: BTreeMap<ShardId, LocalReplica> = [
            (ShardId(1), replica(11, Presence::Live)),
            (ShardId(2), replica(12, Presence::Leaving)),
            (ShardId(3), replica(13, Presence::Rebuilding)),
            (ShardId(4095), replica(u64::MAX, Presence::Gone)),
        ]
        .into();
        let record = encode(&all);
        assert_eq!(decode(record.clone()), Some(all));
        assert_eq!(decode(encode(&BTreeMap::new())), Some(BTreeMap::new()));
        for cut in 0..record.len() {
            // Whole replicas are left out without a trace only at their ends.
            let whole = cut % 25 == 1;
            assert_eq!(decode(record.slice(..cut)).is_some(), whole, "{cut} bytes");
        }
        let mut unknown = record.to_vec();
        *unknown.last_mut().expect("not empty") = 9;
        assert_eq!(decode(unknown.into()), None);
    }
}
