//! Decides from a [`History`] whether the cluster kept its promises.
//!
//! Owns nothing but indexes over the history. Each check looks at every event a constant
//! number of times (sorting by time apart), so that a run of any length can be checked.
//!
//! What is checked, and by whom:
//! * [`timeline`]: dense seqs, no duplicate, the same order for all readers, nothing
//!   acknowledged lost, changed or answered twice differently, nothing invented, the order
//!   of one sender on one stream.
//! * [`reads`]: reads are monotonic, read-your-writes and never stale.
//! * [`inbox`]: every member got every entry exactly once, in order, through a dense
//!   inbox, the same on all devices.
//! * [`unread`]: read positions only grow, unread is exact.

mod inbox;
mod reads;
#[cfg(test)]
mod tests;
mod timeline;
mod unread;
mod violation;

use std::collections::HashMap;

use crate::history::{ConversationId, Entry, Event, History, Seq, UserId};

pub use violation::Violation;

/// Violations that a report keeps; more are only counted.
const VIOLATIONS_KEPT_MAX: usize = 100;

/// The outcome of a check.
#[derive(Debug, Default)]
pub struct Report {
    violations: Vec<Violation>,
    total: usize,
    /// Messages that were acknowledged.
    pub acknowledged: usize,
    /// Entries over all timelines.
    pub entries: usize,
    /// Entries over all inboxes.
    pub inbox_entries: usize,
    /// Pages of timelines read during the run.
    pub reads: usize,
    /// Entries pushed on streams.
    pub pushed: usize,
}

impl Report {
    pub(crate) fn add(&mut self, violation: Violation) {
        self.total += 1;
        if self.violations.len() < VIOLATIONS_KEPT_MAX {
            self.violations.push(violation);
        }
    }

    /// True when every promise was kept.
    pub fn is_clean(&self) -> bool {
        self.total == 0
    }

    /// The first violations, at most 100.
    pub fn violations(&self) -> &[Violation] {
        &self.violations
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} acknowledged, {} timeline entries, {} inbox entries, {} pages read, {} pushed, \
             {} violations",
            self.acknowledged,
            self.entries,
            self.inbox_entries,
            self.reads,
            self.pushed,
            self.total
        )?;
        for violation in &self.violations {
            write!(f, "\n  {violation}")?;
        }
        if self.total > self.violations.len() {
            write!(f, "\n  … and {} more", self.total - self.violations.len())?;
        }
        Ok(())
    }
}

/// The timelines that everything is compared with: for each conversation its first scan.
pub(crate) type Timelines<'a> = HashMap<&'a ConversationId, &'a [Entry]>;

/// The entry at a seq of a timeline that is known to be dense from 1.
pub(crate) fn entry_at(timeline: &[Entry], seq: Seq) -> Option<&Entry> {
    let index = usize::try_from(seq.0.checked_sub(1)?).ok()?;
    timeline.get(index).filter(|entry| entry.seq == seq)
}

/// Checks a history.
pub fn check(history: &History) -> Report {
    let mut report = Report::default();
    let timelines = timeline::check_scans(history, &mut report);
    timeline::check_sends(history, &timelines, &mut report);
    reads::check(history, &timelines, &mut report);
    inbox::check(history, &timelines, &mut report);
    unread::check(history, &timelines, &mut report);
    for device in &history.devices {
        for record in &device.records {
            if let Event::Anomaly { what } = &record.event {
                report.add(Violation::Anomaly {
                    user: device.user.clone(),
                    device: device.device.clone(),
                    what: what.clone(),
                });
            }
        }
    }
    report
}

/// Whether a user is a member of a conversation in this history.
pub(crate) fn is_member(history: &History, conversation: &ConversationId, user: &UserId) -> bool {
    history
        .conversations
        .get(conversation)
        .is_some_and(|members| members.contains(user))
}
