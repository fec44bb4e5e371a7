//! A process in a running container (`docker exec`), for the embedded runtime: the same namespaces,
//! cgroups, user, limits, capabilities and seccomp filter as the container's own.
//!
//! libcontainer can do this too, but leaves out the seccomp filter.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

use libcontainer::capabilities;
use libcontainer::oci_spec::runtime::{LinuxCapabilities, LinuxSeccomp, Process};
use libcontainer::seccomp::initialize_seccomp;
use libcontainer::syscall::syscall::SyscallType;
use nix::errno::Errno;
use nix::unistd::{Gid, Uid};
use rustix::process::WaitOptions;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::Value;

use super::shim::{CANNOT_CREATE, Confine, Report, Reporter};
use crate::seccomp::Watch;
use crate::sys::{passing, process, seccomp, userns};

/// Runs `process` in the namespaces of `pid` and returns its exit code (128 + n for signal n).
pub(super) fn run(
    pid: i32,
    process: Value,
    seccomp: Option<Value>,
    watch: Watch,
    report: &Reporter,
) -> Result<i32, String> {
    let process: Process = serde_json::from_value(process).map_err(unread)?;
    let seccomp: Option<LinuxSeccomp> =
        seccomp.map(serde_json::from_value).transpose().map_err(unread)?;
    let spaces = Spaces::open(pid)?;
    spaces.enter(false)?;
    // The pid namespace takes effect for children only.
    let prepared = |report: &Reporter| {
        prepare(&spaces, &process)?;
        let nothing_new = process.no_new_privileges().unwrap_or(false);
        let caps = process.capabilities().as_ref();
        Bounds { watch, seccomp: seccomp.as_ref(), caps, nothing_new }.enter(report)
    };
    let child = process::fork(|| match prepared(report) {
        Err(why) => report.fail(CANNOT_CREATE, why),
        Ok(()) => {
            let args = process.args().clone().unwrap_or_default();
            let (code, why) = execute(&args, &process.env().clone().unwrap_or_default());
            report.fail(code, why)
        }
    });
    let child = child.map_err(|error| format!("fork: {error}"))?;
    report.say(&Report::Pid(child.as_raw_nonzero().get()));
    report.close();
    loop {
        match rustix::process::waitpid(Some(child), WaitOptions::empty()) {
            Ok(Some((_, status))) => {
                let signal = status.terminating_signal().map(|signal| 128 + signal);
                return Ok(status.exit_status().or(signal).unwrap_or(CANNOT_CREATE));
            }
            Ok(None) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(format!("waitpid: {error}")),
        }
    }
}

/// The namespaces of a container, open.
struct Spaces(Vec<(LinkNameSpaceType, &'static str, OwnedFd)>);

/// The mount namespace comes last: it takes the root directory with it.
const KINDS: [(LinkNameSpaceType, &str); 6] = [
    (LinkNameSpaceType::InterProcessCommunication, "ipc"),
    (LinkNameSpaceType::HostNameAndNISDomainName, "uts"),
    (LinkNameSpaceType::Network, "net"),
    (LinkNameSpaceType::ControlGroup, "cgroup"),
    (LinkNameSpaceType::ProcessID, "pid"),
    (LinkNameSpaceType::Mount, "mnt"),
];

impl Spaces {
    /// Opens those namespaces of `pid` that are not this process's too.
    fn open(pid: i32) -> Result<Self, String> {
        let mut spaces = Vec::new();
        for (kind, name) in KINDS {
            let path = format!("/proc/{pid}/ns/{name}");
            let gone = |error| format!("the container is not running: {path}: {error}");
            let file = File::open(&path).map_err(gone)?;
            let theirs = file.metadata().map_err(gone)?.ino();
            let ours = std::fs::metadata(format!("/proc/self/ns/{name}")).map_err(gone)?.ino();
            if theirs != ours {
                spaces.push((kind, name, file.into()));
            }
        }
        Ok(Self(spaces))
    }

    /// Enters the mount namespace, or all the others.
    fn enter(&self, mount: bool) -> Result<(), String> {
        for (kind, name, fd) in self.0.iter().filter(|(_, name, _)| (*name == "mnt") == mount) {
            move_into_link_name_space(fd.as_fd(), Some(*kind))
                .map_err(|error| format!("setns({name}): {error}"))?;
        }
        Ok(())
    }
}

/// Takes on the container's view and user, in the order that runc and libcontainer do it.
fn prepare(spaces: &Spaces, process: &Process) -> Result<(), String> {
    let syscall = SyscallType::Linux.create_syscall();
    let (user, cwd) = (process.user(), process.cwd());
    rustix::process::setsid().map_err(|error| format!("setsid: {error}"))?;
    process::close_others_on_exec().map_err(|error| format!("close_range: {error}"))?;
    for limit in process.rlimits().iter().flatten() {
        syscall.set_rlimit(limit).map_err(|error| format!("setrlimit({limit:?}): {error}"))?;
    }
    spaces.enter(true)?;
    rustix::process::chdir(cwd).map_err(|error| format!("chdir({cwd:?}): {error}"))?;
    let groups: Vec<Gid> =
        user.additional_gids().iter().flatten().map(|gid| Gid::from_raw(*gid)).collect();
    if !groups.is_empty() || !userns::setgroups_denied() {
        nix::unistd::setgroups(&groups)
            .map_err(|error| format!("setgroups({groups:?}): {error}"))?;
    }
    become_user(user.uid(), user.gid())?;
    capabilities::reset_effective(syscall.as_ref())
        .map_err(|error| format!("capabilities: {error}"))
}

fn unread(error: serde_json::Error) -> String {
    format!("process of the runtime configuration: {error}")
}

/// Does for the container's init what its configuration was kept from asking of libcontainer.
pub(super) fn confine_init(
    confine: &Confine,
    process: &Process,
    report: &Reporter,
) -> Result<(), String> {
    let seccomp: Option<LinuxSeccomp> =
        confine.seccomp.clone().map(serde_json::from_value).transpose().map_err(unread)?;
    let caps: Option<LinuxCapabilities> =
        confine.capabilities.clone().map(serde_json::from_value).transpose().map_err(unread)?;
    let nothing_new = process.no_new_privileges().unwrap_or(false);
    let (seccomp, caps) = (seccomp.as_ref(), caps.as_ref());
    Bounds { watch: confine.watch, seccomp, caps, nothing_new }.enter(report)
}

/// The last steps before an exec: filters and capabilities.
struct Bounds<'a> {
    watch: Watch,
    seccomp: Option<&'a LinuxSeccomp>,
    caps: Option<&'a LinuxCapabilities>,
    nothing_new: bool,
}

impl Bounds<'_> {
    fn enter(&self, report: &Reporter) -> Result<(), String> {
        // First: the container's own filter may refuse what loading this one and handing it over take.
        self.notify(report)?;
        // Without no-new-privileges, loading a filter takes CAP_SYS_ADMIN, which goes next.
        if !self.nothing_new {
            load(self.seccomp)?;
        }
        if let Some(set) = self.caps {
            let syscall = SyscallType::Linux.create_syscall();
            capabilities::drop_privileges(set, syscall.as_ref())
                .map_err(|error| format!("capabilities: {error}"))?;
        }
        if self.nothing_new {
            rustix::thread::set_no_new_privs(true).map_err(|error| format!("prctl: {error}"))?;
            load(self.seccomp)?;
        }
        Ok(())
    }

    fn notify(&self, report: &Reporter) -> Result<(), String> {
        let Some(lines) = self.watch.program() else { return Ok(()) };
        let socket = report.socket().ok_or("the report is closed already")?;
        let message = serde_json::to_vec(&Report::Listener).unwrap_or_default();
        let hand_over = |listener: BorrowedFd<'_>| passing::send(&socket, &message, &[listener]);
        seccomp::load_and_hand_over(&lines, hand_over)
            .map_err(|error| format!("the recorder's seccomp filter: {error}"))
    }
}

fn become_user(uid: u32, gid: u32) -> Result<(), String> {
    let (user, group) = (Uid::from_raw(uid), Gid::from_raw(gid));
    let told = |error: Errno| format!("cannot become user {uid}, group {gid}: {error}");
    let keep = |on| {
        rustix::thread::set_keep_capabilities(on)
            .map_err(|e| told(Errno::from_raw(e.raw_os_error())))
    };
    keep(true)?;
    nix::unistd::setresgid(group, group, group).map_err(told)?;
    nix::unistd::setresuid(user, user, user).map_err(told)?;
    keep(false)
}

fn load(seccomp: Option<&LinuxSeccomp>) -> Result<(), String> {
    let Some(seccomp) = seccomp else { return Ok(()) };
    initialize_seccomp(seccomp).map(drop).map_err(|error| format!("seccomp: {error}"))
}

/// Executes `args` with `env`, looking for the program along PATH as runc does. Returns only on
/// failure: the exit code that Docker gives (127 not found, 126 not executable) and the reason.
pub(super) fn execute(args: &[String], env: &[String]) -> (i32, String) {
    let Some(name) = args.first() else { return (127, "no command given".into()) };
    let c = |texts: &[String]| texts.iter().map(|t| CString::new(t.as_str())).collect();
    let (argv, envp): (Result<Vec<_>, _>, Result<Vec<_>, _>) = (c(args), c(env));
    let (Ok(argv), Ok(envp)) = (argv, envp) else { return (126, "a word holds a NUL".into()) };
    let mut worst = Errno::ENOENT;
    for path in candidates(name, env) {
        let Ok(path) = CString::new(path) else { continue };
        let Err(errno) = nix::unistd::execve(&path, &argv, &envp);
        match errno {
            Errno::ENOENT | Errno::ENOTDIR => {}
            // As execvp(3): a denied candidate does not end the search, but is remembered.
            Errno::EACCES => worst = errno,
            errno => return (126, format!("exec {name:?}: {}", errno.desc())),
        }
    }
    match worst {
        Errno::ENOENT if !name.contains('/') => {
            (127, format!("exec {name:?}: executable file not found in $PATH"))
        }
        Errno::ENOENT => (127, format!("exec {name:?}: no such file or directory")),
        errno => (126, format!("exec {name:?}: {}", errno.desc().to_lowercase())),
    }
}

/// The paths that a command name stands for.
fn candidates(name: &str, env: &[String]) -> Vec<String> {
    if name.contains('/') {
        return vec![name.to_owned()];
    }
    let path = env.iter().rev().find_map(|pair| pair.strip_prefix("PATH="));
    let dirs = path.unwrap_or("/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    let join = |dir: &str| if dir.is_empty() { name.to_owned() } else { format!("{dir}/{name}") };
    dirs.split(':').map(join).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_name_is_looked_for_along_the_last_path() {
        let env = ["PATH=/a".to_owned(), "PATH=/b:/c".to_owned()];
        assert_eq!(candidates("x", &env), ["/b/x", "/c/x"]);
        assert_eq!(candidates("./x", &env), ["./x"]);
    }

    #[test]
    fn a_command_that_is_not_there_gives_127_and_one_that_may_not_run_126() {
        let none: [String; 0] = [];
        assert_eq!(execute(&["no-such-command".into()], &none).0, 127);
        assert_eq!(execute(&["/no/such/command".into()], &none).0, 127);
        assert_eq!(execute(&["/etc/passwd".into()], &none).0, 126);
        assert_eq!(execute(&["/etc".into()], &none).0, 126);
    }
}
