//! Engines of our own: each in namespaces and folders of its own, so that it meets no other, and gone
//! with the value that started it.

use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Where an engine is, as its clients and slim are told.
pub trait Engine {
    fn env(&self) -> (&'static str, String);

    /// A client of it, to be given arguments.
    fn client(&self, program: &str) -> Command {
        let (key, value) = self.env();
        let mut command = Command::new(program);
        command.env(key, value).stdin(Stdio::null());
        command
    }

    /// What a client prints; it has to succeed.
    fn ask(&self, program: &str, args: &[&str]) -> String {
        let output = self.client(program).args(args).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{program} {args:?}: {said}");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }
}

/// A daemon that ends with everything it started.
struct Daemon {
    child: Child,
    folder: tempfile::TempDir,
}

impl Daemon {
    /// Starts `args` below `folder` and waits until `ready` succeeds.
    fn start(folder: tempfile::TempDir, args: &[String], ready: &mut Command) -> Self {
        let log = std::fs::File::create(folder.path().join("log")).unwrap();
        let own = "--net --mount --pid --fork --kill-child --mount-proc --propagation private";
        let mut command = Command::new("unshare");
        command.args(own.split(' ')).args(args).stdin(Stdio::null());
        command.stdout(log.try_clone().unwrap()).stderr(log).process_group(0);
        let mut daemon = Self { child: command.spawn().unwrap(), folder };
        let began = Instant::now();
        ready.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        while !ready.status().is_ok_and(|status| status.success()) {
            let ended = daemon.child.try_wait().unwrap();
            let log = || std::fs::read_to_string(daemon.folder.path().join("log")).unwrap();
            assert!(ended.is_none(), "{args:?} ended:\n{}", log());
            assert!(began.elapsed() < Duration::from_secs(60), "{args:?}:\n{}", log());
            std::thread::sleep(Duration::from_millis(100));
        }
        daemon
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // The child is pid 1 of its pid namespace: nothing in it survives.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Not in memory: overlays are to be made there.
fn folder() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("slim-it-").tempdir_in("/var/tmp").unwrap()
}

/// Docker's engine.
pub struct Docker(Daemon);

impl Docker {
    pub fn start() -> Self {
        let folder = folder();
        let path = |name: &str| folder.path().join(name).display().to_string();
        let args = [
            "dockerd".to_owned(),
            format!("--data-root={}", path("data")),
            format!("--exec-root={}", path("exec")),
            format!("--pidfile={}", path("pid")),
            format!("--host=unix://{}", path("docker.sock")),
            "--bridge=none".to_owned(),
            "--iptables=false".to_owned(),
        ];
        let mut ready = Command::new("docker");
        ready.args(["--host", &format!("unix://{}", path("docker.sock")), "info"]);
        Self(Daemon::start(folder, &args, &mut ready))
    }

    pub fn at(&self) -> String {
        format!("unix://{}/docker.sock", self.0.folder.path().display())
    }
}

impl Engine for Docker {
    fn env(&self) -> (&'static str, String) {
        ("DOCKER_HOST", self.at())
    }
}

/// containerd.
pub struct Containerd(Daemon);

impl Containerd {
    pub fn start() -> Self {
        let folder = folder();
        let path = |name: &str| folder.path().join(name).display().to_string();
        let config = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = {:?}\n",
            path("root"),
            path("state"),
            path("containerd.sock")
        );
        std::fs::write(path("config.toml"), config).unwrap();
        let args = ["containerd".to_owned(), "--config".to_owned(), path("config.toml")];
        let mut ready = Command::new("ctr");
        ready.args(["--address", &path("containerd.sock"), "version"]);
        Self(Daemon::start(folder, &args, &mut ready))
    }
}

impl Containerd {
    /// Where it keeps everything.
    pub fn root(&self) -> std::path::PathBuf {
        self.0.folder.path().join("root")
    }
}

impl Engine for Containerd {
    fn env(&self) -> (&'static str, String) {
        ("CONTAINERD_ADDRESS", format!("{}/containerd.sock", self.0.folder.path().display()))
    }
}

/// Podman with a storage of its own.
pub struct Podman {
    folder: tempfile::TempDir,
}

impl Podman {
    pub fn new() -> Self {
        let folder = folder();
        let path = |name: &str| folder.path().join(name);
        let text = format!(
            "[storage]\ndriver = \"overlay\"\ngraphroot = {:?}\nrunroot = {:?}\n",
            path("root"),
            path("run")
        );
        std::fs::write(path("storage.conf"), text).unwrap();
        Self { folder }
    }

    /// What a container prints; the limits are those that a host without `CAP_SYS_RESOURCE` can set.
    pub fn run(&self, image: &str, args: &[&str]) -> String {
        let before = "--cgroup-manager=cgroupfs --events-backend=file run --rm --network=none \
                      --runtime=runc --ulimit=nofile=1024:1024 --ulimit=nproc=1024:1024";
        let before: Vec<&str> = before.split_whitespace().chain([image]).collect();
        self.ask("podman", &[&before[..], args].concat())
    }
}

impl Engine for Podman {
    fn env(&self) -> (&'static str, String) {
        ("CONTAINERS_STORAGE_CONF", self.folder.path().join("storage.conf").display().to_string())
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        // Podman mounts its storage on itself.
        for name in ["root/overlay", "root"] {
            let path = self.folder.path().join(name);
            let _ = Command::new("umount").arg(&path).stderr(Stdio::null()).status();
        }
    }
}
