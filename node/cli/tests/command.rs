//! The command as it is typed, where no cluster is needed: what it refuses, and how it
//! explains it.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn carillon(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_carillon"));
    command
        .args(arguments)
        .env_remove("CARILLON_ENDPOINTS")
        .env_remove("CARILLON_LOG")
        .env_remove("CARILLON_NODE_BIN");
    command
}

fn run(command: &mut Command) -> (Output, String, String) {
    let output = command.output().expect("it runs");
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    let err = String::from_utf8_lossy(&output.stderr).into_owned();
    (output, out, err)
}

struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let random: u64 = rand::random();
        Self(std::env::temp_dir().join(format!("carillon-command-{name}-{random:x}")))
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A base for three nodes' ports where nothing listens: nine ports in three rows.
fn free_port_base() -> u16 {
    for base in (20_000..60_000).step_by(310) {
        let free = (1..=3u16)
            .flat_map(|id| [base + id, base + 100 + id, base + 200 + id])
            .all(|port| TcpListener::bind(("127.0.0.1", port)).is_ok());
        if free {
            return base;
        }
    }
    panic!("no free ports");
}

/// An address where nothing listens.
fn nobody() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("bound").to_string()
}

fn dev(binary: &str, scratch: &Scratch, base: u16) -> Command {
    let mut command = carillon(&["dev", "--data"]);
    command
        .arg(scratch.path())
        .args(["--port-base", &base.to_string()])
        .env("CARILLON_NODE_BIN", binary);
    command
}

#[test]
fn a_missing_cluster_is_explained() {
    let endpoint = nobody();
    let send = ["send", "--as", "alice", "--to", "bob", "hi", "--endpoint"];
    let (output, out, err) = run(carillon(&send).arg(&endpoint));
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(out, "");
    for part in [
        "error: could not send to direct:alice:bob",
        "refused",
        &endpoint,
        "carillon dev",
    ] {
        assert!(err.contains(part), "{part} in {err}");
    }

    let (output, _, err) = run(carillon(&send).arg(&endpoint).args(["-o", "json"]));
    assert_eq!(output.status.code(), Some(1));
    let value: serde_json::Value = serde_json::from_str(&err).expect("JSON");
    assert_eq!(value["error"]["what"], "could not send to direct:alice:bob");
}

#[test]
fn a_wrong_command_line_is_refused_at_once() {
    for arguments in [
        &["send", "--as", "alice", "hi"][..],
        &["send", "--to", "bob", "hi"],
        &["history", "--as", "a", "--with", "b", "-n", "501"],
        &["dev", "--nodes", "10"],
        &["admin", "transfer", "1"],
        &["fly"],
    ] {
        let (output, _, err) = run(&mut carillon(arguments));
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {err}");
    }
    let bad = ["admin", "status", "--endpoint", "https://a:1"];
    let (output, _, err) = run(&mut carillon(&bad));
    assert_eq!(output.status.code(), Some(1));
    assert!(err.contains("whose certificates are trusted"), "{err}");
}

#[test]
fn dev_says_which_binary_it_misses() {
    let scratch = Scratch::new("binary");
    let (output, _, err) = run(&mut dev("/nowhere/carillon-node", &scratch, 7400));
    assert_eq!(output.status.code(), Some(1));
    assert!(err.contains("/nowhere/carillon-node"), "{err}");
    assert!(!scratch.path().exists(), "nothing is made before that");
}

#[test]
fn dev_says_which_node_died_and_where_its_log_is() {
    let scratch = Scratch::new("died");
    let (output, _, err) = run(&mut dev("/bin/false", &scratch, free_port_base()));
    assert_eq!(output.status.code(), Some(1));
    assert!(
        err.contains("exited with code 1 while the cluster was starting"),
        "{err}"
    );
    assert!(err.contains("node.log"), "{err}");
    for id in 1..=3 {
        let config = scratch.path().join(format!("node-{id}/node.toml"));
        assert!(config.is_file(), "{}", config.display());
    }
}

#[test]
fn dev_says_which_port_is_taken() {
    let scratch = Scratch::new("port");
    let base = free_port_base();
    let taken = TcpListener::bind(("127.0.0.1", base + 102)).expect("it was free");
    let (output, _, err) = run(&mut dev("/bin/false", &scratch, base));
    assert_eq!(output.status.code(), Some(1));
    let address = taken.local_addr().expect("bound").to_string();
    assert!(
        err.contains(&format!("node 2 cannot have {address}")),
        "{err}"
    );
}
