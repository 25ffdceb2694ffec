//! Who plays in one test: users of its own, and what they do all the time.

use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, Result, ensure};
use carillon_proto::v1;
use carillon_tests::harness::{Cluster, ClusterOptions, shared_cluster};
use carillon_tests::rpc::{self, Chat};
use carillon_tests::session::Session;

/// Tells the tests of this executable apart.
static NEXT: AtomicU64 = AtomicU64::new(1);
/// How long one long poll of [`Cast::inbox`] waits, milliseconds.
const WAIT_MS: u32 = 5_000;
/// Long polls until an inbox must be where a test expects it.
const POLLS_MAX: u32 = 200;

/// The cast of one test.
pub struct Cast {
    /// The cluster that all tests share.
    pub cluster: &'static Cluster,
    number: u64,
}

impl Cast {
    pub async fn new() -> Result<Self> {
        Ok(Self {
            cluster: shared_cluster(ClusterOptions::default()).await?,
            number: NEXT.fetch_add(1, Ordering::Relaxed),
        })
    }

    /// The id of a user or a group of this test.
    pub fn id(&self, name: &str) -> String {
        format!("{name}.{}", self.number)
    }

    /// Two users and their direct conversation.
    pub fn pair(&self) -> (String, String, String) {
        let (alice, bob) = (self.id("alice"), self.id("bob"));
        let direct = rpc::direct_id(&alice, &bob);
        (alice, bob, direct)
    }

    /// A client of a node.
    pub fn chat(&self, node: u64) -> Result<Chat> {
        rpc::chat(self.address(node))
    }

    /// The client address of a node.
    pub fn address(&self, node: u64) -> &'static str {
        &self.cluster.node(node).addresses().client
    }

    /// Opens a stream and is welcomed.
    pub async fn open(
        &self,
        node: u64,
        user: &str,
        device: &str,
    ) -> Result<(Session, v1::Welcome)> {
        Session::open(self.address(node), user, device, None).await
    }

    /// Sends a text with the unary call.
    pub async fn say(
        &self,
        user: &str,
        conversation: &str,
        id: &str,
        body: &str,
    ) -> Result<v1::SendResponse> {
        let request = v1::SendRequest {
            conversation_id: conversation.to_owned(),
            client_message_id: id.to_owned(),
            content: Some(rpc::text(body)),
        };
        let answer = self.chat(1)?.send(rpc::as_user(user, request)).await;
        Ok(answer
            .with_context(|| format!("{user} sends {id}"))?
            .into_inner())
    }

    /// Says "0", "1" … so many times.
    pub async fn say_many(&self, user: &str, conversation: &str, count: u64) -> Result<()> {
        for number in 0..count {
            let id = format!("{user}-{number}");
            self.say(user, conversation, &id, &number.to_string())
                .await?;
        }
        Ok(())
    }

    /// Creates a group and waits until its notice is delivered to its owner.
    pub async fn group(&self, name: &str, owner: &str, members: &[&str]) -> Result<String> {
        let id = self.id(name);
        let request = v1::CreateConversationRequest {
            conversation_id: id.clone(),
            name: name.to_owned(),
            member_ids: members.iter().map(|member| (*member).to_owned()).collect(),
            request_id: "create".to_owned(),
        };
        let answer = self
            .chat(2)?
            .create_conversation(rpc::as_user(owner, request))
            .await?;
        let conversation = answer
            .into_inner()
            .conversation
            .context("no conversation")?;
        ensure!(
            conversation.conversation_id == id,
            "created {conversation:?}"
        );
        Ok(id)
    }

    /// The whole inbox of a user, once it has at least so many entries.
    pub async fn inbox(&self, user: &str, head: u64) -> Result<Vec<v1::InboxEntry>> {
        let mut entries: Vec<v1::InboxEntry> = Vec::new();
        let mut chat = self.chat(3)?;
        for _ in 0..POLLS_MAX {
            let request = v1::SyncRequest {
                inbox_cursor: entries.len() as u64,
                limit: 500,
                wait_ms: WAIT_MS,
            };
            let page = chat.sync(rpc::as_user(user, request)).await?.into_inner();
            entries.extend(page.entries);
            if entries.len() as u64 >= head {
                return Ok(entries);
            }
        }
        anyhow::bail!(
            "the inbox of {user} has {} of {head} entries",
            entries.len()
        )
    }

    /// Reads a timeline.
    pub async fn history(&self, user: &str, conversation: &str) -> Result<Vec<v1::Message>> {
        let request = v1::GetMessagesRequest {
            conversation_id: conversation.to_owned(),
            limit: 500,
            ..v1::GetMessagesRequest::default()
        };
        let answer = self
            .chat(2)?
            .get_messages(rpc::as_user(user, request))
            .await?;
        Ok(answer.into_inner().messages)
    }
}

/// The text of a message; empty when it is something else.
pub fn body(message: &v1::Message) -> &str {
    let kind = message
        .content
        .as_ref()
        .and_then(|content| content.kind.as_ref());
    match kind {
        Some(v1::content::Kind::Text(text)) => &text.body,
        _ => "",
    }
}

/// The change that a notice tells; none when it is something else.
pub fn change(message: &v1::Message) -> Option<&v1::notice::Change> {
    match message.content.as_ref()?.kind.as_ref()? {
        v1::content::Kind::Notice(notice) => notice.change.as_ref(),
        _ => None,
    }
}
