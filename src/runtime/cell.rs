//! slim's side of the cell: the helper process, requests to it, and what it says has ended.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{Pid, WaitOptions};

use super::cgroup::{self, Hierarchies};
use super::helper::{Ask, Note, Request};
use super::shim::Task;
use super::{Ended, RuntimeError};
use crate::sys::{passing, process, userns};

/// The place where a run lives: own mount and pid namespaces that die with slim, and a cgroup.
///
/// Enter it from a thread that lives as long as slim: the helper dies with the thread that made it.
pub struct Cell {
    inner: Arc<CellInner>,
    /// Tells the `slim clean` of another pid namespace that the run lives.
    _held: Option<std::fs::File>,
}

/// What pods share of a cell.
pub(super) struct CellInner {
    /// `slim-` and some hex digits; the name of the cgroups too.
    pub name: String,
    pub hierarchies: Hierarchies,
    /// `None` without the right to make one: the pid namespace ends what it would have.
    cgroup: Option<PathBuf>,
    helper: Pid,
    socket: OwnedFd,
    state: Mutex<State>,
    changed: Condvar,
    counter: AtomicU64,
}

#[derive(Default)]
struct State {
    replies: HashMap<u64, Result<i32, String>>,
    ended: HashMap<i32, (Instant, Ended)>,
    gone: bool,
}

impl Cell {
    /// Starts the pid-1 helper of a new pid and mount namespace and makes the run's cgroup
    /// (`slim-<id>`, cgroup v2), except in a user namespace, whose root has no cgroups.
    pub fn enter() -> Result<Self, RuntimeError> {
        let rootless = userns::inside();
        let hierarchies = if rootless { Hierarchies::seen() } else { Hierarchies::read() }
            .map_err(|source| RuntimeError::Io { what: "/proc/self/mountinfo".into(), source })?;
        let name = format!("{}{}", cgroup::PREFIX, random_hex());
        let cgroup = if rootless { None } else { Some(cgroup::run_dir(&hierarchies, &name)?) };
        let started = start_helper(&name);
        let (helper, socket) = started.map_err(|error| cannot_start(&error.to_string()))?;
        let inner = Arc::new(CellInner {
            name,
            hierarchies,
            cgroup,
            helper,
            socket,
            state: Mutex::default(),
            changed: Condvar::new(),
            counter: AtomicU64::new(1),
        });
        let reader = Arc::downgrade(&inner);
        let socket = inner.socket.try_clone().map_err(|error| cannot_start(&error.to_string()))?;
        std::thread::Builder::new()
            .name("cell".into())
            .spawn(move || {
                while let Ok(Some((bytes, _))) = passing::receive(&socket) {
                    let Some(inner) = reader.upgrade() else { return };
                    if let Ok(note) = serde_json::from_slice(&bytes) {
                        inner.take(note);
                    }
                }
                if let Some(inner) = reader.upgrade() {
                    inner.lock().gone = true;
                    inner.changed.notify_all();
                }
            })
            .map_err(|error| cannot_start(&error.to_string()))?;
        // The helper's first word has the id 0: namespaces and mounts are ready, or why not.
        inner.reply(0).map_err(|why| cannot_start(&why))?;
        let held = inner.cgroup.as_deref().map(cgroup::make_run).transpose()?;
        Ok(Self { inner, _held: held })
    }

    /// The run's cgroup v2 directory; leaves are made below it. `None` in a user namespace.
    pub fn cgroup(&self) -> Option<&Path> {
        self.inner.cgroup.as_deref()
    }

    pub(super) fn inner(&self) -> Arc<CellInner> {
        Arc::clone(&self.inner)
    }
}

fn cannot_start(why: &str) -> RuntimeError {
    RuntimeError::Host {
        what: "namespaces".into(),
        why: why.into(),
        way_out: if userns::inside() {
            "in a container or under AppArmor users may not have what they need (procfs, mounts); \
             run slim as root"
        } else {
            "run slim as root; inside a container that takes --privileged"
        }
        .into(),
    }
}

/// Eight hex digits that no other run has.
pub(super) fn random_hex() -> String {
    let mut bytes = [0u8; 4];
    if rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).is_err() {
        bytes = std::process::id().to_ne_bytes();
    }
    hex::encode(bytes)
}

/// Removes the cgroups of runs that have no process in any hierarchy and no live slim.
pub(super) fn clean_cgroups() -> Result<Vec<String>, RuntimeError> {
    if userns::inside() {
        return Ok(Vec::new());
    }
    let hierarchies = Hierarchies::read()
        .map_err(|source| RuntimeError::Io { what: "/proc/self/mountinfo".into(), source })?;
    let mut removed = hierarchies.empty_runs();
    removed.retain(|name| {
        let claim = hierarchies.unified.as_ref().map(|root| cgroup::claim(root, name));
        let Ok(_claimed) = claim.unwrap_or(Ok(None)) else { return false };
        !is_live(name) && hierarchies.remove_run(name, Duration::ZERO).is_empty()
    });
    Ok(removed)
}

/// A live run's cgroup may be empty for a while; its helper's command line names it.
fn is_live(name: &str) -> bool {
    let run = name.strip_suffix("-script").unwrap_or(name);
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .filter(|entry| {
            entry.file_name().to_string_lossy().starts_with(|c: char| c.is_ascii_digit())
        })
        .filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok())
        .any(|line| line.split(|byte| *byte == 0).next() == Some(run.as_bytes()))
}

fn start_helper(name: &str) -> io::Result<(Pid, OwnedFd)> {
    let flags = SocketFlags::CLOEXEC;
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    let number = std::os::fd::AsRawFd::as_raw_fd(&theirs).to_string();
    let args = [name, super::HIDDEN_CELL, &number];
    let program = super::program_override().unwrap_or(Path::new("/proc/self/exe"));
    let helper = process::spawn_init(program, &args, theirs.as_fd())?;
    Ok((helper, ours))
}

impl CellInner {
    pub fn cgroup(&self) -> Option<&Path> {
        self.cgroup.as_deref()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn take(&self, note: Note) {
        let mut state = self.lock();
        match note {
            Note::Done { id, result } => {
                // A pid that was just given out is not the one that ended long ago.
                if let Ok(pid) = result {
                    state.ended.remove(&pid);
                }
                state.replies.insert(id, result);
            }
            Note::Ended { pid, ended } => {
                state.ended.insert(pid, (Instant::now(), ended));
            }
        }
        drop(state);
        self.changed.notify_all();
    }

    fn reply(&self, id: u64) -> Result<i32, String> {
        let mut state = self.lock();
        loop {
            if let Some(result) = state.replies.remove(&id) {
                return result;
            }
            if state.gone {
                return Err("the cell's helper process is gone".into());
            }
            state = self.changed.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
    }

    fn ask(&self, ask: Ask, fds: &[BorrowedFd<'_>]) -> Result<i32, String> {
        let id = self.counter.fetch_add(1, Ordering::Relaxed);
        let bytes = serde_json::to_vec(&Request { id, ask }).map_err(|error| error.to_string())?;
        passing::send(&self.socket, &bytes, fds).map_err(|error| error.to_string())?;
        self.reply(id)
    }

    /// Mounts an overlay inside the cell.
    pub fn overlay(
        &self,
        lowers: &[PathBuf],
        upper: &Path,
        work: &Path,
        target: &Path,
    ) -> Result<(), RuntimeError> {
        let ask = Ask::Overlay {
            lowers: lowers.to_vec(),
            upper: upper.into(),
            work: work.into(),
            target: target.into(),
        };
        self.ask(ask, &[]).map(drop).map_err(|why| RuntimeError::Host {
            what: format!("overlay of {} layers", lowers.len()),
            why,
            way_out: if userns::inside() {
                "put the store on ext4, xfs, btrfs or tmpfs with --store; without root that takes \
                 Linux 5.11"
            } else {
                "put the store on ext4, xfs, btrfs or tmpfs with --store"
            }
            .into(),
        })
    }

    /// Binds what `source` is open on at `target`, inside the cell.
    pub fn bind(&self, source: BorrowedFd<'_>, target: &Path) -> Result<(), RuntimeError> {
        let ask = Ask::Bind { target: target.into() };
        self.ask(ask, &[source]).map(drop).map_err(other)
    }

    /// Detaches a mount of the cell.
    pub fn detach(&self, target: &Path) -> Result<(), RuntimeError> {
        self.ask(Ask::Detach { target: target.into() }, &[]).map(drop).map_err(other)
    }

    /// Starts a shim with `task`; returns its pid in the cell.
    pub fn spawn(
        &self,
        task: &Task,
        stdio: [BorrowedFd<'_>; 3],
        report: BorrowedFd<'_>,
    ) -> Result<i32, RuntimeError> {
        let io = |source: io::Error| RuntimeError::Io { what: "task of a shim".into(), source };
        let text = serde_json::to_vec(task).map_err(|error| io(error.into()))?;
        let file = in_memory(&text).map_err(io)?;
        let [stdin, stdout, stderr] = stdio;
        self.ask(Ask::Spawn, &[file.as_fd(), stdin, stdout, stderr, report]).map_err(other)
    }

    /// Sends a signal to a process of the cell; one that is gone is no error.
    pub fn kill(&self, pid: i32, signal: i32) -> Result<(), RuntimeError> {
        self.ask(Ask::Kill { pid, signal }, &[]).map(drop).map_err(other)
    }

    /// How `pid` ended, if it did after `since` (pids come again).
    pub fn ended(&self, pid: i32, since: Instant) -> Option<Ended> {
        let state = self.lock();
        match state.ended.get(&pid) {
            Some((at, ended)) if *at >= since => Some(*ended),
            _ if state.gone => Some(Ended::Killed(9)),
            _ => None,
        }
    }

    /// Waits for the end of `pid`, or until `deadline`, or until `give_up` says so (asked every
    /// 50 ms).
    pub fn wait(
        &self,
        pid: i32,
        since: Instant,
        deadline: Option<Instant>,
        give_up: &dyn Fn() -> bool,
    ) -> Option<Ended> {
        loop {
            if let Some(ended) = self.ended(pid, since) {
                return Some(ended);
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) || give_up() {
                return None;
            }
            let state = self.lock();
            if state.ended.get(&pid).is_none_or(|(at, _)| *at < since) {
                drop(self.changed.wait_timeout(state, Duration::from_millis(50)));
            }
        }
    }

    /// A path of the cell's mount namespace as this process reaches it.
    pub fn seen(&self, path: &Path) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.helper.as_raw_nonzero()));
        root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// A new leaf cgroup named after `work` (`main-1`, `exec-7`), if there are cgroups, and its name.
    pub fn make_leaf(&self, work: &str) -> Result<(Option<PathBuf>, String), RuntimeError> {
        let name = format!("{work}-{}", self.counter.fetch_add(1, Ordering::Relaxed));
        let Some(cgroup) = &self.cgroup else { return Ok((None, name)) };
        let path = cgroup.join(&name);
        let what = format!("mkdir({path:?})");
        std::fs::create_dir(&path).map_err(|source| RuntimeError::Io { what, source })?;
        Ok((Some(path), name))
    }
}

fn other(why: String) -> RuntimeError {
    RuntimeError::Io { what: "the cell's helper process".into(), source: io::Error::other(why) }
}

/// An anonymous file with this content, to be read from its start.
pub(super) fn in_memory(content: &[u8]) -> io::Result<OwnedFd> {
    let fd = rustix::fs::memfd_create("slim-task", rustix::fs::MemfdFlags::CLOEXEC)?;
    let mut file = std::fs::File::from(fd);
    io::Write::write_all(&mut file, content)?;
    io::Seek::rewind(&mut file)?;
    Ok(file.into())
}

impl Drop for CellInner {
    fn drop(&mut self) {
        // The end of pid 1 is the end of every process and mount of the cell.
        let _ = rustix::process::kill_process(self.helper, rustix::process::Signal::KILL);
        let _ = rustix::process::waitpid(Some(self.helper), WaitOptions::empty());
        let left = self.hierarchies.remove_run(&self.name, Duration::from_secs(2));
        if !left.is_empty() {
            tracing::debug!(?left, "cgroups stayed behind; `slim clean` removes them");
        }
    }
}
