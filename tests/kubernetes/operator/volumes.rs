//! Volumes that become larger, also when they are full.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use carillon_crds::ImCluster;
use carillon_e2e::chat::{Kind, Test, is_ready};
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::api::ListParams;
use serde_json::json;

/// Fills the volumes of the test within a minute or two.
const LARGE_TEXT_BYTES: usize = 32 << 10;
const GROW_LIMIT: Duration = Duration::from_secs(300);

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes: make e2e"]
async fn volumes_grow_while_people_chat() -> anyhow::Result<()> {
    let test = "volumes grow";
    Test::new(test, json!({}), Kind::Planned)
        .run(async |trial| {
            trial
                .chat
                .becomes(json!({"storage": {"size": "2Gi"}}))
                .await?;
            let claims = trial.chat.namespace.api::<PersistentVolumeClaim>();
            for claim in claims.list(&ListParams::default()).await? {
                let status = claim.status.context("no status")?;
                let has = status.capacity.and_then(|all| all.get("storage").cloned());
                ensure!(
                    has.is_some_and(|has| has.0 == "2Gi"),
                    "{:?}",
                    claim.metadata.name
                );
            }
            Ok(())
        })
        .await
}

fn volumes(seen: &ImCluster) -> Vec<Option<&str>> {
    let members = seen.status.iter().flat_map(|status| &status.members);
    members.map(|member| member.volume.as_deref()).collect()
}

/// Volumes that messages and logs nearly fill become larger by themselves, up to their ceiling.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes: make e2e"]
async fn full_disks_grow_and_people_chat_on() -> anyhow::Result<()> {
    let test = "full disks";
    let spec = json!({
        "storage": {"size": "300Mi", "className": "sized", "autoGrow": {"maxSize": "1Gi"}},
    });
    Test::new(test, spec, Kind::Failure)
        .texts_of(LARGE_TEXT_BYTES)
        .run(async |trial| {
            let Some(_) = &trial.bed else {
                println!("SKIPPED: {test}: the storage class is the test bed's");
                return Ok(());
            };
            for pod in trial.chat.pods().await? {
                let name = pod.metadata.name.unwrap_or_default();
                println!(
                    "{name} is on {:?}",
                    pod.spec.and_then(|spec| spec.node_name)
                );
            }
            let grown = |seen: &ImCluster| {
                is_ready(seen) && volumes(seen).iter().all(|one| *one != Some("300Mi"))
            };
            trial
                .chat
                .until("its volumes to grow", GROW_LIMIT, grown)
                .await?;
            Ok(())
        })
        .await
}
