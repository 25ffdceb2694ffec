//! How a chat looks: each thing that is shown, as text.

use carillon_client::proto as v1;

use crate::output::Paint;
use crate::present;

/// Messages, days and notices of one chat.
#[derive(Debug)]
pub struct View {
    pub paint: Paint,
    user: String,
    /// The day of the message shown last; a new one gets a line of its own.
    last_day: Option<String>,
}

impl View {
    pub fn new(user: &str, paint: Paint) -> Self {
        Self {
            paint,
            user: user.to_owned(),
            last_day: None,
        }
    }

    /// The line above a conversation's messages.
    pub fn heading(&mut self, title: &str, id: &str) -> String {
        self.last_day = None;
        let id = if title == id {
            String::new()
        } else {
            self.paint.dim(&format!("  {}", present::printable(id)))
        };
        format!("── {}{id}", self.paint.bold(title))
    }

    /// A message, after a line for its day when that is a new one.
    pub fn message(&mut self, message: &v1::Message) -> String {
        let day = present::day(message.sent_at_ms);
        let mut text = String::new();
        if self.last_day.as_ref() != Some(&day) {
            text.push_str(&self.paint.dim(&format!("   {day}")));
            text.push('\n');
            self.last_day = Some(day);
        }
        text.push_str(&self.line(message));
        text
    }

    /// Messages from before those that are shown, with their days.
    pub fn earlier(&self, messages: &[v1::Message]) -> String {
        let mut view = Self::new(&self.user, self.paint);
        let lines: Vec<String> = messages.iter().map(|m| view.message(m)).collect();
        lines.join("\n")
    }

    fn line(&self, message: &v1::Message) -> String {
        let clock = self.paint.dim(&present::clock(message.sent_at_ms));
        let content = present::content(message);
        if present::is_notice(message) {
            return format!("{clock}  {}", self.paint.dim(&content));
        }
        let sender = present::printable(&message.sender_id);
        let name = if sender == self.user {
            self.paint.bold(&sender)
        } else {
            self.paint.name(&sender)
        };
        // Further lines stand under the first one: clock, two blanks, name, two blanks.
        let indent = " ".repeat(5 + 2 + sender.chars().count() + 2);
        format!(
            "{clock}  {name}  {}",
            content.replace('\n', &format!("\n{indent}"))
        )
    }

    /// News from another conversation.
    pub fn elsewhere(&self, title: &str, unread: u32, message: &v1::Message) -> String {
        let preview = crate::commands::messages::preview(&present::content(message));
        let sender = present::printable(&message.sender_id);
        let from = if sender == title {
            preview
        } else {
            format!("{sender}: {preview}")
        };
        format!(
            "{} {}",
            self.paint.warn(&format!("● {unread} unread in {title}")),
            self.paint.dim(&format!("({from})  /switch {title}"))
        )
    }

    pub fn notice(&self, text: &str) -> String {
        self.paint.dim(text)
    }

    pub fn good(&self, text: &str) -> String {
        self.paint.good(text)
    }

    pub fn warning(&self, text: &str) -> String {
        self.paint.warn(text)
    }

    pub fn bad(&self, text: &str) -> String {
        self.paint.bad(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_read_as_a_conversation() {
        let mut view = View::new("alice", Paint::off());
        let message = |sender: &str, text: &str, at_ms| v1::Message {
            sender_id: sender.into(),
            sent_at_ms: at_ms,
            content: Some(carillon_client::text(text)),
            ..Default::default()
        };
        let noon = 1_790_000_000_000;
        let first = view.message(&message("bob", "one\ntwo", noon));
        let lines: Vec<&str> = first.lines().collect();
        assert_eq!(lines.len(), 3, "{first}");
        assert!(lines[1].ends_with("  bob  one"), "{first}");
        assert_eq!(lines[2], format!("{}two", " ".repeat(12)));
        let second = view.message(&message("alice", "x\x1b[2J", noon + 1));
        assert_eq!(second.lines().count(), 1);
        assert!(second.ends_with("alice  x\u{fffd}[2J"), "{second}");
    }
}
