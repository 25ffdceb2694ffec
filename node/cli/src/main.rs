//! `carillon`: the command of developers and operators.
//!
//! What is typed is parsed in `arguments`, carried out in `commands`, and shown by
//! `output`; a failure is explained here, once.

mod arguments;
mod bench;
mod commands;
mod failure;
mod output;
mod present;

use std::process::ExitCode;

use crate::arguments::Arguments;

fn main() -> ExitCode {
    let arguments = Arguments::of_process();
    init_logs();
    let output = arguments.output;
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            let error = anyhow::Error::new(error).context("could not start the async runtime");
            failure::explain(&error, output);
            return ExitCode::FAILURE;
        }
    };
    let code = match runtime.block_on(commands::run(arguments)) {
        Ok(code) => code,
        Err(error) if failure::is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            failure::explain(&error, output);
            ExitCode::FAILURE
        }
    };
    // A thread may still be reading the terminal; nothing is left for it to do.
    runtime.shutdown_background();
    code
}

/// Logs of the libraries, on stderr, only when asked for by `CARILLON_LOG`.
fn init_logs() {
    if let Ok(filter) = tracing_subscriber::EnvFilter::try_from_env("CARILLON_LOG") {
        tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(std::io::stderr)
            .init();
    }
}
