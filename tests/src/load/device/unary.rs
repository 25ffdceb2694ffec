//! A device's unary calls: when they start and what becomes of them.

use rand::Rng as _;
use tokio::time::Instant;
use tonic::{Code, Status};

use super::{CALLS_MAX, Device, Go, RETRY_AFTER};
use crate::history::{Entry, Event, InboxSeq};
use crate::load::Phase;
use crate::load::calls::{self, Done};
use crate::rpc::Chat;

impl Device {
    pub(super) fn any_node(&mut self) -> Chat {
        let which = self.parts.rng.random_range(0..self.parts.nodes.len());
        self.parts.nodes[which].clone()
    }

    pub(super) fn start_sync(&mut self) {
        if self.syncing || !self.inbox.has_gap() || Instant::now() < self.sync_after {
            return;
        }
        self.syncing = true;
        let chat = self.any_node();
        let user = self.parts.user.to_string();
        let (after, known) = (self.inbox.cursor(), self.inbox.wanted());
        self.calls.spawn(calls::sync(chat, user, after, known));
    }

    pub(super) fn start_calls(&mut self) -> Go {
        if self.calls.len() >= CALLS_MAX || self.phase() != Phase::Sending {
            return Go::On;
        }
        let chat = self.any_node();
        let user = self.parts.user.to_string();
        let which = self
            .parts
            .rng
            .random_range(0..self.parts.conversations.len());
        let conversation = self.parts.conversations[which].clone();
        let started = self.parts.clock.now();
        let exists = self.delivered_upto.contains_key(&conversation);
        match self.parts.rng.random_range(0..4) {
            0 => {
                let read = calls::read(chat, user, started, conversation, exists, None);
                self.calls.spawn(read);
            }
            1 => {
                let delivered = self.delivered_upto.get(&conversation).copied();
                if let Some(asked) = delivered {
                    self.record(Event::MarkReadStarted {
                        conversation: conversation.clone(),
                        asked,
                    });
                    self.calls
                        .spawn(calls::mark_read(chat, user, started, conversation, asked));
                }
            }
            _ => {
                let upto = self.read_upto.get(&conversation).copied();
                let from = Some(upto.unwrap_or_default().next());
                let read = calls::read(chat, user, started, conversation, exists, from);
                self.calls.spawn(read);
            }
        }
        Go::On
    }

    pub(super) fn on_done(&mut self, done: Done) -> Go {
        match done {
            Done::Read {
                started,
                conversation,
                exists,
                outcome,
            } => match outcome {
                Ok((entries, last_seq)) => {
                    if let Some(last) = entries.last() {
                        self.read_upto.insert(conversation.clone(), last.seq);
                    }
                    self.record(Event::Read {
                        started,
                        conversation,
                        entries,
                        last_seq,
                    });
                }
                // A direct conversation that nobody has written to yet.
                Err(status) if status.code() == Code::NotFound => {
                    if exists {
                        self.anomaly(format!("a delivered conversation is not there: {status}"));
                    }
                }
                Err(status) => {
                    let call = format!("GetMessages of {conversation}");
                    self.on_failed_call(&call, &status);
                }
            },
            Done::Synced {
                after,
                known,
                outcome,
            } => self.on_synced(after, known, outcome),
            Done::Marked {
                started,
                conversation,
                asked,
                outcome,
            } => match outcome {
                Ok((read_seq, unread)) => self.record(Event::MarkedRead {
                    started,
                    conversation,
                    asked,
                    read_seq,
                    unread,
                }),
                Err(status) => self.on_failed_call("MarkRead", &status),
            },
        }
        Go::On
    }

    pub(super) fn on_synced(
        &mut self,
        after: InboxSeq,
        known: InboxSeq,
        outcome: Result<(Vec<(InboxSeq, Entry)>, InboxSeq), Status>,
    ) {
        self.syncing = false;
        match outcome {
            Ok((entries, head)) => {
                if head < known {
                    self.anomaly(format!(
                        "Sync says {head} is the end, but {known} was there"
                    ));
                }
                if entries.is_empty() {
                    self.sync_after = Instant::now() + RETRY_AFTER;
                }
                for (inbox_seq, entry) in &entries {
                    self.accept(*inbox_seq, entry.clone());
                }
                self.record(Event::Synced { after, entries });
            }
            Err(status) => {
                self.sync_after = Instant::now() + RETRY_AFTER;
                self.on_failed_call("Sync", &status);
            }
        }
    }

    pub(super) fn on_failed_call(&mut self, call: &str, status: &Status) {
        if !calls::is_transient(status.code()) {
            self.anomaly(format!("{call} was refused: {status}"));
        }
    }
}
