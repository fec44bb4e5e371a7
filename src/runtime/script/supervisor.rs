//! The process between slim and the script: adopts orphans, kills on command or when slim is gone.
//!
//! Own memory only: it prints nothing and answers with one line on the socket that is its stdin.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::sys::child::bind_to_parent;

/// First argument of the re-execution. Then, each possibly empty: cgroup, mount namespace, network
/// namespace, working directory; then the script.
pub const HIDDEN: &str = "__slim-script";
/// The one command on the socket.
pub const STOP: u8 = b't';

/// Between SIGTERM and SIGKILL: time for a script's `trap`.
const GRACE: Duration = Duration::from_secs(2);
/// Orphans that ended are reaped at least this often, in nanoseconds.
const REAP_EVERY: Timespec = Timespec { tv_sec: 0, tv_nsec: 500_000_000 };
/// Processes in uninterruptible sleep are not waited for longer than this.
const KILL_PATIENCE: Duration = Duration::from_secs(5);

/// For `run_hidden`: `Some(exit code)` if `args` was the supervisor's command line.
pub fn hidden_supervisor(args: &[OsString]) -> Option<i32> {
    let (first, rest) = args.split_first()?;
    if first != HIDDEN {
        return None;
    }
    let [cgroup, mount_ns, netns, cwd, argv @ ..] = rest else { return Some(2) };
    let Ok(socket) = io::stdin().as_fd().try_clone_to_owned() else { return Some(2) };
    let mut socket = UnixStream::from(socket);
    let cgroup = (!cgroup.is_empty()).then(|| Path::new(cgroup));
    let line = match start(cgroup, [mount_ns, netns], Path::new(cwd), argv) {
        Ok(child) => {
            let end = watch(&mut socket, &child, cgroup);
            kill_all(cgroup);
            match end {
                Some(WaitStatus::Exited(_, code)) => format!("exited {code}\n"),
                Some(WaitStatus::Signaled(_, signal, _)) => format!("killed {}\n", signal as i32),
                _ => format!("killed {}\n", libc::SIGKILL),
            }
        }
        Err(error) => format!("failed {}\n", error.raw_os_error().unwrap_or(libc::EINVAL)),
    };
    if let Some(cgroup) = cgroup {
        remove_cgroup(cgroup);
    }
    let _ = socket.write_all(line.as_bytes());
    Some(0)
}

fn start(
    cgroup: Option<&Path>,
    [mount_ns, netns]: [&OsString; 2],
    cwd: &Path,
    argv: &[OsString],
) -> io::Result<Child> {
    let (program, args) = argv.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    nix::sys::prctl::set_child_subreaper(true)?;
    // Without cgroup v2 the adopted orphans are found by /proc alone.
    let procs = cgroup.and_then(|dir| open_cgroup(dir).ok());
    let namespaces = [(netns, CloneFlags::CLONE_NEWNET), (mount_ns, CloneFlags::CLONE_NEWNS)];
    let files = namespaces.map(|(path, kind)| {
        (!path.is_empty()).then(|| File::open(path).map(|file| (file, kind))).transpose()
    });
    for file in files {
        if let Some((file, kind)) = file? {
            setns(file, kind)?;
        }
    }
    std::env::set_current_dir(cwd)?; // setns to a mount namespace went to its root
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null()).process_group(0);
    bind_to_parent(&mut command, procs);
    command.spawn()
}

fn open_cgroup(dir: &Path) -> io::Result<File> {
    fs::create_dir_all(dir)?;
    OpenOptions::new().write(true).open(dir.join("cgroup.procs"))
}

/// Waits until the script ends, or slim wants an end or is gone; `None` if it was not the script's
/// own.
fn watch(socket: &mut UnixStream, child: &Child, cgroup: Option<&Path>) -> Option<WaitStatus> {
    let script = Pid::from_raw(child.id() as i32);
    let pidfd = rustix::process::Pid::from_raw(script.as_raw()).and_then(|pid| {
        rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).ok()
    });
    let mut until: Option<Instant> = None;
    loop {
        let ready = wait_event(socket, pidfd.as_ref());
        if let Some(end) = reap(script) {
            return Some(end);
        }
        if ready {
            match socket.read(&mut [0]) {
                Ok(1) => {
                    until = Some(Instant::now() + GRACE);
                    let _ = killpg(script, Signal::SIGTERM);
                }
                // Slim is gone: at once.
                _ => {
                    kill_all(cgroup);
                    return None;
                }
            }
        }
        if until.is_some_and(|until| Instant::now() >= until) {
            return None;
        }
    }
}

/// Sleeps until something happens; true if the socket has something to read, or its end.
fn wait_event(socket: &UnixStream, pidfd: Option<&OwnedFd>) -> bool {
    let mut fds = vec![PollFd::new(socket, PollFlags::IN)];
    fds.extend(pidfd.map(|fd| PollFd::new(fd, PollFlags::IN)));
    poll(&mut fds, Some(&REAP_EVERY)).is_ok() && !fds[0].revents().is_empty()
}

/// Reaps everything that ended; the script's status if it was among it.
fn reap(script: Pid) -> Option<WaitStatus> {
    while let Ok(status) = waitpid(None::<Pid>, Some(WaitPidFlag::WNOHANG)) {
        match status {
            WaitStatus::StillAlive => return None,
            status if status.pid() == Some(script) => return Some(status),
            _ => (),
        }
    }
    None
}

/// Kills every descendant, again until none is left: one may fork while it is being killed, but its
/// children come to this process, a subreaper, and die in the next round.
fn kill_all(cgroup: Option<&Path>) {
    let deadline = Instant::now() + KILL_PATIENCE;
    while Instant::now() < deadline {
        if let Some(cgroup) = cgroup {
            kill_cgroup(cgroup);
        }
        for pid in descendants(std::process::id()) {
            let _ = kill(Pid::from_raw(pid as i32), Signal::SIGKILL);
        }
        loop {
            match waitpid(None::<Pid>, Some(WaitPidFlag::WNOHANG)) {
                Err(Errno::ECHILD) => return,
                Ok(WaitStatus::StillAlive) | Err(_) => break,
                Ok(_) => (),
            }
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// `cgroup.kill` (cgroups(7), Linux 5.14), or each member by number on older kernels.
pub fn kill_cgroup(dir: &Path) {
    if fs::write(dir.join("cgroup.kill"), "1").is_ok() {
        return;
    }
    let members = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    for pid in members.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 0) {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
}

/// Removes the cgroup and those that the script may have made below it, waiting a moment for the dead
/// to leave.
pub fn remove_cgroup(dir: &Path) {
    for _ in 0..100 {
        let below = fs::read_dir(dir).into_iter().flatten().flatten();
        for child in below.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
            remove_cgroup(&child.path());
        }
        match fs::remove_dir(dir) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                std::thread::sleep(Duration::from_millis(5));
            }
            _ => return,
        }
    }
}

/// Every process below `root`, from the parents in proc_pid_stat(5).
fn descendants(root: u32) -> BTreeSet<u32> {
    let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let pid = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok());
        let Some(pid) = pid else { continue };
        let stat = fs::read(entry.path().join("stat")).unwrap_or_default();
        if let Some(parent) = parent_in(&stat) {
            children.entry(parent).or_default().push(pid);
        }
    }
    let (mut found, mut todo) = (BTreeSet::new(), vec![root]);
    while let Some(pid) = todo.pop() {
        let next = children.remove(&pid).unwrap_or_default();
        found.extend(&next);
        todo.extend(next);
    }
    found
}

/// The fourth field; the second is a name in parentheses that may hold anything.
fn parent_in(stat: &[u8]) -> Option<u32> {
    let end = stat.iter().rposition(|byte| *byte == b')')?;
    let rest = std::str::from_utf8(&stat[end + 1..]).ok()?;
    rest.split_ascii_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parent_is_found_behind_any_name() {
        assert_eq!(parent_in(b"12 (a) b) (c) S 7 12 12 0"), Some(7));
        assert_eq!(parent_in(b"12 (x"), None);
    }

    #[test]
    fn descendants_include_grandchildren() {
        let mut child = Command::new("sh")
            .args(["-c", "sleep 30 & echo; wait"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("a shell");
        let out = child.stdout.as_mut().expect("its output");
        out.read_exact(&mut [0]).expect("the grandchild is there");
        let found = descendants(std::process::id());
        let below = descendants(child.id());
        for pid in &below {
            kill(Pid::from_raw(*pid as i32), Signal::SIGKILL).expect("killed");
        }
        child.wait().expect("reaped");
        assert!(found.contains(&child.id()) && below.len() == 1 && found.is_superset(&below));
    }
}
