//! More members, and fewer.

use std::time::Duration;

use anyhow::ensure;
use carillon_crds::ImCluster;
use carillon_e2e::chat::{Kind, Test};
use serde_json::json;

/// Until the first replica has moved.
const MOVE_LIMIT: Duration = Duration::from_secs(120);

fn names(seen: &ImCluster) -> Vec<&str> {
    let members = seen.status.iter().flat_map(|status| &status.members);
    members.map(|member| member.name.as_str()).collect()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes: make e2e"]
async fn members_come_and_go_by_number_and_by_choice() -> anyhow::Result<()> {
    let test = "members come and go";
    // Five members on three hosts: a member more than there are zones.
    let spec = json!({"topology": {"spread": "Preferred"}});
    Test::new(test, spec, Kind::Planned)
        .run(async |trial| {
            let seen = trial.chat.becomes(json!({"nodes": 5})).await?;
            let five = ["chat-0", "chat-1", "chat-2", "chat-3", "chat-4"];
            ensure!(names(&seen) == five, "{:?}", names(&seen));
            trial.goes_on().await?;

            // The number is set back while they leave: all stay.
            trial.chat.change(json!({"nodes": 3})).await?;
            let leaves = |seen: &ImCluster| {
                let operation = seen.status.as_ref().and_then(|s| s.operation.as_ref());
                operation.is_some_and(|one| format!("{:?}", one.r#type) == "ScalingIn")
            };
            let what = "to begin to move data away";
            trial.chat.until(what, MOVE_LIMIT, leaves).await?;
            let seen = trial.chat.becomes(json!({"nodes": 5})).await?;
            ensure!(names(&seen) == five, "{:?}", names(&seen));

            let seen = trial.chat.becomes(json!({"nodes": 4})).await?;
            let four = ["chat-0", "chat-1", "chat-2", "chat-3"];
            ensure!(
                names(&seen) == four,
                "the last one leaves: {:?}",
                names(&seen)
            );
            let candidate = json!({"nodes": 3, "scaleIn": {"candidates": ["chat-1"]}});
            let seen = trial.chat.becomes(candidate).await?;
            let three = ["chat-0", "chat-2", "chat-3"];
            ensure!(
                names(&seen) == three,
                "the one that was named leaves: {:?}",
                names(&seen)
            );
            Ok(())
        })
        .await
}
