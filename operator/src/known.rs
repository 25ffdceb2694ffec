//! What is known of the objects that the operator makes: enough to tell what somebody else did to
//! them from what the operator did itself.
//!
//! Owner of one short entry for each such object; an entry goes with its object. All of it may be
//! lost: what is not known counts as changed, and is applied once more.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::json;

use crate::build::CLUSTER_LABEL;
use crate::build::objects::Kind;
use crate::queue::Key;

/// Plural name, namespace and name.
type Name = (&'static str, String, String);

struct Entry {
    cluster: String,
    print: String,
}

#[derive(Default)]
pub struct Known {
    entries: Mutex<BTreeMap<Name, Entry>>,
}

/// Changes with whatever of the object is the operator's, and does not with its status, where the
/// API server counts generations.
fn print(meta: &ObjectMeta) -> String {
    let version = match meta.generation {
        Some(generation) => json!(generation),
        None => json!(meta.resource_version),
    };
    let (labels, owners) = (&meta.labels, &meta.owner_references);
    let all = json!([meta.uid, version, labels, meta.annotations, owners]);
    crate::build::hash(all.to_string().as_bytes())
}

fn cluster(meta: &ObjectMeta) -> Option<String> {
    meta.labels.as_ref()?.get(CLUSTER_LABEL).cloned()
}

fn named(kind: Kind, meta: &ObjectMeta) -> Name {
    let part = |part: &Option<String>| part.clone().unwrap_or_default();
    (kind.plural, part(&meta.namespace), part(&meta.name))
}

impl Known {
    fn entries(&self) -> MutexGuard<'_, BTreeMap<Name, Entry>> {
        self.entries.lock().unwrap_or_else(|held| held.into_inner())
    }

    fn set(&self, kind: Kind, meta: &ObjectMeta) -> Option<Entry> {
        let entry = Entry {
            cluster: cluster(meta)?,
            print: print(meta),
        };
        self.entries().insert(named(kind, meta), entry)
    }

    /// The operator wrote it, and this is what the API server has of it.
    pub fn wrote(&self, kind: Kind, meta: &ObjectMeta) {
        self.set(kind, meta);
    }

    /// The operator is about to delete it.
    pub fn drops(&self, kind: Kind, namespace: &str, name: &str) {
        let name = (kind.plural, namespace.to_owned(), name.to_owned());
        self.entries().remove(&name);
    }

    /// A watch has it like this: the ImCluster that it is of, if that is news.
    pub fn seen(&self, kind: Kind, meta: &ObjectMeta) -> Option<Key> {
        let before = self.set(kind, meta);
        let news = before.is_none_or(|before| before.print != print(meta));
        let key = (meta.namespace.clone()?, cluster(meta)?);
        news.then_some(key)
    }

    /// A watch says that it is gone: the ImCluster that it was of, if the operator did not do it.
    pub fn gone(&self, kind: Kind, meta: &ObjectMeta) -> Option<Key> {
        let name = named(kind, meta);
        let entry = self.entries().remove(&name)?;
        Some((name.1, entry.cluster))
    }

    /// A watch began anew, and these are all that there are: the ImClusters of those that are
    /// gone.
    pub fn listed(&self, kind: Kind, there: &BTreeSet<(String, String)>) -> BTreeSet<Key> {
        let mut gone = BTreeSet::new();
        self.entries().retain(|(plural, namespace, name), entry| {
            let stays =
                *plural != kind.plural || there.contains(&(namespace.clone(), name.clone()));
            if !stays {
                gone.insert((namespace.clone(), entry.cluster.clone()));
            }
            stays
        });
        gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::objects::{DISRUPTION_BUDGET, SERVICE};

    fn meta(name: &str, version: &str) -> ObjectMeta {
        ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some("prod".to_owned()),
            uid: Some(format!("uid of {name}")),
            resource_version: Some(version.to_owned()),
            labels: Some([(CLUSTER_LABEL.to_owned(), "chat".to_owned())].into()),
            ..ObjectMeta::default()
        }
    }

    fn chat() -> Option<Key> {
        Some(("prod".to_owned(), "chat".to_owned()))
    }

    #[test]
    fn what_the_operator_wrote_is_no_news() {
        let known = Known::default();
        assert_eq!(known.seen(SERVICE, &meta("chat", "1")), chat(), "unknown");
        assert_eq!(known.seen(SERVICE, &meta("chat", "1")), None);
        known.wrote(SERVICE, &meta("chat", "2"));
        assert_eq!(known.seen(SERVICE, &meta("chat", "2")), None);
        assert_eq!(known.seen(SERVICE, &meta("chat", "3")), chat(), "changed");
        known.drops(SERVICE, "prod", "chat");
        assert_eq!(known.gone(SERVICE, &meta("chat", "4")), None);
    }

    #[test]
    fn what_others_delete_is_news_also_when_the_watch_missed_it() {
        let known = Known::default();
        known.wrote(SERVICE, &meta("chat", "1"));
        known.wrote(SERVICE, &meta("chat-client", "1"));
        known.wrote(DISRUPTION_BUDGET, &meta("chat", "1"));
        assert_eq!(known.gone(SERVICE, &meta("chat", "2")), chat());
        let there = BTreeSet::new();
        assert_eq!(known.listed(SERVICE, &there), chat().into_iter().collect());
        assert_eq!(known.listed(SERVICE, &there), BTreeSet::new());
        assert_eq!(known.gone(DISRUPTION_BUDGET, &meta("chat", "2")), chat());
    }

    #[test]
    fn a_status_is_no_news_where_generations_are_counted() {
        let known = Known::default();
        let counted = |generation, version| ObjectMeta {
            generation: Some(generation),
            ..meta("chat", version)
        };
        known.wrote(DISRUPTION_BUDGET, &counted(1, "1"));
        assert_eq!(known.seen(DISRUPTION_BUDGET, &counted(1, "2")), None);
        assert_eq!(known.seen(DISRUPTION_BUDGET, &counted(2, "3")), chat());
        let mut labelled = counted(2, "4");
        labelled
            .labels
            .get_or_insert_default()
            .insert("a".to_owned(), "b".to_owned());
        assert_eq!(known.seen(DISRUPTION_BUDGET, &labelled), chat());
    }
}
