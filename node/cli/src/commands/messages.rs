//! `carillon send|history|sync|conversations`: one question, one answer.

use std::time::Duration;

use anyhow::Context;
use carillon_client::proto as v1;
use carillon_client::{ClientMessageId, Range, text};
use clap::Args;
use futures_util::StreamExt;
use serde_json::{Value, json};

use crate::arguments::{Actor, Cluster, Output, Target};
use crate::commands::api;
use crate::output;
use crate::present;

/// The most entries that the protocol gives on one page.
const PAGE_ENTRIES_MAX: u32 = 500;
/// The longest last message shown in a list, characters.
const PREVIEW_CHARS: usize = 50;

#[derive(Debug, Args)]
pub struct SendArguments {
    #[command(flatten)]
    actor: Actor,
    #[command(flatten)]
    pub target: Target,
    /// The message's own id: the same one again sends nothing new. Default: a random one.
    #[arg(long, value_name = "ID")]
    id: Option<String>,
    /// The text; several words are joined by blanks.
    #[arg(required = true)]
    text: Vec<String>,
}

/// Sends one message.
pub async fn send(
    arguments: SendArguments,
    cluster: &Cluster,
    output: Output,
) -> anyhow::Result<()> {
    let conversation = arguments.target.id(&arguments.actor.user);
    let id = match arguments.id {
        Some(id) => id.into(),
        None => ClientMessageId::random(),
    };
    let sent = api(cluster, &arguments.actor.user)?
        .send_with_id(&conversation, id, text(arguments.text.join(" ")))
        .await
        .with_context(|| format!("could not send to {conversation}"))?;
    match output {
        Output::Table => {
            let before = if sent.duplicate {
                ", as it was before"
            } else {
                ""
            };
            output::line(&format!(
                "stored in {conversation} as number {} at {}{before}",
                sent.seq,
                present::clock(sent.sent_at_ms)
            ))?;
        }
        Output::Json => output::json(&json!({
            "conversation_id": conversation.as_str(),
            "client_message_id": sent.client_message_id.as_str(),
            "seq": sent.seq,
            "message_id": sent.message_id.to_string(),
            "sent_at_ms": sent.sent_at_ms,
            "duplicate": sent.duplicate,
        }))?,
    }
    Ok(())
}

#[derive(Debug, Args)]
pub struct HistoryArguments {
    #[command(flatten)]
    actor: Actor,
    #[command(flatten)]
    target: Target,
    /// Begin at this number and go forward. Default: the newest messages.
    #[arg(long, value_name = "SEQ")]
    from: Option<u64>,
    /// At most this many.
    #[arg(short = 'n', long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=PAGE_ENTRIES_MAX as i64))]
    limit: u32,
}

/// Shows part of a conversation, oldest first.
pub async fn history(
    arguments: HistoryArguments,
    cluster: &Cluster,
    output: Output,
) -> anyhow::Result<()> {
    let conversation = arguments.target.id(&arguments.actor.user);
    let range = match arguments.from {
        Some(from) => Range {
            limit: arguments.limit,
            ..Range::forward_from(from)
        },
        None => Range::newest(arguments.limit),
    };
    let mut page = api(cluster, &arguments.actor.user)?
        .get_messages(&conversation, range)
        .await
        .with_context(|| format!("could not read {conversation}"))?;
    if range.backward {
        page.messages.reverse();
    }
    match output {
        Output::Table => {
            let mut table = output::table(&["seq", "day", "time", "from", "message"]);
            for message in &page.messages {
                table.add_row([
                    message.seq.to_string(),
                    present::day(message.sent_at_ms),
                    present::clock(message.sent_at_ms),
                    present::printable(&message.sender_id),
                    present::content(message),
                ]);
            }
            output::show(&table)?;
        }
        Output::Json => output::json(&json!({
            "messages": page.messages.iter().map(present::message_json).collect::<Vec<_>>(),
            "last_seq": page.last_seq,
            "next_seq": page.next_seq,
        }))?,
    }
    Ok(())
}

#[derive(Debug, Args)]
pub struct SyncArguments {
    #[command(flatten)]
    actor: Actor,
    /// Entries after this one.
    #[arg(long, default_value_t = 0, value_name = "INBOX_SEQ")]
    cursor: u64,
    /// At most this many; the server's default is 100.
    #[arg(short = 'n', long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=PAGE_ENTRIES_MAX as i64))]
    limit: u32,
    /// Wait up to this many seconds for news.
    #[arg(long, default_value_t = 0, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(0..=30))]
    wait: u64,
    /// Go on until interrupted, one line for each entry.
    #[arg(short, long, conflicts_with_all = ["limit", "wait"])]
    follow: bool,
}

/// Shows an inbox after a cursor.
pub async fn sync(
    arguments: SyncArguments,
    cluster: &Cluster,
    output: Output,
) -> anyhow::Result<()> {
    let user = &arguments.actor.user;
    let api = api(cluster, user)?;
    let doing = || format!("could not read the inbox of {user}");
    if arguments.follow {
        let mut entries = Box::pin(api.follow(arguments.cursor));
        while let Some(entry) = entries.next().await {
            let entry = entry.with_context(doing)?;
            match output {
                Output::Json => output::json_line(&entry_json(&entry))?,
                Output::Table => output::line(&entry_cells(&entry).join("  "))?,
            }
        }
        return Ok(());
    }
    let page = api
        .sync(
            arguments.cursor,
            arguments.limit,
            Duration::from_secs(arguments.wait),
        )
        .await
        .with_context(doing)?;
    match output {
        Output::Table => {
            let mut table =
                output::table(&["inbox", "time", "conversation", "seq", "from", "message"]);
            for entry in &page.entries {
                table.add_row(entry_cells(entry));
            }
            output::show(&table)?;
            output::line(&format!(
                "cursor {} of {}",
                page.inbox_cursor, page.inbox_head
            ))?;
        }
        Output::Json => output::json(&json!({
            "entries": page.entries.iter().map(entry_json).collect::<Vec<_>>(),
            "inbox_cursor": page.inbox_cursor,
            "inbox_head": page.inbox_head,
        }))?,
    }
    Ok(())
}

fn entry_cells(entry: &v1::InboxEntry) -> [String; 6] {
    let nothing = v1::Message::default();
    let message = entry.message.as_ref().unwrap_or(&nothing);
    [
        entry.inbox_seq.to_string(),
        present::clock(message.sent_at_ms),
        present::printable(&message.conversation_id),
        message.seq.to_string(),
        present::printable(&message.sender_id),
        present::content(message),
    ]
}

fn entry_json(entry: &v1::InboxEntry) -> Value {
    json!({
        "inbox_seq": entry.inbox_seq,
        "message": entry.message.as_ref().map(present::message_json),
    })
}

#[derive(Debug, Args)]
pub struct ConversationsArguments {
    #[command(flatten)]
    actor: Actor,
    /// At most this many.
    #[arg(short = 'n', long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=PAGE_ENTRIES_MAX as i64))]
    limit: u32,
    /// Go on after an earlier answer.
    #[arg(long, default_value = "", value_name = "TOKEN")]
    page_token: String,
}

/// Shows a user's conversations.
pub async fn conversations(
    arguments: ConversationsArguments,
    cluster: &Cluster,
    output: Output,
) -> anyhow::Result<()> {
    let user = &arguments.actor.user;
    let page = api(cluster, user)?
        .list_conversations(arguments.limit, &arguments.page_token)
        .await
        .with_context(|| format!("could not list the conversations of {user}"))?;
    match output {
        Output::Table => {
            output::show(&conversation_table(&page.conversations, user))?;
            output::line(&format!("{} unread in all", page.unread_total))?;
            if !page.next_page_token.is_empty() {
                output::line(&format!("more with --page-token {}", page.next_page_token))?;
            }
        }
        Output::Json => output::json(&json!({
            "conversations": page.conversations.iter().map(summary_json).collect::<Vec<_>>(),
            "next_page_token": page.next_page_token,
            "unread_total": page.unread_total,
        }))?,
    }
    Ok(())
}

/// The table of `conversations` and of `/list` in a chat.
pub fn conversation_table(list: &[v1::ConversationSummary], user: &str) -> comfy_table::Table {
    let mut table = output::table(&["#", "conversation", "id", "unread", "last"]);
    for (index, summary) in list.iter().enumerate() {
        let last = match &summary.last_message {
            Some(message) if present::is_notice(message) => preview(&present::content(message)),
            Some(message) => preview(&format!(
                "{}: {}",
                present::printable(&message.sender_id),
                present::content(message)
            )),
            None => String::new(),
        };
        table.add_row([
            (index + 1).to_string(),
            present::title(&summary.conversation_id, &summary.name, user),
            present::printable(&summary.conversation_id),
            match summary.unread {
                0 => String::new(),
                unread => unread.to_string(),
            },
            last,
        ]);
    }
    table
}

/// The beginning of a text, on one line.
pub fn preview(text: &str) -> String {
    let line = text.replace('\n', " ");
    if line.chars().count() <= PREVIEW_CHARS {
        return line;
    }
    let mut short: String = line.chars().take(PREVIEW_CHARS - 1).collect();
    short.push('…');
    short
}

fn summary_json(summary: &v1::ConversationSummary) -> Value {
    json!({
        "conversation_id": summary.conversation_id,
        "kind": present::kind(summary.kind()),
        "name": summary.name,
        "last_message": summary.last_message.as_ref().map(present::message_json),
        "unread": summary.unread,
        "read_seq": summary.read_seq,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn previews_are_short_and_on_one_line() {
        assert_eq!(preview("a\nb"), "a b");
        let long = "ä".repeat(200);
        assert_eq!(preview(&long).chars().count(), PREVIEW_CHARS);
    }
}
