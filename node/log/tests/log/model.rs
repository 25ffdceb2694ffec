//! Random operations on several groups against a plain model in memory, with clean and unclean
//! reopening in between.

use std::collections::BTreeMap;

use bytes::Bytes;
use carillon_log::GroupId;
use proptest::prelude::*;

use crate::setup::{
    TestEntry, View, append, copy_segments, open, scratch_dir, small_options, truncate, view, vote,
};

const GROUPS: u32 = 3;

#[derive(Debug, Clone)]
enum Step {
    Append {
        group: u32,
        entries: usize,
        len: usize,
    },
    Truncate {
        group: u32,
        keep_fraction: u8,
    },
    TruncateAll {
        group: u32,
    },
    Purge {
        group: u32,
        fraction: u8,
    },
    PurgeBeyond {
        group: u32,
        by: u64,
    },
    Vote {
        group: u32,
        vote: u16,
    },
    Committed {
        group: u32,
        committed: u16,
    },
    Remove {
        group: u32,
    },
    Reopen,
    Crash,
}

fn step() -> impl Strategy<Value = Step> {
    let group = 0..GROUPS;
    prop_oneof![
        30 => (group.clone(), 1..12_usize, 0..3_000_usize)
            .prop_map(|(group, entries, len)| Step::Append { group, entries, len }),
        4 => (group.clone(), any::<u8>()).prop_map(|(group, keep_fraction)| Step::Truncate { group, keep_fraction }),
        1 => group.clone().prop_map(|group| Step::TruncateAll { group }),
        6 => (group.clone(), any::<u8>()).prop_map(|(group, fraction)| Step::Purge { group, fraction }),
        1 => (group.clone(), 0..20_u64).prop_map(|(group, by)| Step::PurgeBeyond { group, by }),
        3 => (group.clone(), any::<u16>()).prop_map(|(group, vote)| Step::Vote { group, vote }),
        3 => (group.clone(), any::<u16>()).prop_map(|(group, committed)| Step::Committed { group, committed }),
        1 => group.prop_map(|group| Step::Remove { group }),
        2 => Just(Step::Reopen),
        2 => Just(Step::Crash),
    ]
}

/// One group of the model; the lowest index it may hold beside what is visible.
#[derive(Debug, Default, Clone)]
struct Model {
    view: View,
    next: u64,
    term: u64,
}

impl Model {
    fn index_at(&self, fraction: u8) -> Option<u64> {
        let entries = &self.view.entries;
        let at = entries.len() * usize::from(fraction) / 256;
        entries.get(at).map(|entry| entry.index)
    }
}

fn run(steps: &[Step]) {
    let mut dir = scratch_dir();
    let mut engine = open(small_options(dir.path()));
    let mut models: BTreeMap<u32, Model> =
        (0..GROUPS).map(|group| (group, Model::default())).collect();
    for step in steps {
        match *step {
            Step::Append {
                group,
                entries,
                len,
            } => {
                let model = models.get_mut(&group).unwrap();
                let new: Vec<TestEntry> = (0..entries as u64)
                    .map(|at| TestEntry::new(model.next + at, model.term, len))
                    .collect();
                model.next += new.len() as u64;
                model.view.entries.extend(new.iter().cloned());
                append(&engine.group(GroupId(group)), new);
            }
            Step::Truncate {
                group,
                keep_fraction,
            } => {
                let model = models.get_mut(&group).unwrap();
                let Some(after) = model.index_at(keep_fraction) else {
                    continue;
                };
                model.view.entries.retain(|entry| entry.index <= after);
                (model.next, model.term) = (after + 1, model.term + 1);
                truncate(&engine.group(GroupId(group)), Some(after));
            }
            Step::TruncateAll { group } => {
                let model = models.get_mut(&group).unwrap();
                model.next = model
                    .view
                    .entries
                    .first()
                    .map_or(model.next, |entry| entry.index);
                model.term += 1;
                model.view.entries.clear();
                truncate(&engine.group(GroupId(group)), None);
            }
            Step::Purge { group, fraction } => {
                let model = models.get_mut(&group).unwrap();
                let Some(upto) = model.index_at(fraction) else {
                    continue;
                };
                model.view.entries.retain(|entry| entry.index > upto);
                model.view.purged = Some((upto, Bytes::from(format!("purged {upto}"))));
                engine
                    .group(GroupId(group))
                    .purge(upto, Bytes::from(format!("purged {upto}")))
                    .unwrap();
            }
            Step::PurgeBeyond { group, by } => {
                let model = models.get_mut(&group).unwrap();
                let upto = model.next + by;
                model.view.entries.clear();
                model.view.purged = Some((upto, Bytes::from_static(b"snapshot")));
                model.next = upto + 1;
                engine
                    .group(GroupId(group))
                    .purge(upto, Bytes::from_static(b"snapshot"))
                    .unwrap();
            }
            Step::Vote { group, vote: value } => {
                models.get_mut(&group).unwrap().view.vote = Some(Bytes::from(value.to_string()));
                vote(&engine.group(GroupId(group)), &value.to_string());
            }
            Step::Committed { group, committed } => {
                let committed = Bytes::from(committed.to_string());
                models.get_mut(&group).unwrap().view.committed = Some(committed.clone());
                engine
                    .group(GroupId(group))
                    .save_committed(committed)
                    .unwrap();
            }
            Step::Remove { group } => {
                models.insert(group, Model::default());
                engine.remove_group(GroupId(group)).unwrap();
            }
            Step::Reopen => {
                engine.shutdown().unwrap();
                drop(engine);
                engine = open(small_options(dir.path()));
            }
            Step::Crash => {
                // The last write takes everything along that was said before.
                models.get_mut(&0).unwrap().view.vote = Some(Bytes::from_static(b"last"));
                vote(&engine.group(GroupId(0)), "last");
                let copy = copy_segments(dir.path());
                drop(engine);
                dir = copy;
                engine = open(small_options(dir.path()));
            }
        }
        for (group, model) in &models {
            assert_eq!(
                view(&engine, *group),
                model.view,
                "group {group} after {step:?}"
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn behaves_like_a_list_in_memory(steps in prop::collection::vec(step(), 1..160)) {
        run(&steps);
    }
}
