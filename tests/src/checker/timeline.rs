//! Timelines and sends: dense, no duplicate, one order, nothing lost or invented.
//!
//! The first scan of a conversation is the reference; every other sight of an entry, at
//! any time and by anybody, has to equal it.

use std::collections::HashMap;

use super::{Report, Timelines, Violation, entry_at};
use crate::history::{
    ClientMessageId, ConversationId, Entry, Event, Fingerprint, History, Scan, Seq, StreamNumber,
    UserId,
};

/// Checks the final scans and returns the reference timelines.
pub(super) fn check_scans<'a>(history: &'a History, report: &mut Report) -> Timelines<'a> {
    let mut timelines = Timelines::with_capacity(history.conversations.len());
    for scan in &history.last.scans {
        if check_dense(scan, report) {
            match timelines.get(&scan.conversation) {
                None => {
                    timelines.insert(&scan.conversation, &scan.entries);
                    check_reference(scan, report);
                }
                Some(reference) => compare(scan, reference, report),
            }
        }
    }
    for conversation in history.conversations.keys() {
        if !timelines.contains_key(conversation) {
            report.add(Violation::NotScanned {
                conversation: conversation.clone(),
            });
        }
    }
    report.entries = timelines.values().map(|entries| entries.len()).sum();
    timelines
}

fn check_dense(scan: &Scan, report: &mut Report) -> bool {
    let mut expected = Seq(1);
    for entry in &scan.entries {
        if entry.seq != expected || entry.conversation != scan.conversation {
            report.add(Violation::SeqNotDense {
                conversation: scan.conversation.clone(),
                via: scan.via.clone(),
                expected,
                found: entry.seq,
            });
            return false;
        }
        expected = expected.next();
    }
    let found = Seq(expected.0 - 1);
    if scan.last_seq != found {
        report.add(Violation::LastSeqWrong {
            conversation: scan.conversation.clone(),
            via: scan.via.clone(),
            said: scan.last_seq,
            found,
        });
    }
    true
}

fn check_reference(scan: &Scan, report: &mut Report) {
    let mut seen: HashMap<(&UserId, &ClientMessageId), Seq> =
        HashMap::with_capacity(scan.entries.len());
    let mut before: Option<&Entry> = None;
    for entry in &scan.entries {
        if let Some(client_message_id) = &entry.client_message_id
            && let Some(first) = seen.insert((&entry.sender, client_message_id), entry.seq)
        {
            report.add(Violation::Duplicate {
                conversation: scan.conversation.clone(),
                sender: entry.sender.clone(),
                client_message_id: client_message_id.clone(),
                first,
                second: entry.seq,
            });
        }
        if before.is_some_and(|before| {
            entry.message_id <= before.message_id || entry.sent_at_ms < before.sent_at_ms
        }) {
            report.add(Violation::GoesBack {
                conversation: scan.conversation.clone(),
                seq: entry.seq,
            });
        }
        before = Some(entry);
    }
}

fn compare(scan: &Scan, reference: &[Entry], report: &mut Report) {
    let differs = scan
        .entries
        .iter()
        .zip(reference)
        .find(|(found, expected)| found != expected)
        .map(|(found, _)| found.seq)
        .or_else(|| {
            let shorter = scan.entries.len().min(reference.len()) as u64;
            (scan.entries.len() != reference.len()).then_some(Seq(shorter + 1))
        });
    if let Some(seq) = differs {
        report.add(Violation::OrderDiffers {
            conversation: scan.conversation.clone(),
            seq,
            who: scan.via.clone(),
        });
    }
}

/// What is known of one message from its sender's side.
struct SendState {
    content: Fingerprint,
    tries: u32,
    stream: StreamNumber,
    acked: Option<Ack>,
}

#[derive(Clone, Copy)]
struct Ack {
    seq: Seq,
    message_id: u64,
    stream: StreamNumber,
    duplicate: bool,
}

type Sends<'a> = HashMap<(&'a UserId, &'a ConversationId, &'a ClientMessageId), SendState>;

/// Checks what senders were told against the timelines.
pub(super) fn check_sends(history: &History, timelines: &Timelines<'_>, report: &mut Report) {
    let sends = collect_sends(history, report);
    for ((sender, conversation, client_message_id), send) in &sends {
        let Some(ack) = send.acked else { continue };
        report.acknowledged += 1;
        let stored = timelines
            .get(conversation)
            .and_then(|timeline| entry_at(timeline, ack.seq));
        let is_it = stored.is_some_and(|entry| {
            entry.client_message_id.as_ref() == Some(client_message_id)
                && entry.sender == **sender
                && entry.message_id == ack.message_id
        });
        if !is_it {
            report.add(Violation::AcknowledgedLost {
                conversation: (*conversation).clone(),
                sender: (*sender).clone(),
                client_message_id: (*client_message_id).clone(),
                seq: ack.seq,
            });
        }
    }
    for (conversation, timeline) in timelines {
        for entry in *timeline {
            check_origin(conversation, entry, &sends, report);
        }
    }
    check_sender_order(history, &sends, report);
}

fn check_origin(
    conversation: &ConversationId,
    entry: &Entry,
    sends: &Sends<'_>,
    report: &mut Report,
) {
    let Some(client_message_id) = &entry.client_message_id else {
        return;
    };
    match sends.get(&(&entry.sender, conversation, client_message_id)) {
        None => report.add(Violation::Invented {
            conversation: conversation.clone(),
            seq: entry.seq,
        }),
        Some(send) if send.content != entry.content => report.add(Violation::Altered {
            conversation: conversation.clone(),
            seq: entry.seq,
        }),
        Some(_) => {}
    }
}

fn collect_sends<'a>(history: &'a History, report: &mut Report) -> Sends<'a> {
    let mut sends = Sends::new();
    for device in &history.devices {
        let user = &device.user;
        for record in &device.records {
            match &record.event {
                Event::SendStarted {
                    conversation,
                    client_message_id,
                    stream,
                    content,
                } => {
                    let send = sends
                        .entry((user, conversation, client_message_id))
                        .or_insert(SendState {
                            content: *content,
                            tries: 0,
                            stream: *stream,
                            acked: None,
                        });
                    send.tries += 1;
                }
                Event::SendAcked {
                    conversation,
                    client_message_id,
                    stream,
                    seq,
                    message_id,
                    duplicate,
                } => {
                    let ack = Ack {
                        seq: *seq,
                        message_id: *message_id,
                        stream: *stream,
                        duplicate: *duplicate,
                    };
                    note_ack(
                        &mut sends,
                        (user, conversation, client_message_id),
                        ack,
                        report,
                    );
                }
                Event::SendRefused {
                    conversation,
                    client_message_id,
                    reason,
                } => report.add(Violation::Refused {
                    conversation: conversation.clone(),
                    sender: user.clone(),
                    client_message_id: client_message_id.clone(),
                    reason: reason.clone(),
                }),
                _ => {}
            }
        }
    }
    sends
}

fn note_ack<'a>(
    sends: &mut Sends<'a>,
    key: (&'a UserId, &'a ConversationId, &'a ClientMessageId),
    ack: Ack,
    report: &mut Report,
) {
    let Some(send) = sends.get_mut(&key) else {
        report.add(Violation::AnsweredNothing {
            conversation: key.1.clone(),
            sender: key.0.clone(),
            client_message_id: key.2.clone(),
        });
        return;
    };
    match send.acked {
        None => send.acked = Some(ack),
        Some(first) if first.seq != ack.seq || first.message_id != ack.message_id => {
            report.add(Violation::AnswerChanged {
                conversation: key.1.clone(),
                sender: key.0.clone(),
                client_message_id: key.2.clone(),
                first: first.seq,
                second: ack.seq,
            });
        }
        Some(_) => {}
    }
}

/// Messages that were tried exactly once, on one stream and into one conversation, are in
/// the timeline in the order in which they were sent. (A message that had to be tried
/// again may come after a later one.)
fn check_sender_order(history: &History, sends: &Sends<'_>, report: &mut Report) {
    for device in &history.devices {
        let mut last: HashMap<(&ConversationId, StreamNumber), (Seq, &ClientMessageId)> =
            HashMap::new();
        for record in &device.records {
            let Event::SendStarted {
                conversation,
                client_message_id,
                stream,
                ..
            } = &record.event
            else {
                continue;
            };
            let Some(send) = sends.get(&(&device.user, conversation, client_message_id)) else {
                continue;
            };
            let Some(ack) = send
                .acked
                .filter(|ack| send.tries == 1 && !ack.duplicate && ack.stream == send.stream)
            else {
                continue;
            };
            let place = last
                .entry((conversation, *stream))
                .or_insert((ack.seq, client_message_id));
            if ack.seq < place.0 {
                report.add(Violation::SenderOrder {
                    conversation: conversation.clone(),
                    sender: device.user.clone(),
                    stream: *stream,
                    earlier: place.1.clone(),
                    later: client_message_id.clone(),
                });
            } else {
                *place = (ack.seq, client_message_id);
            }
        }
    }
}
