//! The commands, one file or folder each.

pub mod admin;
pub mod chat;
pub mod dev;
pub mod group;
pub mod kubernetes;
pub mod messages;
pub mod server_key;

use std::process::ExitCode;
use std::time::Duration;

use carillon_client::{Api, Client};

use crate::arguments::{Arguments, Cluster, Command};
use crate::bench;

/// How long a call is tried: longer than an election takes, shorter than people wait.
const CALL_LIMIT: Duration = Duration::from_secs(5);

/// Carries out what was typed.
pub async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let Arguments {
        output,
        cluster,
        command,
    } = arguments;
    match command {
        Command::Dev(arguments) => return dev::run(arguments, output).await,
        Command::Chat(arguments) => chat::run(arguments, &cluster, output).await?,
        Command::Send(arguments) => messages::send(arguments, &cluster, output).await?,
        Command::History(arguments) => messages::history(arguments, &cluster, output).await?,
        Command::Sync(arguments) => messages::sync(arguments, &cluster, output).await?,
        Command::Conversations(arguments) => {
            messages::conversations(arguments, &cluster, output).await?;
        }
        Command::Group(command) => group::run(command, &cluster, output).await?,
        Command::ServerKey(arguments) => server_key::run(&arguments, output)?,
        Command::Kubernetes(arguments) => {
            return kubernetes::run(arguments, &cluster, output).await;
        }
        Command::Admin(command) => return admin::run(command, &cluster, output).await,
        Command::Bench(_) if cluster.is_secured() => {
            return Err(crate::failure::advised(
                "measuring is for clusters in development mode",
                "leave out --ca, --certificate and --token-file, and unset their variables",
            ));
        }
        Command::Bench(arguments) => return bench::run(*arguments, &cluster, output).await,
    }
    Ok(ExitCode::SUCCESS)
}

/// The unary calls as a user.
pub fn api(cluster: &Cluster, user: &str) -> anyhow::Result<Api> {
    let api = Client::builder(&cluster.endpoints)
        .credentials(cluster.credentials()?)
        .user(user)
        .call_timeout(CALL_LIMIT)
        .api()?;
    Ok(api)
}
