//! `carillon kubernetes`, which is also `kubectl carillon`: a cluster that the operator runs, seen
//! and changed by its `ImCluster`. The operator does the work; here it is asked for, shown and
//! waited for.
//!
//! Keeps no state. A change is a merge patch of the one field that it is about, so that it undoes
//! nothing of what others say.

mod access;
mod change;
mod clients;
mod connect;
mod forward;
mod lines;
mod logs;
mod members;
mod pods;
mod report;
mod screen;
mod wait;

use std::process::ExitCode;

use clap::{Args, Subcommand};

use self::connect::Connection;
use crate::arguments::{Cluster, Output};

#[derive(Debug, Args)]
pub struct KubernetesArguments {
    /// Where the ImCluster is. Default: what the context says.
    #[arg(short, long, global = true, value_name = "NAME")]
    namespace: Option<String>,
    /// A context of the kubeconfig. Default: the current one.
    #[arg(long, global = true, value_name = "NAME")]
    context: Option<String>,
    #[command(subcommand)]
    command: KubernetesCommand,
}

#[derive(Debug, Subcommand)]
pub enum KubernetesCommand {
    /// A cluster on one screen: how it is, what is being done, what that waits for.
    Status(StatusArguments),
    /// Change how many nodes there are; before a node goes its data moves away.
    Scale(change::ScaleArguments),
    /// Bring the nodes to another release, one after the other; an older one is a way back.
    Upgrade(change::UpgradeArguments),
    /// Restart the nodes, one after the other, without clients noticing.
    Restart(change::RestartArguments),
    /// Restart no further node for a change, until `resume`.
    Pause(change::NameArguments),
    /// Go on with what was paused.
    Resume(change::NameArguments),
    /// Wait until all is as the spec wants it, and show what is being done until then.
    Wait(wait::WaitArguments),
    /// All of `carillon admin`, with the cluster found by its name.
    Admin(members::ClusterAdminArguments),
    /// Empty a member by hand, while the operator holds still; show how far it is; take it back.
    ///
    /// The operator drains whom it restarts or removes by itself, and ends every other drain within
    /// half a minute. So a drain begins only while spec.paused is true. To move a member's Pod
    /// delete it; to remove a member use `scale --leave`.
    Drain(members::MemberDrainArguments),
    /// Let a member keep what it has and get nothing new, until the operator restarts it.
    Cordon(members::MemberArguments),
    /// Use a member for everything again.
    Uncordon(members::MemberArguments),
    /// Hand the leadership of a shard to a member.
    Promote(members::PromoteArguments),
    /// What the members write, each line led by the member's name.
    Logs(logs::LogsArguments),
    /// Lead clients of this machine to any member that serves, until Ctrl-C.
    PortForward(clients::PortForwardArguments),
    /// Chat in the terminal, with the cluster found by its name.
    Chat(clients::ClusterChatArguments),
    /// Gather what shows how a cluster is into one file, without secrets.
    Report(report::ReportArguments),
}

#[derive(Debug, Args)]
pub struct StatusArguments {
    /// The ImCluster.
    #[arg(value_name = "NAME")]
    name: String,
}

/// Carries out `carillon kubernetes …`.
pub async fn run(
    arguments: KubernetesArguments,
    given: &Cluster,
    output: Output,
) -> anyhow::Result<ExitCode> {
    let KubernetesArguments {
        namespace,
        context,
        command,
    } = arguments;
    let connection = Connection::open(context, namespace).await?;
    match command {
        KubernetesCommand::Status(arguments) => {
            screen::show(&connection, &arguments.name, output).await?;
        }
        KubernetesCommand::Scale(arguments) => {
            return change::scale(&connection, &arguments, output).await;
        }
        KubernetesCommand::Upgrade(arguments) => {
            return change::upgrade(&connection, &arguments, output).await;
        }
        KubernetesCommand::Restart(arguments) => {
            return change::restart(&connection, &arguments, output).await;
        }
        KubernetesCommand::Pause(arguments) => {
            change::pause(&connection, &arguments, true, output).await?;
        }
        KubernetesCommand::Resume(arguments) => {
            change::pause(&connection, &arguments, false, output).await?;
        }
        KubernetesCommand::Wait(arguments) => {
            return wait::run(&connection, &arguments, output).await;
        }
        KubernetesCommand::Admin(arguments) => {
            return members::admin(&connection, arguments, given, output).await;
        }
        KubernetesCommand::Drain(arguments) => {
            return members::drain(&connection, &arguments, given, output).await;
        }
        KubernetesCommand::Cordon(arguments) => {
            members::cordon(&connection, &arguments, true, given, output).await?;
        }
        KubernetesCommand::Uncordon(arguments) => {
            members::cordon(&connection, &arguments, false, given, output).await?;
        }
        KubernetesCommand::Promote(arguments) => {
            members::promote(&connection, &arguments, given, output).await?;
        }
        KubernetesCommand::Logs(arguments) => logs::run(&connection, &arguments, output).await?,
        KubernetesCommand::PortForward(arguments) => {
            clients::port_forward(&connection, &arguments, output).await?;
        }
        KubernetesCommand::Chat(arguments) => {
            clients::chat(&connection, arguments, given, output).await?;
        }
        KubernetesCommand::Report(arguments) => {
            report::run(&connection, &arguments, given, output).await?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
