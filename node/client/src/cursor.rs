//! Where the application keeps a device's inbox cursor.
//!
//! The cursor is the `inbox_seq` of the last message that the application has dealt with.
//! It moves when the application comes back for the next event, so a message whose
//! handling a crash interrupted is given again after the restart.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

/// The application's place for the cursor. Save it in one transaction with what the
/// messages caused, and each of them takes effect exactly once even through crashes.
///
/// Both are called on the application's own task and should not take long.
pub trait CursorStore: Send + Sync + 'static {
    /// The cursor kept last; `None` when there is none, and then the one that the server
    /// keeps for the device is used.
    fn load(&self) -> io::Result<Option<u64>>;

    /// Keeps `cursor`. It never moves backward.
    fn save(&self, cursor: u64) -> io::Result<()>;
}

/// Keeps the cursor for the life of the process; a restart uses the server's.
#[derive(Debug, Default)]
pub struct MemoryCursor(Mutex<Option<u64>>);

impl MemoryCursor {
    /// Starts with `cursor`; [`Default`] starts with none.
    pub fn starting_at(cursor: u64) -> Self {
        Self(Mutex::new(Some(cursor)))
    }
}

impl CursorStore for MemoryCursor {
    fn load(&self) -> io::Result<Option<u64>> {
        Ok(*self.0.lock())
    }

    fn save(&self, cursor: u64) -> io::Result<()> {
        *self.0.lock() = Some(cursor);
        Ok(())
    }
}

/// Keeps the cursor in a file, as decimal text, replaced atomically.
///
/// Saves are not synced to the disk: after a power failure an older cursor may come back,
/// and messages are seen again; `(conversation_id, seq)` tells which.
#[derive(Debug)]
pub struct FileCursor {
    path: PathBuf,
    /// Written first, then renamed to `path`.
    temporary: PathBuf,
    /// Two saves at a time would share the temporary file.
    writing: Mutex<()>,
}

impl FileCursor {
    /// Uses `path`; its directory must exist. One file belongs to one user's one device.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        let mut temporary = path.clone().into_os_string();
        temporary.push(".new");
        Self {
            path,
            temporary: temporary.into(),
            writing: Mutex::new(()),
        }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl CursorStore for FileCursor {
    fn load(&self) -> io::Result<Option<u64>> {
        let text = match fs::read_to_string(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        // Empty is what a power failure can leave behind.
        if text.trim().is_empty() {
            return Ok(None);
        }
        text.trim().parse().map(Some).map_err(|_| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!(
                    "{} does not hold a cursor; remove it to use the one the server keeps",
                    self.path.display()
                ),
            )
        })
    }

    fn save(&self, cursor: u64) -> io::Result<()> {
        let _guard = self.writing.lock();
        let mut file = fs::File::create(&self.temporary)?;
        writeln!(file, "{cursor}")?;
        drop(file);
        fs::rename(&self.temporary, &self.path)
    }
}

/// The cursor as the session and the event stream share it.
///
/// Invariant: `taken` only grows; what is in the store is `taken` or, while a save fails,
/// less.
pub(crate) struct Cursor {
    store: Box<dyn CursorStore>,
    taken: AtomicU64,
}

impl Cursor {
    /// Loads it. The second value is what the store had.
    pub(crate) fn load(store: Box<dyn CursorStore>) -> io::Result<(Self, Option<u64>)> {
        let stored = store.load()?;
        let cursor = Self {
            store,
            taken: AtomicU64::new(stored.unwrap_or(0)),
        };
        Ok((cursor, stored))
    }

    /// What the application has dealt with.
    pub(crate) fn taken(&self) -> u64 {
        self.taken.load(Ordering::Acquire)
    }

    /// Begins at the cursor that the server keeps, when the store had none.
    pub(crate) fn begin_at(&self, cursor: u64) {
        self.taken.fetch_max(cursor, Ordering::AcqRel);
    }

    /// The application has dealt with everything up to `cursor`.
    pub(crate) fn advance(&self, cursor: u64) -> io::Result<()> {
        if self.taken.fetch_max(cursor, Ordering::AcqRel) < cursor {
            self.store.save(cursor)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!(
            "carillon-cursor-{name}-{}",
            crate::ids::random_hex()
        ));
        fs::create_dir_all(&dir).expect("scratch directory");
        dir
    }

    #[test]
    fn a_file_keeps_the_cursor() {
        let dir = scratch("keeps");
        let store = FileCursor::new(dir.join("cursor"));
        assert_eq!(store.load().expect("no file yet"), None);
        store.save(7).expect("saved");
        store.save(41).expect("saved");
        assert_eq!(
            FileCursor::new(store.path()).load().expect("loaded"),
            Some(41)
        );
        fs::write(store.path(), "").expect("emptied");
        assert_eq!(store.load().expect("empty is none"), None);
        fs::write(store.path(), "four").expect("spoiled");
        let error = store.load().expect_err("garbage is refused");
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        fs::remove_dir_all(dir).expect("cleaned");
    }

    #[test]
    fn the_cursor_never_moves_backward() {
        let (cursor, stored) =
            Cursor::load(Box::new(MemoryCursor::starting_at(5))).expect("loaded");
        assert_eq!((cursor.taken(), stored), (5, Some(5)));
        cursor.advance(9).expect("saved");
        cursor.advance(3).expect("ignored");
        assert_eq!(cursor.taken(), 9);
        assert_eq!(cursor.store.load().expect("loaded"), Some(9));
    }
}
