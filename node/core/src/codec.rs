//! The binary codec under records, commands and replies: varints, length-prefixed bytes,
//! and a reader that shares the buffer it reads from.
//!
//! Integers are LEB128 varints (signed ones in zigzag), byte strings carry their length.
//! Reading never panics: bytes that do not decode give [`Corrupt`].

use bytes::{BufMut, Bytes, BytesMut};
use thiserror::Error;

/// The longest varint of a `u64`, bytes.
const VARINT_BYTES_MAX: usize = 10;

/// Bytes that are not what they should be: a damaged log entry or state record, or one
/// written by a newer version. The shell ends the process on it.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "{what} is corrupt: {why} at byte {at}; the disk or the log is damaged, or a newer version wrote it"
)]
pub struct Corrupt {
    /// What was being decoded.
    pub what: &'static str,
    /// What is wrong with it.
    pub why: &'static str,
    /// Where in the buffer, bytes from its beginning.
    pub at: usize,
}

/// Writes an unsigned varint.
#[inline]
pub fn put_varint(out: &mut BytesMut, mut value: u64) {
    if value < 0x80 {
        out.put_u8(value as u8);
        return;
    }
    let mut buffer = [0u8; VARINT_BYTES_MAX];
    let mut length = 0;
    while value >= 0x80 {
        buffer[length] = (value as u8) | 0x80;
        value >>= 7;
        length += 1;
    }
    buffer[length] = value as u8;
    out.put_slice(&buffer[..=length]);
}

/// Writes a signed varint (zigzag).
#[inline]
pub fn put_signed(out: &mut BytesMut, value: i64) {
    put_varint(out, ((value << 1) ^ (value >> 63)) as u64);
}

/// Writes a byte string after its length.
#[inline]
pub fn put_bytes(out: &mut BytesMut, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.put_slice(bytes);
}

/// The length of a varint, bytes.
#[inline]
pub(crate) fn varint_length(value: u64) -> usize {
    (64 - (value | 1).leading_zeros() as usize).div_ceil(7)
}

/// Reads values one after another. Byte strings are slices of the shared buffer when
/// there is one, else copies.
pub struct Reader<'a> {
    what: &'static str,
    data: &'a [u8],
    shared: Option<&'a Bytes>,
    at: usize,
}

impl<'a> Reader<'a> {
    /// Reads `buffer`; byte strings will be slices of it, without a copy.
    pub fn shared(what: &'static str, buffer: &'a Bytes) -> Self {
        Reader {
            what,
            data: buffer,
            shared: Some(buffer),
            at: 0,
        }
    }

    /// Reads `data`; byte strings will be copies.
    pub fn borrowed(what: &'static str, data: &'a [u8]) -> Self {
        Reader {
            what,
            data,
            shared: None,
            at: 0,
        }
    }

    /// The error that names this place.
    #[cold]
    pub fn corrupt(&self, why: &'static str) -> Corrupt {
        Corrupt {
            what: self.what,
            why,
            at: self.at,
        }
    }

    /// The bytes that are left.
    pub fn remaining(&self) -> usize {
        self.data.len() - self.at
    }

    /// One byte.
    #[inline]
    pub fn u8(&mut self) -> Result<u8, Corrupt> {
        let Some(&byte) = self.data.get(self.at) else {
            return Err(self.corrupt("it ends too early"));
        };
        self.at += 1;
        Ok(byte)
    }

    /// An unsigned varint.
    #[inline]
    pub fn varint(&mut self) -> Result<u64, Corrupt> {
        let mut value = 0u64;
        for index in 0..VARINT_BYTES_MAX {
            let byte = self.u8()?;
            let bits = u64::from(byte & 0x7f);
            if index == VARINT_BYTES_MAX - 1 && byte > 1 {
                return Err(self.corrupt("a number is larger than 64 bits"));
            }
            value |= bits << (7 * index);
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(self.corrupt("a number is longer than 10 bytes"))
    }

    /// An unsigned varint of at most 32 bits.
    pub fn varint32(&mut self) -> Result<u32, Corrupt> {
        let value = self.varint()?;
        u32::try_from(value).map_err(|_| self.corrupt("a number is larger than 32 bits"))
    }

    /// A signed varint.
    pub fn signed(&mut self) -> Result<i64, Corrupt> {
        let value = self.varint()?;
        Ok(((value >> 1) as i64) ^ -((value & 1) as i64))
    }

    /// A byte that is 0 or 1.
    pub fn flag(&mut self) -> Result<bool, Corrupt> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(self.corrupt("a flag is neither 0 nor 1")),
        }
    }

    /// The next `length` bytes, borrowed.
    #[inline]
    pub fn take(&mut self, length: usize) -> Result<&'a [u8], Corrupt> {
        if length > self.remaining() {
            return Err(self.corrupt("it ends too early"));
        }
        let taken = &self.data[self.at..self.at + length];
        self.at += length;
        Ok(taken)
    }

    /// A byte string after its length: shared with the buffer where that is possible.
    #[inline]
    pub fn bytes(&mut self) -> Result<Bytes, Corrupt> {
        let length = self.varint()?;
        let length = usize::try_from(length).map_err(|_| self.corrupt("it ends too early"))?;
        let taken = self.take(length)?;
        Ok(match self.shared {
            Some(buffer) => buffer.slice(self.at - length..self.at),
            None => Bytes::copy_from_slice(taken),
        })
    }

    /// UTF-8 text after its length.
    pub fn text(&mut self) -> Result<String, Corrupt> {
        let length = self.varint()?;
        let length = usize::try_from(length).map_err(|_| self.corrupt("it ends too early"))?;
        let taken = self.take(length)?;
        match std::str::from_utf8(taken) {
            Ok(text) => Ok(text.to_owned()),
            Err(_) => Err(self.corrupt("a text is not UTF-8")),
        }
    }

    /// The number of items that follow, each of at least one byte; a number that cannot
    /// be true is refused before anything is allocated for it.
    pub fn count(&mut self) -> Result<usize, Corrupt> {
        let count = self.varint()?;
        match usize::try_from(count) {
            Ok(count) if count <= self.remaining() => Ok(count),
            _ => Err(self.corrupt("a list is longer than what holds it")),
        }
    }

    /// Fails unless everything was read.
    pub fn finish(&self) -> Result<(), Corrupt> {
        if self.remaining() == 0 {
            Ok(())
        } else {
            Err(self.corrupt("bytes are left over"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn numbers_round_trip(unsigned: u64, signed: i64, small in 0u64..300) {
            let mut out = BytesMut::new();
            put_varint(&mut out, unsigned);
            prop_assert_eq!(out.len(), varint_length(unsigned));
            put_signed(&mut out, signed);
            put_varint(&mut out, small);
            let mut reader = Reader::borrowed("numbers", &out);
            prop_assert_eq!(reader.varint(), Ok(unsigned));
            prop_assert_eq!(reader.signed(), Ok(signed));
            prop_assert_eq!(reader.varint(), Ok(small));
            prop_assert!(reader.finish().is_ok());
        }
    }

    #[test]
    fn extremes() {
        let boundaries = [1 << 49, (1 << 56) - 1, 1 << 56];
        for value in [0, 127, 128, 16_383, 16_384, u64::MAX]
            .into_iter()
            .chain(boundaries)
        {
            let mut out = BytesMut::new();
            put_varint(&mut out, value);
            assert_eq!(Reader::borrowed("extremes", &out).varint(), Ok(value));
        }
        let overflowing = [0xff; 9].into_iter().chain([0x02]).collect::<Vec<u8>>();
        assert!(Reader::borrowed("extremes", &overflowing).varint().is_err());
    }

    #[test]
    fn shared_strings_are_not_copied() {
        let mut out = BytesMut::new();
        put_bytes(&mut out, b"hello");
        let buffer = out.freeze();
        let taken = Reader::shared("string", &buffer).bytes().expect("decodes");
        assert_eq!(taken.as_ptr(), buffer[1..].as_ptr());
    }
}
