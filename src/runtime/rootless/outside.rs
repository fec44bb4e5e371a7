//! The process that stays outside the user namespace: it has the namespace's ids mapped, and starts
//! the script, which is to run as the user whom it belongs to.
//!
//! A fork of slim's from before it entered the namespace, single-threaded, without a life of its own:
//! it ends when the socket to slim closes, and by the parent-death signal.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{Pid, WaitOptions};
use serde::{Deserialize, Serialize};

use super::ids::{self, Ranges};
use crate::sys::{passing, process};

#[derive(Debug, Serialize, Deserialize)]
enum Ask {
    /// Map the ids of `pid`'s new namespace.
    Map { pid: u32, own: [u32; 2], users: Ranges, groups: Ranges },
    /// Two descriptors: the [`Start`], and what is to be the supervisor's stdin.
    Start,
}

/// What a supervisor of the script is started with.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::runtime) struct Start {
    pub program: PathBuf,
    pub args: Vec<OsString>,
    pub env: BTreeMap<String, String>,
}

impl Start {
    /// The supervisor's process, to be spawned; the caller's environment is added to.
    pub fn command(&self, stdin: OwnedFd) -> Command {
        let mut command = Command::new(&self.program);
        // A Ctrl-C on the terminal is slim's to handle, in order.
        command.args(&self.args).envs(&self.env).stdin(Stdio::from(stdin)).process_group(0);
        command
    }
}

/// slim's end.
pub(in crate::runtime) struct Outside {
    socket: Mutex<OwnedFd>,
    pid: Pid,
}

impl Outside {
    /// Forks the process. To be called while this one has one thread.
    pub fn fork() -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        let ours = Cell::new(Some(ours));
        let pid = process::fork(|| {
            // The fork's copy of slim's end would keep the socket open for ever.
            drop(ours.take());
            serve(&theirs)
        })?;
        let ours = ours.take().ok_or(io::ErrorKind::Other)?;
        Ok(Self { socket: Mutex::new(ours), pid })
    }

    /// Ends the process and reaps it.
    pub fn end(&self) {
        let _ = rustix::process::kill_process(self.pid, rustix::process::Signal::KILL);
        let _ = rustix::process::waitpid(Some(self.pid), WaitOptions::empty());
    }

    /// Maps `own` (user and group) to 0 in the new namespace of this process, and the ranges after it.
    pub fn map(&self, own: [u32; 2], users: Ranges, groups: Ranges) -> Result<(), String> {
        self.ask(&Ask::Map { pid: std::process::id(), own, users, groups }, &[])
    }

    /// Starts a supervisor outside; its end is waited for by [`Outside::wait`].
    pub fn start(&self, start: &Start, stdin: &OwnedFd) -> io::Result<()> {
        let text = serde_json::to_vec(start)?;
        let task = crate::runtime::cell::in_memory(&text)?;
        self.ask(&Ask::Start, &[task.as_fd(), stdin.as_fd()]).map_err(io::Error::other)
    }

    /// Waits until the supervisor that was started is gone.
    pub fn wait(&self) {
        let _ = self.reply();
    }

    fn ask(&self, ask: &Ask, fds: &[std::os::fd::BorrowedFd<'_>]) -> Result<(), String> {
        let bytes = serde_json::to_vec(ask).map_err(|error| error.to_string())?;
        {
            let socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
            passing::send(&*socket, &bytes, fds).map_err(|error| gone(&error.to_string()))?;
        }
        self.reply()
    }

    fn reply(&self) -> Result<(), String> {
        let socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        match passing::receive(&*socket) {
            Ok(Some((bytes, _))) => {
                serde_json::from_slice(&bytes).unwrap_or_else(|error| Err(error.to_string()))
            }
            Ok(None) => Err(gone("it was killed")),
            Err(error) => Err(gone(&error.to_string())),
        }
    }
}

fn gone(why: &str) -> String {
    format!("slim's process outside the user namespace: {why}")
}

fn serve(socket: &OwnedFd) -> i32 {
    // A Ctrl-C on the terminal is slim's to handle, in order.
    let _ = rustix::process::setpgid(None, None);
    let _ = nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL);
    while let Ok(Some((bytes, fds))) = passing::receive(socket) {
        let Ok(ask) = serde_json::from_slice(&bytes) else { return 1 };
        let served = match ask {
            Ask::Map { pid, own, users, groups } => say(socket, &map(pid, own, &users, &groups)),
            Ask::Start => match start(fds) {
                Ok(mut child) => say(socket, &Ok(())).and_then(|()| {
                    let _ = child.wait();
                    say(socket, &Ok(()))
                }),
                Err(error) => say(socket, &Err(format!("cannot start its supervisor: {error}"))),
            },
        };
        if served.is_err() {
            return 1;
        }
    }
    0
}

fn say(socket: &OwnedFd, result: &Result<(), String>) -> io::Result<()> {
    passing::send(socket, &serde_json::to_vec(result)?, &[])
}

fn map(pid: u32, own: [u32; 2], users: &Ranges, groups: &Ranges) -> Result<(), String> {
    ids::run("newuidmap", &ids::arguments(pid, own[0], users))?;
    ids::run("newgidmap", &ids::arguments(pid, own[1], groups))
}

fn start(fds: Vec<OwnedFd>) -> io::Result<Child> {
    let [task, stdin]: [OwnedFd; 2] = fds.try_into().map_err(|_| io::ErrorKind::InvalidData)?;
    let mut text = Vec::new();
    File::from(task).read_to_end(&mut text)?;
    let start: Start = serde_json::from_slice(&text)?;
    start.command(stdin).spawn()
}
