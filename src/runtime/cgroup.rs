//! The run's control groups: where they are mounted, leaves per piece of work, removal.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::RuntimeError;

use crate::model::chain;

/// The names of all run cgroups start with this.
pub(super) const PREFIX: &str = "slim-";

/// The cgroup path of a container that has none, see [`pretend`]: below the root libcontainer would
/// ask for more files.
pub(super) const PRETENDED: &str = "/";

/// The cgroup hierarchies of this host, as mounted here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Hierarchies {
    /// The unified one (`cgroup2`).
    pub unified: Option<PathBuf>,
    /// Those of version 1, named ones too.
    pub legacy: Vec<PathBuf>,
}

impl Hierarchies {
    /// Reads where they are. Where version 2 is nowhere (a container on a hybrid host), it is
    /// mounted out of sight, in a mount namespace of slim's own.
    pub fn read() -> io::Result<Self> {
        let found = Self::seen()?;
        if found.unified.is_some() || mount_unified().is_err() {
            return Ok(found);
        }
        Self::seen()
    }

    /// Reads where they are, as things stand.
    pub fn seen() -> io::Result<Self> {
        Ok(Self::parse(&fs::read_to_string("/proc/thread-self/mountinfo")?))
    }

    /// Reads mountinfo (proc_pid_mountinfo(5)): the mount point is field 5, the type the first
    /// field after ` - `.
    fn parse(mountinfo: &str) -> Self {
        let mut found = Self::default();
        for line in mountinfo.lines() {
            let Some((head, tail)) = line.split_once(" - ") else { continue };
            let Some(point) = head.split(' ').nth(4) else { continue };
            match tail.split(' ').next() {
                Some("cgroup2") if found.unified.is_none() => found.unified = Some(point.into()),
                Some("cgroup") => found.legacy.push(point.into()),
                _ => {}
            }
        }
        found
    }

    /// True if version 2 alone manages resources.
    pub fn is_pure(&self) -> bool {
        self.legacy.is_empty()
    }

    /// The directories that a cgroup path of the runtime configuration stands for in the
    /// hierarchies of version 1.
    pub fn legacy_dirs(&self, path: &str) -> Vec<PathBuf> {
        self.legacy.iter().map(|root| root.join(path.trim_start_matches('/'))).collect()
    }

    fn roots(&self) -> impl Iterator<Item = &PathBuf> {
        self.unified.iter().chain(&self.legacy)
    }

    /// Removes the run cgroup `name` from every hierarchy; waits up to `patience` for its last
    /// processes to vanish. Returns what stayed.
    pub fn remove_run(&self, name: &str, patience: Duration) -> Vec<PathBuf> {
        let deadline = Instant::now() + patience;
        let tops: Vec<PathBuf> = self.roots().map(|root| root.join(name)).collect();
        loop {
            let left: Vec<PathBuf> =
                tops.iter().filter(|top| remove_tree(top).is_err()).cloned().collect();
            if left.is_empty() || Instant::now() >= deadline {
                return left;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// The names of run cgroups without a process, in any hierarchy.
    pub fn empty_runs(&self) -> Vec<String> {
        let mut names: Vec<String> = self
            .roots()
            .filter_map(|root| fs::read_dir(root).ok())
            .flat_map(|dir| dir.flatten())
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| name.starts_with(PREFIX))
            .collect();
        names.sort();
        names.dedup();
        names.retain(|name| self.roots().all(|root| is_empty(&root.join(name))));
        names
    }
}

/// True if no process is in the tree at `dir`, or there is no such tree.
fn is_empty(dir: &Path) -> bool {
    let own = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    own.trim().is_empty() && children(dir).iter().all(|child| is_empty(child))
}

fn children(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

/// Removes a cgroup and those below it, deepest first. Missing ones are no error.
pub(super) fn remove_tree(dir: &Path) -> io::Result<()> {
    for child in children(dir) {
        remove_tree(&child)?;
    }
    match fs::remove_dir(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn mount_unified() -> io::Result<()> {
    let target = Path::new("/run/slim/cgroup");
    fs::create_dir_all(target)?;
    crate::sys::mount::leave_host_namespace().map_err(|error| error.source)?;
    crate::sys::mount::cgroup2(target).map_err(|error| error.source)
}

/// Covers the host's hierarchies in a mount namespace of this process's own, which may not write
/// there, with plain files for what libcontainer insists on writing: unlike runc and crun it cannot be
/// told to leave cgroups alone.
pub(super) fn pretend() -> io::Result<()> {
    const ROOT: &str = "/sys/fs/cgroup";
    if !Path::new(ROOT).exists() {
        return Ok(());
    }
    let seen = Hierarchies::seen()?;
    let told =
        |error: crate::sys::mount::MountError| io::Error::new(error.source.kind(), chain(&error));
    // Version 2 is known by its file system, so it stays, but for the one file that is written. A tree
    // that only looked like version 1 would lack what says so in mountinfo.
    if seen.is_pure() && seen.unified.as_deref() == Some(Path::new(ROOT)) {
        let nothing = fs::File::open("/dev/null")?;
        let procs = Path::new(ROOT).join("cgroup.procs");
        return crate::sys::mount::bind_fd(nothing.as_fd(), &procs).map_err(told);
    }
    crate::sys::mount::tmpfs(Path::new(ROOT)).map_err(told)?;
    for point in seen.legacy.iter().filter(|point| point.starts_with(ROOT)) {
        fs::create_dir_all(point)?;
        for file in ["cgroup.procs", "devices.allow", "devices.deny"] {
            fs::write(point.join(file), "")?;
        }
    }
    Ok(())
}

fn no_cgroup2(why: String) -> RuntimeError {
    RuntimeError::Host {
        what: "control groups".into(),
        why,
        way_out: "mount cgroup2 (mount -t cgroup2 none /sys/fs/cgroup/unified) and run slim as \
                  root; inside a container that takes --privileged"
            .into(),
    }
}

/// Where the run's cgroup of version 2 belongs.
pub(super) fn run_dir(hierarchies: &Hierarchies, name: &str) -> Result<PathBuf, RuntimeError> {
    let root = hierarchies.unified.as_ref();
    Ok(root.ok_or_else(|| no_cgroup2("cgroup2 is not mounted".into()))?.join(name))
}

/// Makes the run's cgroup and locks it for as long as the descriptor lives: also a `slim clean` that
/// does not see our processes (in another pid namespace) then knows that the run lives. One that came
/// between the two steps took the empty folder for a dead run's, so it is made again.
///
/// Not to be called before the helper whose name marks the run as live is there.
pub(super) fn make_run(dir: &Path) -> Result<fs::File, RuntimeError> {
    for _ in 0..100 {
        match fs::create_dir(dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(no_cgroup2(format!("mkdir({dir:?}): {error}")));
            }
            _ => {}
        }
        let Ok(held) = fs::File::open(dir) else { continue };
        rustix::fs::flock(&held, rustix::fs::FlockOperation::LockShared)
            .map_err(|errno| no_cgroup2(format!("flock({dir:?}): {errno}")))?;
        if dir.is_dir() {
            return Ok(held);
        }
    }
    Err(no_cgroup2(format!("{dir:?} vanishes whenever it is made")))
}

/// A run cgroup is in use by a live slim.
pub(super) struct Held;

/// The lock under which a dead run's cgroup may be removed; `None` where the cgroup is gone already.
pub(super) fn claim(root: &Path, name: &str) -> Result<Option<fs::File>, Held> {
    let dir = root.join(name.strip_suffix("-script").unwrap_or(name));
    let Ok(dir) = fs::File::open(dir) else { return Ok(None) };
    let lock = rustix::fs::FlockOperation::NonBlockingLockExclusive;
    rustix::fs::flock(&dir, lock).map_err(|_| Held)?;
    Ok(Some(dir))
}

/// Kills every process in a cgroup of version 2 (`cgroup.kill` is Linux 5.14; before, one by one).
pub(super) fn kill_all(dir: &Path) {
    if fs::write(dir.join("cgroup.kill"), "1").is_ok() {
        return;
    }
    let procs = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    for pid in procs.lines().filter_map(|line| line.parse().ok()) {
        if let Some(pid) = rustix::process::Pid::from_raw(pid) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
    children(dir).iter().for_each(|child| kill_all(child));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_are_told_apart_by_type() {
        let text = "24 1 0:20 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
                    25 24 0:21 / /sys/fs/cgroup/memory rw shared:3 - cgroup cgroup rw,memory\n\
                    26 24 0:22 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let found = Hierarchies::parse(text);
        assert_eq!(found.unified, Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(
            found.legacy_dirs("/slim-1/main"),
            [Path::new("/sys/fs/cgroup/memory/slim-1/main")]
        );
        assert!(!found.is_pure());
    }
}
