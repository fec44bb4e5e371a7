//! One container: its overlay, bundle and leaf cgroup; starting it, and running processes in it.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use serde_json::Value;

use super::cell::CellInner;
use super::cgroup;
use super::engine::{self, Engine, Start};
use super::hooks::Stage;
use super::hooks::wrapper::{self, Failure};
use super::shim::{CANNOT_CREATE, Confine, Report, Task, TaskWork};
use super::spec::{self, SpecInput};
use super::stdio::{self, Console, Stdio};
use super::{Ended, PodSpec, RuntimeError, Work};
use crate::sys::passing;

/// A container, made ready; it may run, have ended, and run again on the same writable layer.
pub(super) struct Container {
    work: Work,
    dir: PathBuf,
    /// `None` where slim may not make cgroups.
    leaf: Option<PathBuf>,
    cgroups_path: String,
    config: Value,
    starts: AtomicU32,
    running: Mutex<Option<Running>>,
    /// The start that the runtime has been told to forget.
    deleted: AtomicU32,
}

/// A start of a container that went well.
#[derive(Clone)]
struct Running {
    start: Start,
    pid: i32,
    since: Instant,
}

/// Why a command did not run, in Docker's exit codes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refused {
    pub code: i32,
    pub why: String,
}

/// What a container has beside the image.
pub(super) struct Place<'a> {
    pub cell: &'a CellInner,
    pub spec: &'a PodSpec,
    pub engine: &'a Engine,
    pub netns: Option<PathBuf>,
    pub address: Option<IpAddr>,
    pub gateway: Option<IpAddr>,
    pub hostname: &'a str,
    /// Where runc and crun hand over the listeners of notifying filters.
    pub seccomp_socket: Option<&'a Path>,
}

impl Work {
    fn name(self) -> &'static str {
        match self {
            Self::Main => "main",
            Self::Exec => "exec",
            Self::Run => "run",
            Self::Health => "health",
            Self::Hook => "hook",
            Self::Unrecorded => "unrecorded",
        }
    }
}

fn io_error(what: &str, path: &Path) -> impl FnOnce(io::Error) -> RuntimeError {
    let what = format!("{what}({path:?})");
    move |source| RuntimeError::Io { what, source }
}

/// Makes a leaf cgroup and tells the observer, before anything runs in it.
fn observed_leaf(place: &Place<'_>, work: Work) -> Result<(Option<PathBuf>, String), RuntimeError> {
    let (leaf, name) = place.cell.make_leaf(work.name())?;
    if let Some(leaf) = &leaf {
        place.spec.observer.leaf(leaf, work).map_err(|why| not_watched(leaf, why))?;
    }
    Ok((leaf, name))
}

fn not_watched(what: &Path, why: String) -> RuntimeError {
    let what = format!("recorder of {}", what.display());
    RuntimeError::Io { what, source: io::Error::other(why) }
}

impl Container {
    /// Mounts the overlay, makes the leaf and writes the bundle; adds warnings to `warnings`.
    pub fn prepare(
        place: &Place<'_>,
        work: Work,
        argv: Option<&[String]>,
        warnings: &mut Vec<String>,
    ) -> Result<Self, RuntimeError> {
        let (leaf, name) = observed_leaf(place, work)?;
        let dir = place.spec.run_dir.join(&name);
        for part in ["rootfs", "upper", "work", "bundle", "files", "state"] {
            let path = dir.join(part);
            fs::create_dir_all(&path).map_err(io_error("mkdir", &path))?;
        }
        let rootfs = dir.join("rootfs");
        place.cell.overlay(&place.spec.lowers, &dir.join("upper"), &dir.join("work"), &rootfs)?;
        let seen = place.cell.seen(&rootfs);
        place.spec.observer.mounted(&seen).map_err(|why| not_watched(&seen, why))?;
        let cgroups_path = format!("/{}/{name}/c", place.cell.name);
        let init = place.spec.options.init.then(find_init).transpose()?;
        let built = spec::build(&SpecInput {
            config: &place.spec.config,
            options: &place.spec.options,
            rootfs: &seen,
            // The runtime lives in the cell and reaches the overlay there by its plain path.
            root_path: &rootfs,
            hostname: place.hostname,
            netns: place.netns.clone(),
            container_ip: place.address,
            gateway_ip: place.gateway,
            seccomp: place.spec.seccomp.as_ref(),
            cgroups_path: cgroups_path.clone(),
            files_dir: &dir.join("files"),
            argv,
            init: init.as_deref(),
            ids: spec::Ids::here().as_ref(),
        })?;
        warnings.extend(built.warnings);
        let mut config = built.spec;
        place.engine.adapt(&mut config);
        let (starts, running, deleted) = (AtomicU32::new(0), Mutex::new(None), AtomicU32::new(0));
        Ok(Self { work, dir, leaf, cgroups_path, config, starts, running, deleted })
    }

    pub fn upper(&self) -> PathBuf {
        self.dir.join("upper")
    }

    /// The uid of the container's own process.
    pub fn uid(&self) -> u32 {
        let uid = self.config.pointer("/process/user/uid").and_then(Value::as_u64);
        uid.and_then(|uid| u32::try_from(uid).ok()).unwrap_or(0)
    }

    pub fn wants_terminal(&self) -> bool {
        self.config.pointer("/process/terminal") == Some(&Value::Bool(true))
    }

    fn running(&self) -> Option<Running> {
        self.running.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }

    /// The pid of its init in the cell, once it was started.
    pub fn pid(&self) -> Option<i32> {
        self.running().map(|running| running.pid)
    }

    /// Starts it; `stdio` is what it gets unless it wants a terminal, whose master end comes back.
    pub fn start(
        &self,
        place: &Place<'_>,
        stdio: &Stdio,
        console: Option<Console>,
    ) -> Result<Result<Option<OwnedFd>, Refused>, RuntimeError> {
        let number = self.starts.fetch_add(1, Ordering::Relaxed) + 1;
        let start = Start {
            id: format!("{}-{}-{number}", place.cell.name, self.name()),
            bundle: self.dir.join("bundle"),
            state: self.dir.join("state"),
            console: console.as_ref().map(|console| console.path.clone()),
        };
        let confine = self.write_config(place, &start, number)?;
        stdio.give_to(self.uid());
        let task = self.task(place, place.engine.create(&start, confine));
        let since = Instant::now();
        let outcome = launch(place, self.work, self.leaf.as_deref(), &task, stdio)?;
        let pid = match (outcome.pid, outcome.refused) {
            (_, Some(refused)) => return self.refused(refused),
            (Some(pid), None) => pid,
            (None, None) => match runtime_started(place, &start, outcome.shim, since) {
                Ok(pid) => pid,
                Err(refused) => return self.refused(refused),
            },
        };
        let master = console.map(Console::receive).transpose();
        let running = Running { start, pid, since };
        *self.running.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(running);
        let master = master.map_err(|source| RuntimeError::Io {
            what: "terminal of the container".into(),
            source,
        })?;
        Ok(Ok(master))
    }

    /// Work of the runtime for this container.
    fn task(&self, place: &Place<'_>, work: TaskWork) -> Task {
        let mut cgroups: Vec<PathBuf> = self.leaf.clone().into_iter().collect();
        if let (Some(leaf), true) = (&self.leaf, place.cell.hierarchies.is_pure()) {
            // A cgroup with processes of its own cannot hand controllers down to the container's.
            cgroups.push(leaf.join("runtime"));
        }
        Task { cgroups, hide: place.engine.hide(&place.cell.hierarchies), work }
    }

    /// A start that the runtime refused; an error if that was for a hook.
    fn refused<T>(&self, refused: Refused) -> Result<Result<T, Refused>, RuntimeError> {
        if let Some(failure) = wrapper::failures(&self.report()).into_iter().next() {
            return Err(failure.error());
        }
        let inside = self.hooks_inside();
        if !inside.is_empty() && refused.why.contains("hook") {
            return Err(RuntimeError::Host {
                what: format!("a startContainer hook ({})", inside.join(", ")),
                why: refused.why,
                way_out:
                    "such a hook is a program of the image: it has to be there, and to succeed"
                        .into(),
            });
        }
        Ok(Err(refused))
    }

    /// The programs of its `startContainer` hooks.
    pub fn hooks_inside(&self) -> Vec<String> {
        wrapper::programs(&self.config, Stage::StartContainer)
    }

    /// Where hooks tell of their failures.
    fn report(&self) -> PathBuf {
        self.dir.join("hooks").join("report")
    }

    /// Failures of hooks that were no failure of the container.
    pub fn hook_warnings(&self) -> Vec<String> {
        wrapper::failures(&self.report()).iter().map(Failure::warning).collect()
    }

    /// Once it has ended, has the runtime forget it, if only for its `poststop` hooks: else that needs
    /// no runtime.
    ///
    /// # Errors
    /// What the runtime said.
    pub fn delete(&self, place: &Place<'_>) -> Result<(), String> {
        let Some(running) = self.running() else { return Ok(()) };
        let number = self.starts.load(Ordering::Relaxed);
        if wrapper::programs(&self.config, Stage::Poststop).is_empty()
            || self.ended(place.cell).is_none()
            || self.deleted.swap(number, Ordering::Relaxed) == number
        {
            return Ok(());
        }
        let task = self.task(place, place.engine.delete(&running.start));
        let null = || stdio::null().map_err(|error| error.to_string());
        let stdio = Stdio { stdin: null()?, stdout: null()?, stderr: null()? };
        let since = Instant::now();
        let outcome = launch(place, self.work, self.leaf.as_deref(), &task, &stdio);
        let outcome = outcome.map_err(|error| crate::model::chain(&error))?;
        let ended = place.cell.wait(outcome.shim, since, None, &|| false);
        match (outcome.refused, ended) {
            (Some(refused), _) => Err(refused.why),
            (None, Some(Ended::Exited(0))) => Ok(()),
            (None, ended) => Err(format!("{} ended with {ended:?}", place.engine.version)),
        }
    }

    fn name(&self) -> String {
        self.dir.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    fn write_config(
        &self,
        place: &Place<'_>,
        start: &Start,
        number: u32,
    ) -> Result<Option<Confine>, RuntimeError> {
        let mut config = self.config.clone();
        let confine = place.engine.watch(&mut config, place.spec.watch, place.seccomp_socket);
        if let Some(linux) = config.get_mut("linux").and_then(Value::as_object_mut) {
            match self.leaf {
                Some(_) => linux
                    .insert("cgroupsPath".into(), format!("{}{number}", self.cgroups_path).into()),
                None => match place.engine.cgroup_of_a_user() {
                    Some(path) => linux.insert("cgroupsPath".into(), path.into()),
                    None => linux.remove("cgroupsPath"),
                },
            };
        }
        let socket = place.seccomp_socket;
        let folder = self.dir.join("hooks");
        wrapper::wrap(&mut config, &folder, &self.report(), (place.spec.watch, socket))?;
        let path = start.bundle.join("config.json");
        fs::write(&path, config.to_string()).map_err(io_error("write", &path))?;
        Ok(confine)
    }

    /// How it ended, if it was started and did.
    pub fn ended(&self, cell: &CellInner) -> Option<Ended> {
        self.running().and_then(|running| cell.ended(running.pid, running.since))
    }

    /// Waits for its end; `None` if it was never started, or at `deadline`, or if `give_up` says so.
    pub fn wait(
        &self,
        cell: &CellInner,
        deadline: Option<Instant>,
        give_up: &dyn Fn() -> bool,
    ) -> Option<Ended> {
        let running = self.running()?;
        cell.wait(running.pid, running.since, deadline, give_up)
    }

    /// Runs `argv` in it, as `docker exec` would; kills it after `timeout`.
    pub fn exec(
        &self,
        place: &Place<'_>,
        work: Work,
        argv: &[String],
        stdio: Stdio,
        timeout: Option<Duration>,
    ) -> Result<Result<Ended, Refused>, RuntimeError> {
        let gone = || RuntimeError::Container {
            what: format!("container {}", place.spec.id),
            why: "it is not running".into(),
        };
        let running = self.running().ok_or_else(gone)?;
        if self.ended(place.cell).is_some() {
            return Err(gone());
        }
        let (leaf, name) = observed_leaf(place, work)?;
        let files = self.dir.join("files").join(&name);
        let process = spec::exec_process(&self.config, argv);
        let seccomp = self.config.pointer("/linux/seccomp").cloned();
        let filters = (seccomp, place.spec.watch);
        let (kind, work) =
            (work, place.engine.exec(&running.start, running.pid, process, filters, &files)?);
        let number = self.starts.load(Ordering::Relaxed);
        let cgroups = self.exec_cgroups(place, leaf.as_deref(), number);
        let task = Task { cgroups, hide: place.engine.hide(&place.cell.hierarchies), work };
        stdio.give_to(self.uid());
        let since = Instant::now();
        let outcome = launch(place, kind, leaf.as_deref(), &task, &stdio)?;
        drop(stdio);
        let result = match outcome.refused {
            Some(refused) => Err(refused),
            None => finish(place, &outcome, since, timeout, leaf.as_deref(), &files),
        };
        if !place.engine.is_embedded() && !files.with_extension("pid").exists() && result.is_ok() {
            let refused = engine::refusal(&files.with_extension("log"), "exec failed");
            return Ok(Err(Refused { code: refused.0, why: refused.1 }));
        }
        if let Some(leaf) = leaf {
            let _ = fs::remove_dir(leaf);
        }
        Ok(result)
    }

    /// The cgroups of an exec'd process: its own leaf first, by which it is attributed; then, for the
    /// embedded runtime, those of the container that limit it (runc and crun join them themselves).
    fn exec_cgroups(&self, place: &Place<'_>, leaf: Option<&Path>, number: u32) -> Vec<PathBuf> {
        let (Some(leaf), Some(own)) = (leaf, &self.leaf) else { return Vec::new() };
        let mut cgroups = vec![leaf.to_path_buf()];
        let path = format!("{}{number}", self.cgroups_path);
        if place.engine.is_embedded() {
            let dirs = place.cell.hierarchies.legacy_dirs(&path);
            cgroups.extend(dirs.into_iter().filter(|dir| dir.exists()));
            if place.cell.hierarchies.is_pure() {
                cgroups.push(own.join(format!("c{number}")));
            }
        }
        cgroups
    }

    /// Ends it if it still runs.
    pub fn kill(&self, cell: &CellInner) {
        if let (Some(pid), None) = (self.pid(), self.ended(cell)) {
            let _ = cell.kill(pid, libc::SIGKILL);
            self.wait(cell, Some(Instant::now() + Duration::from_secs(5)), &|| false);
        }
    }

    /// Kills what is left of it and takes its overlay away; the upper directory stays.
    pub fn dismantle(&self, cell: &CellInner) {
        self.kill(cell);
        if let Some(leaf) = &self.leaf {
            cgroup::kill_all(leaf);
        }
        if let Err(error) = cell.detach(&self.dir.join("rootfs")) {
            tracing::debug!(%error, dir = ?self.dir, "the overlay stays until slim ends");
        }
        for dir in cell.hierarchies.legacy_dirs(self.cgroups_path.trim_end_matches("/c")) {
            let _ = cgroup::remove_tree(&dir);
        }
        if let Some(leaf) = &self.leaf {
            let _ = cgroup::remove_tree(leaf);
        }
    }
}

/// What a shim reported until its report ended.
struct Outcome {
    shim: i32,
    pid: Option<i32>,
    refused: Option<Refused>,
}

/// Starts a shim and reads its report to the end; a seccomp listener in it goes to the observer.
fn launch(
    place: &Place<'_>,
    work: Work,
    leaf: Option<&Path>,
    task: &Task,
    stdio: &Stdio,
) -> Result<Outcome, RuntimeError> {
    let io = |source| RuntimeError::Io { what: "report of a shim".into(), source };
    let flags = SocketFlags::CLOEXEC;
    let pair = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None);
    let (report, writer) = pair.map_err(|errno| io(errno.into()))?;
    let shim = place.cell.spawn(task, stdio.all(), writer.as_fd())?;
    drop(writer);
    let mut outcome = Outcome { shim, pid: None, refused: None };
    while let Some((text, fds)) = passing::receive(&report).map_err(io)? {
        match serde_json::from_slice(&text) {
            Ok(Report::Pid(pid)) => outcome.pid = Some(pid),
            Ok(Report::Failed { code, why }) => outcome.refused = Some(Refused { code, why }),
            Ok(Report::Listener) => {
                for listener in fds {
                    let taken = place.spec.observer.listener(Some(work), leaf, listener);
                    taken.map_err(|why| not_watched(Path::new(work.name()), why))?;
                }
            }
            Err(error) => tracing::debug!(%error, "a shim's report"),
        }
    }
    Ok(outcome)
}

/// Waits for `runc run --detach` and its like; the pid of the container's init.
fn runtime_started(
    place: &Place<'_>,
    start: &Start,
    shim: i32,
    since: Instant,
) -> Result<i32, Refused> {
    let ended = place.cell.wait(shim, since, None, &|| false);
    let pid = fs::read_to_string(start.pid_file()).ok().and_then(|text| text.trim().parse().ok());
    match (ended, pid) {
        (Some(Ended::Exited(0)), Some(pid)) => Ok(pid),
        _ => {
            let otherwise = format!("{} ended with {ended:?}", place.engine.version);
            let (code, why) = engine::refusal(&start.log(), &otherwise);
            Err(Refused { code, why })
        }
    }
}

/// Waits for an exec'd process; at the timeout kills it.
fn finish(
    place: &Place<'_>,
    outcome: &Outcome,
    since: Instant,
    timeout: Option<Duration>,
    leaf: Option<&Path>,
    files: &Path,
) -> Result<Ended, Refused> {
    let deadline = timeout.map(|timeout| since + timeout);
    if let Some(ended) = place.cell.wait(outcome.shim, since, deadline, &|| false) {
        return Ok(ended);
    }
    let noted = fs::read_to_string(files.with_extension("pid")).ok();
    let pid = outcome.pid.or(noted.and_then(|text| text.trim().parse().ok()));
    if let Some(pid) = pid {
        let _ = place.cell.kill(pid, libc::SIGKILL);
    }
    if let Some(leaf) = leaf {
        cgroup::kill_all(leaf);
    }
    place.cell.wait(outcome.shim, since, None, &|| false);
    Ok(Ended::Killed(libc::SIGKILL))
}

/// `--init`: Docker's small init, or one like it, which is bound into the container as its pid 1.
fn find_init() -> Result<PathBuf, RuntimeError> {
    const PLACES: [&str; 5] = [
        "/usr/bin/docker-init",
        "/usr/libexec/docker/docker-init",
        "/usr/bin/tini-static",
        "/usr/libexec/podman/catatonit",
        "/usr/bin/catatonit",
    ];
    let found = PLACES.iter().find_map(|path| fs::canonicalize(path).ok());
    found.ok_or_else(|| RuntimeError::Host {
        what: "--init".into(),
        why: format!("none of {} is here", PLACES.join(", ")),
        way_out: "install tini (Debian: apt install tini)".into(),
    })
}

/// What a refused start of the main container is to slim.
pub(super) fn start_error(refused: Refused) -> RuntimeError {
    match refused.code {
        CANNOT_CREATE => RuntimeError::Host {
            what: "the container could not be created".into(),
            why: refused.why,
            way_out: "see `slim doctor`; --runtime runc or crun tries another runtime".into(),
        },
        _ => RuntimeError::Container { what: "entrypoint".into(), why: refused.why },
    }
}
