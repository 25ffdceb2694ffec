//! The node processes of a cluster on this machine: found by the ports that they listen
//! on, observed through `/proc`, and signalled by the failover benchmark.
//!
//! Nothing is ever signalled that is not named `carillon-node`.

use std::collections::BTreeSet;
use std::fs;
use std::net::{SocketAddr, ToSocketAddrs};
use std::time::{Duration, Instant};

use serde::Serialize;

/// What a node's process is called.
const PROCESS_NAME: &str = "carillon-node";
/// The state of a listening socket in `/proc/net/tcp`.
const LISTENING: &str = "0A";

/// A node and its process.
#[derive(Debug, Clone, Serialize)]
pub struct NodeProcess {
    /// Its client address, `host:port`.
    pub endpoint: String,
    pub pid: u32,
}

/// What a process has used.
#[derive(Debug, Clone, Copy)]
pub struct Usage {
    at: Instant,
    cpu: Duration,
    pub rss_bytes: u64,
}

impl Usage {
    /// Of a process; none when it is gone or `/proc` is not there.
    pub fn of(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        Some(Self {
            at: Instant::now(),
            cpu: Duration::from_secs_f64(cpu_ticks(&stat)? as f64 / ticks_per_second()),
            rss_bytes: rss_bytes(&status)?,
        })
    }

    /// Of this process.
    pub fn own() -> Option<Self> {
        Self::of(std::process::id())
    }

    /// Cores that it kept busy since then.
    pub fn cores_since(&self, earlier: &Usage) -> f64 {
        let wall = self.at.duration_since(earlier.at).as_secs_f64();
        self.cpu.saturating_sub(earlier.cpu).as_secs_f64() / wall.max(f64::EPSILON)
    }
}

/// Finds the processes that listen on these addresses; those elsewhere are left out.
pub fn find(endpoints: &[String]) -> Vec<NodeProcess> {
    endpoints
        .iter()
        .filter_map(|endpoint| {
            let address = endpoint.to_socket_addrs().ok()?.next()?;
            if !address.ip().is_loopback() {
                return None;
            }
            Some(NodeProcess {
                endpoint: endpoint.clone(),
                pid: listener(address)?,
            })
        })
        .collect()
}

/// The process that listens on a port of this machine.
fn listener(address: SocketAddr) -> Option<u32> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"];
    let sockets: BTreeSet<String> = tables
        .iter()
        .filter_map(|table| fs::read_to_string(table).ok())
        .flat_map(|table| listening_inodes(&table, address.port()))
        .map(|inode| format!("socket:[{inode}]"))
        .collect();
    if sockets.is_empty() {
        return None;
    }
    let pids = fs::read_dir("/proc").ok()?.filter_map(|entry| {
        let name = entry.ok()?.file_name();
        name.to_str()?.parse::<u32>().ok()
    });
    pids.filter(|pid| is_node(*pid)).find(|pid| {
        let Ok(files) = fs::read_dir(format!("/proc/{pid}/fd")) else {
            return false;
        };
        files.flatten().any(|file| {
            let target = fs::read_link(file.path()).ok();
            target.is_some_and(|target| sockets.contains(&*target.to_string_lossy()))
        })
    })
}

fn is_node(pid: u32) -> bool {
    // The kernel keeps the first 15 bytes of a name.
    let name = fs::read_to_string(format!("/proc/{pid}/comm"));
    name.is_ok_and(|name| name.trim() == PROCESS_NAME)
}

/// The inodes of sockets that listen on a port, from a table of `/proc/net`.
fn listening_inodes(table: &str, port: u16) -> Vec<u64> {
    let port = format!("{port:04X}");
    table
        .lines()
        .skip(1)
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let (_, local_port) = fields.get(1)?.rsplit_once(':')?;
            let listens = *fields.get(3)? == LISTENING && local_port == port;
            listens.then(|| fields.get(9)?.parse().ok()).flatten()
        })
        .collect()
}

/// User and system time of a `/proc/PID/stat`, in clock ticks.
fn cpu_ticks(stat: &str) -> Option<u64> {
    // The name in brackets may hold blanks; the fields after it are counted from 3.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

/// The resident memory of a `/proc/PID/status`.
fn rss_bytes(status: &str) -> Option<u64> {
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}

#[expect(unsafe_code, reason = "std does not tell the kernel's clock ticks")]
fn ticks_per_second() -> f64 {
    // SAFETY: sysconf has no memory effects.
    let ticks = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    if ticks > 0 { ticks as f64 } else { 100.0 }
}

/// What the failover benchmark does to a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    Kill,
    Stop,
    Continue,
}

impl NodeProcess {
    /// Sends a signal, if the process is still a node.
    #[expect(unsafe_code, reason = "std sends no signals to other processes")]
    pub fn signal(&self, signal: Signal) -> std::io::Result<()> {
        let pid = libc::pid_t::try_from(self.pid).map_err(std::io::Error::other)?;
        if !is_node(self.pid) {
            return Err(std::io::Error::from_raw_os_error(libc::ESRCH));
        }
        let number = match signal {
            Signal::Kill => libc::SIGKILL,
            Signal::Stop => libc::SIGSTOP,
            Signal::Continue => libc::SIGCONT,
        };
        // SAFETY: kill has no memory effects.
        if unsafe { libc::kill(pid, number) } == 0 {
            Ok(())
        } else {
            Err(std::io::Error::last_os_error())
        }
    }
}

/// Lets this process open at least `files` files, as far as the system allows.
#[expect(unsafe_code, reason = "std has no resource limits")]
pub fn raise_open_files(files: u64) -> std::io::Result<()> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the pointer is to a valid rlimit for the time of the call.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    if limit.rlim_cur >= files {
        return Ok(());
    }
    limit.rlim_cur = files;
    limit.rlim_max = limit.rlim_max.max(files);
    // SAFETY: the pointer is to a valid rlimit for the time of the call.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_files_are_understood() {
        let stat = "12 (a (b) c) S 1 1 1 0 -1 4194304 9 8 7 6 250 50 0 0 20 0 1 0 5 6 7";
        assert_eq!(cpu_ticks(stat), Some(300));
        assert_eq!(rss_bytes("Name:\tx\nVmRSS:\t  16 kB\n"), Some(16_384));
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
            0: 0100007F:1CE9 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4242 1 0 100 0 0 10 0\n\
            1: 0100007F:1CE9 0100007F:9999 01 00000000:00000000 00:00000000 00000000     0        0 4243 1 0 100 0 0 10 0\n";
        assert_eq!(listening_inodes(table, 0x1ce9), [4242]);
        assert!(listening_inodes(table, 80).is_empty());
    }

    #[test]
    fn other_processes_are_never_signalled() {
        let own = NodeProcess {
            endpoint: String::new(),
            pid: std::process::id(),
        };
        assert!(own.signal(Signal::Kill).is_err());
    }
}
