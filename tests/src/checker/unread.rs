//! Read positions and unread counts.
//!
//! In the end unread is exactly the number of countable messages of others after the read
//! position. During the run a MarkRead may be on its way, so that only bounds hold:
//! acknowledged marks ≤ read position ≤ asked marks.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::{Report, Timelines, Violation};
use crate::history::{At, ConversationId, Entry, Event, History, Seq, UserId};

/// For one member of one conversation: how many countable messages of others there are up
/// to each seq.
struct Counts(Vec<u64>);

impl Counts {
    fn of(timeline: &[Entry], user: &UserId) -> Self {
        let mut counts = Vec::with_capacity(timeline.len() + 1);
        let mut count = 0;
        counts.push(count);
        for entry in timeline {
            count += u64::from(entry.is_countable() && entry.sender != *user);
            counts.push(count);
        }
        Self(counts)
    }

    fn upto(&self, seq: Seq) -> u64 {
        let index = usize::try_from(seq.0).unwrap_or(usize::MAX);
        self.0[index.min(self.0.len() - 1)]
    }

    /// In (after, to].
    fn between(&self, after: Seq, to: Seq) -> u64 {
        self.upto(to).saturating_sub(self.upto(after))
    }
}

/// Marks of one user in one conversation, by time.
#[derive(Default)]
struct Marks {
    /// (when it left, what was asked).
    asked: Vec<(At, Seq)>,
    /// (when it left, when it was answered, position in the answer, unread in the answer).
    answered: Vec<(At, At, Seq, u32)>,
    /// (when it arrived, seq, unread).
    pushed: Vec<(At, Seq, u32)>,
}

/// Checks read positions and unread counts.
pub(super) fn check(history: &History, timelines: &Timelines<'_>, report: &mut Report) {
    let mut marks = collect(history);
    let mut unread_totals: BTreeMap<&UserId, u64> = BTreeMap::new();
    let mut summarised: HashSet<(&UserId, &ConversationId)> = HashSet::new();
    for summary in &history.last.summaries {
        let key = (&summary.user, &summary.conversation);
        summarised.insert(key);
        let timeline = timelines
            .get(&summary.conversation)
            .copied()
            .unwrap_or_default();
        let counts = Counts::of(timeline, &summary.user);
        let mine = marks.remove(&key).unwrap_or_default();
        check_marks(key, &mine, &counts, Seq(timeline.len() as u64), report);

        let least = mine.answered.iter().map(|mark| mark.2).max();
        let most = mine.asked.iter().map(|mark| mark.1).max();
        let (least, most) = (least.unwrap_or_default(), most.unwrap_or_default());
        if summary.read_seq < least || summary.read_seq > most {
            report.add(Violation::ReadPositionWrong {
                conversation: summary.conversation.clone(),
                user: summary.user.clone(),
                least,
                most,
                found: summary.read_seq,
            });
        }
        let expected = counts.between(summary.read_seq, Seq(timeline.len() as u64));
        *unread_totals.entry(&summary.user).or_default() += expected;
        if u64::from(summary.unread) != expected {
            report.add(Violation::UnreadWrong {
                conversation: summary.conversation.clone(),
                user: summary.user.clone(),
                expected,
                actual: summary.unread.into(),
            });
        }
    }
    for (user, actual) in &history.last.unread_totals {
        let expected = unread_totals.get(user).copied().unwrap_or_default();
        if *actual != expected {
            report.add(Violation::UnreadTotalWrong {
                user: user.clone(),
                expected,
                actual: *actual,
            });
        }
    }
    check_summarised(history, timelines, &summarised, report);
}

fn check_summarised(
    history: &History,
    timelines: &Timelines<'_>,
    summarised: &HashSet<(&UserId, &ConversationId)>,
    report: &mut Report,
) {
    for (conversation, members) in &history.conversations {
        if timelines.get(conversation).is_none_or(|t| t.is_empty()) {
            continue;
        }
        for user in members {
            if !summarised.contains(&(user, conversation)) {
                report.add(Violation::SummaryMissing {
                    conversation: conversation.clone(),
                    user: user.clone(),
                });
            }
        }
    }
}

fn collect(history: &History) -> HashMap<(&UserId, &ConversationId), Marks> {
    let mut marks: HashMap<(&UserId, &ConversationId), Marks> = HashMap::new();
    for device in &history.devices {
        for record in &device.records {
            match &record.event {
                Event::MarkReadStarted {
                    conversation,
                    asked,
                } => {
                    let mine = marks.entry((&device.user, conversation)).or_default();
                    mine.asked.push((record.at, *asked));
                }
                Event::MarkedRead {
                    started,
                    conversation,
                    read_seq,
                    unread,
                    ..
                } => {
                    let mine = marks.entry((&device.user, conversation)).or_default();
                    mine.answered
                        .push((*started, record.at, *read_seq, *unread));
                }
                Event::Pushed { entry, unread, .. } => {
                    let mine = marks
                        .entry((&device.user, &entry.conversation))
                        .or_default();
                    mine.pushed.push((record.at, entry.seq, *unread));
                }
                _ => {}
            }
        }
    }
    for mine in marks.values_mut() {
        // Several devices of one user: bring their events into the order of time.
        mine.asked.sort();
        mine.answered.sort();
        mine.pushed.sort();
    }
    marks
}

fn check_marks(
    (user, conversation): (&UserId, &ConversationId),
    marks: &Marks,
    counts: &Counts,
    last_seq: Seq,
    report: &mut Report,
) {
    // An answer is never behind one that was there before its question.
    let mut by_answer: Vec<(At, Seq)> = marks.answered.iter().map(|m| (m.1, m.2)).collect();
    by_answer.sort();
    let mut earlier = by_answer.iter().peekable();
    let mut least = Seq(0);
    for (started, _, read_seq, unread) in &marks.answered {
        while let Some((_, seq)) = earlier.next_if(|(at, _)| at < started) {
            least = least.max(*seq);
        }
        if *read_seq < least || *read_seq > last_seq {
            report.add(Violation::ReadPositionWrong {
                conversation: conversation.clone(),
                user: user.clone(),
                least,
                most: last_seq,
                found: *read_seq,
            });
        }
        let most = counts.between(*read_seq, last_seq);
        if u64::from(*unread) > most {
            report.add(Violation::UnreadWrong {
                conversation: conversation.clone(),
                user: user.clone(),
                expected: most,
                actual: (*unread).into(),
            });
        }
    }
    // The count pushed with an entry lies between "everything asked is read" and "nothing".
    let mut asked = marks.asked.iter().peekable();
    let mut read_most = Seq(0);
    for (at, seq, unread) in &marks.pushed {
        while let Some((_, mark)) = asked.next_if(|(left, _)| left < at) {
            read_most = read_most.max(*mark);
        }
        let least = counts.between(read_most, *seq);
        let most = counts.upto(*seq);
        if !(least..=most).contains(&u64::from(*unread)) {
            report.add(Violation::PushedUnreadWrong {
                conversation: conversation.clone(),
                user: user.clone(),
                seq: *seq,
                least,
                most,
                actual: (*unread).into(),
            });
        }
    }
}
