//! Values of the protocol as text and as JSON.
//!
//! Text that users wrote goes through `printable` before it reaches a terminal, which
//! would obey what is hidden in it.

use carillon_client::ConversationId;
use carillon_client::proto as v1;
use serde_json::{Value, json};
use v1::content::Kind;
use v1::notice::Change;

/// The text without anything that a terminal takes for a command.
pub fn printable(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '\n' => c,
            '\t' => ' ',
            c if c.is_control() => '\u{fffd}',
            // Directions and joiners that can hide what is there.
            '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                '\u{fffd}'
            }
            c => c,
        })
        .collect()
}

/// A message's content in words, on one or more lines.
pub fn content(message: &v1::Message) -> String {
    let kind = message.content.as_ref().and_then(|c| c.kind.as_ref());
    match kind {
        Some(Kind::Text(text)) => printable(&text.body),
        Some(Kind::Custom(custom)) => {
            let size = custom.data.len();
            format!("[{}, {size} bytes]", printable(&custom.r#type))
        }
        Some(Kind::Notice(notice)) => format!("* {}", change(notice)),
        None => "[a kind of message that this version does not know]".to_owned(),
    }
}

/// True for what the server wrote.
pub fn is_notice(message: &v1::Message) -> bool {
    let kind = message.content.as_ref().and_then(|c| c.kind.as_ref());
    matches!(kind, Some(Kind::Notice(_)))
}

fn change(notice: &v1::Notice) -> String {
    match &notice.change {
        Some(Change::Created(created)) => {
            let others = others(&created.member_ids, &created.actor_id);
            let with = if others.is_empty() {
                String::new()
            } else {
                format!(" with {others}")
            };
            format!(
                "{} created “{}”{with}",
                printable(&created.actor_id),
                printable(&created.name)
            )
        }
        Some(Change::MembersAdded(added)) => format!(
            "{} added {}",
            printable(&added.actor_id),
            others(&added.member_ids, "")
        ),
        Some(Change::MembersRemoved(removed)) => {
            let left = removed.member_ids == [removed.actor_id.clone()];
            let mut text = if left {
                format!("{} left", printable(&removed.actor_id))
            } else {
                format!(
                    "{} removed {}",
                    printable(&removed.actor_id),
                    others(&removed.member_ids, "")
                )
            };
            if !removed.new_owner_id.is_empty() {
                text.push_str(&format!(
                    ", {} is the owner now",
                    printable(&removed.new_owner_id)
                ));
            }
            text
        }
        None => "the conversation changed".to_owned(),
    }
}

fn others(members: &[String], except: &str) -> String {
    let names: Vec<String> = members
        .iter()
        .filter(|member| *member != except)
        .map(|member| printable(member))
        .collect();
    names.join(", ")
}

/// The name of a conversation as `user` sees it.
pub fn title(conversation: &str, name: &str, user: &str) -> String {
    if !name.is_empty() {
        return printable(name);
    }
    let id = ConversationId::from(conversation);
    printable(id.direct_peer(user).unwrap_or(conversation))
}

/// The time of day of milliseconds since the epoch, local: `14:03`.
pub fn clock(at_ms: i64) -> String {
    match local(at_ms) {
        Some(time) => format!("{:02}:{:02}", time.tm_hour, time.tm_min),
        None => "--:--".to_owned(),
    }
}

/// The day of milliseconds since the epoch, local: `2026-11-22`.
pub fn day(at_ms: i64) -> String {
    match local(at_ms) {
        Some(time) => format!(
            "{:04}-{:02}-{:02}",
            time.tm_year + 1900,
            time.tm_mon + 1,
            time.tm_mday
        ),
        None => "?".to_owned(),
    }
}

/// The day and time of milliseconds since the epoch, local: `2026-11-22 14:03:05`.
pub fn moment(at_ms: i64) -> String {
    match local(at_ms) {
        Some(time) => format!("{} {}:{:02}", day(at_ms), clock(at_ms), time.tm_sec),
        None => "?".to_owned(),
    }
}

fn local(at_ms: i64) -> Option<libc::tm> {
    let seconds: libc::time_t = at_ms.div_euclid(1000);
    let mut time = std::mem::MaybeUninit::<libc::tm>::uninit();
    #[expect(
        unsafe_code,
        reason = "the C library knows the time zone, std does not"
    )]
    // SAFETY: both pointers are valid for the call; `time` is read only when it was filled.
    unsafe {
        let filled = libc::localtime_r(&raw const seconds, time.as_mut_ptr());
        (!filled.is_null()).then(|| time.assume_init())
    }
}

/// A number of bytes in the unit that suits it.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// A duration in its two largest units.
pub fn duration(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m {}s", seconds / 60, seconds % 60),
        3600..86400 => format!("{}h {}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d {}h", seconds / 86400, seconds % 86400 / 3600),
    }
}

/// A message as JSON. `message_id` is text: many readers of JSON lose its last digits.
pub fn message_json(message: &v1::Message) -> Value {
    let kind = message.content.as_ref().and_then(|c| c.kind.as_ref());
    let content = match kind {
        Some(Kind::Text(text)) => json!({ "text": text.body }),
        Some(Kind::Custom(custom)) => json!({
            "custom": { "type": custom.r#type, "data_hex": hex(&custom.data) }
        }),
        Some(Kind::Notice(notice)) => json!({ "notice": notice_json(notice) }),
        None => Value::Null,
    };
    json!({
        "conversation_id": message.conversation_id,
        "seq": message.seq,
        "message_id": message.message_id.to_string(),
        "sender_id": message.sender_id,
        "client_message_id": message.client_message_id,
        "sent_at_ms": message.sent_at_ms,
        "content": content,
    })
}

fn notice_json(notice: &v1::Notice) -> Value {
    match &notice.change {
        Some(Change::Created(c)) => json!({ "created": {
            "actor_id": c.actor_id, "name": c.name, "member_ids": c.member_ids,
        }}),
        Some(Change::MembersAdded(c)) => json!({ "members_added": {
            "actor_id": c.actor_id, "member_ids": c.member_ids,
        }}),
        Some(Change::MembersRemoved(c)) => json!({ "members_removed": {
            "actor_id": c.actor_id, "member_ids": c.member_ids,
            "new_owner_id": c.new_owner_id,
        }}),
        None => Value::Null,
    }
}

/// A conversation as JSON.
pub fn conversation_json(conversation: &v1::Conversation) -> Value {
    json!({
        "conversation_id": conversation.conversation_id,
        "kind": kind(conversation.kind()),
        "name": conversation.name,
        "creator_id": conversation.creator_id,
        "created_at_ms": conversation.created_at_ms,
        "last_seq": conversation.last_seq,
        "member_count": conversation.member_count,
    })
}

/// The kind of a conversation in a word.
pub fn kind(kind: v1::ConversationKind) -> &'static str {
    match kind {
        v1::ConversationKind::Direct => "direct",
        v1::ConversationKind::Group => "group",
        v1::ConversationKind::Unspecified => "unknown",
    }
}

fn hex(data: &[u8]) -> String {
    data.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_a_terminal_obeys_gets_through() {
        assert_eq!(
            printable("a\x1b[2Jb\u{7}\tc\nd\u{202e}e\u{9b}"),
            "a\u{fffd}[2Jb\u{fffd} c\nd\u{fffd}e\u{fffd}"
        );
    }

    #[test]
    fn units_suit_their_numbers() {
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(5 << 40), "5.0 TiB");
        assert_eq!(bytes(9000 << 40), "9000.0 TiB");
        assert_eq!(duration(59), "59s");
        assert_eq!(duration(3 * 3600 + 62), "3h 1m");
    }

    #[test]
    fn titles_are_what_the_user_knows_it_by() {
        assert_eq!(title("direct:alice:bob", "", "bob"), "alice");
        assert_eq!(title("team", "The Team", "bob"), "The Team");
        assert_eq!(title("team", "", "bob"), "team");
    }

    #[test]
    fn notices_read_as_sentences() {
        let notice = |change| v1::Message {
            content: Some(v1::Content {
                kind: Some(Kind::Notice(v1::Notice {
                    change: Some(change),
                })),
            }),
            ..Default::default()
        };
        let created = notice(Change::Created(v1::ConversationCreated {
            actor_id: "alice".into(),
            name: "Team".into(),
            member_ids: vec!["alice".into(), "bob".into()],
        }));
        assert_eq!(content(&created), "* alice created “Team” with bob");
        let left = notice(Change::MembersRemoved(v1::MembersRemoved {
            actor_id: "alice".into(),
            member_ids: vec!["alice".into()],
            new_owner_id: "bob".into(),
        }));
        assert_eq!(content(&left), "* alice left, bob is the owner now");
        assert!(is_notice(&left));
    }
}
