//! Where answers go: tables for people, JSON for programs, both to stdout.
//!
//! A reader that goes away ends the command quietly (`failure::is_closed_pipe`), which is
//! why nothing here uses `println!`.

use std::io::{self, IsTerminal, Write};

use comfy_table::{ContentArrangement, Table};
use serde_json::Value;

/// Writes a line to stdout.
pub fn line(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.write_all(b"\n")?;
    out.flush()
}

/// Writes one JSON value, readable, to stdout.
pub fn json(value: &Value) -> io::Result<()> {
    line(&format!("{value:#}"))
}

/// Writes one JSON value on one line, for what goes on.
pub fn json_line(value: &Value) -> io::Result<()> {
    line(&value.to_string())
}

/// A table with these columns, as wide as the terminal.
pub fn table(columns: &[&str]) -> Table {
    let mut table = Table::new();
    // A new style has no lines; columns are told apart by their padding.
    table
        .load_style(comfy_table::TableStyle::new())
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_header(columns.iter().map(|column| column.to_uppercase()));
    table
}

/// Writes a table, without the blanks that fill its lines.
pub fn show(table: &Table) -> io::Result<()> {
    let text: Vec<String> = table
        .lines()
        .map(|line| line.trim_end().to_owned())
        .collect();
    line(&text.join("\n"))
}

/// Colours for a terminal; nothing where there is none, or where `NO_COLOR` is set.
#[derive(Debug, Clone, Copy)]
pub struct Paint {
    on: bool,
}

impl Paint {
    /// As stdout allows.
    pub fn for_stdout() -> Self {
        Self {
            on: io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none(),
        }
    }

    /// Never.
    #[cfg(test)]
    pub fn off() -> Self {
        Self { on: false }
    }

    pub fn bold(self, text: &str) -> String {
        self.code("1", text)
    }

    pub fn dim(self, text: &str) -> String {
        self.code("2", text)
    }

    pub fn good(self, text: &str) -> String {
        self.code("32", text)
    }

    pub fn warn(self, text: &str) -> String {
        self.code("33", text)
    }

    pub fn bad(self, text: &str) -> String {
        self.code("31", text)
    }

    /// A colour of its own for a name, the same every time.
    pub fn name(self, name: &str) -> String {
        const COLOURS: [&str; 6] = ["36", "35", "34", "32", "33", "91"];
        let sum: usize = name.bytes().map(usize::from).sum();
        self.code(COLOURS[sum % COLOURS.len()], name)
    }

    fn code(self, code: &str, text: &str) -> String {
        if self.on {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }
}
