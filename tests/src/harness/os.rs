//! The few system calls that std does not have. All `unsafe` of this crate is here.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, ensure};

/// A signal that tests send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// Ends the process at once.
    Kill,
    /// Asks it to end gracefully.
    Term,
    /// Freezes it.
    Stop,
    /// Thaws it.
    Continue,
}

impl Signal {
    fn number(self) -> libc::c_int {
        match self {
            Self::Kill => libc::SIGKILL,
            Self::Term => libc::SIGTERM,
            Self::Stop => libc::SIGSTOP,
            Self::Continue => libc::SIGCONT,
        }
    }
}

/// Unpacks a `.tar.gz` into a directory, with the program `tar`.
pub fn unpack(archive: &Path, into: &Path) -> anyhow::Result<()> {
    let status = Command::new("tar")
        .arg("-xzf")
        .arg(archive)
        .arg("-C")
        .arg(into)
        .status()
        .context("tar could not be started; install it")?;
    ensure!(
        status.success(),
        "tar could not unpack {} into {}: {status}",
        archive.display(),
        into.display()
    );
    Ok(())
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}

/// Sends a signal to one process. The caller makes sure that it has not been reaped.
pub fn signal(pid: u32, signal: Signal) -> io::Result<()> {
    let pid = libc::pid_t::try_from(pid).map_err(io::Error::other)?;
    assert!(pid > 1, "a test signals only processes that it started");
    #[expect(unsafe_code, reason = "kill has no safe wrapper in std")]
    // SAFETY: kill takes no pointers.
    let result = unsafe { libc::kill(pid, signal.number()) };
    check(result)
}

/// Makes the child die with the thread that starts it.
pub fn die_with_parent(command: &mut Command) {
    let hook = || {
        #[expect(unsafe_code, reason = "prctl has no safe wrapper in std")]
        // SAFETY: PR_SET_PDEATHSIG takes no pointers and is async-signal-safe.
        let result = unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
        check(result)
    };
    #[expect(unsafe_code, reason = "pre_exec runs between fork and exec")]
    // SAFETY: the hook makes one system call and touches no memory of the parent.
    unsafe {
        command.pre_exec(hook);
    }
}

/// Blocks until a child has ended, without reaping it.
pub fn wait_without_reaping(pid: u32) -> io::Result<()> {
    loop {
        #[expect(unsafe_code, reason = "siginfo_t is plain data")]
        // SAFETY: all zeros is a valid siginfo_t.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        #[expect(unsafe_code, reason = "waitid has no safe wrapper in std")]
        // SAFETY: `info` lives through the call.
        let result =
            unsafe { libc::waitid(libc::P_PID, pid, &mut info, libc::WEXITED | libc::WNOWAIT) };
        match check(result) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// Raises the number of files that this process and its later children may open to the
/// hard limit, and to `wanted` when the system allows it. Returns the limit then.
pub fn raise_open_files(wanted: u64) -> io::Result<u64> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    #[expect(unsafe_code, reason = "getrlimit has no safe wrapper in std")]
    // SAFETY: `limit` lives through the call.
    let result = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) };
    check(result)?;
    let raised = libc::rlimit {
        rlim_cur: limit.rlim_max.max(wanted),
        rlim_max: limit.rlim_max.max(wanted),
    };
    let set = |limit: libc::rlimit| {
        #[expect(unsafe_code, reason = "setrlimit has no safe wrapper in std")]
        // SAFETY: `limit` lives through the call.
        let result = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) };
        check(result).map(|()| limit.rlim_cur)
    };
    set(raised).or_else(|_| {
        set(libc::rlimit {
            rlim_cur: limit.rlim_max,
            rlim_max: limit.rlim_max,
        })
    })
}

/// Mounts a file system in memory with a size limit, bytes. Needs root.
pub fn mount_tmpfs(at: &Path, size_bytes: u64) -> io::Result<()> {
    let at = c_path(at)?;
    let options = CString::new(format!("size={size_bytes},mode=0755")).map_err(io::Error::other)?;
    #[expect(unsafe_code, reason = "mount has no safe wrapper in std")]
    // SAFETY: all pointers are NUL-terminated strings that live through the call.
    let result = unsafe {
        libc::mount(
            c"tmpfs".as_ptr(),
            at.as_ptr(),
            c"tmpfs".as_ptr(),
            0,
            options.as_ptr().cast(),
        )
    };
    check(result)
}

/// Undoes [`mount_tmpfs`]; open files keep it alive until they are closed.
pub fn unmount(at: &Path) -> io::Result<()> {
    let at = c_path(at)?;
    #[expect(unsafe_code, reason = "umount2 has no safe wrapper in std")]
    // SAFETY: the path is a NUL-terminated string that lives through the call.
    let result = unsafe { libc::umount2(at.as_ptr(), libc::MNT_DETACH) };
    check(result)
}

/// Gives the calling thread, and the threads and children that it starts from now on, a new
/// network namespace. Needs `CAP_SYS_ADMIN`.
pub fn unshare_network() -> io::Result<()> {
    #[expect(unsafe_code, reason = "unshare has no safe wrapper in std")]
    // SAFETY: unshare takes no pointers, and CLONE_NEWNET concerns only this thread.
    let result = unsafe { libc::unshare(libc::CLONE_NEWNET) };
    check(result)
}

/// Moves the calling thread into a network namespace, as [`unshare_network`] does.
pub fn enter_network(namespace: &File) -> io::Result<()> {
    #[expect(unsafe_code, reason = "setns has no safe wrapper in std")]
    // SAFETY: the descriptor is open through the call; CLONE_NEWNET concerns only this thread.
    let result = unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) };
    check(result)
}

/// Registers a function to run when the process exits normally.
pub fn at_exit(function: extern "C" fn()) -> io::Result<()> {
    #[expect(unsafe_code, reason = "atexit has no safe wrapper in std")]
    // SAFETY: the function lives as long as the program.
    let result = unsafe { libc::atexit(function) };
    check(result)
}
