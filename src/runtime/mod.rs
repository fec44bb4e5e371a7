//! Runs containers of an image and the user's script: bundle, embedded runtime or runc or crun,
//! networks, exec, health checks, stop; and everything that makes them die with slim.

pub mod net;
pub mod ready;
pub mod script;
pub mod spec;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::model::ImageConfig;

/// Why a container or a script could not be run.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The host lacks something: exit 4.
    #[error("{what}: {why}; {way_out}")]
    Host { what: String, why: String, way_out: String },
    /// An option that cannot be: exit 2.
    #[error("{option} {value:?}: {why}")]
    Option { option: String, value: String, why: String },
    /// The image's configuration or files forbid it (no such user, no such executable): exit 10.
    #[error("{what}: {why}")]
    Container { what: String, why: String },
    #[error("{what}")]
    Io { what: String, source: std::io::Error },
}

/// Which OCI runtime starts the containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RuntimeKind {
    Embedded,
    Runc,
    Crun,
}

/// `--network`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Network {
    /// Own namespace, exposed ports forwarded from 127.0.0.1, the script in the host's namespace.
    Published,
    /// Own namespace, the script inside it too.
    Private,
    Host,
    /// An existing namespace, by path.
    Ns(PathBuf),
}

/// `--ready`.
#[derive(Debug, Clone)]
pub enum Ready {
    /// The lowest exposed TCP port listens (read from /proc/net), else the entrypoint's first exec.
    Default,
    Tcp(u16),
    /// An HTTP path on the lowest exposed port answers 2xx or 3xx.
    Http(String),
    /// A line of the container's output matches.
    Log(regex::Regex),
    /// The image's HEALTHCHECK passes.
    Healthy,
    /// A command inside exits 0 (by the shell if it is one word with spaces).
    Exec(String),
    None,
}

/// `docker run` options, checked for form. `None` and empty mean what they mean there.
#[derive(Debug, Clone, Default)]
pub struct RunOptions {
    /// `KEY=value`, already resolved against slim's environment and env files, in order.
    pub env: Vec<String>,
    pub user: Option<String>,
    pub workdir: Option<String>,
    /// `-v`, as typed: `SRC:DST[:ro]`, or `DST` alone.
    pub volumes: Vec<String>,
    /// `--mount`, as typed: `type=bind,source=…,target=…[,readonly]`.
    pub mounts: Vec<String>,
    /// `--tmpfs`, as typed: `PATH[:opts]`.
    pub tmpfs: Vec<String>,
    pub interactive: bool,
    pub tty: bool,
    /// Bytes.
    pub shm_size: Option<u64>,
    pub hostname: Option<String>,
    /// `HOST:IP`.
    pub add_host: Vec<String>,
    /// Replaces the image's entrypoint (and empties its cmd), one word; `""` means none.
    pub entrypoint: Option<String>,
    /// Replaces the image's cmd.
    pub cmd: Option<Vec<String>>,
    /// `NAME=SOFT[:HARD]`.
    pub ulimit: Vec<String>,
    /// Bytes.
    pub memory: Option<u64>,
    pub cpus: Option<f64>,
    pub pids_limit: Option<i64>,
    pub read_only: bool,
    pub init: bool,
    pub cap_add: Vec<String>,
    pub cap_drop: Vec<String>,
    /// `no-new-privileges[:true]`, `seccomp=unconfined`, `seccomp=FILE`.
    pub security_opt: Vec<String>,
    pub stop_signal: Option<String>,
    /// Seconds until SIGKILL; Docker's default is 10.
    pub stop_timeout: Option<u64>,
}

/// Called by the runtime when something new is about to be used, before anything runs there.
pub trait Observer: Send + Sync {
    /// An overlay was mounted for a container; `root` as this process sees it.
    fn mounted(&self, root: &Path) -> Result<(), String>;
    /// A leaf cgroup was made (below [`Cell::cgroup`]) for this work.
    fn leaf(&self, cgroup: &Path, work: Work) -> Result<(), String>;
}

/// What a leaf cgroup is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    Main,
    Exec,
    Run,
    Health,
    Unrecorded,
}

/// The place where a run lives: own mount and pid namespaces that die with slim, and a cgroup.
///
/// Enter it first thing, while the process has one thread.
pub struct Cell;

impl Cell {
    /// Unshares the mount namespace, starts the pid-1 helper of a new pid namespace, makes the run's
    /// cgroup (`slim-<id>`, cgroup v2).
    pub fn enter() -> Result<Self, RuntimeError> {
        Err(RuntimeError::Container { what: "runtime".into(), why: "not written yet".into() })
    }

    /// The run's cgroup v2 directory; leaves are made below it.
    pub fn cgroup(&self) -> &Path {
        Path::new("/")
    }
}

/// What to run.
pub struct PodSpec {
    /// Name by which `slim exec` finds it, `slim-` and some hex digits.
    pub id: String,
    pub image_name: String,
    pub config: ImageConfig,
    /// Unpacked layers, lowest first.
    pub lowers: Vec<PathBuf>,
    /// Scratch folder for uppers, sockets, bundles.
    pub run_dir: PathBuf,
    pub options: RunOptions,
    pub network: Network,
    pub runtime: RuntimeKind,
    /// `linux.seccomp` of the runtime configuration; `None` is unconfined.
    pub seccomp: Option<serde_json::Value>,
    /// Where the container's output goes.
    pub log: PathBuf,
    pub observer: Arc<dyn Observer>,
}

/// The main container of a run with its network, and the fresh ones that SLIM_RUN starts.
pub struct Pod;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    Exited(i32),
    Killed(i32),
}

/// How readiness turned out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Readiness {
    Ready,
    TimedOut,
    /// The container ended first.
    Ended(Ended),
}

/// How the script ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ScriptEnd {
    Ended(Ended),
    TimedOut,
    Interrupted,
}

impl Pod {
    /// Mounts the main container's overlay, makes its network, starts the control socket for
    /// `slim exec` and SLIM_RUN. Nothing of the image runs yet.
    pub fn create(_cell: &Cell, _spec: PodSpec) -> Result<Self, RuntimeError> {
        Err(RuntimeError::Container { what: "runtime".into(), why: "not written yet".into() })
    }

    /// Warnings for the user: clamped limits and the like.
    pub fn warnings(&self) -> Vec<String> {
        Vec::new()
    }

    /// `embedded libcontainer 0.7.0`, `runc 1.1.5`, …
    pub fn runtime_version(&self) -> String {
        String::new()
    }

    /// Starts the main container; again after it ended is a restart on the same writable layer.
    pub fn start(&self) -> Result<(), RuntimeError> {
        Ok(())
    }

    /// Waits for readiness. `entry` says whether the entrypoint was executed (asked repeatedly).
    pub fn wait_ready(
        &self,
        _ready: &Ready,
        _timeout: Duration,
        _entry: &dyn Fn() -> bool,
    ) -> Result<Readiness, RuntimeError> {
        Ok(Readiness::Ready)
    }

    /// How the main container ended, if it has.
    pub fn ended(&self) -> Option<Ended> {
        None
    }

    /// Runs the image's health check once; `None` if it has none. The value is its exit status.
    pub fn health(&self) -> Result<Option<Ended>, RuntimeError> {
        Ok(None)
    }

    /// The script's variables: SLIM_HOST, SLIM_PORT, SLIM_PORT_N, SLIM_EXEC, SLIM_RUN, …
    pub fn script_env(&self, _wait: Duration) -> BTreeMap<String, String> {
        BTreeMap::new()
    }

    /// Runs the script to its end in the host's mount namespace, with slim's stdout and stderr, its
    /// stdin from /dev/null; kills it at the timeout or when interrupted.
    pub fn run_script(
        &self,
        _argv: &[OsString],
        _env: &BTreeMap<String, String>,
        _timeout: Option<Duration>,
    ) -> Result<ScriptEnd, RuntimeError> {
        Ok(ScriptEnd::Interrupted)
    }

    /// Sends the stop signal, after the stop timeout SIGKILL; waits for the end.
    pub fn stop(&self) -> Result<Ended, RuntimeError> {
        Ok(Ended::Exited(0))
    }

    /// The upper directories of all containers of this run.
    pub fn uppers(&self) -> Vec<PathBuf> {
        Vec::new()
    }

    /// True if the container tried to reach the outside and could not (published and private).
    pub fn outside_tried(&self) -> bool {
        false
    }

    /// Kills what still runs, unmounts, removes the run's cgroups.
    pub fn destroy(self) {}
}

/// True once SIGINT or SIGTERM came.
pub fn interrupted() -> bool {
    false
}

/// `slim exec CONTAINER [--unrecorded] -- CMD…`: runs it with this process's stdin, stdout and
/// stderr and returns the exit code for this process (126 and 127 as `docker exec` has them).
pub fn exec_client(_id: &str, _unrecorded: bool, _argv: &[OsString]) -> Result<i32, RuntimeError> {
    Ok(127)
}

/// The client behind SLIM_RUN: a fresh container of the run `id` with `argv` as its command.
pub fn run_client(_id: &str, _argv: &[OsString]) -> Result<i32, RuntimeError> {
    Ok(127)
}

/// The hidden re-executions of this binary (pid-1 helper, runtime shim): never returns if `args`
/// (the command line without the program) is one of them.
pub fn run_hidden(_args: &[OsString]) {}
