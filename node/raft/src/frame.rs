//! The frame of a link: `u32 length, u8 kind, u32 shard, u64 correlation, body`, little-endian.
//!
//! The length counts what follows it. A *packet* is what a stream carries in one message: one or
//! more whole frames, never a part of one. Owner of no state. Bytes come from the network, so
//! parsing checks every bound and never panics.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use carillon_core::ids::ShardId;

/// Bytes of the length field.
pub(crate) const LENGTH_BYTES: usize = 4;
/// Bytes between the length field and the body.
pub(crate) const HEADER_BYTES: usize = 13;

/// Largest frame, in bytes with its header. Larger ones are neither sent nor accepted.
pub const FRAME_BYTES_MAX: usize = 32 << 20;
/// Size above which a packet takes no further frame, in bytes.
pub const PACKET_BYTES_TARGET: usize = 1 << 20;
/// Largest packet that a link ever produces: what the transport must let through, in bytes.
pub const PACKET_BYTES_MAX: usize = PACKET_BYTES_TARGET + FRAME_BYTES_MAX;

/// What a frame carries. Kinds below 64 belong to this crate, the others to its users.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FrameKind(pub u8);

impl FrameKind {
    /// Answers the frame of the other side with the same correlation.
    pub const RESPONSE: FrameKind = FrameKind(0);
    pub(crate) const APPEND: FrameKind = FrameKind(1);
    pub(crate) const VOTE: FrameKind = FrameKind(2);
    pub(crate) const PRE_VOTE: FrameKind = FrameKind(3);
    pub(crate) const TRANSFER: FrameKind = FrameKind(4);
    /// The first kind that users of [`crate::Link`] may define.
    pub const USER_FIRST: u8 = 64;
}

/// One frame of a packet. The body is a slice of the packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// What the body is.
    pub kind: FrameKind,
    /// The shard it is about.
    pub shard: ShardId,
    /// Connects a response with its request; unique per link and sender.
    pub correlation: u64,
    /// The content.
    pub body: Bytes,
}

/// A packet that does not consist of whole frames. The link must be closed: its framing is lost.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Fewer bytes than the header of a frame.
    #[error("packet ends inside a frame header: {have} bytes left")]
    HeaderCut {
        /// The bytes left in the packet.
        have: usize,
    },
    /// The length field is impossible.
    #[error("frame length {length} is outside {HEADER_BYTES} to {FRAME_BYTES_MAX}")]
    Length {
        /// The length field.
        length: usize,
    },
    /// The frame is longer than what the packet holds.
    #[error("packet ends inside a frame: {length} bytes announced, {have} left")]
    BodyCut {
        /// The length field.
        length: usize,
        /// The bytes left in the packet.
        have: usize,
    },
}

/// Appends a frame whose body `write` appends, and returns its size in bytes; when it is larger
/// than [`FRAME_BYTES_MAX`], takes it back and returns None.
pub(crate) fn put_frame(
    buffer: &mut BytesMut,
    kind: FrameKind,
    shard: ShardId,
    correlation: u64,
    write: impl FnOnce(&mut BytesMut),
) -> Option<usize> {
    let start = buffer.len();
    buffer.put_u32_le(0);
    buffer.put_u8(kind.0);
    buffer.put_u32_le(shard.0);
    buffer.put_u64_le(correlation);
    write(buffer);
    let size = buffer.len() - start;
    match u32::try_from(size - LENGTH_BYTES) {
        Ok(length) if size <= FRAME_BYTES_MAX => {
            buffer[start..start + LENGTH_BYTES].copy_from_slice(&length.to_le_bytes());
            Some(size)
        }
        _ => {
            buffer.truncate(start);
            None
        }
    }
}

/// Takes the next frame off the packet, or None at its end.
pub fn next_frame(packet: &mut Bytes) -> Result<Option<Frame>, FrameError> {
    if packet.is_empty() {
        return Ok(None);
    }
    if packet.len() < LENGTH_BYTES + HEADER_BYTES {
        return Err(FrameError::HeaderCut { have: packet.len() });
    }
    let length = packet.get_u32_le() as usize;
    if !(HEADER_BYTES..=FRAME_BYTES_MAX - LENGTH_BYTES).contains(&length) {
        return Err(FrameError::Length { length });
    }
    if length > packet.len() {
        return Err(FrameError::BodyCut {
            length,
            have: packet.len(),
        });
    }
    let mut body = packet.split_to(length);
    let kind = FrameKind(body.get_u8());
    let shard = ShardId(body.get_u32_le());
    let correlation = body.get_u64_le();
    Ok(Some(Frame {
        kind,
        shard,
        correlation,
        body,
    }))
}

/// How many bytes at the front of `buffer` (whole frames, at least one) make the next packet.
pub(crate) fn packet_length(buffer: &[u8]) -> usize {
    if buffer.len() <= PACKET_BYTES_TARGET {
        return buffer.len();
    }
    let mut end = 0;
    while end < PACKET_BYTES_TARGET {
        let length = buffer
            .get(end..end + LENGTH_BYTES)
            .and_then(|field| field.try_into().ok());
        // Only `put_frame` writes the buffer, so a length that does not fit is a bug here.
        let Some(length) = length.map(u32::from_le_bytes) else {
            break;
        };
        end += LENGTH_BYTES + length as usize;
    }
    end.min(buffer.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(kind: u8, shard: u32, correlation: u64, body: &'static [u8]) -> Frame {
        Frame {
            kind: FrameKind(kind),
            shard: ShardId(shard),
            correlation,
            body: Bytes::from_static(body),
        }
    }

    fn put(buffer: &mut BytesMut, frame: &Frame) {
        put_frame(buffer, frame.kind, frame.shard, frame.correlation, |out| {
            out.put_slice(&frame.body)
        })
        .unwrap();
    }

    #[test]
    fn frames_of_a_packet_come_back_in_order() {
        let frames = [
            frame(1, 7, 1, b"abc"),
            frame(64, 0, u64::MAX, b""),
            frame(0, 9, 3, b"x"),
        ];
        let mut buffer = BytesMut::new();
        frames.iter().for_each(|f| put(&mut buffer, f));
        let mut packet = buffer.freeze();
        for expected in &frames {
            assert_eq!(next_frame(&mut packet).unwrap().as_ref(), Some(expected));
        }
        assert_eq!(next_frame(&mut packet), Ok(None));
    }

    #[test]
    fn a_frame_over_the_limit_is_taken_back() {
        let mut buffer = BytesMut::new();
        put(&mut buffer, &frame(1, 1, 1, b"kept"));
        let before = buffer.clone();
        let refused = put_frame(&mut buffer, FrameKind(1), ShardId(1), 2, |out| {
            out.put_bytes(0, FRAME_BYTES_MAX)
        });
        assert_eq!(refused, None);
        assert_eq!(buffer, before);
    }

    #[test]
    fn packets_hold_whole_frames() {
        let mut buffer = BytesMut::new();
        for i in 0..40u64 {
            put_frame(&mut buffer, FrameKind(1), ShardId(1), i, |out| {
                out.put_bytes(7, 100_000)
            })
            .unwrap();
        }
        let mut seen = 0;
        while !buffer.is_empty() {
            let length = packet_length(&buffer);
            assert!(length <= PACKET_BYTES_MAX);
            let mut packet = buffer.split_to(length).freeze();
            while let Some(frame) = next_frame(&mut packet).unwrap() {
                assert_eq!(frame.correlation, seen);
                seen += 1;
            }
        }
        assert_eq!(seen, 40);
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut packet = Bytes::from(bytes);
            while let Ok(Some(_)) = next_frame(&mut packet) {}
        }
    }
}
