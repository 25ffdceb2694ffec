//! The node processes: started, watched, stopped.
//!
//! Owner of the children. A node that dies is reported once; the others are left alone. One
//! that ends to be started again is.
//! Only processes started here are ever signalled, and only while they have not been
//! waited for, so that a reused process id is never hit.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};

use anyhow::Context;
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::process::{Child, Command};

use crate::commands::dev::layout::NodePlan;
use crate::failure::advised;

/// What a node ends with that wants to be started again: an operator asked for it.
const EXIT_RESTART: i32 = 75;
const BINARY: &str = "carillon-node";
const BINARY_VARIABLE: &str = "CARILLON_NODE_BIN";

/// A node process that is over.
#[derive(Debug)]
pub struct Ended {
    pub node_id: u64,
    pub pid: u32,
    /// In words: `exited with code 1`, `was killed by signal 9`.
    pub how: String,
    /// It ended in order, to be started again.
    pub restarts: bool,
}

/// The running nodes.
#[derive(Debug)]
pub struct Processes {
    children: BTreeMap<u64, Running>,
}

#[derive(Debug)]
struct Running {
    pid: u32,
    child: Child,
}

/// The node's executable: named by the environment, or beside this one.
pub fn find_node_binary() -> anyhow::Result<PathBuf> {
    if let Some(path) = std::env::var_os(BINARY_VARIABLE) {
        let path = PathBuf::from(path);
        if path.is_file() {
            return Ok(path);
        }
        return Err(advised(
            format!("{BINARY_VARIABLE} names {}, no such file", path.display()),
            format!("name the {BINARY} executable, or unset it"),
        ));
    }
    let own = std::env::current_exe().context("could not find this executable")?;
    let beside = own.with_file_name(BINARY);
    if beside.is_file() {
        return Ok(beside);
    }
    Err(advised(
        format!("found no {BINARY} at {}", beside.display()),
        format!(
            "build it (cargo build --release -p carillon-node), or name it in {BINARY_VARIABLE}"
        ),
    ))
}

impl Processes {
    /// Starts a node for each plan, with its output appended to its log.
    pub fn start(binary: &Path, plans: &[NodePlan]) -> anyhow::Result<Self> {
        let mut children = BTreeMap::new();
        for plan in plans {
            let running = spawn(binary, plan)
                .with_context(|| format!("could not start node {}", plan.node_id))?;
            children.insert(plan.node_id, running);
        }
        Ok(Self { children })
    }

    /// Starts a node that has ended.
    pub fn start_again(&mut self, binary: &Path, plan: &NodePlan) -> anyhow::Result<()> {
        let running = spawn(binary, plan)
            .with_context(|| format!("could not start node {} again", plan.node_id))?;
        self.children.insert(plan.node_id, running);
        Ok(())
    }

    /// How many have not ended.
    pub fn running(&self) -> usize {
        self.children.len()
    }

    pub fn pid(&self, node_id: u64) -> Option<u32> {
        self.children.get(&node_id).map(|running| running.pid)
    }

    /// Waits for the next one to end; for ever when none is left. Cancel-safe.
    pub async fn first_ended(&mut self) -> Ended {
        let mut waits: FuturesUnordered<_> = self
            .children
            .iter_mut()
            .map(|(id, running)| async move { (*id, running.child.wait().await) })
            .collect();
        let Some((node_id, status)) = waits.next().await else {
            return std::future::pending().await;
        };
        drop(waits);
        let pid = self.children.remove(&node_id).map_or(0, |r| r.pid);
        let code = status.as_ref().ok().and_then(|status| status.code());
        let restarts = code == Some(EXIT_RESTART);
        let how = match status {
            Ok(status) => describe(status),
            Err(error) => format!("could not be watched: {error}"),
        };
        Ended {
            node_id,
            pid,
            how,
            restarts,
        }
    }

    /// Waits until all have ended. Cancel-safe.
    pub async fn all_ended(&mut self) {
        while self.running() > 0 {
            self.first_ended().await;
        }
    }

    /// Asks all to stop.
    pub fn terminate(&self) {
        for running in self.children.values() {
            // `id` is empty once the child has been waited for.
            if let Some(pid) = running.child.id() {
                terminate(pid);
            }
        }
    }

    /// Ends all at once.
    pub fn kill(&mut self) {
        for (node_id, running) in &mut self.children {
            if let Err(error) = running.child.start_kill() {
                tracing::warn!(node_id, %error, "could not kill the node");
            }
        }
    }
}

fn spawn(binary: &Path, plan: &NodePlan) -> anyhow::Result<Running> {
    let path = plan.log_path();
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&path)
        .with_context(|| format!("could not open {}", path.display()))?;
    let errors = log
        .try_clone()
        .with_context(|| format!("could not open {}", path.display()))?;
    let mut command = std::process::Command::new(binary);
    command
        .arg("--config")
        .arg(plan.config_path())
        .arg("--dev")
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(errors)
        // Ctrl-C in the terminal is for this process; it tells the nodes itself.
        .process_group(0);
    stop_with_parent(&mut command);
    let child = Command::from(command)
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("could not run {}", binary.display()))?;
    let pid = child.id().context("it ended at once")?;
    Ok(Running { pid, child })
}

/// Lets the kernel tell the node to stop when this process is killed.
fn stop_with_parent(command: &mut std::process::Command) {
    #[cfg(target_os = "linux")]
    #[expect(unsafe_code, reason = "std has no parent-death signal")]
    // SAFETY: between fork and exec only prctl is called, which is async-signal-safe.
    unsafe {
        command.pre_exec(|| {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) == 0 {
                Ok(())
            } else {
                Err(std::io::Error::last_os_error())
            }
        });
    }
    #[cfg(not(target_os = "linux"))]
    let _ = command;
}

fn terminate(pid: u32) {
    let Ok(pid) = libc::pid_t::try_from(pid) else {
        return;
    };
    #[expect(unsafe_code, reason = "std sends no SIGTERM")]
    // SAFETY: kill has no memory effects; the pid is a child not yet waited for.
    unsafe {
        libc::kill(pid, libc::SIGTERM);
    }
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(0), _) => "stopped".to_owned(),
        (Some(code), _) => format!("exited with code {code}"),
        (None, Some(signal)) => format!("was killed by signal {signal}"),
        (None, None) => "ended".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endings_are_told_in_words() {
        assert_eq!(describe(ExitStatus::from_raw(0)), "stopped");
        assert_eq!(describe(ExitStatus::from_raw(3 << 8)), "exited with code 3");
        assert_eq!(describe(ExitStatus::from_raw(9)), "was killed by signal 9");
    }
}
