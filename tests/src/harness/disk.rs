//! Disks that are full. Owner of no state.

use std::fs::File;
use std::io::{ErrorKind, Write as _};
use std::path::Path;

use anyhow::{Context as _, Result};

/// Ballast is written in pieces of this many bytes, then in single bytes' worth.
const PIECE_BYTES: usize = 1 << 20;

/// Adds to a file until its disk has no more than so much left, also when that is nothing.
pub fn fill_but_for(ballast: &Path, left_bytes: u64) -> Result<()> {
    let mut file = File::options().create(true).append(true).open(ballast)?;
    let mut piece = vec![0xA5; PIECE_BYTES];
    loop {
        let disk = rustix::fs::fstatvfs(&file)?;
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        if left_bytes > 0 && free <= left_bytes {
            return Ok(());
        }
        match file.write(&piece) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::StorageFull && piece.len() > 1 => {
                piece.truncate(piece.len() / 2);
            }
            Err(error) if error.kind() == ErrorKind::StorageFull => return Ok(()),
            Err(error) => return Err(error).context("could not write the ballast"),
        }
    }
}

/// Whether this process may mount file systems.
pub fn may_mount() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    const CAP_SYS_ADMIN: u64 = 1 << 21;
    effective.is_some_and(|effective| effective & CAP_SYS_ADMIN != 0)
}
