//! The meta group's state machine: the node registry and the shard map, on every node.
//!
//! Owner of the state: this machine; others see it through [`Cluster::meta`]. It is kept
//! whole in the applied record of shard 0, so it is flushed, sent and installed like any
//! shard.

use std::io;
use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use carillon_core::apply::Effects;
use carillon_core::command::BatchReader;
use carillon_core::map::{
    ClusterVersion, META_SHARD, MetaCommand, MetaState, Supported, apply_meta,
};
use carillon_core::records::ShardClock;
use carillon_core::reply::Reply;
use carillon_raft::{CommittedEntry, FlushJob, Machine, SnapshotContent};
use carillon_store::ShardStore;

use crate::cluster::Cluster;
use crate::flush::Flusher;
use crate::node::die;
use crate::peer::snapshot::{Content, ReceivedSnapshot};

/// See the file's head.
pub struct MetaMachine {
    flusher: Arc<Flusher>,
    store: ShardStore,
    cluster: Arc<Cluster>,
    supported: Supported,
    applied: Option<Bytes>,
    state: Arc<MetaState>,
}

impl MetaMachine {
    /// Reads what is durable and tells the cluster of it.
    ///
    /// # Errors
    /// When it cannot be read, or the cluster is at a version that this node does not support.
    pub fn new(
        flusher: Arc<Flusher>,
        store: ShardStore,
        cluster: Arc<Cluster>,
        supported: Supported,
    ) -> anyhow::Result<Self> {
        let (applied, state) = match store.applied() {
            Some(record) => {
                let (applied, state) = split(record.clone())?;
                (Some(applied), state)
            }
            None => (None, MetaState::default()),
        };
        if let Some(why) = supported.lacks(state.cluster_version) {
            anyhow::bail!(why);
        }
        let state = Arc::new(state);
        let machine = Self {
            flusher,
            store,
            cluster,
            supported,
            applied,
            state,
        };
        machine.tell();
        Ok(machine)
    }

    /// The state is another one: everybody here goes by it.
    fn tell(&self) {
        if self.state.cluster_version >= ClusterVersion::V2 {
            self.flusher.store().keep_slots();
        }
        self.cluster.set_meta(self.state.clone());
    }

    /// A node does not go on in a cluster whose version it does not support.
    fn check_version(&self) {
        if let Some(why) = self.supported.lacks(self.state.cluster_version) {
            die(&why);
        }
    }

    fn keep(&mut self, applied: Bytes) -> Result<(), carillon_store::StoreError> {
        let record = join(&applied, &self.state);
        self.store.begin().commit(&record, ShardClock::default())?;
        self.applied = Some(applied);
        Ok(())
    }
}

impl Machine for MetaMachine {
    fn applied(&self) -> Option<Bytes> {
        self.applied.clone()
    }

    fn apply(&mut self, entries: &[CommittedEntry], applied: Bytes) -> Vec<Vec<Effects>> {
        let mut all = Vec::with_capacity(entries.len());
        let mut state = MetaState::clone(&self.state);
        for entry in entries {
            let Some(payload) = &entry.payload else {
                all.push(Vec::new());
                continue;
            };
            let commands = BatchReader::new(payload.clone()).and_then(BatchReader::into_bytes);
            let Ok(commands) = commands else {
                undecodable(entry.index)
            };
            let mut effects = Vec::with_capacity(commands.len());
            for command in commands {
                let Ok(command) = MetaCommand::decode(&command) else {
                    undecodable(entry.index)
                };
                let reply = apply_meta(&mut state, command);
                tracing::info!(
                    ?reply,
                    epoch = state.map.epoch.0,
                    "the meta group applied a command"
                );
                effects.push(Effects {
                    reply: Reply::Meta(reply),
                    event: None,
                });
            }
            all.push(effects);
        }
        let changed = state != *self.state;
        if changed {
            self.state = Arc::new(state);
            self.check_version();
        }
        if let Err(error) = self.keep(applied) {
            tracing::error!(%error, "the meta group's state could not be kept; the node stops");
            std::process::abort();
        }
        if changed {
            self.tell();
        }
        all
    }

    fn flush(&self) -> FlushJob {
        let flush = self.flusher.job(META_SHARD);
        Box::new(move || {
            let (applied, _) = split(flush()?).map_err(io::Error::other)?;
            Ok(applied)
        })
    }

    fn snapshot(&self) -> io::Result<(Bytes, SnapshotContent)> {
        let applied = self
            .applied
            .clone()
            .ok_or_else(|| io::Error::other("the meta group has nothing applied"))?;
        Ok((applied, Arc::new(Content::Meta(self.state.clone()))))
    }

    fn install(&mut self, applied: Bytes, content: SnapshotContent) -> io::Result<()> {
        let received = content.downcast::<ReceivedSnapshot>().map_err(|_| {
            io::Error::other("a snapshot of another kind was handed to the meta group")
        })?;
        let state = MetaState::decode(received.record()).map_err(io::Error::other)?;
        self.state = Arc::new(state);
        self.check_version();
        self.keep(applied).map_err(io::Error::other)?;
        // Whatever was flushed a moment ago: the log before it is not needed any more.
        self.flusher.flush_now()?;
        self.tell();
        Ok(())
    }
}

fn undecodable(index: u64) -> ! {
    tracing::error!(
        index,
        "a committed entry of the meta group cannot be decoded; is this binary older than the cluster?"
    );
    std::process::abort()
}

/// u32 length and applied record, then the state.
fn join(applied: &Bytes, state: &MetaState) -> Bytes {
    let mut record = BytesMut::new();
    record.put_u32_le(applied.len() as u32);
    record.put_slice(applied);
    record.put_slice(&state.encode());
    record.freeze()
}

fn split(mut record: Bytes) -> anyhow::Result<(Bytes, MetaState)> {
    anyhow::ensure!(
        record.len() >= 4,
        "the meta group's record is damaged; replace this node by a new one"
    );
    let length = record.get_u32_le() as usize;
    anyhow::ensure!(
        length <= record.len(),
        "the meta group's record is damaged; replace this node by a new one"
    );
    let applied = record.split_to(length);
    Ok((applied, MetaState::decode(&record)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use carillon_core::ids::{NodeId, SLOTS, Slot, SlotRange};
    use carillon_store::{Store, StoreOptions};

    const NO_SLOTS_OF_CLIENTS: SlotRange = SlotRange {
        first: Slot(SLOTS),
        last: Slot(SLOTS),
    };

    /// The log before a snapshot is purged once it is installed: a node that was killed then, and
    /// had flushed a moment before, could not start any more.
    #[test]
    fn what_is_installed_is_on_the_disk_however_young_the_last_flush_is() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&StoreOptions::new(dir.path().join("state"))).unwrap();
        let flusher = Flusher::new(store.clone());
        let part = store.shard(META_SHARD, NO_SLOTS_OF_CLIENTS).unwrap();
        let cluster = Cluster::new(NodeId(1));
        let supported = Supported::up_to(ClusterVersion::MAX);
        let mut machine = MetaMachine::new(flusher.clone(), part, cluster, supported).unwrap();
        machine.keep(Bytes::from_static(b"before")).unwrap();
        flusher.flush_now().unwrap();

        let received = dir.path().join("received");
        std::fs::create_dir(&received).unwrap();
        let state = MetaState::default().encode();
        let snapshot = ReceivedSnapshot::of_record(state, received);
        let applied = Bytes::from_static(b"installed");
        machine
            .install(applied.clone(), Arc::new(snapshot))
            .unwrap();

        // What a node finds that was killed now.
        let found = dir.path().join("found");
        std::fs::create_dir(&found).unwrap();
        for file in std::fs::read_dir(dir.path().join("state")).unwrap() {
            let file = file.unwrap();
            std::fs::copy(file.path(), found.join(file.file_name())).unwrap();
        }
        let found = Store::open(&StoreOptions::new(found)).unwrap();
        let record = found.applied().unwrap().remove(&META_SHARD).unwrap();
        assert_eq!(split(record).unwrap().0, applied);
    }
}
