//! Disks that are full. Owner of no state.

use std::fs::File;
use std::io::{ErrorKind, Write as _};
use std::path::Path;

use anyhow::{Context as _, Result};

/// Ballast is written in pieces of this many bytes, then in single bytes' worth.
const PIECE_BYTES: usize = 1 << 20;

/// Writes a file until the disk has no byte left; how many bytes it has.
pub fn fill_disk(path: &Path) -> Result<u64> {
    let mut file = File::create(path)?;
    let mut written = 0;
    let mut piece = vec![0xA5; PIECE_BYTES];
    loop {
        match file.write(&piece) {
            Ok(bytes) => written += bytes as u64,
            Err(error) if error.kind() == ErrorKind::StorageFull && piece.len() > 1 => {
                piece.truncate(piece.len() / 2);
            }
            Err(error) if error.kind() == ErrorKind::StorageFull => return Ok(written),
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
