//! What can be read of a thread that waits in a notified call: its memory, who it is, and where its
//! paths lead.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};

use crate::sys::seccomp::read_memory;

/// The longest path, with its NUL (`PATH_MAX`).
const PATH_MAX: usize = 4096;
/// Bytes of argv\[0\] that are kept, as by the BPF side.
const ARGV0: usize = 512;

/// A string of another process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Text {
    /// Without its NUL.
    Whole(Vec<u8>),
    /// The call is about to fail by itself: no such address, or longer than a path may be.
    Bad,
    /// The thread is gone, and with it the call.
    Gone,
    /// Not readable though it is there.
    Refused,
}

/// A string of at most `PATH_MAX` bytes.
pub fn text(tid: u32, address: u64) -> Text {
    string(tid, address, PATH_MAX)
}

fn string(tid: u32, address: u64, most: usize) -> Text {
    let mut buffer = [0; PATH_MAX];
    match read_memory(tid, address, &mut buffer[..most], true) {
        Ok(count) => match buffer[..count].iter().position(|b| *b == 0) {
            Some(end) => Text::Whole(buffer[..end].to_vec()),
            None if most < PATH_MAX => Text::Whole(buffer[..count].to_vec()),
            None => Text::Bad,
        },
        Err(error) => match error.raw_os_error() {
            Some(14) => Text::Bad, // EFAULT
            Some(3) => Text::Gone, // ESRCH
            _ => Text::Refused,
        },
    }
}

/// The first string of an argument vector; empty if there is none.
pub fn argv0(tid: u32, vector: u64, compat: bool) -> Vec<u8> {
    let mut word = [0; 8];
    let size = if compat { 4 } else { 8 };
    let read = read_memory(tid, vector, &mut word[..size], false);
    let pointer = u64::from_ne_bytes(word);
    if pointer == 0 || !matches!(read, Ok(count) if count == size) {
        return Vec::new();
    }
    match string(tid, pointer, ARGV0) {
        Text::Whole(text) => text,
        _ => Vec::new(),
    }
}

/// The path in a unix socket's address; `None` for another family, an abstract or unnamed one.
pub fn socket_path(tid: u32, address: u64, length: u64) -> Result<Option<Vec<u8>>, Text> {
    let mut raw = [0; 110];
    let length = usize::try_from(length).unwrap_or(0).min(raw.len());
    if address == 0 || length <= 2 {
        return Ok(None);
    }
    let count =
        read_memory(tid, address, &mut raw[..length], false).map_err(|error| {
            match error.raw_os_error() {
                Some(14) => Text::Bad,
                Some(3) => Text::Gone,
                _ => Text::Refused,
            }
        })?;
    if count <= 2 || u16::from_ne_bytes([raw[0], raw[1]]) != 1 || raw[2] == 0 {
        return Ok(None);
    }
    Ok(Some(raw[2..count].split(|b| *b == 0).next().unwrap_or_default().to_vec()))
}

/// Addresses and their lengths in the first `count` message headers at `at`: `struct msghdr` for one,
/// an array of `struct mmsghdr` for more, which begin alike (sendmmsg(2); `UIO_MAXIOV` bounds them).
pub fn message_addresses(tid: u32, at: u64, count: u64, compat: bool) -> Vec<(u64, u64)> {
    let (name, stride) = if compat { (4, 32) } else { (8, 64) };
    let read = |index: u64| {
        let mut head = [0; 12];
        let head = &mut head[..name + 4];
        let at = at.checked_add(index * stride)?;
        let whole = read_memory(tid, at, head, false).is_ok_and(|read| read == head.len());
        let (address, length) = head.split_at(name);
        whole.then(|| (word(address), word(length)))
    };
    // the kernel, too, stops at the first that it cannot read
    (0..count.min(1024)).map_while(read).filter(|(address, _)| *address != 0).collect()
}

/// The call that a 32-bit `socketcall` makes, of those with addresses, and its arguments (`linux/net.h`).
pub fn socket_call(tid: u32, args: [u64; 6]) -> Option<(&'static str, [u64; 6])> {
    let (name, count) = match args[0] {
        2 => ("bind", 3),
        3 => ("connect", 3),
        11 => ("sendto", 6),
        16 => ("sendmsg", 3),
        20 => ("sendmmsg", 4),
        _ => return None,
    };
    let mut raw = [0; 24];
    let raw = &mut raw[..count * 4];
    let read = read_memory(tid, args[1], raw, false).ok()?;
    let mut inner = [0; 6];
    for (to, from) in inner.iter_mut().zip(raw.chunks(4)) {
        *to = word(from);
    }
    (read == raw.len()).then_some((name, inner))
}

/// A number of four or eight bytes.
fn word(bytes: &[u8]) -> u64 {
    match bytes.try_into() {
        Ok(eight) => u64::from_ne_bytes(eight),
        Err(_) => bytes.try_into().map_or(0, |four| u64::from(u32::from_ne_bytes(four))),
    }
}

/// Process, parent and user of a thread, by its status file; `None` if it is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status {
    pub pid: u32,
    pub parent: u32,
    pub uid: u32,
    /// It is the first process of its pid namespace.
    pub init: bool,
}

/// Reads `/proc/TID/status`.
pub fn status(tid: u32) -> Option<Status> {
    let text = std::fs::read_to_string(format!("/proc/{tid}/status")).ok()?;
    let field = |name: &str| {
        let value = text.lines().find_map(|line| line.strip_prefix(name))?;
        value.split_whitespace().next()?.parse().ok()
    };
    let innermost = text.lines().find_map(|line| line.strip_prefix("NSpid:"));
    let init = innermost.is_some_and(|pids| pids.split_whitespace().last() == Some("1"));
    let (pid, parent, uid) = (field("Tgid:")?, field("PPid:")?, field("Uid:")?);
    Some(Status { pid, parent, uid, init })
}

/// A link in /proc, as bytes; without the mark of a removed file.
pub fn link(tid: u32, name: &str) -> Option<Vec<u8>> {
    let target = std::fs::read_link(format!("/proc/{tid}/{name}")).ok()?;
    let mut target = target.into_os_string().into_vec();
    if target.ends_with(b" (deleted)") {
        target.truncate(target.len() - b" (deleted)".len());
    }
    Some(target)
}

/// Inode number of the mount namespace; 0 if the thread is gone.
pub fn mount_namespace(tid: u32) -> u32 {
    let meta = std::fs::metadata(format!("/proc/{tid}/ns/mnt"));
    meta.ok().and_then(|meta| u32::try_from(meta.ino()).ok()).unwrap_or(0)
}

/// Device of the thread's root directory, as `st_dev`.
pub fn root_device(tid: u32) -> Option<u64> {
    Some(std::fs::metadata(format!("/proc/{tid}/root/")).ok()?.dev())
}

/// The first bytes of argv\[0\] of a running process.
pub fn command(tid: u32) -> Vec<u8> {
    let mut file = match File::open(format!("/proc/{tid}/cmdline")) {
        Ok(file) => file,
        Err(_) => return Vec::new(),
    };
    let mut raw = [0; ARGV0];
    let count = file.read(&mut raw).unwrap_or(0);
    raw[..count].split(|b| *b == 0).next().unwrap_or_default().to_vec()
}

/// Looks paths up as a thread would, now: below its root, through its mounts.
pub struct Place {
    root: OwnedFd,
    /// Path of the root, as seen from the top of its mount namespace.
    top: Vec<u8>,
}

/// What a path led to.
pub struct Found {
    pub file: OwnedFd,
    pub kind: FileType,
    pub executable: bool,
}

impl Place {
    /// `None` if the thread is gone. `top` is its root's path.
    pub fn of(tid: u32, top: Vec<u8>) -> Option<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(format!("/proc/{tid}/root"), flags, Mode::empty()).ok()?;
        Some(Self { root, top })
    }

    /// What `raw` leads to from `base`; the error is an errno. Nothing is opened, so nothing is
    /// reported of this look (`O_PATH`; `openat2(2)` with `RESOLVE_IN_ROOT`, Linux 5.6).
    pub fn look(&self, base: &[u8], raw: &[u8], follow: bool) -> Result<Found, i32> {
        let path = self.below(base, raw);
        let mut flags = OFlags::PATH | OFlags::CLOEXEC;
        flags.set(OFlags::NOFOLLOW, !follow);
        let path = Path::new(std::ffi::OsStr::from_bytes(&path));
        let file = loop {
            let opened =
                rustix::fs::openat2(&self.root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT);
            match opened {
                Err(rustix::io::Errno::AGAIN) => {} // a rename on the way
                other => break other.map_err(|errno| errno.raw_os_error())?,
            }
        };
        let stat = rustix::fs::fstat(&file).map_err(|errno| errno.raw_os_error())?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        Ok(Found { file, kind, executable: kind.is_file() && stat.st_mode & 0o111 != 0 })
    }

    fn below(&self, base: &[u8], raw: &[u8]) -> Vec<u8> {
        if raw.first() == Some(&b'/') {
            return raw.to_vec();
        }
        let base = match base.strip_prefix(&self.top[..]) {
            Some(rest) if self.top.len() > 1 => rest,
            _ => base,
        };
        [base, b"/", raw].concat()
    }
}

impl Found {
    /// The file's path, as seen from the top of its mount namespace.
    pub fn path(&self) -> Option<Vec<u8>> {
        let link = std::fs::read_link(format!("/proc/self/fd/{}", self.file.as_raw_fd())).ok()?;
        Some(link.into_os_string().into_vec())
    }

    /// The interpreter that a script's first line names (execve(2)).
    pub fn interpreter(&self) -> Option<Vec<u8>> {
        let mut raw = [0; 256];
        let count = self.read(&mut raw).ok()?;
        let line = raw[..count].split(|b| *b == b'\n').next()?.strip_prefix(b"#!")?;
        let blank = |b: &u8| *b == b' ' || *b == b'\t';
        let mut words = line.split(blank).filter(|word| !word.is_empty());
        words.next().map(|word| word.split(|b| *b == 0).next().unwrap_or_default().to_vec())
    }

    fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        File::open(format!("/proc/self/fd/{}", self.file.as_raw_fd()))?.read(buffer)
    }

    /// True for a directory with something in it.
    pub fn is_full(&self) -> bool {
        let entries = std::fs::read_dir(format!("/proc/self/fd/{}", self.file.as_raw_fd()));
        entries.is_ok_and(|mut entries| entries.next().is_some())
    }
}
