//! Named points where a test can make the process die, fail or wait.
//!
//! Off unless the environment variable `CARILLON_FAILPOINTS` is set, for example to
//! `log.before_sync=crash@3;store.before_flush=delay(50)`. It is read once, at the first point
//! that is reached; a point that is off costs one relaxed atomic load.
//!
//! Actions: `crash` (SIGKILL to the own process), `error` (the point fails with an I/O error),
//! `delay(ms)`. With `@n` only the n-th time the point is reached (from 1), without it each time.
//!
//! Points of this crate: `log.before_write`, `log.after_partial_write` (half of the batch is
//! written), `log.after_write`, `log.before_sync`, `log.after_sync`, `log.rotate`,
//! `log.delete_segment`.

use std::collections::HashMap;
use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// The environment variable that is read.
pub const VARIABLE: &str = "CARILLON_FAILPOINTS";

const UNREAD: u8 = 0;
const OFF: u8 = 1;
const ON: u8 = 2;

static STATE: AtomicU8 = AtomicU8::new(UNREAD);
static CONFIGURED: OnceLock<Result<HashMap<String, Point>, FailpointError>> = OnceLock::new();

/// `CARILLON_FAILPOINTS` can not be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "failpoint \"{item}\" is not name=action, with action crash, error or delay(ms), and optionally @n"
)]
pub struct FailpointError {
    item: String,
}

/// What a point does when it is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Kill the own process with SIGKILL.
    Crash,
    /// Return an I/O error.
    Error,
    /// Block the thread.
    Delay(Duration),
}

impl Action {
    /// Does what the action says at the point `name`.
    ///
    /// # Errors
    /// Only for [`Action::Error`].
    pub fn perform(self, name: &str) -> io::Result<()> {
        match self {
            Action::Crash => crash(),
            Action::Error => Err(io::Error::other(format!("injected by failpoint {name}"))),
            Action::Delay(duration) => {
                std::thread::sleep(duration);
                Ok(())
            }
        }
    }
}

#[derive(Debug)]
struct Point {
    action: Action,
    /// The only hit that fires, from 1; `None`: every hit.
    nth: Option<u64>,
    hits: AtomicU64,
}

/// Reads the environment now. For a binary's start: `true` when any point is on (warn about it).
///
/// # Errors
/// When the variable is set but malformed; the points are then all off.
pub fn init() -> Result<bool, FailpointError> {
    let configured = CONFIGURED.get_or_init(|| parse(&std::env::var(VARIABLE).unwrap_or_default()));
    let on = configured.as_ref().is_ok_and(|points| !points.is_empty());
    STATE.store(if on { ON } else { OFF }, Relaxed);
    configured.as_ref().map(|_| on).map_err(Clone::clone)
}

/// Passes the point `name` where no error can be returned: an `error` action is only logged.
pub fn hit(name: &'static str) {
    if let Err(error) = hit_io(name) {
        tracing::error!(%error, "failpoint can not fail here");
    }
}

/// Passes the point `name`.
///
/// # Errors
/// When the point is due and its action is `error`.
pub fn hit_io(name: &str) -> io::Result<()> {
    match due(name) {
        Some(action) => action.perform(name),
        None => Ok(()),
    }
}

/// Counts a hit of the point `name` and says what is due there, for a caller that prepares
/// something (such as half a write) before it performs the action.
#[inline]
pub fn due(name: &str) -> Option<Action> {
    if STATE.load(Relaxed) == OFF {
        None
    } else {
        due_configured(name)
    }
}

#[cold]
fn due_configured(name: &str) -> Option<Action> {
    if STATE.load(Relaxed) == UNREAD
        && let Err(error) = init()
    {
        tracing::error!(%error, variable = VARIABLE, "failpoints are off");
    }
    let points = CONFIGURED.get()?.as_ref().ok()?;
    let point = points.get(name)?;
    let hit = point.hits.fetch_add(1, Relaxed) + 1;
    point
        .nth
        .is_none_or(|nth| nth == hit)
        .then_some(point.action)
}

#[expect(
    unsafe_code,
    reason = "only the C library's kill sends SIGKILL, which no handler can soften"
)]
fn crash() -> ! {
    // SAFETY: plain system calls without memory arguments.
    unsafe {
        libc::kill(libc::getpid(), libc::SIGKILL);
    }
    std::process::abort()
}

fn parse(text: &str) -> Result<HashMap<String, Point>, FailpointError> {
    let items = text
        .split(';')
        .map(str::trim)
        .filter(|item| !item.is_empty());
    items
        .map(|item| {
            parse_item(item).ok_or_else(|| FailpointError {
                item: item.to_owned(),
            })
        })
        .collect()
}

fn parse_item(item: &str) -> Option<(String, Point)> {
    let (name, rest) = item.split_once('=')?;
    let (action, nth) = match rest.split_once('@') {
        Some((action, nth)) => (
            action,
            Some(nth.trim().parse::<u64>().ok().filter(|nth| *nth > 0)?),
        ),
        None => (rest, None),
    };
    let action = match action.trim() {
        "crash" => Action::Crash,
        "error" => Action::Error,
        delay => {
            let millis = delay.strip_prefix("delay(")?.strip_suffix(')')?;
            Action::Delay(Duration::from_millis(millis.trim().parse().ok()?))
        }
    };
    let point = Point {
        action,
        nth,
        hits: AtomicU64::new(0),
    };
    (!name.trim().is_empty()).then(|| (name.trim().to_owned(), point))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn actions_and_counts_are_read() {
        let points = parse(" a.b=crash@3 ; c=error;d = delay(20)@1;").unwrap();
        let read = |name: &str| points.get(name).map(|point| (point.action, point.nth));
        assert_eq!(read("a.b"), Some((Action::Crash, Some(3))));
        assert_eq!(read("c"), Some((Action::Error, None)));
        assert_eq!(
            read("d"),
            Some((Action::Delay(Duration::from_millis(20)), Some(1)))
        );
        assert_eq!(points.len(), 3);
        assert!(parse("").unwrap().is_empty());
    }

    #[test]
    fn mistakes_are_named() {
        for item in [
            "a",
            "a=",
            "=crash",
            "a=crash@0",
            "a=crash@x",
            "a=delay(x)",
            "a=delay(1",
            "a=explode",
        ] {
            let error = parse(&format!("ok=crash;{item}")).unwrap_err();
            assert_eq!(error.item, item);
        }
    }
}
