//! What a cluster holds, as a text: who is in which conversation, every timeline, every
//! inbox from its beginning, read positions and unread counts. Two clusters with the same
//! text have the same contents for their clients.
//!
//! The text is kept with frozen data, so a line never changes its form; a later version may
//! add lines only for contents that earlier ones could not have.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use carillon_proto::v1;
use carillon_tests::rpc::{self, Chat};
use tokio::time::{Instant, sleep};

/// How long deliveries that were left undone may take.
const SETTLE_LIMIT: Duration = Duration::from_secs(20);
/// Between two looks.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// Entries of one page: more than a test's conversation or inbox has.
const PAGE: u32 = 500;

/// Waits until each of these users was delivered all of their conversations, and writes
/// down what they see.
pub async fn contents(address: &str, users: &[&str]) -> Result<String> {
    let mut chat = rpc::chat(address)?;
    let mut text = String::new();
    for user in users {
        let conversations = settled(&mut chat, user).await?;
        write_user(&mut chat, user, conversations, &mut text).await?;
    }
    Ok(text)
}

/// The last entry of a conversation.
pub async fn last_seq(chat: &mut Chat, user: &str, conversation: &str) -> Result<u64> {
    Ok(history(chat, user, conversation).await?.1)
}

async fn settled(chat: &mut Chat, user: &str) -> Result<Vec<v1::ConversationSummary>> {
    let deadline = Instant::now() + SETTLE_LIMIT;
    loop {
        let request = v1::ListConversationsRequest {
            page_size: PAGE,
            ..v1::ListConversationsRequest::default()
        };
        let answer = chat.list_conversations(rpc::as_user(user, request)).await?;
        let mut list = answer.into_inner().conversations;
        let mut behind = None;
        for one in &list {
            let last = last_seq(chat, user, &one.conversation_id).await?;
            let delivered = one.last_message.as_ref().map_or(0, |message| message.seq);
            if delivered < last {
                behind = Some(format!("{}: {delivered} of {last}", one.conversation_id));
            }
        }
        let Some(behind) = behind else {
            list.sort_by(|a, b| a.conversation_id.cmp(&b.conversation_id));
            return Ok(list);
        };
        if Instant::now() >= deadline {
            bail!("{user} was not delivered everything within {SETTLE_LIMIT:?}: {behind}");
        }
        sleep(POLL_INTERVAL).await;
    }
}

async fn history(
    chat: &mut Chat,
    user: &str,
    conversation: &str,
) -> Result<(Vec<v1::Message>, u64)> {
    let request = v1::GetMessagesRequest {
        conversation_id: conversation.to_owned(),
        limit: PAGE,
        bytes_max: 1 << 20,
        ..v1::GetMessagesRequest::default()
    };
    let answer = chat.get_messages(rpc::as_user(user, request)).await;
    let answer = answer.with_context(|| format!("{user} reads {conversation}"))?;
    let answer = answer.into_inner();
    Ok((answer.messages, answer.last_seq))
}

async fn write_user(
    chat: &mut Chat,
    user: &str,
    conversations: Vec<v1::ConversationSummary>,
    text: &mut String,
) -> Result<()> {
    writeln!(text, "user {user}")?;
    for one in conversations {
        let id = &one.conversation_id;
        let (messages, last) = history(chat, user, id).await?;
        let request = v1::ListMembersRequest {
            conversation_id: id.clone(),
            page_size: PAGE,
            ..v1::ListMembersRequest::default()
        };
        let members = chat.list_members(rpc::as_user(user, request)).await?;
        let members = members.into_inner().members;
        let members = members.iter().map(|member| {
            let role = member.role().as_str_name();
            format!("{} {role} from {}", member.user_id, member.joined_seq)
        });
        let members: Vec<String> = members.collect();
        writeln!(
            text,
            "  conversation {id} {:?}: last {last}, read {}, unread {}, members: {}",
            one.name,
            one.read_seq,
            one.unread,
            members.join(", ")
        )?;
        for message in messages {
            writeln!(text, "    {}", line(&message))?;
        }
    }
    let mut cursor = 0;
    loop {
        let request = v1::SyncRequest {
            inbox_cursor: cursor,
            limit: PAGE,
            wait_ms: 0,
        };
        let page = chat.sync(rpc::as_user(user, request)).await?.into_inner();
        for entry in &page.entries {
            let message = entry.message.as_ref().context("an entry without message")?;
            let (at, id) = (entry.inbox_seq, &message.conversation_id);
            writeln!(text, "  inbox {at}: {id} {}", line(message))?;
        }
        cursor = page.inbox_cursor;
        if cursor >= page.inbox_head {
            return Ok(());
        }
    }
}

fn line(message: &v1::Message) -> String {
    let content = message.content.as_ref().and_then(|it| it.kind.as_ref());
    let said = match content {
        Some(v1::content::Kind::Text(text)) => format!("text {:?}", text.body),
        Some(v1::content::Kind::Custom(custom)) => {
            format!("custom {:?} {:?}", custom.r#type, custom.data)
        }
        Some(v1::content::Kind::Notice(notice)) => match &notice.change {
            Some(v1::notice::Change::Created(it)) => {
                format!("created {:?} with {}", it.name, it.member_ids.join(" "))
            }
            Some(v1::notice::Change::MembersAdded(it)) => {
                format!("added {}", it.member_ids.join(" "))
            }
            Some(v1::notice::Change::MembersRemoved(it)) => {
                format!("removed {}", it.member_ids.join(" "))
            }
            None => "an unknown notice".to_owned(),
        },
        None => "an unknown content".to_owned(),
    };
    format!(
        "{} id {} at {} from {} as {:?}: {said}",
        message.seq,
        message.message_id,
        message.sent_at_ms,
        message.sender_id,
        message.client_message_id
    )
}
