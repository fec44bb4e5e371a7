//! Pid 1 of the cell: a single-threaded process that mounts, starts, kills and reaps on request,
//! and whose end is the end of everything in the cell.
//!
//! It ends when slim does: by the parent-death signal, and when the socket to slim closes.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::WaitOptions;
use serde::{Deserialize, Serialize};

use super::Ended;
use crate::model::chain;
use crate::sys::{mount, passing, signals};

/// What slim asks of the helper.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Request {
    pub id: u64,
    pub ask: Ask,
}

/// The requests. Descriptors travel with the message, in the order named.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Ask {
    Overlay {
        lowers: Vec<PathBuf>,
        upper: PathBuf,
        work: PathBuf,
        target: PathBuf,
    },
    /// One descriptor: what to bind at `target`, an existing file or folder.
    Bind {
        target: PathBuf,
    },
    Detach {
        target: PathBuf,
    },
    /// Five descriptors: the task, stdin, stdout, stderr, the report.
    Spawn,
    Kill {
        pid: i32,
        signal: i32,
    },
}

/// What the helper says.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Note {
    /// The pid for `Spawn`, else 0; or why not.
    Done { id: u64, result: Result<i32, String> },
    /// A child of the helper, or an orphan of the cell, ended.
    Ended { pid: i32, ended: Ended },
}

/// Serves until slim is gone. Never returns.
pub(super) fn main(socket: OwnedFd) -> ! {
    let code = match serve(&socket) {
        Ok(()) => 0,
        Err(error) => {
            let note = Note::Done { id: 0, result: Err(error.to_string()) };
            let _ = say(&socket, &note);
            1
        }
    };
    std::process::exit(code)
}

fn serve(socket: &OwnedFd) -> io::Result<()> {
    let children = prepare(socket)?;
    say(socket, &Note::Done { id: 0, result: Ok(0) })?;
    loop {
        let mut fds = [PollFd::new(socket, PollFlags::IN), PollFd::new(&children, PollFlags::IN)];
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let asked = !fds[0].revents().is_empty();
        while children.read_signal().ok().flatten().is_some() {}
        reap(socket)?;
        if asked {
            let Some((bytes, fds)) = passing::receive(socket)? else { return Ok(()) };
            let request: Request = serde_json::from_slice(&bytes)?;
            let result = answer(request.ask, fds);
            say(socket, &Note::Done { id: request.id, result })?;
        }
    }
}

/// Leaves the terminal's process group (Ctrl-C is for slim to handle), makes the mount namespace
/// private and gives it a procfs of the new pid namespace.
fn prepare(socket: &OwnedFd) -> io::Result<SignalFd> {
    rustix::io::fcntl_setfd(socket, rustix::io::FdFlags::CLOEXEC)?;
    let _ = rustix::process::setsid();
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    let told = |error: mount::MountError| io::Error::other(chain(&error));
    mount::make_all_private().map_err(told)?;
    mount::proc("/proc".as_ref()).map_err(told)?;
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGCHLD);
    mask.thread_block()?;
    Ok(SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?)
}

fn say(socket: &OwnedFd, note: &Note) -> io::Result<()> {
    passing::send(socket, &serde_json::to_vec(note)?, &[])
}

fn reap(socket: &OwnedFd) -> io::Result<()> {
    while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
        let ended = match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => Ended::Exited(code),
            (None, Some(signal)) => Ended::Killed(signal),
            (None, None) => continue,
        };
        say(socket, &Note::Ended { pid: pid.as_raw_nonzero().get(), ended })?;
    }
    Ok(())
}

fn answer(ask: Ask, fds: Vec<OwnedFd>) -> Result<i32, String> {
    let told = |error: mount::MountError| chain(&error);
    match ask {
        Ask::Overlay { lowers, upper, work, target } => {
            mount::overlay(&lowers, &upper, &work, &target).map_err(told).map(|()| 0)
        }
        Ask::Bind { target } => {
            let source = fds.first().ok_or("no descriptor")?;
            mount::bind_fd(source.as_fd(), &target).map_err(told).map(|()| 0)
        }
        Ask::Detach { target } => mount::detach(&target).map_err(told).map(|()| 0),
        Ask::Spawn => spawn(fds),
        Ask::Kill { pid, signal } => signals::send(pid, signal)
            .map(|()| 0)
            .map_err(|error| format!("kill({pid}, {signal}): {error}")),
    }
}

/// Starts a shim (this binary again) with the task; the shim joins its cgroup before anything else.
fn spawn(fds: Vec<OwnedFd>) -> Result<i32, String> {
    let [task, stdin, stdout, stderr, report]: [OwnedFd; 5] =
        fds.try_into().map_err(|_| "a task needs five descriptors".to_owned())?;
    let inherit = |fd: BorrowedFd<'_>| {
        rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty()).map_err(|e| e.to_string())
    };
    inherit(task.as_fd())?;
    inherit(report.as_fd())?;
    let mut command = Command::new("/proc/self/exe");
    command
        .arg0("slim-shim")
        .args([super::HIDDEN_SHIM.to_owned(), task.as_raw_fd().to_string()])
        .arg(report.as_raw_fd().to_string())
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::from(File::from(stdin)))
        .stdout(Stdio::from(File::from(stdout)))
        .stderr(Stdio::from(File::from(stderr)));
    let child = command.spawn().map_err(|error| format!("cannot start a shim: {error}"))?;
    i32::try_from(child.id()).map_err(|error| error.to_string())
}
