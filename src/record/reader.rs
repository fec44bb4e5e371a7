//! The recorder's thread: waits for fanotify and the backend, puts the two in order, and stops after
//! a last drain.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;
use nix::sys::stat::FileStat;

use super::Shared;
use super::gather::{By, Gathered, How, Owner, now};
use super::mounts::Mounts;
use super::source::Source;
use crate::model::{Phase, RootPath};
use crate::sys::fanotify::{FanotifyEvent, Group, Seen, seen};
use crate::sys::process;

/// What the thread works on; locked by whoever drains.
pub struct Reader {
    pub group: Option<Group>,
    pub source: Box<dyn Source>,
    pub gathered: Gathered,
    /// Mount points of watched overlays, as slim sees them.
    pub roots: Vec<PathBuf>,
    /// The last part of the recorded cgroup's path: the one thing about it that looks the same in
    /// every cgroup namespace.
    pub cgroup_name: String,
    pub phase: Phase,
    /// ns of `CLOCK_MONOTONIC`, when recording began.
    pub start: u64,
    pub overflows: u64,
    pub read_errors: u64,
    /// Events of the backend that could not be parsed.
    pub nonsense: u64,
    /// Processes that were in the cgroup before the backend looked.
    pub late: u64,
    /// Injected: runs of BPF programs left out, and the end of this thread.
    pub missed: u64,
    pub dies: bool,
    /// fanotify events read.
    pub events: u64,
    /// Opens through mounts that nobody has told of yet, and how many tables of mounts had been told.
    pub unnamed: Vec<Unnamed>,
    pub told: usize,
}

/// An opened file whose path is one through a mount made inside: what that mount shows is told when
/// the call ends, which may be after its event was read.
#[derive(Debug)]
pub struct Unnamed {
    name: Vec<u8>,
    mount: u32,
    /// Device and inode number.
    file: (u64, u64),
    how: How,
    by: By,
}

/// Runs until `stop` is written to.
pub fn run(shared: &Shared, stop: &EventFd) {
    let descriptors = shared.reader().descriptors();
    let Ok(descriptors) = descriptors else { return shared.reader().read_errors += 1 };
    loop {
        let mut fds = vec![PollFd::new(stop.as_fd(), PollFlags::POLLIN)];
        fds.extend(descriptors.iter().map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN)));
        // the timeout is a safety net: a record that was being written when the ring was read last
        let _ = poll(&mut fds, PollTimeout::from(200u16));
        let stopping = fds[0].any().unwrap_or(false);
        assert!(!shared.reader().dies, "a test wants the recorder's thread to die");
        shared.drain();
        if stopping {
            return;
        }
    }
}

impl Reader {
    fn descriptors(&self) -> io::Result<Vec<OwnedFd>> {
        let mut all = self.source.descriptors()?;
        if let Some(group) = &self.group {
            all.push(group.as_fd().try_clone_to_owned()?);
        }
        Ok(all)
    }

    /// Reads both queues to their end. Events are taken from fanotify first: whatever the backend
    /// said about the opener was then there before.
    pub fn drain(&mut self) {
        let mut errors = 0;
        loop {
            let events = match self.group.as_ref().map_or_else(|| Ok(Vec::new()), Group::read) {
                Ok(events) => events,
                Err(error) => {
                    tracing::debug!(%error, "an fanotify event could not be read");
                    self.read_errors += 1;
                    errors += 1;
                    if errors < 1000 {
                        continue; // that event is gone; the next one may be readable
                    }
                    break;
                }
            };
            self.drain_source();
            if events.is_empty() {
                break;
            }
            for event in &events {
                self.opened(event);
            }
        }
        self.name_late();
        self.gathered.queue_was_empty();
    }

    /// Names what can be named by now: again only if more mounts were told, and not for ever.
    fn name_late(&mut self) {
        const PATIENCE: u64 = 1_000_000_000; // ns
        if self.unnamed.is_empty() {
            return;
        }
        let told = self.gathered.mounts.values().map(Mounts::len).sum();
        let (news, now) = (self.told != told, now());
        self.told = told;
        for late in std::mem::take(&mut self.unnamed) {
            let path = news.then(|| self.through(late.mount, &late.name, late.file)).flatten();
            match path {
                Some(path) => self.gathered.used(path, late.how, late.by),
                None if late.by.time + PATIENCE < now => {
                    self.gathered.used(late.name, late.how, late.by);
                }
                None => self.unnamed.push(late),
            }
        }
    }

    /// Notes what is still unnamed under the path it had.
    pub fn give_up_naming(&mut self) {
        for late in std::mem::take(&mut self.unnamed) {
            self.gathered.used(late.name, late.how, late.by);
        }
    }

    fn drain_source(&mut self) {
        let gathered = &mut self.gathered;
        self.nonsense += self.source.drain(&mut |event| gathered.apply(event));
        for (namespace, pid) in std::mem::take(&mut gathered.look_at) {
            let time = now(); // what is mounted during the read may stand in the text or not
            if let Ok(text) = std::fs::read(format!("/proc/{pid}/mountinfo")) {
                gathered.mounts.entry(namespace).or_default().add(time, &text);
            }
        }
    }

    fn opened(&mut self, event: &FanotifyEvent) {
        self.events += 1;
        let mut what = seen(event);
        if what.overflow {
            self.overflows += 1;
            return;
        }
        let Some(fd) = event.fd() else { return };
        let stat = nix::sys::stat::fstat(fd).ok();
        // in descriptor mode events do not say that they are about a directory
        what.dir |= stat.is_some_and(|stat| is_dir(stat.st_mode));
        match self.owner(what) {
            Owner::NotCounted => {}
            Owner::Counted { by, silence } => {
                let path = self.note(fd, stat, what, by);
                let silence = silence && stat.is_some_and(|stat| may_silence(stat, what));
                let group = self.group.as_ref().filter(|_| silence);
                match group.map(|group| group.ignore(fd, what)) {
                    Some(Err(error)) => tracing::debug!(%error, "an open file was not silenced"),
                    Some(Ok(())) if what.exec => self.gathered.silent_execs.extend(path),
                    _ => {}
                }
            }
            Owner::Unknown if self.is_outside(what.pid) => {}
            Owner::Unknown => {
                self.gathered.unattributed += 1;
                tracing::debug!(pid = what.pid, "an open by a process that nothing names");
                self.note(fd, stat, what, By::nobody(self.phase));
            }
        }
    }

    /// A record that another processor is still writing hides those after it for a moment.
    fn owner(&mut self, what: Seen) -> Owner {
        for _ in 0..5 {
            match self.gathered.owner(what.pid, what.exec, self.phase) {
                Owner::Unknown if !self.is_outside(what.pid) => {
                    let named = self.source.identify(what.pid);
                    if !named.is_empty() {
                        named.into_iter().for_each(|event| self.gathered.apply(event));
                        continue;
                    }
                    std::thread::sleep(Duration::from_millis(1));
                    self.drain_source();
                }
                known => return known,
            }
        }
        self.gathered.owner(what.pid, what.exec, self.phase)
    }

    /// True for slim itself and for a living process that is not in the recorded cgroup. One that is
    /// dead, or has no id in slim's pid namespace, is not proven to be outside.
    fn is_outside(&self, pid: u32) -> bool {
        if pid == std::process::id() {
            return true;
        }
        process::cgroup_of(pid)
            .is_some_and(|path| !path.split('/').any(|name| name == self.cgroup_name))
    }

    /// Notes an open; the file's path.
    fn note(
        &mut self,
        fd: BorrowedFd<'_>,
        stat: Option<FileStat>,
        what: Seen,
        by: By,
    ) -> Option<Vec<u8>> {
        let (path, mount) = self.path_of(fd, stat)?;
        if what.exec && by.is_runtime() {
            self.gathered.executing(what.pid, &path);
        }
        let how = match (what.exec, what.dir) {
            (true, _) => How::Exec,
            (_, true) => How::List,
            _ => How::Open,
        };
        match (mount, stat) {
            (Some(mount), Some(stat)) => {
                let file = (stat.st_dev, stat.st_ino);
                self.unnamed.push(Unnamed { name: path.clone(), mount, file, how, by });
            }
            _ => self.gathered.used(path.clone(), how, by),
        }
        Some(path)
    }

    /// The overlay's own path of an opened file. Its name in /proc is as seen through the mount it
    /// was opened by, which may be another one than slim's: that name and the mount's id where nothing
    /// tells yet what the mount shows.
    fn path_of(
        &self,
        fd: BorrowedFd<'_>,
        stat: Option<FileStat>,
    ) -> Option<(Vec<u8>, Option<u32>)> {
        let link = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).ok()?;
        let name = link.into_os_string().into_vec();
        let name = name.strip_suffix(b" (deleted)").unwrap_or(&name).to_vec();
        let Some(file) = stat.map(|stat| (stat.st_dev, stat.st_ino)) else {
            return Some((name, None));
        };
        let mut stripped = None;
        for root in self.roots.iter().rev() {
            let below = strip(&name, root).or_else(|| strip(&name, &without_proc(root)?));
            let inside = below.clone().unwrap_or_else(|| name.clone());
            if is_at(root, &inside, file) {
                return Some((inside, None));
            }
            stripped = stripped.or(below);
        }
        // a mount made inside has an id of its own, under which its table says what it shows
        let name = stripped.unwrap_or(name);
        let mount = mount_id(fd);
        match mount.and_then(|mount| self.through(mount, &name, file)) {
            Some(own) => Some((own, None)),
            None => Some((name, mount)),
        }
    }

    /// The overlay's own path of `file`, whose name through the mount is `name`. The kernel gives ids of
    /// mounts again, so a table's word is checked.
    fn through(&self, mount: u32, name: &[u8], file: (u64, u64)) -> Option<Vec<u8>> {
        let name = RootPath::parse(name)?;
        let tables = self.gathered.mounts.values();
        let mut own = tables.flat_map(|table| table.shown(mount, &name));
        let is_it =
            |own: &RootPath| self.roots.iter().any(|root| is_at(root, own.as_bytes(), file));
        own.find(is_it).map(|own| own.as_bytes().to_vec())
    }
}

/// Whether `file` (device and inode number) is at a path of the overlay mounted at `root`.
fn is_at(root: &Path, path: &[u8], file: (u64, u64)) -> bool {
    let path = root.join(Path::new(std::ffi::OsStr::from_bytes(&path[1..])));
    std::fs::symlink_metadata(path).is_ok_and(|found| (found.dev(), found.ino()) == file)
}

/// Files with several names stay audible: with the overlay's `index=on` the second name would be
/// lost with the first. The links of a directory are no names of it.
fn may_silence(stat: FileStat, what: Seen) -> bool {
    what.dir || stat.st_nlink == 1
}

fn is_dir(mode: nix::libc::mode_t) -> bool {
    mode & nix::libc::S_IFMT == nix::libc::S_IFDIR
}

fn strip(name: &[u8], root: &Path) -> Option<Vec<u8>> {
    let root = root.as_os_str().as_bytes();
    let below = name.strip_prefix(root)?;
    match below.first() {
        None => Some(b"/".to_vec()),
        Some(b'/') => Some(below.to_vec()),
        Some(_) => None,
    }
}

/// `/proc/PID/root/x` is `/x` to that process.
pub fn without_proc(root: &Path) -> Option<PathBuf> {
    let text = root.to_str()?;
    let (pid, below) = text.strip_prefix("/proc/")?.split_once("/root")?;
    pid.parse::<u32>().ok()?;
    (!below.is_empty()).then(|| PathBuf::from(below))
}

fn mount_id(fd: BorrowedFd<'_>) -> Option<u32> {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd())).ok()?;
    info.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok())
}
