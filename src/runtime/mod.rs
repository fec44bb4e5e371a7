//! Runs containers of an image and the user's script: bundle, embedded runtime or runc or crun,
//! networks, exec, health checks, stop; and everything that makes them die with slim.

pub mod net;
pub mod ready;
pub mod script;
pub mod spec;

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use serde::{Deserialize, Serialize};

use crate::model::ImageConfig;
use crate::seccomp::Watch;
use crate::sys::signals;

mod cdi;
mod cell;
mod cgroup;
mod container;
mod control;
mod engine;
mod hand;
mod helper;
mod hooks;
mod listener;
mod loads;
mod pod;
mod probe;
mod rootless;
mod shim;
mod stdio;
mod tenant;

pub use cell::Cell;
pub use control::{exec_client, run_client};
pub use loads::check_filter;
pub use pod::Pod;
pub use probe::probe;
pub use ready::parse_ready;
pub use rootless::{
    enter_user_namespace, leave_user_namespace, rootless_warnings, user_map, without_root,
};
pub use script::check_script;

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
    /// `KEY=VALUE`, of the runtime configuration.
    pub annotations: Vec<String>,
    /// Folders with definitions of OCI hooks, oci-hooks(5); the later one wins.
    pub hooks_dirs: Vec<PathBuf>,
    /// `--device`: `HOST[:CONTAINER[:rwm]]`, or the name of a CDI device, `VENDOR/CLASS=NAME`.
    pub devices: Vec<String>,
    /// Folders with CDI specifications instead of the usual ones; the later one wins.
    pub cdi_spec_dirs: Vec<PathBuf>,
}

/// Called by the runtime when something new is about to be used, before anything runs there.
pub trait Observer: Send + Sync {
    /// An overlay was mounted for a container; `root` as this process sees it.
    fn mounted(&self, root: &Path) -> Result<(), String>;
    /// A leaf cgroup was made (below [`Cell::cgroup`]) for this work.
    fn leaf(&self, cgroup: &Path, work: Work) -> Result<(), String>;
    /// Processes of some work run under the filter that [`PodSpec::watch`] asks for; this is its
    /// listener. Their calls wait until it is served. runc and crun do not say which work it is: then
    /// the cgroup tells, a leaf or the run's.
    fn listener(
        &self,
        _work: Option<Work>,
        _cgroup: Option<&Path>,
        _listener: OwnedFd,
    ) -> Result<(), String> {
        Err("nobody serves seccomp listeners".to_owned())
    }
    /// A runtime handed a listener over and it was lost on the way: the calls of its processes fail.
    fn lost_listener(&self) {}
}

/// What a leaf cgroup is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    Main,
    Exec,
    Run,
    Health,
    /// An OCI hook outside of the container, whose leaf is that of the container.
    Hook,
    Unrecorded,
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
    /// Calls that the container's processes notify; [`Observer::listener`] gets the listeners.
    pub watch: Watch,
    /// Where the container's output goes.
    pub log: PathBuf,
    pub observer: Arc<dyn Observer>,
}

/// How a process ended: its exit code, or the signal that killed it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
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

/// From now on SIGINT and SIGTERM interrupt the waiting functions of this module instead of ending
/// this process at once.
pub fn install_signal_handlers() -> Result<(), RuntimeError> {
    signals::install().map_err(|source| RuntimeError::Io { what: "sigaction".into(), source })
}

/// The capabilities (`CAP_…`) that a container with these options has.
pub fn capabilities(options: &RunOptions) -> Result<Vec<String>, RuntimeError> {
    let own = spec::caps::own_bounding();
    Ok(spec::caps::choose(&options.cap_add, &options.cap_drop, own)?.0)
}

/// Where `-v`, `--mount` and `--tmpfs` put something: absolute paths in the container.
pub fn mount_points(options: &RunOptions) -> Result<Vec<String>, RuntimeError> {
    spec::mount_points(options)
}

/// The hooks that the options name, by a folder or by a CDI device: file name, digest and stages of each
/// definition.
pub fn hooks(options: &RunOptions) -> Result<Vec<serde_json::Value>, RuntimeError> {
    let mut all = hooks::told(&hooks::read(&options.hooks_dirs)?);
    all.extend(spec::hooks_of_devices(options)?);
    Ok(all)
}

/// True if slim runs as an ordinary user, in a user namespace of its own.
pub fn in_user_namespace() -> bool {
    rootless::outside().is_some()
}

/// Early check of what an image has no say in, so that a typo costs no unpacking.
///
/// # Errors
/// For a stop signal that is none, for hooks that are none, and for limits without the right to make
/// cgroups.
pub fn check_options(options: &RunOptions) -> Result<(), RuntimeError> {
    if crate::sys::userns::inside() {
        spec::refuse_limits(options)?;
    }
    hooks::read(&options.hooks_dirs)?;
    spec::annotations(options)?;
    spec::check_devices(options)?;
    match options.stop_signal.as_deref() {
        Some(name) if spec::signal_number(name).is_none() => Err(RuntimeError::Option {
            option: "--stop-signal".into(),
            value: name.into(),
            why: "no such signal; see signal(7)".into(),
        }),
        _ => Ok(()),
    }
}

/// True once SIGINT or SIGTERM came.
pub fn interrupted() -> bool {
    signals::interrupted()
}

/// Removes what dead runs left behind here: empty cgroups and sockets that nobody listens on. Returns
/// what was removed. A live run's are left alone: a process lives in its cgroup or listens.
pub fn clean_leftovers() -> Result<Vec<String>, RuntimeError> {
    cell::clean_cgroups().map(|mut removed| {
        removed.extend(control::clean_sockets());
        removed
    })
}

/// The first words of the hidden command lines.
const HIDDEN_CELL: &str = "__cell";
const HIDDEN_SHIM: &str = "__shim";

static PROGRAM: OnceLock<PathBuf> = OnceLock::new();

/// Says which binary answers to [`run_hidden`], for a process that is another one (a test). Only the
/// first call counts.
pub fn set_program(path: PathBuf) {
    let _ = PROGRAM.set(path);
}

fn program_override() -> Option<&'static Path> {
    PROGRAM.get().map(PathBuf::as_path)
}

/// The last line of an output that is not blank.
pub(crate) fn last_line(output: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(output);
    text.lines().rev().find(|line| !line.trim().is_empty()).map(str::to_owned)
}

/// The hidden re-executions of this binary (pid-1 helper, runtime shim, hook that mounts, starter of
/// hooks, script supervisor, clients of the control socket): never returns if `args` (the command line
/// without the program) is one of them. To be called before anything else, while the process has one thread.
pub fn run_hidden(args: &[OsString]) {
    let text: Vec<&str> = args.iter().map_while(|arg| arg.to_str()).collect();
    match text.as_slice() {
        [HIDDEN_CELL, socket] => {
            if let Ok(socket) = socket
                .parse()
                .map_err(drop)
                .and_then(|number| crate::sys::process::inherited(number).map_err(drop))
            {
                helper::main(socket);
            }
        }
        [HIDDEN_SHIM, task, report] => {
            if let (Ok(task), Ok(report)) = (task.parse(), report.parse()) {
                shim::main(task, report);
            }
        }
        [hand::HIDDEN, _] => hand::main(&args[1]),
        [hooks::wrapper::HIDDEN, file] => hooks::wrapper::main(Path::new(file)),
        [control::HIDDEN_EXEC, id, "--", ..] => client(exec_client(id, false, &args[3..])),
        [control::HIDDEN_RUN, id, "--", ..] => client(run_client(id, &args[3..])),
        _ => {}
    }
    if let Some(code) = script::hidden_supervisor(args) {
        std::process::exit(code);
    }
}

/// Ends this process as Docker's client does: 125 if the call itself failed.
fn client(result: Result<i32, RuntimeError>) -> ! {
    std::process::exit(control::client_code(result))
}
