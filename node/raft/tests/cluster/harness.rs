//! A cluster in one process: real groups and logs, links piped in memory, machines that lose
//! what they did not flush when they restart.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use carillon_core::apply::Effects;
use carillon_core::ids::{NodeId, ReplicaId, ShardId};
use carillon_core::reply::Reply;
use carillon_log::{GroupId, LogEngine, LogOptions};
use carillon_raft::{
    CommittedEntry, FlushJob, Group, GroupError, GroupOptions, GroupRegistry,
    LINK_BUFFER_BYTES_DEFAULT, LinkEpoch, Links, LogRecord, Machine, Member, Outcome,
    OutgoingSnapshot, Position, SnapshotContent, SnapshotSender, run_link,
};
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::oneshot;

pub const SHARD: ShardId = ShardId(5);
/// How long a test waits for what must happen.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The payloads applied so far, with the record.
#[derive(Clone, Default)]
pub struct State {
    pub applied: Option<Bytes>,
    pub payloads: Vec<(u64, Bytes)>,
}

/// What survives a restart of a node's state, and what does not.
#[derive(Clone, Default)]
pub struct Disk {
    pub present: Arc<Mutex<State>>,
    pub durable: Arc<Mutex<State>>,
    pub installs: Arc<AtomicU64>,
}

struct ListMachine(Disk);

impl Machine for ListMachine {
    fn applied(&self) -> Option<Bytes> {
        self.0.present.lock().applied.clone()
    }

    fn apply(&mut self, entries: &[CommittedEntry], applied: Bytes) -> Vec<Vec<Effects>> {
        let mut state = self.0.present.lock();
        state.applied = Some(applied);
        for entry in entries {
            if let Some(payload) = &entry.payload {
                state.payloads.push((entry.index, payload.clone()));
            }
        }
        entries
            .iter()
            .map(|_| {
                vec![Effects {
                    reply: Reply::Done,
                    event: None,
                }]
            })
            .collect()
    }

    fn flush(&self) -> FlushJob {
        let disk = self.0.clone();
        Box::new(move || {
            let state = disk.present.lock().clone();
            let applied = state
                .applied
                .clone()
                .ok_or_else(|| io::Error::other("nothing applied"))?;
            *disk.durable.lock() = state;
            Ok(applied)
        })
    }

    fn snapshot(&self) -> io::Result<(Bytes, SnapshotContent)> {
        let state = self.0.present.lock().clone();
        let applied = state
            .applied
            .clone()
            .ok_or_else(|| io::Error::other("nothing applied"))?;
        Ok((applied, Arc::new(state.payloads)))
    }

    fn install(&mut self, applied: Bytes, content: SnapshotContent) -> io::Result<()> {
        let payloads = content
            .downcast::<Vec<(u64, Bytes)>>()
            .map_err(|_| io::Error::other("not a list"))?;
        let state = State {
            applied: Some(applied),
            payloads: payloads.as_ref().clone(),
        };
        *self.0.present.lock() = state.clone();
        *self.0.durable.lock() = state;
        self.0.installs.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

#[derive(Default)]
struct Registry {
    group: Mutex<Option<Group>>,
    disk_full: AtomicBool,
}

impl GroupRegistry for Registry {
    fn group(&self, shard: ShardId) -> Option<Group> {
        let group = self.group.lock().clone();
        group.filter(|group| group.shard() == shard)
    }

    fn takes_commands(&self, _shard: ShardId) -> bool {
        !self.disk_full.load(Ordering::Relaxed)
    }
}

/// Which nodes are connected, and where their groups are.
#[derive(Default)]
struct Wires {
    nodes: Mutex<HashMap<NodeId, Wired>>,
    open: Mutex<BTreeMap<(NodeId, NodeId), (LinkEpoch, LinkEpoch)>>,
}

#[derive(Clone)]
struct Wired {
    links: Arc<Links>,
    registry: Arc<Registry>,
}

fn pair(a: NodeId, b: NodeId) -> (NodeId, NodeId) {
    (a.min(b), a.max(b))
}

impl Wires {
    fn connect(&self, a: NodeId, b: NodeId) {
        let key = pair(a, b);
        self.cut(a, b);
        let nodes = self.nodes.lock();
        let (Some(low), Some(high)) = (nodes.get(&key.0).cloned(), nodes.get(&key.1).cloned())
        else {
            return;
        };
        let (low_link, high_link) = (low.links.link(key.1), high.links.link(key.0));
        let (low_out, high_out) = (low_link.open(), high_link.open());
        self.open
            .lock()
            .insert(key, (low_out.epoch(), high_out.epoch()));
        let (low_epoch, high_epoch) = (low_out.epoch(), high_out.epoch());
        let from_high = high_out.map(Ok::<Bytes, io::Error>);
        let from_low = low_out.map(Ok::<Bytes, io::Error>);
        tokio::spawn(run_link(low_link, low_epoch, from_high, low.registry));
        tokio::spawn(run_link(high_link, high_epoch, from_low, high.registry));
    }

    fn cut(&self, a: NodeId, b: NodeId) {
        let key = pair(a, b);
        if let Some((low_epoch, high_epoch)) = self.open.lock().remove(&key) {
            let nodes = self.nodes.lock();
            if let Some(low) = nodes.get(&key.0) {
                low.links.link(key.1).close(low_epoch);
            }
            if let Some(high) = nodes.get(&key.1) {
                high.links.link(key.0).close(high_epoch);
            }
        }
    }

    fn connected(&self, a: NodeId, b: NodeId) -> bool {
        self.open.lock().contains_key(&pair(a, b))
    }
}

struct Carrier {
    from: NodeId,
    wires: Arc<Wires>,
}

impl SnapshotSender for Carrier {
    fn send(&self, snapshot: OutgoingSnapshot) -> BoxFuture<'static, Result<Bytes, String>> {
        let (from, wires) = (self.from, Arc::clone(&self.wires));
        Box::pin(async move {
            if !wires.connected(from, snapshot.to.node) {
                return Err("not connected".to_owned());
            }
            let target = wires
                .nodes
                .lock()
                .get(&snapshot.to.node)
                .cloned()
                .ok_or("no such node")?;
            let group = target
                .registry
                .group(snapshot.shard)
                .ok_or("no such group")?;
            if group.me() != snapshot.to {
                return Err("another replica".to_owned());
            }
            group
                .install_snapshot(snapshot.vote, snapshot.applied, snapshot.content)
                .await
                .map_err(|error| error.to_string())
        })
    }
}

pub struct Node {
    pub me: Member,
    pub disk: Disk,
    dir: PathBuf,
    running: Option<(Group, LogEngine<LogRecord>)>,
}

impl Node {
    pub fn group(&self) -> &Group {
        &self.running.as_ref().expect("the node is stopped").0
    }

    pub fn is_running(&self) -> bool {
        self.running.is_some()
    }

    pub fn payloads(&self) -> Vec<Bytes> {
        self.disk
            .present
            .lock()
            .payloads
            .iter()
            .map(|(_, payload)| payload.clone())
            .collect()
    }

    pub fn installs(&self) -> u64 {
        self.disk.installs.load(Ordering::Relaxed)
    }
}

pub struct Cluster {
    pub nodes: Vec<Node>,
    pub options: GroupOptions,
    wires: Arc<Wires>,
    dir: tempfile::TempDir,
}

pub fn fast() -> GroupOptions {
    GroupOptions {
        heartbeat: Duration::from_millis(50),
        election_timeout_min: Duration::from_millis(300),
        election_timeout_max: Duration::from_millis(400),
        read_timeout: Duration::from_secs(1),
        ..GroupOptions::default()
    }
}

impl Cluster {
    /// Nodes 1..=count, started and connected; nobody initialised.
    pub async fn start(count: usize, options: GroupOptions) -> Cluster {
        let dir = tempfile::tempdir().unwrap();
        let mut cluster = Cluster {
            nodes: Vec::new(),
            options,
            wires: Arc::default(),
            dir,
        };
        for _ in 0..count {
            cluster.add_node().await;
        }
        cluster
    }

    /// Three voters with a leader.
    pub async fn voting(options: GroupOptions) -> Cluster {
        let cluster = Cluster::start(3, options).await;
        let members: Vec<Member> = cluster.nodes.iter().map(|node| node.me).collect();
        cluster.nodes[0].group().initialize(&members).await.unwrap();
        cluster.leader().await;
        cluster
    }

    /// Starts a further node, and returns its place.
    pub async fn add_node(&mut self) -> usize {
        let place = self.nodes.len();
        let id = place as u64 + 1;
        let me = Member {
            replica: ReplicaId(100 + id),
            node: NodeId(id),
        };
        let dir = self.dir.path().join(format!("node-{id}"));
        self.nodes.push(Node {
            me,
            disk: Disk::default(),
            dir,
            running: None,
        });
        self.run(place).await;
        place
    }

    /// Starts a stopped node from what is durable.
    pub async fn run(&mut self, place: usize) {
        self.try_run(place).await.unwrap();
    }

    pub async fn try_run(&mut self, place: usize) -> Result<(), GroupError> {
        let node = &mut self.nodes[place];
        let links = Links::new(LINK_BUFFER_BYTES_DEFAULT);
        let registry = Arc::new(Registry::default());
        let wired = Wired {
            links: Arc::clone(&links),
            registry: Arc::clone(&registry),
        };
        self.wires.nodes.lock().insert(node.me.node, wired);
        let mut options = LogOptions::new(&node.dir);
        options.segment_bytes = 1 << 20;
        let engine = LogEngine::open(options).unwrap();
        *node.disk.present.lock() = node.disk.durable.lock().clone();
        let carrier = Carrier {
            from: node.me.node,
            wires: Arc::clone(&self.wires),
        };
        let started = Group::start(
            SHARD,
            node.me,
            self.options.clone(),
            engine.group(GroupId(SHARD.0)),
            Box::new(ListMachine(node.disk.clone())),
            links,
            Arc::new(carrier),
        )
        .await;
        let group = match started {
            Ok(group) => group,
            Err(error) => {
                engine.shutdown().unwrap();
                return Err(error);
            }
        };
        *registry.group.lock() = Some(group.clone());
        node.running = Some((group, engine));
        let me = node.me.node;
        for other in 0..self.nodes.len() {
            if other != place && self.nodes[other].is_running() {
                self.wires.connect(me, self.nodes[other].me.node);
            }
        }
        Ok(())
    }

    /// Starts a node anew, from a state that was put onto its disk.
    pub async fn run_from(&mut self, place: usize, state: State) {
        self.stop(place).await;
        *self.nodes[place].disk.durable.lock() = state;
        self.run(place).await;
    }

    /// Begins the group anew on the log of a stopped node, which has this number from then on.
    pub async fn rebuild(&mut self, place: usize, replica: ReplicaId) -> Position {
        let node = &mut self.nodes[place];
        node.me.replica = replica;
        let mut options = LogOptions::new(&node.dir);
        options.segment_bytes = 1 << 20;
        let engine = LogEngine::open(options).unwrap();
        let applied = node.disk.durable.lock().applied.clone();
        let log = engine.group(GroupId(SHARD.0));
        let position = carillon_raft::rebuild(SHARD, node.me, log, applied).await;
        engine.shutdown().unwrap();
        position.unwrap()
    }

    /// Stops a node; what its machine has not flushed is lost.
    pub async fn stop(&mut self, place: usize) {
        self.isolate(place);
        let node = &mut self.nodes[place];
        if let Some((group, engine)) = node.running.take() {
            if let Some(wired) = self.wires.nodes.lock().get(&node.me.node) {
                *wired.registry.group.lock() = None;
            }
            group.shutdown().await;
            engine.shutdown().unwrap();
        }
    }

    /// Cuts all wires of a node.
    pub fn isolate(&self, place: usize) {
        let me = self.nodes[place].me.node;
        for other in &self.nodes {
            self.wires.cut(me, other.me.node);
        }
    }

    /// How many streams of append requests a node has begun to another one.
    pub fn append_streams(&self, from: usize, to: usize) -> u64 {
        let nodes = self.wires.nodes.lock();
        let wired = &nodes[&self.nodes[from].me.node];
        let link = wired.links.link(self.nodes[to].me.node);
        link.stats().append_streams
    }

    /// A node's disk is all but full, or has room again.
    pub fn fill_disk(&self, place: usize, full: bool) {
        let nodes = self.wires.nodes.lock();
        let wired = &nodes[&self.nodes[place].me.node];
        wired.registry.disk_full.store(full, Ordering::Relaxed);
    }

    /// Connects a node with all others that run.
    pub fn heal(&self, place: usize) {
        let me = self.nodes[place].me.node;
        for other in self
            .nodes
            .iter()
            .filter(|other| other.me.node != me && other.is_running())
        {
            self.wires.connect(me, other.me.node);
        }
    }

    /// Waits for a leader that is ready, and returns its place.
    pub async fn leader(&self) -> usize {
        self.leader_except(usize::MAX).await
    }

    pub async fn leader_except(&self, except: usize) -> usize {
        let mut found = None;
        until("a leader", || {
            let leads = |place: &usize| {
                let node = &self.nodes[*place];
                *place != except
                    && node.is_running()
                    && node.group().leadership().borrow().me_leading
            };
            found = (0..self.nodes.len()).find(leads);
            found.is_some()
        })
        .await;
        found.unwrap()
    }

    /// Proposes until it is applied, wherever the leader is. Only where a payload may be
    /// applied twice, or without faults: a retry after `Unknown` may do that.
    pub async fn propose(&self, payload: impl Into<Bytes>) {
        let payload = payload.into();
        let began = Instant::now();
        loop {
            let leader = self.leader().await;
            match propose(self.nodes[leader].group(), payload.clone()).await {
                Outcome::Applied(effects) => {
                    assert_eq!(effects.len(), 1);
                    return;
                }
                outcome => assert!(
                    began.elapsed() < PATIENCE,
                    "proposal ended with {outcome:?}"
                ),
            }
        }
    }

    /// Waits until all running nodes (or those given) have applied the same payloads, `count` of
    /// them, and returns them.
    pub async fn converged(&self, count: usize) -> Vec<Bytes> {
        until(&format!("{count} payloads everywhere"), || {
            let running = self.nodes.iter().filter(|node| node.is_running());
            let mut lists = running.map(Node::payloads);
            let first = lists.next().unwrap();
            first.len() >= count && lists.all(|list| list == first)
        })
        .await;
        let first = self
            .nodes
            .iter()
            .find(|node| node.is_running())
            .unwrap()
            .payloads();
        assert_eq!(first.len(), count);
        first
    }

    pub async fn end(mut self) {
        for place in 0..self.nodes.len() {
            self.stop(place).await;
        }
    }
}

pub async fn propose(group: &Group, payload: Bytes) -> Outcome {
    let (sender, receiver) = oneshot::channel();
    group
        .propose(payload, move |outcome| drop(sender.send(outcome)))
        .await;
    tokio::time::timeout(PATIENCE, receiver)
        .await
        .expect("no outcome")
        .expect("the callback was not called")
}

/// Waits until `holds`.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(
            began.elapsed() < PATIENCE,
            "did not see {what} in {PATIENCE:?}"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
