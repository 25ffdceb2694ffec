//! What breaks by itself, and who heals it.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use carillon_crds::ImCluster;
use carillon_e2e::chat::{Kind, Test, Trial, is_ready};
use carillon_e2e::{Fault, until, until_any};
use futures_util::future::try_join_all;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, PersistentVolumeClaim, Pod};
use kube::Api;
use kube::api::{DeleteParams, EvictParams, Patch, PatchParams};
use serde_json::json;

/// A member is started anew, catches up and serves.
const HEAL_LIMIT: Duration = Duration::from_secs(120);
/// By which operators agree on who works.
const LEASE: &str = "carillon-operator";
/// A replacement is made, filled and used: after 30 s and a dead host's notice.
const REPLACE_LIMIT: Duration = Duration::from_secs(240);

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes: make e2e"]
async fn a_killed_pod_and_a_killed_kubelet() -> anyhow::Result<()> {
    let test = "a killed Pod and a killed kubelet";
    Test::new(test, json!({}), Kind::Failure)
        .alone()
        .run(async |trial| {
            let pods = trial.chat.namespace.api::<Pod>();
            let killed = pods.get("chat-1").await?;
            let at_once = DeleteParams::default().grace_period(0);
            pods.delete("chat-1", &at_once).await?;
            let new = |seen: &Pod| seen.metadata.uid != killed.metadata.uid;
            until(&pods, "chat-1", "to be made anew", HEAL_LIMIT, new).await?;
            trial.chat.ready().await?;
            trial.goes_on().await?;

            let Some(bed) = &trial.bed else {
                println!(
                    "SKIPPED: a killed kubelet: this cluster's machines are not the test bed's"
                );
                return Ok(());
            };
            bed.node(3, Fault::KubeletOff).await?;
            let noticed = async {
                let nodes = Api::<Node>::all(trial.cluster.client.clone());
                let away = |node: &Node| !is_up(node);
                until(&nodes, "node3", "to be away", HEAL_LIMIT, away).await?;
                trial.goes_on().await
            };
            let noticed = noticed.await;
            bed.node(3, Fault::KubeletOn).await?;
            noticed?;
            healed(trial).await
        })
        .await
}

async fn healed(trial: &Trial) -> anyhow::Result<()> {
    let nodes = Api::<Node>::all(trial.cluster.client.clone());
    for number in 1..=3 {
        let name = format!("node{number}");
        until(&nodes, &name, "to be Ready", HEAL_LIMIT, is_up).await?;
    }
    trial
        .chat
        .until("to be Ready", HEAL_LIMIT, is_ready)
        .await?;
    Ok(())
}

fn is_up(node: &Node) -> bool {
    let conditions = node.status.iter().flat_map(|status| &status.conditions);
    let mut ready = conditions.flatten().filter(|one| one.type_ == "Ready");
    let tainted = node.spec.iter().any(|spec| spec.taints.is_some());
    ready.any(|one| one.status == "True") && !tainted
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes: make e2e"]
async fn a_deleted_volume_is_replaced_by_a_new_member() -> anyhow::Result<()> {
    let test = "a deleted volume";
    let spec = json!({"failureReplacement": {"after": "30s"}});
    Test::new(test, spec, Kind::Failure)
        .run(async |trial| {
            let before = trial.chat.ready().await?;
            let claims = trial.chat.namespace.api::<PersistentVolumeClaim>();
            let pods = trial.chat.namespace.api::<Pod>();
            claims
                .delete("data-chat-2", &DeleteParams::default())
                .await?;
            pods.delete("chat-2", &DeleteParams::default()).await?;
            let other = |seen: &ImCluster| is_ready(seen) && ids(seen) != ids(&before);
            let what = "to be Ready with another node";
            trial.chat.until(what, REPLACE_LIMIT, other).await?;
            Ok(())
        })
        .await
}

fn ids(seen: &ImCluster) -> Vec<Option<u64>> {
    let members = seen.status.iter().flat_map(|status| &status.members);
    members.map(|member| member.node_id).collect()
}

/// `kubectl drain` of two machines at once.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes: make e2e"]
async fn two_machines_are_drained_at_once() -> anyhow::Result<()> {
    let test = "two machines are drained at once";
    // Where the volumes can go with their Pods.
    let spec = json!({
        "topology": {"spread": "Preferred"},
        "storage": {"className": carillon_e2e::Cluster::storage_class()},
    });
    Test::new(test, spec, Kind::Planned)
        .alone()
        .run(async |trial| {
            let hosts = hosts(trial).await?;
            let victims: Vec<_> = hosts.iter().filter(|(_, host)| host != "node1").collect();
            let nodes = Api::<Node>::all(trial.cluster.client.clone());
            for (_, host) in &victims {
                nodes.cordon(host).await?;
            }
            let outcome = evicted(trial, &victims).await;
            for (_, host) in &victims {
                nodes.uncordon(host).await?;
            }
            outcome?;
            trial.chat.ready().await?;
            Ok(())
        })
        .await
}

/// The machine that each member is on.
async fn hosts(trial: &Trial) -> anyhow::Result<Vec<(String, String)>> {
    let pods = trial.chat.pods().await?.into_iter().map(|pod| {
        let host = pod.spec.and_then(|spec| spec.node_name);
        let host = host.context("a Pod without a machine")?;
        Ok((pod.metadata.name.unwrap_or_default(), host))
    });
    pods.collect()
}

/// Asks for all evictions at once, each again and again, as two `kubectl drain` do, until all are
/// gone. The budget has to refuse one while the other one is away.
async fn evicted(trial: &Trial, victims: &[&(String, String)]) -> anyhow::Result<()> {
    const EVICT_LIMIT: Duration = Duration::from_secs(240);
    let all = victims.iter().map(|(pod, host)| evict(trial, pod, host));
    let refusals = tokio::time::timeout(EVICT_LIMIT, try_join_all(all))
        .await
        .context("the drain does not end")??;
    ensure!(
        refusals.iter().any(|refusals| *refusals > 0),
        "all were evicted at the same time"
    );
    Ok(())
}

/// Evicts a Pod from a host, and waits until it is away; how often the budget said no.
async fn evict(trial: &Trial, pod: &str, host: &str) -> anyhow::Result<u32> {
    const BETWEEN: Duration = Duration::from_secs(1);
    let pods = trial.chat.namespace.api::<Pod>();
    let mut refusals = 0;
    loop {
        match pods.evict(pod, &EvictParams::default()).await {
            Ok(_) => break,
            Err(kube::Error::Api(refused)) if refused.code == 429 => {
                refusals += 1;
                tokio::time::sleep(BETWEEN).await;
            }
            Err(kube::Error::Api(refused)) if refused.code == 404 => break,
            Err(error) => return Err(error.into()),
        }
    }
    let away = |seen: Option<&Pod>| {
        let spec = seen.and_then(|pod| pod.spec.as_ref());
        spec.is_none_or(|spec| spec.node_name.as_deref() != Some(host))
    };
    until_any(&pods, pod, "to be elsewhere", REPLACE_LIMIT, away).await?;
    Ok(refusals)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes: make e2e"]
async fn a_machine_that_is_lost_for_good_is_replaced() -> anyhow::Result<()> {
    let test = "a machine that is lost for good";
    let spec = json!({
        "topology": {"spread": "Preferred"},
        "failureReplacement": {"after": "30s"},
    });
    Test::new(test, spec, Kind::Failure)
        .alone()
        .run(async |trial| {
            let Some(bed) = &trial.bed else {
                println!("SKIPPED: {test}: this cluster's machines are not the test bed's");
                return Ok(());
            };
            let before = trial.chat.ready().await?;
            bed.node(3, Fault::PowerOff).await?;
            let other = |seen: &ImCluster| is_ready(seen) && ids(seen) != ids(&before);
            let what = "to be Ready with another node";
            let replaced = trial.chat.until(what, REPLACE_LIMIT, other).await;
            bed.node(3, Fault::PowerOn).await?;
            replaced?;
            healed(trial).await
        })
        .await
}

/// The operator and the API server are away, and come back. Meanwhile a machine dies: the others
/// elect and go on by themselves.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes: make e2e"]
async fn the_api_server_is_away_for_a_minute() -> anyhow::Result<()> {
    const AWAY: Duration = Duration::from_secs(60);
    let test = "the API server is away";
    Test::new(test, json!({}), Kind::Failure)
        .alone()
        .run(async |trial| {
            let Some(bed) = &trial.bed else {
                println!("SKIPPED: {test}: this cluster's machines are not the test bed's");
                return Ok(());
            };
            bed.api_server(false).await?;
            let hurt = bed.node(3, Fault::PowerOff).await;
            let goes_on = tokio::time::timeout(AWAY, async {
                loop {
                    trial.goes_on().await?;
                }
            });
            let outcome: Result<anyhow::Result<()>, _> = goes_on.await;
            bed.node(3, Fault::PowerOn).await?;
            bed.api_server(true).await?;
            hurt?;
            ensure!(outcome.is_err(), "people could not chat: {outcome:?}");
            healed(trial).await?;
            let changed = json!({"podTemplate": {"annotations": {"after": "that"}}});
            trial.chat.becomes(changed).await?;
            Ok(())
        })
        .await
}

/// The operator is killed again and again while it works.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes: make e2e"]
async fn the_operator_is_killed_while_it_works() -> anyhow::Result<()> {
    let test = "the operator is killed while it works";
    let spec = json!({"topology": {"spread": "Preferred"}});
    Test::new(test, spec, Kind::Planned)
        .alone()
        .run(async |trial| {
            let killed = kill_operators(trial);
            let works = async {
                let chat = &trial.chat;
                chat.becomes(json!({"nodes": 4})).await?;
                chat.becomes(json!({
                    "nodes": 3,
                    "config": {"logging": {"filter": "info,openraft=warn"}},
                }))
                .await?;
                anyhow::Ok(())
            };
            tokio::select! {
                killed = killed => killed.map(|never| match never {}),
                done = works => done,
            }
        })
        .await
}

/// Kills all that run, at random times after one of them has begun to work.
async fn kill_operators(trial: &Trial) -> anyhow::Result<std::convert::Infallible> {
    let operators = Api::<Pod>::namespaced(trial.cluster.client.clone(), "carillon-system");
    let of_it = kube::api::ListParams::default().labels("app.kubernetes.io/name=carillon-operator");
    let leases = Api::<Lease>::namespaced(trial.cluster.client.clone(), "carillon-system");
    let mut last = holder(&leases.get(LEASE).await?);
    loop {
        let wait_ms = 3_000 + u64::from(rand::random::<u16>()) % 17_000;
        tokio::time::sleep(Duration::from_millis(wait_ms)).await;
        let at_once = DeleteParams::default().grace_period(0);
        for pod in operators.list(&of_it).await? {
            let name = pod.metadata.name.unwrap_or_default();
            let _ = operators.delete(&name, &at_once).await;
        }
        let another = |lease: &Lease| holder(lease).is_some() && holder(lease) != last;
        let lease = until(&leases, LEASE, "to be another's", HEAL_LIMIT, another).await?;
        last = holder(&lease);
    }
}

fn holder(lease: &Lease) -> Option<String> {
    let spec = lease.spec.as_ref()?;
    spec.holder_identity.clone()
}

/// A zone is closed: nothing is lost, and its member comes back when it is opened.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes: make e2e"]
async fn a_zone_is_closed_and_opened() -> anyhow::Result<()> {
    let test = "a zone is closed";
    Test::new(test, json!({}), Kind::Failure)
        .alone()
        .run(async |trial| {
            let hosts = hosts(trial).await?;
            let (member, host) = hosts
                .iter()
                .find(|(_, host)| host != "node1")
                .context("no member")?;
            let nodes = Api::<Node>::all(trial.cluster.client.clone());
            let taint =
                json!({"key": "carillon.test/closed", "value": "yes", "effect": "NoExecute"});
            let taints = |taints| Patch::Merge(json!({"spec": {"taints": taints}}));
            let parameters = PatchParams::default();
            nodes
                .patch(host, &parameters, &taints(json!([taint])))
                .await?;
            let pods = trial.chat.namespace.api::<Pod>();
            let waits = |seen: &Pod| {
                let phase = seen
                    .status
                    .as_ref()
                    .and_then(|status| status.phase.as_deref());
                seen.metadata.deletion_timestamp.is_none() && phase == Some("Pending")
            };
            let waiting = until(&pods, member, "to wait for its zone", HEAL_LIMIT, waits).await;
            let gone_on = trial.goes_on().await;
            nodes.patch(host, &parameters, &taints(json!(null))).await?;
            waiting?;
            gone_on?;
            healed(trial).await
        })
        .await
}
