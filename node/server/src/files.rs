//! How many files this process may open: connections, SST files and log segments share them,
//! and a node that cannot open a file of its state must end.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Files that clients' connections never get: those of the state store, of the log, of other
/// nodes and of probes.
pub const FILES_RESERVED: u64 = 1_024;

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
