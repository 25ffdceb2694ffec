//! From an `ImCluster` to people who chat.

use std::collections::BTreeSet;

use anyhow::{Context as _, ensure};
use carillon_e2e::chat::{Kind, Test};
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes: make e2e"]
async fn a_cluster_of_three_zones_becomes_ready_and_people_chat() -> anyhow::Result<()> {
    let test = "a cluster of three zones";
    Test::new(test, json!({}), Kind::Planned)
        .run(async |trial| {
            let seen = trial.chat.ready().await?;
            let status = seen.status.context("no status")?;
            let zones: BTreeSet<_> = status.members.iter().map(|one| one.zone.clone()).collect();
            ensure!(zones.len() == 3, "the members are in {zones:?}");
            ensure!(status.ready_nodes == 3, "{status:?}");
            // Nobody's doing: it stays as it is.
            for pod in trial.chat.pods().await? {
                let restarts: i32 = pod
                    .status
                    .and_then(|status| status.container_statuses)
                    .iter()
                    .flatten()
                    .map(|container| container.restart_count)
                    .sum();
                ensure!(restarts == 0, "{:?} was started again", pod.metadata.name);
            }
            Ok(())
        })
        .await
}
