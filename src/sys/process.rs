//! Processes started in namespaces of their own, and a fork for single-threaded helpers.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::process::Pid;

/// Starts `exe` with `args` (the first is its own name) as pid 1 of a new pid namespace in a new
/// mount namespace. `keep` stays open in it, under its number; it is killed when the calling
/// *thread* ends (`PR_SET_PDEATHSIG`), so call this from a thread that lives as long as slim.
///
/// `clone(2)` with `CLONE_NEWPID | CLONE_NEWNS`: `CAP_SYS_ADMIN`.
pub fn spawn_init(exe: &Path, args: &[&str], keep: BorrowedFd<'_>) -> io::Result<Pid> {
    let text = |bytes: &[u8]| CString::new(bytes).map_err(|_| io::ErrorKind::InvalidInput.into());
    let exe = text(exe.as_os_str().as_bytes())?;
    let args = args.iter().map(|arg| text(arg.as_bytes())).collect::<io::Result<Vec<_>>>()?;
    let mut argv: Vec<*const libc::c_char> = args.iter().map(|arg| arg.as_ptr()).collect();
    argv.push(std::ptr::null());
    let keep = keep.as_raw_fd();
    let flags = (libc::CLONE_NEWPID | libc::CLONE_NEWNS | libc::SIGCHLD) as libc::c_ulong;
    // SAFETY: without CLONE_VM and with a null stack this is fork(2). The caller may have threads, so
    // the child only makes async-signal-safe calls on memory that was prepared above and never
    // returns into Rust code that could allocate or lock.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    if pid == 0 {
        // SAFETY: as above; `exe` and `argv` are NUL-terminated and outlive the call, `keep` is open.
        unsafe {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            libc::fcntl(keep, libc::F_SETFD, 0);
            let none: [*const libc::c_char; 1] = [std::ptr::null()];
            libc::execve(exe.as_ptr(), argv.as_ptr(), none.as_ptr());
            libc::_exit(127);
        }
    }
    let pid = i32::try_from(pid).ok().filter(|pid| *pid > 0).and_then(Pid::from_raw);
    pid.ok_or_else(io::Error::last_os_error)
}

/// Forks and runs `child` in the new process, which exits with its result.
///
/// Refused (`EBUSY`) in a process with more than one thread: the child may allocate.
pub fn fork(child: impl FnOnce() -> i32) -> io::Result<Pid> {
    let threads = std::fs::read_dir("/proc/self/task").map(|tasks| tasks.count());
    if !matches!(threads, Ok(1)) {
        return Err(io::Error::from_raw_os_error(libc::EBUSY));
    }
    // SAFETY: this process has one thread, so no lock can be held by a thread that the child lacks.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => std::process::exit(child()),
        pid => Ok(Pid::from_raw(pid).expect("fork returns a pid")),
    }
}

/// The cgroup of a process in the hierarchy of version 2, as its path is in slim's cgroup namespace
/// (cgroups(7), `/proc/PID/cgroup`); `None` if the process is gone.
pub fn cgroup_of(pid: u32) -> Option<String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    text.lines().find_map(|line| line.strip_prefix("0::")).map(str::to_owned)
}

/// Takes over a descriptor that this process inherited under a known number; close-on-exec from
/// here on. Call it once per number, first thing in the process that inherited it.
pub fn inherited(number: i32) -> io::Result<OwnedFd> {
    if number < 3 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: F_SETFD on a number that is not open fails with EBADF and changes nothing.
    if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the number is open (checked above), and nothing in this freshly exec'd process owns it:
    // std only owns 0 to 2.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Marks every descriptor from 3 up close-on-exec (`close_range(2)`, with this flag Linux 5.11; before,
/// one by one, as /proc lists them: to be called while that is not a container's).
pub fn close_others_on_exec() -> io::Result<()> {
    let flags = libc::CLOSE_RANGE_CLOEXEC;
    // SAFETY: only sets a flag on descriptors; no ownership changes.
    let rc = unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, flags) };
    if rc == 0 {
        return Ok(());
    }
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let Some(number) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let number: std::ffi::c_int = number;
        // SAFETY: as above; one that is closed meanwhile is an error that says so.
        if number > 2 && unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } == -1 {
            let error = io::Error::last_os_error();
            if error.raw_os_error() != Some(libc::EBADF) {
                return Err(error);
            }
        }
    }
    Ok(())
}
