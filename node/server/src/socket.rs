//! The socket beside a node's data, by which programs on the same machine administer it.
//!
//! Owner of no state. Whoever may open the socket may read the node's data as well, so nothing
//! else is asked of them.

use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use tokio::net::UnixListener;

/// Its name in the data directory.
const SOCKET: &str = "admin.sock";
/// For the node's own user only.
const SOCKET_MODE: u32 = 0o600;

/// Where it is.
pub fn path(data_dir: &Path) -> PathBuf {
    data_dir.join(SOCKET)
}

/// Takes it away when the node stops, so that nobody waits for an answer there.
pub fn remove(path: &Path) {
    if let Err(error) = std::fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::debug!(path = %path.display(), %error, "the socket stays");
    }
}

/// Listens on it. The data directory is locked by now: one that is there is of a node that died.
///
/// # Errors
/// When the file system does not let it.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // Nobody else may connect in between either; files that others make meanwhile are narrower
    // than they need be for a moment, which hurts nobody.
    let before = rustix::process::umask(Mode::from_raw_mode(!SOCKET_MODE & 0o777));
    let listener = UnixListener::bind(path);
    rustix::process::umask(before);
    listener
}
