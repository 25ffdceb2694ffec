//! Reads during the run: pages equal the final timelines, and no read shows less than
//! what anybody knew before it was asked for.
//!
//! "Known" is a seq that the cluster has shown to somebody: in an acknowledgement, a page
//! or a delivery. With one clock for all devices this covers monotonic reads and
//! read-your-writes of one device, and linearizability between devices.

use std::collections::HashMap;

use super::{Report, Timelines, Violation, entry_at};
use crate::history::{At, ConversationId, DeviceHistory, Event, History, Seq};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    Ack,
    Read,
    Delivery,
}

struct Known {
    at: At,
    seq: Seq,
    device: usize,
    source: Source,
}

struct Read {
    started: At,
    at: At,
    last_seq: Seq,
    device: usize,
}

#[derive(Default)]
struct Sights {
    known: Vec<Known>,
    reads: Vec<Read>,
}

/// Checks all reads of a run.
pub(super) fn check(history: &History, timelines: &Timelines<'_>, report: &mut Report) {
    let mut sights: HashMap<&ConversationId, Sights> = HashMap::new();
    for (number, device) in history.devices.iter().enumerate() {
        collect(number, device, &mut sights);
        for record in &device.records {
            check_page(device, record.at, &record.event, timelines, report);
        }
    }
    for (conversation, mut sights) in sights {
        report.reads += sights.reads.len();
        sights.known.sort_by_key(|known| known.at);
        sights.reads.sort_by_key(|read| read.started);
        check_fresh(history, conversation, &sights, report);
    }
}

fn collect<'a>(
    number: usize,
    device: &'a DeviceHistory,
    sights: &mut HashMap<&'a ConversationId, Sights>,
) {
    for record in &device.records {
        let mut know = |conversation: &'a ConversationId, seq: Seq, source: Source| {
            sights.entry(conversation).or_default().known.push(Known {
                at: record.at,
                seq,
                device: number,
                source,
            });
        };
        match &record.event {
            Event::SendAcked {
                conversation, seq, ..
            } => know(conversation, *seq, Source::Ack),
            Event::Pushed { entry, .. } => know(&entry.conversation, entry.seq, Source::Delivery),
            Event::Synced { entries, .. } => {
                for (_, entry) in entries {
                    know(&entry.conversation, entry.seq, Source::Delivery);
                }
            }
            Event::Read {
                started,
                conversation,
                last_seq,
                ..
            } => {
                know(conversation, *last_seq, Source::Read);
                sights.entry(conversation).or_default().reads.push(Read {
                    started: *started,
                    at: record.at,
                    last_seq: *last_seq,
                    device: number,
                });
            }
            _ => {}
        }
    }
}

fn check_page(
    device: &DeviceHistory,
    at: At,
    event: &Event,
    timelines: &Timelines<'_>,
    report: &mut Report,
) {
    let Event::Read {
        conversation,
        entries,
        ..
    } = event
    else {
        return;
    };
    let timeline = timelines.get(conversation).copied().unwrap_or_default();
    let mut before: Option<Seq> = None;
    for entry in entries {
        if let Some(before) = before
            && entry.seq != before.next()
        {
            report.add(Violation::PageNotDense {
                conversation: conversation.clone(),
                user: device.user.clone(),
                at,
                before,
                found: entry.seq,
            });
        }
        before = Some(entry.seq);
        if entry_at(timeline, entry.seq) != Some(entry) {
            report.add(Violation::OrderDiffers {
                conversation: conversation.clone(),
                seq: entry.seq,
                who: format!("{}/{}", device.user, device.device),
            });
        }
    }
}

fn check_fresh(
    history: &History,
    conversation: &ConversationId,
    sights: &Sights,
    report: &mut Report,
) {
    let mut known = sights.known.iter().peekable();
    let mut newest: Option<&Known> = None;
    for read in &sights.reads {
        while let Some(sight) = known.next_if(|sight| sight.at < read.started) {
            if newest.is_none_or(|newest| sight.seq > newest.seq) {
                newest = Some(sight);
            }
        }
        let Some(newest) = newest.filter(|newest| newest.seq > read.last_seq) else {
            continue;
        };
        let conversation = conversation.clone();
        let user = history.devices[read.device].user.clone();
        let (at, known, last_seq) = (read.at, newest.seq, read.last_seq);
        let own = newest.device == read.device;
        report.add(match newest.source {
            Source::Read if own => Violation::ReadWentBack {
                conversation,
                user,
                at,
                known,
                last_seq,
            },
            Source::Ack if own => Violation::OwnWriteMissing {
                conversation,
                user,
                at,
                known,
                last_seq,
            },
            Source::Read | Source::Ack | Source::Delivery => Violation::StaleRead {
                conversation,
                user,
                at,
                known,
                last_seq,
            },
        });
    }
}
