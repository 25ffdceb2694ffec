//! The command as its users type it: `kubectl carillon`, by its other name.

use std::env;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use carillon_crds::ImCluster;
use carillon_e2e::chat::{Kind, NAME, READY_LIMIT, Test, Trial};
use carillon_e2e::until;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::api::DeleteParams;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::timeout;

/// Who chats through the command.
const ANN: &str = "plugin-ann";
const BEN: &str = "plugin-ben";
/// Until a command that goes on says what it has to.
const SAYS_LIMIT: Duration = Duration::from_secs(60);
/// Until one that chats is done.
const CHAT_LIMIT: Duration = Duration::from_secs(60);

/// `carillon`.
fn command() -> anyhow::Result<Command> {
    let command = env::var_os("CARILLON_COMMAND");
    let command = command.context("CARILLON_COMMAND names no command; use make e2e")?;
    let mut command = Command::new(command);
    command.kill_on_drop(true);
    Ok(command)
}

/// `carillon kubernetes …` in the namespace of a trial.
fn plugin(trial: &Trial, arguments: &[&str]) -> anyhow::Result<Command> {
    let mut command = command()?;
    command.args(["kubernetes", "--namespace", &trial.chat.namespace.name]);
    command.args(arguments);
    Ok(command)
}

/// Runs `carillon kubernetes …` to its end.
async fn carillon(trial: &Trial, arguments: &[&str]) -> anyhow::Result<Output> {
    Ok(plugin(trial, arguments)?.output().await?)
}

/// What it printed, which may be long.
async fn quiet(trial: &Trial, arguments: &[&str]) -> anyhow::Result<String> {
    let Output {
        status,
        stdout,
        stderr,
    } = carillon(trial, arguments).await?;
    let stderr = String::from_utf8_lossy(&stderr);
    ensure!(
        status.success(),
        "{arguments:?} ended with {status}: {stderr}"
    );
    Ok(String::from_utf8(stdout)?)
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

/// What goes on until it is dropped, and the JSON that it prints, a line each.
struct Running {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Running {
    fn start(trial: &Trial, arguments: &[&str]) -> anyhow::Result<Self> {
        let mut command = plugin(trial, arguments)?;
        let mut child = command.stdout(Stdio::piped()).spawn()?;
        let stdout = child.stdout.take().context("it has no standard output")?;
        let lines = BufReader::new(stdout).lines();
        Ok(Self { child, lines })
    }

    /// The next that is as wanted.
    async fn says(&mut self, what: &str, wanted: impl Fn(&Value) -> bool) -> anyhow::Result<Value> {
        let reading = async {
            while let Some(line) = self.lines.next_line().await? {
                let said: Value = serde_json::from_str(&line).context(line)?;
                if wanted(&said) {
                    return Ok(said);
                }
            }
            bail!("it ended before it said {what}")
        };
        let said = timeout(SAYS_LIMIT, reading).await;
        said.with_context(|| format!("it did not say {what} within {SAYS_LIMIT:?}"))?
    }

    async fn end(mut self) -> anyhow::Result<()> {
        Ok(self.child.kill().await?)
    }
}

/// Files of a test, which go with it.
struct Folder(PathBuf);

impl Folder {
    fn create(trial: &Trial) -> anyhow::Result<Self> {
        let path = env::temp_dir().join(&trial.chat.namespace.name);
        fs::create_dir(&path)?;
        Ok(Self(path))
    }

    fn file(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What is left is in a folder for what is left.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A file with the secret of a server, which only its owner may read.
fn token_file(trial: &Trial, folder: &Folder) -> anyhow::Result<String> {
    let path = folder.file("secret");
    let mut options = OpenOptions::new();
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)?;
    file.write_all(trial.chat.secret().as_bytes())?;
    Ok(path)
}

fn node_of(cluster: &ImCluster, member: &str) -> anyhow::Result<u64> {
    let mut members = cluster.status.iter().flat_map(|status| &status.members);
    let found = members.find(|one| one.name == member);
    let id = found.and_then(|one| one.node_id);
    id.with_context(|| format!("{member} has no node"))
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes: make e2e"]
async fn the_command_reaches_the_admin_api() -> anyhow::Result<()> {
    let test = "the command and the admin API";
    Test::new(test, json!({}), Kind::Planned)
        .run(async |trial| {
            let status = printed(trial, &["admin", NAME, "status"]).await?;
            ensure!(status.contains("3 of 3 up"), "all nodes are up");
            let nodes = printed(trial, &["admin", NAME, "nodes", "-o", "json"]).await?;
            let nodes: Value = serde_json::from_str(&nodes)?;
            let count = nodes["nodes"].as_array().map(Vec::len);
            ensure!(count == Some(3), "these are the nodes: {nodes}");
            cordon(trial).await?;
            promote(trial).await?;
            drain(trial).await
        })
        .await
}

async fn cordon(trial: &Trial) -> anyhow::Result<()> {
    refused(
        trial,
        &["cordon", NAME, "chat-9"],
        "there is no member chat-9",
    )
    .await?;
    let node = node_of(&trial.chat.ready().await?, "chat-1")?;
    let said = printed(trial, &["cordon", NAME, "chat-1"]).await?;
    let cordoned = format!("chat-1 (node {node}) is cordoned");
    ensure!(said.contains(&cordoned), "it says {said}");
    let said = printed(trial, &["uncordon", NAME, "chat-1"]).await?;
    let active = format!("chat-1 (node {node}) is active");
    ensure!(said.contains(&active), "it says {said}");
    Ok(())
}

/// Each member has a replica of each shard.
async fn promote(trial: &Trial) -> anyhow::Result<()> {
    let shards = printed(trial, &["admin", NAME, "shards", "1", "-o", "json"]).await?;
    let shards: Value = serde_json::from_str(&shards)?;
    let leader = shards["shards"][0]["leader_node"].as_u64();
    let leader = leader.context("shard 1 has no leader")?;
    let cluster = trial.chat.ready().await?;
    let mut other = None;
    for member in ["chat-0", "chat-1", "chat-2"] {
        let node = node_of(&cluster, member)?;
        if node != leader {
            other = Some((member, node));
        }
    }
    let (member, node) = other.context("there is nobody else")?;
    let said = printed(trial, &["promote", NAME, "1", member]).await?;
    let led = format!("shard 1 is led by {member} (node {node})");
    ensure!(said.contains(&led), "it says {said}");
    Ok(())
}

/// The operator ends drains that it did not begin; so it is told to hold still first.
async fn drain(trial: &Trial) -> anyhow::Result<()> {
    let wanted = ["drain", NAME, "chat-0", "--for", "restart", "--wait"];
    refused(trial, &wanted, "would end the drain of chat-0").await?;
    trial.chat.change(json!({"paused": true})).await?;
    let seen = |seen: &ImCluster| {
        let observed = seen
            .status
            .as_ref()
            .and_then(|status| status.observed_generation);
        observed == seen.metadata.generation
    };
    let still = trial
        .chat
        .until("to be held still", READY_LIMIT, seen)
        .await?;
    let node = node_of(&still, "chat-0")?;
    let said = printed(trial, &wanted).await?;
    let drained = format!("chat-0 (node {node}) is draining for restart");
    ensure!(said.contains(&drained), "it says {said}");
    ensure!(said.contains("leads 0"), "it leads shards: {said}");
    let said = printed(trial, &["drain", NAME, "chat-0", "-o", "json"]).await?;
    let said: Value = serde_json::from_str(&said)?;
    ensure!(
        said["done"] == true && said["member"] == "chat-0",
        "it says {said}"
    );
    let said = printed(trial, &["drain", NAME, "chat-0", "--cancel"]).await?;
    let active = format!("chat-0 (node {node}) is active");
    ensure!(said.contains(&active), "it says {said}");
    trial.chat.becomes(json!({"paused": false})).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes: make e2e"]
async fn the_command_leads_clients_and_follows_logs() -> anyhow::Result<()> {
    let test = "the command's port-forward, chat and logs";
    Test::new(test, json!({}), Kind::Planned)
        .run(async |trial| {
            let folder = Folder::create(trial)?;
            let token = token_file(trial, &folder)?;
            let ca = folder.file("ca.crt");
            let arguments = ["port-forward", NAME, "--ca-file", &ca, "-o", "json"];
            let mut forward = Running::start(trial, &arguments)?;
            let said = forward.says("its endpoint", |said| said["endpoint"].is_string());
            let said = said.await?;
            let endpoint = said["endpoint"].as_str().unwrap_or_default();
            let through = Through {
                endpoint,
                ca: &ca,
                token: &token,
            };
            through.send("before a Pod is made anew").await?;
            let led = forward.says("where it leads", |said| said["through"].is_string());
            let member = led.await?["through"].clone();
            let member = member.as_str().unwrap_or_default();

            logs(trial, member).await?;
            // The Pod that it led to is another one now.
            through.send("after a Pod was made anew").await?;
            chat(trial, &token).await?;
            let history = ["history", "--as", BEN, "--with", ANN];
            let history = through.carillon(&history).await?;
            for text in ["before a Pod", "after a Pod", "typed into a chat"] {
                ensure!(history.contains(text), "{text} is not in {history}");
            }
            forward.end().await
        })
        .await
}

/// A cluster as whoever is led to it sees it.
struct Through<'a> {
    endpoint: &'a str,
    ca: &'a str,
    token: &'a str,
}

impl Through<'_> {
    async fn carillon(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let Self {
            endpoint,
            ca,
            token,
        } = self;
        let mut command = command()?;
        command.args(["--endpoint", endpoint, "--ca", ca, "--token-file", token]);
        let ran = command.args(arguments).output().await?;
        let errors = String::from_utf8_lossy(&ran.stderr);
        ensure!(ran.status.success(), "{arguments:?} failed: {errors}");
        Ok(String::from_utf8(ran.stdout)?)
    }

    async fn send(&self, text: &str) -> anyhow::Result<()> {
        let send = ["send", "--as", ANN, "--to", BEN, text];
        self.carillon(&send).await.map(drop)
    }
}

/// A log goes on with the Pod that is made anew.
async fn logs(trial: &Trial, member: &str) -> anyhow::Result<()> {
    let all = quiet(trial, &["logs", NAME]).await?;
    for name in ["chat-0", "chat-1", "chat-2"] {
        let said = all.lines().any(|line| line.starts_with(name));
        ensure!(said, "{name} says nothing");
    }
    let one = quiet(trial, &["logs", NAME, member, "--since", "1h"]).await?;
    ensure!(!one.is_empty(), "{member} says nothing");
    let only = one.lines().all(|line| line.starts_with(member));
    ensure!(only, "others are among what {member} says");
    refused(trial, &["logs", NAME, "chat-9"], "chat-9 has no Pod").await?;

    let mut log = Running::start(trial, &["logs", NAME, "--follow", "-o", "json"])?;
    log.says("anything", |said| said["member"] == member)
        .await?;
    let pods = trial.chat.namespace.api::<Pod>();
    let before = pods.get(member).await?;
    pods.delete(member, &DeleteParams::default()).await?;
    let new = |seen: &Pod| seen.metadata.uid != before.metadata.uid;
    let made = until(&pods, member, "to be made anew", READY_LIMIT, new).await?;
    let made = made.metadata.creation_timestamp.context("it has no age")?;
    let made = made.0.as_millisecond();
    let later = |said: &Value| {
        let at = said["at"].as_str().and_then(|at| at.parse().ok());
        let at = at.map(|at: k8s_openapi::jiff::Timestamp| at.as_millisecond());
        said["member"] == member && at.is_some_and(|at| at > made)
    };
    log.says("what the new Pod says", later).await?;
    log.end().await?;
    trial.chat.ready().await.map(drop)
}

async fn chat(trial: &Trial, token: &str) -> anyhow::Result<()> {
    refused(trial, &["chat", NAME, "--user", ANN], "who chats").await?;
    let arguments = [
        "chat",
        NAME,
        "--user",
        ANN,
        "--with",
        BEN,
        "--token-file",
        token,
    ];
    let mut command = plugin(trial, &arguments)?;
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn()?;
    let mut typed = child.stdin.take().context("it has no standard input")?;
    typed.write_all(b"typed into a chat\n").await?;
    // The end of what is typed ends the chat.
    drop(typed);
    let ended = timeout(CHAT_LIMIT, child.wait_with_output()).await;
    let Output {
        status,
        stdout,
        stderr,
    } = ended.context("the chat did not end")??;
    let (stdout, stderr) = (String::from_utf8(stdout)?, String::from_utf8(stderr)?);
    ensure!(status.success(), "the chat ended with {status}: {stderr}");
    let earlier = stdout.contains("after a Pod was made anew");
    ensure!(earlier, "the conversation is not shown: {stdout}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kubernetes: make e2e"]
async fn a_report_has_all_but_secrets() -> anyhow::Result<()> {
    Test::new("a report", json!({}), Kind::Planned)
        .run(async |trial| {
            let folder = Folder::create(trial)?;
            let file = folder.file("report.tar.gz");
            let said = printed(trial, &["report", NAME, "--to", &file, "-o", "json"]).await?;
            let said: Value = serde_json::from_str(&said)?;
            let missing = said["missing"]
                .as_array()
                .context("it says what is missing")?;
            for one in missing {
                // Others kill operators meanwhile.
                let name = one["file"].as_str().unwrap_or_default();
                ensure!(name.starts_with("operator/"), "{one} is missing");
            }
            refused(trial, &["report", NAME, "--to", &file], "is there already").await?;
            let names = tar("-tzf", Path::new(&file)).await?;
            for name in [
                "imcluster.json",
                "events.json",
                "pods.json",
                "persistentvolumeclaims.json",
                "services.json",
                "poddisruptionbudgets.json",
                "configmaps.json",
                "networkpolicies.json",
                "nodes.json",
                "logs/chat-0.node.log",
                "operator/pods.json",
                "admin/status.json",
                "admin/policy.json",
                "report.json",
            ] {
                let there = names.lines().any(|line| line.ends_with(name));
                ensure!(there, "{name} is not in the report: {names}");
            }
            let all = tar("-xzOf", Path::new(&file)).await?;
            ensure!(all.contains("chat-2") && all.contains("topology.kubernetes.io/zone"));
            ensure!(
                !all.contains("PRIVATE KEY"),
                "a private key is in the report"
            );
            for (whose, secret) in secrets(trial).await? {
                ensure!(!all.contains(&secret), "{whose} is in the report");
            }
            Ok(())
        })
        .await
}

async fn tar(how: &str, file: &Path) -> anyhow::Result<String> {
    let ran = Command::new("tar").arg(how).arg(file).output().await?;
    ensure!(
        ran.status.success(),
        "{}",
        String::from_utf8_lossy(&ran.stderr)
    );
    Ok(String::from_utf8_lossy(&ran.stdout).into_owned())
}

/// What is secret in the namespace, line by line, and whose it is.
async fn secrets(trial: &Trial) -> anyhow::Result<Vec<(String, String)>> {
    /// Shorter lines may be anywhere.
    const SECRET_BYTES_MIN: usize = 16;
    let mut all = vec![("the server".to_owned(), trial.chat.secret().to_owned())];
    let objects = trial.chat.namespace.api::<Secret>();
    for secret in objects.list(&Default::default()).await?.items {
        let name = secret.metadata.name.unwrap_or_default();
        for (key, ByteString(bytes)) in secret.data.unwrap_or_default() {
            // Certificates are no secrets.
            if key.ends_with(".crt") {
                continue;
            }
            let text = String::from_utf8_lossy(&bytes).into_owned();
            let lines = text.lines().filter(|line| line.len() >= SECRET_BYTES_MIN);
            all.extend(lines.map(|line| (format!("{key} of {name}"), line.to_owned())));
        }
    }
    let keys = all
        .iter()
        .filter(|(whose, _)| whose.starts_with("tls.key of"));
    ensure!(
        keys.count() > 3,
        "the members' keys are not among the secrets"
    );
    Ok(all)
}
