//! Lines of logs: cut out of what arrives, each with the moment that the kubelet gives it, and
//! several members' lines as one. Pure.
//!
//! Invariant: no line is longer than [`LINE_BYTES_MAX`]; a longer one comes in pieces.

use k8s_openapi::jiff::Timestamp;

/// The longest line, bytes.
const LINE_BYTES_MAX: usize = 64 << 10;

/// A line of a member's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Line {
    /// When the container wrote it.
    pub(super) at: Timestamp,
    pub(super) text: String,
}

/// Cuts a log into lines.
#[derive(Debug, Default)]
pub(super) struct Splitter {
    partial: Vec<u8>,
    /// Of the last line: a piece of a long one has no moment of its own.
    at: Timestamp,
    /// Lines up to here were there before.
    known: Option<Timestamp>,
}

impl Splitter {
    /// Leaves out what is not later: a log can be read on from a whole second only.
    pub(super) fn after(known: Timestamp) -> Self {
        Self {
            at: known,
            known: Some(known),
            ..Self::default()
        }
    }

    /// Lines that end in what arrived.
    pub(super) fn push(&mut self, mut arrived: &[u8]) -> Vec<Line> {
        let mut lines = Vec::new();
        while !arrived.is_empty() {
            let room = LINE_BYTES_MAX - self.partial.len();
            let (now, later) = arrived.split_at(arrived.len().min(room));
            match now.iter().position(|byte| *byte == b'\n') {
                Some(end) => {
                    self.partial.extend_from_slice(&now[..end]);
                    arrived = &arrived[end + 1..];
                    lines.extend(self.line());
                }
                None => {
                    self.partial.extend_from_slice(now);
                    arrived = later;
                    if self.partial.len() == LINE_BYTES_MAX {
                        lines.extend(self.line());
                    }
                }
            }
        }
        lines
    }

    /// What is left at the end.
    pub(super) fn rest(&mut self) -> Option<Line> {
        if self.partial.is_empty() {
            return None;
        }
        self.line()
    }

    /// When the last line was written.
    pub(super) fn at(&self) -> Timestamp {
        self.at
    }

    fn line(&mut self) -> Option<Line> {
        let bytes = std::mem::take(&mut self.partial);
        let text = String::from_utf8_lossy(&bytes);
        let (moment, said) = text.split_once(' ').unwrap_or((&text, ""));
        let line = match moment.parse() {
            Ok(at) => Line {
                at,
                text: said.to_owned(),
            },
            Err(_) => Line {
                at: self.at,
                text: text.into_owned(),
            },
        };
        self.at = line.at;
        self.known
            .is_none_or(|known| line.at > known)
            .then_some(line)
    }
}

/// Which of the next lines of several logs was written first; of two at once, that of the first.
pub(super) fn earliest(next: &[Option<Line>]) -> Option<usize> {
    let there = next.iter().enumerate();
    let there = there.filter_map(|(index, line)| Some((line.as_ref()?.at, index)));
    there.min().map(|(_, index)| index)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(at: &str, text: &str) -> Line {
        Line {
            at: at.parse().expect("a moment"),
            text: text.to_owned(),
        }
    }

    #[test]
    fn lines_are_whole_however_they_arrive() {
        let log = "2026-11-28T10:00:00.000000001Z one two\n2026-11-28T10:00:01Z \n\
                   2026-11-28T10:00:02Z three";
        let whole = [
            line("2026-11-28T10:00:00.000000001Z", "one two"),
            line("2026-11-28T10:00:01Z", ""),
            line("2026-11-28T10:00:02Z", "three"),
        ];
        for piece in 1..log.len() {
            let mut splitter = Splitter::default();
            let mut lines = Vec::new();
            for arrived in log.as_bytes().chunks(piece) {
                lines.extend(splitter.push(arrived));
            }
            lines.extend(splitter.rest());
            assert_eq!(lines, whole, "in pieces of {piece}");
            assert_eq!(splitter.rest(), None);
        }
    }

    #[test]
    fn a_line_without_an_end_does_not_grow_for_ever() {
        let mut splitter = Splitter::default();
        let first = splitter.push(b"2026-11-28T10:00:00Z begins\n");
        let long = splitter.push(&vec![b'x'; 3 * LINE_BYTES_MAX]);
        assert_eq!(long.len(), 3);
        assert!(long.iter().all(|piece| piece.text.len() == LINE_BYTES_MAX));
        assert!(long.iter().all(|piece| piece.at == first[0].at));
    }

    #[test]
    fn a_log_that_is_read_on_has_no_line_twice() {
        let known = "2026-11-28T10:00:00.5Z".parse().expect("a moment");
        let mut splitter = Splitter::after(known);
        let lines = splitter.push(
            b"2026-11-28T10:00:00.2Z a\n2026-11-28T10:00:00.5Z b\n2026-11-28T10:00:00.7Z c\n",
        );
        assert_eq!(lines, [line("2026-11-28T10:00:00.7Z", "c")]);
    }

    #[test]
    fn logs_become_one_in_the_order_of_their_moments() {
        let late = Some(line("2026-11-28T10:00:01Z", "b"));
        let early = Some(line("2026-11-28T10:00:00Z", "a"));
        assert_eq!(earliest(&[late.clone(), early.clone(), None]), Some(1));
        assert_eq!(earliest(&[None, early.clone(), early]), Some(1));
        assert_eq!(earliest(&[None, late]), Some(1));
        assert_eq!(earliest(&[None]), None);
    }
}
