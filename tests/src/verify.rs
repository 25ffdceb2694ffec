//! The end of a scenario: everything is answered and delivered, scanned through every
//! node, checked, and the replicas are compared.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use carillon_proto::v1;
use tokio::time::{Instant, sleep};
use tonic::Status;

use crate::checker::{self, Report};
use crate::harness::Cluster;
use crate::history::{
    ConversationId, Entry, FinalState, History, InboxScan, InboxSeq, Scan, Seq, Summary, UserId,
};
use crate::load::{Load, inbox_entry, is_transient};
use crate::rpc::{self, Chat};
use crate::sends::Sends;

/// From the end of sending until everything is answered.
const DRAIN_LIMIT: Duration = Duration::from_secs(20);
/// From then until every device has everything.
const DELIVERY_LIMIT: Duration = Duration::from_secs(20);
/// For the checksums of all shards.
const CHECKSUM_LIMIT: Duration = Duration::from_secs(20);
/// Entries of a page.
const PAGE_LIMIT: u32 = 500;
/// Tries of one call of the final scans.
const TRIES_MAX: u32 = 20;
/// Between two of them.
const RETRY_AFTER: Duration = Duration::from_millis(100);

/// Ends a load and checks everything that can be checked.
pub async fn verify(cluster: &Cluster, load: Load) -> Result<Report> {
    let mut nodes = Vec::new();
    for id in cluster.up_ids() {
        let chat = rpc::chat(&cluster.node(id).addresses().client)?;
        nodes.push((format!("node {id}"), chat));
    }
    let (report, _) = verify_through(nodes, load).await?;
    cluster.check_checksums(CHECKSUM_LIMIT).await?;
    Ok(report)
}

/// Ends a load and checks what clients of these nodes see; the names are for people. Says too how
/// sending went since the last [`Load::reset_longest_pause`].
pub async fn verify_through(nodes: Vec<(String, Chat)>, mut load: Load) -> Result<(Report, Sends)> {
    load.drain(DRAIN_LIMIT).await?;
    let started = Instant::now();
    let conversations = load.conversations().clone();
    let mut last = FinalState::default();
    let mut heads: BTreeMap<UserId, InboxSeq> = BTreeMap::new();
    for (conversation, members) in &conversations {
        let reader = members.first().context("a conversation without members")?;
        for (number, (via, chat)) in nodes.iter().enumerate() {
            let scan = scan(chat, via, conversation, reader).await?;
            if number == 0 {
                for member in members {
                    heads.entry(member.clone()).or_default().0 += scan.last_seq.0;
                }
            }
            last.scans.push(scan);
        }
    }
    let delivered = load.wait_delivered(&heads, DELIVERY_LIMIT).await;
    for user in heads.keys() {
        for (via, chat) in &nodes {
            last.inboxes.push(scan_inbox(chat, via, user).await?);
        }
        let (_, chat) = nodes.first().context("no node is up")?;
        summarise(chat, user, &mut last).await?;
    }
    let (pace, looked_at) = (load.pace(), load.looked_at());
    let history = History {
        conversations,
        devices: load.finish().await?,
        last,
    };
    let report = checker::check(&history);
    println!(
        "checked in {:?}: {report}; longest pause {:?}",
        started.elapsed(),
        pace.longest_pause
    );
    if !report.is_clean() {
        bail!("the cluster broke its promises: {report}");
    }
    delivered?;
    Ok((report, Sends::of(&history.devices, looked_at)))
}

/// Tries a call again while the node recovers.
async fn retried<T, F>(what: &str, mut call: F) -> Result<T>
where
    F: AsyncFnMut() -> Result<tonic::Response<T>, Status>,
{
    for tried in 1.. {
        match call().await {
            Ok(answer) => return Ok(answer.into_inner()),
            Err(status) if is_transient(status.code()) && tried < TRIES_MAX => {
                sleep(RETRY_AFTER).await;
            }
            Err(status) => return Err(status).with_context(|| what.to_owned()),
        }
    }
    unreachable!("the loop above ends only by returning")
}

async fn scan(
    chat: &Chat,
    via: &str,
    conversation: &ConversationId,
    reader: &UserId,
) -> Result<Scan> {
    let mut scan = Scan {
        via: via.to_owned(),
        conversation: conversation.clone(),
        entries: Vec::new(),
        last_seq: Seq(0),
    };
    let mut from_seq = 1;
    loop {
        let request = v1::GetMessagesRequest {
            conversation_id: conversation.to_string(),
            from_seq,
            to_seq: 0,
            direction: v1::Direction::Forward.into(),
            limit: PAGE_LIMIT,
            bytes_max: 1 << 20,
        };
        let what = format!("could not scan {conversation} via {via}");
        let call = async || {
            let request = rpc::as_user(reader.as_str(), request.clone());
            chat.clone().get_messages(request).await
        };
        let page = match retried(&what, call).await {
            Ok(page) => page,
            Err(error) => {
                // A direct conversation that nobody wrote to.
                let status = error.downcast_ref::<Status>().map(Status::code);
                if status == Some(tonic::Code::NotFound) {
                    return Ok(scan);
                }
                return Err(error);
            }
        };
        scan.entries.extend(page.messages.iter().map(Entry::of));
        scan.last_seq = Seq(page.last_seq);
        if page.next_seq == 0 {
            return Ok(scan);
        }
        if page.next_seq <= from_seq {
            bail!("{what}: next_seq {} does not move on", page.next_seq);
        }
        from_seq = page.next_seq;
    }
}

async fn scan_inbox(chat: &Chat, via: &str, user: &UserId) -> Result<InboxScan> {
    let mut scan = InboxScan {
        via: via.to_owned(),
        user: user.clone(),
        entries: Vec::new(),
        head: InboxSeq(0),
    };
    let mut cursor = 0;
    loop {
        let request = v1::SyncRequest {
            inbox_cursor: cursor,
            limit: PAGE_LIMIT,
            wait_ms: 0,
        };
        let what = format!("could not scan the inbox of {user} via {via}");
        let call = async || {
            chat.clone()
                .sync(rpc::as_user(user.as_str(), request))
                .await
        };
        let page = retried(&what, call).await?;
        scan.entries
            .extend(page.entries.iter().filter_map(inbox_entry));
        scan.head = InboxSeq(page.inbox_head);
        if page.entries.is_empty() || page.inbox_cursor >= page.inbox_head {
            return Ok(scan);
        }
        if page.inbox_cursor <= cursor {
            bail!("{what}: the cursor {cursor} does not move on");
        }
        cursor = page.inbox_cursor;
    }
}

async fn summarise(chat: &Chat, user: &UserId, last: &mut FinalState) -> Result<()> {
    let mut page_token = String::new();
    loop {
        let request = v1::ListConversationsRequest {
            page_size: 7,
            page_token: page_token.clone(),
        };
        let what = format!("could not list the conversations of {user}");
        let call = async || {
            let request = rpc::as_user(user.as_str(), request.clone());
            chat.clone().list_conversations(request).await
        };
        let page = retried(&what, call).await?;
        for row in &page.conversations {
            last.summaries.push(Summary {
                user: user.clone(),
                conversation: row.conversation_id.as_str().into(),
                unread: row.unread,
                read_seq: Seq(row.read_seq),
            });
        }
        if page.next_page_token.is_empty() {
            last.unread_totals.push((user.clone(), page.unread_total));
            return Ok(());
        }
        page_token = page.next_page_token;
    }
}
