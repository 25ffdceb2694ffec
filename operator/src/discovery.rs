//! Which APIs of others the API server has. They may come and go while the operator runs.
//!
//! Owner of one answer, which all ImClusters share.

use std::time::{Duration, Instant};

use kube::Client;
use tokio::sync::Mutex;

use crate::build::objects::POD_MONITOR;

/// For how long an answer is good: objects are applied again as often.
const ANSWER_LIFETIME: Duration = Duration::from_secs(300);

#[derive(Default)]
struct Answer {
    has: bool,
    asked: Option<Instant>,
}

pub struct Discovery {
    client: Client,
    pod_monitors: Mutex<Answer>,
}

impl Discovery {
    pub fn new(client: Client) -> Discovery {
        Discovery {
            client,
            pod_monitors: Mutex::default(),
        }
    }

    /// Whether there are PodMonitors: whether the Prometheus operator's API is installed. Who
    /// asks while somebody else does waits for that one's answer.
    pub async fn has_pod_monitors(&self) -> bool {
        let mut answer = self.pod_monitors.lock().await;
        let old = |asked: Instant| asked.elapsed() >= ANSWER_LIFETIME;
        if !answer.asked.is_none_or(old) {
            return answer.has;
        }
        let group = format!("{}/{}", POD_MONITOR.group, POD_MONITOR.version);
        let has = match self.client.list_api_group_resources(&group).await {
            Ok(all) => {
                let mut all = all.resources.iter();
                all.any(|one| one.name == POD_MONITOR.plural)
            }
            Err(kube::Error::Api(status)) if status.code == 404 => false,
            Err(error) => {
                tracing::warn!(%error, "whether there are PodMonitors is not known");
                answer.has
            }
        };
        if has != answer.has {
            tracing::info!(has, "looked for PodMonitors");
        }
        *answer = Answer {
            has,
            asked: Some(Instant::now()),
        };
        has
    }

    /// What was answered is not so any more.
    pub async fn forget(&self) {
        self.pod_monitors.lock().await.asked = None;
    }
}
