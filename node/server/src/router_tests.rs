//! The lanes, with two other nodes in place of leaders: the test reads what the router sends
//! over their links, and answers as it likes.

use std::collections::BTreeMap;

use bytes::Buf as _;
use carillon_core::ids::{ReplicaId, SLOTS, Seq, SlotRange};
use carillon_core::map::{
    Merge, MergeReason, MergeStep, MetaState, Replica, ShardDescriptor, ShardMap, Split,
    SplitReason,
};
use carillon_core::merging::MergeId;
use carillon_core::{Refusal, TimestampMs};
use carillon_raft::{LINK_BUFFER_BYTES_DEFAULT, Link, OutStream, next_frame};
use futures_util::{FutureExt as _, StreamExt as _};
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{Rng as _, SeedableRng as _};

use super::*;

const SHARD: ShardId = ShardId(1);
const SLOT: Slot = Slot(0);
/// How long a test waits for what must happen.
const PATIENCE: Duration = Duration::from_secs(20);
/// A deadline that no test reaches.
const LATE: Duration = Duration::from_secs(600);

/// An operation as it arrives at a leader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Arrived {
    shard: ShardId,
    sequence: u64,
    lead: Lead,
    request: u64,
}

/// A node that may lead.
struct Node {
    id: NodeId,
    link: Arc<Link>,
    out: OutStream,
    packet: Bytes,
}

impl Node {
    /// What has been sent to it since.
    fn arrived(&mut self) -> Vec<Arrived> {
        let mut all = Vec::new();
        loop {
            while let Some(frame) = next_frame(&mut self.packet).expect("whole frames") {
                let mut body = frame.body;
                all.push(Arrived {
                    shard: frame.shard,
                    sequence: frame.correlation,
                    lead: Lead::read(&mut body).expect("a lead"),
                    request: body.get_u64_le(),
                });
            }
            match self.out.next().now_or_never() {
                Some(Some(packet)) => self.packet = packet,
                Some(None) | None => return all,
            }
        }
    }

    /// The same, once there are so many.
    async fn wait_for(&mut self, count: usize) -> Vec<Arrived> {
        let mut all = Vec::new();
        let enough = async {
            while all.len() < count {
                all.extend(self.arrived());
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let waited = tokio::time::timeout(PATIENCE, enough).await;
        assert!(waited.is_ok(), "only {all:?} arrived at {:?}", self.id);
        all
    }

    /// Its link breaks.
    fn lose(&self) {
        self.link.close(self.out.epoch());
    }

    /// As a route that says for sure who leads.
    fn leading(&self, term: u64) -> Settled {
        Err(Undone::Retry(Some(Route {
            node: self.id,
            lead: lead(term),
        })))
    }
}

fn lead(term: u64) -> Lead {
    Lead::first(term, Some(ReplicaId(9)))
}

fn requests(arrived: &[Arrived]) -> Vec<u64> {
    arrived.iter().map(|operation| operation.request).collect()
}

/// The outcomes by request; each comes once.
#[derive(Default)]
struct Outcomes(Mutex<BTreeMap<u64, Result<Reply, OpError>>>);

impl CommandSink for Outcomes {
    fn complete(&self, asked: Asked, result: Result<Reply, OpError>) {
        self.note(asked.request, result);
    }
}

impl DeliverSink for Outcomes {
    fn delivered(&self, result: Result<(), OpError>) {
        self.note(0, result.map(|()| Reply::Done));
    }
}

impl Outcomes {
    fn note(&self, request: u64, result: Result<Reply, OpError>) {
        let before = self.0.lock().insert(request, result);
        assert!(before.is_none(), "operation {request} ended twice");
    }

    fn of(&self, request: u64) -> Option<Result<Reply, OpError>> {
        self.0.lock().get(&request).cloned()
    }

    fn ended(&self) -> Vec<u64> {
        self.0.lock().keys().copied().collect()
    }

    async fn wait_for(&self, request: u64) -> Result<Reply, OpError> {
        let ended = async {
            loop {
                if let Some(result) = self.of(request) {
                    return result;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let waited = tokio::time::timeout(PATIENCE, ended).await;
        waited.unwrap_or_else(|_| panic!("operation {request} does not end"))
    }
}

struct Fixture {
    router: Arc<Router>,
    outcomes: Arc<Outcomes>,
    second: Node,
    third: Node,
}

impl Fixture {
    /// Node 1, which has no replica of the shard; its replicas are on nodes 2 and 3.
    fn new() -> Self {
        let cluster = Cluster::new(NodeId(1));
        let on = |node| Replica {
            replica_id: ReplicaId(node),
            node_id: NodeId(node),
        };
        let descriptor = ShardDescriptor {
            shard_id: SHARD,
            slots: SlotRange {
                first: SLOT,
                last: Slot(SLOTS - 1),
            },
            replicas: vec![on(2), on(3)],
            preferred_leader: NodeId(2),
        };
        cluster.set_meta(Arc::new(MetaState {
            map: ShardMap {
                shards: vec![descriptor],
                ..ShardMap::default()
            },
            ..MetaState::default()
        }));
        let node = |id| {
            let link = Link::new(id, LINK_BUFFER_BYTES_DEFAULT);
            cluster.add_relay(id, link.clone());
            Node {
                id,
                out: link.open(),
                link,
                packet: Bytes::new(),
            }
        };
        let (second, third) = (node(NodeId(2)), node(NodeId(3)));
        Self {
            router: Router::new(cluster),
            outcomes: Arc::default(),
            second,
            third,
        }
    }

    fn submit(&self, request: u64) {
        self.submit_until(request, Instant::now() + LATE);
    }

    fn submit_until(&self, request: u64, deadline: Instant) {
        self.submit_to(SLOT, request, deadline);
    }

    fn submit_to(&self, slot: Slot, request: u64, deadline: Instant) {
        let command = Bytes::copy_from_slice(&request.to_le_bytes());
        let sink = self.outcomes.clone();
        let asked = Asked {
            request,
            at: Instant::now(),
        };
        self.router.submit(slot, command, deadline, sink, asked);
    }

    /// The shard's second half is being split off.
    fn split(&self) -> ShardId {
        let mut meta = MetaState::clone(&self.router.cluster.meta());
        let split = Split {
            shard_id: SHARD,
            new_shard_id: ShardId(2),
            slot: Slot(SLOTS / 2),
            replicas: meta.map.shards[0].replicas.clone(),
            reason: SplitReason::Asked,
            started_at: TimestampMs(0),
        };
        meta.splits.insert(SHARD, split);
        self.router.cluster.set_meta(Arc::new(meta));
        ShardId(2)
    }

    /// The shard's second half is another one's.
    fn two_shards(&self) -> ShardId {
        let new = self.split();
        let mut meta = MetaState::clone(&self.router.cluster.meta());
        let split = meta.splits.remove(&SHARD).expect("it is being split");
        let whole = meta.map.shards[0].clone();
        let after = split.new_shard(&whole).expect("two parts");
        meta.map.shards[0].slots.last = Slot(SLOTS / 2 - 1);
        meta.map.shards.push(after);
        meta.next_shard_id = ShardId(new.0 + 1);
        self.router.cluster.set_meta(Arc::new(meta));
        assert_eq!(self.router.reroute(), [new]);
        new
    }

    /// The shard takes the other one over, and is so far.
    fn merge(&self, gone: ShardId, step: MergeStep) {
        let mut meta = MetaState::clone(&self.router.cluster.meta());
        let merge = Merge {
            merge_id: MergeId(1),
            shard_id: SHARD,
            absorbed_shard_id: gone,
            step,
            reason: MergeReason::Asked,
            started_at: TimestampMs(0),
            step_since: TimestampMs(0),
        };
        meta.merges.insert(SHARD, merge);
        self.router.cluster.set_meta(Arc::new(meta));
    }

    /// The map says that it has.
    fn merged(&self, gone: ShardId) {
        let mut meta = MetaState::clone(&self.router.cluster.meta());
        meta.merges.clear();
        meta.map.shards.retain(|shard| shard.shard_id != gone);
        meta.map.shards[0].slots.last = Slot(SLOTS - 1);
        self.router.cluster.set_meta(Arc::new(meta));
    }

    /// Batches of deliveries are request 0.
    fn deliver(&self) {
        let batch = Bytes::copy_from_slice(&0u64.to_le_bytes());
        self.router.deliver(SHARD, batch, self.outcomes.clone());
    }

    fn settle(&self, operation: Arrived, settled: Settled) {
        self.router
            .settle(operation.shard, operation.sequence, settled);
    }

    /// The node that the router asks first, which the test lets lead, and the other one.
    fn first_asked(mut self) -> (Self, Vec<Arrived>) {
        let mut arrived = self.second.arrived();
        if arrived.is_empty() {
            std::mem::swap(&mut self.second, &mut self.third);
            arrived = self.second.arrived();
        }
        assert!(!arrived.is_empty(), "nobody is asked");
        assert!(self.third.arrived().is_empty(), "both are asked");
        (self, arrived)
    }

    fn lane_keeps(&self) -> usize {
        self.router.lane(SHARD).state.lock().kept()
    }
}

/// A reply that can be told from others.
fn reply(number: u64) -> Reply {
    Reply::Refused(Refusal::SeqBeyondEnd { end: Seq(number) })
}

fn replied(number: u64) -> Settled {
    Ok(Response::Reply(reply(number)))
}

#[tokio::test]
async fn what_comes_back_undone_goes_on_in_the_old_order() {
    let fixture = Fixture::new();
    for request in 1..=6 {
        fixture.submit(request);
    }
    let (mut fixture, asked) = fixture.first_asked();
    assert_eq!(requests(&asked), [1, 2, 3, 4, 5, 6]);
    assert!(asked.iter().all(|operation| operation.lead == Lead::ANY));

    // They come back in any order; one was done before the leader stepped down.
    let leads = |fixture: &Fixture| fixture.third.leading(7);
    fixture.settle(asked[3], leads(&fixture));
    fixture.submit(7);
    fixture.settle(asked[0], leads(&fixture));
    fixture.settle(asked[1], replied(2));
    fixture.settle(asked[5], leads(&fixture));
    fixture.settle(asked[4], Err(Undone::Retry(None)));
    assert!(
        fixture.third.arrived().is_empty(),
        "the next leader is asked while the last one still holds an operation"
    );
    fixture.settle(asked[2], leads(&fixture));
    let again = fixture.third.arrived();
    assert_eq!(requests(&again), [1, 3, 4, 5, 6, 7]);
    assert!(again.iter().all(|operation| operation.lead == lead(7)));
    fixture.submit(8);
    assert_eq!(requests(&fixture.third.arrived()), [8]);
    assert_eq!(fixture.outcomes.ended(), [2]);
    assert_eq!(fixture.router.outstanding(), 7);

    for operation in again.iter().rev() {
        fixture.settle(*operation, replied(operation.request));
    }
    assert_eq!(fixture.outcomes.ended(), [1, 2, 3, 4, 5, 6, 7]);
    for request in 1..=7 {
        assert_eq!(fixture.outcomes.of(request), Some(Ok(reply(request))));
    }
}

/// A node without a replica goes where a leader announced itself, looks elsewhere when it is
/// refused there, and comes back for a newer term.
#[tokio::test]
async fn an_announced_leader_is_asked_until_it_refuses() {
    let mut fixture = Fixture::new();
    let running = tokio::spawn(fixture.router.clone().run());
    let route = |node: &Node, term| Route {
        node: node.id,
        lead: lead(term),
    };
    let cluster = fixture.router.cluster.clone();
    assert!(cluster.announced(SHARD, route(&fixture.third, 5)));
    assert!(
        !cluster.announced(SHARD, route(&fixture.second, 4)),
        "older"
    );
    fixture.router.on_leader_changed(SHARD);
    fixture.submit(1);
    let asked = fixture.third.arrived();
    assert_eq!((requests(&asked), asked[0].lead), (vec![1], lead(5)));

    fixture.settle(asked[0], Err(Undone::Retry(None)));
    let elsewhere = async {
        loop {
            let arrived = fixture.second.arrived();
            if !arrived.is_empty() {
                return arrived;
            }
            // Those that are asked in between do not lead either.
            for operation in fixture.third.arrived() {
                assert_eq!(operation.lead, Lead::ANY, "the lead that was refused");
                fixture
                    .router
                    .settle(SHARD, operation.sequence, Err(Undone::Retry(None)));
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let asked = tokio::time::timeout(PATIENCE, elsewhere).await;
    let asked = asked.expect("nobody else is asked");

    assert!(cluster.announced(SHARD, route(&fixture.third, 6)));
    fixture.router.on_leader_changed(SHARD);
    let again = fixture.third.arrived();
    assert_eq!((requests(&again), again[0].lead), (vec![1], lead(6)));
    fixture.settle(asked[0], replied(9));
    fixture.settle(again[0], replied(1));
    assert_eq!(fixture.outcomes.of(1), Some(Ok(reply(1))));
    cluster.forget_announced(fixture.third.id);
    assert_eq!(cluster.leader(SHARD), None);
    running.abort();
}

/// Slots get another shard while operations of them are in flight: nobody's later operation is
/// sent before an earlier one has ended, and nothing is asked of a shard that has not the slot.
#[tokio::test]
async fn operations_go_where_their_slots_go() {
    const FAR: Slot = Slot(SLOTS - 1);
    let mut fixture = Fixture::new();
    let later = Instant::now() + LATE;
    let cluster = fixture.router.cluster.clone();
    let third = |lead| Route {
        node: fixture.third.id,
        lead,
    };
    cluster.announced(SHARD, third(lead(5)));
    cluster.announced(ShardId(2), third(lead(1)));
    for request in 1..=4 {
        let slot = if request % 2 == 0 { FAR } else { SLOT };
        fixture.submit_to(slot, request, later);
    }
    fixture.deliver();
    let asked = fixture.third.arrived();
    assert_eq!(requests(&asked), [1, 2, 3, 4, 0]);

    let new = fixture.split();
    assert!(fixture.router.reroute().is_empty(), "before it is done");
    fixture.settle(asked[0], replied(1));
    // The shard says that it was split.
    fixture.settle(asked[1], Err(Undone::Moved));
    assert_eq!(fixture.router.reroute(), [new]);
    assert!(fixture.router.reroute().is_empty(), "again");
    fixture.submit_to(FAR, 5, later);
    fixture.submit_to(SLOT, 6, later);
    // A batch that is grouped by the new routing.
    let batch = Bytes::copy_from_slice(&7u64.to_le_bytes());
    let since = Arc::new(Outcomes::default());
    fixture.router.deliver(SHARD, batch, since.clone());
    fixture.settle(asked[3], Err(Undone::Moved));
    fixture.settle(asked[4], Err(Undone::Moved));
    assert!(
        fixture.third.arrived().is_empty(),
        "something is sent while an earlier operation is in flight"
    );
    fixture.settle(asked[2], replied(3));
    let mut again = fixture.third.arrived();
    again.sort_by_key(|operation| (operation.shard, operation.request));
    let by_shard = |shard| {
        let of = again.iter().filter(|operation| operation.shard == shard);
        of.map(|operation| operation.request).collect::<Vec<_>>()
    };
    assert_eq!(
        (by_shard(SHARD), by_shard(new)),
        (vec![6, 7], vec![2, 4, 5])
    );
    for operation in again {
        let settled = match operation.request {
            7 => Ok(Response::Delivered),
            request => replied(request),
        };
        fixture.settle(operation, settled);
    }
    assert_eq!(since.of(0), Some(Ok(Reply::Done)));
    assert_eq!(fixture.outcomes.ended(), [0, 1, 2, 3, 4, 5, 6]);
    assert_eq!(fixture.outcomes.of(0), Some(Err(OpError::Moved)));
    assert_eq!(fixture.router.outstanding(), 0);
}

/// A shard is taken over by its neighbour while operations of it are held by its leader: they go
/// to the neighbour in their order, in front of what comes since, also when the leader never
/// says a word; and nothing is ever asked of the shard again.
#[tokio::test]
async fn operations_go_to_the_neighbour_that_takes_their_shard_over() {
    const FAR: Slot = Slot(SLOTS - 1);
    for is_known_before_the_map in [true, false] {
        let mut fixture = Fixture::new();
        let later = Instant::now() + LATE;
        let gone = fixture.two_shards();
        let cluster = fixture.router.cluster.clone();
        let third = |lead| Route {
            node: fixture.third.id,
            lead,
        };
        cluster.announced(SHARD, third(lead(5)));
        cluster.announced(gone, third(lead(1)));
        for request in 1..=4 {
            let slot = if request % 2 == 0 { FAR } else { SLOT };
            fixture.submit_to(slot, request, later);
        }
        let batch = |number: u64| Bytes::copy_from_slice(&number.to_le_bytes());
        let batches = Arc::new(Outcomes::default());
        fixture.router.deliver(gone, batch(0), batches.clone());
        let asked = fixture.third.arrived();
        assert_eq!(requests(&asked), [1, 2, 3, 4, 0]);

        // A shard that is frozen may be thawed: what it says moves nothing yet.
        fixture.merge(gone, MergeStep::Freezing);
        cluster.merge_is_done(SHARD, MergeId(1));
        assert!(fixture.router.reroute().is_empty(), "before it is done");
        fixture.merge(gone, MergeStep::Absorbing);
        // Of an earlier merge.
        cluster.merge_is_done(SHARD, MergeId(0));
        fixture.settle(asked[1], Err(Undone::Moved));
        assert!(fixture.router.reroute().is_empty(), "before it is done");
        assert!(!cluster.is_gone(gone));
        if is_known_before_the_map {
            cluster.merge_is_done(SHARD, MergeId(1));
        } else {
            fixture.merged(gone);
        }
        assert_eq!(fixture.router.reroute(), [SHARD]);
        assert!(cluster.is_gone(gone));
        fixture.merged(gone);
        assert!(fixture.router.reroute().is_empty(), "again");
        // One that this node has yet to hear of is not gone.
        assert!(cluster.is_gone(gone) && !cluster.is_gone(ShardId(gone.0 + 1)));
        fixture.submit_to(FAR, 5, later);
        // A batch of who does not know of it yet is to be made anew.
        let since = Arc::new(Outcomes::default());
        fixture.router.deliver(gone, batch(0), since.clone());
        assert_eq!(since.of(0), Some(Err(OpError::Moved)));
        assert_eq!(batches.of(0), Some(Err(OpError::Moved)));
        // The neighbour's lane is in flight still, and goes on in its order.
        fixture.settle(asked[0], replied(1));
        fixture.settle(asked[2], replied(3));
        tokio::spawn(fixture.router.clone().run());
        let again = fixture.third.wait_for(3).await;
        assert!(again.iter().all(|operation| operation.shard == SHARD));
        assert_eq!(requests(&again), [2, 4, 5]);
        // What the one that is gone says late is of no interest.
        fixture.settle(asked[3], replied(66));
        for operation in again {
            fixture.settle(operation, replied(operation.request));
        }
        assert_eq!(fixture.outcomes.ended(), [1, 2, 3, 4, 5]);
        assert_eq!(fixture.outcomes.of(4), Some(Ok(reply(4))));
        assert_eq!(fixture.router.outstanding(), 0);
    }
}

/// Leaders that apply a part of what they are sent, in its order, and say in any order what
/// became of it: each operation is applied once and answered once, and never before an
/// earlier one.
#[tokio::test]
async fn operations_are_applied_in_order_whatever_leaders_do() {
    const OPERATIONS: u64 = 60;
    for seed in 0..200 {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut fixture = Fixture::new();
        let (mut submitted, mut applied, mut term) = (0, Vec::new(), 0);
        let mut replies: Vec<(Arrived, Settled)> = Vec::new();
        while fixture.outcomes.ended().len() < OPERATIONS as usize {
            for _ in 0..rng.random_range(0..8) {
                if submitted < OPERATIONS {
                    submitted += 1;
                    fixture.submit(submitted);
                }
            }
            let mut arrived = fixture.second.arrived();
            let others = fixture.third.arrived();
            assert!(arrived.is_empty() || others.is_empty(), "seed {seed}");
            arrived.extend(others);
            assert!(
                arrived.is_sorted_by_key(|operation| operation.request),
                "seed {seed}: {arrived:?}"
            );
            // A leader that has given up gives up all that comes after.
            let gave_up = replies.iter().any(|(_, settled)| settled.is_err());
            let keeps = match gave_up {
                true => 0,
                false if rng.random_bool(0.3) => rng.random_range(0..=arrived.len()),
                false => arrived.len(),
            };
            if !gave_up && keeps < arrived.len() {
                term += 1;
            }
            for (place, operation) in arrived.into_iter().enumerate() {
                let next = if term % 2 == 0 {
                    &fixture.second
                } else {
                    &fixture.third
                };
                let settled = match place < keeps {
                    true => {
                        applied.push(operation.request);
                        replied(operation.request)
                    }
                    false => next.leading(term),
                };
                replies.push((operation, settled));
            }
            replies.shuffle(&mut rng);
            let said = rng.random_range(0..=replies.len());
            for (operation, settled) in replies.drain(..said) {
                fixture.settle(operation, settled);
            }
        }
        assert!(applied.into_iter().eq(1..=OPERATIONS), "seed {seed}");
        assert_eq!((fixture.router.outstanding(), fixture.lane_keeps()), (0, 0));
    }
}

#[tokio::test]
async fn a_late_answer_to_a_try_that_was_given_up_changes_nothing() {
    let fixture = Fixture::new();
    for request in 1..=3 {
        fixture.submit(request);
    }
    let (mut fixture, given_up) = fixture.first_asked();
    tokio::spawn(fixture.router.clone().run());
    // What it would have said is not known any more.
    fixture.second.lose();
    fixture.router.on_peer_lost(fixture.second.id);
    let tried = fixture.third.wait_for(3).await;
    assert_eq!(requests(&tried), [1, 2, 3]);

    for (operation, settled) in given_up.iter().zip([
        replied(66),
        Err(Undone::Failed("late".to_owned())),
        Err(Undone::Retry(None)),
    ]) {
        fixture.settle(*operation, settled);
    }
    // Nor do answers to operations that there never were.
    for sequence in [0, tried[0].sequence - 10, tried[2].sequence + 1, u64::MAX] {
        fixture.router.settle(SHARD, sequence, replied(77));
    }
    assert!(fixture.outcomes.ended().is_empty());
    for operation in tried {
        fixture.settle(operation, replied(operation.request));
        // Nor a second answer.
        fixture.settle(operation, replied(88));
        let outcome = fixture.outcomes.of(operation.request);
        assert_eq!(outcome, Some(Ok(reply(operation.request))));
    }
    assert!(fixture.third.arrived().is_empty());
}

/// A leader that had no majority may answer after the asking node has restarted.
#[tokio::test]
async fn a_restarted_node_does_not_use_the_sequence_numbers_of_before() {
    let begin = || {
        let fixture = Fixture::new();
        fixture.submit(1);
        fixture.first_asked()
    };
    let ((_, before), (after, _)) = (begin(), begin());
    after.settle(before[0], replied(66));
    assert!(after.outcomes.ended().is_empty());
}

#[tokio::test]
async fn deadlines_end_operations_wherever_they_are() {
    let fixture = Fixture::new();
    let soon = Instant::now() + Duration::from_millis(30);
    fixture.submit_until(1, soon);
    fixture.submit(2);
    fixture.submit_until(3, soon);
    let (mut fixture, asked) = fixture.first_asked();
    // One is undone when its deadline comes, and one waits.
    let third = fixture.third.leading(2);
    fixture.settle(asked[2], third);
    fixture.submit_until(4, soon);
    fixture.deliver();
    tokio::spawn(fixture.router.clone().run());
    for request in [1, 3, 4] {
        assert_eq!(
            fixture.outcomes.wait_for(request).await,
            Err(OpError::DeadlineExceeded { shard: SHARD.0 })
        );
    }
    fixture.settle(asked[0], replied(66));
    assert_eq!(fixture.outcomes.ended(), [1, 3, 4]);
    // The others go on; a batch of deliveries has no deadline.
    let third = fixture.third.leading(2);
    fixture.settle(asked[1], third);
    let again = fixture.third.wait_for(2).await;
    assert_eq!(requests(&again), [2, 0]);
    fixture.settle(again[0], replied(2));
    fixture.settle(again[1], Ok(Response::Delivered));
    assert_eq!(fixture.outcomes.of(2), Some(Ok(reply(2))));
    assert_eq!(fixture.outcomes.of(0), Some(Ok(Reply::Done)));
    assert_eq!((fixture.router.outstanding(), fixture.lane_keeps()), (0, 0));
}

/// A leader that takes everything and answers nothing: it has lost its majority.
#[tokio::test]
async fn expired_operations_are_forgotten() {
    let fixture = Fixture::new();
    tokio::spawn(fixture.router.clone().run());
    for request in 1..=100 {
        fixture.submit_until(request, Instant::now() + Duration::from_millis(5));
    }
    for request in 1..=100 {
        let outcome = fixture.outcomes.wait_for(request).await;
        assert_eq!(outcome, Err(OpError::DeadlineExceeded { shard: SHARD.0 }));
    }
    assert_eq!((fixture.router.outstanding(), fixture.lane_keeps()), (0, 0));
}

#[tokio::test]
async fn a_call_ends_at_its_deadline_without_any_leader() {
    let fixture = Fixture::new();
    fixture.second.lose();
    fixture.third.lose();
    tokio::spawn(fixture.router.clone().run());
    let deadline = Instant::now() + Duration::from_millis(20);
    let outcome = fixture
        .router
        .command_to(SHARD, About::Slot(SLOT), Bytes::new(), deadline);
    let outcome = tokio::time::timeout(PATIENCE, outcome).await;
    let expected = Err(OpError::DeadlineExceeded { shard: SHARD.0 });
    assert_eq!(outcome.expect("a deadline"), expected);
}

#[tokio::test]
async fn an_overloaded_leader_is_told_of_and_its_deliveries_wait() {
    let fixture = Fixture::new();
    let overloaded = || {
        Err(Undone::Overloaded {
            limit: "proposals_waiting_max",
            max: 5,
        })
    };
    for request in 1..=2 {
        fixture.submit(request);
    }
    fixture.deliver();
    let (mut fixture, asked) = fixture.first_asked();
    fixture.settle(asked[0], overloaded());
    assert_eq!(
        fixture.outcomes.of(1),
        Some(Err(OpError::Overloaded {
            limit: "proposals_waiting_max",
            max: 5
        }))
    );
    fixture.settle(asked[2], overloaded());
    fixture.settle(asked[1], Err(Undone::Failed("damaged".to_owned())));
    assert_eq!(
        fixture.outcomes.of(2),
        Some(Err(OpError::Internal("damaged".to_owned())))
    );
    assert_eq!(fixture.outcomes.of(0), None, "a batch is tried again");
    tokio::spawn(fixture.router.clone().run());
    let again = fixture.third.wait_for(1).await;
    assert_eq!(requests(&again), [0]);
    fixture.settle(again[0], Ok(Response::Delivered));
    assert_eq!(fixture.outcomes.of(0), Some(Ok(Reply::Done)));
}

#[tokio::test]
async fn a_full_lane_refuses_by_name() {
    let fixture = Fixture::new();
    for request in 1..=LANE_OPERATIONS_MAX as u64 {
        fixture.submit(request);
    }
    assert!(fixture.outcomes.ended().is_empty());
    let one_more = LANE_OPERATIONS_MAX as u64 + 1;
    fixture.submit(one_more);
    let full = Err(OpError::Overloaded {
        limit: "lane_operations_max",
        max: LANE_OPERATIONS_MAX as u64,
    });
    assert_eq!(fixture.outcomes.of(one_more), Some(full.clone()));
    let (mut fixture, asked) = fixture.first_asked();
    // What has ended behind one that has not is still kept.
    fixture.settle(asked[1], replied(2));
    fixture.submit(one_more + 1);
    assert_eq!(fixture.outcomes.of(one_more + 1), Some(full));
    fixture.settle(asked[0], replied(1));
    fixture.submit(one_more + 2);
    fixture.submit(one_more + 3);
    // The outbox has a limit of its own: one batch for each shard.
    fixture.deliver();
    let newest = fixture.second.arrived();
    assert_eq!(requests(&newest), [one_more + 2, one_more + 3, 0]);
}

#[tokio::test]
async fn closing_ends_everything_once() {
    let fixture = Fixture::new();
    for request in 1..=3 {
        fixture.submit(request);
    }
    fixture.deliver();
    let (mut fixture, asked) = fixture.first_asked();
    fixture.settle(asked[0], replied(1));
    let third = fixture.third.leading(2);
    fixture.settle(asked[1], third);
    fixture.submit(4);
    fixture.router.close();
    for request in [0, 2, 3, 4] {
        let outcome = fixture.outcomes.of(request);
        assert_eq!(outcome, Some(Err(OpError::ShuttingDown)), "{request}");
    }
    assert_eq!(fixture.outcomes.of(1), Some(Ok(reply(1))));
    // Nothing comes afterwards.
    for operation in asked {
        fixture.settle(operation, replied(66));
    }
    fixture.submit(5);
    assert_eq!(fixture.outcomes.of(5), Some(Err(OpError::ShuttingDown)));
    let late = fixture.router.command_to(
        SHARD,
        About::Slot(SLOT),
        Bytes::new(),
        Instant::now() + LATE,
    );
    assert_eq!(late.await, Err(OpError::ShuttingDown));
    fixture.router.close();
    assert!(fixture.third.arrived().is_empty());
    assert_eq!((fixture.router.outstanding(), fixture.lane_keeps()), (0, 0));
}
