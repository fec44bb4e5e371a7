//! Engines on this host: which there are, and how an image comes into one.

use std::fmt;
use std::io::{self, Read, Write};
use std::process::{Child, Command, Output, Stdio};
use std::str::FromStr;
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{PidfdFlags, Signal};

use crate::sys::signals;

use super::archive::Parcel;
use super::{SinkError, containerd, docker, podman};

/// How long a Ctrl-C may wait.
const PAUSE: Duration = Duration::from_millis(100);

/// Where an image is loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    Docker,
    Podman,
    /// In a namespace; `ctr`'s own default where it is not given.
    Containerd(Option<String>),
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "docker" => Ok(Self::Docker),
            None if text == "podman" => Ok(Self::Podman),
            None if text == "containerd" => Ok(Self::Containerd(None)),
            Some(("containerd", space)) if !space.is_empty() => {
                Ok(Self::Containerd(Some(space.to_owned())))
            }
            _ => Err("give docker, podman or containerd[:NAMESPACE]".to_owned()),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Docker => f.write_str("Docker"),
            Self::Podman => f.write_str("Podman"),
            Self::Containerd(None) => f.write_str("containerd"),
            Self::Containerd(Some(space)) => write!(f, "containerd, namespace {space}"),
        }
    }
}

/// Loads an image into an engine and checks that what it has then is that image. Returns its id there.
///
/// # Errors
/// The engine is not there, does not take the image, or makes another of it.
pub fn load(parcel: Parcel<'_>, target: &Target) -> Result<String, SinkError> {
    match target {
        Target::Docker => docker::load(parcel),
        Target::Podman => podman::load(parcel),
        Target::Containerd(space) => containerd::load(parcel, space.as_deref()),
    }
}

/// Writes the archive on a thread of its own while `take` reads it; what went wrong with the image
/// counts before what that made of the engine. Ctrl-C ends the archive before its end, which every
/// engine refuses.
pub(super) fn piped<T>(
    parcel: Parcel<'_>,
    readable: fn(&str) -> bool,
    take: impl FnOnce(io::PipeReader) -> Result<T, SinkError>,
) -> Result<T, SinkError> {
    let unread = |source| SinkError::Read { what: "the layers".to_owned(), source };
    let (reader, writer) = io::pipe().map_err(unread)?;
    rustix::io::ioctl_fionbio(&writer, true).map_err(|error| unread(error.into()))?;
    std::thread::scope(|scope| {
        let writing = scope.spawn(move || {
            let mut to = io::BufWriter::with_capacity(1 << 20, Patient(writer));
            parcel.write(&mut to, &readable)?;
            to.flush()
        });
        let taken = take(reader);
        let writing = writing.join();
        // What it says of an archive that was cut off is of no use.
        if let Err(interrupted @ SinkError::Interrupted { .. }) = taken {
            return Err(interrupted);
        }
        match writing.unwrap_or_else(|_| Err(io::Error::other("the writer panicked"))) {
            // Who stops reading has said why.
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(unread(error)),
            _ => taken,
        }
    })
}

/// A pipe that whoever reads it may leave full: Ctrl-C is heard meanwhile.
struct Patient(io::PipeWriter);

impl Write for Patient {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            go_on()?;
            match self.0.write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let mut room = [PollFd::new(&self.0, PollFlags::OUT)];
                    let pause = Timespec { tv_sec: 0, tv_nsec: PAUSE.subsec_nanos().into() };
                    let _ = rustix::event::poll(&mut room, Some(&pause));
                }
                done => return done,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// An error once somebody pressed Ctrl-C.
pub(super) fn go_on() -> io::Result<()> {
    if signals::interrupted() { Err(io::Error::other("interrupted")) } else { Ok(()) }
}

/// Does `work` on a thread of its own, which is left alone with it after a Ctrl-C: `None` then.
pub(super) fn unless_interrupted<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let (done, result) = std::sync::mpsc::channel();
    std::thread::spawn(move || done.send(work()));
    loop {
        match result.recv_timeout(PAUSE) {
            Ok(result) => return Some(result),
            Err(RecvTimeoutError::Timeout) if !signals::interrupted() => {}
            // A worker that panicked ends up here too, and has said so.
            Err(_) => return None,
        }
    }
}

/// A program of the engine.
pub(super) struct Program {
    pub name: &'static str,
    /// What comes before every command.
    pub before: Vec<String>,
    /// The Debian package that has it.
    pub package: &'static str,
    pub engine: &'static str,
}

impl Program {
    /// Runs it; what it prints on success.
    pub fn run(&self, args: &[&str], input: Option<io::PipeReader>) -> Result<String, SinkError> {
        let mut command = Command::new(self.name);
        command.args(&self.before).args(args);
        command.stdin(input.map_or_else(Stdio::null, Stdio::from));
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let cannot = |error: io::Error| self.error(format!("{} cannot be run: {error}", self.name));
        // Podman copies what it is given to a file, which stays when it is ended.
        let spool = spool().map_err(cannot)?;
        command.env("TMPDIR", spool.path());
        let child = command.spawn().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                self.error(format!("there is no program {}; install {}", self.name, self.package))
            }
            _ => cannot(error),
        })?;
        // What it was given goes with the command; held here, its other end would never break.
        drop(command);
        let output = waited(child).map_err(cannot)?;
        let output = output.ok_or(SinkError::Interrupted { engine: self.engine })?;
        self.said(args, &output)
    }

    fn said(&self, args: &[&str], output: &Output) -> Result<String, SinkError> {
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
        }
        let mut why = String::new();
        let _ = (&output.stderr[..]).take(2000).read_to_string(&mut why);
        let told = [&[self.name][..], args].concat().join(" ");
        Err(self.error(format!("`{told}` failed: {}", why.trim())))
    }

    pub fn error(&self, why: String) -> SinkError {
        SinkError::Engine { engine: self.engine, why }
    }
}

/// A folder where Podman would put its files.
fn spool() -> io::Result<tempfile::TempDir> {
    let set = std::env::var_os("TMPDIR").filter(|folder| !folder.is_empty());
    let folder = set.unwrap_or_else(|| "/var/tmp".into());
    tempfile::Builder::new().prefix("slim-load-").tempdir_in(folder)
}

/// What it prints, or nothing once it was ended because of a Ctrl-C: it finds the archive cut off
/// first, and tidies up after itself.
fn waited(child: Child) -> io::Result<Option<Output>> {
    let pid = rustix::process::Pid::from_child(&child);
    let handle = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
    let waiting = std::thread::spawn(move || child.wait_with_output());
    let ended = |signal: Option<Signal>, patience: Duration| {
        signal.map(|signal| rustix::process::pidfd_send_signal(&handle, signal));
        let began = Instant::now();
        while !waiting.is_finished() && began.elapsed() < patience {
            std::thread::sleep(PAUSE / 10);
        }
        waiting.is_finished()
    };
    while !signals::interrupted() && !ended(None, PAUSE) {}
    let interrupted = signals::interrupted();
    let _ = !interrupted
        || ended(None, Duration::from_secs(1))
        || ended(Some(Signal::TERM), Duration::from_secs(3))
        || ended(Some(Signal::KILL), Duration::from_secs(3));
    if interrupted && !waiting.is_finished() {
        return Ok(None);
    }
    let output = waiting.join().unwrap_or_else(|_| Err(io::Error::other("the reader panicked")))?;
    Ok((!interrupted).then_some(output))
}

/// Any layer.
pub(super) fn any(_media_type: &str) -> bool {
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_engines() {
        for (text, want) in [
            ("docker", Some(Target::Docker)),
            ("podman", Some(Target::Podman)),
            ("containerd", Some(Target::Containerd(None))),
            ("containerd:k8s.io", Some(Target::Containerd(Some("k8s.io".into())))),
            ("containerd:", None),
            ("docker:x", None),
            ("rkt", None),
        ] {
            assert_eq!(text.parse::<Target>().ok(), want, "{text}");
        }
    }
}
