//! What the server says on a device's stream.

use carillon_proto::v1::{self, server_frame};

use tokio::time::Instant;

use super::{Device, Go};
use crate::history::{Entry, Event, InboxSeq};
use crate::load::calls;

impl Device {
    pub(super) fn on_frame(&mut self, frame: v1::ServerFrame) -> Go {
        self.heard = Instant::now();
        match frame.frame {
            Some(server_frame::Frame::Sent(sent)) => self.on_sent(&sent),
            Some(server_frame::Frame::Error(error)) => self.on_error(error),
            Some(server_frame::Frame::Delivery(delivery)) => self.on_delivery(&delivery),
            Some(server_frame::Frame::Resync(resync)) => {
                let (after, to) = (
                    InboxSeq(resync.after_inbox_seq),
                    InboxSeq(resync.to_inbox_seq),
                );
                let stream = self.stream;
                self.record(Event::ResyncTold { stream, after, to });
                self.streamed = to;
                self.inbox.want(to);
            }
            Some(server_frame::Frame::HeartbeatAck(ack)) => {
                let head = InboxSeq(ack.inbox_head);
                if head > self.streamed {
                    self.anomaly(format!(
                        "the stream says that it gave {head}, but it gave only {}",
                        self.streamed
                    ));
                    self.inbox.want(head);
                }
            }
            Some(server_frame::Frame::Kick(kick)) => {
                if kick.reason() != v1::kick::Reason::Draining {
                    self.anomaly(format!("kicked: {kick:?}"));
                }
                return Go::Away;
            }
            Some(server_frame::Frame::Welcome(_)) => {
                self.anomaly("welcomed twice on one stream".to_owned());
            }
            None => self.anomaly("a frame without content".to_owned()),
        }
        Go::On
    }

    pub(super) fn on_delivery(&mut self, delivery: &v1::InboxEntry) {
        let Some((inbox_seq, entry)) = calls::inbox_entry(delivery) else {
            self.anomaly(format!(
                "a delivery without a message at {}",
                delivery.inbox_seq
            ));
            return;
        };
        self.record(Event::Pushed {
            stream: self.stream,
            inbox_seq,
            entry: entry.clone(),
            unread: delivery.unread,
        });
        self.streamed = inbox_seq;
        self.accept(inbox_seq, entry);
    }

    pub(super) fn accept(&mut self, inbox_seq: InboxSeq, entry: Entry) {
        for entry in self.inbox.accept(inbox_seq, entry) {
            self.delivered_upto.insert(entry.conversation, entry.seq);
        }
    }
}
