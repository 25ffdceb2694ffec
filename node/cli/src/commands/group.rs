//! `carillon group`: groups and their members.

use anyhow::Context;
use carillon_client::proto as v1;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::arguments::{Actor, Cluster, Output};
use crate::commands::api;
use crate::output;
use crate::present;

/// The most entries that the protocol gives on one page.
const PAGE_ENTRIES_MAX: u32 = 500;
/// Pages of members that are read; a group has at most 500.
const MEMBER_PAGES_MAX: usize = 16;

#[derive(Debug, Subcommand)]
pub enum GroupCommand {
    /// Create a group; its creator is the owner.
    Create(CreateArguments),
    /// Add members; any member may.
    Add(ChangeArguments),
    /// Remove members: the owner anyone, a member only themselves.
    Remove(ChangeArguments),
    /// Show the members.
    Members(MembersArguments),
}

#[derive(Debug, Args)]
pub struct CreateArguments {
    #[command(flatten)]
    actor: Actor,
    /// What it is called.
    #[arg(long, default_value = "")]
    name: String,
    /// Its id. Default: the server makes one.
    #[arg(long)]
    id: Option<String>,
    /// The other members.
    members: Vec<String>,
}

#[derive(Debug, Args)]
pub struct ChangeArguments {
    #[command(flatten)]
    actor: Actor,
    /// The group's id.
    group: String,
    /// The users.
    #[arg(required = true)]
    members: Vec<String>,
}

#[derive(Debug, Args)]
pub struct MembersArguments {
    #[command(flatten)]
    actor: Actor,
    /// The conversation's id.
    group: String,
}

/// Carries out `carillon group …`.
pub async fn run(command: GroupCommand, cluster: &Cluster, output: Output) -> anyhow::Result<()> {
    match command {
        GroupCommand::Create(arguments) => create(arguments, cluster, output).await,
        GroupCommand::Add(arguments) => add(arguments, cluster, output).await,
        GroupCommand::Remove(arguments) => remove(arguments, cluster, output).await,
        GroupCommand::Members(arguments) => members(arguments, cluster, output).await,
    }
}

async fn create(
    arguments: CreateArguments,
    cluster: &Cluster,
    output: Output,
) -> anyhow::Result<()> {
    let members: Vec<&str> = arguments.members.iter().map(String::as_str).collect();
    let group = api(cluster, &arguments.actor.user)?
        .create_group(
            arguments.id.as_ref().map(Into::into),
            &arguments.name,
            &members,
        )
        .await
        .context("could not create the group")?;
    match output {
        Output::Table => output::line(&format!(
            "group {} with {} members",
            present::printable(&group.conversation_id),
            group.member_count
        ))?,
        Output::Json => output::json(&present::conversation_json(&group))?,
    }
    Ok(())
}

async fn add(arguments: ChangeArguments, cluster: &Cluster, output: Output) -> anyhow::Result<()> {
    let ChangeArguments {
        actor,
        group,
        members,
    } = arguments;
    let members: Vec<&str> = members.iter().map(String::as_str).collect();
    let answer = api(cluster, &actor.user)?
        .add_members(&group, &members)
        .await
        .with_context(|| format!("could not add members to {group}"))?;
    changed(
        output,
        "added",
        &answer.added_ids,
        answer.conversation.as_ref(),
    )
}

async fn remove(
    arguments: ChangeArguments,
    cluster: &Cluster,
    output: Output,
) -> anyhow::Result<()> {
    let ChangeArguments {
        actor,
        group,
        members,
    } = arguments;
    let members: Vec<&str> = members.iter().map(String::as_str).collect();
    let answer = api(cluster, &actor.user)?
        .remove_members(&group, &members)
        .await
        .with_context(|| format!("could not remove members from {group}"))?;
    changed(
        output,
        "removed",
        &answer.removed_ids,
        answer.conversation.as_ref(),
    )
}

fn changed(
    output: Output,
    verb: &str,
    ids: &[String],
    group: Option<&v1::Conversation>,
) -> anyhow::Result<()> {
    match output {
        Output::Table => {
            let who = if ids.is_empty() {
                "nobody".to_owned()
            } else {
                present::printable(&ids.join(", "))
            };
            let count = group.map_or(0, |group| group.member_count);
            output::line(&format!("{verb} {who}; {count} members now"))?;
        }
        Output::Json => {
            let mut value = json!({ "conversation": group.map(present::conversation_json) });
            value[format!("{verb}_ids")] = Value::from(ids);
            output::json(&value)?;
        }
    }
    Ok(())
}

async fn members(
    arguments: MembersArguments,
    cluster: &Cluster,
    output: Output,
) -> anyhow::Result<()> {
    let api = api(cluster, &arguments.actor.user)?;
    let list = all_members(&api, &arguments.group)
        .await
        .with_context(|| format!("could not list the members of {}", arguments.group))?;
    match output {
        Output::Table => {
            let mut table = output::table(&["user", "role", "since"]);
            for member in &list {
                table.add_row([
                    present::printable(&member.user_id),
                    role(member.role()).to_owned(),
                    member.joined_seq.to_string(),
                ]);
            }
            output::show(&table)?;
        }
        Output::Json => {
            let list: Vec<Value> = list
                .iter()
                .map(|member| {
                    json!({
                        "user_id": member.user_id,
                        "role": role(member.role()),
                        "joined_seq": member.joined_seq,
                    })
                })
                .collect();
            output::json(&json!({ "members": list }))?;
        }
    }
    Ok(())
}

/// All members of a conversation, page by page.
pub async fn all_members(
    api: &carillon_client::Api,
    conversation: &str,
) -> Result<Vec<v1::Member>, carillon_client::ClientError> {
    let mut list = Vec::new();
    let mut token = String::new();
    for _ in 0..MEMBER_PAGES_MAX {
        let page = api
            .list_members(conversation, PAGE_ENTRIES_MAX, &token)
            .await?;
        list.extend(page.members);
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    Ok(list)
}

/// A member's role in a word.
pub fn role(role: v1::MemberRole) -> &'static str {
    match role {
        v1::MemberRole::Owner => "owner",
        v1::MemberRole::Member => "member",
        v1::MemberRole::Unspecified => "unknown",
    }
}
