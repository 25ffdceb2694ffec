//! One node process.
//!
//! Owns the child through a thread of its own: that thread starts it (a child dies with
//! the thread that started it, so a test that ends in any way takes its nodes with it),
//! waits for its end and reaps it. A signal is sent only while the child is not reaped,
//! under the lock that reaping takes too: never to a process that got the same pid later.

use std::fs::OpenOptions;
use std::io;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tokio::sync::watch;

use super::network::Namespace;
use super::os::{self, Signal};

/// A child process.
#[derive(Debug)]
pub struct Process {
    pid: u32,
    /// None while it has not been reaped. Locked while signalling and reaping.
    reaped: Arc<Mutex<bool>>,
    exit: watch::Receiver<Option<ExitStatus>>,
    reaper: Option<JoinHandle<()>>,
}

impl Process {
    /// Starts a program with both outputs appended to a log file, in a network namespace or
    /// in that of the caller.
    pub fn start(
        program: &Path,
        args: &[&Path],
        env: &[(String, String)],
        log: &Path,
        namespace: Option<Arc<Namespace>>,
    ) -> Result<Self> {
        let log_file = OpenOptions::new().create(true).append(true).open(log)?;
        let mut command = Command::new(program);
        command
            .args(args)
            // Of a log that ends with an error its last lines are shown.
            .env("RUST_LIB_BACKTRACE", "0")
            .envs(env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(log_file.try_clone()?)
            .stderr(log_file);
        os::die_with_parent(&mut command);

        let reaped = Arc::new(Mutex::new(false));
        let (exit_sender, exit) = watch::channel(None);
        let (started_sender, started) = mpsc::sync_channel::<io::Result<u32>>(1);
        let reaper = {
            let reaped = Arc::clone(&reaped);
            std::thread::Builder::new()
                .name("node-process".to_owned())
                .spawn(move || {
                    let entered = namespace.map_or(Ok(()), |namespace| namespace.enter());
                    let child = entered.and_then(|()| command.spawn());
                    run(child, &started_sender, &reaped, &exit_sender);
                })?
        };
        let pid = started
            .recv()
            .context("the thread of a child ended before it had started it")?
            .with_context(|| format!("could not start {}", program.display()))?;
        Ok(Self {
            pid,
            reaped,
            exit,
            reaper: Some(reaper),
        })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// How it ended, or none while it runs.
    pub fn exit_status(&self) -> Option<ExitStatus> {
        *self.exit.borrow()
    }

    /// Sends a signal; an error when it has ended already.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let reaped = self.reaped.lock().unwrap_or_else(PoisonError::into_inner);
        if *reaped {
            bail!("process {} has ended already", self.pid);
        }
        os::signal(self.pid, signal)
            .with_context(|| format!("could not send {signal:?} to process {}", self.pid))
    }

    /// Waits until it has ended, at most so long.
    pub async fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let ended = self.exit.wait_for(Option::is_some);
        let status = tokio::time::timeout(limit, ended)
            .await
            .with_context(|| format!("process {} still runs after {limit:?}", self.pid))?
            .context("the thread of a child ended without its status")?;
        (*status).context("a child that ended has a status")
    }

    /// Ends it at once and waits for that, blocking.
    pub fn kill_blocking(&mut self) {
        if self.exit_status().is_none() {
            // It may end by itself between the two: then there is nothing to do.
            let _ = self.signal(Signal::Kill);
        }
        if let Some(reaper) = self.reaper.take() {
            let _ = reaper.join();
        }
    }

    /// Bytes of physical memory that it uses now.
    pub fn resident_bytes(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid))?;
        let kilobytes = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .and_then(|rest| rest.trim().strip_suffix("kB"))
            .context("no VmRSS in /proc/<pid>/status")?;
        Ok(kilobytes.trim().parse::<u64>()? * 1024)
    }

    /// Files and sockets that it has open now.
    pub fn open_files(&self) -> Result<usize> {
        Ok(std::fs::read_dir(format!("/proc/{}/fd", self.pid))?.count())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill_blocking();
    }
}

fn run(
    child: io::Result<Child>,
    started: &mpsc::SyncSender<io::Result<u32>>,
    reaped: &Mutex<bool>,
    exit: &watch::Sender<Option<ExitStatus>>,
) {
    let mut child = match child {
        Ok(child) => child,
        Err(error) => {
            // The receiver waits for exactly this.
            let _ = started.send(Err(error));
            return;
        }
    };
    let _ = started.send(Ok(child.id()));
    let waited = os::wait_without_reaping(child.id());
    let mut reaped = reaped.lock().unwrap_or_else(PoisonError::into_inner);
    match waited.and_then(|()| child.wait()) {
        Ok(status) => {
            *reaped = true;
            exit.send_replace(Some(status));
        }
        Err(error) => eprintln!("could not wait for process {}: {error}", child.id()),
    }
}
