//! `carillon chat`: a chat in the terminal.
//!
//! One loop owns everything: lines come from the terminal's thread, events from the
//! session, answers from the sends that are on their way. Read positions go out through a
//! task of their own, which always marks the newest.

mod rooms;
mod slash;
mod talk;
mod terminal;
mod view;

use std::io::IsTerminal;
use std::time::Duration;

use anyhow::Context;
use carillon_client::{Api, Client, ClientError, ConversationId, MemoryCursor};
use clap::Args;

use crate::arguments::{Actor, Cluster, Output};
use crate::commands::api;
use crate::failure::advised;
use talk::Talk;

/// The most characters of a device id, as the protocol has it.
const DEVICE_CHARS_MAX: usize = 64;
/// How long an unacknowledged message is tried again.
const SEND_LIMIT: Duration = Duration::from_secs(60);

#[derive(Debug, Args)]
pub struct ChatArguments {
    #[command(flatten)]
    actor: Actor,
    /// Begin with this user.
    #[arg(
        long,
        visible_alias = "to",
        value_name = "USER",
        conflicts_with = "conversation"
    )]
    with: Option<String>,
    /// Begin in this conversation.
    #[arg(short, long, value_name = "ID")]
    conversation: Option<String>,
    /// This device's id. Default: made from this machine and terminal.
    #[arg(long, value_name = "ID")]
    device: Option<String>,
}

/// Chats until the user leaves.
pub async fn run(
    arguments: ChatArguments,
    cluster: &Cluster,
    output: Output,
) -> anyhow::Result<()> {
    if output == Output::Json {
        return Err(advised(
            "a chat is for people and has no JSON form",
            "programs use `carillon sync --follow -o json` and `carillon send -o json`",
        ));
    }
    let user = &arguments.actor.user;
    let could_not = || format!("could not connect as {user}");
    // What is older than this moment is read as history, not as news.
    let head = inbox_head(&api(cluster, user)?)
        .await
        .with_context(could_not)?;
    let client = Client::builder(&cluster.endpoints)
        .credentials(cluster.credentials()?)
        .user(user)
        .device(arguments.device.unwrap_or_else(device_id))
        .platform("terminal")
        .cursor_store(MemoryCursor::starting_at(head))
        .send_timeout(SEND_LIMIT)
        .connect()
        .await
        .with_context(could_not)?;
    let start = match (&arguments.with, arguments.conversation) {
        (Some(peer), _) => Some(ConversationId::direct(user, peer)),
        (None, Some(id)) => Some(id.into()),
        (None, None) => None,
    };
    let (screen, lines) = terminal::open()?;
    let mut talk = Talk::new(client.clone(), screen);
    let outcome = talk.run(lines, start).await;
    drop(talk);
    client.close().await;
    outcome
}

async fn inbox_head(api: &Api) -> Result<u64, ClientError> {
    Ok(api.sync(0, 1, Duration::ZERO).await?.inbox_head)
}

/// The same in the same terminal of the same machine, different in another one: two
/// windows of one user are two devices.
fn device_id() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let terminal = std::fs::read_link("/proc/self/fd/0")
        .ok()
        .filter(|_| std::io::stdin().is_terminal())
        .map(|path| path.display().to_string().replace('/', "."));
    let place = terminal.unwrap_or_else(|| {
        let random: u64 = rand::random();
        format!(".{random:016x}")
    });
    let text = format!("cli-{}{place}", host.trim());
    text.chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || c == '.' {
                c
            } else {
                '-'
            }
        })
        .take(DEVICE_CHARS_MAX)
        .collect()
}
