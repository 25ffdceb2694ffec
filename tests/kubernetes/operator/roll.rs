//! Changes that need a restart of all members, one after another.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use carillon_crds::ImCluster;
use carillon_e2e::chat::{
    ChatCluster, Kind, NAME, Test, beside_others, image, is, is_ready, message, reason,
};
use carillon_e2e::{Cluster, until};
use carillon_tests::harness::http;
use k8s_openapi::api::core::v1::{Pod, Secret, Service};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::json;

/// Until a first member was restarted.
const STEP_LIMIT: Duration = Duration::from_secs(90);
/// How long the first changed member is looked at.
const SOAK_S: u64 = 8;
/// Until something that was deleted is there again.
const RESTORE_LIMIT: Duration = Duration::from_secs(30);
/// Twice the time that kubelets take to copy a Secret to its Pods, and some.
const ROTATION_LIMIT: Duration = Duration::from_secs(420);
const SOME_MESSAGES: u64 = 150;
const PROGRESS_LIMIT: Duration = Duration::from_secs(60);
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
                "config": {"logging": {"filter": "info,openraft=warn"}},
                "resources": {"limits": {"memory": "1Gi"}},
            });
            chat.becomes(change).await?;
            trial.goes_on().await?;
            // A certificate that is gone is made anew, and shown without a restart.
            let before = pod_uids(chat).await?;
            let shown = certificate_ends_at(chat, "chat-0").await?;
            let secrets = chat.namespace.api::<Secret>();
            let old = secrets.get("chat-0-tls").await?;
            secrets
                .delete("chat-0-tls", &DeleteParams::default())
                .await?;
            let other = |seen: &Secret| seen.metadata.uid != old.metadata.uid;
            let what = "to be made anew";
            until(&secrets, "chat-0-tls", what, RESTORE_LIMIT, other).await?;
            let deadline = Instant::now() + RELOAD_LIMIT;
            while certificate_ends_at(chat, "chat-0").await? == shown {
                ensure!(Instant::now() < deadline, "chat-0 shows the old one");
                tokio::time::sleep(LOOK_INTERVAL).await;
            }
            trial.goes_on().await?;
            ensure!(pod_uids(chat).await? == before, "Pods were restarted");
            Ok(())
        })
        .await
}

/// The authorities that everybody is to trust.
fn bundle(seen: &Secret) -> String {
    let data = seen.data.as_ref().and_then(|data| data.get("ca.crt"));
    let text = data.map(|data| String::from_utf8_lossy(&data.0).into_owned());
    text.unwrap_or_default()
}

fn count(seen: &Secret) -> usize {
    bundle(seen).matches("BEGIN CERTIFICATE").count()
}

/// People learn of the new authority while both are published, and chat until the old one is gone.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes: make e2e"]
async fn a_new_authority_takes_the_old_ones_place() -> anyhow::Result<()> {
    let test = "a new authority";
    let _turn = beside_others().await;
    let Some(cluster) = Cluster::with_nodes(test).await? else {
        return Ok(());
    };
    let chat = ChatCluster::create(&cluster, "rotation", &json!({})).await?;
    chat.ready().await?;
    let before = pod_uids(&chat).await?;
    let secrets = chat.namespace.api::<Secret>();
    let old = secrets.get("chat-ca").await?;
    ensure!(count(&old) == 1, "{} authorities", count(&old));
    let rotation = json!({"tls": {"rotation": {"revision": "2", "overlap": "20s"}}});
    chat.change(rotation).await?;
    let both = |seen: &Secret| count(seen) == 2;
    until(&secrets, "chat-ca", "to have both", STEP_LIMIT, both).await?;
    let load = chat.load(chat.address().await?, None).await?;
    chat.until("to be Ready", ROTATION_LIMIT, is_ready).await?;
    let new = secrets.get("chat-ca").await?;
    ensure!(count(&new) == 1, "{} authorities", count(&new));
    ensure!(bundle(&new) != bundle(&old), "it is the old one");
    for leaf in ["chat-0-tls", "chat-1-tls", "chat-2-tls", "chat-admin-tls"] {
        let trusted = bundle(&secrets.get(leaf).await?);
        ensure!(trusted == bundle(&new), "beside {leaf} is something else");
    }
    ensure!(pod_uids(&chat).await? == before, "Pods were restarted");
    load.wait_acknowledged(SOME_MESSAGES, PROGRESS_LIMIT)
        .await?;
    let (report, sends) = chat.check(load).await?;
    println!("{test}: {report}; {sends}");
    let tried = sends.tried_more;
    ensure!(
        tried == 0,
        "{tried} messages had to be tried more than twice"
    );
    chat.remove().await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes: make e2e"]
async fn what_others_delete_or_change_comes_back() -> anyhow::Result<()> {
    let test = "what others delete or change";
    Test::new(test, json!({}), Kind::Planned)
        .run(async |trial| {
            let chat = &trial.chat;
            let what = "to be made anew";
            let services = chat.namespace.api::<Service>();
            let admin = format!("{NAME}-admin");
            let old = services.get(&admin).await?;
            services.delete(&admin, &DeleteParams::default()).await?;
            let other = |seen: &Service| seen.metadata.uid != old.metadata.uid;
            until(&services, &admin, what, RESTORE_LIMIT, other).await?;

            let budgets = chat.namespace.api::<PodDisruptionBudget>();
            let old = budgets.get(NAME).await?;
            budgets.delete(NAME, &DeleteParams::default()).await?;
            let other = |seen: &PodDisruptionBudget| seen.metadata.uid != old.metadata.uid;
            until(&budgets, NAME, what, RESTORE_LIMIT, other).await?;

            let change = Patch::Merge(json!({"spec": {"minAvailable": 0}}));
            budgets
                .patch(NAME, &PatchParams::default(), &change)
                .await?;
            let restored = |seen: &PodDisruptionBudget| {
                let wanted = seen
                    .spec
                    .as_ref()
                    .and_then(|spec| spec.min_available.clone());
                serde_json::to_value(wanted).is_ok_and(|wanted| wanted == json!(2))
            };
            until(&budgets, NAME, "to be as before", RESTORE_LIMIT, restored).await?;
            trial.goes_on().await
        })
        .await
}

/// When the certificate ends that a member uses, as it says.
async fn certificate_ends_at(chat: &ChatCluster, member: &str) -> anyhow::Result<String> {
    const METRIC: &str = "carillon_certificate_ends_at_seconds ";
    let pods = chat.namespace.api::<Pod>();
    let status = pods.get(member).await?.status;
    let ip = status.and_then(|status| status.pod_ip);
    let ip = ip.with_context(|| format!("{member} has no address"))?;
    let (_, page) = http::get(&format!("{ip}:7600"), "/metrics", ANSWER_LIMIT).await?;
    let line = page.lines().find(|line| line.starts_with(METRIC));
    line.map(str::to_owned).context("no metric of certificates")
}

async fn pod_uids(chat: &ChatCluster) -> anyhow::Result<Vec<Option<String>>> {
    let pods = chat.pods().await?;
    Ok(pods.into_iter().map(|pod| pod.metadata.uid).collect())
}
