//! What the core needs of a store: a sorted map of bytes.
//!
//! Implementations: the node's RocksDB store and [`crate::memory::MemoryView`].

use std::ops::ControlFlow;

use bytes::Bytes;

use crate::codec::Corrupt;
use crate::records::Record;

/// What a scan calls with each key and value, until it says `Break`.
pub type Visitor<'a> = &'a mut (dyn FnMut(&[u8], &[u8]) -> ControlFlow<()> + 'a);

/// A consistent state that can be read.
pub trait ReadView {
    /// The value under `key`.
    fn get(&self, key: &[u8]) -> Option<Bytes>;

    /// Gives the value under `key` to `visit`, without a copy where that is possible; does
    /// not call it when there is none.
    fn peek(&self, key: &[u8], visit: &mut dyn FnMut(&[u8])) {
        self.get(key).iter().for_each(|value| visit(value));
    }

    /// Gives keys and values within `[from, to)` to `f`, in key order or, with
    /// `reverse`, backward; stops when `f` says `Break`.
    fn scan(&self, from: &[u8], to: &[u8], reverse: bool, f: Visitor<'_>);
}

/// The transaction of one batch: reads see its own writes.
pub trait View: ReadView {
    /// Sets the value under `key`.
    fn put(&mut self, key: &[u8], value: &[u8]);

    /// Removes `key`; nothing happens when it is not there.
    fn delete(&mut self, key: &[u8]);

    /// Remembers a value that follows from the state, so that it need not be found again.
    /// It is not part of the state, and may be forgotten at any time. Of each `key`, only
    /// the value that holds now may be remembered, and `key` must not be one of the state.
    fn remember(&mut self, key: &[u8], value: u64);

    /// What is remembered under `key`.
    fn recall(&self, key: &[u8]) -> Option<u64>;
}

/// The record under `key`.
///
/// # Panics
/// When it is there and does not decode: the state is damaged and nothing that follows
/// from it could be trusted.
#[inline]
pub(crate) fn load<R: Record>(view: &(impl ReadView + ?Sized), key: &[u8]) -> Option<R> {
    view.get(key).map(|value| intact(key, R::decode(&value)))
}

/// Like [`load`], for records without strings, which would be copied.
#[inline]
pub(crate) fn load_plain<R: Record>(view: &(impl ReadView + ?Sized), key: &[u8]) -> Option<R> {
    let mut record = None;
    view.peek(key, &mut |value| {
        record = Some(intact(key, R::decode_slice(value)));
    });
    record
}

/// The decoded record, or the end of the process.
#[inline]
pub(crate) fn intact<T>(key: &[u8], decoded: Result<T, Corrupt>) -> T {
    match decoded {
        Ok(record) => record,
        Err(error) => damaged(key, &error),
    }
}

#[cold]
pub(crate) fn damaged(key: &[u8], error: &Corrupt) -> ! {
    panic!(
        "state under key {} is damaged: {error}; replace this replica from another one",
        key.escape_ascii()
    )
}
