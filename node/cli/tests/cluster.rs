//! The command against a real cluster: `carillon dev`, and what people do with it, through
//! the death of a node. Needs the `carillon-node` executable beside `carillon`, or named
//! by `CARILLON_NODE_BIN`.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde_json::Value;

/// For a cluster to come up, or to go on after a loss, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(90);

/// A running `carillon`, with its lines of output as they come; killed when dropped.
struct Running {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: mpsc::Receiver<String>,
    seen: Vec<String>,
}

impl Running {
    fn start(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("it runs");
        let stdin = child.stdin.take();
        let stdout = BufReader::new(child.stdout.take().expect("piped"));
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self {
            child,
            stdin,
            lines,
            seen: Vec::new(),
        }
    }

    /// Waits for a line that contains `part`.
    fn wait_for(&mut self, part: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => {
                    self.seen.push(line.clone());
                    if line.contains(part) {
                        return line;
                    }
                }
                Err(error) => panic!("no {part:?} came ({error}); seen: {:#?}", self.seen),
            }
        }
    }

    fn wait_for_json(&mut self, state: &str) -> Value {
        let line = self.wait_for(&format!("\"state\":\"{state}\""));
        serde_json::from_str(&line).expect("JSON")
    }

    fn type_line(&mut self, line: &str) {
        let stdin = self.stdin.as_mut().expect("not closed");
        writeln!(stdin, "{line}").expect("it reads");
    }

    /// Closes its input and waits for a good end.
    fn finish(mut self) -> Vec<String> {
        drop(self.stdin.take());
        let status = self.child.wait().expect("it ends");
        self.seen.extend(self.lines.iter());
        assert!(status.success(), "{status}: {:#?}", self.seen);
        std::mem::take(&mut self.seen)
    }

    fn signal(&self, signal: libc::c_int) {
        send_signal(self.child.id(), signal);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Ended already in a test that went well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn send_signal(pid: u32, signal: libc::c_int) {
    let pid = libc::pid_t::try_from(pid).expect("a process id");
    #[expect(unsafe_code, reason = "std sends no signals but SIGKILL to children")]
    // SAFETY: kill has no memory effects; the pid is of a process this test has started.
    let sent = unsafe { libc::kill(pid, signal) };
    assert_eq!(sent, 0, "signal {signal} to {pid}");
}

/// A cluster's directory and ports; the directory goes when it is dropped.
struct Place {
    dir: PathBuf,
    base: u16,
}

impl Place {
    fn new() -> Self {
        let random: u64 = rand::random();
        let dir = std::env::temp_dir().join(format!("carillon-cluster-{random:x}"));
        let base = (20_000 + (random % 100) as u16 * 310..60_000)
            .step_by(310)
            .find(|base| {
                (1..=3u16)
                    .flat_map(|id| [base + id, base + 100 + id, base + 200 + id])
                    .all(|port| TcpListener::bind(("127.0.0.1", port)).is_ok())
            })
            .expect("free ports");
        Self { dir, base }
    }

    fn endpoints(&self) -> String {
        let each = (1..=3).map(|id| format!("127.0.0.1:{}", self.base + id));
        each.collect::<Vec<_>>().join(",")
    }

    fn dev(&self) -> Command {
        let mut command = self.carillon(&["dev", "-o", "json", "--demo", "--data"]);
        command
            .arg(&self.dir)
            .args(["--port-base", &self.base.to_string()]);
        command
    }

    fn carillon(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_carillon"));
        command
            .args(arguments)
            .env("CARILLON_ENDPOINTS", self.endpoints());
        command
    }

    /// Runs a command that must succeed, for its JSON.
    fn ask(&self, arguments: &[&str]) -> Value {
        let output = self
            .carillon(arguments)
            .args(["-o", "json"])
            .output()
            .expect("it runs");
        let err = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {err}");
        serde_json::from_slice(&output.stdout).expect("JSON")
    }

    /// The error of a command that must fail.
    fn refused(&self, arguments: &[&str]) -> String {
        let output = self.carillon(arguments).output().expect("it runs");
        assert!(!output.status.success(), "{arguments:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the cluster's files are kept in {}", self.dir.display());
        } else {
            let _ = std::fs::remove_dir_all(&self.dir);
        }
    }
}

fn require_node_binary() {
    let beside = Path::new(env!("CARGO_BIN_EXE_carillon")).with_file_name("carillon-node");
    assert!(
        beside.is_file() || std::env::var_os("CARILLON_NODE_BIN").is_some(),
        "no {}: run cargo build --release -p carillon-node first",
        beside.display()
    );
}

fn texts(history: &Value) -> Vec<&str> {
    let messages = history["messages"].as_array().expect("a list");
    let texts = messages.iter().map(|m| m["content"]["text"].as_str());
    texts.map(|text| text.unwrap_or("(notice)")).collect()
}

#[test]
fn people_chat_on_a_cluster_that_loses_a_node() {
    require_node_binary();
    let place = Place::new();
    let mut dev = Running::start(&mut place.dev());
    let ready = dev.wait_for_json("ready");
    dev.wait_for_json("demo");
    one_cluster_only(&place);
    questions_are_answered(&place);
    chats_go_on(&place, &mut dev, &ready);

    dev.signal(libc::SIGTERM);
    let stopped = dev.wait_for_json("stopped");
    assert_eq!(stopped["killed"], false, "all nodes stopped by themselves");
    dev.finish();

    let mut dev = Running::start(&mut place.dev());
    dev.wait_for_json("demo");
    let history = place.ask(&["history", "--as", "bob", "--with", "alice"]);
    let texts = texts(&history);
    assert_eq!(texts.last(), Some(&"after the loss"), "{texts:?}");
    let sums = place.ask(&["admin", "checksum"]);
    assert_eq!(sums["consistent"], true, "{sums:#}");
    dev.signal(libc::SIGINT);
    dev.wait_for_json("stopped");
    dev.finish();
}

fn one_cluster_only(place: &Place) {
    let output = place.dev().output().expect("it runs");
    assert_eq!(output.status.code(), Some(1));
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(err.contains("running"), "{err}");
}

fn questions_are_answered(place: &Place) {
    let status = place.ask(&["admin", "status"]);
    assert_eq!(
        (&status["nodes_up"], &status["shards_led"]),
        (&3.into(), &16.into())
    );
    assert_eq!(status["health"], "healthy", "{status:#}");
    assert!(status["warnings"].is_array(), "{status:#}");
    let send = [
        "send", "--as", "alice", "--to", "carol", "--id", "m1", "hi", "there",
    ];
    let (first, again) = (place.ask(&send), place.ask(&send));
    assert_eq!(
        (&first["seq"], &first["duplicate"]),
        (&1.into(), &false.into())
    );
    assert_eq!(
        (&again["seq"], &again["duplicate"]),
        (&1.into(), &true.into())
    );
    let history = place.ask(&["history", "--as", "carol", "--with", "alice"]);
    assert_eq!(texts(&history), ["hi there"]);
    // Delivery follows the acknowledgement.
    let sync = place.ask(&["sync", "--as", "carol", "--wait", "30"]);
    assert_eq!(sync["entries"][0]["message"]["sender_id"], "alice");
    let list = place.ask(&["conversations", "--as", "carol"]);
    assert_eq!(list["unread_total"], 1);
    assert_eq!(list["conversations"][0]["unread"], 1);
    let error = place.refused(&["history", "--as", "carol", "-c", "welcome"]);
    assert!(error.contains("not a member"), "{error}");
    place.ask(&["group", "add", "--as", "bob", "welcome", "carol"]);
    let members = place.ask(&["group", "members", "--as", "carol", "welcome"]);
    assert_eq!(members["members"].as_array().map(Vec::len), Some(3));
    nodes_are_managed(place);
    shards_are_split_and_merged(place);
    for table in [
        &["admin", "nodes"][..],
        &["admin", "events"],
        &["admin", "moves"],
        &["admin", "join-token"],
        &["admin", "shards", "--long"],
        &["conversations", "--as", "bob"],
        &["history", "--as", "bob", "-c", "welcome"],
        &["sync", "--as", "bob"],
    ] {
        let output = place.carillon(table).output().expect("it runs");
        assert!(output.status.success() && !output.stdout.is_empty());
    }
}

fn shards_are_split_and_merged(place: &Place) {
    let split = place.ask(&["admin", "split", "16"]);
    assert_eq!(
        (&split["new_shard_id"], &split["done"]),
        (&17.into(), &true.into())
    );
    let no_neighbour = place.refused(&["admin", "merge", "17"]);
    assert!(no_neighbour.contains("last slots"), "{no_neighbour}");
    let merged = place.ask(&["admin", "merge", "16"]);
    assert_eq!(
        (&merged["absorbed_shard_id"], &merged["done"]),
        (&17.into(), &true.into()),
        "{merged:#}"
    );
    let nothing = place.ask(&["admin", "merge", "16", "--cancel"]);
    assert_eq!(nothing["changed"], false);
    let status = place.ask(&["admin", "status"]);
    assert_eq!(status["shards_led"], 16, "{status:#}");
}

fn nodes_are_managed(place: &Place) {
    let token = place.ask(&["admin", "join-token"]);
    assert_eq!(token["join_token"].as_str().map(str::len), Some(32));
    for (command, standing) in [("cordon", "cordoned"), ("uncordon", "active")] {
        let node = place.ask(&["admin", command, "2"]);
        assert_eq!(node["standing"], standing);
    }
    let needed = place.refused(&["admin", "drain", "2", "--for", "removal"]);
    assert!(needed.contains("2 active nodes for 3 replicas"), "{needed}");
    let in_use = place.refused(&["admin", "forget", "2"]);
    assert!(in_use.contains("active"), "{in_use}");
    let drain = ["admin", "drain", "2", "--for", "restart", "--wait"];
    let drained = place.ask(&drain);
    assert_eq!(
        (&drained["standing"], &drained["leaders"]),
        (&"draining for restart".into(), &0.into())
    );
    let undone = place.ask(&["admin", "drain", "2", "--cancel"]);
    assert_eq!(undone["standing"], "active");
    let moves = place.ask(&["admin", "moves"]);
    assert_eq!(moves["moves"].as_array().map(Vec::len), Some(0));
    let events = place.ask(&["admin", "events"]);
    let events = events["events"].as_array().expect("a list");
    let texts: Vec<&str> = events
        .iter()
        .filter_map(|one| one["text"].as_str())
        .collect();
    assert!(
        texts.contains(&"node 2 is cordoned, was active"),
        "{texts:?}"
    );
}

fn chats_go_on(place: &Place, dev: &mut Running, ready: &Value) {
    let mut bob = Running::start(&mut place.carillon(&["chat", "--as", "bob", "--with", "alice"]));
    bob.wait_for("this is just for you");
    let mut alice =
        Running::start(&mut place.carillon(&["chat", "--as", "alice", "--with", "bob"]));
    alice.type_line("before the loss");
    bob.wait_for("before the loss");
    bob.type_line("seen");
    alice.wait_for("bob  seen");

    let pid = ready["nodes"][0]["pid"].as_u64().expect("a process id");
    send_signal(u32::try_from(pid).expect("small"), libc::SIGKILL);
    let ended = dev.wait_for_json("node_ended");
    assert_eq!(
        (&ended["node_id"], &ended["running"]),
        (&1.into(), &2.into())
    );
    alice.type_line("after the loss");
    bob.wait_for("after the loss");
    bob.type_line("/members");
    bob.wait_for("alice");
    alice.finish();
    bob.finish();
    let list = place.ask(&["conversations", "--as", "bob"]);
    let direct = list["conversations"].as_array().expect("a list").iter();
    let mut direct = direct.filter(|c| c["conversation_id"] == "direct:alice:bob");
    assert_eq!(
        direct.next().map(|c| &c["unread"]),
        Some(&0.into()),
        "{list:#}"
    );
}
