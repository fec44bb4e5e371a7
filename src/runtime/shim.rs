//! A process of the cell that joins its cgroup and then becomes, or makes, one thing: a container
//! by libcontainer, a process in a running container, or runc or crun.
//!
//! Single-threaded from its exec on, which libcontainer's clones need.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::oci_spec::runtime::Spec;
use libcontainer::syscall::syscall::SyscallType;
use libcontainer::workload::{
    Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::cgroup::Hierarchies;
use super::hooks::wrapper;
use super::{hand, tenant};
use crate::model::chain;
use crate::seccomp::Watch;
use crate::sys::devices::{self, DeviceKind, DeviceRule};
use crate::sys::{mount, process, signals, userns};

/// What a shim is to do.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Task {
    /// Cgroup directories to join, in this order, before anything else.
    pub cgroups: Vec<PathBuf>,
    /// Mount points to take away, in a mount namespace of the shim's own.
    pub hide: Vec<PathBuf>,
    pub work: TaskWork,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum TaskWork {
    /// Create and start a container by libcontainer; its init becomes the helper's child.
    Create {
        id: String,
        bundle: PathBuf,
        state: PathBuf,
        console: Option<PathBuf>,
        confine: Option<Confine>,
    },
    /// Run a process (of the runtime configuration) in the container whose init is `pid`.
    Exec { pid: i32, process: Value, seccomp: Option<Value>, watch: Watch },
    /// Run the `poststop` hooks of an ended container of libcontainer's. Its own way to them is by the
    /// removal of cgroups, which are slim's here.
    Poststop { id: String, bundle: PathBuf },
    /// Become another program.
    Program { argv: Vec<OsString>, env: Vec<String> },
}

/// What libcontainer is to leave to slim's executor, because a notifying filter is to be loaded before
/// it: the filter of the container and its capabilities.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Confine {
    pub watch: Watch,
    pub seccomp: Option<Value>,
    pub capabilities: Option<Value>,
    /// `startContainer` hooks, which are to run under the filters.
    pub hooks: Option<Value>,
}

/// What a shim reports, a message of JSON each. The end of the report says that the program runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Report {
    /// The pid, in the cell, of the process that the task is about.
    Pid(i32),
    /// It could not be started: the exit code that Docker gives (125, 126, 127) and the reason.
    Failed { code: i32, why: String },
    /// With the descriptor of a seccomp listener for the processes of the task.
    Listener,
}

/// The exit code of docker run when the container could not be made.
pub(super) const CANNOT_CREATE: i32 = 125;

/// Runs the task on descriptor `task`, reporting to descriptor `report`.
pub(super) fn main(task: i32, report: i32) -> ! {
    let Ok(report) = process::inherited(report) else { std::process::exit(CANNOT_CREATE) };
    let report = Reporter(Rc::new(RefCell::new(Some(report))));
    let code = match read_task(task).and_then(|task| run(task, &report)) {
        Ok(code) => code,
        Err(why) => report.fail(CANNOT_CREATE, why),
    };
    std::process::exit(code)
}

/// The writing end of a report, shared by what runs in this process.
#[derive(Clone)]
pub(super) struct Reporter(Rc<RefCell<Option<OwnedFd>>>);

impl Reporter {
    pub fn say(&self, what: &Report) {
        let text = serde_json::to_vec(what).unwrap_or_default();
        if let Some(fd) = self.socket() {
            // write and not sendmsg, which the container's filter may refuse by now
            let _ = File::from(fd).write_all(&text);
        }
    }

    /// The socket itself, for a thread that hands over a listener.
    pub fn socket(&self) -> Option<OwnedFd> {
        self.0.borrow().as_ref().and_then(|fd| fd.try_clone().ok())
    }

    /// Reports a failure and returns its code.
    pub fn fail(&self, code: i32, why: String) -> i32 {
        self.say(&Report::Failed { code, why });
        code
    }

    /// Closes this process's end: children that have it decide when the report is over.
    pub fn close(&self) {
        self.0.borrow_mut().take();
    }
}

fn read_task(number: i32) -> Result<Task, String> {
    let fd = process::inherited(number).map_err(|error| format!("no task: {error}"))?;
    let mut text = Vec::new();
    File::from(fd).read_to_end(&mut text).map_err(|error| format!("no task: {error}"))?;
    serde_json::from_slice(&text).map_err(|error| format!("no task: {error}"))
}

fn run(task: Task, report: &Reporter) -> Result<i32, String> {
    join_cgroups(&task.cgroups)?;
    // What slim's caller or the helper ignored or blocked is not to reach a container, nor are
    // slim's groups; Docker's containers have this umask.
    signals::reset().map_err(|error| format!("signals: {error}"))?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    if !userns::setgroups_denied() {
        nix::unistd::setgroups(&[]).map_err(|error| format!("setgroups([]): {error}"))?;
    }
    hide(&task.hide)?;
    if let TaskWork::Create { bundle, .. } = &task.work {
        let by_hand = !crate::sys::probe::mount_setattr();
        if by_hand || userns::inside() {
            own_mounts()?;
        }
        if userns::inside() {
            super::cgroup::pretend().map_err(|error| format!("cgroups: {error}"))?;
        }
        if by_hand {
            hand::take_over(bundle)?;
        }
    }
    match task.work {
        TaskWork::Create { id, bundle, state, console, confine } => {
            let mut told = state_of(&id, "created", &bundle);
            told["pid"] = 1.into();
            let executor = Exec { report: report.clone(), home: Rc::default(), confine, told };
            create(&id, &bundle, &state, console.as_deref(), executor)
        }
        TaskWork::Exec { pid, process, seccomp, watch } => {
            tenant::run(pid, process, seccomp, watch, report)
        }
        TaskWork::Poststop { id, bundle } => poststop(&id, &bundle),
        TaskWork::Program { argv, env } => Err(become_program(&argv, &env)),
    }
}

/// Joins cgroups in order. Where only version 2 is mounted, one that handed controllers down at an
/// earlier start takes no process of its own any more (EBUSY); the one below it, next in line, does.
fn join_cgroups(dirs: &[PathBuf]) -> Result<(), String> {
    for (at, dir) in dirs.iter().enumerate() {
        let join = || {
            std::fs::create_dir_all(dir)?;
            std::fs::write(dir.join("cgroup.procs"), "0")
        };
        let below = dirs.get(at + 1).is_some_and(|next| next.starts_with(dir));
        match join() {
            Err(error) if below && error.kind() == io::ErrorKind::ResourceBusy => {}
            Err(error) => return Err(format!("cannot join {}: {error}", dir.display())),
            Ok(()) => {}
        }
    }
    Ok(())
}

/// crun of Debian 12 refuses a host with both cgroup versions unless it cannot see the second.
fn hide(points: &[PathBuf]) -> Result<(), String> {
    if points.is_empty() {
        return Ok(());
    }
    own_mounts()?;
    // In a user namespace the host's mounts cannot be taken away, but covered.
    let away = |point: &PathBuf| match userns::inside() {
        true => mount::tmpfs(point),
        false => mount::detach(point),
    };
    points.iter().try_for_each(|point| away(point).map_err(|error| chain(&error)))
}

fn own_mounts() -> Result<(), String> {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)
        .map_err(|error| format!("unshare(CLONE_NEWNS): {error}"))?;
    mount::make_all_private().map_err(|error| chain(&error))
}

fn become_program(argv: &[OsString], env: &[String]) -> String {
    let Some((program, args)) = argv.split_first() else { return "an empty command".into() };
    let pairs = env.iter().filter_map(|pair| pair.split_once('='));
    let error = Command::new(program).args(args).env_clear().envs(pairs).exec();
    format!("cannot execute {}: {error}", program.display())
}

fn create(
    id: &str,
    bundle: &Path,
    state: &Path,
    console: Option<&Path>,
    executor: Exec,
) -> Result<i32, String> {
    let report = executor.report.clone();
    let build = || {
        ContainerBuilder::new(id.to_owned(), SyscallType::Linux)
            .with_executor(executor)
            .with_root_path(state)?
            .with_console_socket(console)
            .validate_id()?
            .as_init(bundle)
            .with_systemd(false)
            .as_sibling(true)
            .with_detach(true)
            .build()
    };
    let mut container =
        build().map_err(|error| hand::failure(bundle).unwrap_or_else(|| chain(&error)))?;
    let pid = container.pid().ok_or("libcontainer names no pid")?;
    report.say(&Report::Pid(pid.as_raw()));
    let started =
        confine_devices(bundle).and_then(|()| container.start().map_err(|error| chain(&error)));
    if started.is_err() {
        // it waits for its start for ever, and holds the report open
        let _ = signals::send(pid.as_raw(), libc::SIGKILL);
    }
    started.map(|()| 0)
}

fn poststop(id: &str, bundle: &Path) -> Result<i32, String> {
    let config = config(bundle)?;
    let state = state_of(id, "stopped", bundle);
    let hooks = config.pointer("/hooks/poststop");
    hooks.map_or(Ok(()), |hooks| wrapper::run_all(hooks, &state, &[])).map(|()| 0)
}

/// A container's state as hooks are told of it (runtime.md of the OCI runtime specification, "State").
fn state_of(id: &str, status: &str, bundle: &Path) -> Value {
    json!({ "ociVersion": "1.0.2", "id": id, "status": status, "bundle": bundle })
}

/// The runtime configuration in a bundle.
pub(super) fn config(bundle: &Path) -> Result<Value, String> {
    let text =
        std::fs::read(bundle.join("config.json")).map_err(|e| format!("config.json: {e}"))?;
    serde_json::from_slice(&text).map_err(|e| format!("config.json: {e}"))
}

/// Lets the container use the devices that its configuration names. libcontainer, as built here, does
/// that by the controller of cgroup v1 only. Nobody has this right in a user namespace, where the
/// kernel lets no device node be made either.
fn confine_devices(bundle: &Path) -> Result<(), String> {
    let told = |what: &str, error: &dyn std::fmt::Display| format!("{what}: {error}");
    let hierarchies = Hierarchies::read().map_err(|error| told("mountinfo", &error))?;
    let Some(root) = hierarchies.unified.as_ref().filter(|_| hierarchies.is_pure()) else {
        return Ok(());
    };
    let config = config(bundle)?;
    let group = config.pointer("/linux/cgroupsPath").and_then(Value::as_str).unwrap_or_default();
    let rules = config.pointer("/linux/resources/devices").and_then(Value::as_array);
    let rules: Vec<DeviceRule> = rules.into_iter().flatten().map(device_rule).collect();
    match devices::confine(&root.join(group.trim_start_matches('/')), &rules) {
        Err(error) if !userns::inside() => Err(told("device rules", &error)),
        _ => Ok(()),
    }
}

/// A rule of the runtime configuration as the kernel is told it.
fn device_rule(rule: &Value) -> DeviceRule {
    let number = |key: &str| {
        let number = rule.get(key).and_then(Value::as_i64);
        number.and_then(|number| u32::try_from(number).ok()) // -1 is any
    };
    let letters = rule.get("access").and_then(Value::as_str).unwrap_or("rwm");
    let access = [('m', devices::MKNOD), ('r', devices::READ), ('w', devices::WRITE)];
    let access = access.iter().filter(|(letter, _)| letters.contains(*letter));
    DeviceRule {
        allow: rule.get("allow").and_then(Value::as_bool).unwrap_or(false),
        kind: match rule.get("type").and_then(Value::as_str) {
            Some("b") => Some(DeviceKind::Block),
            Some("c" | "u") => Some(DeviceKind::Char),
            _ => None,
        },
        major: number("major"),
        minor: number("minor"),
        access: access.map(|(_, bit)| bit).sum(),
    }
}

/// Executes the container's command as runc does; libcontainer's own executor demands a PATH and an
/// execute bit for others, and loses the order of the environment.
#[derive(Clone)]
struct Exec {
    report: Reporter,
    /// HOME as libcontainer found it in the container's passwd file.
    home: Rc<RefCell<Option<String>>>,
    confine: Option<Confine>,
    /// The container's state, for hooks.
    told: Value,
}

impl Executor for Exec {
    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let process = spec.process().as_ref().ok_or(ExecutorError::InvalidArg)?;
        let args = process.args().clone().unwrap_or_default();
        let mut env = process.env().clone().unwrap_or_default();
        if !env.iter().any(|pair| pair.starts_with("HOME=")) {
            env.extend(self.home.borrow().as_ref().map(|home| format!("HOME={home}")));
        }
        let confined = match &self.confine {
            Some(confine) => tenant::confine_init(confine, process, &self.report).and_then(|()| {
                let hooks = confine.hooks.as_ref();
                hooks.map_or(Ok(()), |hooks| wrapper::run_all(hooks, &self.told, &env))
            }),
            None => Ok(()),
        };
        let (code, why) = match confined {
            Ok(()) => tenant::execute(&args, &env),
            Err(why) => (CANNOT_CREATE, why),
        };
        self.report.fail(code, why.clone());
        Err(ExecutorError::Other(why))
    }

    fn validate(&self, _spec: &Spec) -> Result<(), ExecutorValidationError> {
        Ok(())
    }

    fn setup_envs(&self, envs: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        *self.home.borrow_mut() = envs.get("HOME").cloned();
        Ok(())
    }
}
