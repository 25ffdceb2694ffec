//! The binary of a node: `carillon-node --config node.toml`, and what is asked of the node that
//! runs with the same configuration.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use carillon_node::config::{Config, LogFormat, Logging, Mode};
use carillon_node::node::Ended;
use carillon_node::probe::Question;
use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Ended in order, to be started again: an operator asked for it. EX_TEMPFAIL of sysexits.
const EXIT_RESTART: u8 = 75;
/// Where a configuration is when nobody says.
const DEFAULT_CONFIG: &str = "/etc/carillon/node.toml";

/// A storage node and gateway of a Carillon cluster.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// The configuration, a TOML file; docs/configuration.md describes every field.
    #[arg(long, value_name = "FILE", global = true, default_value = DEFAULT_CONFIG)]
    config: PathBuf,
    /// Only check the configuration.
    #[arg(long)]
    check: bool,
    /// Development mode: no encryption, nobody is asked who they are, and only loopback is
    /// listened on. For trying things out on one machine.
    #[arg(long, global = true, env = "CARILLON_DEV")]
    dev: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

/// What is asked of the node beside this process.
#[derive(Debug, Subcommand)]
enum Command {
    /// Ask whether it runs, or serves clients; for a container's probes.
    Probe {
        /// What to ask.
        question: Question,
    },
    /// Drain it for a restart and wait until it may stop; for a container that is to be stopped.
    Drain {
        /// Give up after this.
        #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = humantime_serde::re::humantime::parse_duration)]
        timeout: Duration,
    },
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    let mode = if arguments.dev {
        Mode::Development
    } else {
        Mode::Production
    };
    let config = Config::load(&arguments.config, mode)?;
    if arguments.check {
        println!("{} is valid", arguments.config.display());
        return Ok(ExitCode::SUCCESS);
    }
    match arguments.command {
        None => run(config),
        Some(Command::Probe { question }) => {
            println!("{}", carillon_node::probe::ask(&config, question)?);
            Ok(ExitCode::SUCCESS)
        }
        Some(Command::Drain { timeout }) => {
            let mut runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = runtime.enable_all().build()?;
            runtime.block_on(carillon_node::drain::drain(&config, timeout))?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Runs the node until it is told to stop.
fn run(config: Config) -> anyhow::Result<ExitCode> {
    start_logging(&config.logging)?;
    // Before anything is opened; too few are told of where connections are accepted.
    carillon_node::files::raise_limit();
    // A task that panics would leave the others running with half of a state.
    std::panic::set_hook(Box::new(|panic| {
        let trace = std::backtrace::Backtrace::force_capture();
        carillon_node::node::die(&format!("panic: {panic}\n{trace}"));
    }));
    if carillon_log::failpoint::init()? {
        tracing::warn!("CARILLON_FAILPOINTS is set: this node will fail on purpose");
    }
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    if config.worker_threads > 0 {
        runtime.worker_threads(config.worker_threads);
    }
    let runtime = runtime
        .enable_all()
        .build()
        .context("the runtime cannot be started")?;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        node = config.node_id,
        cluster = config.cluster_name,
        clients = %config.listen.client,
        "starts"
    );
    let ended = runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let stop = async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        carillon_node::node::run(config, stop).await
    })?;
    // Everything is durable; what still runs has nothing to say.
    runtime.shutdown_background();
    Ok(match ended {
        Ended::Stopped => ExitCode::SUCCESS,
        Ended::Restarts => ExitCode::from(EXIT_RESTART),
    })
}

fn start_logging(logging: &Logging) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&logging.filter)
        .with_context(|| format!("configuration field logging.filter: {:?}", logging.filter))?;
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match logging.format {
        LogFormat::Text => subscriber.with_ansi(false).init(),
        LogFormat::Json => subscriber.json().init(),
    }
    Ok(())
}
