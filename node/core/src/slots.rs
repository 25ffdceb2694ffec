//! Slots: ids hash to a fixed number of them, and a shard is a contiguous range of them.
//!
//! The hash and the number are in every key on disk and never change.

use std::fmt;

use xxhash_rust::xxh3::xxh3_64;

/// The number of slots that ids hash to. Fixed for the life of a cluster.
pub const SLOTS: u16 = 4096;

/// One of the [`SLOTS`] slots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(pub u16);

impl Slot {
    /// The number itself.
    #[inline]
    pub const fn get(self) -> u16 {
        self.0
    }

    /// The slot of an id.
    #[inline]
    pub fn of(id: &[u8]) -> Slot {
        Slot((xxh3_64(id) % u64::from(SLOTS)) as u16)
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// Slots from `first` to `last`, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SlotRange {
    /// The first slot.
    pub first: Slot,
    /// The last slot, `first ≤ last < SLOTS`.
    pub last: Slot,
}

impl SlotRange {
    /// Every slot.
    pub const ALL: SlotRange = SlotRange {
        first: Slot(0),
        last: Slot(SLOTS - 1),
    };

    /// True when `slot` is one of these.
    #[inline]
    pub fn contains(self, slot: Slot) -> bool {
        self.first <= slot && slot <= self.last
    }

    /// The smallest key of the range, inclusive.
    pub fn key_start(self) -> [u8; 2] {
        self.first.0.to_be_bytes()
    }

    /// The smallest key after the range: its exclusive end.
    pub fn key_end(self) -> [u8; 2] {
        (self.last.0 + 1).to_be_bytes()
    }

    /// The slots before `at`, and those from it on; none when one of them would be empty.
    pub fn split(self, at: Slot) -> Option<(SlotRange, SlotRange)> {
        if at <= self.first || self.last < at {
            return None;
        }
        let before = SlotRange {
            first: self.first,
            last: Slot(at.0 - 1),
        };
        let after = SlotRange {
            first: at,
            last: self.last,
        };
        Some((before, after))
    }

    /// These slots and those of a right neighbour; none when it is not the next.
    pub fn joined(self, right: SlotRange) -> Option<SlotRange> {
        let is_next = u32::from(self.last.0) + 1 == u32::from(right.first.0);
        (is_next && right.first <= right.last).then_some(SlotRange {
            first: self.first,
            last: right.last,
        })
    }

    /// Where it splits into equal parts; none of a single slot.
    pub fn middle(self) -> Option<Slot> {
        (self.first < self.last).then(|| Slot(self.first.0 + (self.last.0 - self.first.0) / 2 + 1))
    }

    /// Some slot is in both.
    pub fn overlaps(self, other: SlotRange) -> bool {
        self.first <= other.last && other.first <= self.last
    }

    /// The slots one after another.
    pub fn slots(self) -> impl Iterator<Item = Slot> {
        (self.first.0..=self.last.0).map(Slot)
    }
}

impl fmt::Display for SlotRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_split_into_two_that_are_not_empty() {
        let range = |first, last| SlotRange {
            first: Slot(first),
            last: Slot(last),
        };
        let whole = range(16, 31);
        assert_eq!(whole.middle(), Some(Slot(24)));
        assert_eq!(whole.split(Slot(24)), Some((range(16, 23), range(24, 31))));
        assert_eq!(whole.split(Slot(31)), Some((range(16, 30), range(31, 31))));
        for at in [0, 16, 32] {
            assert_eq!(whole.split(Slot(at)), None, "at {at}");
        }
        assert_eq!(range(16, 23).joined(range(24, 31)), Some(whole));
        for right in [range(25, 31), range(23, 31), range(8, 15), range(16, 23)] {
            assert_eq!(range(16, 23).joined(right), None, "{right}");
        }
        assert_eq!(range(3, 4).middle(), Some(Slot(4)));
        assert_eq!(range(3, 3).middle(), None);
        let overlapping = [(0, 16), (20, 21), (31, 40)].map(|(a, b)| whole.overlaps(range(a, b)));
        assert_eq!(overlapping, [true; 3]);
        assert!(!whole.overlaps(range(0, 15)) && !whole.overlaps(range(32, 40)));
    }

    #[test]
    fn slots_are_stable() {
        // The first is the published value of xxh3 for no bytes. The others are on disk
        // in every cluster: they must never change.
        assert_eq!(xxh3_64(b""), 0x2d06_8005_38d3_94c2);
        assert_eq!(Slot::of(b"alice"), Slot(1712));
        assert_eq!(Slot::of(b"direct:alice:bob"), Slot(3440));
        assert_eq!(SlotRange::ALL.key_end(), [0x10, 0x00]);
        assert!(SlotRange::ALL.contains(Slot(4095)));
    }
}
