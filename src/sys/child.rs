//! What a child does between fork and exec.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Makes the child of `command` enter the cgroup whose open `cgroup.procs` is given, and be killed
/// when the calling *thread* ends (`PR_SET_PDEATHSIG`, prctl(2); kept across exec, lost by its
/// children and by set-user-ID programs).
pub fn bind_to_parent(command: &mut Command, procs: Option<File>) {
    let before_exec = move || {
        // SAFETY: prctl, write and their errno are async-signal-safe; the descriptor is owned by
        // this closure, and the buffer is a constant of the length given.
        unsafe {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                return Err(io::Error::last_os_error());
            }
            if let Some(file) = &procs
                && libc::write(file.as_raw_fd(), c"0".as_ptr().cast(), 1) != 1
            {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: the closure runs in the forked child and only makes async-signal-safe calls, see above;
    // an error is returned as a number, without allocation.
    unsafe { command.pre_exec(before_exec) };
}
