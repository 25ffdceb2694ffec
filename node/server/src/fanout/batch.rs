//! A batch of deliveries on its way to one shard: its form on the wire, and the answer
//! when all of it is applied.
//!
//! Form: u32 number of items, then per item u32 length and encoded core `Deliver`
//! command, u32 length and encoded `v1.Message` for pushing; little-endian.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Bytes of one batch at which no further item is added.
pub const BATCH_BYTES_TARGET: usize = 512 << 10;

/// Items of one batch, at most.
pub const BATCH_ITEMS_MAX: u32 = 8_192;

/// A batch that is being filled.
pub struct BatchWriter {
    buffer: BytesMut,
    items: u32,
}

impl Default for BatchWriter {
    fn default() -> Self {
        let mut buffer = BytesMut::new();
        buffer.put_u32_le(0);
        Self { buffer, items: 0 }
    }
}

impl BatchWriter {
    /// Adds a delivery; `command` appends the encoded `Deliver`.
    pub fn add(&mut self, message: &[u8], command: impl FnOnce(&mut BytesMut)) {
        let start = self.buffer.len();
        self.buffer.put_u32_le(0);
        command(&mut self.buffer);
        let length = (self.buffer.len() - start - 4) as u32;
        self.buffer[start..start + 4].copy_from_slice(&length.to_le_bytes());
        self.buffer.put_u32_le(message.len() as u32);
        self.buffer.put_slice(message);
        self.items += 1;
    }

    /// Items in it.
    pub fn items(&self) -> u32 {
        self.items
    }

    /// True when nothing more should be added.
    pub fn is_full(&self) -> bool {
        self.buffer.len() >= BATCH_BYTES_TARGET || self.items >= BATCH_ITEMS_MAX
    }

    /// The batch as bytes.
    pub fn finish(mut self) -> Bytes {
        self.buffer[..4].copy_from_slice(&self.items.to_le_bytes());
        self.buffer.freeze()
    }
}

/// One delivery of a batch that was read.
pub struct BatchItem {
    /// The encoded core command.
    pub command: Bytes,
    /// The encoded `v1.Message`.
    pub message: Bytes,
}

/// The items of a batch; none when the bytes are damaged.
pub fn read_batch(mut bytes: Bytes) -> Option<Vec<BatchItem>> {
    let part = |bytes: &mut Bytes| {
        if bytes.len() < 4 {
            return None;
        }
        let length = bytes.get_u32_le() as usize;
        (length <= bytes.len()).then(|| bytes.split_to(length))
    };
    if bytes.len() < 4 {
        return None;
    }
    let count = bytes.get_u32_le();
    if count > BATCH_ITEMS_MAX {
        return None;
    }
    let mut items = Vec::with_capacity(count as usize);
    for _ in 0..count {
        items.push(BatchItem {
            command: part(&mut bytes)?,
            message: part(&mut bytes)?,
        });
    }
    bytes.is_empty().then_some(items)
}

/// How a delivery, or a whole batch, has ended. The last of those that items have is the batch's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ended {
    /// Applied.
    Applied = 0,
    /// Not done; the same again may be.
    Undone = 1,
    /// Not done: some of the users have another shard.
    Moved = 2,
}

/// Answers for a whole batch once each of its items has ended.
pub struct DeliverBatch {
    left: AtomicUsize,
    ended: AtomicU8,
    answer: Box<dyn Fn(Ended) + Send + Sync>,
}

impl DeliverBatch {
    /// `answer` is called once, with how it has ended.
    pub fn new(items: usize, answer: Box<dyn Fn(Ended) + Send + Sync>) -> Arc<Self> {
        Arc::new(Self {
            left: AtomicUsize::new(items),
            ended: AtomicU8::new(Ended::Applied as u8),
            answer,
        })
    }

    /// One item has ended.
    pub fn item_ended(&self, ended: Ended) {
        if ended != Ended::Applied {
            self.ended.fetch_max(ended as u8, Ordering::AcqRel);
        }
        if self.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            (self.answer)(match self.ended.load(Ordering::Acquire) {
                0 => Ended::Applied,
                1 => Ended::Undone,
                _ => Ended::Moved,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_and_damage() {
        let mut writer = BatchWriter::default();
        writer.add(b"message", |buffer| buffer.put_slice(b"command"));
        writer.add(b"", |buffer| buffer.put_slice(b"c2"));
        let bytes = writer.finish();
        let items = read_batch(bytes.clone()).expect("intact");
        assert_eq!(items.len(), 2);
        assert_eq!(
            (&items[0].command[..], &items[0].message[..]),
            (&b"command"[..], &b"message"[..])
        );
        for end in 0..bytes.len() {
            assert!(read_batch(bytes.slice(..end)).is_none(), "cut at {end}");
        }
    }

    #[test]
    fn answers_once_when_all_have_ended() {
        let answers = Arc::new(parking_lot::Mutex::new(Vec::new()));
        let seen = answers.clone();
        let batch = DeliverBatch::new(4, Box::new(move |ended| seen.lock().push(ended)));
        batch.item_ended(Ended::Applied);
        batch.item_ended(Ended::Moved);
        batch.item_ended(Ended::Undone);
        assert!(answers.lock().is_empty());
        batch.item_ended(Ended::Applied);
        assert_eq!(*answers.lock(), [Ended::Moved]);
    }
}
