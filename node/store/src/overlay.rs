//! What the batches of a shard have changed since the engine was last written.
//!
//! Keys and values lie in one buffer that is reused, so that a put allocates nothing once the
//! buffers have grown. Several puts of one key leave its last value. Owned by what a shard
//! holds.

use hashbrown::HashTable;

/// Buffers larger than this are given back after the batch that needed them.
const KEEP_BYTES_MAX: usize = 1024 * 1024;
const KEEP_ENTRIES_MAX: usize = 32 * 1024;

#[derive(Clone, Copy)]
struct Span {
    at: u32,
    len: u32,
}

struct Pending {
    hash: u64,
    key: Span,
    value: Span,
    deleted: bool,
}

/// See the module's description.
#[derive(Default)]
pub(crate) struct Overlay {
    table: HashTable<u32>,
    entries: Vec<Pending>,
    buffer: Vec<u8>,
    /// Scratch of [`Overlay::changes_near_key_order`].
    order: Vec<(u64, u32)>,
}

/// One change of the batch.
pub(crate) struct Change<'a> {
    pub(crate) hash: u64,
    pub(crate) key: &'a [u8],
    /// None: the key is deleted.
    pub(crate) value: Option<&'a [u8]>,
}

impl Overlay {
    /// The changed value of a key: `Some(None)` when it is deleted.
    pub(crate) fn get(&self, hash: u64, key: &[u8]) -> Option<Option<&[u8]>> {
        let pending = &self.entries[self.position(hash, key)?];
        Some((!pending.deleted).then(|| self.bytes(pending.value)))
    }

    /// Sets a key's value, or deletes it.
    pub(crate) fn put(&mut self, hash: u64, key: &[u8], value: Option<&[u8]>) {
        let bytes = value.unwrap_or_default();
        if let Some(at) = self.position(hash, key) {
            let old = self.entries[at].value;
            let value_span = if bytes.len() <= old.len as usize {
                let start = old.at as usize;
                self.buffer[start..start + bytes.len()].copy_from_slice(bytes);
                Span {
                    at: old.at,
                    len: length(bytes.len()),
                }
            } else {
                self.append(bytes)
            };
            self.entries[at].value = value_span;
            self.entries[at].deleted = value.is_none();
            return;
        }
        let pending = Pending {
            hash,
            key: self.append(key),
            value: self.append(bytes),
            deleted: value.is_none(),
        };
        let at = length(self.entries.len());
        self.entries.push(pending);
        let entries = &self.entries;
        self.table
            .insert_unique(hash, at, |&at| entries[at as usize].hash);
    }

    /// The changes, each key once, nearly in key order: by its first eight bytes. What the
    /// engine inserts one after another then lies close together in its sorted memtable, and a
    /// delivery's three keys cost little more than one.
    pub(crate) fn changes_near_key_order(&mut self) -> impl Iterator<Item = Change<'_>> {
        self.order.clear();
        self.order
            .extend((0_u32..).zip(&self.entries).map(|(at, pending)| {
                let key = &self.buffer[pending.key.at as usize..][..pending.key.len as usize];
                let mut prefix = [0; 8];
                let len = key.len().min(8);
                prefix[..len].copy_from_slice(&key[..len]);
                (u64::from_be_bytes(prefix), at)
            }));
        self.order.sort_unstable();
        self.order
            .iter()
            .map(|&(_, at)| self.change(&self.entries[at as usize]))
    }

    /// The changes, each key once.
    pub(crate) fn changes(&self) -> impl Iterator<Item = Change<'_>> {
        self.entries.iter().map(|pending| self.change(pending))
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// An upper bound of the bytes of all keys and values.
    pub(crate) fn bytes_len(&self) -> usize {
        self.buffer.len()
    }

    pub(crate) fn clear(&mut self) {
        self.table.clear();
        self.entries.clear();
        self.buffer.clear();
        if self.buffer.capacity() > KEEP_BYTES_MAX {
            self.buffer = Vec::new();
        }
        if self.entries.capacity() > KEEP_ENTRIES_MAX {
            self.entries = Vec::new();
            self.table = HashTable::new();
            self.order = Vec::new();
        }
    }

    fn change(&self, pending: &Pending) -> Change<'_> {
        Change {
            hash: pending.hash,
            key: self.bytes(pending.key),
            value: (!pending.deleted).then(|| self.bytes(pending.value)),
        }
    }

    fn position(&self, hash: u64, key: &[u8]) -> Option<usize> {
        self.table
            .find(hash, |&at| {
                let pending = &self.entries[at as usize];
                pending.hash == hash && self.bytes(pending.key) == key
            })
            .map(|&at| at as usize)
    }

    fn append(&mut self, bytes: &[u8]) -> Span {
        let at = length(self.buffer.len());
        self.buffer.extend_from_slice(bytes);
        Span {
            at,
            len: length(bytes.len()),
        }
    }

    fn bytes(&self, span: Span) -> &[u8] {
        &self.buffer[span.at as usize..][..span.len as usize]
    }
}

/// What is held is at most its bound and one batch, a few MiB, so offsets fit 32 bits.
fn length(value: usize) -> u32 {
    u32::try_from(value).expect("a batch is smaller than 4 GiB")
}
