//! The nodes among themselves: links that are dialled and accepted, and what comes over
//! the relay.
//!
//! Owner of the state: each link's task. Two links to every peer, on connections of their
//! own: Raft traffic, and everything else. The node with the smaller id dials.

pub mod calls;
pub mod dial;
pub mod frames;
pub mod group;
pub mod outgoing;
mod receive;
pub mod service;
pub mod snapshot;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use carillon_core::ids::NodeId;
use carillon_proto::internal::Packet;
use carillon_proto::internal::peer_client::PeerClient;
use carillon_raft::{GroupRegistry, Link, LinkEpoch, Links, OutStream, next_frame, run_link};
use futures_util::{Stream, StreamExt};
use parking_lot::Mutex;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Request, Status};

use crate::cluster::{Cluster, Route};
use crate::gateway::Gateway;
use crate::identity::Identity;
use crate::router::{Payload, Router, Undone};
use crate::shard::lead::Lead;
use crate::shard::queue::Origin;
use frames::{PushTargets, read_push, read_settled, send_settled};
pub use receive::SnapshotInbox;

const DIAL_BACKOFF_MIN: Duration = Duration::from_millis(50);
const DIAL_BACKOFF_MAX: Duration = Duration::from_secs(1);
/// A connection that is silent for this long is asked for a sign of life.
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2);
/// And is given up when none comes within this.
pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(3);
/// HTTP/2 windows: so large that one link never waits for an update.
pub const STREAM_WINDOW_BYTES: u32 = 16 << 20;
/// As above, for all streams of a connection.
pub const CONNECTION_WINDOW_BYTES: u32 = 32 << 20;
/// How often the port of a lost peer is tried before its silence is left to elections.
const PROBES_MAX: u32 = 20;
const PROBE_PAUSE: Duration = Duration::from_millis(20);
/// The second survivor waits this long before it stands for the leaderships of a dead node.
const ELECTION_TURN: Duration = Duration::from_millis(150);

type Inbound = std::pin::Pin<Box<dyn Stream<Item = Result<Bytes, Status>> + Send>>;

/// Which of the two links to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkKind {
    /// Append traffic, heartbeats, votes.
    Raft,
    /// Forwarding, fan-out, reads, pushes.
    Relay,
}

/// What links work with.
pub struct Peers {
    /// The cluster as this node knows it.
    pub cluster: Arc<Cluster>,
    /// Operations of this node.
    pub router: Arc<Router>,
    /// Sessions of this node.
    pub gateway: Arc<Gateway>,
    /// The Raft links.
    pub links: Arc<Links>,
    /// The groups that Raft frames are for.
    pub groups: Arc<dyn GroupRegistry>,
    /// Who this node is.
    pub identity: Arc<Identity>,
    /// Held while a relay link takes the place of another one, or ends.
    pub relay_changes: Mutex<()>,
}

impl Peers {
    /// Links this node with all others of the cluster, as they come and go.
    pub async fn follow_nodes(self: Arc<Self>) {
        let mut changes = self.cluster.watch_meta();
        loop {
            let meta = changes.borrow_and_update().clone();
            if meta.map.nodes.is_empty() {
                self.identity
                    .peers()
                    .keys()
                    .for_each(|peer| self.add(*peer));
            }
            // A node without a disk that came back at its old address is another one now: the
            // old number leads nowhere.
            let is_reached =
                |peer: NodeId| meta.map.node(peer).is_some() && !meta.is_superseded(peer);
            for node in &meta.map.nodes {
                if is_reached(node.node_id) {
                    self.add(node.node_id);
                }
            }
            if !meta.map.nodes.is_empty() {
                let peers = self.cluster.linked_peers().into_iter();
                peers
                    .filter(|peer| !is_reached(*peer))
                    .for_each(|peer| self.part(peer));
            }
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    /// Knows a peer: makes its links, and dials them when that is this node's part.
    fn add(self: &Arc<Self>, peer: NodeId) {
        if peer == self.cluster.me() || self.cluster.relay(peer).is_some() {
            return;
        }
        let relay = Link::new(peer, carillon_raft::LINK_BUFFER_BYTES_DEFAULT);
        self.cluster.add_relay(peer, relay.clone());
        let raft = self.links.link(peer);
        if self.cluster.me() < peer {
            for (kind, link) in [(LinkKind::Raft, raft), (LinkKind::Relay, relay)] {
                tokio::spawn(self.clone().dial(kind, link));
            }
        }
    }

    /// A peer is no longer of the cluster: it is not listened to any more.
    fn part(&self, peer: NodeId) {
        tracing::info!(peer = peer.0, "left the cluster");
        let relay = self.cluster.remove_relay(peer);
        for link in relay.into_iter().chain([self.links.link(peer)]) {
            let epoch = link.watch().borrow().epoch;
            link.close(epoch);
        }
    }

    /// Keeps a link to a peer, wherever it is reached at the time, until the peer is no longer
    /// of the cluster.
    async fn dial(self: Arc<Self>, kind: LinkKind, link: Arc<Link>) {
        let peer = link.peer();
        let mut backoff = DIAL_BACKOFF_MIN;
        while let Some(address) = self.identity.peer_address(peer, &self.cluster.meta()) {
            match self.connect(kind, &link, &address).await {
                Ok((epoch, inbound)) => {
                    backoff = DIAL_BACKOFF_MIN;
                    self.clone().serve(kind, link.clone(), epoch, inbound).await;
                }
                Err(error) => {
                    tracing::debug!(peer = peer.0, ?kind, %error, "no link to the peer");
                }
            }
            tokio::time::sleep(backoff).await;
            backoff = (backoff * 2).min(DIAL_BACKOFF_MAX);
        }
        tracing::info!(
            peer = peer.0,
            ?kind,
            "is not linked any more: it left the cluster"
        );
        self.cluster.remove_relay(peer);
    }

    async fn connect(
        &self,
        kind: LinkKind,
        link: &Arc<Link>,
        address: &str,
    ) -> anyhow::Result<(LinkEpoch, Inbound)> {
        let channel = self.identity.dialer().connect(address).await?;
        let mut client = peer_client(channel, &self.identity);
        let out = link.open();
        let epoch = out.epoch();
        let request = Request::new(out.map(|frames| Packet { frames }));
        let response = match kind {
            LinkKind::Raft => client.raft(request).await,
            LinkKind::Relay => client.relay(request).await,
        };
        match response {
            Ok(response) => {
                let inbound = response
                    .into_inner()
                    .map(|packet| packet.map(|packet| packet.frames));
                Ok((epoch, Box::pin(inbound)))
            }
            Err(status) => {
                link.close(epoch);
                Err(status.into())
            }
        }
    }

    /// Runs a link until its stream ends, and sees to what follows from that.
    pub async fn serve(
        self: Arc<Self>,
        kind: LinkKind,
        link: Arc<Link>,
        epoch: LinkEpoch,
        inbound: impl Stream<Item = Result<Bytes, Status>> + Send + Unpin,
    ) {
        let peer = link.peer();
        tracing::info!(peer = peer.0, ?kind, "link is up");
        match kind {
            LinkKind::Raft => {
                let end = run_link(link.clone(), epoch, inbound, self.groups.clone()).await;
                tracing::debug!(peer = peer.0, %end, "the Raft link ended");
            }
            LinkKind::Relay => {
                self.introduce(&link);
                self.resubscribe(peer);
                self.relay(&link, epoch, inbound).await;
            }
        }
        match kind {
            LinkKind::Raft => {
                link.close(epoch);
                tokio::spawn(self.clone().stand_for_the_dead(peer));
            }
            LinkKind::Relay => {
                let _one = self.relay_changes.lock();
                // Of one that a newer one has taken the place of there is nothing left to forget:
                // what is known of the peer now, it said over the newer one.
                if link.watch().borrow().epoch == epoch {
                    link.close(epoch);
                    self.relay_ended(peer);
                }
            }
        }
        tracing::info!(peer = peer.0, ?kind, "link is down");
    }

    /// Opens the relay link of a connection that the peer has made, which takes the place of the
    /// one before. What went into that and did not arrive is sent again, before anything that
    /// follows it is; what the peer said over it, it says again.
    pub(super) fn accept_relay(&self, link: &Arc<Link>) -> OutStream {
        let _one = self.relay_changes.lock();
        let before = link.watch().borrow().epoch;
        link.close(before);
        self.relay_ended(link.peer());
        link.open()
    }

    /// What was said over a relay link is over, and what was asked may not have arrived.
    fn relay_ended(&self, peer: NodeId) {
        self.cluster.forget_announced(peer);
        for replica in self.cluster.replicas() {
            replica.on_peer_lost(peer);
        }
        self.router.on_peer_lost(peer);
    }

    /// Tells the peer what this node leads; what it leads from now on is announced.
    fn introduce(&self, link: &Link) {
        for replica in self.cluster.replicas() {
            if let Some(lead) = replica.leads_in() {
                frames::send_leads(link, replica.shard(), lead);
            }
        }
    }

    /// The peer may have forgotten who is online here, or may not have been able to say
    /// what is new.
    fn resubscribe(&self, peer: NodeId) {
        for shard in self.cluster.routed_shards() {
            let leader = self.cluster.leader(shard);
            if leader.is_none_or(|route| route.node == peer) {
                self.gateway.on_leader_changed(shard);
            }
        }
        for replica in self.cluster.replicas() {
            self.router.on_leader_changed(replica.shard());
        }
    }

    async fn relay(
        &self,
        link: &Arc<Link>,
        epoch: LinkEpoch,
        mut inbound: impl Stream<Item = Result<Bytes, Status>> + Unpin,
    ) {
        let state = link.watch();
        while let Some(Ok(mut packet)) = inbound.next().await {
            loop {
                // What came over an older connection was sent again over the new one: done now,
                // it would be done after what followed it there.
                if state.borrow().epoch != epoch {
                    return;
                }
                match next_frame(&mut packet) {
                    Ok(Some(frame)) => self.on_frame(link, frame),
                    Ok(None) => break,
                    Err(error) => {
                        tracing::error!(peer = link.peer().0, %error, "the relay link is damaged; closing it");
                        return;
                    }
                }
            }
        }
    }

    fn on_frame(&self, link: &Arc<Link>, frame: carillon_raft::Frame) {
        let make = match frame.kind {
            frames::COMMAND => Payload::Command,
            frames::QUERY => Payload::Query,
            frames::DELIVER => Payload::Deliver,
            frames::ANSWER => {
                match read_settled(frame.body) {
                    Some(settled) => self.router.settle(frame.shard, frame.correlation, settled),
                    None => tracing::error!(
                        peer = link.peer().0,
                        "a damaged answer; its operation times out"
                    ),
                }
                return;
            }
            frames::PUSH => {
                if let Some((message, targets)) = read_push(frame.body) {
                    self.gateway.on_push(message, PushTargets(&targets));
                }
                return;
            }
            frames::LEADS => {
                let mut body = frame.body;
                let Some(lead) = Lead::read(&mut body) else {
                    return;
                };
                let node = link.peer();
                if self.cluster.announced(frame.shard, Route { node, lead }) {
                    self.router.on_leader_changed(frame.shard);
                    self.gateway.on_leader_changed(frame.shard);
                }
                return;
            }
            other => {
                tracing::debug!(
                    peer = link.peer().0,
                    kind = other.0,
                    "a frame of an unknown kind"
                );
                return;
            }
        };
        let mut body = frame.body;
        let Some(lead) = Lead::read(&mut body) else {
            return;
        };
        let correlation = frame.correlation;
        let taken = match self.cluster.replica(frame.shard) {
            Some(replica) => {
                let origin = Origin::Relay {
                    link: link.clone(),
                    correlation,
                };
                replica.take(lead, &make(body), origin)
            }
            None if self.cluster.is_gone(frame.shard) => Err(Undone::Moved),
            None => Err(Undone::Retry(None)),
        };
        if let Err(undone) = taken {
            send_settled(link, frame.shard, correlation, &Err(undone));
        }
    }

    /// The stream to a peer broke. When its port refuses connections its process is gone,
    /// and nobody has to wait for an election timeout: the survivors take turns to stand
    /// for what it led.
    async fn stand_for_the_dead(self: Arc<Self>, peer: NodeId) {
        let Some(address) = self.identity.peer_address(peer, &self.cluster.meta()) else {
            return;
        };
        let mut refused = false;
        for _ in 0..PROBES_MAX {
            match tokio::net::TcpStream::connect(&address).await {
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
                    refused = true;
                    break;
                }
                Ok(_) => return,
                Err(_) => tokio::time::sleep(PROBE_PAUSE).await,
            }
        }
        if !refused {
            return;
        }
        tracing::warn!(peer = peer.0, "the peer's process is gone");
        for replica in self.cluster.replicas() {
            let led = replica.leader().is_some_and(|route| route.node == peer);
            if !led {
                continue;
            }
            let turn = self.turn(&replica, peer);
            tokio::spawn(async move {
                tokio::time::sleep(ELECTION_TURN * turn).await;
                if replica.leader().is_some_and(|route| route.node == peer) {
                    match replica.group().elect_now(peer).await {
                        Ok(stands) => tracing::info!(
                            shard = replica.shard().0,
                            stands,
                            "stands for a dead leader"
                        ),
                        Err(error) => {
                            tracing::warn!(shard = replica.shard().0, %error, "cannot stand")
                        }
                    }
                }
            });
        }
    }

    /// This node's place among the survivors of a shard, rotated so that each of them is
    /// first for about as many shards.
    fn turn(&self, replica: &crate::shard::Replica, dead: NodeId) -> u32 {
        let mut survivors: Vec<NodeId> = replica
            .group()
            .status()
            .voters
            .iter()
            .map(|member| member.node)
            .filter(|node| *node != dead)
            .collect();
        survivors.sort_unstable();
        let count = survivors.len().max(1) as u32;
        let rank = survivors
            .iter()
            .position(|node| *node == self.cluster.me())
            .unwrap_or(0) as u32;
        (rank + replica.shard().0) % count
    }
}

/// Says on every call who calls.
#[derive(Clone)]
pub struct Introduction(Arc<Identity>);

impl Interceptor for Introduction {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        self.0.introduce(request.metadata_mut())?;
        Ok(request)
    }
}

/// A client of a peer's internal service.
pub type Client = PeerClient<InterceptedService<Channel, Introduction>>;

/// A client of a peer's internal service that introduces this node, with the sizes that
/// packets need.
pub fn peer_client(channel: Channel, identity: &Arc<Identity>) -> Client {
    PeerClient::with_interceptor(channel, Introduction(identity.clone()))
        .max_decoding_message_size(carillon_raft::PACKET_BYTES_MAX + 1024)
        .max_encoding_message_size(carillon_raft::PACKET_BYTES_MAX + 1024)
}
