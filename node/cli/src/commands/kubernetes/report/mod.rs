//! `carillon kubernetes report`: what somebody needs who is to find out what is the matter with a
//! cluster and cannot look themselves, in one file.
//!
//! Secrets are not read for it, and whatever looks like one is replaced. What cannot be read is
//! said, with the reason, on the screen and in the file, and the rest is read all the same.

mod archive;
mod collect;
mod redact;
mod tail;

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use clap::Args;
use serde_json::{Value, json};

use self::archive::Archive;
use super::connect::Connection;
use crate::arguments::{Cluster, Output};
use crate::failure::because;
use crate::output;
use crate::present;

#[derive(Debug, Args)]
pub struct ReportArguments {
    /// The ImCluster.
    #[arg(value_name = "NAME")]
    name: String,
    /// The file, a new one. Default: NAME-report-DAY-TIME.tar.gz, here.
    #[arg(long, value_name = "FILE")]
    to: Option<PathBuf>,
    /// Where the operator is, when Pods of all namespaces may not be listed.
    #[arg(long, value_name = "NAMESPACE", default_value = "carillon-system")]
    operator_namespace: String,
}

/// Carries out `carillon kubernetes report`.
pub(super) async fn run(
    connection: &Connection,
    arguments: &ReportArguments,
    given: &Cluster,
    output: Output,
) -> anyhow::Result<()> {
    let name = &arguments.name;
    let at = SystemTime::now().duration_since(UNIX_EPOCH);
    let at_s = at.map_or(0, |at| at.as_secs());
    let stem = stem(name, at_s);
    let file = arguments.to.clone();
    let file = file.unwrap_or_else(|| PathBuf::from(format!("{stem}.tar.gz")));
    // A name that is mistyped makes no report.
    let cluster = connection.clusters().get(name).await;
    let cluster = match cluster {
        Err(error) if !super::connect::is_forbidden(&error) => {
            return Err(connection.explained(name, error));
        }
        cluster => cluster,
    };
    let mut report = Report {
        archive: Archive::create(&file, &stem, at_s)?,
        output,
        files: Vec::new(),
        missing: Vec::new(),
    };
    report.object(
        "imcluster.json",
        cluster.map_err(|error| connection.explained(name, error)),
    )?;
    let operator = &arguments.operator_namespace;
    collect::objects(&mut report, connection, name).await?;
    collect::member_logs(&mut report, connection, name).await?;
    collect::operator(&mut report, connection, operator).await?;
    collect::admin(&mut report, connection, name, given).await?;
    let Report {
        mut archive,
        files,
        missing,
        ..
    } = report;
    let about = json!({
        "imcluster": name,
        "namespace": connection.namespace,
        "made_at_s": at_s,
        "made_by": format!("carillon {}", env!("CARGO_PKG_VERSION")),
        "limits": collect::limits(),
        "files": files,
        "missing": missing,
    });
    archive.add("report.json", format!("{about:#}\n").as_bytes())?;
    let whole = archive.finish();
    let unwritten = || format!("{} could not be written", file.display());
    whole.map_err(|error| because(error, unwritten(), "choose another file with --to"))?;
    match output {
        Output::Table => output::line(&format!(
            "{} has {} files; {} could not be read. Look through it before you give it away.",
            file.display(),
            files.len() + 1,
            missing.len()
        ))?,
        Output::Json => output::json_line(&json!({
            "file": file, "files": files, "missing": missing,
        }))?,
    }
    Ok(())
}

/// What the file and its folder are called.
fn stem(name: &str, at_s: u64) -> String {
    let at_ms = i64::try_from(at_s * 1_000).unwrap_or(i64::MAX);
    let moment = present::moment(at_ms);
    let digits = moment.chars().filter_map(|c| match c {
        ' ' => Some('-'),
        c => c.is_ascii_digit().then_some(c),
    });
    format!("{name}-report-{}", digits.collect::<String>())
}

/// A report that is being made.
struct Report {
    archive: Archive,
    output: Output,
    files: Vec<String>,
    missing: Vec<Value>,
}

impl Report {
    /// Adds what was read as JSON, or that it could not be.
    fn object(
        &mut self,
        file: &str,
        read: anyhow::Result<impl serde::Serialize>,
    ) -> anyhow::Result<()> {
        let text = read.and_then(|read| {
            let mut value = serde_json::to_value(read)?;
            redact::object(&mut value);
            Ok(format!("{value:#}\n"))
        });
        self.put(file, text)
    }

    /// Adds a log, or that it could not be read.
    fn log(&mut self, file: &str, read: anyhow::Result<String>) -> anyhow::Result<()> {
        self.put(file, read.map(|text| redact::text(&text)))
    }

    /// An error is of the archive: what cannot be read is only told.
    fn put(&mut self, file: &str, text: anyhow::Result<String>) -> anyhow::Result<()> {
        match text {
            Ok(text) => {
                let added = self.archive.add(file, text.as_bytes());
                added.context("the report could not be written")?;
                self.files.push(file.to_owned());
                let size = present::bytes(text.len() as u64);
                self.tell(&format!("  {file}  {size}"))
            }
            Err(error) => {
                let why = redact::text(&present::printable(&format!("{error:#}")));
                self.tell(&format!("  {file}  not read: {why}"))?;
                self.missing.push(json!({"file": file, "why": why}));
                Ok(())
            }
        }
    }

    fn tell(&self, line: &str) -> anyhow::Result<()> {
        if self.output == Output::Table {
            output::line(line)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_named_after_its_cluster_and_moment() {
        let stem = stem("chat", 1_800_000_000);
        // The hour depends on where we are.
        assert!(stem.starts_with("chat-report-202701"), "{stem}");
        assert_eq!(stem.len(), "chat-report-20270115-080000".len());
    }
}
