//! `carillon kubernetes logs`: what all members say, each line led by the member's name.
//!
//! Without `--follow` the logs are put together by the moments of their lines; with it lines are
//! shown as they come, and Pods are watched: a container that is started again, or a Pod that is
//! made anew, is followed too.
//!
//! Each log is read by a task of its own into a queue of [`QUEUE_LINES_MAX`]; a slow reader slows
//! all of them down, and nothing is dropped.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::Args;
use futures_util::{AsyncReadExt as _, StreamExt as _};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::LogParams;
use kube::runtime::{WatchStreamExt as _, watcher};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::connect::{Connection, is_forbidden};
use super::lines::{Line, Splitter, earliest};
use super::pods::{CONTAINER, MEMBER_LABEL, container, name, selector};
use crate::arguments::Output;
use crate::bench::duration::parse_duration;
use crate::failure::advised;
use crate::output::{self, Paint};
use crate::present::printable;

/// Lines of a log that are read and not yet shown.
const QUEUE_LINES_MAX: usize = 256;
/// Bytes that are read at a time.
const READ_BYTES: usize = 16 << 10;
/// Before a log that was cut off is read on.
const AGAIN_AFTER: Duration = Duration::from_secs(1);

#[derive(Debug, Args)]
pub struct LogsArguments {
    /// The ImCluster.
    #[arg(value_name = "NAME")]
    name: String,
    /// Only this member, such as chat-1.
    #[arg(value_name = "MEMBER")]
    member: Option<String>,
    /// Go on with what is written from now on, also by Pods that are made anew.
    #[arg(short, long)]
    follow: bool,
    /// Only lines that are not older, such as 10m. Default: all that there are.
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    since: Option<Duration>,
    /// What the containers wrote before they were last started again.
    #[arg(short, long, conflicts_with = "follow")]
    previous: bool,
}

/// From where on a log is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Begin {
    Start,
    Ago(Duration),
    /// What is later than this.
    After(Timestamp),
}

/// A line and whose it is.
type Said = (String, Line);

/// Carries out `carillon kubernetes logs`.
pub(super) async fn run(
    connection: &Connection,
    arguments: &LogsArguments,
    output: Output,
) -> anyhow::Result<()> {
    let LogsArguments { name, .. } = arguments;
    let all = connection.member_pods(name).await?;
    if all.is_empty() {
        // Whether there is none, or none yet.
        connection.cluster(name).await?;
    }
    let members: Vec<String> = all
        .iter()
        .map(|pod| super::pods::name(pod).to_owned())
        .collect();
    let wanted: Vec<&String> = members
        .iter()
        .filter(|member| arguments.member.as_ref().is_none_or(|one| one == *member))
        .collect();
    if wanted.is_empty() && !arguments.follow {
        let what = match &arguments.member {
            Some(member) => format!("{member} has no Pod"),
            None => format!("{name} has no Pods"),
        };
        let advice = match members.is_empty() {
            true => format!("kubectl carillon status {name} says what is being done"),
            false => format!("name one of these: {}", members.join(", ")),
        };
        return Err(advised(what, advice));
    }
    let screen = Screen::new(&members, output);
    match arguments.follow {
        false => show(connection, arguments, &wanted, &screen).await,
        true => follow(connection, arguments, &screen).await,
    }
}

/// How lines are shown.
struct Screen {
    output: Output,
    paint: Paint,
    width: usize,
}

impl Screen {
    fn new(members: &[String], output: Output) -> Self {
        Self {
            output,
            paint: Paint::for_stdout(),
            width: members.iter().map(String::len).max().unwrap_or(0),
        }
    }

    fn line(&self, member: &str, line: &Line) -> std::io::Result<()> {
        match self.output {
            Output::Table => {
                let padded = format!("{member:<width$}", width = self.width);
                let text = printable(&line.text);
                output::line(&format!("{} {text}", self.paint.name(&padded)))
            }
            Output::Json => output::json_line(&json!({
                "member": member,
                "at": line.at.to_string(),
                "line": line.text,
            })),
        }
    }
}

/// All that there is, in the order in which it was written.
async fn show(
    connection: &Connection,
    arguments: &LogsArguments,
    members: &[&String],
    screen: &Screen,
) -> anyhow::Result<()> {
    let from = arguments.since.map_or(Begin::Start, Begin::Ago);
    let mut parameters = parameters(from);
    parameters.previous = arguments.previous;
    let mut tasks = JoinSet::new();
    let mut logs = Vec::new();
    for member in members {
        let (sender, receiver) = mpsc::channel::<Said>(QUEUE_LINES_MAX);
        logs.push(receiver);
        let (api, parameters) = (connection.all::<Pod>(), parameters.clone());
        let member = (*member).clone();
        tasks.spawn(async move {
            let read = read(
                &api,
                &member,
                &parameters,
                &sender,
                &mut Splitter::default(),
            )
            .await;
            (member, read)
        });
    }
    let mut next: Vec<Option<Line>> = Vec::new();
    for log in &mut logs {
        next.push(log.recv().await.map(|(_, line)| line));
    }
    while let Some(index) = earliest(&next) {
        if let Some(line) = next[index].take() {
            screen.line(members[index], &line)?;
        }
        next[index] = logs[index].recv().await.map(|(_, line)| line);
    }
    // One that could not be read does not keep the others from being shown.
    let (mut failed, mut shown) = (None, 0);
    while let Some(ended) = tasks.join_next().await {
        match ended? {
            (_, Ok(())) => shown += 1,
            (_, Err(error)) if is_forbidden(&error) => {
                return Err(connection.refused("get", "pods/log", error));
            }
            (member, Err(error)) => failed = Some((member, error)),
        }
    }
    match failed {
        Some((member, kube::Error::Api(status))) if arguments.previous && shown > 0 => {
            tracing::debug!("{member}: {}", status.message);
            Ok(())
        }
        Some((member, kube::Error::Api(status))) => Err(advised(
            format!("the log of {member} cannot be read: {}", status.message),
            "kubectl carillon status says what its Pod waits for",
        )),
        Some((_, error)) => Err(connection.refused("get", "pods/log", error)),
        None => Ok(()),
    }
}

/// One run of a container: its Pod, and how often it was started again there.
type Run = (String, i32);

/// The run that a container is in, once it has begun.
fn run_of(pod: &Pod) -> Option<Run> {
    let container = container(pod)?;
    let state = container.state.as_ref()?;
    let begun = state.running.is_some() || state.terminated.is_some();
    let uid = pod.metadata.uid.clone()?;
    begun.then_some((uid, container.restart_count))
}

fn runs(pod: &Pod) -> bool {
    let state = container(pod).and_then(|one| one.state.as_ref());
    state.is_some_and(|state| state.running.is_some())
}

/// All that is written, until whoever reads it goes away.
async fn follow(
    connection: &Connection,
    arguments: &LogsArguments,
    screen: &Screen,
) -> anyhow::Result<()> {
    let api = connection.all::<Pod>();
    let mut members = selector(&arguments.name);
    if let Some(member) = &arguments.member {
        members = format!("{members},{MEMBER_LABEL}={member}");
    }
    let wanted = watcher::Config::default().labels(&members);
    let changes = watcher(api.clone(), wanted).default_backoff();
    let mut changes = std::pin::pin!(changes.applied_objects());
    let (sender, mut said) = mpsc::channel::<Said>(QUEUE_LINES_MAX);
    let mut followed: BTreeMap<String, Run> = BTreeMap::new();
    let mut tasks = JoinSet::new();
    loop {
        // Each of these can be dropped while it waits, and nothing is lost.
        tokio::select! {
            Some((member, line)) = said.recv() => screen.line(&member, &line)?,
            Some(ended) = tasks.join_next() => {
                if let (_, Err(error)) = ended? && is_forbidden(&error) {
                    return Err(connection.refused("get", "pods/log", error));
                }
            }
            change = changes.next() => match change {
                Some(Ok(pod)) => {
                    let member = name(&pod).to_owned();
                    let Some(run) = run_of(&pod) else { continue };
                    let from = match followed.insert(member.clone(), run.clone()) {
                        Some(before) if before == run => continue,
                        // Of a new one all is new.
                        Some(_) => Begin::Start,
                        None => arguments.since.map_or(Begin::Start, Begin::Ago),
                    };
                    let (api, sender) = (api.clone(), sender.clone());
                    tasks.spawn(async move {
                        let read = follow_run(&api, &member, &run, from, &sender).await;
                        (member, read)
                    });
                }
                Some(Err(error)) => not_allowed(connection, error)?,
                None => anyhow::bail!("the API server ended the watch of the Pods"),
            },
        }
    }
}

/// The watch goes on by itself after any other error.
fn not_allowed(connection: &Connection, error: watcher::Error) -> anyhow::Result<()> {
    match error {
        watcher::Error::InitialListFailed(error) | watcher::Error::WatchStartFailed(error)
            if is_forbidden(&error) =>
        {
            Err(connection.refused("list and watch", "pods", error))
        }
        error => {
            tracing::debug!("the watch of the Pods goes on: {error}");
            Ok(())
        }
    }
}

/// Reads the log of one run to its end; goes on where it was when it is cut off before.
async fn follow_run(
    api: &Api<Pod>,
    member: &str,
    run: &Run,
    mut from: Begin,
    sender: &mpsc::Sender<Said>,
) -> Result<(), kube::Error> {
    loop {
        let mut parameters = parameters(from);
        parameters.follow = true;
        let mut splitter = match from {
            Begin::After(last) => Splitter::after(last),
            Begin::Start | Begin::Ago(_) => Splitter::default(),
        };
        match read(api, member, &parameters, sender, &mut splitter).await {
            Err(error) if is_forbidden(&error) => return Err(error),
            _ if sender.is_closed() => return Ok(()),
            _ => {}
        }
        if splitter.at() > Timestamp::UNIX_EPOCH {
            from = Begin::After(splitter.at());
        }
        sleep(AGAIN_AFTER).await;
        match api.get_opt(member).await {
            // Cut off, and it writes on.
            Ok(Some(pod)) if run_of(&pod).as_ref() == Some(run) && runs(&pod) => {}
            // The API server is away.
            Err(_) => {}
            Ok(_) => return Ok(()),
        }
    }
}

fn parameters(from: Begin) -> LogParams {
    let mut parameters = LogParams {
        container: Some(CONTAINER.to_owned()),
        timestamps: true,
        ..LogParams::default()
    };
    match from {
        Begin::Start => {}
        Begin::Ago(ago) => {
            let seconds = ago.as_secs_f64().ceil() as i64;
            parameters.since_seconds = Some(seconds.max(1));
        }
        Begin::After(at) => parameters.since_time = Some(at),
    }
    parameters
}

/// Reads a log to its end. Ends early when nobody wants it any more.
async fn read(
    api: &Api<Pod>,
    member: &str,
    parameters: &LogParams,
    sender: &mpsc::Sender<Said>,
    splitter: &mut Splitter,
) -> Result<(), kube::Error> {
    let log = api.log_stream(member, parameters).await?;
    let mut log = std::pin::pin!(log);
    let mut bytes = vec![0; READ_BYTES];
    loop {
        let count = match log.read(&mut bytes).await {
            Ok(0) | Err(_) => break,
            Ok(count) => count,
        };
        for line in splitter.push(&bytes[..count]) {
            if sender.send((member.to_owned(), line)).await.is_err() {
                return Ok(());
            }
        }
    }
    if let Some(line) = splitter.rest() {
        // Nobody may want it any more.
        let _ = sender.send((member.to_owned(), line)).await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(uid: &str, restarts: i32, state: serde_json::Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "chat-0", "uid": uid},
            "status": {"containerStatuses": [{
                "name": "node", "image": "", "imageID": "", "ready": false,
                "restartCount": restarts, "state": state,
            }]},
        }))
        .expect("a Pod")
    }

    #[test]
    fn a_log_is_followed_once_its_container_has_begun() {
        let running = json!({"running": {}});
        let first = pod("a", 0, running.clone());
        assert!(runs(&first));
        assert_eq!(run_of(&first), Some(("a".to_owned(), 0)));
        assert_ne!(run_of(&first), run_of(&pod("a", 1, running.clone())));
        assert_ne!(run_of(&first), run_of(&pod("b", 0, running)));
        let waiting = pod("a", 1, json!({"waiting": {"reason": "CrashLoopBackOff"}}));
        assert_eq!(run_of(&waiting), None);
        let ended = pod("a", 1, json!({"terminated": {"exitCode": 1}}));
        assert_eq!(run_of(&ended), Some(("a".to_owned(), 1)));
        assert!(!runs(&ended));
    }

    #[test]
    fn a_log_is_read_from_where_it_was_asked() {
        assert_eq!(parameters(Begin::Start).since_seconds, None);
        let short = parameters(Begin::Ago(Duration::from_millis(1_200)));
        assert_eq!(short.since_seconds, Some(2));
        let at = "2026-11-28T10:00:00Z".parse().expect("a moment");
        assert_eq!(parameters(Begin::After(at)).since_time, Some(at));
    }
}
