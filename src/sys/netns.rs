//! Network namespaces that live by a descriptor only, and work done inside them.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};

use nix::sched::{CloneFlags, setns, unshare};

/// Makes a network namespace that nothing but the returned descriptor holds: it is gone once that
/// is closed, also when this process is killed.
///
/// `unshare(CLONE_NEWNET)` on a short-lived thread: `CAP_SYS_ADMIN`. Its `lo` is down.
pub fn create() -> io::Result<OwnedFd> {
    on_thread(|| {
        unshare(CloneFlags::CLONE_NEWNET)?;
        // Not /proc/self: that is the thread group's leader, which stays where it is.
        Ok(std::fs::File::open("/proc/thread-self/ns/net")?.into())
    })
}

/// Moves the calling thread, and only it, into the namespace `ns`.
///
/// `setns(2)`, `CLONE_NEWNET`: Linux 3.0, `CAP_SYS_ADMIN`. Sockets keep the namespace they were
/// made in, whichever thread uses them later.
pub fn enter(ns: BorrowedFd<'_>) -> io::Result<()> {
    Ok(setns(ns, CloneFlags::CLONE_NEWNET)?)
}

/// True for a network namespace's file (`NS_GET_NSTYPE`, ioctl_ns(2), Linux 4.11).
pub fn is_network_namespace(file: &std::fs::File) -> bool {
    const NS_GET_NSTYPE: libc::c_ulong = 0xb703;
    // SAFETY: the request takes no argument and writes to no memory of ours; the descriptor is open
    // for as long as `file` is borrowed. Any other file answers ENOTTY.
    let kind = unsafe { libc::ioctl(file.as_raw_fd(), NS_GET_NSTYPE as _) };
    kind == libc::CLONE_NEWNET
}

/// Runs `work` on a thread of its own inside `ns` and hands back what it made.
pub fn inside<T: Send>(
    ns: BorrowedFd<'_>,
    work: impl FnOnce() -> io::Result<T> + Send,
) -> io::Result<T> {
    on_thread(|| {
        enter(ns)?;
        work()
    })
}

fn on_thread<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("netns".into()).spawn_scoped(scope, work)?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the namespace's thread panicked")))
    })
}
