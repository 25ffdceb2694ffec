//! Sessions whose clients are silent: the hello timeout and the heartbeat timeout, with
//! short limits so that a test need not wait for the usual ones.

use std::time::Duration;

use anyhow::Result;
use carillon_proto::v1::kick;
use carillon_tests::harness::{Cluster, ClusterOptions, shared_cluster};
use carillon_tests::rpc;
use carillon_tests::session::{End, Session};
use tokio::time::{Instant, sleep};
use tonic::Code;

const HEARTBEAT: Duration = Duration::from_millis(400);
const HELLO_TIMEOUT: Duration = Duration::from_millis(1_500);
const CONFIG: &str = "\n[clients]\nheartbeat = \"400ms\"\nhello_timeout = \"1500ms\"\n";
/// How much later than promised a stream may end on a busy machine.
const SLACK: Duration = Duration::from_secs(5);

async fn cluster() -> Result<&'static Cluster> {
    let options = ClusterOptions {
        extra_config: CONFIG.to_owned(),
        ..ClusterOptions::default()
    };
    shared_cluster(options).await
}

#[tokio::test]
async fn a_stream_without_hello_ends() -> Result<()> {
    let address = &cluster().await?.node(1).addresses().client;
    let mut session = Session::silent(&rpc::endpoint(address)?).await?;
    let started = Instant::now();
    let End::Failed(status) = session.end(HELLO_TIMEOUT + SLACK).await? else {
        anyhow::bail!("ended with OK");
    };
    rpc::assert_refused(
        Err::<(), _>(status),
        Code::DeadlineExceeded,
        "HELLO_TIMEOUT",
    );
    let waited = started.elapsed();
    assert!(
        waited + Duration::from_millis(200) >= HELLO_TIMEOUT,
        "ended after {waited:?}"
    );
    Ok(())
}

#[tokio::test]
async fn a_silent_session_ends_and_one_with_heartbeats_stays() -> Result<()> {
    let cluster = cluster().await?;
    let address = &cluster.node(2).addresses().client;
    let (mut silent, welcome) = Session::open(address, "silent", "phone", None).await?;
    assert_eq!(
        u128::from(welcome.heartbeat_interval_ms),
        HEARTBEAT.as_millis()
    );
    let (mut alive, _) = Session::open(address, "alive", "phone", None).await?;
    let started = Instant::now();
    while started.elapsed() < HEARTBEAT * 8 {
        alive.heartbeat(1).await?;
        sleep(HEARTBEAT / 2).await;
    }
    let kick = silent.kick().await?;
    assert_eq!(kick.reason(), kick::Reason::HeartbeatTimeout);
    assert!(matches!(silent.end(SLACK).await?, End::Closed));
    let direct = rpc::direct_id("alive", "silent");
    assert_eq!(alive.say(&direct, "m", "still here").await?.seq, 1);
    Ok(())
}
