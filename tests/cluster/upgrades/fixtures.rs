//! Data directories of released versions, frozen when they were released: the present
//! version starts on each of them, has all that they have, and goes on.
//!
//! `scripts/freeze-fixture.sh` makes one (see `tests/fixtures/README.md`).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use carillon_proto::v1;
use carillon_tests::harness::{Cluster, ClusterOptions, NodeOptions};
use carillon_tests::rpc::{self, Chat};
use tokio::task::JoinSet;

use super::contents::{contents, last_seq};

/// Everybody in the frozen data.
const USERS: [&str; 4] = ["ana", "ben", "cleo", "dora"];
/// Small files, so that the data is small and has several of them.
const CONFIG: &str = "\n[log]\nsegment_bytes = 65536\nentries_kept = 16\n";
/// Sent in the moment of the crash that ends the data.
const LAST_MESSAGES: u64 = 40;

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/data")
}

fn options(data: Option<PathBuf>) -> ClusterOptions {
    let node = NodeOptions {
        data,
        ..NodeOptions::default()
    };
    ClusterOptions {
        nodes: 1,
        shards: 4,
        replication_factor: 1,
        extra_config: CONFIG.to_owned(),
        per_node: BTreeMap::from([(1, node)]),
        ..ClusterOptions::default()
    }
}

async fn say(
    chat: &mut Chat,
    user: &str,
    conversation: &str,
    id: &str,
) -> Result<v1::SendResponse> {
    let request = v1::SendRequest {
        conversation_id: conversation.to_owned(),
        client_message_id: id.to_owned(),
        content: Some(rpc::text(format!("{user} says {id}"))),
    };
    let sent = chat.send(rpc::as_user(user, request)).await;
    let sent = sent.with_context(|| format!("{user} sends {id} to {conversation}"))?;
    Ok(sent.into_inner())
}

async fn mark_read(chat: &mut Chat, user: &str, conversation: &str, read_seq: u64) -> Result<()> {
    let request = v1::MarkReadRequest {
        conversation_id: conversation.to_owned(),
        read_seq,
    };
    chat.mark_read(rpc::as_user(user, request)).await?;
    Ok(())
}

/// Every frozen data directory is read, and the node goes on with it.
#[tokio::test(flavor = "multi_thread")]
async fn data_of_every_release_is_read_and_goes_on() -> Result<()> {
    let mut versions = Vec::new();
    for entry in std::fs::read_dir(directory())? {
        versions.push(entry?.path());
    }
    versions.sort();
    ensure!(!versions.is_empty(), "there are no frozen data directories");
    for version in versions {
        goes_on(&version)
            .await
            .with_context(|| format!("the data of {}", version.display()))?;
    }
    Ok(())
}

async fn goes_on(version: &Path) -> Result<()> {
    let frozen = std::fs::read_to_string(version.join("contents.txt"))?;
    let mut cluster = Cluster::start(options(Some(version.join("data.tar.gz")))).await?;
    // The formats that are written from here on must be readable too.
    for (started, finalizes) in [
        ("at once", false),
        ("after a restart", true),
        ("after the upgrade was finalized", false),
    ] {
        let address = cluster.node(1).addresses().client.clone();
        let found = contents(&address, &USERS).await?;
        let mut lines = frozen.lines().zip(found.lines());
        if let Some((was, is)) = lines.find(|(was, is)| was != is) {
            anyhow::bail!("{started}: it was {was:?}, and is {is:?}");
        }
        ensure!(frozen == found, "{started}: lines are missing, or too many");
        if finalizes {
            ensure!(cluster.finalize_upgrade(1).await?, "nothing was finalized");
        }
        cluster.stop_gracefully(1).await?;
        cluster.restart(1).await?;
    }
    let mut chat = rpc::chat(&cluster.node(1).addresses().client)?;
    for conversation in ["direct:ana:ben", "team"] {
        let last = last_seq(&mut chat, "ana", conversation).await?;
        // What ana sent before the crash is known, whoever asks again.
        let again = say(&mut chat, "ana", conversation, "ana-1").await?;
        ensure!(
            again.duplicate && again.seq <= last,
            "stored twice: {again:?}"
        );
        let new = say(&mut chat, "ana", conversation, "after-the-upgrade").await?;
        let new = new.seq;
        ensure!(new == last + 1, "{conversation}: {new} follows {last}");
        let text = contents(&cluster.node(1).addresses().client, &["ben"]).await?;
        let told = text.lines().filter(|line| line.starts_with("  inbox"));
        let told = told.filter(|line| line.contains(&format!(": {conversation} {new} id")));
        ensure!(
            told.count() == 1,
            "ben was not told of {conversation} {new}"
        );
    }
    Ok(())
}

/// Makes a data directory and the text of its contents in `CARILLON_FREEZE_INTO`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "makes the frozen data of a release; scripts/freeze-fixture.sh runs it"]
async fn freeze() -> Result<()> {
    let into =
        std::env::var_os("CARILLON_FREEZE_INTO").context("CARILLON_FREEZE_INTO is not set")?;
    let into = PathBuf::from(into);
    let mut cluster = Cluster::start(options(None)).await?;
    populate(&cluster).await?;
    cluster.kill9(1).await?;
    let copied = Command::new("cp")
        .arg("-a")
        .arg(cluster.node(1).data_dir())
        .arg(into.join("data"))
        .status()?;
    ensure!(copied.success(), "the data could not be copied: {copied}");
    // What is in it is what the version that wrote it finds in it.
    cluster.restart(1).await?;
    let text = contents(&cluster.node(1).addresses().client, &USERS).await?;
    std::fs::write(into.join("contents.txt"), text)?;
    Ok(())
}

/// Fills a cluster with one of everything that clients can make, partly flushed, partly in
/// the log only, and with deliveries under way.
async fn populate(cluster: &Cluster) -> Result<()> {
    let address = &cluster.node(1).addresses().client;
    let mut chat = rpc::chat(address)?;
    let request = v1::CreateConversationRequest {
        conversation_id: "team".to_owned(),
        name: "The team ♪".to_owned(),
        member_ids: vec!["ben".to_owned(), "cleo".to_owned()],
        request_id: "create".to_owned(),
    };
    chat.create_conversation(rpc::as_user("ana", request))
        .await?;
    for number in 0..12 {
        let user = ["ana", "ben"][number % 2];
        say(
            &mut chat,
            user,
            "direct:ana:ben",
            &format!("{user}-{number}"),
        )
        .await?;
        let user = ["cleo", "ana", "ben"][number % 3];
        say(&mut chat, user, "team", &format!("{user}-{number}")).await?;
    }
    say(&mut chat, "ana", "direct:ana:ben", "ana-1").await?;
    say(&mut chat, "dora", "direct:ana:dora", "dora-1").await?;
    let request = v1::AddMembersRequest {
        conversation_id: "team".to_owned(),
        member_ids: vec!["dora".to_owned()],
    };
    chat.add_members(rpc::as_user("ana", request)).await?;
    contents(address, &USERS).await?;
    mark_read(&mut chat, "ben", "direct:ana:ben", 5).await?;
    mark_read(&mut chat, "cleo", "team", 7).await?;
    for shard in cluster.shards().await? {
        cluster.snapshot(shard.shard_id, 1).await?;
    }
    for number in 0..20 {
        let user = ["dora", "ana"][number % 2];
        say(&mut chat, user, "team", &format!("{user}-late-{number}")).await?;
    }
    let request = v1::RemoveMembersRequest {
        conversation_id: "team".to_owned(),
        member_ids: vec!["cleo".to_owned()],
    };
    chat.remove_members(rpc::as_user("ana", request)).await?;
    contents(address, &USERS).await?;
    mark_read(&mut chat, "ana", "team", 11).await?;
    let mut last = JoinSet::new();
    for number in 0..LAST_MESSAGES {
        let mut chat = chat.clone();
        last.spawn(async move {
            let id = format!("ben-last-{number}");
            say(&mut chat, "ben", "team", &id).await
        });
    }
    // The caller crashes the node now: these are acknowledged, and not all delivered.
    for sent in last.join_all().await {
        sent?;
    }
    Ok(())
}
