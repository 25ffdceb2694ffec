//! The end of a log. Pure.
//!
//! Invariant: at most `bytes_max` bytes are kept, and twice that while they arrive.

/// Keeps the last bytes of what arrives.
pub(super) struct Tail {
    kept: Vec<u8>,
    bytes_max: usize,
    left_out: u64,
}

impl Tail {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self {
            kept: Vec::new(),
            bytes_max,
            left_out: 0,
        }
    }

    pub(super) fn push(&mut self, arrived: &[u8]) {
        self.kept.extend_from_slice(arrived);
        if self.kept.len() > 2 * self.bytes_max {
            self.cut();
        }
    }

    fn cut(&mut self) {
        let too_many = self.kept.len().saturating_sub(self.bytes_max);
        self.kept.drain(..too_many);
        self.left_out += too_many as u64;
    }

    /// Whole lines; the first one says how much is left out, if anything is.
    pub(super) fn text(mut self) -> String {
        self.cut();
        let text = String::from_utf8_lossy(&self.kept);
        if self.left_out == 0 {
            return text.into_owned();
        }
        let (_, whole) = text.split_once('\n').unwrap_or((&text, ""));
        // The end of the torn line goes with it.
        let left_out = self.left_out + (text.len() - whole.len()) as u64;
        format!("({left_out} bytes before this are left out)\n{whole}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_kept_in_whole_lines() {
        for piece in 1..40 {
            let log: String = (0..100).map(|line| format!("line {line:02}\n")).collect();
            let mut tail = Tail::new(36);
            for arrived in log.as_bytes().chunks(piece) {
                tail.push(arrived);
                assert!(tail.kept.len() <= 2 * 36 + piece);
            }
            let left_out = "(768 bytes before this are left out)";
            assert_eq!(
                tail.text(),
                format!("{left_out}\nline 96\nline 97\nline 98\nline 99\n"),
                "in pieces of {piece}"
            );
        }
    }

    #[test]
    fn a_short_log_is_whole() {
        let mut tail = Tail::new(36);
        tail.push(b"one\ntwo");
        assert_eq!(tail.text(), "one\ntwo");
    }
}
