//! Frames of `Connect` on the wire: how client frames are read and server frames written.
//!
//! Client frames are decoded into mirrors of the generated types in which ids and content
//! are slices of the receive buffer; the ids' character set implies UTF-8, and
//! [`super::content`] checks the content. Server frames are written with their gRPC
//! prefix into the session's buffer.

use bytes::{BufMut, Bytes, BytesMut};
use carillon_proto::v1;
use prost::Message;
use prost::encoding::{encode_varint, encoded_len_varint};
use tonic::Status;
use tonic::codec::{BufferSettings, DecodeBuf, Decoder};

/// Bytes that a stream's receive buffer begins with; it grows when needed.
const RECEIVE_BUFFER_BYTES: usize = 512;
/// Only the sending side of tonic's codec reads this.
const YIELD_THRESHOLD_BYTES: usize = 32 << 10;
/// The gRPC message prefix: a flag and a length.
const PREFIX_BYTES: usize = 5;
/// Protobuf keys of length-delimited and varint fields below 16.
const FRAME_DELIVERY: u8 = 3 << 3 | 2;
const ENTRY_INBOX_SEQ: u8 = 1 << 3;
const ENTRY_MESSAGE: u8 = 2 << 3 | 2;
const ENTRY_UNREAD: u8 = 3 << 3;

/// Mirror of `v1::ClientFrame`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct ClientFrame {
    #[prost(oneof = "Frame", tags = "1, 2, 3, 4")]
    pub frame: Option<Frame>,
}

/// Mirror of `v1::client_frame::Frame`.
#[derive(Clone, PartialEq, prost::Oneof)]
pub(super) enum Frame {
    #[prost(message, tag = "1")]
    Hello(Hello),
    #[prost(message, tag = "2")]
    Send(Send),
    #[prost(message, tag = "3")]
    CursorAck(v1::CursorAck),
    #[prost(message, tag = "4")]
    Heartbeat(v1::Heartbeat),
}

/// Mirror of `v1::Hello`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Hello {
    #[prost(bytes = "bytes", tag = "1")]
    pub user_id: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    pub device_id: Bytes,
    #[prost(bytes = "bytes", tag = "3")]
    pub platform: Bytes,
    #[prost(uint64, optional, tag = "4")]
    pub inbox_cursor: Option<u64>,
}

/// Mirror of `v1::Send`; `content` is the encoded `Content`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Send {
    #[prost(uint64, tag = "1")]
    pub request_id: u64,
    #[prost(bytes = "bytes", tag = "2")]
    pub conversation_id: Bytes,
    #[prost(bytes = "bytes", tag = "3")]
    pub client_message_id: Bytes,
    #[prost(bytes = "bytes", tag = "4")]
    pub content: Bytes,
}

/// Decodes [`ClientFrame`]s.
#[derive(Debug)]
pub(super) struct FrameDecoder;

impl Decoder for FrameDecoder {
    type Item = ClientFrame;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<ClientFrame>, Status> {
        ClientFrame::decode(buffer).map(Some).map_err(|error| {
            Status::invalid_argument(format!("frame is not a valid protobuf message: {error}"))
        })
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(RECEIVE_BUFFER_BYTES, YIELD_THRESHOLD_BYTES)
    }
}

/// Appends any server frame.
pub(super) fn put_frame(out: &mut BytesMut, frame: v1::server_frame::Frame) {
    let frame = v1::ServerFrame { frame: Some(frame) };
    let length = frame.encoded_len();
    put_prefix(out, length);
    frame.encode_raw(out);
}

/// Bytes that [`put_delivery`] appends.
pub(super) fn delivery_len(inbox_seq: u64, message: &[u8], unread: u32) -> usize {
    let entry = entry_len(inbox_seq, message, unread);
    PREFIX_BYTES + 1 + encoded_len_varint(entry as u64) + entry
}

/// Appends `ServerFrame { delivery: InboxEntry { .. } }` around an encoded message.
pub(super) fn put_delivery(out: &mut BytesMut, inbox_seq: u64, message: &[u8], unread: u32) {
    let entry = entry_len(inbox_seq, message, unread);
    put_prefix(out, 1 + encoded_len_varint(entry as u64) + entry);
    out.put_u8(FRAME_DELIVERY);
    encode_varint(entry as u64, out);
    out.put_u8(ENTRY_INBOX_SEQ);
    encode_varint(inbox_seq, out);
    out.put_u8(ENTRY_MESSAGE);
    encode_varint(message.len() as u64, out);
    out.put_slice(message);
    if unread != 0 {
        out.put_u8(ENTRY_UNREAD);
        encode_varint(u64::from(unread), out);
    }
}

fn entry_len(inbox_seq: u64, message: &[u8], unread: u32) -> usize {
    let unread = if unread == 0 {
        0
    } else {
        1 + encoded_len_varint(u64::from(unread))
    };
    1 + encoded_len_varint(inbox_seq)
        + 1
        + encoded_len_varint(message.len() as u64)
        + message.len()
        + unread
}

fn put_prefix(out: &mut BytesMut, length: usize) {
    out.reserve(PREFIX_BYTES + length);
    out.put_u8(0);
    out.put_u32(u32::try_from(length).expect("a server frame is far below 4 GiB"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirrors_read_what_the_contract_writes() {
        let content = v1::Content {
            kind: Some(v1::content::Kind::Text(v1::Text { body: "hi".into() })),
        };
        let send = v1::ClientFrame {
            frame: Some(v1::client_frame::Frame::Send(v1::Send {
                request_id: 7,
                conversation_id: "g1".into(),
                client_message_id: "m1".into(),
                content: Some(content.clone()),
            })),
        };
        let Some(Frame::Send(mirror)) = ClientFrame::decode(&*send.encode_to_vec())
            .expect("decodes")
            .frame
        else {
            panic!("not a send");
        };
        assert_eq!(
            (
                mirror.request_id,
                &*mirror.conversation_id,
                &*mirror.client_message_id
            ),
            (7, &b"g1"[..], &b"m1"[..])
        );
        assert_eq!(mirror.content, content.encode_to_vec());

        for cursor in [None, Some(0), Some(9)] {
            let hello = v1::Hello {
                user_id: "alice".into(),
                device_id: "phone".into(),
                platform: "ios".into(),
                inbox_cursor: cursor,
            };
            let frame = v1::ClientFrame {
                frame: Some(v1::client_frame::Frame::Hello(hello)),
            };
            let Some(Frame::Hello(mirror)) = ClientFrame::decode(&*frame.encode_to_vec())
                .expect("decodes")
                .frame
            else {
                panic!("not a hello");
            };
            assert_eq!(mirror.inbox_cursor, cursor);
            assert_eq!(
                (&*mirror.user_id, &*mirror.device_id, &*mirror.platform),
                (&b"alice"[..], &b"phone"[..], &b"ios"[..])
            );
        }
    }

    #[test]
    fn deliveries_are_what_prost_would_write() {
        let message = v1::Message {
            conversation_id: "g1".into(),
            seq: 300,
            sender_id: "bob".into(),
            ..Default::default()
        };
        for (inbox_seq, unread) in [(1, 0), (127, 1), (128, 300), (u64::MAX, u32::MAX)] {
            let encoded = message.encode_to_vec();
            let mut by_hand = BytesMut::new();
            put_delivery(&mut by_hand, inbox_seq, &encoded, unread);
            assert_eq!(by_hand.len(), delivery_len(inbox_seq, &encoded, unread));
            let mut by_prost = BytesMut::new();
            let entry = v1::InboxEntry {
                inbox_seq,
                message: Some(message.clone()),
                unread,
            };
            put_frame(&mut by_prost, v1::server_frame::Frame::Delivery(entry));
            assert_eq!(by_hand, by_prost);
        }
    }
}
