//! `carillon dev --demo`: something to look at in a new cluster. Repeating it adds
//! nothing: the group and the messages have ids of their own.

use anyhow::Context;
use carillon_client::{Client, ClientError, ConversationId, text};
use serde_json::json;

use crate::arguments::Output;
use crate::output::{self, Paint};

/// The group's id.
pub const GROUP: &str = "welcome";

/// Who says what, to the group or to each other; the last is the message's own id.
const LINES: [(&str, To, &str, &str); 5] = [
    ("alice", To::Group, "Welcome to Carillon!", "demo-1"),
    (
        "bob",
        To::Group,
        "Every message here is on three disks before it says “stored”.",
        "demo-2",
    ),
    (
        "alice",
        To::Group,
        "Kill a node while we chat: kill -9 a pid from the table above.",
        "demo-3",
    ),
    (
        "bob",
        To::Other,
        "Hi Alice, this is just for you.",
        "demo-4",
    ),
    (
        "alice",
        To::Other,
        "Got it. `carillon chat --as alice --with bob` shows it.",
        "demo-5",
    ),
];

enum To {
    Group,
    Other,
}

/// Creates alice, bob and their group, and lets them talk.
pub async fn run(endpoints: &[String], output: Output) -> anyhow::Result<()> {
    let alice = Client::builder(endpoints).user("alice").api()?;
    let bob = Client::builder(endpoints).user("bob").api()?;
    match alice
        .create_group(Some(GROUP.into()), "Welcome", &["bob"])
        .await
    {
        Ok(_) | Err(ClientError::ConversationExists(_)) => {}
        Err(error) => return Err(error).context("could not create the demo group"),
    }
    for (sender, to, line, id) in LINES {
        let api = if sender == "alice" { &alice } else { &bob };
        let conversation = match to {
            To::Group => ConversationId::from(GROUP),
            To::Other => ConversationId::direct("alice", "bob"),
        };
        api.send_with_id(conversation, id, text(line))
            .await
            .with_context(|| format!("could not send the demo message of {sender}"))?;
    }
    match output {
        Output::Json => output::json_line(&json!({
            "state": "demo", "users": ["alice", "bob"], "group": GROUP,
        }))?,
        Output::Table => {
            let paint = Paint::for_stdout();
            output::line(&format!(
                "\n{} users alice and bob, their group “Welcome”, {} messages",
                paint.good("✓"),
                LINES.len()
            ))?;
        }
    }
    Ok(())
}
