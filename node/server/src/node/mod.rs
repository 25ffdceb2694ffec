//! A node from start to stop: opens what is on disk, joins or makes the cluster, starts
//! its replicas as the shard map says (`replicas`) or splits have made them (`born`), ends those
//! that their neighbours have taken over (`merged`), serves (`serve`, `status`), gives leads
//! back (`preferred`) or away (`short`), steers the cluster while it leads the meta group
//! (`steering`), and leaves in order (`leave`).
//!
//! Owner of the state: [`Node`] holds the parts; each part owns its own.

mod born;
mod joint;
mod leave;
mod local;
mod merged;
mod preferred;
mod replicas;
mod serve;
mod short;
mod standing;
mod status;
mod steering;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use carillon_core::ids::{NodeId, ReplicaId, ShardId};
use carillon_core::map::META_SHARD;
use carillon_core::steering::Wait;
use carillon_log::{GroupId, LogEngine};
use carillon_raft::{
    Group, GroupRegistry, LINK_BUFFER_BYTES_DEFAULT, Links, LogEnd, LogRecord, Retention,
};
use carillon_store::{Store, StoreOptions};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use crate::cluster::Cluster;
use crate::config::Config;
use crate::disk::{Reserve, Room};
use crate::fanout::Fanout;
use crate::flush::{self, Flusher};
use crate::gateway::{Gateway, GatewayMetrics, GatewayOptions, Limits};
use crate::identity::Identity;
use crate::join::join;
use crate::metrics::{ConnectionMetrics, MetricsPage, NodeMetrics, registry};
use crate::peer::Peers;
use crate::peer::calls::PeerCalls;
use crate::peer::dial::Dialer;
use crate::peer::outgoing::Outgoing;
use crate::peer::snapshot::prepare_directory;
use crate::router::Router;
use crate::security::Security;
use crate::shard::beat::Beat;
use crate::shard::{Replica, Services};
use crate::socket;
use crate::trace::Tracer;
use local::{LocalReplicas, Presence};
use serve::{serve_clients, serve_local, serve_operators, serve_peers};
use steering::Sight;
pub use steering::supported_by;

/// Between two tries of what has to succeed in the end.
const RETRY_INTERVAL: Duration = Duration::from_millis(250);

/// The log of a node.
pub type NodeLog = LogEngine<LogRecord>;

/// See the file's head.
pub struct Node {
    config: Config,
    store: Store,
    log: NodeLog,
    services: Services,
    identity: Arc<Identity>,
    security: Arc<Security>,
    local: Arc<LocalReplicas>,
    links: Arc<Links>,
    calls: PeerCalls,
    flusher: Arc<Flusher>,
    room: Arc<Room>,
    snapshots: PathBuf,
    outgoing: Arc<Outgoing>,
    connection_metrics: Arc<ConnectionMetrics>,
    page: MetricsPage,
    started: Instant,
    stopping: AtomicBool,
    /// Since when nodes are silent, while this node leads the meta group.
    sight: tokio::sync::Mutex<Sight>,
    /// What the steering waits for.
    waits: Mutex<Vec<Wait>>,
    /// Nodes that the steering did not hear at its last look, and for how long, milliseconds.
    silent: Mutex<Vec<(NodeId, u64)>>,
    ready: watch::Sender<bool>,
    /// It was ready once.
    has_served: AtomicBool,
    /// The meta group has confirmed the map, so that replicas may run.
    confirmed: AtomicBool,
    /// Made at random when this process started.
    run: u64,
    /// Somebody wants this process to begin anew.
    restart: Notify,
    /// A replica here has other slots than before.
    slots_changed: Arc<Notify>,
}

/// How a node came to its end, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It was told to stop.
    Stopped,
    /// An operator wants it to be started again.
    Restarts,
}

/// The groups of this node, as the other nodes reach them.
struct Groups {
    cluster: Arc<Cluster>,
    room: Arc<Room>,
}

impl GroupRegistry for Groups {
    fn group(&self, shard: ShardId) -> Option<Group> {
        let replica = self.cluster.replica(shard);
        replica.map(|replica| replica.group().clone())
    }

    fn takes_commands(&self, shard: ShardId) -> bool {
        // What the cluster is stays known, also for whoever makes room.
        self.room.takes_entries() || shard == META_SHARD
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
pub async fn run(mut config: Config, stop: impl Future<Output = ()>) -> anyhow::Result<Ended> {
    let mut stop = std::pin::pin!(stop);
    // Bound first, so that a port in use is an error before anything else happens.
    let client_listener = crate::http::bind("clients", config.listen.client).await?;
    let peer_listener = crate::http::bind("peers", config.listen.peer).await?;
    let http_listener = crate::http::bind("metrics and probes", config.listen.http).await?;
    let admin_listener = match config.listen.admin {
        Some(address) => Some(crate::http::bind("operators", address).await?),
        None => None,
    };
    // Before anything is opened too: certificates that do not fit are for who starts it.
    let security = Security::load(&config)?;
    let store = open_store(&config)?;
    let dialer = Dialer::new(security.tls().cloned());
    if let Some(cluster) = config.join.clone() {
        let joined = tokio::select! {
            joined = join(&store, &config, &cluster, &dialer) => joined?,
            () = &mut stop => return Ok(Ended::Stopped),
        };
        config.node_id = joined.0;
    }
    let node = Node::open(config, store, security, dialer)?;
    let cluster = node.cluster().clone();
    let peers = Arc::new(Peers {
        cluster: cluster.clone(),
        router: node.services.router.clone(),
        gateway: node.services.gateway.clone(),
        links: node.links.clone(),
        groups: Arc::new(Groups {
            cluster: cluster.clone(),
            room: node.room.clone(),
        }),
        identity: node.identity.clone(),
        relay_changes: Mutex::new(()),
    });
    node.spawn_background();
    tokio::spawn(serve_peers(node.clone(), peers.clone(), peer_listener));
    tokio::spawn(crate::http::serve(http_listener, node.clone()));
    tokio::select! {
        settled = node.identity.settle(&node.config) => settled?,
        () = &mut stop => return Ok(Ended::Stopped),
    }
    node.start_meta().await?;
    tokio::spawn(peers.clone().follow_nodes());
    tokio::spawn(node.clone().keep_meta());
    tokio::spawn(node.clone().follow_map());
    tokio::spawn(node.clone().follow_routing());
    tokio::spawn(node.clone().give_leads_back());
    tokio::spawn(node.clone().lead_nothing_while_short());
    tokio::spawn(node.clone().steer());
    tokio::spawn(node.clone().follow_standing());
    tokio::spawn(serve_local(node.clone()));
    if let Some(listener) = admin_listener {
        tokio::spawn(serve_operators(node.clone(), listener));
    }
    let serving = tokio::spawn(serve_clients(node.clone(), client_listener));
    let ended = tokio::select! {
        served = serving => {
            served.context("the clients' server ended")??;
            Ended::Stopped
        }
        () = &mut stop => Ended::Stopped,
        () = node.restart.notified() => Ended::Restarts,
    };
    node.leave().await;
    if let Some(tracer) = node.services.tracer.clone() {
        // It blocks: a collector may be away.
        tokio::task::spawn_blocking(move || tracer.stop()).await?;
    }
    socket::remove(&socket::path(&node.config.data_dir));
    Ok(ended)
}

impl Node {
    fn open(
        config: Config,
        store: Store,
        security: Arc<Security>,
        dialer: Dialer,
    ) -> anyhow::Result<Arc<Self>> {
        let data = &config.data_dir;
        let identity = Arc::new(Identity::open(store.clone(), &config, dialer)?);
        let local = Arc::new(LocalReplicas::open(store.clone())?);
        let mut log_options = config.log.options(data);
        log_options.on_fatal = Arc::new(|error| die(&format!("Raft log: {error}")));
        let log = LogEngine::open(log_options).context("Raft log")?;
        let snapshots = prepare_directory(data).context("snapshots directory")?;
        let reserve = Reserve {
            configured_bytes: config.disk.reserve_bytes,
            segment_bytes: config.log.segment_bytes,
            memtable_bytes: config.store.memtable_bytes as u64,
        };
        let room = Room::new(data, reserve).context("the disk of data_dir")?;

        let mut metrics = registry();
        let node_metrics = NodeMetrics::register(&mut metrics);
        let connection_metrics = ConnectionMetrics::register(&mut metrics);
        let gateway_metrics = Arc::new(GatewayMetrics::default());
        gateway_metrics.register(&mut metrics);
        let tracer = Tracer::start(&config, &mut metrics)
            .context("configuration field tracing.otlp_endpoint")?;
        let cluster = Cluster::new(config.node());
        let calls = PeerCalls::new(cluster.clone(), identity.clone());
        let router = Router::new(cluster.clone());
        let gateway = Gateway::new(GatewayOptions {
            node_id: config.node(),
            limits: limits(&config),
            router: router.clone(),
            metrics: gateway_metrics,
            security: security.clone(),
            tracer: tracer.clone(),
        });
        let fanout = Fanout::new(cluster.clone(), router.clone());
        let beat = Beat::new(&config.raft);
        Ok(Arc::new(Self {
            flusher: Flusher::new(store.clone()),
            security,
            store,
            log,
            services: Services {
                cluster,
                router,
                gateway,
                fanout,
                beat,
                metrics: node_metrics,
                room: room.clone(),
                tracer,
            },
            room,
            calls,
            identity,
            local,
            links: Links::new(LINK_BUFFER_BYTES_DEFAULT),
            snapshots,
            outgoing: Arc::default(),
            connection_metrics,
            page: MetricsPage::new(metrics),
            started: Instant::now(),
            stopping: AtomicBool::new(false),
            sight: tokio::sync::Mutex::default(),
            waits: Mutex::default(),
            silent: Mutex::default(),
            ready: watch::Sender::new(false),
            has_served: AtomicBool::new(false),
            confirmed: AtomicBool::new(false),
            run: rand::random(),
            restart: Notify::new(),
            slots_changed: Arc::default(),
            config,
        }))
    }

    /// Counts what is refused at its ports.
    pub fn connection_metrics(&self) -> &ConnectionMetrics {
        &self.connection_metrics
    }

    /// Lets this process stop in order, to be started again; false when another was meant.
    pub fn ask_to_restart(&self, run: u64) -> bool {
        let meant = run == self.run;
        if meant {
            self.restart.notify_one();
        }
        meant
    }

    /// The cluster as this node knows it.
    pub fn cluster(&self) -> &Arc<Cluster> {
        &self.services.cluster
    }

    /// Operations of this node.
    pub fn router(&self) -> &Router {
        &self.services.router
    }

    /// Calls to the other nodes.
    pub fn calls(&self) -> &PeerCalls {
        &self.calls
    }

    /// Who this node is.
    pub fn identity(&self) -> &Arc<Identity> {
        &self.identity
    }

    /// Who may talk to this node.
    pub fn security(&self) -> &Arc<Security> {
        &self.security
    }

    /// Where the log of a replica here ends, with its number; none when there is none. Also of
    /// one that does not run.
    pub async fn log_end(&self, shard: ShardId) -> anyhow::Result<Option<(ReplicaId, LogEnd)>> {
        let Some(local) = self.local.all().get(&shard).copied() else {
            return Ok(None);
        };
        if !matches!(local.presence, Presence::Live | Presence::Rebuilding) {
            return Ok(None);
        }
        let log = self.log.group(GroupId(shard.0));
        let applied = self.store.applied()?.remove(&shard);
        let end = carillon_raft::log_end(log, applied).await?;
        Ok(Some((local.replica_id, end)))
    }

    /// Flushes the state of the node and purges one shard's log up to it.
    pub async fn flush_and_purge(&self, replica: &Replica) -> anyhow::Result<u64> {
        self.flusher.expire();
        let position = replica.group().flush_and_purge(Retention::NONE).await?;
        Ok(position.map_or(0, |position| position.index))
    }

    fn spawn_background(self: &Arc<Self>) {
        tokio::spawn(self.services.router.clone().run());
        tokio::spawn(self.services.beat.clone().run());
        tokio::spawn(self.services.fanout.clone().run());
        tokio::spawn(self.services.gateway.clone().run());
        tokio::spawn(self.services.gateway.clone().see_out());
        tokio::spawn(self.room.clone().follow());
        tokio::spawn(self.security.clone().follow_files());
        tokio::spawn(flush::run(
            self.cluster().clone(),
            self.flusher.clone(),
            self.room.clone(),
            self.log.clone(),
            self.config.log.clone(),
        ));
        tokio::spawn(self.clone().watch_ready());
        tokio::spawn(self.clone().end_changes());
    }
}

fn open_store(config: &Config) -> anyhow::Result<Store> {
    let data = &config.data_dir;
    std::fs::create_dir_all(data)
        .with_context(|| format!("data_dir {} cannot be made", data.display()))?;
    let mut options = StoreOptions::new(data.join("state"));
    options.memtable_bytes = config.store.memtable_bytes;
    options.block_cache_bytes = config.store.block_cache_bytes;
    options.background_write_bytes_per_second = config.store.background_write_bytes_per_s;
    // Until the meta group's state says that all nodes read them.
    options.keep_slots = false;
    options.failpoint = carillon_log::failpoint::hit;
    options.on_fatal = Arc::new(|error| die(&format!("state store: {error}")));
    Store::open(&options).context("state store")
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
