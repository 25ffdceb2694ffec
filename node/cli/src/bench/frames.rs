//! Frames of `Chat.Connect` as the load generator needs them: lean mirrors of the
//! generated types, with ids and contents as slices, and gRPC's length prefix.
//!
//! A mirror leaves out what the generator does not look at; prost skips those fields.

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;

/// gRPC's message prefix: a compression flag and a length.
const PREFIX_BYTES: usize = 5;
/// The largest message that is taken from a server; its own limits are far below.
const MESSAGE_BYTES_MAX: usize = 4 << 20;

/// Mirror of `v1::ClientFrame`.
#[derive(Clone, PartialEq, Message)]
pub struct ClientFrame {
    #[prost(oneof = "Say", tags = "1, 2, 3, 4")]
    pub say: Option<Say>,
}

/// Mirror of `v1::client_frame::Frame`.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Say {
    #[prost(message, tag = "1")]
    Hello(Hello),
    #[prost(message, tag = "2")]
    Send(Send),
    #[prost(message, tag = "3")]
    CursorAck(CursorAck),
    #[prost(message, tag = "4")]
    Heartbeat(Heartbeat),
}

#[derive(Clone, PartialEq, Message)]
pub struct Hello {
    #[prost(string, tag = "1")]
    pub user_id: String,
    #[prost(string, tag = "2")]
    pub device_id: String,
    #[prost(string, tag = "3")]
    pub platform: String,
}

/// Mirror of `v1::Send`; `content` is the encoded `v1::Content`.
#[derive(Clone, PartialEq, Message)]
pub struct Send {
    #[prost(uint64, tag = "1")]
    pub request_id: u64,
    #[prost(bytes = "bytes", tag = "2")]
    pub conversation_id: Bytes,
    #[prost(string, tag = "3")]
    pub client_message_id: String,
    #[prost(message, optional, tag = "4")]
    pub content: Option<Content>,
}

#[derive(Clone, PartialEq, Message)]
pub struct CursorAck {
    #[prost(uint64, tag = "1")]
    pub inbox_seq: u64,
}

#[derive(Clone, PartialEq, Message)]
pub struct Heartbeat {
    #[prost(uint64, tag = "1")]
    pub nonce: u64,
}

/// Mirror of `v1::Content`, of which only the custom kind is used.
#[derive(Clone, PartialEq, Message)]
pub struct Content {
    #[prost(message, optional, tag = "2")]
    pub custom: Option<Custom>,
}

/// Mirror of `v1::Custom`.
#[derive(Clone, PartialEq, Message)]
pub struct Custom {
    #[prost(bytes = "bytes", tag = "1")]
    pub kind: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    pub data: Bytes,
}

/// Mirror of `v1::ServerFrame`.
#[derive(Clone, PartialEq, Message)]
pub struct ServerFrame {
    #[prost(oneof = "Told", tags = "1, 2, 3, 4, 5, 6, 7")]
    pub told: Option<Told>,
}

/// Mirror of `v1::server_frame::Frame`.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Told {
    #[prost(message, tag = "1")]
    Welcome(Welcome),
    #[prost(message, tag = "2")]
    Sent(Sent),
    #[prost(message, tag = "3")]
    Delivery(Delivery),
    #[prost(message, tag = "4")]
    HeartbeatAck(HeartbeatAck),
    #[prost(message, tag = "5")]
    Resync(Resync),
    #[prost(message, tag = "6")]
    Kick(Kick),
    #[prost(message, tag = "7")]
    Error(RequestError),
}

#[derive(Clone, Copy, PartialEq, Message)]
pub struct Welcome {
    #[prost(uint32, tag = "3")]
    pub heartbeat_interval_ms: u32,
    #[prost(uint64, tag = "6")]
    pub inbox_head: u64,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub struct Sent {
    #[prost(uint64, tag = "1")]
    pub request_id: u64,
}

/// Mirror of `v1::InboxEntry`.
#[derive(Clone, PartialEq, Message)]
pub struct Delivery {
    #[prost(uint64, tag = "1")]
    pub inbox_seq: u64,
    #[prost(message, optional, tag = "2")]
    pub message: Option<Delivered>,
}

/// Mirror of `v1::Message`.
#[derive(Clone, PartialEq, Message)]
pub struct Delivered {
    #[prost(message, optional, tag = "7")]
    pub content: Option<Content>,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub struct HeartbeatAck {}

#[derive(Clone, Copy, PartialEq, Message)]
pub struct Resync {
    #[prost(uint64, tag = "1")]
    pub after_inbox_seq: u64,
    #[prost(uint64, tag = "2")]
    pub to_inbox_seq: u64,
}

#[derive(Clone, PartialEq, Message)]
pub struct Kick {
    #[prost(int32, tag = "1")]
    pub reason: i32,
    #[prost(string, tag = "2")]
    pub message: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct RequestError {
    #[prost(uint64, tag = "1")]
    pub request_id: u64,
    #[prost(string, tag = "3")]
    pub reason: String,
    #[prost(string, tag = "4")]
    pub message: String,
}

/// A frame with its gRPC prefix.
pub fn encode(say: Say) -> Bytes {
    let frame = ClientFrame { say: Some(say) };
    let length = frame.encoded_len();
    let mut out = BytesMut::with_capacity(PREFIX_BYTES + length);
    out.put_u8(0);
    out.put_u32(u32::try_from(length).expect("client frames are short"));
    frame.encode_raw(&mut out);
    out.freeze()
}

/// Cuts gRPC messages out of a stream of chunks.
#[derive(Debug, Default)]
pub struct Unframer {
    /// What has come and was not taken. A message that is in one chunk is never copied.
    ready: Bytes,
    /// The beginning of a message whose rest has not come.
    partial: BytesMut,
}

/// The bytes of a stream are not gRPC messages.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "the server sent a message of {length} bytes with flag {flag}, at most {MESSAGE_BYTES_MAX} uncompressed bytes are expected"
)]
pub struct BadMessage {
    flag: u8,
    length: usize,
}

impl Unframer {
    /// Takes the next chunk. Only to be called after `next` has answered `None`.
    pub fn push(&mut self, chunk: Bytes) {
        debug_assert!(self.ready.is_empty(), "messages were left");
        if self.partial.is_empty() {
            self.ready = chunk;
        } else {
            self.partial.extend_from_slice(&chunk);
            self.ready = self.partial.split().freeze();
        }
    }

    /// The next whole message.
    pub fn next(&mut self) -> Result<Option<Bytes>, BadMessage> {
        if let Some((prefix, rest)) = self.ready.split_first_chunk::<PREFIX_BYTES>() {
            let [flag, length @ ..] = *prefix;
            let length = u32::from_be_bytes(length) as usize;
            if flag != 0 || length > MESSAGE_BYTES_MAX {
                return Err(BadMessage { flag, length });
            }
            if rest.len() >= length {
                let mut message = self.ready.split_to(PREFIX_BYTES + length);
                return Ok(Some(message.split_off(PREFIX_BYTES)));
            }
        }
        self.partial.extend_from_slice(&self.ready);
        self.ready = Bytes::new();
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use carillon_proto::v1;

    #[test]
    fn mirrors_are_the_wire_contract() {
        let custom = Custom {
            kind: Bytes::from_static(b"bench"),
            data: Bytes::from_static(b"\x01\x02"),
        };
        let send = Say::Send(Send {
            request_id: 7,
            conversation_id: Bytes::from_static(b"direct:a:b"),
            client_message_id: "m".to_owned(),
            content: Some(Content {
                custom: Some(custom.clone()),
            }),
        });
        let frame = encode(send).split_off(PREFIX_BYTES);
        let Some(v1::client_frame::Frame::Send(read)) =
            v1::ClientFrame::decode(frame).expect("decoded").frame
        else {
            panic!("not a send");
        };
        assert_eq!(read.conversation_id, "direct:a:b");
        let content = read.content;
        let entry = v1::InboxEntry {
            inbox_seq: 9,
            message: Some(v1::Message {
                seq: 3,
                sender_id: "a".to_owned(),
                content,
                ..v1::Message::default()
            }),
            unread: 4,
        };
        let frame = v1::ServerFrame {
            frame: Some(v1::server_frame::Frame::Delivery(entry)),
        };
        let told = ServerFrame::decode(frame.encode_to_vec().as_slice()).expect("decoded");
        let Some(Told::Delivery(delivery)) = told.told else {
            panic!("not a delivery");
        };
        assert_eq!(delivery.inbox_seq, 9);
        let got = delivery.message.and_then(|m| m.content?.custom);
        assert_eq!(got, Some(custom));
    }

    #[test]
    fn messages_are_cut_at_any_chunk_size() {
        let messages: Vec<Bytes> = [0_usize, 1, 5, 300]
            .map(|n| Bytes::from(vec![n as u8; n]))
            .to_vec();
        let mut wire = BytesMut::new();
        for message in &messages {
            wire.put_u8(0);
            wire.put_u32(message.len() as u32);
            wire.extend_from_slice(message);
        }
        for size in 1..wire.len() {
            let mut unframer = Unframer::default();
            let mut got = Vec::new();
            for chunk in wire.chunks(size) {
                unframer.push(Bytes::copy_from_slice(chunk));
                while let Some(message) = unframer.next().expect("well-formed") {
                    got.push(message);
                }
            }
            assert_eq!(got, messages, "chunks of {size}");
        }
    }

    #[test]
    fn a_compressed_or_huge_message_is_refused() {
        let mut unframer = Unframer::default();
        unframer.push(Bytes::from_static(&[1, 0, 0, 0, 0]));
        assert!(unframer.next().is_err());
        let mut unframer = Unframer::default();
        unframer.push(Bytes::from_static(&[0, 255, 0, 0, 0]));
        assert!(unframer.next().is_err());
    }
}
