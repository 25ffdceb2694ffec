//! Inboxes: dense, the same on all devices, every entry of every conversation of the user
//! exactly once and in order, pushed without gaps along a stream.

use std::collections::HashMap;

use super::{Report, Timelines, Violation, entry_at, is_member};
use crate::history::{
    ConversationId, DeviceHistory, Entry, Event, History, InboxScan, InboxSeq, Seq, StreamNumber,
    UserId,
};

type Inboxes<'a> = HashMap<&'a UserId, &'a [(InboxSeq, Entry)]>;

/// Checks all inboxes of a run.
pub(super) fn check(history: &History, timelines: &Timelines<'_>, report: &mut Report) {
    let mut inboxes = Inboxes::new();
    for scan in &history.last.inboxes {
        if !check_dense(scan, report) {
            continue;
        }
        match inboxes.get(&scan.user) {
            None => {
                inboxes.insert(&scan.user, &scan.entries);
                check_complete(history, scan, timelines, report);
            }
            Some(reference) => check_same(scan, reference, report),
        }
    }
    report.inbox_entries = inboxes.values().map(|entries| entries.len()).sum();
    for device in &history.devices {
        match inboxes.get(&device.user) {
            None => report.add(Violation::InboxNotScanned {
                user: device.user.clone(),
            }),
            Some(inbox) => check_device(device, inbox, report),
        }
    }
}

fn check_dense(scan: &InboxScan, report: &mut Report) -> bool {
    let mut expected = InboxSeq(1);
    for (inbox_seq, _) in &scan.entries {
        if *inbox_seq != expected {
            report.add(Violation::InboxNotDense {
                user: scan.user.clone(),
                via: scan.via.clone(),
                expected,
                found: *inbox_seq,
            });
            return false;
        }
        expected = expected.next();
    }
    if scan.head.next() != expected {
        report.add(Violation::InboxNotDense {
            user: scan.user.clone(),
            via: scan.via.clone(),
            expected,
            found: scan.head,
        });
        return false;
    }
    true
}

fn check_same(scan: &InboxScan, reference: &[(InboxSeq, Entry)], report: &mut Report) {
    let differs = scan
        .entries
        .iter()
        .zip(reference)
        .find(|(found, expected)| found != expected)
        .map(|(found, _)| found.0)
        .or_else(|| {
            let shorter = scan.entries.len().min(reference.len()) as u64;
            (scan.entries.len() != reference.len()).then_some(InboxSeq(shorter + 1))
        });
    if let Some(inbox_seq) = differs {
        report.add(Violation::InboxDiffers {
            user: scan.user.clone(),
            inbox_seq,
            who: scan.via.clone(),
        });
    }
}

/// Every conversation of the user is in the inbox from its first to its last entry, each
/// once, in order.
fn check_complete(
    history: &History,
    scan: &InboxScan,
    timelines: &Timelines<'_>,
    report: &mut Report,
) {
    let user = &scan.user;
    let mut last: HashMap<&ConversationId, Seq> = HashMap::new();
    for (inbox_seq, entry) in &scan.entries {
        if !is_member(history, &entry.conversation, user) {
            report.add(Violation::InboxForeign {
                user: user.clone(),
                inbox_seq: *inbox_seq,
                conversation: entry.conversation.clone(),
            });
            continue;
        }
        let place = last.entry(&entry.conversation).or_default();
        if entry.seq != place.next() {
            report.add(Violation::InboxOrder {
                user: user.clone(),
                inbox_seq: *inbox_seq,
                conversation: entry.conversation.clone(),
                expected: place.next(),
                found: entry.seq,
            });
        }
        *place = (*place).max(entry.seq);
        let timeline = timelines
            .get(&entry.conversation)
            .copied()
            .unwrap_or_default();
        if entry_at(timeline, entry.seq) != Some(entry) {
            report.add(Violation::InboxDiffers {
                user: user.clone(),
                inbox_seq: *inbox_seq,
                who: "the timeline".to_owned(),
            });
        }
    }
    for (conversation, timeline) in timelines {
        let found = last.get(conversation).copied().unwrap_or_default();
        let expected = Seq(timeline.len() as u64);
        if is_member(history, conversation, user) && found < expected {
            report.add(Violation::InboxMissing {
                user: user.clone(),
                conversation: (*conversation).clone(),
                expected,
                found,
            });
        }
    }
}

fn check_device(device: &DeviceHistory, inbox: &[(InboxSeq, Entry)], report: &mut Report) {
    let mut next: HashMap<StreamNumber, InboxSeq> = HashMap::new();
    let mut got = vec![false; inbox.len()];
    for record in &device.records {
        match &record.event {
            Event::StreamOpened { stream, inbox_head } => {
                next.insert(*stream, inbox_head.next());
            }
            Event::ResyncTold { stream, after, to } => {
                check_push(device, *stream, after.next(), &mut next, report);
                next.insert(*stream, to.next());
            }
            Event::Pushed {
                stream,
                inbox_seq,
                entry,
                ..
            } => {
                report.pushed += 1;
                check_push(device, *stream, *inbox_seq, &mut next, report);
                next.insert(*stream, inbox_seq.next());
                take(device, inbox, *inbox_seq, entry, &mut got, report);
            }
            Event::Synced { after, entries } => {
                let mut expected = after.next();
                for (inbox_seq, entry) in entries {
                    if *inbox_seq != expected {
                        report.add(Violation::InboxNotDense {
                            user: device.user.clone(),
                            via: format!("sync of {}", device.device),
                            expected,
                            found: *inbox_seq,
                        });
                    }
                    expected = inbox_seq.next();
                    take(device, inbox, *inbox_seq, entry, &mut got, report);
                }
            }
            _ => {}
        }
    }
    if let Some(missing) = got.iter().position(|got| !got) {
        report.add(Violation::NotDelivered {
            user: device.user.clone(),
            device: device.device.clone(),
            inbox_seq: InboxSeq(missing as u64 + 1),
        });
    }
}

fn check_push(
    device: &DeviceHistory,
    stream: StreamNumber,
    found: InboxSeq,
    next: &mut HashMap<StreamNumber, InboxSeq>,
    report: &mut Report,
) {
    let expected = next.get(&stream).copied().unwrap_or(InboxSeq(1));
    if found != expected {
        report.add(Violation::PushNotDense {
            user: device.user.clone(),
            device: device.device.clone(),
            stream,
            expected,
            found,
        });
    }
}

fn take(
    device: &DeviceHistory,
    inbox: &[(InboxSeq, Entry)],
    inbox_seq: InboxSeq,
    entry: &Entry,
    got: &mut [bool],
    report: &mut Report,
) {
    let index = inbox_seq.0.checked_sub(1).map(|index| index as usize);
    match index.and_then(|index| inbox.get(index)) {
        Some((_, expected)) if expected == entry => {
            if let Some(got) = index.and_then(|index| got.get_mut(index)) {
                *got = true;
            }
        }
        _ => report.add(Violation::InboxDiffers {
            user: device.user.clone(),
            inbox_seq,
            who: format!("{}/{}", device.user, device.device),
        }),
    }
}
