//! How a hook outside of the container is run: the runtime starts slim, and slim the hook.
//!
//! So the recorder knows it by the name under which slim is started, a recorder that hears of paths by
//! notification gets its filter into it, and what goes wrong is told with the hook's name. The hook itself
//! sees nothing of this: same input, environment, folder, namespaces. A `startContainer` hook is a program
//! of the image, where slim is not: its runtime runs that one itself.

use std::ffi::{CString, OsString};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{FROM, Program, Stage};
use crate::runtime::RuntimeError;
use crate::seccomp::Watch;
use crate::sys::{passing, process, seccomp, signals};

/// The first word of the hidden command line, and the name by which the BPF side knows it
/// (`HOOK_MARK` in `slim.bpf.c`).
pub(in crate::runtime) const HIDDEN: &str = "__hook";
const NAME: &str = "slimhook";
/// slim itself as every process of the cell reaches it: pid 1 there is its helper.
const PROGRAM: &str = "/proc/1/exe";
/// Bytes of a hook's complaints that are kept.
const TAIL: usize = 2048;
const CANNOT_EXECUTE: i32 = 127;
const TIMED_OUT: i32 = 124;

/// What is to be run.
#[derive(Debug, Serialize, Deserialize)]
struct Task {
    stage: Stage,
    from: String,
    program: Program,
    watch: Watch,
    /// Takes the listener of a notifying filter.
    socket: Option<PathBuf>,
    /// Gets a [`Failure`] a line.
    report: PathBuf,
}

/// How a hook failed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(in crate::runtime) struct Failure {
    path: String,
    from: String,
    stage: Stage,
    why: String,
}

impl Failure {
    /// What to do about it.
    const WAY_OUT: &str = "run the hook by hand to find out why, or leave its definition out";

    /// A start or an end that failed by it.
    pub fn error(self) -> RuntimeError {
        RuntimeError::Host { what: self.what(), why: self.why, way_out: Self::WAY_OUT.into() }
    }

    /// `the createRuntime hook /usr/bin/x of /etc/hooks/x.json`.
    fn what(&self) -> String {
        format!("the {} hook {} of {}", self.stage.name(), self.path, self.from)
    }

    /// A warning, where nothing hangs on it.
    pub fn warning(&self) -> String {
        format!("{}: {}; {}", self.what(), self.why, Self::WAY_OUT)
    }
}

/// Lets the hooks of `config` that are outside of the container be run by slim. Writes below `folder`.
pub(in crate::runtime) fn wrap(
    config: &mut Value,
    folder: &Path,
    report: &Path,
    (watch, socket): (Watch, Option<&Path>),
) -> Result<(), RuntimeError> {
    let Some(hooks) = config.get_mut("hooks") else { return Ok(()) };
    let told = |what: String| move |source| RuntimeError::Io { what, source };
    std::fs::create_dir_all(folder).map_err(told(format!("mkdir({folder:?})")))?;
    for stage in Stage::ALL {
        let list = hooks.get_mut(stage.name()).and_then(Value::as_array_mut);
        for (number, hook) in list.into_iter().flatten().enumerate() {
            let from = hook.as_object_mut().and_then(|hook| hook.remove(FROM));
            if stage == Stage::StartContainer {
                continue;
            }
            let program: Program = serde_json::from_value(hook.clone())
                .map_err(|error| told("hooks".into())(error.into()))?;
            let mut wrapped = json!({ "path": PROGRAM });
            if let Some(env) = &program.env {
                wrapped["env"] = json!(env);
            }
            let file = folder.join(format!("{}-{number}.json", stage.name()));
            wrapped["args"] = json!([NAME, HIDDEN, file]);
            let from = from.as_ref().and_then(Value::as_str).unwrap_or_default().to_owned();
            let (socket, report) = (socket.map(Path::to_owned), report.to_owned());
            let task = Task { stage, from, program, watch, socket, report };
            std::fs::write(&file, json!(task).to_string())
                .map_err(told(format!("write({file:?})")))?;
            *hook = wrapped;
        }
    }
    Ok(())
}

/// The programs of a stage.
pub(in crate::runtime) fn programs(config: &Value, stage: Stage) -> Vec<String> {
    let list = config.pointer(&format!("/hooks/{}", stage.name())).and_then(Value::as_array);
    let path = |hook: &Value| hook["path"].as_str().map(str::to_owned);
    list.into_iter().flatten().filter_map(path).collect()
}

/// The failures that hooks reported, each once.
pub(in crate::runtime) fn failures(report: &Path) -> Vec<Failure> {
    let text = std::fs::read_to_string(report).unwrap_or_default();
    let _ = std::fs::remove_file(report);
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// Runs the task in `file`; never returns. To be called while the process has one thread.
pub(in crate::runtime) fn main(file: &Path) -> ! {
    let task = std::fs::read(file).and_then(|text| Ok(serde_json::from_slice::<Task>(&text)?));
    let code = match task {
        Err(error) => complain(&format!("{}: {error}", file.display())),
        Ok(task) => match run(&task) {
            Ok(()) => 0,
            Err((code, why)) => report(task, code, why),
        },
    };
    std::process::exit(code)
}

fn complain(why: &str) -> i32 {
    let _ = writeln!(io::stderr(), "slim: {why}");
    CANNOT_EXECUTE
}

fn report(task: Task, code: i32, why: String) -> i32 {
    let Task { program: Program { path, .. }, from, stage, report, .. } = task;
    let line = json!(Failure { path, from, stage, why }).to_string() + "\n";
    let file = OpenOptions::new().append(true).create(true).open(&report);
    if let Err(error) = file.and_then(|mut file| file.write_all(line.as_bytes())) {
        complain(&format!("{}: {error}", report.display()));
    }
    code
}

/// Runs the hooks of a stage in the runtime's stead: `startContainer` under filters that slim itself has
/// loaded, and `poststop`. `env` is what a hook has that names none.
pub(in crate::runtime) fn run_all(
    hooks: &Value,
    state: &Value,
    env: &[String],
) -> Result<(), String> {
    let state = state.to_string();
    for hook in hooks.as_array().into_iter().flatten() {
        let hook: Program = serde_json::from_value(hook.clone()).map_err(|e| e.to_string())?;
        let (path, timeout) = (hook.path.clone(), seconds(&hook));
        let env: Vec<OsString> =
            hook.env.as_deref().unwrap_or(env).iter().map(OsString::from).collect();
        let failed = |why: String| format!("the hook {path}: {why}");
        let told = |error: io::Error| failed(error.to_string());
        let (input, writer) = pipe_with(PipeFlags::CLOEXEC).map_err(|e| told(e.into()))?;
        // what it says is none of the container's output
        let nowhere = OpenOptions::new().write(true).open("/dev/null").map_err(told)?;
        let child = process::fork(|| {
            let ready = rustix::stdio::dup2_stdin(&input)
                .and_then(|()| rustix::stdio::dup2_stdout(&nowhere))
                .map_err(io::Error::from);
            match ready.and_then(|()| signals::reset()) {
                Ok(()) => complain(&execute(&hook, &env)),
                Err(error) => complain(&error.to_string()),
            }
        });
        let child = child.map_err(told)?;
        drop(input);
        // a hook may end without reading it
        let _ = File::from(writer).write_all(state.as_bytes());
        wait_plainly(child, timeout).map_err(failed)?;
    }
    Ok(())
}

/// As [`attend`], with the few calls that the container's filter is bound to allow.
fn wait_plainly(child: Pid, timeout: Option<Duration>) -> Result<(), String> {
    let deadline = timeout.map(|timeout| Instant::now() + timeout);
    loop {
        let options = if deadline.is_some() { WaitOptions::NOHANG } else { WaitOptions::empty() };
        match rustix::process::waitpid(Some(child), options) {
            Ok(Some((_, status))) => {
                let ended = verdict(status.exit_status(), status.terminating_signal(), "");
                return ended.map_err(|(_, why)| why);
            }
            Ok(None) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.to_string()),
        }
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            let _ = rustix::process::kill_process(child, Signal::KILL);
            return Err(out_of_time(timeout));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn out_of_time(timeout: Option<Duration>) -> String {
    format!("it did not end within its timeout of {} s", timeout.unwrap_or_default().as_secs())
}

fn seconds(program: &Program) -> Option<Duration> {
    let seconds = program.timeout.and_then(|seconds| u64::try_from(seconds).ok());
    seconds.map(Duration::from_secs)
}

/// Runs a hook to its end; else an exit code and the reason.
fn run(task: &Task) -> Result<(), (i32, String)> {
    let fail = |what: &str| {
        let what = what.to_owned();
        move |error: io::Error| (CANNOT_EXECUTE, format!("{what}: {error}"))
    };
    let (complaints, theirs) =
        pipe_with(PipeFlags::CLOEXEC).map_err(|errno| fail("pipe")(errno.into()))?;
    let pair = |(key, value): (OsString, OsString)| {
        let mut pair = key;
        pair.push("=");
        pair.push(value);
        pair
    };
    let env: Vec<OsString> = std::env::vars_os().map(pair).collect();
    let child = process::fork(|| {
        let _ = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
        let ready = rustix::stdio::dup2_stderr(&theirs).map_err(io::Error::from);
        match ready.and_then(|()| signals::reset()).and_then(|()| watch(task)) {
            Ok(()) => complain(&execute(&task.program, &env)),
            Err(error) => complain(&error.to_string()),
        }
    });
    let child = child.map_err(fail("fork"))?;
    drop(theirs);
    attend(child, complaints, seconds(&task.program))
}

/// Loads the recorder's filter, where it works by one. Without it the hook would be run unseen: whoever
/// waits for the listener then learns that there is none.
fn watch(task: &Task) -> io::Result<()> {
    let Some(socket) = task.socket.as_ref().filter(|_| task.watch != Watch::Nothing) else {
        return Ok(());
    };
    // its calls are nobody's concern, its paths are
    let Some(lines) = Watch::Paths.program() else { return Ok(()) };
    let send = |fds: &[BorrowedFd<'_>]| {
        UnixStream::connect(socket).and_then(|peer| passing::send(&peer, MESSAGE, fds))
    };
    seccomp::load_and_hand_over(&lines, |listener| send(&[listener])).or_else(|_| send(&[]))
}

/// What comes with a hook's listener.
pub(in crate::runtime) const MESSAGE: &[u8] = b"hook";

/// Returns only on failure, with the reason.
fn execute(program: &Program, env: &[OsString]) -> String {
    let c = |bytes: &[u8]| CString::new(bytes);
    let words = match program.args.as_slice() {
        [] => std::slice::from_ref(&program.path),
        words => words,
    };
    let path = c(program.path.as_bytes());
    let argv: Result<Vec<_>, _> = words.iter().map(|word| c(word.as_bytes())).collect();
    let envp: Result<Vec<_>, _> = env.iter().map(|pair| c(pair.as_bytes())).collect();
    let (Ok(path), Ok(argv), Ok(envp)) = (path, argv, envp) else {
        return format!("{:?} or a word for it holds a NUL", program.path);
    };
    let Err(errno) = nix::unistd::execve(&path, &argv, &envp);
    format!("cannot execute {}: {}", program.path, errno.desc())
}

/// Waits for the hook's end and passes its complaints on; kills it when its time is over.
fn attend(child: Pid, complaints: OwnedFd, timeout: Option<Duration>) -> Result<(), (i32, String)> {
    let told = |errno: rustix::io::Errno| (CANNOT_EXECUTE, errno.to_string());
    let ended = rustix::process::pidfd_open(child, PidfdFlags::empty()).map_err(told)?;
    let deadline = timeout.map(|timeout| Instant::now() + timeout);
    let mut tail = Tail { pipe: complaints.into(), open: true, text: Vec::new() };
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            let _ = rustix::process::kill_process(child, Signal::KILL);
            let _ = rustix::process::waitpid(Some(child), WaitOptions::empty());
            return Err((TIMED_OUT, out_of_time(timeout)));
        }
        let over = wait_for(ended.as_fd(), &mut tail, left);
        if !over {
            continue;
        }
        while wait_for_more(&mut tail) {}
        let status = rustix::process::waitpid(Some(child), WaitOptions::empty()).map_err(told)?;
        let said = tail.last_line();
        return status.map_or(Ok(()), |(_, status)| {
            verdict(status.exit_status(), status.terminating_signal(), &said)
        });
    }
}

fn verdict(code: Option<i32>, signal: Option<i32>, said: &str) -> Result<(), (i32, String)> {
    match (code, signal) {
        (Some(0), _) => Ok(()),
        (Some(code), _) => Err((code, format!("it exited with {code}{said}"))),
        (_, signal) => {
            let signal = signal.unwrap_or(0);
            Err((128 + signal, format!("it was killed by signal {signal}{said}")))
        }
    }
}

/// The end of what a hook said on its standard error.
struct Tail {
    pipe: File,
    open: bool,
    text: Vec<u8>,
}

impl Tail {
    /// Takes in what is there.
    fn read(&mut self) {
        let mut buffer = [0; 4096];
        match self.pipe.read(&mut buffer) {
            Ok(count) if count > 0 => {
                let _ = io::stderr().write_all(&buffer[..count]);
                self.text.extend(&buffer[..count]);
                let excess = self.text.len().saturating_sub(TAIL);
                self.text.drain(..excess);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            _ => self.open = false,
        }
    }

    /// For the end of a sentence.
    fn last_line(&self) -> String {
        let line = crate::runtime::last_line(&self.text);
        line.map(|line| format!(" (its last line: {:?})", line.trim())).unwrap_or_default()
    }
}

/// Waits for the end or for complaints, which are taken in; true at the end.
fn wait_for(ended: BorrowedFd<'_>, tail: &mut Tail, left: Option<Duration>) -> bool {
    let left = left.and_then(|left| Timespec::try_from(left).ok());
    let pipe = tail.pipe.as_fd();
    let mut fds = [PollFd::new(&ended, PollFlags::IN), PollFd::new(&pipe, PollFlags::IN)];
    let fds = if tail.open { &mut fds[..] } else { &mut fds[..1] };
    if poll(fds, left.as_ref()).is_err() {
        return false; // EINTR
    }
    let over = !fds[0].revents().is_empty();
    if fds.get(1).is_some_and(|fd| !fd.revents().is_empty()) {
        tail.read();
    }
    over
}

/// Takes in what is left after the end, without waiting for children that hold the pipe.
fn wait_for_more(tail: &mut Tail) -> bool {
    let pipe = tail.pipe.as_fd();
    let mut fds = [PollFd::new(&pipe, PollFlags::IN)];
    let there = tail.open && poll(&mut fds, Some(&Timespec::default())).is_ok_and(|n| n > 0);
    if there {
        tail.read();
    }
    there
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hooks_outside_are_started_by_slim_and_those_inside_by_the_runtime() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = json!({});
        let program = Program {
            path: "/bin/x".into(),
            args: vec!["x".into(), "y".into()],
            env: Some(vec!["A=b".into()]),
            timeout: Some(3),
        };
        for stage in [Stage::Prestart, Stage::StartContainer] {
            super::super::add(&mut config, stage, &program, "x.json");
        }
        let report = dir.path().join("report");
        wrap(&mut config, dir.path(), &report, (Watch::Nothing, None)).unwrap();
        let file = dir.path().join("prestart-0.json");
        let wrapped = json!({ "path": PROGRAM, "env": ["A=b"], "args": [NAME, HIDDEN, file] });
        assert_eq!(config["hooks"]["prestart"], json!([wrapped]));
        assert_eq!(config["hooks"]["startContainer"], json!([program]));
        let task: Task = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
        assert_eq!((task.program.timeout, &task.from[..]), (Some(3), "x.json"));
        assert_eq!(programs(&config, Stage::StartContainer), ["/bin/x"]);
    }

    #[test]
    fn an_end_is_told_with_the_last_line() {
        let said = " (its last line: \"no\")";
        assert_eq!(verdict(Some(0), None, said), Ok(()));
        let failed = (3, format!("it exited with 3{said}"));
        assert_eq!(verdict(Some(3), None, said), Err(failed));
        let killed = (137, "it was killed by signal 9".into());
        assert_eq!(verdict(None, Some(9), ""), Err(killed));
    }
}
