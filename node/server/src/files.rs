//! How many files this process may open: connections, SST files and log segments share them,
//! and a node that cannot open a file of its state must end. And how much room its disk has.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Files that clients' connections never get: those of the state store, of the log, of other
/// nodes and of probes.
pub const FILES_RESERVED: u64 = 1_024;

/// The file system of a directory.
#[derive(Debug, Clone, Copy)]
pub struct Disk {
    /// Its size.
    pub bytes: u64,
    /// What this process may still write to it.
    pub free_bytes: u64,
}

impl Disk {
    /// Asks the operating system.
    ///
    /// # Errors
    /// What it says.
    #[expect(unsafe_code, reason = "the standard library cannot say it")]
    pub fn of(directory: &Path) -> io::Result<Self> {
        let path = CString::new(directory.as_os_str().as_bytes())?;
        // SAFETY: all fields are integers, for which zero is a value.
        let mut told: libc::statvfs = unsafe { std::mem::zeroed() };
        // SAFETY: the path ends with a NUL, and the other pointer is to a whole `statvfs`.
        if unsafe { libc::statvfs(path.as_ptr(), &raw mut told) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Disk {
            bytes: told.f_blocks.saturating_mul(told.f_frsize),
            free_bytes: told.f_bavail.saturating_mul(told.f_frsize),
        })
    }
}

/// Raises the limit of open files as far as this process may; what it is then.
pub fn raise_limit() -> u64 {
    let before = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: before.maximum,
        maximum: before.maximum,
    };
    let now = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => raised,
        Err(error) => {
            tracing::warn!(%error, "the limit of open files stays as it is");
            before
        }
    };
    now.current.unwrap_or(u64::MAX)
}

/// How many connections clients may have when `wanted` are configured and `files` may be open.
pub fn connections_max(wanted: usize, files: u64) -> usize {
    let left = files.saturating_sub(FILES_RESERVED).max(1);
    wanted.min(usize::try_from(left).unwrap_or(usize::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_never_get_the_files_of_the_node() {
        assert_eq!(connections_max(65_536, 1 << 20), 65_536);
        assert_eq!(connections_max(65_536, 4_096), 3_072);
        assert_eq!(connections_max(100, 4_096), 100);
        assert_eq!(connections_max(100, 100), 1);
    }

    #[test]
    fn the_limit_is_as_high_as_it_may_be() {
        let raised = raise_limit();
        assert_eq!(
            Some(raised),
            getrlimit(Resource::Nofile).current.or(Some(u64::MAX))
        );
        assert_eq!(raise_limit(), raised);
    }
}
