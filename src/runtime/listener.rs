//! The socket where runc and crun hand over seccomp listeners (`linux.seccomp.listenerPath` of the
//! runtime specification: a `ContainerProcessState` with the descriptor beside it), and slim's own hooks
//! theirs.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::hooks::wrapper::MESSAGE;
use super::{Observer, Work};
use crate::sys::{passing, process};

/// The listening end, in a thread of its own until dropped.
pub(super) struct Doorman {
    path: PathBuf,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Doorman {
    /// Listens at `path`. Whose a listener is, the cgroup of the runtime that sends it tells: a leaf
    /// below `cgroup`.
    pub fn start(
        path: PathBuf,
        cgroup: Option<&Path>,
        observer: Arc<dyn Observer>,
    ) -> io::Result<Self> {
        let _ = fs::remove_file(&path);
        let socket = UnixListener::bind(&path)?;
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, cgroup) = (Arc::clone(&stop), cgroup.map(Path::to_owned));
        let thread = std::thread::Builder::new().name("seccomp".into()).spawn(move || {
            // crun connects long before it has a listener to hand over; a hook in between has one at once
            std::thread::scope(|scope| {
                while readable(&socket, &stopped) {
                    let Ok((peer, _)) = socket.accept() else { continue };
                    let (stopped, cgroup, observer) = (&stopped, cgroup.as_deref(), &*observer);
                    scope.spawn(move || greet(&peer, stopped, cgroup, observer));
                }
            });
        })?;
        Ok(Self { path, stop, thread: Some(thread) })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Doorman {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let _ = fs::remove_file(&self.path);
    }
}

/// Waits until there is something to read; false if it is to stop first.
fn readable(socket: &impl AsFd, stopped: &AtomicBool) -> bool {
    while !stopped.load(Ordering::SeqCst) {
        let mut fds = [PollFd::new(socket, PollFlags::IN)];
        let patience = Timespec::try_from(Duration::from_millis(100)).ok();
        if poll(&mut fds, patience.as_ref()).is_ok_and(|count| count > 0) {
            return true;
        }
    }
    false
}

fn greet(peer: &UnixStream, stopped: &AtomicBool, cgroup: Option<&Path>, observer: &dyn Observer) {
    if !readable(peer, stopped) {
        return;
    }
    if let Err(error) = take(peer, cgroup, observer) {
        observer.lost_listener();
        tracing::warn!(%error, "a seccomp listener could not be taken over");
    }
}

fn take(peer: &UnixStream, cgroup: Option<&Path>, observer: &dyn Observer) -> io::Result<()> {
    let credentials = rustix::net::sockopt::socket_peercred(peer)?;
    // a runtime that is gone already leaves it to the recorder to find out from the first call
    let leaf = cgroup.and_then(|run| leaf_of(credentials.pid.as_raw_nonzero().get(), run));
    let (text, fds) = passing::receive(peer)?.unwrap_or_default();
    let listener: OwnedFd = fds.into_iter().next().ok_or(io::ErrorKind::InvalidData)?;
    let work = (text == MESSAGE).then_some(Work::Hook);
    observer.listener(work, leaf.as_deref(), listener).map_err(io::Error::other)
}

/// The leaf below `cgroup` in which a process is, by /proc.
fn leaf_of(pid: i32, cgroup: &Path) -> Option<PathBuf> {
    let path = process::cgroup_of(u32::try_from(pid).ok()?)?;
    let run = cgroup.file_name()?.to_str()?;
    let mut names = path.split('/').skip_while(|name| *name != run);
    names.next()?;
    Some(cgroup.join(names.next()?))
}
