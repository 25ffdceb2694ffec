//! The checker finds nothing in a good history, and each fault in a spoilt one.

use std::collections::BTreeMap;

use super::{Violation, check};
use crate::history::{
    At, ClientMessageId, ConversationId, DeviceHistory, Entry, Event, FinalState, Fingerprint,
    History, InboxScan, InboxSeq, Record, Scan, Seq, StreamNumber, Summary, UserId,
};

const GROUP: &str = "team";
const DIRECT: &str = "direct:alice:bob";
const ROUNDS: u64 = 6;

/// A small cluster in memory that keeps every promise and writes the histories.
struct Good {
    now: u64,
    history: History,
    timelines: BTreeMap<ConversationId, Vec<Entry>>,
    inboxes: BTreeMap<UserId, Vec<Entry>>,
    unread: BTreeMap<(UserId, ConversationId), u32>,
    read: BTreeMap<(UserId, ConversationId), Seq>,
}

impl Good {
    fn new() -> Self {
        let members = |names: &[&str]| names.iter().map(|name| UserId::from(*name)).collect();
        let device = |user: &str, device: &str| DeviceHistory {
            user: user.into(),
            device: device.to_owned(),
            records: vec![Record {
                at: At(0),
                event: Event::StreamOpened {
                    stream: StreamNumber(1),
                    inbox_head: InboxSeq(0),
                },
            }],
        };
        Self {
            now: 0,
            history: History {
                conversations: BTreeMap::from([
                    (GROUP.into(), members(&["alice", "bob", "carol"])),
                    (DIRECT.into(), members(&["alice", "bob"])),
                ]),
                devices: vec![
                    device("alice", "phone"),
                    device("alice", "laptop"),
                    device("bob", "phone"),
                    device("carol", "phone"),
                ],
                last: FinalState::default(),
            },
            timelines: BTreeMap::new(),
            inboxes: BTreeMap::new(),
            unread: BTreeMap::new(),
            read: BTreeMap::new(),
        }
    }

    fn tick(&mut self) -> At {
        self.now += 10;
        At(self.now)
    }

    fn record(&mut self, device: usize, event: Event) {
        let at = self.tick();
        self.history.devices[device]
            .records
            .push(Record { at, event });
    }

    /// Appends an entry and delivers it to all members.
    fn append(&mut self, conversation: &str, sender: &str, id: Option<ClientMessageId>) -> Entry {
        let conversation = ConversationId::from(conversation);
        let timeline = self.timelines.entry(conversation.clone()).or_default();
        let seq = Seq(timeline.len() as u64 + 1);
        let entry = Entry {
            conversation: conversation.clone(),
            seq,
            message_id: 1000 + self.now,
            sender: sender.into(),
            client_message_id: id,
            sent_at_ms: i64::try_from(self.now).expect("small"),
            content: Fingerprint(7),
        };
        timeline.push(entry.clone());
        let members = self.history.conversations[&conversation].clone();
        for user in members {
            let inbox = self.inboxes.entry(user.clone()).or_default();
            inbox.push(entry.clone());
            let inbox_seq = InboxSeq(inbox.len() as u64);
            let counts = entry.is_countable() && entry.sender != user;
            let unread = self
                .unread
                .entry((user.clone(), conversation.clone()))
                .or_default();
            *unread += u32::from(counts);
            let unread = *unread;
            for device in 0..self.history.devices.len() {
                if self.history.devices[device].user == user {
                    self.deliver(device, inbox_seq, entry.clone(), unread);
                }
            }
        }
        entry
    }

    /// Bob gets every fourth entry by Resync and Sync, everybody else by push.
    fn deliver(&mut self, device: usize, inbox_seq: InboxSeq, entry: Entry, unread: u32) {
        let stream = StreamNumber(1);
        let after = InboxSeq(inbox_seq.0 - 1);
        if self.history.devices[device].user.as_str() == "bob" && inbox_seq.0.is_multiple_of(4) {
            self.record(
                device,
                Event::ResyncTold {
                    stream,
                    after,
                    to: inbox_seq,
                },
            );
            let entries = vec![(inbox_seq, entry)];
            self.record(device, Event::Synced { after, entries });
        } else {
            self.record(
                device,
                Event::Pushed {
                    stream,
                    inbox_seq,
                    entry,
                    unread,
                },
            );
        }
    }

    fn send(&mut self, device: usize, conversation: &str, number: u64) {
        let user = self.history.devices[device].user.clone();
        let id = ClientMessageId::from(format!("{user}-{conversation}-{number}"));
        self.record(
            device,
            Event::SendStarted {
                conversation: conversation.into(),
                client_message_id: id.clone(),
                stream: StreamNumber(1),
                content: Fingerprint(7),
            },
        );
        let entry = self.append(conversation, user.as_str(), Some(id.clone()));
        self.record(
            device,
            Event::SendAcked {
                conversation: conversation.into(),
                client_message_id: id,
                stream: StreamNumber(1),
                seq: entry.seq,
                message_id: entry.message_id,
                duplicate: false,
            },
        );
    }

    fn read(&mut self, device: usize, conversation: &str) {
        let started = self.tick();
        let conversation = ConversationId::from(conversation);
        let entries = self.timelines[&conversation].clone();
        let last_seq = Seq(entries.len() as u64);
        self.record(
            device,
            Event::Read {
                started,
                conversation,
                entries,
                last_seq,
            },
        );
    }

    fn mark_read(&mut self, device: usize, conversation: &str) {
        let user = self.history.devices[device].user.clone();
        let conversation = ConversationId::from(conversation);
        let asked = Seq(self.timelines[&conversation].len() as u64);
        let key = (user, conversation.clone());
        self.unread.insert(key.clone(), 0);
        self.read.insert(key, asked);
        let started = At(self.now + 10);
        self.record(
            device,
            Event::MarkReadStarted {
                conversation: conversation.clone(),
                asked,
            },
        );
        self.record(
            device,
            Event::MarkedRead {
                started,
                conversation,
                asked,
                read_seq: asked,
                unread: 0,
            },
        );
    }

    fn finish(mut self) -> History {
        let last = &mut self.history.last;
        for (conversation, entries) in &self.timelines {
            for via in ["node 1", "node 2"] {
                last.scans.push(Scan {
                    via: via.to_owned(),
                    conversation: conversation.clone(),
                    entries: entries.clone(),
                    last_seq: Seq(entries.len() as u64),
                });
            }
        }
        for (user, entries) in &self.inboxes {
            let dense =
                |(index, entry): (usize, &Entry)| (InboxSeq(index as u64 + 1), entry.clone());
            for via in ["node 1", "node 2"] {
                last.inboxes.push(InboxScan {
                    via: via.to_owned(),
                    user: user.clone(),
                    entries: entries.iter().enumerate().map(dense).collect(),
                    head: InboxSeq(entries.len() as u64),
                });
            }
        }
        let mut totals: BTreeMap<UserId, u64> = BTreeMap::new();
        for ((user, conversation), unread) in &self.unread {
            *totals.entry(user.clone()).or_default() += u64::from(*unread);
            last.summaries.push(Summary {
                user: user.clone(),
                conversation: conversation.clone(),
                unread: *unread,
                read_seq: self
                    .read
                    .get(&(user.clone(), conversation.clone()))
                    .copied()
                    .unwrap_or_default(),
            });
        }
        last.unread_totals = totals.into_iter().collect();
        self.history
    }
}

const ALICE_PHONE: usize = 0;
const ALICE_LAPTOP: usize = 1;
const BOB_PHONE: usize = 2;
const CAROL_PHONE: usize = 3;

fn good() -> History {
    let mut good = Good::new();
    good.append(GROUP, "alice", None);
    for number in 0..ROUNDS {
        good.send(ALICE_PHONE, GROUP, number);
        good.send(BOB_PHONE, GROUP, number);
        good.read(CAROL_PHONE, GROUP);
        good.send(ALICE_LAPTOP, DIRECT, number);
        good.send(BOB_PHONE, DIRECT, number);
        good.read(BOB_PHONE, DIRECT);
        if number == ROUNDS / 2 {
            good.mark_read(ALICE_PHONE, GROUP);
            good.mark_read(CAROL_PHONE, GROUP);
        }
    }
    good.finish()
}

/// The first event of a device for which `change` says that it changed it.
fn change_event(history: &mut History, device: usize, mut change: impl FnMut(&mut Event) -> bool) {
    let records = &mut history.devices[device].records;
    let changed = records.iter_mut().any(|record| change(&mut record.event));
    assert!(changed, "the good history has no such event");
}

/// The same from the end.
fn change_last_event(
    history: &mut History,
    device: usize,
    mut change: impl FnMut(&mut Event) -> bool,
) {
    let records = &mut history.devices[device].records;
    let changed = records.iter_mut().rev().any(|r| change(&mut r.event));
    assert!(changed, "the good history has no such event");
}

/// Changes every sight of every entry: final scans, inboxes and what devices saw.
fn change_everywhere(history: &mut History, change: impl Fn(&mut Entry)) {
    let last = &mut history.last;
    last.scans
        .iter_mut()
        .flat_map(|scan| &mut scan.entries)
        .for_each(&change);
    last.inboxes
        .iter_mut()
        .flat_map(|scan| &mut scan.entries)
        .for_each(|(_, entry)| change(entry));
    for record in history.devices.iter_mut().flat_map(|d| &mut d.records) {
        match &mut record.event {
            Event::Pushed { entry, .. } => change(entry),
            Event::Synced { entries, .. } => entries.iter_mut().for_each(|(_, e)| change(e)),
            Event::Read { entries, .. } => entries.iter_mut().for_each(&change),
            _ => {}
        }
    }
}

fn expect(name: &str, spoil: impl FnOnce(&mut History), is_it: impl Fn(&Violation) -> bool) {
    let mut history = good();
    spoil(&mut history);
    let report = check(&history);
    assert!(
        report.violations().iter().any(is_it),
        "{name}: not found, but: {report}"
    );
}

#[test]
fn a_good_history_is_clean() {
    let report = check(&good());
    assert!(report.is_clean(), "{report}");
    assert_eq!(report.acknowledged, 4 * ROUNDS as usize);
    assert_eq!(report.entries, 4 * ROUNDS as usize + 1);
    assert_eq!(report.reads, 2 * ROUNDS as usize);
    assert!(report.pushed > 0);
}

#[test]
fn finds_faults_of_timelines() {
    expect(
        "a conversation that nobody scanned",
        |history| {
            let last = &mut history.last;
            last.scans
                .retain(|scan| scan.conversation.as_str() != GROUP);
        },
        |v| matches!(v, Violation::NotScanned { .. }),
    );
    expect(
        "a gap of the timeline",
        |history| drop(history.last.scans[0].entries.remove(3)),
        |v| {
            matches!(
                v,
                Violation::SeqNotDense {
                    expected: Seq(4),
                    found: Seq(5),
                    ..
                }
            )
        },
    );
    expect(
        "a seq that is there twice",
        |history| {
            let entry = history.last.scans[0].entries[3].clone();
            history.last.scans[0].entries.insert(3, entry);
        },
        |v| {
            matches!(
                v,
                Violation::SeqNotDense {
                    expected: Seq(5),
                    found: Seq(4),
                    ..
                }
            )
        },
    );
    expect(
        "a wrong last_seq",
        |history| history.last.scans[0].last_seq = Seq(99),
        |v| matches!(v, Violation::LastSeqWrong { said: Seq(99), .. }),
    );
    expect(
        "a message that is stored twice",
        |history| {
            for scan in &mut history.last.scans {
                scan.entries[4].client_message_id = scan.entries[2].client_message_id.clone();
                scan.entries[4].sender = scan.entries[2].sender.clone();
            }
        },
        |v| {
            matches!(
                v,
                Violation::Duplicate {
                    first: Seq(3),
                    second: Seq(5),
                    ..
                }
            )
        },
    );
    expect(
        "message ids that go back",
        |history| {
            change_everywhere(history, |entry| {
                if entry.seq == Seq(4) {
                    entry.message_id = 1;
                }
            });
        },
        |v| matches!(v, Violation::GoesBack { seq: Seq(4), .. }),
    );
    expect(
        "another order on another node",
        |history| {
            let entries = &mut history.last.scans[1].entries;
            let (earlier, later) = (entries[2].clone(), entries[3].clone());
            (entries[2], entries[3]) = (later, earlier);
            (entries[2].seq, entries[3].seq) = (Seq(3), Seq(4));
        },
        |v| matches!(v, Violation::OrderDiffers { seq: Seq(3), .. }),
    );
    expect(
        "a node that has less",
        |history| {
            let scan = &mut history.last.scans[1];
            scan.entries.pop();
            scan.last_seq = Seq(scan.last_seq.0 - 1);
        },
        |v| matches!(v, Violation::OrderDiffers { .. }),
    );
}

#[test]
fn finds_faults_of_sends() {
    expect(
        "an acknowledged message that is lost",
        |history| {
            for scan in &mut history.last.scans {
                scan.entries.pop();
                scan.last_seq = Seq(scan.last_seq.0 - 1);
            }
        },
        |v| matches!(v, Violation::AcknowledgedLost { .. }),
    );
    expect(
        "an acknowledged message with another one in its place",
        |history| {
            change_everywhere(history, |entry| {
                if entry.seq == Seq(5) {
                    entry.client_message_id = Some("other".into());
                }
            });
        },
        |v| matches!(v, Violation::AcknowledgedLost { seq: Seq(5), .. }),
    );
    expect(
        "a message that nobody sent",
        |history| {
            change_everywhere(history, |entry| {
                if entry.seq == Seq(5) {
                    entry.client_message_id = Some("other".into());
                }
            });
        },
        |v| matches!(v, Violation::Invented { seq: Seq(5), .. }),
    );
    expect(
        "a message that was changed",
        |history| {
            change_everywhere(history, |entry| {
                if entry.seq == Seq(5) {
                    entry.content = Fingerprint(8);
                }
            });
        },
        |v| matches!(v, Violation::Altered { seq: Seq(5), .. }),
    );
    expect(
        "a retry that is answered differently",
        |history| {
            let records = &mut history.devices[ALICE_PHONE].records;
            let mut again = records
                .iter()
                .find(|record| matches!(record.event, Event::SendAcked { .. }))
                .cloned()
                .expect("there is one");
            if let Event::SendAcked { seq, .. } = &mut again.event {
                *seq = seq.next();
            }
            again.at = At(u64::MAX);
            records.push(again);
        },
        |v| matches!(v, Violation::AnswerChanged { .. }),
    );
    expect(
        "a valid message that is refused",
        |history| {
            change_event(history, ALICE_PHONE, |event| {
                let Event::SendAcked {
                    conversation,
                    client_message_id,
                    ..
                } = event
                else {
                    return false;
                };
                *event = Event::SendRefused {
                    conversation: conversation.clone(),
                    client_message_id: client_message_id.clone(),
                    reason: "NOT_A_MEMBER".to_owned(),
                };
                true
            });
        },
        |v| matches!(v, Violation::Refused { .. }),
    );
    expect(
        "messages of one stream in another order",
        swap_two_sends,
        |v| matches!(v, Violation::SenderOrder { .. }),
    );
    expect(
        "an answer before the question",
        |history| {
            let records = &mut history.devices[ALICE_PHONE].records;
            let acked = |record: &Record| matches!(record.event, Event::SendAcked { .. });
            let index = records.iter().position(acked).expect("there is one");
            let ack = records.remove(index);
            records.insert(0, ack);
        },
        |v| matches!(v, Violation::AnsweredNothing { .. }),
    );
}

/// Alice's second send into the group left before her first.
fn swap_two_sends(history: &mut History) {
    let records = &mut history.devices[ALICE_PHONE].records;
    let starts: Vec<usize> = (0..records.len())
        .filter(|index| matches!(records[*index].event, Event::SendStarted { .. }))
        .collect();
    let second = records.remove(starts[1]);
    records.insert(starts[0], second);
}

#[test]
fn order_of_retried_messages_is_free() {
    let mut history = good();
    swap_two_sends(&mut history);
    let records = &mut history.devices[ALICE_PHONE].records;
    for record in records.clone() {
        if matches!(record.event, Event::SendStarted { .. }) {
            records.push(record);
        }
    }
    let report = check(&history);
    assert!(report.is_clean(), "{report}");
}

#[test]
fn finds_faults_of_reads() {
    let shorten = |event: &mut Event, by: u64| {
        if let Event::Read {
            entries, last_seq, ..
        } = event
        {
            *last_seq = Seq(last_seq.0 - by);
            entries.truncate(usize::try_from(last_seq.0).expect("small"));
            return true;
        }
        false
    };
    expect(
        "a page with a gap",
        |history| {
            change_last_event(history, CAROL_PHONE, |event| {
                let Event::Read { entries, .. } = event else {
                    return false;
                };
                entries.remove(2);
                true
            });
        },
        |v| {
            matches!(
                v,
                Violation::PageNotDense {
                    before: Seq(2),
                    found: Seq(4),
                    ..
                }
            )
        },
    );
    expect(
        "a page that shows something else",
        |history| {
            change_last_event(history, CAROL_PHONE, |event| {
                let Event::Read { entries, .. } = event else {
                    return false;
                };
                entries[2].message_id += 1;
                true
            });
        },
        |v| matches!(v, Violation::OrderDiffers { seq: Seq(3), .. }),
    );
    expect(
        "a read that goes back",
        |history| {
            // Nobody else knows: carol read once more after everything.
            let records = &mut history.devices[CAROL_PHONE].records;
            let ahead = records
                .iter()
                .rev()
                .find(|record| matches!(record.event, Event::Read { .. }))
                .cloned()
                .expect("there is one");
            for (offset, last) in [(100, Seq(1000)), (200, Seq(999))] {
                let mut again = ahead.clone();
                again.at = At(ahead.at.0 + offset + 5);
                if let Event::Read {
                    started, last_seq, ..
                } = &mut again.event
                {
                    (*started, *last_seq) = (At(ahead.at.0 + offset), last);
                }
                records.push(again);
            }
        },
        |v| {
            matches!(
                v,
                Violation::ReadWentBack {
                    known: Seq(1000),
                    last_seq: Seq(999),
                    ..
                }
            )
        },
    );
    expect(
        "an own write that a read does not show",
        |history| {
            // Deliveries would tell everybody; here only the acknowledgement is known.
            for device in &mut history.devices {
                device.records.retain(|record| {
                    !matches!(record.event, Event::Pushed { .. } | Event::Synced { .. })
                });
            }
            change_last_event(history, BOB_PHONE, |event| shorten(event, 1));
        },
        |v| matches!(v, Violation::OwnWriteMissing { .. }),
    );
    expect(
        "a read behind what somebody else knew",
        |history| change_last_event(history, CAROL_PHONE, |event| shorten(event, 2)),
        |v| matches!(v, Violation::StaleRead { .. }),
    );
}

#[test]
fn finds_faults_of_inboxes() {
    let scan = |history: &History, user: &str, nth: usize| {
        history
            .last
            .inboxes
            .iter()
            .enumerate()
            .filter(|(_, scan)| scan.user.as_str() == user)
            .map(|(index, _)| index)
            .nth(nth)
            .expect("scanned twice")
    };
    expect(
        "an inbox that nobody scanned",
        |history| {
            let last = &mut history.last;
            last.inboxes.retain(|scan| scan.user.as_str() != "bob");
        },
        |v| matches!(v, Violation::InboxNotScanned { .. }),
    );
    expect(
        "a gap of an inbox",
        |history| {
            let index = scan(history, "bob", 0);
            history.last.inboxes[index].entries.remove(4);
        },
        |v| {
            matches!(
                v,
                Violation::InboxNotDense {
                    expected: InboxSeq(5),
                    ..
                }
            )
        },
    );
    expect(
        "a head beyond the last entry",
        |history| {
            let index = scan(history, "bob", 0);
            history.last.inboxes[index].head = InboxSeq(99);
        },
        |v| {
            matches!(
                v,
                Violation::InboxNotDense {
                    found: InboxSeq(99),
                    ..
                }
            )
        },
    );
    expect(
        "two nodes that show different inboxes",
        |history| {
            let index = scan(history, "bob", 1);
            let entries = &mut history.last.inboxes[index].entries;
            let entry = entries[4].1.clone();
            entries[4].1 = entries[5].1.clone();
            entries[5].1 = entry;
        },
        |v| {
            matches!(
                v,
                Violation::InboxDiffers {
                    inbox_seq: InboxSeq(5),
                    ..
                }
            )
        },
    );
    expect(
        "an entry of somebody else's conversation",
        |history| {
            let direct = history.last.scans[0].entries[0].clone();
            assert_eq!(direct.conversation.as_str(), DIRECT);
            let index = scan(history, "carol", 0);
            history.last.inboxes[index].entries[3].1 = direct;
        },
        |v| {
            matches!(
                v,
                Violation::InboxForeign {
                    inbox_seq: InboxSeq(4),
                    ..
                }
            )
        },
    );
    for (name, from, to) in [("delivered twice", 3, 4), ("left out", 4, 3)] {
        expect(
            name,
            |history| {
                let index = scan(history, "carol", 0);
                let entries = &mut history.last.inboxes[index].entries;
                entries[to].1 = entries[from].1.clone();
            },
            |v| matches!(v, Violation::InboxOrder { .. }),
        );
    }
    expect(
        "the last entry never reached the inbox",
        |history| {
            for nth in [0, 1] {
                let index = scan(history, "carol", nth);
                let scan = &mut history.last.inboxes[index];
                scan.entries.pop();
                scan.head = InboxSeq(scan.head.0 - 1);
            }
        },
        |v| matches!(v, Violation::InboxMissing { .. }),
    );
}

#[test]
fn finds_faults_of_deliveries() {
    let is_push = |event: &Event| {
        matches!(
            event,
            Event::Pushed {
                inbox_seq: InboxSeq(5),
                ..
            }
        )
    };
    expect(
        "a push that is left out without Resync",
        |history| {
            let records = &mut history.devices[CAROL_PHONE].records;
            records.retain(|record| !is_push(&record.event));
        },
        |v| {
            matches!(
                v,
                Violation::PushNotDense {
                    expected: InboxSeq(5),
                    found: InboxSeq(6),
                    ..
                }
            )
        },
    );
    expect(
        "a push that comes twice",
        |history| {
            let records = &mut history.devices[CAROL_PHONE].records;
            let index = records
                .iter()
                .position(|r| is_push(&r.event))
                .expect("there");
            records.insert(index, records[index].clone());
        },
        |v| {
            matches!(
                v,
                Violation::PushNotDense {
                    expected: InboxSeq(6),
                    found: InboxSeq(5),
                    ..
                }
            )
        },
    );
    expect(
        "the last push never came",
        |history| {
            let records = &mut history.devices[CAROL_PHONE].records;
            let last = records
                .iter()
                .rposition(|record| matches!(record.event, Event::Pushed { .. }))
                .expect("there is one");
            records.remove(last);
        },
        |v| matches!(v, Violation::NotDelivered { .. }),
    );
    expect(
        "a Resync that leaves a gap before it",
        |history| {
            change_event(history, BOB_PHONE, |event| {
                let Event::ResyncTold { after, .. } = event else {
                    return false;
                };
                *after = after.next();
                true
            });
        },
        |v| matches!(v, Violation::PushNotDense { .. }),
    );
    expect(
        "a push of something else",
        |history| {
            change_event(history, CAROL_PHONE, |event| {
                let Event::Pushed { entry, .. } = event else {
                    return false;
                };
                entry.message_id += 1;
                true
            });
        },
        |v| matches!(v, Violation::InboxDiffers { .. }),
    );
    expect(
        "something that the device itself found",
        |history| {
            history.devices[0].records.push(Record {
                at: At(u64::MAX),
                event: Event::Anomaly {
                    what: "an answer to nothing".to_owned(),
                },
            });
        },
        |v| matches!(v, Violation::Anomaly { .. }),
    );
}

#[test]
fn finds_faults_of_unread() {
    expect(
        "one unread too many",
        |history| history.last.summaries[0].unread += 1,
        |v| matches!(v, Violation::UnreadWrong { .. }),
    );
    expect(
        "a total that is not the sum",
        |history| history.last.unread_totals[0].1 += 1,
        |v| matches!(v, Violation::UnreadTotalWrong { .. }),
    );
    expect(
        "a row that is missing",
        |history| drop(history.last.summaries.remove(0)),
        |v| matches!(v, Violation::SummaryMissing { .. }),
    );
    expect(
        "a read position that was lost",
        |history| {
            for summary in &mut history.last.summaries {
                summary.read_seq = Seq(0);
            }
        },
        |v| matches!(v, Violation::ReadPositionWrong { found: Seq(0), .. }),
    );
    expect(
        "a MarkRead that is answered with an older position",
        |history| {
            let records = &mut history.devices[CAROL_PHONE].records;
            let mut again = records
                .iter()
                .find(|record| matches!(record.event, Event::MarkedRead { .. }))
                .cloned()
                .expect("there is one");
            again.at = At(u64::MAX);
            if let Event::MarkedRead {
                started, read_seq, ..
            } = &mut again.event
            {
                *started = At(u64::MAX - 1);
                *read_seq = Seq(read_seq.0 - 1);
            }
            records.push(again);
        },
        |v| matches!(v, Violation::ReadPositionWrong { .. }),
    );
    expect(
        "a pushed count that cannot be",
        |history| {
            change_event(history, CAROL_PHONE, |event| {
                let Event::Pushed { unread, .. } = event else {
                    return false;
                };
                *unread += 1;
                true
            });
        },
        |v| matches!(v, Violation::PushedUnreadWrong { .. }),
    );
}
