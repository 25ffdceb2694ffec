//! openraft's own tests of storage, on the real log engine and a machine in memory.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use carillon_core::apply::Effects;
use carillon_log::{GroupId, LogEngine, LogOptions};
use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};
use parking_lot::Mutex;

use crate::applied::AppliedRecord;
use crate::log::{LogRecord, ShardLog};
use crate::machine::{CommittedEntry, FlushJob, Machine, SnapshotContent, StateMachine};
use crate::types::TypeConfig;

#[derive(Default)]
struct Remembers(Arc<Mutex<Option<Bytes>>>);

impl Machine for Remembers {
    fn applied(&self) -> Option<Bytes> {
        self.0.lock().clone()
    }
    fn apply(&mut self, entries: &[CommittedEntry], applied: Bytes) -> Vec<Vec<Effects>> {
        *self.0.lock() = Some(applied);
        entries.iter().map(|_| Vec::new()).collect()
    }
    fn flush(&self) -> FlushJob {
        // The suite flushes machines that have applied nothing.
        let applied = self
            .0
            .lock()
            .clone()
            .unwrap_or_else(|| AppliedRecord::default().encode());
        Box::new(move || Ok(applied))
    }
    fn snapshot(&self) -> io::Result<(Bytes, SnapshotContent)> {
        let applied = self
            .0
            .lock()
            .clone()
            .ok_or_else(|| io::Error::other("nothing applied"))?;
        Ok((applied, Arc::new(())))
    }
    fn install(&mut self, applied: Bytes, _content: SnapshotContent) -> io::Result<()> {
        *self.0.lock() = Some(applied);
        Ok(())
    }
}

struct Builder;

/// Keeps the engine and its directory for as long as a test runs.
struct Guard {
    engine: LogEngine<LogRecord>,
    _dir: tempfile::TempDir,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.engine.shutdown().unwrap();
    }
}

impl StoreBuilder<TypeConfig, ShardLog, StateMachine, Guard> for Builder {
    async fn build(&self) -> Result<(Guard, ShardLog, StateMachine), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().unwrap();
        let mut options = LogOptions::new(dir.path());
        options.segment_bytes = 256 * 1024;
        let engine = LogEngine::open(options).unwrap();
        let log = ShardLog::new(engine.group(GroupId(1)));
        let (machine, _) = StateMachine::new(Box::new(Remembers::default())).unwrap();
        Ok((Guard { engine, _dir: dir }, log, machine))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn storage_passes_the_suite_of_openraft() {
    Suite::test_all(Builder).await.unwrap();
}
