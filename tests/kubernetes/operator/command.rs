//! The command as its users type it: `kubectl carillon`, by its other name.

use std::env;
use std::process::Output;

use anyhow::{Context as _, ensure};
use carillon_e2e::chat::{Kind, NAME, Test, Trial};
use serde_json::json;
use tokio::process::Command;

/// Runs `carillon kubernetes …` in the namespace of a trial.
async fn carillon(trial: &Trial, arguments: &[&str]) -> anyhow::Result<Output> {
    let command = env::var_os("CARILLON_COMMAND");
    let command = command.context("CARILLON_COMMAND names no command; use make e2e")?;
    let mut command = Command::new(command);
    command.args(["kubernetes", "--namespace", &trial.chat.namespace.name]);
    Ok(command.args(arguments).output().await?)
}

async fn printed(trial: &Trial, arguments: &[&str]) -> anyhow::Result<String> {
    let Output {
        status,
        stdout,
        stderr,
    } = carillon(trial, arguments).await?;
    let (stdout, stderr) = (String::from_utf8(stdout)?, String::from_utf8(stderr)?);
    println!(
        "$ carillon kubernetes {}\n{stdout}{stderr}",
        arguments.join(" ")
    );
    ensure!(status.success(), "{arguments:?} ended with {status}");
    Ok(stdout)
}

async fn refused(trial: &Trial, arguments: &[&str], said: &str) -> anyhow::Result<()> {
    let Output { status, stderr, .. } = carillon(trial, arguments).await?;
    let stderr = String::from_utf8(stderr)?;
    ensure!(!status.success(), "{arguments:?} was taken");
    ensure!(stderr.contains(said), "{arguments:?}: {stderr}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes: make e2e"]
async fn the_command_shows_and_changes_a_cluster() -> anyhow::Result<()> {
    let test = "the command";
    Test::new(test, json!({}), Kind::Planned)
        .run(async |trial| {
            let screen = printed(trial, &["status", NAME]).await?;
            for said in [
                "all is as the spec wants it",
                "nodes 3/3",
                "chat-2",
                "clients chat-",
            ] {
                ensure!(screen.contains(said), "{said} is not on the screen");
            }
            printed(trial, &["pause", NAME]).await?;
            printed(trial, &["restart", NAME]).await?;
            let waits = carillon(trial, &["wait", NAME, "--timeout", "5"]).await?;
            ensure!(waits.status.code() == Some(3), "it is paused: {waits:?}");
            let said = String::from_utf8(waits.stdout)?;
            ensure!(said.contains("not done within 5s"), "it says {said}");
            printed(trial, &["resume", NAME]).await?;
            let steps = printed(trial, &["wait", NAME]).await?;
            for said in ["chat-0", "chat-1", "chat-2", "is as its spec wants it"] {
                ensure!(steps.contains(said), "{said} is not among the steps");
            }
            refused(trial, &["status", "other"], "there is no imcluster other").await?;
            refused(
                trial,
                &["scale", NAME, "2"],
                "at least spec.replicationFactor",
            )
            .await?;
            let unknown = ["scale", NAME, "4", "--leave", "chat-9"];
            refused(trial, &unknown, "there is no member chat-9").await
        })
        .await
}
