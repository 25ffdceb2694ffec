//! `carillon kubernetes port-forward | chat`: a cluster as its clients see it, from this machine.

use std::path::{Path, PathBuf};

use carillon_crds::ImCluster;
use clap::Args;
use serde_json::json;
use tokio::signal::ctrl_c;

use super::access::{authority, explained};
use super::connect::Connection;
use super::forward::{Forward, State};
use super::pods::CLIENT_PORT;
use crate::arguments::{Cluster, Output};
use crate::commands::chat::{self, ChatArguments};
use crate::failure::{advised, because};
use crate::output;

#[derive(Debug, Args)]
pub struct PortForwardArguments {
    /// The ImCluster.
    #[arg(value_name = "NAME")]
    name: String,
    /// The port of this machine. Default: any that is free.
    #[arg(
        long,
        value_name = "PORT",
        default_value_t = 0,
        hide_default_value = true
    )]
    local_port: u16,
    /// Write the certificate that clients trust to this file.
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct ClusterChatArguments {
    /// The ImCluster.
    #[arg(value_name = "NAME")]
    name: String,
    #[command(flatten)]
    chat: ChatArguments,
}

/// Leads clients of this machine to a cluster, until Ctrl-C.
pub(super) async fn port_forward(
    connection: &Connection,
    arguments: &PortForwardArguments,
    output: Output,
) -> anyhow::Result<()> {
    let PortForwardArguments {
        name,
        local_port,
        ca_file,
    } = arguments;
    let cluster = connection.cluster(name).await?;
    if let Some(file) = ca_file {
        own_authority(&cluster)?;
        let pem = authority(connection, name).await?;
        std::fs::write(file, pem).map_err(|error| {
            let what = format!("{} could not be written", file.display());
            because(error, what, "choose another --ca-file")
        })?;
    }
    let forward = Forward::open(connection, name, CLIENT_PORT, *local_port).await?;
    let endpoint = forward.endpoint();
    match output {
        Output::Table => {
            for line in how_to(name, &endpoint, ca_file.as_deref(), &cluster) {
                output::line(&line)?;
            }
        }
        Output::Json => output::json_line(&json!({
            "endpoint": endpoint,
            "ca_file": ca_file,
        }))?,
    }
    let mut changes = forward.state();
    let told = async {
        let mut said = State::default();
        loop {
            let now = changes.borrow_and_update().clone();
            if let Some(news) = news(&said, &now) {
                match output {
                    Output::Table => output::line(&news)?,
                    Output::Json => output::json_line(&json!({
                        "through": now.through,
                        "trouble": now.trouble,
                    }))?,
                }
            }
            said = now;
            if changes.changed().await.is_err() {
                return anyhow::Ok(());
            }
        }
    };
    tokio::select! {
        told = told => told,
        interrupted = ctrl_c() => Ok(interrupted?),
    }
}

/// What is worth a line when a connection was led, or could not be.
fn news(before: &State, now: &State) -> Option<String> {
    if let Some(trouble) = &now.trouble {
        let new = now.trouble != before.trouble;
        return new.then(|| format!("a connection could not be led on: {trouble}"));
    }
    let through = now.through.as_ref()?;
    (now.through != before.through || before.trouble.is_some())
        .then(|| format!("connections are led to {through}"))
}

fn how_to(name: &str, endpoint: &str, ca: Option<&Path>, cluster: &ImCluster) -> Vec<String> {
    let mut lines = vec![format!(
        "clients of {name} connect to {endpoint} (127.0.0.1 only), until Ctrl-C"
    )];
    if cluster.spec.tls.clients.is_some() {
        lines.push(
            "they see the certificate of spec.tls.clients, and connect by a name that is in it"
                .to_owned(),
        );
        return lines;
    }
    let file = ca.map_or_else(|| "ca.crt".to_owned(), |path| path.display().to_string());
    lines.push(format!(
        "  carillon chat --endpoint {endpoint} --ca {file} --token-file FILE --as USER"
    ));
    if ca.is_none() {
        lines.push("--ca-file ca.crt writes that file".to_owned());
    }
    lines
}

/// A certificate of somebody else's names other hosts than this machine.
fn own_authority(cluster: &ImCluster) -> anyhow::Result<()> {
    match &cluster.spec.tls.clients {
        None => Ok(()),
        Some(_) => Err(advised(
            "clients see the certificate of spec.tls.clients, whose authority the operator does \
             not know",
            "connect by the name that is in it: carillon chat --endpoint NAME:PORT, with --ca FILE \
             or --ca system",
        )),
    }
}

/// Chats through a port-forward.
pub(super) async fn chat(
    connection: &Connection,
    arguments: ClusterChatArguments,
    given: &Cluster,
    output: Output,
) -> anyhow::Result<()> {
    let ClusterChatArguments { name, chat } = arguments;
    let cluster = connection.cluster(&name).await?;
    own_authority(&cluster)?;
    if cluster.spec.auth.is_none() {
        return Err(advised(
            format!("{name} accepts nobody's token: it has no spec.auth"),
            "docs/kubernetes.md shows how to make somebody known",
        ));
    }
    if given.token_file.is_none() {
        return Err(advised(
            format!("{name} has to know who chats"),
            "give a user's token, or the secret that `carillon server-key` showed, with \
             --token-file FILE; what Kubernetes has of the secret is only its hash",
        ));
    }
    let authority = match &given.ca {
        Some(_) => None,
        None => Some(authority(connection, &name).await?),
    };
    let credentials = given.trusting(authority)?;
    let forward = Forward::open(connection, &name, CLIENT_PORT, 0).await?;
    let found = Cluster::found(forward.endpoint(), credentials);
    let done = chat::run(chat, &found, output).await;
    done.map_err(|error| explained(&forward, &name, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(through: Option<&str>, trouble: Option<&str>) -> State {
        State {
            through: through.map(str::to_owned),
            trouble: trouble.map(str::to_owned),
        }
    }

    #[test]
    fn only_what_is_new_is_told() {
        let first = state(Some("chat-0"), None);
        assert_eq!(news(&first, &first), None);
        let lost = state(Some("chat-0"), Some("no member is ready"));
        let told = "a connection could not be led on: no member is ready";
        assert_eq!(news(&first, &lost).as_deref(), Some(told));
        assert_eq!(news(&lost, &lost), None);
        let other = state(Some("chat-1"), None);
        let told = "connections are led to chat-1";
        assert_eq!(news(&lost, &other).as_deref(), Some(told));
        assert_eq!(news(&state(None, None), &other).as_deref(), Some(told));
        let again = "connections are led to chat-0";
        assert_eq!(news(&lost, &first).as_deref(), Some(again));
    }

    #[test]
    fn how_to_connect_names_what_there_is() {
        let cluster = |tls: serde_json::Value| -> ImCluster {
            serde_json::from_value(json!({
                "apiVersion": "carillon.dev/v1alpha1",
                "kind": "ImCluster",
                "metadata": {"name": "chat"},
                "spec": {"version": "0.2.0", "storage": {"size": "10Gi"}, "tls": tls},
            }))
            .expect("an ImCluster")
        };
        let own = cluster(json!({}));
        let lines = how_to("chat", "localhost:4711", Some(Path::new("my.pem")), &own);
        assert_eq!(
            lines[1],
            "  carillon chat --endpoint localhost:4711 --ca my.pem --token-file FILE --as USER"
        );
        assert!(own_authority(&own).is_ok());
        let public = cluster(json!({"clients": {"secret": {"name": "public"}}}));
        assert!(!how_to("chat", "localhost:4711", None, &public)[1].contains("--ca"));
        assert!(own_authority(&public).is_err());
    }
}
