//! The user's coverage script: found, started under a supervisor, ended with everything it started.
//!
//! The supervisor is a re-execution of this binary that adopts the script's orphans. It holds one end
//! of a socket, and its other end is slim: when slim dies, however it dies, the socket closes, and the
//! supervisor kills what there is.

mod supervisor;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use super::rootless::outside::{Outside, Start};
use super::{Ended, RuntimeError, ScriptEnd, rootless};

pub use supervisor::hidden_supervisor;

/// How often the interrupt flag and the clock are looked at.
const TICK: Duration = Duration::from_millis(50);

/// A script about to run.
pub struct Script<'a> {
    pub argv: &'a [OsString],
    /// Added to slim's environment.
    pub env: &'a BTreeMap<String, String>,
    pub timeout: Option<Duration>,
    /// A cgroup v2 directory for it, made and removed here; `None` where there is none.
    pub cgroup: Option<&'a Path>,
    /// The host's mount namespace, if slim has left it.
    pub mount_ns: Option<BorrowedFd<'a>>,
    /// `--network private`.
    pub netns: Option<BorrowedFd<'a>>,
    /// The binary that knows [`hidden_supervisor`]; `None` is `/proc/self/exe`.
    pub program: Option<&'a Path>,
}

/// Runs the script to its end. When it has ended, nothing that it started is left running.
///
/// At the time-out, or once `interrupted` says so, it gets SIGTERM and two seconds later SIGKILL. Call
/// it from a thread whose children are born into the host's pid namespace.
pub fn run_script(
    script: &Script<'_>,
    interrupted: &dyn Fn() -> bool,
) -> Result<ScriptEnd, RuntimeError> {
    check_script(script.argv)?;
    let result = supervise(script, interrupted);
    if let Some(cgroup) = script.cgroup {
        // After an orderly end there is nothing to do; after the supervisor's death there is.
        supervisor::kill_cgroup(cgroup);
        supervisor::remove_cgroup(cgroup);
    }
    match result.map_err(|source| io_error("cannot run the script", source))? {
        Report::Ended(end) => Ok(end),
        Report::NotStarted(errno) => Err(refuse(&script.argv[0], &why_not(errno))),
    }
}

fn io_error(what: &str, source: io::Error) -> RuntimeError {
    RuntimeError::Io { what: what.to_owned(), source }
}

/// What the supervisor came to say.
enum Report {
    Ended(ScriptEnd),
    /// The error number of exec.
    NotStarted(i32),
}

fn supervise(script: &Script<'_>, interrupted: &dyn Fn() -> bool) -> io::Result<Report> {
    let (mut ours, theirs) = UnixStream::pair()?;
    ours.set_read_timeout(Some(TICK))?;
    let supervisor = Supervisor::start(script, theirs)?;
    let deadline = script.timeout.map(|timeout| Instant::now() + timeout);
    let (mut stopping, mut text) = (None, Vec::new());
    let outcome = loop {
        let mut buffer = [0_u8; 64];
        match ours.read(&mut buffer) {
            Ok(0) => break parse_report(&text),
            Ok(length) => text.extend_from_slice(&buffer[..length]),
            Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionReset) => {
                break parse_report(&text);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => (),
            Err(error) => break Err(error),
        }
        let late = deadline.is_some_and(|deadline| Instant::now() >= deadline);
        if stopping.is_none() && (late || interrupted()) {
            stopping =
                Some(if interrupted() { ScriptEnd::Interrupted } else { ScriptEnd::TimedOut });
            let _ = ours.write_all(&[supervisor::STOP]);
        }
    };
    drop(ours); // whatever went wrong, the supervisor ends now
    supervisor.wait();
    match (outcome?, stopping) {
        (Report::Ended(_), Some(why)) => Ok(Report::Ended(why)),
        (report, _) => Ok(report),
    }
}

/// The script's supervisor, running: a child of this process, or of the one outside the user namespace.
enum Supervisor {
    Child(Child),
    Outside(&'static Outside),
}

impl Supervisor {
    /// Outside is where the script belongs: as the user, with all that the user may do. Only the
    /// container's network namespace is out of reach from there.
    fn start(script: &Script<'_>, socket: UnixStream) -> io::Result<Self> {
        let start = start(script)?;
        match rootless::outside().filter(|_| script.netns.is_none()) {
            Some(outside) => outside.start(&start, &socket.into()).map(|()| Self::Outside(outside)),
            None => start.command(socket.into()).spawn().map(Self::Child),
        }
    }

    fn wait(self) {
        match self {
            Self::Child(mut child) => drop(child.wait()),
            Self::Outside(outside) => outside.wait(),
        }
    }
}

fn start(script: &Script<'_>) -> io::Result<Start> {
    let program = script.program.unwrap_or(Path::new("/proc/self/exe"));
    let namespace = |fd: Option<BorrowedFd<'_>>| {
        fd.map_or(String::new(), |fd| format!("/proc/{}/fd/{}", std::process::id(), fd.as_raw_fd()))
    };
    // The process outside the user namespace never left the host's mount namespace.
    let mount_ns = script.mount_ns.filter(|_| rootless::outside().is_none());
    let words: [OsString; 5] = [
        supervisor::HIDDEN.into(),
        script.cgroup.unwrap_or(Path::new("")).into(),
        namespace(mount_ns).into(),
        namespace(script.netns).into(),
        std::env::current_dir()?.into(),
    ];
    let args = words.into_iter().chain(script.argv.iter().cloned()).collect();
    Ok(Start { program: program.into(), args, env: script.env.clone() })
}

/// `exited N`, `killed N` or `failed ERRNO`.
fn parse_report(text: &[u8]) -> io::Result<Report> {
    let text = String::from_utf8_lossy(text);
    let (word, number) = text.trim().split_once(' ').unwrap_or_default();
    match (word, number.parse()) {
        ("exited", Ok(code)) => Ok(Report::Ended(ScriptEnd::Ended(Ended::Exited(code)))),
        ("killed", Ok(signal)) => Ok(Report::Ended(ScriptEnd::Ended(Ended::Killed(signal)))),
        ("failed", Ok(errno)) => Ok(Report::NotStarted(errno)),
        _ => Err(io::Error::other("its supervisor was killed")),
    }
}

fn why_not(errno: i32) -> String {
    match errno {
        libc::ENOENT => {
            "cannot be executed: the interpreter in its first line does not exist".into()
        }
        _ => format!("cannot be executed: {}", io::Error::from_raw_os_error(errno)),
    }
}

fn refuse(script: &OsStr, why: &str) -> RuntimeError {
    let value = script.to_string_lossy().into_owned();
    RuntimeError::Option { option: "SCRIPT".to_owned(), value, why: why.to_owned() }
}

/// Early check: the script exists and is executable. A name without a slash is looked up in PATH, as a
/// shell does.
pub fn check_script(argv: &[OsString]) -> Result<(), RuntimeError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let first = argv.first().map(OsString::as_os_str).unwrap_or_default();
    find(first, &path).map(drop).map_err(|why| refuse(first, &why))
}

fn find(script: &OsStr, path: &OsStr) -> Result<PathBuf, String> {
    if script.is_empty() {
        return Err("no script given; write it after --".to_owned());
    }
    if script.as_encoded_bytes().contains(&b'/') {
        return executable(Path::new(script)).map(|()| script.into());
    }
    let found = std::env::split_paths(path)
        .map(|dir| dir.join(script))
        .find(|candidate| executable(candidate).is_ok());
    found.ok_or_else(|| match Path::new(script).is_file() {
        true => {
            format!("not found in PATH; for the file in this folder write ./{}", script.display())
        }
        false => "not found in PATH".to_owned(),
    })
}

fn executable(path: &Path) -> Result<(), String> {
    let meta = std::fs::metadata(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => "no such file".to_owned(),
        _ => error.to_string(),
    })?;
    if meta.is_dir() {
        return Err("that is a directory, not a script".to_owned());
    }
    rustix::fs::access(path, rustix::fs::Access::EXEC_OK)
        .map_err(|_| format!("not executable; run chmod +x {}", path.display()))?;
    match interpreter(path) {
        Some(name) if !name.exists() => Err(format!(
            "its first line names the interpreter {}, which does not exist: install it or mend the \
             line",
            name.display()
        )),
        _ => Ok(()),
    }
}

/// What stands behind `#!`, as execve(2) reads it: at most 255 bytes, up to a blank.
fn interpreter(path: &Path) -> Option<PathBuf> {
    let mut head = Vec::new();
    std::fs::File::open(path).ok()?.take(255).read_to_end(&mut head).ok()?;
    let line = head.strip_prefix(b"#!")?.split(|byte| *byte == b'\n').next()?;
    let mut words = line.split(|byte| matches!(byte, b' ' | b'\t')).filter(|w| !w.is_empty());
    words.next().map(|word| OsStr::from_bytes(word).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn scripts_are_found_as_a_shell_finds_them() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = |name: &str, mode| {
            let path = dir.path().join(name);
            std::fs::write(&path, "#!/bin/sh\n").expect("a file");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("a mode");
            path
        };
        let odd = file("odd", 0o755);
        std::fs::write(&odd, "#! /no/such -e\n").expect("a file");
        let (good, plain) = (file("good", 0o755), file("plain", 0o644));
        let path = OsString::from(format!("/no/such:{}", dir.path().display()));
        assert_eq!(find(OsStr::new("good"), &path), Ok(good.clone()));
        assert_eq!(find(good.as_os_str(), OsStr::new("")), Ok(good));
        for (script, why) in [
            (OsStr::new(""), "no script given"),
            (OsStr::new("plain"), "not found in PATH"),
            (
                OsStr::new("Cargo.toml"),
                "not found in PATH; for the file in this folder write ./Cargo",
            ),
            (OsStr::new("./no-such"), "no such file"),
            (plain.as_os_str(), "not executable; run chmod +x /"),
            (dir.path().as_os_str(), "that is a directory"),
            (odd.as_os_str(), "its first line names the interpreter /no/such"),
        ] {
            let error = find(script, &path).expect_err("refused");
            assert!(error.starts_with(why), "{script:?}: {error}");
        }
    }

    #[test]
    fn the_supervisors_words_are_understood() {
        let end = |text: &[u8]| match parse_report(text) {
            Ok(Report::Ended(end)) => Some(end),
            _ => None,
        };
        assert_eq!(end(b"exited 3\n"), Some(ScriptEnd::Ended(Ended::Exited(3))));
        assert_eq!(end(b"killed 9\n"), Some(ScriptEnd::Ended(Ended::Killed(9))));
        assert!(matches!(parse_report(b"failed 2\n"), Ok(Report::NotStarted(2))));
        assert!(parse_report(b"").is_err() && parse_report(b"exited").is_err());
    }
}
