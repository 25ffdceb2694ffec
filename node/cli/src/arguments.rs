//! What can be typed.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use carillon_client::Credentials;
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::bench;
use crate::commands::{admin, chat, dev, group, kubernetes, messages, server_key};

/// Carillon: a self-hosted chat backend.
#[derive(Debug, Parser)]
#[command(name = "carillon", version, propagate_version = true)]
pub struct Arguments {
    /// How answers are shown.
    #[arg(
        short,
        long,
        global = true,
        value_enum,
        default_value_t,
        help_heading = "Global options"
    )]
    pub output: Output,
    #[command(flatten)]
    pub cluster: Cluster,
    #[command(subcommand)]
    pub command: Command,
}

/// What the command is called as a plugin of kubectl.
const KUBECTL_PLUGIN: &str = "kubectl-carillon";

impl Arguments {
    /// What was typed. As `kubectl carillon` it is all about Kubernetes.
    pub fn of_process() -> Self {
        Self::parse_from(as_typed(std::env::args_os().collect()))
    }
}

fn as_typed(mut typed: Vec<OsString>) -> Vec<OsString> {
    let called = typed.first().map(PathBuf::from);
    let plugin = called.is_some_and(|path| path.file_stem() == Some(KUBECTL_PLUGIN.as_ref()));
    if plugin {
        typed.insert(1, "kubernetes".into());
    }
    typed
}

/// How answers are shown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people
    #[default]
    Table,
    /// For programs: one JSON value, or one per line for what goes on
    Json,
}

/// Which cluster.
#[derive(Debug, Clone, Args)]
pub struct Cluster {
    /// A node's client address, host:port; repeat it or separate them by commas.
    #[arg(
        long = "endpoint",
        global = true,
        help_heading = "Global options",
        value_name = "HOST:PORT",
        env = "CARILLON_ENDPOINTS",
        value_delimiter = ',',
        default_value = "127.0.0.1:7401,127.0.0.1:7402,127.0.0.1:7403"
    )]
    pub endpoints: Vec<String>,
    /// Encrypt, and trust the authorities in this PEM file; `system` for those of this system.
    #[arg(
        long,
        global = true,
        help_heading = "Global options",
        value_name = "FILE",
        env = "CARILLON_CA"
    )]
    pub ca: Option<PathBuf>,
    /// The certificate of who administers, a PEM file.
    #[arg(
        long,
        global = true,
        help_heading = "Global options",
        value_name = "FILE",
        env = "CARILLON_CERTIFICATE",
        requires = "key"
    )]
    pub certificate: Option<PathBuf>,
    /// Its private key, a PEM file.
    #[arg(
        long,
        global = true,
        help_heading = "Global options",
        value_name = "FILE",
        env = "CARILLON_KEY",
        requires = "certificate"
    )]
    pub key: Option<PathBuf>,
    /// A file with a user's token or a server's secret, read again with each connection.
    #[arg(
        long,
        global = true,
        help_heading = "Global options",
        value_name = "FILE",
        env = "CARILLON_TOKEN_FILE"
    )]
    pub token_file: Option<PathBuf>,
    /// Found for this call, instead of what the options say.
    #[arg(skip)]
    found: Option<Credentials>,
}

/// What stands for the authorities that the system trusts.
const SYSTEM_AUTHORITIES: &str = "system";

impl Cluster {
    /// One that was found: where it is, how to be sure of it, and who calls.
    pub fn found(endpoint: String, credentials: Credentials) -> Self {
        Self {
            endpoints: vec![endpoint],
            ca: None,
            certificate: None,
            key: None,
            token_file: None,
            found: Some(credentials),
        }
    }

    /// Whether anything but a cluster in development mode is meant.
    pub fn is_secured(&self) -> bool {
        self.ca.is_some() || self.certificate.is_some() || self.token_file.is_some()
    }

    /// How to be sure of the cluster, and who calls.
    pub fn credentials(&self) -> anyhow::Result<Credentials> {
        self.trusting(None)
    }

    /// The same. This authority (PEM) is trusted when no option says whom to trust.
    pub fn trusting(&self, authority: Option<String>) -> anyhow::Result<Credentials> {
        if let Some(found) = &self.found {
            return Ok(found.clone());
        }
        let read = |path: &Path| {
            std::fs::read_to_string(path)
                .with_context(|| format!("could not read {}", path.display()))
        };
        let mut credentials = match authority {
            Some(pem) => Credentials::default().authority(pem),
            None => Credentials::default(),
        };
        if let Some(ca) = &self.ca {
            credentials = if ca.as_os_str() == SYSTEM_AUTHORITIES {
                credentials.system_authorities()
            } else {
                credentials.authority(read(ca)?)
            };
        }
        if let (Some(certificate), Some(key)) = (&self.certificate, &self.key) {
            credentials = credentials.certificate(read(certificate)?, read(key)?);
        }
        if let Some(path) = self.token_file.clone() {
            // The first time it must be there; later an empty one is refused by the cluster.
            read(&path)?;
            credentials =
                credentials.token_from(move || std::fs::read_to_string(&path).unwrap_or_default());
        }
        Ok(credentials)
    }
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a cluster on this machine, for development.
    Dev(dev::DevArguments),
    /// Chat in the terminal.
    Chat(chat::ChatArguments),
    /// Send one message.
    Send(messages::SendArguments),
    /// Show a conversation.
    History(messages::HistoryArguments),
    /// Show a user's inbox after a cursor.
    Sync(messages::SyncArguments),
    /// Show a user's conversations, the most recently active first.
    Conversations(messages::ConversationsArguments),
    /// Create groups and change their members.
    #[command(subcommand)]
    Group(group::GroupCommand),
    /// Look at and operate a cluster.
    Admin(admin::AdminArguments),
    /// A cluster that the operator runs; also `kubectl carillon`.
    #[command(visible_alias = "k8s")]
    Kubernetes(kubernetes::KubernetesArguments),
    /// Make a credential for a server of your product.
    ServerKey(server_key::ServerKeyArguments),
    /// Measure a cluster.
    Bench(Box<bench::BenchArguments>),
}

/// Who acts.
#[derive(Debug, Clone, Args)]
pub struct Actor {
    /// The user who acts.
    #[arg(long = "as", visible_alias = "user", value_name = "USER")]
    pub user: String,
}

/// A conversation, by its id or by the other user of a direct one.
#[derive(Debug, Clone, Args)]
#[group(required = true, multiple = false)]
pub struct Target {
    /// The other user of a direct conversation.
    #[arg(long = "to", visible_alias = "with", value_name = "USER")]
    pub peer: Option<String>,
    /// The conversation's id.
    #[arg(short, long, value_name = "ID")]
    pub conversation: Option<String>,
}

impl Target {
    /// The conversation's id, for `user`.
    pub fn id(&self, user: &str) -> carillon_client::ConversationId {
        match (&self.peer, &self.conversation) {
            (Some(peer), _) => carillon_client::ConversationId::direct(user, peer),
            (None, Some(id)) => id.into(),
            // clap lets neither pass only when the group is not required.
            (None, None) => "".into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn endpoints_come_repeated_or_separated() {
        let parse = |list: &[&str]| Arguments::try_parse_from(list).expect("parsed");
        let parsed = parse(&["carillon", "admin", "status", "--endpoint", "a:1,b:2"]);
        assert_eq!(parsed.cluster.endpoints, ["a:1", "b:2"]);
        let parsed = parse(&[
            "carillon",
            "--endpoint",
            "a:1",
            "--endpoint",
            "b:2",
            "-o",
            "json",
            "admin",
            "nodes",
        ]);
        assert_eq!(parsed.cluster.endpoints, ["a:1", "b:2"]);
        assert_eq!(parsed.output, Output::Json);
    }

    #[test]
    fn a_plugin_of_kubectl_is_about_kubernetes() {
        let typed = |list: &[&str]| as_typed(list.iter().map(OsString::from).collect());
        let plugin = typed(&["/usr/bin/kubectl-carillon", "status", "chat", "-n", "team"]);
        let parsed = Arguments::try_parse_from(plugin).expect("parsed");
        assert!(matches!(parsed.command, Command::Kubernetes(_)));
        let own = typed(&["carillon", "k8s", "scale", "chat", "5", "--wait"]);
        assert!(Arguments::try_parse_from(own).is_ok());
    }

    #[test]
    fn a_target_is_one_of_two() {
        let send = ["carillon", "send", "--as", "bob"];
        let with = |rest: &[&str]| {
            Arguments::try_parse_from(send.iter().copied().chain(rest.iter().copied()))
        };
        assert!(with(&["hi"]).is_err());
        assert!(with(&["--to", "a", "-c", "b", "hi"]).is_err());
        let parsed = with(&["--to", "alice", "hi"]).expect("parsed");
        match parsed.command {
            Command::Send(send) => {
                assert_eq!(send.target.id("bob").as_str(), "direct:alice:bob");
            }
            other => panic!("{other:?}"),
        }
    }
}
