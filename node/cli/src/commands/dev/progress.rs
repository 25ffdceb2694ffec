//! What is shown while something takes its time: spinners in a terminal, plain lines
//! elsewhere. On stderr, so that stdout stays for answers.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// How often spinners turn.
const TICK: Duration = Duration::from_millis(100);

/// Some rows of progress.
pub struct Progress {
    /// `None` where there is no terminal.
    bars: Option<MultiProgress>,
}

/// One row.
pub struct Row {
    name: String,
    bar: Option<ProgressBar>,
}

impl Progress {
    pub fn new() -> Self {
        let terminal = std::io::stderr().is_terminal();
        Self {
            bars: terminal.then(MultiProgress::new),
        }
    }

    /// Adds a row; its text can change.
    pub fn row(&self, name: &str, text: &str) -> Row {
        let row = Row {
            name: name.to_owned(),
            bar: self.bars.as_ref().map(|bars| {
                let style = ProgressStyle::with_template("{spinner:.cyan} {prefix} {msg}")
                    .expect("the template is well-formed")
                    .tick_strings(&["⠋", "⠙", "⠹", "⠸", "⠼", "⠴", "⠦", "⠧", "⠇", "✓"]);
                let bar = bars.add(ProgressBar::new_spinner().with_style(style));
                bar.set_prefix(name.to_owned());
                bar.enable_steady_tick(TICK);
                bar
            }),
        };
        row.say(text);
        row
    }

    /// Leaves the rows as they are.
    pub fn finish(&self) {
        if let Some(bars) = &self.bars {
            bars.set_move_cursor(false);
        }
    }
}

impl Row {
    /// Says how it goes, where that can be replaced by what comes next.
    pub fn say(&self, text: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(text.to_owned());
        }
    }

    /// Says how it ended.
    pub fn done(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.finish_with_message(text.to_owned()),
            None => {
                // Progress is not worth failing for.
                let _ = writeln!(std::io::stderr(), "{}: {text}", self.name);
            }
        }
    }
}
