//! A node from start to stop: opens what is on disk, joins or makes the cluster, starts
//! its replicas as the shard map says, serves, and leaves in order.
//!
//! Owner of the state: [`Node`] holds the parts; each part owns its own.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use carillon_core::ids::{NodeId, ReplicaId, SLOTS, ShardId, Slot, SlotRange};
use carillon_core::map::{MetaCommand, MetaState, ShardDescriptor};
use carillon_log::{GroupId, LogEngine, LogOptions};
use carillon_proto::admin::admin_server::AdminServer;
use carillon_proto::admin::replica_status::Role as RoleStatus;
use carillon_proto::admin::{NodeStatus, ReplicaStatus};
use carillon_proto::internal::peer_server::PeerServer;
use carillon_proto::internal::{ShardReplica, StatusResponse};
use carillon_raft::{
    Group, GroupRegistry, LINK_BUFFER_BYTES_DEFAULT, Links, LogRecord, Machine, Member, Role,
    SnapshotSender,
};
use carillon_store::{ShardReader, Store, StoreOptions};
use futures_util::StreamExt as _;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tonic::transport::Server;

use crate::admin::AdminService;
use crate::cluster::Cluster;
use crate::config::Config;
use crate::cork::Corked;
use crate::fanout::Fanout;
use crate::flush::{self, Flusher};
use crate::gateway::{Gateway, GatewayMetrics, GatewayOptions, Limits};
use crate::identity::Identity;
use crate::listen::GuardedListener;
use crate::meta::{META_SHARD, MetaMachine};
use crate::metrics::{MetricsPage, NodeMetrics, Observed, registry};
use crate::peer::service::PeerService;
use crate::peer::snapshot::{Sender, prepare_directory};
use crate::peer::{
    CONNECTION_WINDOW_BYTES, KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT, Peers, STREAM_WINDOW_BYTES,
};
use crate::router::Router;
use crate::shard::beat::Beat;
use crate::shard::checksums::Checksums;
use crate::shard::machine::ShardMachine;
use crate::shard::{Replica, Services};

/// Voters of the meta group: as many as there are nodes, at most five, and odd from three.
const META_VOTERS_MAX: usize = 5;
/// A replica that is not to lead first begins its group when nobody else has within this.
const INITIALIZE_FALLBACK: Duration = Duration::from_secs(3);
/// A leader whose majority says nothing for this long is not counted as one.
const MAJORITY_SILENCE_MAX: Duration = Duration::from_secs(3);
/// Between two tries of what has to succeed in the end.
const RETRY_INTERVAL: Duration = Duration::from_millis(250);
/// One try of it.
const TRY_TIMEOUT: Duration = Duration::from_secs(2);
/// How long one hand-over of a leadership may take while stopping.
const HANDOVER_TIMEOUT: Duration = Duration::from_secs(2);
/// Clients are told to reconnect within this, each at a moment of its own.
const RECONNECT_SPREAD: Duration = Duration::from_millis(500);
/// Connections of clients are asked for a sign of life this often.
const CLIENT_KEEPALIVE: Duration = Duration::from_secs(30);

/// The meta group keeps no keys: its range is beyond the slots.
const META_SLOTS: SlotRange = SlotRange {
    first: Slot(SLOTS),
    last: Slot(SLOTS),
};

/// The log of a node.
pub type NodeLog = LogEngine<LogRecord>;

/// See the file's head.
pub struct Node {
    config: Config,
    store: Store,
    log: NodeLog,
    services: Services,
    identity: Arc<Identity>,
    links: Arc<Links>,
    flusher: Arc<Flusher>,
    snapshots: PathBuf,
    page: MetricsPage,
    started: Instant,
    stopping: AtomicBool,
    ready: watch::Sender<bool>,
}

impl GroupRegistry for Cluster {
    fn group(&self, shard: ShardId) -> Option<Group> {
        self.replica(shard).map(|replica| replica.group().clone())
    }
}

/// Ends the process: what it holds in memory can not be trusted any more. It restarts from
/// what is durable.
#[expect(unsafe_code, reason = "exit handlers would run RocksDB's, which write")]
pub fn die(reason: &dyn std::fmt::Display) -> ! {
    tracing::error!(
        "{reason}; the node stops here and recovers from what is durable when it is started again"
    );
    eprintln!("carillon-node: {reason}");
    // SAFETY: _exit has no preconditions.
    unsafe { libc::_exit(70) }
}

/// Runs a node until it is told to stop. `stop` resolves when it is.
pub async fn run(config: Config, stop: impl Future<Output = ()>) -> anyhow::Result<()> {
    let mut stop = std::pin::pin!(stop);
    // Bound first, so that a port in use is an error before anything else happens.
    let client_listener = crate::http::bind("clients", config.listen.client).await?;
    let peer_listener = crate::http::bind("peers", config.listen.peer).await?;
    let http_listener = crate::http::bind("metrics and probes", config.listen.http).await?;
    let node = Node::open(config)?;
    let cluster = node.cluster().clone();
    let peers = Arc::new(Peers {
        cluster: cluster.clone(),
        router: node.services.router.clone(),
        gateway: node.services.gateway.clone(),
        links: node.links.clone(),
        groups: cluster.clone(),
        identity: node.identity.clone(),
    });
    node.spawn_background();
    tokio::spawn(serve_peers(node.clone(), peers.clone(), peer_listener));
    tokio::spawn(crate::http::serve(http_listener, node.clone()));
    tokio::select! {
        settled = node.identity.settle(&node.config) => settled?,
        () = &mut stop => return Ok(()),
    }
    for peer in &node.config.initial_peers {
        peers.add(NodeId(peer.node_id), peer.peer_address.clone());
    }
    node.start_meta().await?;
    tokio::spawn(node.clone().keep_meta());
    tokio::spawn(node.clone().follow_map());
    let serving = tokio::spawn(serve_clients(node.clone(), client_listener));
    tokio::select! {
        served = serving => served.context("the clients' server ended")??,
        () = &mut stop => {}
    }
    node.leave().await;
    Ok(())
}

impl Node {
    fn open(config: Config) -> anyhow::Result<Arc<Self>> {
        let data = &config.data_dir;
        std::fs::create_dir_all(data)
            .with_context(|| format!("data_dir {} cannot be made", data.display()))?;
        let mut store_options = StoreOptions::new(data.join("state"));
        store_options.memtable_bytes = config.store.memtable_bytes;
        store_options.block_cache_bytes = config.store.block_cache_bytes;
        store_options.failpoint = carillon_log::failpoint::hit;
        store_options.on_fatal = Arc::new(|error| die(&format!("state store: {error}")));
        let store = Store::open(&store_options).context("state store")?;
        let identity = Arc::new(Identity::open(store.clone(), &config)?);
        let mut log_options = LogOptions::new(data.join("log"));
        log_options.segment_bytes = config.log.segment_bytes;
        log_options.memory_tail_bytes_max = config.log.memory_bytes_max as u64;
        log_options.on_fatal = Arc::new(|error| die(&format!("Raft log: {error}")));
        let log = LogEngine::open(log_options).context("Raft log")?;
        let snapshots = prepare_directory(data).context("snapshots directory")?;

        let mut metrics = registry();
        let node_metrics = NodeMetrics::register(&mut metrics);
        let gateway_metrics = Arc::new(GatewayMetrics::default());
        gateway_metrics.register(&mut metrics);
        let cluster = Cluster::new(config.node());
        let router = Router::new(cluster.clone());
        let gateway = Gateway::new(GatewayOptions {
            node_id: config.node(),
            limits: limits(&config),
            router: router.clone(),
            metrics: gateway_metrics,
        });
        let fanout = Fanout::new(cluster.clone(), router.clone());
        let beat = Beat::new(&config.raft);
        Ok(Arc::new(Self {
            flusher: Flusher::new(store.clone()),
            store,
            log,
            services: Services {
                cluster,
                router,
                gateway,
                fanout,
                beat,
                metrics: node_metrics,
            },
            identity,
            links: Links::new(LINK_BUFFER_BYTES_DEFAULT),
            snapshots,
            page: MetricsPage::new(metrics),
            started: Instant::now(),
            stopping: AtomicBool::new(false),
            ready: watch::Sender::new(false),
            config,
        }))
    }

    /// The cluster as this node knows it.
    pub fn cluster(&self) -> &Arc<Cluster> {
        &self.services.cluster
    }

    fn spawn_background(self: &Arc<Self>) {
        tokio::spawn(self.services.router.clone().run());
        tokio::spawn(self.services.beat.clone().run());
        tokio::spawn(self.services.fanout.clone().run());
        tokio::spawn(self.services.gateway.clone().run());
        tokio::spawn(flush::run(
            self.cluster().clone(),
            self.log.clone(),
            self.config.log.clone(),
        ));
        tokio::spawn(self.clone().watch_ready());
    }

    async fn start_meta(self: &Arc<Self>) -> anyhow::Result<()> {
        let state = self.store.shard(META_SHARD, META_SLOTS)?;
        let reader = state.reader();
        let machine = MetaMachine::new(self.flusher.clone(), state, self.cluster().clone())?;
        let me = meta_member(self.config.node());
        let group = self.start_group(META_SHARD, me, Box::new(machine)).await?;
        self.start_replica(group.clone(), reader, Arc::default(), Arc::default());
        if !self.identity.founders().is_empty() {
            group.initialize(&self.meta_voters()).await?;
        }
        Ok(())
    }

    fn meta_voters(&self) -> Vec<Member> {
        let mut nodes: Vec<NodeId> = self
            .config
            .initial_peers
            .iter()
            .map(|peer| NodeId(peer.node_id))
            .collect();
        nodes.sort_unstable();
        let voters = match nodes.len() {
            few @ ..3 => few,
            count => META_VOTERS_MAX.min(count - (count + 1) % 2),
        };
        nodes.into_iter().take(voters).map(meta_member).collect()
    }

    /// Founds the cluster's map, registers this node's addresses, and, while this node
    /// leads the meta group, sees to it that every node gets its log.
    async fn keep_meta(self: Arc<Self>) {
        loop {
            let meta = self.cluster().meta();
            if meta.cluster_id.is_empty() {
                let nodes = self.identity.founders();
                if !nodes.is_empty() {
                    self.propose_meta(MetaCommand::CreateCluster {
                        cluster_id: self.identity.cluster_id().unwrap_or_default(),
                        cluster_name: self.config.cluster_name.clone(),
                        shards: self.config.cluster.shards,
                        replication_factor: self.config.cluster.replication_factor,
                        nodes,
                    })
                    .await;
                }
            } else {
                if let Some(node) = self.identity.outdated(&self.config, &meta) {
                    self.propose_meta(MetaCommand::UpdateNode { node }).await;
                }
                self.add_meta_learners(&meta).await;
            }
            tokio::time::sleep(RETRY_INTERVAL).await;
        }
    }

    async fn propose_meta(&self, command: MetaCommand) {
        let deadline = tokio::time::Instant::now() + TRY_TIMEOUT;
        if let Err(error) = self
            .services
            .router
            .command_to(META_SHARD, command.encode(), deadline)
            .await
        {
            tracing::debug!(%error, "the meta group did not take a command; it is tried again");
        }
    }

    async fn add_meta_learners(&self, meta: &MetaState) {
        let Some(replica) = self
            .cluster()
            .replica(META_SHARD)
            .filter(|replica| replica.leads())
        else {
            return;
        };
        let status = replica.group().status();
        for node in &meta.map.nodes {
            let member = meta_member(node.node_id);
            if status.voters.contains(&member) || status.learners.contains(&member) {
                continue;
            }
            if let Err(error) = replica.group().add_learner(member, false).await {
                tracing::debug!(node = node.node_id.0, %error, "the node is not in the meta group yet");
            }
        }
    }

    /// Starts the replicas that the map places here, as the map becomes known.
    async fn follow_map(self: Arc<Self>) {
        let mut changes = self.cluster().watch_meta();
        loop {
            let meta = changes.borrow_and_update().clone();
            for descriptor in &meta.map.shards {
                let Some(here) = descriptor.replica_on(self.config.node()) else {
                    continue;
                };
                if self.cluster().replica(descriptor.shard_id).is_some() {
                    continue;
                }
                let me = Member {
                    replica: here.replica_id,
                    node: here.node_id,
                };
                if let Err(error) = self.start_shard(descriptor, me).await {
                    die(&format!(
                        "shard {} cannot be started: {error:#}",
                        descriptor.shard_id.0
                    ));
                }
            }
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    async fn start_shard(
        self: &Arc<Self>,
        descriptor: &ShardDescriptor,
        me: Member,
    ) -> anyhow::Result<()> {
        let shard = descriptor.shard_id;
        let state = self.store.shard(shard, descriptor.slots)?;
        let reader = state.reader();
        let (leading, checksums) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(Checksums::default()),
        );
        let machine = ShardMachine::new(
            self.flusher.clone(),
            state,
            leading.clone(),
            self.services.fanout.clone(),
            checksums.clone(),
        );
        let group = self.start_group(shard, me, Box::new(machine)).await?;
        self.start_replica(group.clone(), reader, leading, checksums);
        let voters: Vec<Member> = descriptor
            .replicas
            .iter()
            .map(|replica| Member {
                replica: replica.replica_id,
                node: replica.node_id,
            })
            .collect();
        if descriptor.preferred_leader == me.node {
            group.initialize(&voters).await?;
            return Ok(());
        }
        tokio::spawn(async move {
            let mut leadership = group.leadership();
            let led = leadership.wait_for(|leadership| leadership.leader.is_some());
            if tokio::time::timeout(INITIALIZE_FALLBACK, led)
                .await
                .is_err()
                && let Err(error) = group.initialize(&voters).await
            {
                tracing::warn!(shard = shard.0, %error, "the group could not be begun here");
            }
        });
        Ok(())
    }

    async fn start_group(
        &self,
        shard: ShardId,
        me: Member,
        machine: Box<dyn Machine>,
    ) -> anyhow::Result<Group> {
        let options = self.config.raft.group_options();
        let sender: Arc<dyn SnapshotSender> = Arc::new(Sender {
            cluster: self.cluster().clone(),
            identity: self.identity.clone(),
            directory: self.snapshots.clone(),
        });
        let log = self.log.group(GroupId(shard.0));
        Ok(Group::start(shard, me, options, log, machine, self.links.clone(), sender).await?)
    }

    fn start_replica(
        self: &Arc<Self>,
        group: Group,
        reader: ShardReader,
        leading: Arc<AtomicBool>,
        checksums: Arc<Checksums>,
    ) {
        let replica = Replica::new(
            group,
            reader,
            self.services.clone(),
            self.config.raft.clone(),
            leading,
            checksums,
        );
        self.cluster().add_replica(replica.clone());
        tokio::spawn(replica.clone().run());
        let node = self.clone();
        tokio::spawn(async move {
            let reason = replica.group().stopped().await;
            if !node.stopping.load(Ordering::Acquire) {
                die(&format!("shard {}: {reason}", replica.shard().0));
            }
        });
    }

    /// Flushes the state of the node and purges one shard's log up to it.
    pub async fn flush_and_purge(&self, replica: &Replica) -> anyhow::Result<u64> {
        self.flusher.expire();
        let position = replica.group().flush_and_purge(0).await?;
        Ok(position.map_or(0, |position| position.index))
    }

    /// What this node still waits for before it serves; none when it does.
    pub fn not_ready(&self) -> Option<String> {
        if self.stopping.load(Ordering::Acquire) {
            return Some("stopping".to_owned());
        }
        let Some(cluster) = self.identity.cluster_id() else {
            return Some("waits for the initial peers to make the cluster".to_owned());
        };
        let meta = self.cluster().meta();
        if meta.map.shards.is_empty() {
            return Some(format!(
                "belongs to cluster {cluster}, waits for its shard map"
            ));
        }
        let leaderless: Vec<u32> = meta
            .map
            .shards
            .iter()
            .filter(|shard| shard.replica_on(self.config.node()).is_some())
            .filter(|shard| !self.is_led(shard.shard_id))
            .map(|shard| shard.shard_id.0)
            .collect();
        if !leaderless.is_empty() {
            return Some(format!(
                "shards without a leader that has a majority: {leaderless:?}"
            ));
        }
        None
    }

    /// Whether a shard has a leader. One that is here counts only while a majority answers
    /// it: it keeps leading, but nothing it takes is committed.
    fn is_led(&self, shard: ShardId) -> bool {
        let Some(replica) = self.cluster().replica(shard) else {
            return false;
        };
        if replica.leader().is_none() {
            return false;
        }
        if !replica.leads() {
            return true;
        }
        let status = replica.group().status();
        let answering = status
            .followers
            .iter()
            .filter(|follower| status.voters.contains(&follower.member))
            .filter(|follower| {
                follower
                    .answered_ago
                    .is_some_and(|ago| ago < MAJORITY_SILENCE_MAX)
            })
            .count();
        (answering + 1) * 2 > status.voters.len()
    }

    /// The same for probes, which must not be ahead of what gRPC health says.
    pub fn not_ready_yet(&self) -> Option<String> {
        self.not_ready()
            .or_else(|| (!*self.ready.borrow()).then(|| "about to be ready".to_owned()))
    }

    async fn watch_ready(self: Arc<Self>) {
        let mut interval = tokio::time::interval(RETRY_INTERVAL);
        loop {
            interval.tick().await;
            let ready = self.not_ready().is_none();
            self.ready
                .send_if_modified(|known| std::mem::replace(known, ready) != ready);
        }
    }

    /// The metrics page.
    pub fn metrics_text(&self) -> Result<String, std::fmt::Error> {
        let (log, store) = (self.log.stats(), self.store.stats());
        let replicas = self.cluster().replicas();
        let lag = |replica: &Arc<Replica>| {
            replica
                .group()
                .status()
                .followers
                .iter()
                .map(|follower| follower.lag_entries)
                .max()
                .unwrap_or(0)
        };
        let observed = Observed {
            replicas: replicas.len() as u64,
            leaders: replicas.iter().filter(|replica| replica.leads()).count() as u64,
            nodes_up: self.cluster().nodes_up() as u64,
            operations_outstanding: self.services.router.outstanding() as u64,
            deliveries_outstanding: self.services.fanout.undelivered(),
            replication_lag_entries_max: replicas.iter().map(lag).max().unwrap_or(0),
            log_bytes: log.segments * self.config.log.segment_bytes,
            log_syncs: log.syncs,
            log_sync_microseconds: log.sync_micros,
            state_bytes: store.table_bytes,
            memtable_bytes: store.memtable_bytes,
        };
        self.page.render(&observed)
    }

    /// This node and its replicas, for the admin service of any node.
    pub fn status(&self) -> StatusResponse {
        let replicas = self.cluster().replicas();
        let (log, store) = (self.log.stats(), self.store.stats());
        let node = NodeStatus {
            node_id: self.config.node_id,
            client_address: self.config.client_address(),
            peer_address: self.config.peer_address(),
            up: true,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_seconds: self.started.elapsed().as_secs(),
            replicas: replicas
                .iter()
                .filter(|replica| replica.shard() != META_SHARD)
                .count() as u32,
            leaders: replicas
                .iter()
                .filter(|replica| replica.shard() != META_SHARD && replica.leads())
                .count() as u32,
            sessions: self.services.gateway.sessions() as u32,
            state_bytes: store.table_bytes + store.memtable_bytes,
            log_bytes: log.segments * self.config.log.segment_bytes,
            draining: self.stopping.load(Ordering::Acquire),
        };
        let replicas = replicas
            .iter()
            .map(|replica| self.replica_status(replica))
            .collect();
        StatusResponse {
            node: Some(node),
            replicas,
        }
    }

    fn replica_status(&self, replica: &Replica) -> ShardReplica {
        let status = replica.group().status();
        let role = match status.role {
            Role::Leader => RoleStatus::Leader,
            Role::Follower => RoleStatus::Follower,
            Role::Candidate => RoleStatus::Candidate,
            Role::Learner => RoleStatus::Learner,
            Role::Stopped => RoleStatus::Unknown,
        };
        let index = |position: Option<carillon_raft::Position>| {
            position.map_or(0, |position| position.index)
        };
        ShardReplica {
            shard_id: replica.shard().0,
            status: Some(ReplicaStatus {
                node_id: self.config.node_id,
                replica_id: replica.group().me().replica.0,
                role: role.into(),
                term: status.term,
                last_log_index: status.last_log.unwrap_or(0),
                applied_index: index(status.applied),
                flushed_index: index(status.flushed),
                purged_index: index(status.purged),
                state_bytes: match replica.shard() {
                    META_SHARD => 0,
                    _ => self.store.approximate_bytes(replica.reader().slots()),
                },
            }),
        }
    }

    /// A graceful stop: leaderships are handed over, clients connect elsewhere, what was
    /// taken is finished, everything is durable. At most the configured time.
    async fn leave(self: &Arc<Self>) {
        tracing::info!("stops: hands over what it leads");
        self.stopping.store(true, Ordering::Release);
        self.ready.send_replace(false);
        let limit = self.config.shutdown_timeout;
        if tokio::time::timeout(limit, self.leave_in_order())
            .await
            .is_err()
        {
            tracing::warn!(
                ?limit,
                "did not finish in time; what is acknowledged is in the log"
            );
        }
    }

    async fn leave_in_order(self: &Arc<Self>) {
        let drained = self
            .services
            .gateway
            .drain(RECONNECT_SPREAD, self.config.shutdown_timeout / 2);
        tokio::join!(self.hand_over(), drained);
        let outstanding = async {
            while self.services.router.outstanding() > 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        if tokio::time::timeout(self.config.shutdown_timeout / 4, outstanding)
            .await
            .is_err()
        {
            tracing::warn!(
                operations = self.services.router.outstanding(),
                "some operations did not end"
            );
        }
        let replicas = self.cluster().replicas();
        for replica in &replicas {
            replica.stop();
        }
        self.services.router.close();
        for replica in &replicas {
            replica.group().shutdown().await;
        }
        let (flusher, log) = (self.flusher.clone(), self.log.clone());
        let flushed = tokio::task::spawn_blocking(move || -> anyhow::Result<()> {
            flusher.flush_now()?;
            log.shutdown()?;
            Ok(())
        });
        match flushed.await {
            Ok(Ok(())) => tracing::info!("stopped; everything is durable"),
            Ok(Err(error)) => {
                tracing::error!(%error, "the last flush failed; the log has what is missing")
            }
            Err(error) => tracing::error!(%error, "the last flush panicked"),
        }
    }

    async fn hand_over(&self) {
        for replica in self.cluster().replicas() {
            if !replica.leads() {
                continue;
            }
            let status = replica.group().status();
            let mut targets: Vec<NodeId> = status
                .voters
                .iter()
                .map(|member| member.node)
                .filter(|node| *node != self.config.node() && self.cluster().is_up(*node))
                .collect();
            let targets_count = targets.len().max(1);
            targets.rotate_left(replica.shard().0 as usize % targets_count);
            for target in targets {
                match replica
                    .group()
                    .transfer_leader(target, HANDOVER_TIMEOUT)
                    .await
                {
                    Ok(()) => break,
                    Err(error) => {
                        tracing::info!(shard = replica.shard().0, %error, "not handed over")
                    }
                }
            }
        }
    }
}

/// Replicas of the meta group are numbered like their nodes: each node has one for good.
fn meta_member(node: NodeId) -> Member {
    Member {
        replica: ReplicaId(node.0),
        node,
    }
}

fn limits(config: &Config) -> Limits {
    Limits {
        heartbeat_interval: config.clients.heartbeat,
        hello_timeout: config.clients.hello_timeout,
        session_queue_bytes_max: config.clients.session_queue_bytes_max,
        op_timeout: config.clients.call_timeout,
        sessions_max: config.clients.sessions_max,
    }
}

async fn serve_peers(node: Arc<Node>, peers: Arc<Peers>, listener: TcpListener) {
    let snapshots = node.snapshots.clone();
    let service = PeerServer::new(PeerService {
        node,
        peers,
        snapshots,
    })
    .max_decoding_message_size(carillon_raft::PACKET_BYTES_MAX + 1024)
    .max_encoding_message_size(carillon_raft::PACKET_BYTES_MAX + 1024);
    let incoming = tonic::transport::server::TcpIncoming::from(listener)
        .with_nodelay(Some(true))
        .map(|stream| stream.map(Corked::new));
    let served = Server::builder()
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .add_service(service)
        .serve_with_incoming(incoming)
        .await;
    if let Err(error) = served {
        die(&format!("the peers' server ended: {error}"));
    }
}

async fn serve_clients(node: Arc<Node>, listener: TcpListener) -> anyhow::Result<()> {
    let (reporter, health) = tonic_health::server::health_reporter();
    tokio::spawn(report_health(reporter, node.ready.subscribe()));
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(carillon_proto::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            // For the details of errors.
            .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
            .with_service_name("carillon.v1.Chat")
            .with_service_name("carillon.admin.v1.Admin")
            .with_service_name("grpc.health.v1.Health")
    };
    let clients = &node.config.clients;
    let incoming = GuardedListener::new(listener, clients.connections_max, clients.hello_timeout)
        .incoming()
        .map(|stream| stream.map(Corked::new));
    Server::builder()
        .http2_keepalive_interval(Some(CLIENT_KEEPALIVE))
        .add_service(node.services.gateway.service())
        .add_service(AdminServer::new(AdminService::new(node.clone())))
        .add_service(health)
        .add_service(reflection().build_v1()?)
        .add_service(reflection().build_v1alpha()?)
        .serve_with_incoming(incoming)
        .await?;
    Ok(())
}

async fn report_health(
    reporter: tonic_health::server::HealthReporter,
    mut ready: watch::Receiver<bool>,
) {
    use tonic_health::ServingStatus;
    loop {
        let status = if *ready.borrow_and_update() {
            ServingStatus::Serving
        } else {
            ServingStatus::NotServing
        };
        for service in ["", "carillon.v1.Chat", "carillon.admin.v1.Admin"] {
            reporter.set_service_status(service, status).await;
        }
        if ready.changed().await.is_err() {
            return;
        }
    }
}
