//! The socket by which `slim exec` and SLIM_RUN reach a live run, and its two ends.
//!
//! A client makes pipes, hands their far ends over (`SCM_RIGHTS`) and copies its own streams through
//! them, as Docker's client does: what runs in the container sees pipes, whatever the script has.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use serde::{Deserialize, Serialize};

use super::container::Refused;
use super::pod::PodInner;
use super::shim::CANNOT_CREATE;
use super::stdio::{Stdio, pipe};
use super::{Ended, RuntimeError, Work};
use crate::sys::{passing, userns};

/// The hidden commands behind SLIM_EXEC and SLIM_RUN.
pub(super) const HIDDEN_EXEC: &str = "__exec";
pub(super) const HIDDEN_RUN: &str = "__run";

/// How long output may follow the end of the process, from children that hold the pipes (Docker
/// waits as long).
const AFTERMATH: Duration = Duration::from_secs(2);

#[derive(Debug, Serialize, Deserialize)]
struct Call {
    /// A fresh container, not the main one.
    fresh: bool,
    unrecorded: bool,
    argv: Vec<String>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Answer {
    code: i32,
    why: Option<String>,
}

fn io_error(what: impl Into<String>) -> impl FnOnce(io::Error) -> RuntimeError {
    let what = what.into();
    move |source| RuntimeError::Io { what, source }
}

/// The folder of the sockets of live runs: `/run/slim`, or one of the user's own.
///
/// # Errors
/// Also if somebody else made it: /tmp is anybody's.
pub(super) fn socket_dir() -> Result<PathBuf, RuntimeError> {
    let dir = dir_name();
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir);
    made.map_err(io_error(format!("mkdir({dir:?})")))?;
    let found = fs::symlink_metadata(&dir).map_err(io_error(format!("stat({dir:?})")))?;
    if !found.is_dir() || found.uid() != rustix::process::geteuid().as_raw() {
        return Err(RuntimeError::Host {
            what: format!("the folder of sockets {}", dir.display()),
            why: "it belongs to another user".into(),
            way_out: "set XDG_RUNTIME_DIR to a folder of yours".into(),
        });
    }
    Ok(dir)
}

/// The same in slim's user namespace and, for the clients of the script, outside it.
fn dir_name() -> PathBuf {
    if userns::user() == 0 {
        return "/run/slim".into();
    }
    match std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty()) {
        Some(dir) => PathBuf::from(dir).join("slim"),
        None => format!("/tmp/slim-{}", userns::user()).into(),
    }
}

/// Words for a command given as one string: by the shell if it has spaces.
pub(super) fn shell_words(command: &str) -> Vec<String> {
    if command.contains(char::is_whitespace) {
        vec!["/bin/sh".into(), "-c".into(), command.into()]
    } else {
        vec![command.into()]
    }
}

/// The threads of calls that may not be over yet.
pub(super) type Calls = Vec<std::thread::JoinHandle<()>>;

/// The listening end, in a thread of its own; a thread per call.
pub(super) struct Server {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<Calls>>,
    path: PathBuf,
    link: Option<PathBuf>,
    program: String,
}

impl Server {
    pub fn start(pod: Arc<PodInner>) -> Result<Self, RuntimeError> {
        let dir = socket_dir()?;
        let path = dir.join(format!("{}.sock", pod.spec.id));
        let listener = listen(&path).map_err(io_error(format!("bind({path:?})")))?;
        let (program, link) = spaceless_program(&dir, &pod.spec.id)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name("control".into())
            .spawn(move || accept_calls(&listener, &pod, &stopped))
            .map_err(io_error("thread of the control socket"))?;
        Ok(Self { stop, thread: Some(thread), path, link, program })
    }

    /// The path of this binary, without a space in it.
    pub fn program(&self) -> &str {
        &self.program
    }

    /// Takes no further calls. What is returned is to be joined once the containers are gone: until
    /// then a call may wait for one.
    pub fn stop(mut self) -> Calls {
        self.shut()
    }

    fn shut(&mut self) -> Calls {
        self.stop.store(true, Ordering::SeqCst);
        let _ = fs::remove_file(&self.path);
        if let Some(link) = &self.link {
            let _ = fs::remove_file(link);
        }
        self.thread.take().and_then(|thread| thread.join().ok()).unwrap_or_default()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shut();
    }
}

fn listen(path: &PathBuf) -> io::Result<OwnedFd> {
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    let _ = fs::remove_file(path);
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    rustix::net::listen(&socket, 64)?;
    Ok(socket)
}

/// SLIM_EXEC is split at spaces by shells: a path that has one is reached by a symlink.
fn spaceless_program(
    dir: &std::path::Path,
    id: &str,
) -> Result<(String, Option<PathBuf>), RuntimeError> {
    let own = match super::program_override() {
        Some(path) => path.to_path_buf(),
        None => std::env::current_exe().map_err(io_error("readlink(\"/proc/self/exe\")"))?,
    };
    match own.to_str() {
        Some(text) if !text.contains(char::is_whitespace) => Ok((text.to_owned(), None)),
        _ => {
            let link = dir.join(format!("{id}.exe"));
            let _ = fs::remove_file(&link);
            std::os::unix::fs::symlink(&own, &link)
                .map_err(io_error(format!("symlink({link:?})")))?;
            Ok((link.to_string_lossy().into_owned(), Some(link)))
        }
    }
}

fn accept_calls(listener: &OwnedFd, pod: &Arc<PodInner>, stop: &AtomicBool) -> Calls {
    let mut calls = Calls::new();
    while !stop.load(Ordering::SeqCst) {
        if !readable(listener, Duration::from_millis(100)) {
            continue;
        }
        let Ok(connection) = rustix::net::accept_with(listener, SocketFlags::CLOEXEC) else {
            continue;
        };
        let pod = Arc::clone(pod);
        calls.retain(|call| !call.is_finished());
        calls.extend(std::thread::Builder::new().name("call".into()).spawn(move || {
            let answer = match serve(&connection, &pod) {
                Ok(answer) => answer,
                Err(error) => Answer { code: CANNOT_CREATE, why: Some(told(&error)) },
            };
            let text = serde_json::to_vec(&answer).unwrap_or_default();
            let _ = passing::send(&connection, &text, &[]);
        }));
    }
    calls
}

fn told(error: &RuntimeError) -> String {
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}"));
    format!("{error}{}", cause.unwrap_or_default())
}

/// True if there is something to read, or the other side is gone.
fn readable(socket: impl AsFd, patience: Duration) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::IN)];
    let patience = Timespec::try_from(patience).ok();
    poll(&mut fds, patience.as_ref()).is_ok_and(|count| count > 0)
}

fn serve(connection: &OwnedFd, pod: &Arc<PodInner>) -> Result<Answer, RuntimeError> {
    let what = "call on the control socket";
    let (bytes, fds) = passing::receive(connection).map_err(io_error(what))?.unwrap_or_default();
    let call: Call =
        serde_json::from_slice(&bytes).map_err(|error| io_error(what)(error.into()))?;
    let streams: Result<[OwnedFd; 3], _> = fds.try_into();
    let [stdin, stdout, stderr] =
        streams.map_err(|_| io_error(what)(io::ErrorKind::InvalidData.into()))?;
    let stdio = Stdio { stdin, stdout, stderr };
    let result = if call.fresh {
        // The caller never sends more: anything readable is its end.
        pod.run(&call.argv, stdio, &|| readable(connection, Duration::ZERO))?
    } else {
        let work = if call.unrecorded { Work::Unrecorded } else { Work::Exec };
        pod.exec(work, &call.argv, stdio)?
    };
    Ok(match result {
        Ok(Ended::Exited(code)) => Answer { code, why: None },
        Ok(Ended::Killed(signal)) => Answer { code: 128 + signal, why: None },
        Err(Refused { code, why }) => Answer { code, why: Some(why) },
    })
}

/// `slim exec CONTAINER [--unrecorded] -- CMD…`: runs it with this process's stdin, stdout and
/// stderr and returns the exit code for this process (126 and 127 as `docker exec` has them).
pub fn exec_client(id: &str, unrecorded: bool, argv: &[OsString]) -> Result<i32, RuntimeError> {
    call(id, Call { fresh: false, unrecorded, argv: words(argv)? })
}

/// The client behind SLIM_RUN: a fresh container of the run `id` with `argv` as its command.
pub fn run_client(id: &str, argv: &[OsString]) -> Result<i32, RuntimeError> {
    call(id, Call { fresh: true, unrecorded: false, argv: words(argv)? })
}

/// What a client's process ends with; a failed call is told on stderr.
pub(super) fn client_code(result: Result<i32, RuntimeError>) -> i32 {
    result.unwrap_or_else(|error| {
        let _ = writeln!(io::stderr(), "slim: {}", told(&error));
        CANNOT_CREATE
    })
}

fn words(argv: &[OsString]) -> Result<Vec<String>, RuntimeError> {
    let word = |raw: &OsString| {
        raw.to_str().map(str::to_owned).ok_or_else(|| RuntimeError::Option {
            option: "command".into(),
            value: raw.to_string_lossy().into_owned(),
            why: "a runtime configuration is UTF-8, and so must its words be".into(),
        })
    };
    argv.iter().map(word).collect()
}

/// Makes the call with this process's streams; the exit code.
fn call(id: &str, call: Call) -> Result<i32, RuntimeError> {
    let streams = io_error("standard streams");
    let socket = connect(id)?;
    let relays = Relays::start().map_err(streams)?;
    let text = serde_json::to_vec(&call).map_err(|error| io_error("call")(error.into()))?;
    let (ends, relays) = relays.split();
    let fds: Vec<_> = ends.iter().map(AsFd::as_fd).collect();
    passing::send(&socket, &text, &fds).map_err(io_error("call on the control socket"))?;
    drop(fds);
    drop(ends);
    let answer = passing::receive(&socket).map_err(io_error("answer on the control socket"))?;
    let gone = || RuntimeError::Container {
        what: format!("container {id}"),
        why: "its slim ended before it answered".into(),
    };
    let (bytes, _) = answer.ok_or_else(gone)?;
    let answer: Answer =
        serde_json::from_slice(&bytes).map_err(|error| io_error("answer")(error.into()))?;
    relays.settle();
    if let Some(why) = answer.why {
        // The client is this process's whole purpose, and Docker's says so on stderr, too.
        let _ = writeln!(io::stderr(), "slim: {why}");
    }
    Ok(answer.code)
}

fn connect(id: &str) -> Result<OwnedFd, RuntimeError> {
    let none = |why: String| RuntimeError::Container { what: format!("container {id}"), why };
    if id.is_empty() || id.contains('/') || id.contains("..") {
        return Err(none("no such name".into()));
    }
    let path = dir_name().join(format!("{id}.sock"));
    let connect = || {
        let socket = rustix::net::socket_with(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        rustix::net::connect(&socket, &SocketAddrUnix::new(&path)?)?;
        Ok(socket)
    };
    connect().map_err(|error: io::Error| none(format!("no live run has this name ({error})")))
}

/// Threads between this process's streams and the pipes of the container's process.
struct Relays {
    ends: [OwnedFd; 3],
    done: mpsc::Receiver<()>,
}

struct Running(mpsc::Receiver<()>);

impl Relays {
    fn start() -> io::Result<Self> {
        let (stdin, to_stdin) = pipe()?;
        let (from_stdout, stdout) = pipe()?;
        let (from_stderr, stderr) = pipe()?;
        let (finished, done) = mpsc::channel();
        std::thread::spawn(move || copy(io::stdin().lock(), File::from(to_stdin)));
        let also = finished.clone();
        std::thread::spawn(move || {
            copy(File::from(from_stdout), io::stdout());
            let _ = also.send(());
        });
        std::thread::spawn(move || {
            copy(File::from(from_stderr), io::stderr());
            let _ = finished.send(());
        });
        Ok(Self { ends: [stdin, stdout, stderr], done })
    }

    fn split(self) -> ([OwnedFd; 3], Running) {
        (self.ends, Running(self.done))
    }
}

impl Running {
    /// Waits until both outputs are through, or the aftermath is over.
    fn settle(self) {
        let deadline = Instant::now() + AFTERMATH;
        for _ in 0..2 {
            let left = deadline.saturating_duration_since(Instant::now());
            if self.0.recv_timeout(left).is_err() {
                return;
            }
        }
    }
}

/// Copies each piece as it comes, until the end or until nobody takes it.
fn copy(mut from: impl Read, mut to: impl Write) {
    let mut buffer = [0; 32 * 1024];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return,
            Ok(count) => {
                if to.write_all(&buffer[..count]).and_then(|()| to.flush()).is_err() {
                    return;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

/// Removes the sockets that no live run listens on; their names.
pub(super) fn clean_sockets() -> Vec<String> {
    let mut removed = Vec::new();
    for entry in fs::read_dir(dir_name()).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some((id, _)) = name.rsplit_once('.') else { continue };
        if connect(id).is_err() && fs::remove_file(entry.path()).is_ok() {
            removed.push(entry.path().to_string_lossy().into_owned());
        }
    }
    removed
}
