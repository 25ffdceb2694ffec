//! Changes that need a restart of all members, one after another.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use carillon_crds::ImCluster;
use carillon_e2e::chat::{Kind, Test, Trial, image, is, message, reason};
use carillon_tests::harness::http;
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::api::DeleteParams;
use serde_json::json;

/// Until a first member was restarted, while others kill operators.
const STEP_LIMIT: Duration = Duration::from_secs(180);
/// How long the first changed member is looked at.
const SOAK_S: u64 = 8;
/// Until a node has a certificate that was made anew: a kubelet looks at Secrets once a minute.
const RELOAD_LIMIT: Duration = Duration::from_secs(180);
/// Between two looks at what it shows.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// For one of them.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// In which nothing more may happen.
const QUIET: Duration = Duration::from_secs(15);

fn updated(seen: &ImCluster) -> u32 {
    seen.status
        .as_ref()
        .map_or(0, |status| status.updated_nodes)
}

/// The same program under another name.
fn second_image() -> anyhow::Result<String> {
    let name = std::env::var("CARILLON_SECOND_NODE_IMAGE");
    name.context("CARILLON_SECOND_NODE_IMAGE names no image; use make e2e")
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes: make e2e"]
async fn an_upgrade_pauses_goes_on_and_is_taken_back() -> anyhow::Result<()> {
    let test = "an upgrade";
    Test::new(test, json!({}), Kind::Planned)
        .run(async |trial| {
            let chat = &trial.chat;
            chat.change(json!({"image": second_image()?})).await?;
            chat.until("one member to be updated", STEP_LIMIT, |seen| {
                updated(seen) == 1
            })
            .await?;
            chat.change(json!({"update": {"paused": true}})).await?;
            chat.until("to be paused", STEP_LIMIT, |seen| {
                reason(seen) == "RollPaused"
            })
            .await?;
            trial.goes_on().await?;
            tokio::time::sleep(QUIET).await;
            let seen = chat.until("a status", STEP_LIMIT, |_| true).await?;
            ensure!(updated(&seen) <= 2, "it went on while it was paused");
            ensure!(!is(&seen, "Ready", "True"), "it is not as wanted");
            let seen = chat.becomes(json!({"update": {"paused": false}})).await?;
            ensure!(updated(&seen) == 3, "{:?}", seen.status);
            chat.becomes(json!({"image": image()?})).await?;
            Ok(())
        })
        .await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes: make e2e"]
async fn an_image_that_does_not_start_stops_after_one_member() -> anyhow::Result<()> {
    let test = "an image that does not start";
    let spec = json!({"update": {"canary": {"soak": "5s"}}});
    Test::new(test, spec, Kind::Planned)
        .run(async |trial| {
            let chat = &trial.chat;
            chat.change(json!({"image": "carillon.test/nothing:1"}))
                .await?;
            let stuck = |seen: &ImCluster| {
                let operation = seen.status.as_ref().and_then(|s| s.operation.as_ref());
                let why = operation.and_then(|one| one.blocked_reason.as_ref());
                why.is_some_and(|why| why.contains("pull") || why.contains("Pull"))
            };
            let seen = chat
                .until("to say that it cannot be pulled", STEP_LIMIT, stuck)
                .await?;
            ensure!(
                is(&seen, "Available", "True"),
                "{}",
                message(&seen, "Available")
            );
            ensure!(is(&seen, "Ready", "False"), "{}", message(&seen, "Ready"));
            tokio::time::sleep(QUIET).await;
            let pods = chat.pods().await?;
            let of_it = |pod: &&Pod| {
                let spec = pod.spec.as_ref();
                spec.is_some_and(|spec| {
                    let image = spec.containers[0].image.as_deref();
                    image == Some("carillon.test/nothing:1")
                })
            };
            let count = pods.iter().filter(of_it).count();
            ensure!(
                count == 1,
                "{count} members have the image that does not start"
            );
            trial.goes_on().await?;
            chat.becomes(json!({"image": image()?})).await?;
            Ok(())
        })
        .await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes: make e2e"]
async fn a_setting_that_nodes_refuse_stops_at_the_canary() -> anyhow::Result<()> {
    let test = "a setting that nodes refuse";
    let spec = json!({"update": {"canary": {"soak": SOAK_S.to_string() + "s"}}});
    Test::new(test, spec, Kind::Planned)
        .run(async |trial| {
            let chat = &trial.chat;
            let filter = |filter| json!({"config": {"logging": {"filter": filter}}});
            chat.change(filter("not=a=filter")).await?;
            let stopped = |seen: &ImCluster| {
                is(seen, "Ready", "False")
                    && ["CannotStart", "CanaryFailed"].contains(&reason(seen))
            };
            let what = "to say that a member does not start";
            let seen = chat.until(what, STEP_LIMIT, stopped).await?;
            println!("{}", message(&seen, "Ready"));
            tokio::time::sleep(QUIET).await;
            trial.goes_on().await?;
            let seen = chat.until("a status", STEP_LIMIT, |_| true).await?;
            ensure!(updated(&seen) <= 1, "it went on: {:?}", seen.status);
            ensure!(is(&seen, "Available", "True"), "it does not serve");
            // With a right one the first is looked at before the others have their turn.
            let began = Instant::now();
            chat.becomes(filter("info")).await?;
            let took = began.elapsed();
            ensure!(took.as_secs() > SOAK_S, "nobody waited: {took:?}");
            Ok(())
        })
        .await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes: make e2e"]
async fn settings_resources_and_certificates_change() -> anyhow::Result<()> {
    let test = "settings, resources and certificates";
    Test::new(test, json!({}), Kind::Planned)
        .run(async |trial| {
            let chat = &trial.chat;
            let change = json!({
                "config": {"logging": {"filter": "debug"}},
                "resources": {"limits": {"memory": "1Gi"}},
            });
            chat.becomes(change).await?;
            trial.goes_on().await?;
            // A certificate that is gone is made anew, and shown without a restart.
            let before = pod_uids(trial).await?;
            let shown = certificate_ends_at(trial, "chat-0").await?;
            let secrets = chat.namespace.api::<Secret>();
            let old = secrets.get("chat-0-tls").await?;
            secrets
                .delete("chat-0-tls", &DeleteParams::default())
                .await?;
            // All that is round the members is looked at with the next change of the spec, and
            // without one every five minutes.
            chat.becomes(json!({"service": {"annotations": {"looked": "at"}}}))
                .await?;
            let new = secrets.get("chat-0-tls").await?;
            ensure!(new.metadata.uid != old.metadata.uid, "it is the same");
            let deadline = Instant::now() + RELOAD_LIMIT;
            while certificate_ends_at(trial, "chat-0").await? == shown {
                ensure!(Instant::now() < deadline, "chat-0 shows the old one");
                tokio::time::sleep(LOOK_INTERVAL).await;
            }
            trial.goes_on().await?;
            ensure!(pod_uids(trial).await? == before, "Pods were restarted");
            Ok(())
        })
        .await
}

/// When the certificate ends that a member uses, as it says.
async fn certificate_ends_at(trial: &Trial, member: &str) -> anyhow::Result<String> {
    const METRIC: &str = "carillon_certificate_ends_at_seconds ";
    let pods = trial.chat.namespace.api::<Pod>();
    let status = pods.get(member).await?.status;
    let ip = status.and_then(|status| status.pod_ip);
    let ip = ip.with_context(|| format!("{member} has no address"))?;
    let (_, page) = http::get(&format!("{ip}:7600"), "/metrics", ANSWER_LIMIT).await?;
    let line = page.lines().find(|line| line.starts_with(METRIC));
    line.map(str::to_owned).context("no metric of certificates")
}

async fn pod_uids(trial: &Trial) -> anyhow::Result<Vec<Option<String>>> {
    let pods = trial.chat.pods().await?;
    Ok(pods.into_iter().map(|pod| pod.metadata.uid).collect())
}
