//! The terminal of a chat: lines in, text out above the line being typed.
//!
//! Owner of the thread that reads. It reads the next line only when the last one was
//! dealt with (`Lines::ready`), so that the prompt is always that of the present
//! conversation. Without a terminal on stdin it reads plain lines and shows no prompt.

use std::io::{self, BufRead, IsTerminal, Write};
use std::thread;

use anyhow::Context;
use rustyline::error::ReadlineError;
use rustyline::{DefaultEditor, ExternalPrinter};
use tokio::sync::mpsc;

/// Lines kept for the arrow keys.
const HISTORY_LINES_MAX: usize = 500;
/// The longest line that is taken, bytes: the longest content of a message.
pub const LINE_BYTES_MAX: usize = 65_536;

/// Where text goes.
pub struct Screen {
    /// Prints above the prompt; `None` without one.
    printer: Option<Box<dyn FnMut(String) -> rustyline::Result<()> + Send>>,
    interactive: bool,
}

/// Where lines come from.
pub struct Lines {
    lines: mpsc::Receiver<Typed>,
    /// Prompts for the reading thread; it waits for one before each line.
    prompts: mpsc::Sender<String>,
}

/// What the reading thread saw.
#[derive(Debug)]
pub enum Typed {
    Line(String),
    /// Ctrl-D, Ctrl-C, or the end of the input.
    End,
    Failed(String),
}

/// Opens both ends.
pub fn open() -> anyhow::Result<(Screen, Lines)> {
    let interactive = io::stdin().is_terminal() && io::stdout().is_terminal();
    let (typed, lines) = mpsc::channel(1);
    let (prompts, prompt_queue) = mpsc::channel(1);
    let printer = if interactive {
        let mut editor = editor().context("could not set the terminal up")?;
        let mut printer = editor
            .create_external_printer()
            .context("could not set the terminal up for printing")?;
        start(move || read_terminal(editor, prompt_queue, &typed))?;
        Some(Box::new(move |text| printer.print(text)) as Box<dyn FnMut(_) -> _ + Send>)
    } else {
        start(move || read_plain(prompt_queue, &typed))?;
        None
    };
    let screen = Screen {
        printer,
        interactive,
    };
    Ok((screen, Lines { lines, prompts }))
}

fn editor() -> rustyline::Result<DefaultEditor> {
    let config = rustyline::Config::builder()
        .max_history_size(HISTORY_LINES_MAX)?
        .auto_add_history(true)
        .build();
    DefaultEditor::with_config(config)
}

fn start(read: impl FnOnce() + Send + 'static) -> anyhow::Result<()> {
    thread::Builder::new()
        .name("input".to_owned())
        .spawn(read)
        .context("could not start reading the terminal")?;
    Ok(())
}

fn read_terminal(
    mut editor: DefaultEditor,
    mut prompts: mpsc::Receiver<String>,
    typed: &mpsc::Sender<Typed>,
) {
    while let Some(prompt) = prompts.blocking_recv() {
        let read = match editor.readline(&prompt) {
            Ok(line) if line.len() > LINE_BYTES_MAX => {
                Typed::Failed(format!("a line has at most {LINE_BYTES_MAX} bytes"))
            }
            Ok(line) => Typed::Line(line),
            Err(ReadlineError::Eof | ReadlineError::Interrupted) => Typed::End,
            Err(error) => Typed::Failed(error.to_string()),
        };
        if typed.blocking_send(read).is_err() {
            return;
        }
    }
}

fn read_plain(mut prompts: mpsc::Receiver<String>, typed: &mpsc::Sender<Typed>) {
    let mut input = io::stdin().lock();
    while prompts.blocking_recv().is_some() {
        let mut line = Vec::new();
        let limit = LINE_BYTES_MAX as u64 + 1;
        let read = match io::Read::take(&mut input, limit).read_until(b'\n', &mut line) {
            Ok(0) => Typed::End,
            Ok(_) if line.len() > LINE_BYTES_MAX => {
                Typed::Failed(format!("a line has at most {LINE_BYTES_MAX} bytes"))
            }
            Ok(_) => match String::from_utf8(line) {
                Ok(line) => Typed::Line(line),
                Err(_) => Typed::Failed("a line is not UTF-8".to_owned()),
            },
            Err(error) => Typed::Failed(error.to_string()),
        };
        if typed.blocking_send(read).is_err() {
            return;
        }
    }
}

impl Lines {
    /// The last line was dealt with: read the next one, after this prompt.
    pub async fn ready(&self, prompt: String) {
        // The thread ends only after it said so.
        let _ = self.prompts.send(prompt).await;
    }

    /// The next line. Cancel-safe.
    pub async fn next(&mut self) -> Typed {
        self.lines.recv().await.unwrap_or(Typed::End)
    }
}

impl Screen {
    /// True when somebody types at a prompt.
    pub fn interactive(&self) -> bool {
        self.interactive
    }

    /// Shows text, above the prompt when there is one.
    pub fn show(&mut self, text: &str) -> anyhow::Result<()> {
        match &mut self.printer {
            Some(print) => print(format!("{text}\n")).context("could not write to the terminal"),
            None => {
                let mut out = io::stdout().lock();
                writeln!(out, "{text}")?;
                Ok(out.flush()?)
            }
        }
    }

    /// Takes the line that was just typed off the terminal, so that it can be shown as the
    /// others are. False when it stays: it may fill other rows than it seems.
    pub fn take_back(&mut self, prompt: &str, line: &str) -> bool {
        if !self.interactive {
            return true;
        }
        let columns = comfy_table::Table::new().width().map_or(0, usize::from);
        let Some(rows) = rows(prompt, line, columns) else {
            return false;
        };
        let mut out = io::stdout().lock();
        // Up to the first of its rows, and clear from there. Where that fails the line is
        // only seen twice.
        let _ = write!(out, "\x1b[{rows}A\r\x1b[0J").and_then(|()| out.flush());
        true
    }
}

/// The rows that a typed line fills; `None` when that is not sure.
fn rows(prompt: &str, line: &str, columns: usize) -> Option<usize> {
    let text = || prompt.chars().chain(line.chars());
    // From here on there are characters of no or double width.
    if text().any(|c| c.is_control() || c >= '\u{300}') {
        return None;
    }
    let width = text().count();
    // A row that is just full may or may not begin another one.
    (columns > 0 && width % columns != 0).then(|| width.div_ceil(columns))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_counted_only_when_sure() {
        assert_eq!(rows("> ", "hello", 80), Some(1));
        assert_eq!(rows("> ", &"ä".repeat(79), 80), Some(2));
        assert_eq!(rows("> ", &"a".repeat(78), 80), None);
        assert_eq!(rows("> ", "漢字", 80), None);
        assert_eq!(rows("> ", "hello", 0), None);
    }
}
