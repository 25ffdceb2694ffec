//! `carillon server-key`: a new secret for a server of the product.

use carillon_auth::keys::{Scope, make};
use clap::Args;
use serde_json::json;

use crate::arguments::Output;
use crate::output;

#[derive(Debug, Args)]
pub struct ServerKeyArguments {
    /// What the server is called in logs: letters, digits, '.', '_', '-'.
    #[arg(value_parser = name)]
    name: String,
    /// What it may do: chat.read, chat.write; repeat it or separate them by commas.
    #[arg(long = "scope", required = true, value_delimiter = ',', value_parser = scope)]
    scopes: Vec<Scope>,
}

fn name(text: &str) -> Result<String, String> {
    if carillon_auth::identity::is_name(text) {
        return Ok(text.to_owned());
    }
    Err("1 to 128 letters, digits, '.', '_' and '-'".to_owned())
}

fn scope(text: &str) -> Result<Scope, String> {
    Scope::parse(text).ok_or_else(|| {
        let all: Vec<_> = Scope::ALL.iter().map(ToString::to_string).collect();
        format!("one of {}", all.join(", "))
    })
}

/// Makes the secret, and shows it this once.
pub fn run(arguments: &ServerKeyArguments, output: Output) -> anyhow::Result<()> {
    let (secret, entry) = make(&arguments.name, &arguments.scopes)?;
    match output {
        Output::Json => output::json(&json!({ "secret": secret, "entry": entry }))?,
        Output::Table => {
            output::line(&format!("{secret}\n"))?;
            output::line("The server keeps this; it is not shown again. Add to the file that")?;
            output::line(&format!("auth.server_keys names, on all nodes:\n\n{entry}"))?;
        }
    }
    Ok(())
}
