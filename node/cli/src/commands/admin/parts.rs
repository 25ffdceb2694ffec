//! What a cluster says of itself, part by part, as JSON: for a report.
//!
//! None of it is a secret: the token that nodes join with is in no part.

use anyhow::Context;
use carillon_client::AdminClient;
use serde_json::Value;

use super::{membership, nodes_json, policy, shards_json, status};

/// A part of what a cluster says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    Status,
    Nodes,
    Shards,
    Moves,
    Events,
    Policy,
}

impl Part {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Status,
        Self::Nodes,
        Self::Shards,
        Self::Moves,
        Self::Events,
        Self::Policy,
    ];

    /// As the command is called that shows it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::Nodes => "nodes",
            Self::Shards => "shards",
            Self::Moves => "moves",
            Self::Events => "events",
            Self::Policy => "policy",
        }
    }

    /// Asks the cluster; the same JSON as the command's.
    pub async fn ask(self, admin: &AdminClient) -> anyhow::Result<Value> {
        let failed = || format!("the cluster does not say its {}", self.name());
        Ok(match self {
            Self::Status => status::value(admin).await?,
            Self::Nodes => nodes_json(&admin.list_nodes().await.with_context(failed)?),
            Self::Shards => shards_json(&admin.list_shards(None).await.with_context(failed)?),
            Self::Moves => membership::moves_json(&admin.list_moves().await.with_context(failed)?),
            Self::Events => {
                membership::events_json(&admin.list_events().await.with_context(failed)?)
            }
            Self::Policy => policy::policy_json(&admin.get_policy().await.with_context(failed)?),
        })
    }
}
