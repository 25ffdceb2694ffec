//! Waiting for what the API server says of an object, by a watch and with a limit. When time
//! is over the error says what was waited for, and what the object was like.

use std::fmt::Debug;
use std::pin::pin;
use std::time::Duration;

use anyhow::bail;
use futures_util::StreamExt as _;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::watch_object;
use kube::{Api, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// An object that can be waited for.
pub trait Waited:
    Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Serialize + Send + 'static
{
}

impl<K> Waited for K where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Serialize + Send + 'static
{
}

/// Waits until the object is there and as wanted.
pub async fn until<K: Waited>(
    api: &Api<K>,
    name: &str,
    what: &str,
    limit: Duration,
    wanted: impl Fn(&K) -> bool,
) -> anyhow::Result<K> {
    let found = until_any(api, name, what, limit, |seen| seen.is_some_and(&wanted)).await?;
    found.ok_or_else(|| anyhow::anyhow!("{name} is not there"))
}

/// Waits until the object is as wanted; `None` is an object that is not there.
pub async fn until_any<K: Waited>(
    api: &Api<K>,
    name: &str,
    what: &str,
    limit: Duration,
    wanted: impl Fn(Option<&K>) -> bool,
) -> anyhow::Result<Option<K>> {
    let mut last = None;
    let mut trouble = None;
    let waiting = async {
        // Goes on when the API server was away.
        let mut changes = pin!(watch_object(api.clone(), name).default_backoff());
        while let Some(change) = changes.next().await {
            match change {
                Ok(seen) if wanted(seen.as_ref()) => return Some(seen),
                Ok(seen) => last = Some(seen),
                Err(error) => trouble = Some(error),
            }
        }
        None
    };
    if let Ok(Some(seen)) = tokio::time::timeout(limit, waiting).await {
        return Ok(seen);
    }
    let kind = K::kind(&());
    let mut message = format!("waited {limit:?} for {kind} {name}: {what}");
    match last {
        Some(Some(object)) => message.push_str(&format!("; it is {}", state_of(&object))),
        Some(None) => message.push_str("; it is not there"),
        None => message.push_str("; nothing was heard of it"),
    }
    if let Some(trouble) = trouble {
        message.push_str(&format!("; its watch failed: {trouble}"));
    }
    bail!(message)
}

/// Its status if it has one: the rest is what somebody wanted.
fn state_of<K: Serialize>(object: &K) -> String {
    match serde_json::to_value(object) {
        Ok(mut whole) => {
            let status = whole.get_mut("status").map(serde_json::Value::take);
            status.unwrap_or(whole).to_string()
        }
        Err(error) => format!("unprintable: {error}"),
    }
}
