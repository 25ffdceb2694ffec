//! Random faults: nodes are cut off, stopped and restarted (losing what their machines have not
//! flushed), logs are purged and leaders moved, while proposals go on. Nothing acknowledged may
//! be lost, all replicas end up the same, and whenever the faults end, proposals are acknowledged
//! again, however the faults of that round fell.

use std::time::Duration;

use bytes::Bytes;
use carillon_raft::{Outcome, Retention};
use parking_lot::Mutex;
use std::sync::Arc;

use crate::harness::{Cluster, fast, until};

/// Each round of faults ends with all of them mended.
const ROUNDS: u64 = 6;
const STEPS_PER_ROUND: u64 = 10;
const PROPOSALS_PER_STEP: u64 = 15;

/// A small generator, so that a printed seed repeats the choices.
struct Choices(u64);

impl Choices {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (self.0 >> 33) % end
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost() {
    let fresh = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_nanos() as u64;
    let seed = std::env::var("CARILLON_TEST_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or(fresh);
    println!("CARILLON_TEST_SEED={seed}");
    let mut choices = Choices(seed);
    let mut cluster = Cluster::voting(fast()).await;
    let acknowledged: Arc<Mutex<Vec<Bytes>>> = Arc::default();
    let mut proposed = 0;
    for round in 0..ROUNDS {
        for _ in 0..STEPS_PER_ROUND {
            let place = choices.below(3) as usize;
            let stopped = cluster.nodes.iter().position(|node| !node.is_running());
            match choices.below(6) {
                0 => cluster.isolate(place),
                1 => cluster.heal(place),
                2 => match stopped {
                    Some(stopped) => cluster.run(stopped).await,
                    None => cluster.stop(place).await,
                },
                3 if cluster.nodes[place].is_running() => {
                    let keep = choices.below(20);
                    cluster.nodes[place]
                        .group()
                        .flush_and_purge(Retention::entries(keep))
                        .await
                        .ok();
                }
                4 if cluster.nodes[place].is_running() => {
                    let to = cluster.nodes[choices.below(3) as usize].me.node;
                    cluster.nodes[place]
                        .group()
                        .transfer_leader(to, Duration::from_millis(300))
                        .await
                        .ok();
                }
                _ => {}
            }
            for _ in 0..PROPOSALS_PER_STEP {
                let payload = Bytes::from(proposed.to_string());
                proposed += 1;
                // To whoever believes to lead: a leader that was cut off is asked as well.
                for node in cluster.nodes.iter().filter(|node| node.is_running()) {
                    if node.group().leadership().borrow().me_leading {
                        let acknowledged = Arc::clone(&acknowledged);
                        let acknowledgement = payload.clone();
                        let done = move |outcome| {
                            if matches!(outcome, Outcome::Applied(_)) {
                                acknowledged.lock().push(acknowledgement);
                            }
                        };
                        node.group().propose(payload.clone(), done).await;
                    }
                }
            }
            tokio::time::sleep(Duration::from_millis(choices.below(150))).await;
        }
        for place in 0..3 {
            if !cluster.nodes[place].is_running() {
                cluster.run(place).await;
            }
        }
        for place in 0..3 {
            cluster.heal(place);
        }
        let calm = format!("end of round {round}");
        cluster.propose(calm.clone()).await;
        acknowledged.lock().push(calm.into());
    }
    cluster.propose("the end").await;
    until("the end everywhere", || {
        cluster
            .nodes
            .iter()
            .all(|node| node.payloads().last() == Some(&Bytes::from("the end")))
    })
    .await;
    let first = cluster.nodes[0].payloads();
    for node in &cluster.nodes[1..] {
        assert!(node.payloads() == first, "replicas differ, seed {seed}");
    }
    let mut places = std::collections::HashMap::new();
    for (place, payload) in first.iter().enumerate() {
        places.entry(payload.clone()).or_insert(place);
    }
    let acknowledged = acknowledged.lock().clone();
    println!("{} proposals were acknowledged", acknowledged.len());
    for payload in &acknowledged {
        assert!(
            places.contains_key(payload),
            "proposal {payload:?} is lost, seed {seed}"
        );
    }
    cluster.end().await;
}
