//! Containers on the real kernel: start, exec, fresh containers, stop, restart, and that everything
//! dies with slim. Needs root, cgroup2, a static busybox; runc and crun where they are installed.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use slim::model::ImageConfig;
use slim::runtime::{
    self, Cell, Ended, Network, Observer, Pod, PodSpec, Readiness, Ready, RunOptions, RuntimeKind,
    Work,
};

use crate::support::{Need, have};

const NEEDS: [Need; 2] = [Need::Root, Need::Program("busybox")];

/// Writes down what the runtime tells an observer.
#[derive(Default)]
struct Notes(Mutex<Vec<String>>);

impl Observer for Notes {
    fn mounted(&self, root: &Path) -> Result<(), String> {
        assert!(root.join("bin/busybox").exists(), "the overlay is reachable from here");
        self.0.lock().unwrap().push("mounted".into());
        Ok(())
    }

    fn leaf(&self, cgroup: &Path, work: Work) -> Result<(), String> {
        let procs = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap();
        assert_eq!(procs, "", "nothing runs in a leaf before the observer knows it");
        self.0.lock().unwrap().push(format!("{work:?}"));
        Ok(())
    }
}

/// A run with a busybox image of two layers.
struct Fixture {
    dir: tempfile::TempDir,
    cell: Cell,
    notes: Arc<Notes>,
}

impl Fixture {
    fn new() -> Self {
        runtime::set_program(env!("CARGO_BIN_EXE_slim").into());
        let dir = tempfile::tempdir().unwrap();
        let (low, high) = (dir.path().join("low"), dir.path().join("high"));
        for part in ["bin", "tmp", "etc", "proc", "dev", "sys"] {
            fs::create_dir_all(low.join(part)).unwrap();
        }
        let busybox =
            ["/bin", "/usr/bin", "/usr/local/bin"].map(|dir| Path::new(dir).join("busybox"));
        let busybox = busybox.into_iter().find(|path| path.exists()).unwrap();
        fs::copy(busybox, low.join("bin/busybox")).unwrap();
        let applets =
            ["sh", "cat", "sleep", "id", "true", "false", "kill", "env", "pwd", "nc", "test"];
        for applet in applets {
            symlink("busybox", low.join("bin").join(applet)).unwrap();
        }
        fs::write(low.join("etc/passwd"), "root:x:0:0::/:/bin/sh\nnobody:x:65534:65534::/:\n")
            .unwrap();
        fs::write(low.join("etc/group"), "root:x:0:\nnogroup:x:65534:\n").unwrap();
        fs::create_dir_all(high.join("etc")).unwrap();
        fs::write(high.join("etc/motd"), "from the upper layer\n").unwrap();
        let cell = Cell::enter().unwrap();
        Self { dir, cell, notes: Arc::default() }
    }

    fn spec(&self, name: &str, config: serde_json::Value) -> PodSpec {
        let run_dir = self.dir.path().join(name);
        fs::create_dir_all(&run_dir).unwrap();
        PodSpec {
            id: format!("slim-test{}{name}", std::process::id()),
            image_name: "test".into(),
            config: ImageConfig(serde_json::json!({ "config": config })),
            lowers: vec![self.dir.path().join("low"), self.dir.path().join("high")],
            log: run_dir.join("container.log"),
            run_dir,
            options: RunOptions::default(),
            network: Network::Host,
            runtime: RuntimeKind::Embedded,
            seccomp: Some(refuse("mkdirat")),
            watch: slim::seccomp::Watch::Nothing,
            observer: Arc::clone(&self.notes) as Arc<dyn Observer>,
        }
    }

    fn pod(&self, name: &str, config: serde_json::Value) -> Pod {
        Pod::create(&self.cell, self.spec(name, config)).unwrap()
    }
}

/// A filter that allows all but one call.
fn refuse(call: &str) -> serde_json::Value {
    serde_json::json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [
            { "names": [call, "mkdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 77 },
        ],
    })
}

fn command(words: &[&str]) -> serde_json::Value {
    serde_json::json!({ "Cmd": words, "Env": ["PATH=/bin", "GREETING=hello"], "WorkingDir": "/tmp" })
}

fn wait_end(pod: &Pod) -> Ended {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(ended) = pod.ended() {
            return ended;
        }
        assert!(Instant::now() < deadline, "the container does not end");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Runs SLIM_EXEC or SLIM_RUN as a script would.
fn call(pod: &Pod, prefix: &str, words: &[&str], input: &str) -> Output {
    let env = pod.script_env(Duration::from_secs(60));
    let prefix: Vec<&str> = env[prefix].split(' ').collect();
    let mut child = Command::new(prefix[0])
        .args(&prefix[1..])
        .args(words)
        .current_dir("/proc")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn check_a_run(kind: RuntimeKind, name: &str) {
    let fixture = Fixture::new();
    let script = "echo out; echo err >&2; cat /etc/motd; echo $GREETING >> /tmp/made; pwd; exit 3";
    let mut spec = fixture.spec(name, command(&["sh", "-c", script]));
    spec.runtime = kind;
    let log = spec.log.clone();
    let pod = Pod::create(&fixture.cell, spec).unwrap();
    assert_eq!(*fixture.notes.0.lock().unwrap(), ["Main", "mounted"]);
    pod.start().unwrap();
    assert_eq!(wait_end(&pod), Ended::Exited(3));
    assert_eq!(pod.stop().unwrap(), Ended::Exited(3));
    let log = fs::read_to_string(log).unwrap();
    for line in ["out", "err", "from the upper layer", "/tmp"] {
        assert!(log.lines().any(|l| l == line), "{line} in {log:?}");
    }
    let made = pod.uppers()[0].join("tmp/made");
    assert_eq!(fs::read_to_string(&made).unwrap(), "hello\n");
    // A restart finds the same writable layer.
    pod.start().unwrap();
    assert_eq!(wait_end(&pod), Ended::Exited(3));
    assert_eq!(fs::read_to_string(made).unwrap(), "hello\nhello\n");
    pod.destroy();
}

fn check_exec(kind: RuntimeKind, name: &str) {
    let fixture = Fixture::new();
    let mut spec = fixture.spec(name, command(&["sleep", "100"]));
    spec.runtime = kind;
    spec.options.user = Some("65534:65534".into());
    spec.options.stop_timeout = Some(0);
    let pod = Pod::create(&fixture.cell, spec).unwrap();
    pod.start().unwrap();
    let exec = |words: &[&str], input: &str| call(&pod, "SLIM_EXEC", words, input);
    let output =
        exec(&["sh", "-c", "cat; id -u; echo $GREETING; pwd; echo oops >&2; exit 7"], "in\n");
    assert_eq!(text(&output.stdout), "in\n65534\nhello\n/tmp\n");
    assert_eq!(text(&output.stderr), "oops\n");
    assert_eq!(output.status.code(), Some(7));
    let pids = exec(&["sh", "-c", "cat /proc/1/comm; test -e /proc/1/root/etc/motd; echo $?"], "");
    assert_eq!(text(&pids.stdout), "sleep\n0\n");
    assert_eq!(exec(&["no-such-command"], "").status.code(), Some(127));
    assert_eq!(exec(&["/etc/motd"], "").status.code(), Some(126));
    assert_eq!(exec(&["sh", "-c", "kill -9 $$"], "").status.code(), Some(137));
    let refused = exec(&["busybox", "mkdir", "/tmp/x"], "");
    assert_eq!(refused.status.code(), Some(1), "the container's filter holds for exec");
    assert!(text(&refused.stderr).contains("File descriptor in bad state"), "{refused:?}"); // 77
    std::thread::scope(|scope| {
        let several: Vec<_> = (0..4)
            .map(|n| scope.spawn(move || (n, exec(&["sh", "-c", &format!("echo {n}")], ""))))
            .collect();
        for handle in several {
            let (n, output) = handle.join().unwrap();
            assert_eq!(text(&output.stdout), format!("{n}\n"));
        }
    });
    assert_eq!(pod.stop().unwrap(), Ended::Killed(9));
    assert!(fixture.notes.0.lock().unwrap().contains(&"Exec".to_owned()));
    assert_eq!(
        exec(&["true"], "").status.code(),
        Some(125),
        "a container that ended takes no exec"
    );
    pod.destroy();
}

fn check_fresh_containers(kind: RuntimeKind, name: &str) {
    let fixture = Fixture::new();
    let mut config = command(&["sleep", "100"]);
    config["Entrypoint"] = serde_json::json!(["env", "EXTRA=1"]);
    let mut spec = fixture.spec(name, config);
    spec.runtime = kind;
    spec.options.stop_timeout = Some(0);
    let pod = Pod::create(&fixture.cell, spec).unwrap();
    pod.start().unwrap();
    let run = |words: &[&str], input: &str| call(&pod, "SLIM_RUN", words, input);
    let output = run(&["sh", "-c", "cat; echo $EXTRA $GREETING; > /tmp/fresh; exit 5"], "in\n");
    assert_eq!(text(&output.stdout), "in\n1 hello\n", "{output:?}");
    assert_eq!(output.status.code(), Some(5));
    let again = run(&["test", "-e", "/tmp/fresh"], "");
    assert_eq!(again.status.code(), Some(1), "each has a writable layer of its own");
    // The entrypoint, env, was found and looks for the command itself.
    assert_eq!(run(&["no-such-command"], "").status.code(), Some(127));
    assert_eq!(run(&["sh", "-c", "kill -9 $$; kill -TERM $$; exit 4"], "").status.code(), Some(4));
    assert_eq!(pod.uppers().len(), 5);
    pod.stop().unwrap();
    pod.destroy();
}

#[test]
fn a_container_runs_and_restarts() {
    if have(&NEEDS) {
        check_a_run(RuntimeKind::Embedded, "run");
    }
}

#[test]
fn a_container_runs_and_restarts_under_runc() {
    if have(&NEEDS) && have(&[Need::Program("runc")]) {
        check_a_run(RuntimeKind::Runc, "runc");
    }
}

#[test]
fn a_container_runs_and_restarts_under_crun() {
    if have(&NEEDS) && have(&[Need::Program("crun")]) {
        check_a_run(RuntimeKind::Crun, "crun");
    }
}

#[test]
fn exec_has_the_semantics_of_docker_exec() {
    if have(&NEEDS) {
        check_exec(RuntimeKind::Embedded, "exec");
    }
}

#[test]
fn exec_has_the_semantics_of_docker_exec_under_runc() {
    if have(&NEEDS) && have(&[Need::Program("runc")]) {
        check_exec(RuntimeKind::Runc, "execrunc");
    }
}

#[test]
fn exec_has_the_semantics_of_docker_exec_under_crun() {
    if have(&NEEDS) && have(&[Need::Program("crun")]) {
        check_exec(RuntimeKind::Crun, "execcrun");
    }
}

#[test]
fn a_fresh_container_has_the_semantics_of_docker_run() {
    if have(&NEEDS) {
        check_fresh_containers(RuntimeKind::Embedded, "fresh");
    }
}

#[test]
fn a_fresh_container_has_the_semantics_of_docker_run_under_runc() {
    if have(&NEEDS) && have(&[Need::Program("runc")]) {
        check_fresh_containers(RuntimeKind::Runc, "freshrunc");
    }
}

#[test]
fn a_fresh_container_has_the_semantics_of_docker_run_under_crun() {
    if have(&NEEDS) && have(&[Need::Program("crun")]) {
        check_fresh_containers(RuntimeKind::Crun, "freshcrun");
    }
}

#[test]
fn the_stop_signal_is_sent_and_after_the_timeout_sigkill() {
    if !have(&NEEDS) {
        return;
    }
    let fixture = Fixture::new();
    let mut config =
        command(&["sh", "-c", "trap 'exit 9' USR1; echo up; while :; do sleep 0.1; done"]);
    config["StopSignal"] = "SIGUSR1".into();
    let pod = fixture.pod("signal", config);
    pod.start().unwrap();
    let up = Ready::Log(regex::Regex::new("^up$").unwrap());
    let ready = pod.wait_ready(&up, Duration::from_secs(20), &|| true).unwrap();
    assert_eq!(ready, Readiness::Ready);
    assert_eq!(pod.stop().unwrap(), Ended::Exited(9));
    pod.destroy();

    let mut spec = fixture.spec("stubborn", command(&["sleep", "100"]));
    spec.options.stop_timeout = Some(1);
    let pod = Pod::create(&fixture.cell, spec).unwrap();
    pod.start().unwrap();
    let before = Instant::now();
    assert_eq!(pod.stop().unwrap(), Ended::Killed(9), "pid 1 ignores an unhandled SIGTERM");
    assert!(before.elapsed() >= Duration::from_millis(900));
    pod.destroy();
}

#[test]
fn health_checks_run_and_are_timed() {
    if !have(&NEEDS) {
        return;
    }
    let fixture = Fixture::new();
    let mut config = command(&["sleep", "100"]);
    config["Healthcheck"] = serde_json::json!({ "Test": ["CMD-SHELL", "test -e /tmp/well"] });
    let mut spec = fixture.spec("health", config);
    spec.options.stop_timeout = Some(0);
    let pod = Pod::create(&fixture.cell, spec).unwrap();
    pod.start().unwrap();
    assert_eq!(pod.health().unwrap(), Some(Ended::Exited(1)));
    assert_eq!(call(&pod, "SLIM_EXEC", &["sh", "-c", "> /tmp/well"], "").status.code(), Some(0));
    let ready = pod.wait_ready(&Ready::Healthy, Duration::from_secs(10), &|| false).unwrap();
    assert_eq!(ready, Readiness::Ready);
    pod.destroy();

    let mut config = command(&["sleep", "100"]);
    let second: u64 = 1_000_000_000;
    config["Healthcheck"] =
        serde_json::json!({ "Test": ["CMD", "sleep", "50"], "Timeout": second });
    let pod = fixture.pod("slow", config);
    pod.start().unwrap();
    let before = Instant::now();
    assert_eq!(pod.health().unwrap(), Some(Ended::Killed(9)));
    assert!(before.elapsed() < Duration::from_secs(10));
    pod.destroy();
}

#[test]
fn an_entrypoint_that_is_not_there_is_told() {
    if !have(&NEEDS) {
        return;
    }
    let fixture = Fixture::new();
    let pod = fixture.pod("missing", command(&["/no/such/program"]));
    let error = pod.start().unwrap_err();
    assert!(matches!(error, runtime::RuntimeError::Container { .. }), "{error}");
    assert!(error.to_string().contains("/no/such/program"), "{error}");
    pod.destroy();
}

#[test]
fn a_terminal_is_given_and_its_output_logged() {
    if !have(&NEEDS) {
        return;
    }
    for (kind, name) in [(RuntimeKind::Embedded, "tty"), (RuntimeKind::Runc, "ttyrunc")] {
        let fixture = Fixture::new();
        let script = "test -t 0 && test -t 1 && test -c /dev/console && echo terminal";
        let mut spec = fixture.spec(name, command(&["sh", "-c", script]));
        (spec.runtime, spec.options.tty) = (kind, true);
        let log = spec.log.clone();
        let pod = Pod::create(&fixture.cell, spec).unwrap();
        pod.start().unwrap();
        assert_eq!(wait_end(&pod), Ended::Exited(0));
        pod.stop().unwrap();
        assert!(fs::read_to_string(log).unwrap().contains("terminal"));
        pod.destroy();
    }
}

#[test]
fn stdin_is_held_open_with_i_and_empty_without() {
    if !have(&NEEDS) {
        return;
    }
    let fixture = Fixture::new();
    let pod = fixture.pod("closed", command(&["cat"]));
    pod.start().unwrap();
    assert_eq!(wait_end(&pod), Ended::Exited(0));
    pod.destroy();
    let mut spec = fixture.spec("open", command(&["cat"]));
    (spec.options.interactive, spec.options.stop_timeout) = (true, Some(0));
    let pod = Pod::create(&fixture.cell, spec).unwrap();
    pod.start().unwrap();
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(pod.ended(), None);
    pod.destroy();
}

#[test]
fn a_user_who_is_not_root_may_open_dev_stdout() {
    if !have(&NEEDS) {
        return;
    }
    let fixture = Fixture::new();
    let mut spec = fixture.spec("stdout", command(&["sh", "-c", "echo opened > /proc/self/fd/1"]));
    spec.options.user = Some("65534:65534".into());
    let log = spec.log.clone();
    let pod = Pod::create(&fixture.cell, spec).unwrap();
    pod.start().unwrap();
    assert_eq!(wait_end(&pod), Ended::Exited(0));
    pod.stop().unwrap();
    assert_eq!(fs::read_to_string(log).unwrap(), "opened\n");
    pod.destroy();
}

#[test]
fn an_overlay_of_240_layers_mounts() {
    if !have(&NEEDS) {
        return;
    }
    let fixture = Fixture::new();
    let mut spec = fixture.spec("layers", command(&["cat", "/l/1", "/l/237", "/etc/motd"]));
    for number in 0..238 {
        let layer =
            fixture.dir.path().join(format!("a-layer-with-quite-a-long-name-{number:0>60}"));
        fs::create_dir_all(layer.join("l")).unwrap();
        fs::write(layer.join(format!("l/{number}")), "x").unwrap();
        spec.lowers.push(layer);
    }
    let log = spec.log.clone();
    let pod = Pod::create(&fixture.cell, spec).unwrap();
    pod.start().unwrap();
    assert_eq!(wait_end(&pod), Ended::Exited(0));
    pod.stop().unwrap();
    assert_eq!(fs::read_to_string(log).unwrap(), "xxfrom the upper layer\n");
    pod.destroy();
}

#[test]
fn two_pods_live_side_by_side() {
    if !have(&NEEDS) {
        return;
    }
    let (one, other) = (Fixture::new(), Fixture::new());
    assert_ne!(one.cell.cgroup(), other.cell.cgroup());
    let pods =
        [one.pod("one", command(&["sleep", "100"])), other.pod("two", command(&["sleep", "100"]))];
    for pod in &pods {
        pod.start().unwrap();
    }
    for pod in &pods {
        let output = call(pod, "SLIM_EXEC", &["sh", "-c", "> /tmp/mine; echo /tmp/*"], "");
        assert_eq!(text(&output.stdout), "/tmp/mine\n");
    }
    let cgroups =
        [one.cell.cgroup().unwrap().to_path_buf(), other.cell.cgroup().unwrap().to_path_buf()];
    pods.into_iter().for_each(Pod::destroy);
    drop((one, other));
    for cgroup in cgroups {
        assert!(!cgroup.exists(), "{cgroup:?} is removed");
    }
}

/// Not a test of its own: what [`nothing_outlives_a_killed_slim`] starts in a process and kills.
#[test]
fn a_pod_that_waits_to_be_killed() {
    let Some(ready) = std::env::var_os("SLIM_TEST_KILLED") else { return };
    let fixture = Fixture::new();
    let pod = fixture.pod("killed", command(&["sh", "-c", "sleep 1000 & sleep 1000"]));
    pod.start().unwrap();
    let background = "sleep 1000 & sleep 1000";
    std::thread::scope(|scope| {
        scope.spawn(|| call(&pod, "SLIM_EXEC", &["sh", "-c", background], ""));
        std::thread::sleep(Duration::from_millis(500));
        let known: BTreeMap<&str, String> = [
            ("cgroup", fixture.cell.cgroup().unwrap().to_string_lossy().into_owned()),
            ("dir", fixture.dir.path().to_string_lossy().into_owned()),
        ]
        .into();
        fs::write(&ready, serde_json::to_vec(&known).unwrap()).unwrap();
        loop {
            std::thread::sleep(Duration::from_secs(1));
        }
    });
}

#[test]
fn nothing_outlives_a_killed_slim() {
    if !have(&NEEDS) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let ready = dir.path().join("ready");
    let mut slim = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "container::a_pod_that_waits_to_be_killed", "--nocapture"])
        .env("SLIM_TEST_KILLED", &ready)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    while !ready.exists() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(50));
    }
    std::thread::sleep(Duration::from_millis(100));
    let known: BTreeMap<String, String> =
        serde_json::from_slice(&fs::read(&ready).expect("the pod is up")).unwrap();
    let cgroup = PathBuf::from(&known["cgroup"]);
    assert!(processes_below(&cgroup) >= 4, "{}", processes_below(&cgroup));
    slim.kill().unwrap();
    slim.wait().unwrap();
    let killed = Instant::now();
    while processes_below(&cgroup) > 0 || mounts_of(&known["dir"]) > 0 {
        assert!(killed.elapsed() < GONE, "something outlives slim");
        std::thread::sleep(Duration::from_millis(10));
    }
    // What may stay: empty cgroups and the socket, which the next clean-up removes.
    let name = cgroup.file_name().unwrap().to_string_lossy().into_owned();
    // Another test's clean-up may have come first.
    let removed = runtime::clean_leftovers().unwrap();
    assert!(!cgroup.exists(), "{name} is still there; removed were {removed:?}");
    let _ = fs::remove_dir_all(&known["dir"]);
}

/// When nothing of a killed slim may be there any more. Whoever was the last to see an overlay syncs the
/// file system below it before it is gone: on a busy disk that takes its time.
const GONE: Duration = Duration::from_secs(20);

/// Whatever slim is at, from its first instant to a pod with an exec in it.
#[test]
fn nothing_outlives_a_slim_killed_at_any_moment() {
    if !have(&NEEDS) {
        return;
    }
    let rounds = std::env::var("SLIM_TEST_KILLS").map_or(8, |text| text.parse().unwrap());
    for round in 0..rounds {
        let dir = tempfile::tempdir().unwrap();
        let mut slim = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "container::a_pod_that_waits_to_be_killed"])
            .env("SLIM_TEST_KILLED", dir.path().join("ready"))
            .env("TMPDIR", dir.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(10 + 700 * round / rounds));
        let pid = i32::try_from(slim.id()).unwrap();
        let pid = rustix::process::Pid::from_raw(pid).unwrap();
        // Held still, so that the list of its descendants is the whole list when it is killed.
        rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
        let family = descendants(slim.id());
        slim.kill().unwrap();
        slim.wait().unwrap();
        let killed = Instant::now();
        let name = dir.path().to_string_lossy().into_owned();
        let alive =
            || family.iter().filter(|pid| Path::new(&format!("/proc/{pid}")).exists()).count();
        while alive() > 0 || mounts_of(&name) > 0 {
            let late = killed.elapsed() >= GONE;
            assert!(!late, "round {round}: {} of {} outlive slim: {}", alive(), family.len(), {
                let at = |pid: &u32| fs::read_to_string(format!("/proc/{pid}/stat"));
                let stack = |pid: &u32| fs::read_to_string(format!("/proc/{pid}/stack"));
                let what = |pid: &u32| Some(at(pid).ok()? + &stack(pid).unwrap_or_default());
                family.iter().filter_map(what).collect::<String>()
            });
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    runtime::clean_leftovers().unwrap();
}

/// The pids of a process's children, their children and so on.
fn descendants(pid: u32) -> Vec<u32> {
    let parent = |entry: &fs::DirEntry| {
        let status = fs::read_to_string(entry.path().join("status")).ok()?;
        status.lines().find_map(|line| line.strip_prefix("PPid:")?.trim().parse::<u32>().ok())
    };
    let all: Vec<(u32, u32)> = fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|e| Some((e.file_name().to_str()?.parse().ok()?, parent(&e)?)))
        .collect();
    let mut found = vec![pid];
    let mut next = 0;
    while next < found.len() {
        let above = found[next];
        found.extend(all.iter().filter(|(_, parent)| *parent == above).map(|(pid, _)| *pid));
        next += 1;
    }
    found.split_off(1)
}

fn processes_below(cgroup: &Path) -> usize {
    let own = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default().lines().count();
    let children = fs::read_dir(cgroup).into_iter().flatten().flatten();
    own + children.filter(|e| e.path().is_dir()).map(|e| processes_below(&e.path())).sum::<usize>()
}

/// How many mounts of any mount namespace mention `dir`.
fn mounts_of(dir: &str) -> usize {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    processes
        .filter_map(|entry| fs::read_to_string(entry.path().join("mountinfo")).ok())
        .map(|text| text.lines().filter(|line| line.contains(dir)).count())
        .sum()
}
