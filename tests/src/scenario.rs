//! One test of a cluster under load: start, hurt, heal, verify, bounded in time.

use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use tokio::time::{Instant, timeout};

use crate::harness::{Cluster, ClusterOptions};
use crate::load::{Load, LoadOptions};
use crate::verify::verify;

/// Acknowledgements before anything is hurt.
const WARM_UP_MESSAGES: u64 = 200;
/// How long that may take.
const WARM_UP_LIMIT: Duration = Duration::from_secs(15);
/// After the body: until every node is up and every shard led.
const HEAL_LIMIT: Duration = Duration::from_secs(30);

/// A scenario's frame.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// For the output.
    pub name: &'static str,
    /// For everything together.
    pub limit: Duration,
    /// The cluster.
    pub cluster: ClusterOptions,
    /// The load.
    pub load: LoadOptions,
}

impl Scenario {
    /// The usual cluster and load with a new seed, which is printed.
    pub fn new(name: &'static str) -> Self {
        let seed = crate::load::seed();
        println!("{name}: run again with CARILLON_TEST_SEED={seed}");
        Self {
            name,
            limit: Duration::from_secs(90),
            cluster: ClusterOptions::default(),
            load: LoadOptions::new(seed),
        }
    }

    /// Starts the cluster and the load, runs the body, and verifies. The body must leave
    /// all nodes running.
    ///
    /// # Panics
    /// When anything fails: with the error, after the logs of the nodes.
    pub async fn run(self, body: impl AsyncFnOnce(&mut Cluster, &Load) -> Result<()>) {
        let started = Instant::now();
        let mut cluster = match Cluster::start(self.cluster).await {
            Ok(cluster) => cluster,
            Err(error) => panic!("{}: {error:?}", self.name),
        };
        let whole = async {
            let load = Load::start(&cluster.client_addresses(), self.load).await?;
            load.wait_acknowledged(WARM_UP_MESSAGES, WARM_UP_LIMIT)
                .await?;
            load.reset_longest_pause();
            println!("{}: warm after {:?}", self.name, started.elapsed());
            body(&mut cluster, &load).await?;
            println!("{}: over after {:?}", self.name, started.elapsed());
            cluster.wait_all_led(HEAL_LIMIT).await?;
            verify(&cluster, load)
                .await
                .context("the final check failed")
        };
        let outcome = timeout(self.limit, whole).await;
        let outcome = outcome.unwrap_or_else(|_| Err(anyhow!("not done after {:?}", self.limit)));
        match outcome {
            Ok(report) => println!("{}: done in {:?}, {report}", self.name, started.elapsed()),
            // The cluster prints its logs when it is dropped by a panic.
            Err(error) => panic!("{}: {error:?}", self.name),
        }
    }
}
