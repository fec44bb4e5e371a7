//! fanotify(7) groups in descriptor mode: open events of whole file systems, and ignore marks.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;

use fanotify::low_level::{fanotify_init, fanotify_mark};
use nix::errno::Errno;
use nix::sys::fanotify::{EventFFlags, Fanotify, InitFlags, MarkFlags, MaskFlags};

pub use nix::sys::fanotify::FanotifyEvent;

/// A notification group without a bound on its queue or its marks.
pub struct Group {
    group: Fanotify,
}

/// What an event says beside its descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    pub open: bool,
    pub exec: bool,
    pub dir: bool,
    pub overflow: bool,
    /// In the pid namespace of the process that made the group; 0 if it has no id there.
    pub pid: u32,
}

impl Group {
    /// `fanotify_init(2)`: `FAN_CLASS_NOTIF`, unlimited queue and marks. Needs `CAP_SYS_ADMIN`.
    ///
    /// Descriptors of events are non-blocking, or opening a FIFO's would wait for its writer.
    pub fn new() -> io::Result<Self> {
        let flags = InitFlags::FAN_CLASS_NOTIF
            | InitFlags::FAN_UNLIMITED_QUEUE
            | InitFlags::FAN_UNLIMITED_MARKS
            | InitFlags::FAN_CLOEXEC
            | InitFlags::FAN_NONBLOCK;
        Self::with(flags)
    }

    /// As [`Self::new`], but with the kernel's default bound on the queue (16,384 events).
    pub fn new_bounded() -> io::Result<Self> {
        Self::with(InitFlags::FAN_CLASS_NOTIF | InitFlags::FAN_CLOEXEC | InitFlags::FAN_NONBLOCK)
    }

    fn with(flags: InitFlags) -> io::Result<Self> {
        let files = EventFFlags::O_RDONLY
            | EventFFlags::O_LARGEFILE
            | EventFFlags::O_CLOEXEC
            | EventFFlags::O_NONBLOCK
            | EventFFlags::O_NOATIME;
        let raw = fanotify_init(flags.bits(), files.bits())?;
        // SAFETY: `fanotify_init` has just made this descriptor for us, and nobody else holds it.
        let owned = unsafe { OwnedFd::from_raw_fd(raw) };
        // SAFETY: the descriptor is a fanotify group's, and it is given away with its ownership.
        Ok(Self { group: unsafe { Fanotify::from_owned_fd(owned) } })
    }

    /// Marks the whole file system that holds `path` for opens, execs and opened directories.
    ///
    /// `FAN_MARK_FILESYSTEM`: Linux 4.20; `FAN_OPEN_EXEC`: 5.0. The mark covers every mount of the
    /// file system, also in other mount namespaces.
    pub fn mark_filesystem(&self, path: &Path) -> io::Result<()> {
        let mask = MaskFlags::FAN_OPEN | MaskFlags::FAN_OPEN_EXEC | MaskFlags::FAN_ONDIR;
        let flags = MarkFlags::FAN_MARK_ADD | MarkFlags::FAN_MARK_FILESYSTEM;
        let group = self.group.as_fd().as_raw_fd();
        fanotify_mark(group, flags.bits(), mask.bits(), libc::AT_FDCWD, path)
    }

    /// Silences what `seen` says for the file behind `fd`, for good or until the inode is evicted.
    ///
    /// `FAN_MARK_IGNORE_SURV | FAN_MARK_EVICTABLE`: Linux 6.0; before that the legacy ignored mask.
    /// Only what was seen is ignored, so that a plain open does not hide a later exec.
    pub fn ignore(&self, fd: BorrowedFd<'_>, seen: Seen) -> io::Result<()> {
        match self.ignore_evictable(fd, seen) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                let flags = MarkFlags::FAN_MARK_ADD
                    | MarkFlags::FAN_MARK_IGNORED_MASK
                    | MarkFlags::FAN_MARK_IGNORED_SURV_MODIFY;
                let mask = ignored(seen) - MaskFlags::FAN_ONDIR;
                Ok(self.group.mark(flags, mask, fd, None::<&Path>)?)
            }
            other => other,
        }
    }

    /// As [`Self::ignore`], by a mark that does not keep the inode in memory, or not at all.
    pub fn ignore_evictable(&self, fd: BorrowedFd<'_>, seen: Seen) -> io::Result<()> {
        let flags = MarkFlags::FAN_MARK_ADD
            | MarkFlags::FAN_MARK_IGNORE_SURV
            | MarkFlags::FAN_MARK_EVICTABLE;
        Ok(self.group.mark(flags, ignored(seen), fd, None::<&Path>)?)
    }

    /// The next events; none if the queue is empty.
    pub fn read(&self) -> io::Result<Vec<FanotifyEvent>> {
        loop {
            match self.group.read_events() {
                Err(Errno::EAGAIN) => return Ok(Vec::new()),
                Err(Errno::EINTR) => {}
                other => return Ok(other?),
            }
        }
    }
}

impl AsFd for Group {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.group.as_fd()
    }
}

fn ignored(seen: Seen) -> MaskFlags {
    let mut mask = MaskFlags::empty();
    mask.set(MaskFlags::FAN_OPEN, seen.open);
    mask.set(MaskFlags::FAN_OPEN_EXEC, seen.exec);
    mask.set(MaskFlags::FAN_ONDIR, seen.dir); // ENOTDIR on anything else
    mask
}

/// The parts of an event.
pub fn seen(event: &FanotifyEvent) -> Seen {
    let mask = event.mask();
    Seen {
        open: mask.contains(MaskFlags::FAN_OPEN),
        exec: mask.contains(MaskFlags::FAN_OPEN_EXEC),
        dir: mask.contains(MaskFlags::FAN_ONDIR),
        overflow: mask.contains(MaskFlags::FAN_Q_OVERFLOW),
        pid: u32::try_from(event.pid()).unwrap_or(0),
    }
}
