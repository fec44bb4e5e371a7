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

/// The number of a signal as Docker takes it: `SIGTERM`, `term`, `15`, `SIGRTMIN+3`, `RTMAX-1`.
pub fn parse(text: &str) -> Option<i32> {
    let upper = text.trim().to_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let offset = |rest: &str| if rest.is_empty() { Some(0) } else { rest.parse::<i32>().ok() };
    let number = if let Ok(number) = name.parse::<i32>() {
        number
    } else if let Some(rest) = name.strip_prefix("RTMIN") {
        libc::SIGRTMIN() + offset(rest)?
    } else if let Some(rest) = name.strip_prefix("RTMAX") {
        libc::SIGRTMAX() + offset(rest)?
    } else {
        format!("SIG{name}").parse::<nix::sys::signal::Signal>().ok()? as i32
    };
    (1..=64).contains(&number).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_known_by_every_name_docker_knows() {
        for (text, want) in [
            ("SIGTERM", Some(15)),
            ("quit", Some(3)),
            ("9", Some(9)),
            ("SIGRTMIN+3", Some(37)),
            ("RTMAX-1", Some(63)),
            ("SIGNOTHING", None),
            ("0", None),
        ] {
            assert_eq!(parse(text), want, "{text}");
        }
    }
}
