//! Ordered reads: of committed state, and of committed state under the changes of a batch.

use std::cmp::Ordering;
use std::ops::ControlFlow;

use crate::engine::Engine;
use crate::snapshot::PinnedSnapshot;

/// Which keys to visit: those in `[from, to)`.
#[derive(Clone, Copy)]
pub(crate) struct ScanRange<'a> {
    pub(crate) from: &'a [u8],
    pub(crate) to: &'a [u8],
    /// From the last to the first.
    pub(crate) reverse: bool,
}

/// A changed key of a batch: its new value, or none when it is deleted.
pub(crate) type Changed<'a> = (&'a [u8], Option<&'a [u8]>);

type Visit<'a> = &'a mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>;

/// Visits committed keys, of the snapshot if there is one. An engine error ends the process.
pub(crate) fn committed(
    engine: &Engine,
    snapshot: Option<&PinnedSnapshot>,
    range: ScanRange<'_>,
    visit: Visit<'_>,
) -> ControlFlow<()> {
    if range.from >= range.to {
        return ControlFlow::Continue(());
    }
    let mut iterator = engine.iterate(range.from, range.to, snapshot, true);
    if range.reverse {
        iterator.seek_to_last();
    } else {
        iterator.seek_to_first();
    }
    while let Some((key, value)) = iterator.item() {
        visit(key, value)?;
        if range.reverse {
            iterator.prev();
        } else {
            iterator.next();
        }
    }
    if let Err(error) = iterator.status() {
        engine.die("a scan", error);
    }
    ControlFlow::Continue(())
}

/// Visits committed keys with the changes of a batch laid over them. `changed` holds those
/// within the range, each key once, in any order.
pub(crate) fn overlaid(
    engine: &Engine,
    mut changed: Vec<Changed<'_>>,
    range: ScanRange<'_>,
    visit: Visit<'_>,
) {
    let order = |a: &[u8], b: &[u8]| if range.reverse { b.cmp(a) } else { a.cmp(b) };
    changed.sort_unstable_by(|a, b| order(a.0, b.0));
    let mut changed = changed.into_iter().peekable();
    let flow = committed(engine, None, range, &mut |key, value| {
        while let Some(&(changed_key, new_value)) = changed.peek() {
            let relation = order(changed_key, key);
            if relation == Ordering::Greater {
                break;
            }
            changed.next();
            if let Some(new_value) = new_value {
                visit(changed_key, new_value)?;
            }
            if relation == Ordering::Equal {
                return ControlFlow::Continue(());
            }
        }
        visit(key, value)
    });
    if flow.is_break() {
        return;
    }
    for (key, value) in changed {
        if let Some(value) = value
            && visit(key, value).is_break()
        {
            return;
        }
    }
}
