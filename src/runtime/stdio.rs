//! Standard streams of containers: pipes owned by the container's user, copied into the log; a
//! terminal's master end received from the runtime.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::fs::{Gid, Mode, OFlags, Uid};
use rustix::pipe::{PipeFlags, pipe_with};

use crate::sys::passing;

/// Three descriptors for a process.
pub(super) struct Stdio {
    pub stdin: OwnedFd,
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
}

impl Stdio {
    pub fn all(&self) -> [BorrowedFd<'_>; 3] {
        [self.stdin.as_fd(), self.stdout.as_fd(), self.stderr.as_fd()]
    }

    /// Makes pipes belong to the container's user, as Docker's are: a program that drops root opens
    /// `/dev/stdout` (nginx's access log) and needs the right to.
    pub fn give_to(&self, uid: u32) {
        for fd in self.all() {
            let is_pipe = rustix::fs::fstat(fd)
                .is_ok_and(|stat| rustix::fs::FileType::from_raw_mode(stat.st_mode).is_fifo());
            if is_pipe {
                let _ = rustix::fs::fchown(fd, Some(Uid::from_raw(uid)), None::<Gid>);
            }
        }
    }
}

/// A pipe: reading end, writing end.
pub(super) fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(pipe_with(PipeFlags::CLOEXEC)?)
}

pub(super) fn null() -> io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    Ok(rustix::fs::open("/dev/null", flags, Mode::empty())?)
}

/// A file that several copiers append to.
pub(super) struct Log {
    file: Mutex<File>,
    copying: AtomicUsize,
}

impl Log {
    pub fn open(path: &Path) -> io::Result<Arc<Self>> {
        let file = OpenOptions::new().append(true).create(true).open(path)?;
        Ok(Arc::new(Self { file: Mutex::new(file), copying: AtomicUsize::new(0) }))
    }

    /// Copies what comes out of `from` to its end, in a thread of its own.
    pub fn copy(self: &Arc<Self>, from: OwnedFd) -> io::Result<()> {
        self.copying.fetch_add(1, Ordering::SeqCst);
        let log = Arc::clone(self);
        let spawned = std::thread::Builder::new().name("log".into()).spawn(move || {
            let mut from = File::from(from);
            let mut buffer = [0; 16 * 1024];
            // A terminal's master end says EIO when the last user is gone.
            while let Ok(count) = read_retrying(&mut from, &mut buffer)
                && count > 0
            {
                let mut file = log.file.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                let _ = file.write_all(&buffer[..count]);
            }
            log.copying.fetch_sub(1, Ordering::SeqCst);
        });
        spawned.map(drop)
    }

    /// Waits until all is copied, at most `patience`.
    pub fn settle(&self, patience: Duration) {
        let deadline = Instant::now() + patience;
        while self.copying.load(Ordering::SeqCst) > 0 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn read_retrying(from: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match from.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// A socket that an OCI runtime sends a terminal's master end to (`--console-socket`).
pub(super) struct Console {
    listener: UnixListener,
    pub path: PathBuf,
}

impl Console {
    /// `path` must be short: unix(7) ends at 107 bytes.
    pub fn listen(path: PathBuf) -> io::Result<Self> {
        let _ = std::fs::remove_file(&path);
        Ok(Self { listener: UnixListener::bind(&path)?, path })
    }

    /// Receives the terminal; the runtime has connected by the time that it reported.
    pub fn receive(self) -> io::Result<OwnedFd> {
        self.listener.set_nonblocking(true)?;
        let deadline = Instant::now() + Duration::from_secs(5);
        let stream = loop {
            match self.listener.accept() {
                Ok((stream, _)) => break stream,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock && Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(error) => return Err(error),
            }
        };
        stream.set_nonblocking(false)?;
        let (_, fds) = passing::receive(&stream)?.unwrap_or_default();
        fds.into_iter().next().ok_or_else(|| io::Error::other("no terminal came"))
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}
