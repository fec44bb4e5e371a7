//! SIGINT and SIGTERM as a flag that waiting loops ask for.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

extern "C" fn note(_signal: libc::c_int) {
    INTERRUPTED.store(true, Ordering::SeqCst);
}

/// From now on SIGINT and SIGTERM set a flag instead of ending this process. Blocking calls return
/// EINTR (no `SA_RESTART`).
pub fn install() -> io::Result<()> {
    for signal in [libc::SIGINT, libc::SIGTERM] {
        // SAFETY: an all-zero sigaction is valid (no flags, empty mask), and the handler only stores
        // to an atomic, which is async-signal-safe.
        let rc = unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = note as *const () as usize;
            libc::sigaction(signal, &action, std::ptr::null_mut())
        };
        if rc != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// True once one of the signals came.
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::SeqCst)
}

/// Gives every signal its default action again and unblocks all, which an exec'd program expects
/// whatever this process inherited or set.
pub fn reset() -> io::Result<()> {
    nix::sys::signal::SigSet::empty().thread_set_mask()?;
    // The kernel's own sigaction: all zero is SIG_DFL without flags. glibc's call refuses to touch
    // signals 32 and 33, which a parent may have ignored all the same.
    let default = [0u64; 4];
    for number in 1..=64 {
        // SAFETY: the kernel reads a structure of at most 32 bytes, which `default` has, and writes
        // nothing; SIGKILL and SIGSTOP fail harmlessly.
        unsafe {
            let (new, none) = (default.as_ptr(), std::ptr::null_mut::<u64>());
            libc::syscall(libc::SYS_rt_sigaction, number, new, none, 8);
        }
    }
    Ok(())
}

/// Sends signal `number` (real-time ones too) to `pid`; a process that is gone is no error.
pub fn send(pid: i32, number: i32) -> io::Result<()> {
    if pid <= 1 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: kill(2) touches no memory of this process.
    if unsafe { libc::kill(pid, number) } == 0 {
        return Ok(());
    }
    match io::Error::last_os_error() {
        error if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
        error => Err(error),
    }
}
