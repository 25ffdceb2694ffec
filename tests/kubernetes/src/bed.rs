//! The test bed of `tests/kubernetes/cluster`: what can be done to its machines.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::process::Command;

/// Powering off waits until all processes of a node are gone; the rest is faster.
const FAULT_LIMIT: Duration = Duration::from_secs(60);

/// The test bed that the cluster of these tests runs on.
#[derive(Debug, Clone)]
pub struct Bed {
    /// Where its commands are.
    commands: PathBuf,
}

/// What happens to the machine under a node, or stops happening.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// All its processes end at once; its disk stays.
    PowerOff,
    /// It starts again.
    PowerOn,
    /// Its network cable is taken out.
    Cut,
    /// And put back.
    Mend,
    /// Its kubelet is killed; pods go on.
    KubeletOff,
    /// Its kubelet starts again.
    KubeletOn,
}

impl Fault {
    fn command(self) -> &'static str {
        match self {
            Self::PowerOff => "off",
            Self::PowerOn => "on",
            Self::Cut => "cut",
            Self::Mend => "mend",
            Self::KubeletOff => "kubelet-off",
            Self::KubeletOn => "kubelet-on",
        }
    }

    /// What ends it: for a test that fails in between.
    pub fn end(self) -> Option<Self> {
        match self {
            Self::PowerOff => Some(Self::PowerOn),
            Self::Cut => Some(Self::Mend),
            Self::KubeletOff => Some(Self::KubeletOn),
            Self::PowerOn | Self::Mend | Self::KubeletOn => None,
        }
    }
}

impl Bed {
    /// The one that `CARILLON_BED` names; none on somebody else's cluster.
    pub fn find() -> Option<Self> {
        let commands = PathBuf::from(std::env::var_os("CARILLON_BED")?);
        Some(Self { commands })
    }

    /// Does it to the node with this number, from 1. Returns when it is done, not when
    /// Kubernetes has noticed.
    pub async fn node(&self, number: u32, fault: Fault) -> anyhow::Result<()> {
        self.run("node", &[fault.command(), &number.to_string()])
            .await
    }

    /// Stops the API server, or starts it again and waits until it answers.
    pub async fn api_server(&self, on: bool) -> anyhow::Result<()> {
        self.run("api", &[if on { "on" } else { "off" }]).await
    }

    async fn run(&self, command: &str, arguments: &[&str]) -> anyhow::Result<()> {
        let ran = Command::new(self.commands.join(command))
            .args(arguments)
            .kill_on_drop(true)
            .output();
        let output = tokio::time::timeout(FAULT_LIMIT, ran)
            .await
            .with_context(|| format!("{command} {arguments:?} was not done in {FAULT_LIMIT:?}"))?
            .with_context(|| format!("{command} of the test bed cannot be run"))?;
        if !output.status.success() {
            let errors = String::from_utf8_lossy(&output.stderr);
            bail!("{command} {arguments:?}: {}", errors.trim());
        }
        Ok(())
    }
}
