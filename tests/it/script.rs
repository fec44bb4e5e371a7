//! The script's end is the end of all that it started. Needs root only where it says so.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use slim::runtime::script::{Script, run_script};
use slim::runtime::{Ended, RuntimeError, ScriptEnd};

use crate::support::{Need, cgroup2, have};

const PATIENCE: Duration = Duration::from_secs(10);

/// A folder with a shell script.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new(text: &str) -> Self {
        use std::os::unix::fs::PermissionsExt;
        let folder = Self(tempfile::tempdir().expect("a folder"));
        std::fs::write(folder.path("run"), text).expect("a script");
        let mode = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(folder.path("run"), mode).expect("a mode");
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn argv(&self) -> Vec<OsString> {
        [self.path("run"), self.0.path().to_owned()].map(OsString::from).to_vec()
    }

    /// Waits until the script has written its processes' ids here, one a line.
    fn pids(&self, number: usize) -> Vec<String> {
        let started = Instant::now();
        loop {
            let text = std::fs::read_to_string(self.path("pids")).unwrap_or_default();
            let pids: Vec<String> = text.lines().map(str::to_owned).collect();
            if pids.len() >= number && text.ends_with('\n') {
                return pids;
            }
            assert!(started.elapsed() < PATIENCE, "the script did not start: {text:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

fn alive(pid: &str) -> bool {
    // A zombie's command line is empty; its parent here may be the machine's init.
    std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| !line.is_empty())
}

fn run(
    argv: &[OsString],
    timeout: Option<Duration>,
    cgroup: Option<&Path>,
    interrupted: &dyn Fn() -> bool,
) -> Result<ScriptEnd, RuntimeError> {
    let env = BTreeMap::from([("SLIM_PORT".to_owned(), "8080".to_owned())]);
    let program = Some(Path::new(env!("CARGO_BIN_EXE_slim")));
    let script = Script { argv, env: &env, timeout, cgroup, mount_ns: None, netns: None, program };
    run_script(&script, interrupted)
}

/// A child, a grandchild and a daemon in a session of its own that ignores SIGTERM and SIGHUP.
const FAMILY: &str = "#!/bin/sh\n\
    (sleep 1000 & echo $! >> $1/pids; wait) &\n\
    setsid sh -c 'trap \"\" TERM HUP; echo $$ >> '$1'/pids; while :; do sleep 1000; done' &\n\
    echo $$ >> $1/pids\n";

#[test]
fn the_status_and_the_environment_pass() {
    let folder = Folder::new("#!/bin/sh\n[ \"$SLIM_PORT\" = 8080 ] && ! read x && exit 7\n");
    let end = run(&folder.argv(), None, None, &|| false).expect("an end");
    assert_eq!(end, ScriptEnd::Ended(Ended::Exited(7)));
    let folder = Folder::new("#!/bin/sh\nkill -9 $$\n");
    let end = run(&folder.argv(), None, None, &|| false).expect("an end");
    assert_eq!(end, ScriptEnd::Ended(Ended::Killed(9)));
}

#[test]
fn a_time_out_kills_the_whole_family() {
    let folder = Folder::new(&format!("{FAMILY}while :; do sleep 1000; done\n"));
    let end = run(&folder.argv(), Some(Duration::from_secs(1)), None, &|| false).expect("an end");
    assert_eq!(end, ScriptEnd::TimedOut);
    assert_eq!(folder.pids(3).iter().filter(|pid| alive(pid)).count(), 0);
}

#[test]
fn an_interrupt_leaves_time_for_a_trap() {
    let folder = Folder::new(
        "#!/bin/sh\ntrap 'echo bye > $1/bye; exit 1' TERM\n: > $1/up\n\
                              while :; do sleep 0.1; done\n",
    );
    let up = || folder.path("up").exists();
    let end = run(&folder.argv(), Some(PATIENCE), None, &up).expect("an end");
    assert_eq!(end, ScriptEnd::Interrupted);
    assert!(folder.path("bye").exists());
}

#[test]
fn what_a_script_leaves_behind_ends_with_it() {
    let folder = Folder::new(&format!("{FAMILY}while [ $(wc -l < $1/pids) -lt 3 ]; do :; done\n"));
    let end = run(&folder.argv(), Some(PATIENCE), None, &|| false).expect("an end");
    assert_eq!(end, ScriptEnd::Ended(Ended::Exited(0)));
    assert_eq!(folder.pids(3).iter().filter(|pid| alive(pid)).count(), 0);
}

#[test]
fn a_cgroup_is_entered_and_removed() {
    if !have(&[Need::Root, Need::Cgroup2]) {
        return;
    }
    let root = cgroup2().expect("a cgroup v2 mount");
    let name = format!("slim-test-{}-script", std::process::id());
    let folder = Folder::new("#!/bin/sh\ngrep ^0: /proc/self/cgroup > $1/cgroup\n");
    let cgroup = root.join(&name);
    let end = run(&folder.argv(), Some(PATIENCE), Some(&cgroup), &|| false).expect("an end");
    assert_eq!(end, ScriptEnd::Ended(Ended::Exited(0)));
    let text = std::fs::read_to_string(folder.path("cgroup")).expect("the script's cgroup");
    assert!(text.trim().ends_with(&name), "{text}");
    assert!(!cgroup.exists());
}

#[test]
fn a_script_that_cannot_run_is_a_usage_error() {
    let folder = Folder::new("#!/no/such/interpreter\n");
    let error = run(&folder.argv(), None, None, &|| false).expect_err("no interpreter");
    let text = error.to_string();
    assert!(matches!(&error, RuntimeError::Option { option, .. } if option == "SCRIPT"), "{text}");
    assert!(text.contains("the interpreter /no/such/interpreter"), "{text}");
    let error = run(&["/no/such".into()], None, None, &|| false).expect_err("no script");
    assert_eq!(error.to_string(), "SCRIPT \"/no/such\": no such file");
}

/// The supervisor's other end is a process that is killed with SIGKILL, as slim may be.
#[test]
fn kill_9_of_slim_ends_the_script() {
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;
    let folder = Folder::new(&format!("{FAMILY}while :; do sleep 1000; done\n"));
    let (ours, theirs) = UnixStream::pair().expect("a socket");
    // Stands for slim: holds the socket's only other end as its stdin.
    let mut slim = Command::new("sleep")
        .arg("1000")
        .stdin(Stdio::from(OwnedFd::from(ours)))
        .spawn()
        .expect("a stand-in");
    let mut supervisor = Command::new(env!("CARGO_BIN_EXE_slim"));
    supervisor.args(["__slim-script", "", "", "", "/"]).args(folder.argv());
    supervisor.stdin(Stdio::from(OwnedFd::from(theirs)));
    let mut supervisor = {
        let mut command = supervisor;
        command.spawn().expect("a supervisor")
    };
    let pids = folder.pids(3);
    assert!(pids.iter().all(|pid| alive(pid)));
    slim.kill().expect("killed");
    slim.wait().expect("reaped");
    let killed = Instant::now();
    let gone = AtomicBool::new(false);
    while killed.elapsed() < PATIENCE && !gone.load(Ordering::Relaxed) {
        gone.store(!pids.iter().any(|pid| alive(pid)), Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(10));
    }
    let took = killed.elapsed();
    supervisor.wait().expect("reaped");
    assert!(gone.into_inner() && took < Duration::from_secs(2), "{took:?}");
}
