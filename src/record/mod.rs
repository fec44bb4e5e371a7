//! Recorders: fanotify and a backend into events, events into a profile.
//!
//! [`Recorder`] watches one cgroup: a [`Backend`] names processes, calls and paths, fanotify the files
//! opened on the overlays. `gather` gives events their meaning as they come, `fold` turns what was
//! gathered into a [`Profile`] afterwards. Leaves running containers and deciding what stays to others.

mod backend;
mod bpf;
mod bystander;
mod calls;
mod event;
mod fold;
mod gather;
mod mounts;
mod network;
mod notes;
mod notify;
mod perf;
mod probe;
mod reader;
mod source;

use std::collections::{HashMap, HashSet};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::model::{Loss, LossKind, Phase, Profile, RunRecord, Tree};
use crate::seccomp::Watch;
use crate::sys::bpf::BpfError;
use crate::sys::fanotify::Group;
use bpf::Size;
use gather::{
    AddressUse, By, CallUse, FANOTIFY, FileUse, Gathered, HOST_HOOK, How, MAIN, PathUse,
    UNRECORDED, now, phase_number,
};
use mounts::Mounts;
use notes::Notes;
use reader::Reader;
use source::{Control, Ends, Lost, Start};

pub use crate::sys::seccomp::outlasts_signals as notified_calls_outlast_signals;
pub use backend::{ACCESSES, Backend, Sight};
pub use bystander::ns_per_call;
pub use probe::{Probed, probe, settings};

/// Why recording failed to start or to end.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    #[error("the {what} recorder cannot run: {why}; {way_out}")]
    Host {
        what: &'static str,
        why: String,
        way_out: &'static str,
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    #[error("fanotify cannot be used: {way_out}")]
    Fanotify { way_out: &'static str, source: std::io::Error },
    #[error("{} is no cgroup v2 directory: mount one (mount -t cgroup2 none /sys/fs/cgroup)", path.display())]
    NoCgroup { path: PathBuf, source: Option<std::io::Error> },
    #[error("cannot watch the file system at {}", path.display())]
    Watch { path: PathBuf, source: std::io::Error },
    #[error("cannot talk to the BPF recorder")]
    Bpf(#[source] Box<BpfError>),
    #[error("a seccomp listener came to a recorder that wants none")]
    Listener,
    #[error("cannot {what}")]
    Io { what: &'static str, source: std::io::Error },
}

/// What is to be recorded.
#[derive(Debug, Clone)]
pub struct RecorderSpec {
    /// A cgroup v2 directory; everything in its subtree is seen. Only [`Backend::Notify`] can do
    /// without one: it sees whoever runs under its filters.
    pub cgroup: Option<PathBuf>,
    pub backend: Backend,
    /// Opens are read from fanotify too. Without it (marks on an overlay take root) only what the
    /// backend sees is recorded.
    pub fanotify: bool,
    /// The container's filter (`linux.seccomp`), for [`Backend::Notify`] to answer in its stead; `None`
    /// is unconfined.
    pub filter: Option<serde_json::Value>,
}

impl RecorderSpec {
    /// The default backend, with fanotify.
    pub fn new(cgroup: impl Into<PathBuf>) -> Self {
        Self { cgroup: Some(cgroup.into()), backend: Backend::Bpf, fanotify: true, filter: None }
    }
}

/// What the processes of a leaf cgroup do. Children inherit the role by fork, even if a runtime
/// moves them to another cgroup below [`RecorderSpec::cgroup`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The main container: its phase is the recorder's current one.
    Main,
    /// Always this phase (exec, run, health).
    Fixed(Phase),
    /// An OCI hook outside of the container: what it uses of the image counts, what it calls does not.
    Hook,
    /// `slim exec --unrecorded`: seen, never counted.
    Unrecorded,
}

impl Role {
    /// By `gather`'s numbers.
    fn number(self) -> u8 {
        match self {
            Self::Main => MAIN,
            Self::Hook => HOST_HOOK,
            Self::Unrecorded => UNRECORDED,
            Self::Fixed(phase) => phase_number(phase),
        }
    }
}

/// A recorder at work.
pub struct Recorder {
    shared: Arc<Shared>,
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

/// What the recorder and its thread share.
pub(crate) struct Shared {
    reader: Mutex<Reader>,
    control: Mutex<Box<dyn Control>>,
    overlays: Mutex<Vec<u32>>,
    entered: Mutex<bool>,
    entry: Condvar,
}

/// What [`Recorder::inject`] can lose that nothing else provokes at will.
#[doc(hidden)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Injection {
    /// An event of the backend makes no sense.
    Unreadable,
    /// An fanotify event cannot be read.
    ReadError,
    /// A BPF program was left out.
    Missed,
    /// The reader's thread panics.
    ReaderDies,
}

/// Everything a recorder saw. Folding it needs no kernel.
pub struct Recording {
    pub losses: Vec<Loss>,
    /// fanotify events read: repeats that were silenced are none. For tests.
    #[doc(hidden)]
    pub events: u64,
    files: Notes<FileUse>,
    paths: Notes<PathUse>,
    calls: Notes<CallUse>,
    addresses: Notes<AddressUse>,
    capabilities: Vec<(u64, By)>,
    mounts: HashMap<u32, Mounts>,
    /// ns of `CLOCK_MONOTONIC`, when recording began.
    start: u64,
    /// Device numbers of the overlays watched.
    overlays: Vec<u32>,
}

impl Recorder {
    /// Attaches everything; nothing may run in the cgroup yet.
    ///
    /// # Errors
    /// If the host lacks what the backend needs, fanotify or cgroup v2, or slim the privilege for
    /// them.
    pub fn start(spec: RecorderSpec) -> Result<Self, RecordError> {
        let group = spec.fanotify.then(Group::new).transpose().map_err(fanotify_error)?;
        Self::start_with(spec, group, Size::default())
    }

    /// As [`Self::start`], with the best backend that works here, whatever `spec` names; which, and why
    /// not a better one.
    ///
    /// # Errors
    /// Why the best one cannot be had, where none can.
    pub fn start_best(spec: &RecorderSpec) -> Result<(Self, Backend, Option<String>), RecordError> {
        let start = |backend| Self::start(RecorderSpec { backend, ..spec.clone() });
        Backend::best(start).map(|(backend, recorder, why)| (recorder, backend, why))
    }

    /// As [`Self::start`], with the kernel's default bound on the fanotify queue: for tests of what
    /// an overflow does.
    #[doc(hidden)]
    pub fn start_bounded(spec: RecorderSpec) -> Result<Self, RecordError> {
        let group = Group::new_bounded().map_err(fanotify_error)?;
        Self::start_with(spec, Some(group), Size::default())
    }

    /// As [`Self::start`], with a small ring and room for few tasks: for tests of what is lost then.
    #[doc(hidden)]
    pub fn start_small(spec: RecorderSpec, ring: u32, tasks: u32) -> Result<Self, RecordError> {
        let group = Group::new().map_err(fanotify_error)?;
        Self::start_with(spec, Some(group), Size { ring, tasks, ..Size::default() })
    }

    /// The same as [`Self::start`], with calls seen when they begin, too, or not: for tests of both.
    #[doc(hidden)]
    pub fn start_seeing(spec: RecorderSpec, both: bool) -> Result<Self, RecordError> {
        let group = Group::new().map_err(fanotify_error)?;
        Self::start_with(spec, Some(group), Size { both, ..Size::default() })
    }

    fn start_with(
        spec: RecorderSpec,
        group: Option<Group>,
        size: Size,
    ) -> Result<Self, RecordError> {
        let family = family(std::process::id());
        let path = spec.cgroup.clone().unwrap_or_default();
        let opened = spec.cgroup.as_deref().map(open_cgroup).transpose()?;
        let (cgroup, filter) = (opened.as_ref(), spec.filter.as_ref());
        let start = Start { cgroup, path: &path, family: &family, filter };
        let Ends { source, control } = match spec.backend {
            Backend::Bpf => bpf::start(&start, size)?,
            Backend::Perf => perf::start(&start)?,
            Backend::Notify => notify::start(&start)?,
        };
        // loading took the kernel's type information apart
        crate::sys::memory::give_back();
        let mut gathered = Gathered::default();
        gathered.backend = spec.backend.name();
        family.iter().for_each(|pid| gathered.add_host(*pid));
        let mut reader = Reader {
            group,
            source,
            gathered,
            start: now(),
            roots: Vec::new(),
            cgroup_name: path.file_name().unwrap_or_default().to_string_lossy().into(),
            phase: Phase::Start,
            overflows: 0,
            read_errors: 0,
            nonsense: 0,
            late: 0,
            missed: 0,
            dies: false,
            events: 0,
            unnamed: Vec::new(),
            told: 0,
        };
        reader.drain();
        let early = spec.cgroup.as_deref().map(processes).unwrap_or_default();
        let early = early.into_iter().filter(|pid| !reader.gathered.knows(*pid));
        reader.late = early.count() as u64;
        Self::spawn(reader, control)
    }

    fn spawn(reader: Reader, control: Box<dyn Control>) -> Result<Self, RecordError> {
        let io = |what| move |source| RecordError::Io { what, source };
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let stop = EventFd::from_flags(flags).map_err(|e| io("make an eventfd")(e.into()))?;
        let stop = Arc::new(stop);
        let shared = Arc::new(Shared {
            reader: Mutex::new(reader),
            control: Mutex::new(control),
            overlays: Mutex::default(),
            entered: Mutex::new(false),
            entry: Condvar::new(),
        });
        let (theirs, their_stop) = (Arc::clone(&shared), Arc::clone(&stop));
        let thread = std::thread::Builder::new()
            .name("recorder".to_owned())
            .spawn(move || reader::run(&theirs, &their_stop))
            .map_err(io("start the recorder's thread"))?;
        Ok(Self { shared, stop, thread: Some(thread) })
    }

    /// Keeps the reader from reading until dropped: for tests of what a slow reader loses.
    #[doc(hidden)]
    pub fn hold(&self) -> impl Drop + '_ {
        Hold(self.shared.reader())
    }

    /// Loses something on purpose: for tests of what becomes of it.
    #[doc(hidden)]
    pub fn inject(&self, what: Injection) {
        let mut reader = self.shared.reader();
        match what {
            Injection::Unreadable => reader.nonsense += 1,
            Injection::ReadError => reader.read_errors += 1,
            Injection::Missed => reader.missed += 1,
            Injection::ReaderDies => reader.dies = true,
        }
    }

    /// Marks the overlay mounted at `root` (as this process sees it). Before anything runs in it.
    ///
    /// # Errors
    /// If the path cannot be read or its file system not be marked.
    pub fn watch(&self, root: &Path) -> Result<(), RecordError> {
        let fail = |source| RecordError::Watch { path: root.to_owned(), source };
        let device = std::fs::metadata(root).map_err(fail)?.dev();
        let device = kernel_device(device);
        let mut reader = self.shared.reader();
        if let Some(group) = &reader.group {
            group.mark_filesystem(root).map_err(fail)?;
        }
        let outside = reader::without_proc(root).unwrap_or_else(|| root.to_owned());
        reader.gathered.roots.push(outside.into_os_string().into_vec());
        reader.roots.push(root.to_owned());
        self.shared.control().add_overlay(device)?;
        lock(&self.shared.overlays).push(device);
        Ok(())
    }

    /// Says what the processes of a leaf cgroup do.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn set_role(&self, cgroup_leaf: &Path, role: Role) -> Result<(), RecordError> {
        self.shared.control().set_role(cgroup_leaf, role.number())
    }

    /// What a seccomp filter of the container is to notify, with its listener handed to
    /// [`Self::add_listener`].
    pub fn watch_calls(&self) -> Watch {
        self.shared.control().watch()
    }

    /// Takes in the seccomp listener of processes with this role, or with that of a leaf cgroup; with
    /// neither, the cgroup of the first process that calls tells. Their calls wait for the recorder
    /// until then.
    ///
    /// # Errors
    /// If the backend wants none.
    pub fn add_listener(
        &self,
        role: Option<Role>,
        leaf: Option<&Path>,
        listener: OwnedFd,
    ) -> Result<(), RecordError> {
        self.shared.control().add_listener(role.map(Role::number), leaf, listener)
    }

    /// A seccomp listener never came to [`Self::add_listener`]: the calls of its processes fail unseen.
    pub fn lost_listener(&self) {
        self.shared.control().lost_listener();
    }

    /// From now on the main container's processes are in this phase.
    pub fn set_phase(&self, phase: Phase) {
        // what is still queued belongs to the phase before
        self.shared.drain();
        self.shared.reader().phase = phase;
        if let Err(error) = self.shared.control().set_phase(phase) {
            tracing::warn!(%error, "the recorder did not learn of the new phase");
        }
    }

    /// Waits until the main container's entrypoint was executed; false after `timeout`.
    pub fn wait_entry(&self, timeout: Duration) -> bool {
        self.shared.drain();
        let entered = lock(&self.shared.entered);
        let waited = self.shared.entry.wait_timeout_while(entered, timeout, |entered| !*entered);
        waited.is_ok_and(|(entered, _)| *entered)
    }

    /// Reads what is left, detaches, returns everything.
    ///
    /// # Errors
    /// If the kernel's count of losses cannot be read.
    pub fn finish(mut self) -> Result<Recording, RecordError> {
        self.shared.control().stop();
        let died = !self.join();
        let backend = self.shared.control().losses()?;
        let overlays = lock(&self.shared.overlays).clone();
        let mut reader = self.shared.reader();
        reader.give_up_naming();
        let gathered = std::mem::take(&mut reader.gathered);
        let losses = losses(&reader, &gathered, backend, died);
        let Gathered { files, paths, calls, addresses, capabilities, mounts, .. } = gathered;
        let (events, start) = (reader.events, reader.start);
        Ok(Recording {
            losses,
            events,
            files,
            paths,
            calls,
            addresses,
            capabilities,
            mounts,
            start,
            overlays,
        })
    }

    /// True if the thread ended in order.
    fn join(&mut self) -> bool {
        let _ = self.stop.write(1);
        self.thread.take().is_none_or(|thread| thread.join().is_ok())
    }
}

struct Hold<'a>(#[expect(dead_code, reason = "held for its lock")] MutexGuard<'a, Reader>);

impl Drop for Hold<'_> {
    fn drop(&mut self) {}
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.join();
    }
}

impl Shared {
    pub(crate) fn reader(&self) -> MutexGuard<'_, Reader> {
        lock(&self.reader)
    }

    fn control(&self) -> MutexGuard<'_, Box<dyn Control>> {
        lock(&self.control)
    }

    pub(crate) fn drain(&self) {
        let mut reader = self.reader();
        reader.drain();
        if reader.gathered.entered {
            *lock(&self.entered) = true;
            self.entry.notify_all();
        }
    }
}

impl Recording {
    /// Adds this run to `profile`, resolving paths against the image's `tree`.
    ///
    /// The notes are freed on the way. What the runtime did before the entrypoint's exec has the phase
    /// `runtime`, and only where nobody else used the same thing in the same way.
    pub fn fold(self, profile: &mut Profile, tree: &Tree, run: &RunRecord) {
        fold::fold(self, profile, tree, run.id());
        crate::sys::memory::give_back();
    }

    /// What fanotify alone saw: path, and `open/start` and the like. For tests.
    #[doc(hidden)]
    pub fn opened(&self) -> Vec<(String, String)> {
        let text = |file: &FileUse| {
            let how = if file.how == How::Exec { "exec" } else { "open" };
            (crate::model::escape(&file.path), format!("{how}/{}", file.by.phase().name()))
        };
        self.files.iter().filter(|file| file.by.backend() == FANOTIFY).map(text).collect()
    }
}

/// A thread that died while it held the lock is a loss of its own; what it left is still good.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// What was lost, each kind once. What a backend itself loses it counts in its `Control::losses`.
fn losses(reader: &Reader, gathered: &Gathered, backend: Vec<Lost>, died: bool) -> Vec<Loss> {
    let nameless = |c: &&CallUse| calls::name_of(c.arch, c.number).is_none();
    let unknown = gathered.calls.iter().filter(|c| c.number < 0x7fff_0000).filter(nameless);
    let unknown: HashSet<_> = unknown.map(|c| (c.arch, c.number)).collect();
    let unseen = if reader.group.is_none() { opens_unseen(gathered) } else { 0 };
    let counted = [
        (
            LossKind::OpensUnseen,
            unseen,
            "calls that open files which only fanotify would have told of",
        ),
        (LossKind::FanotifyOverflow, reader.overflows, "the fanotify queue overflowed"),
        (LossKind::FanotifyRead, reader.read_errors, "an fanotify event could not be read"),
        (LossKind::EventUnreadable, reader.nonsense, "an event of the backend makes no sense"),
        (LossKind::ProgramMissed, reader.missed, "a BPF program was left out while it ran already"),
        (LossKind::LateAttach, reader.late, "a process was in the cgroup before recording began"),
        (
            LossKind::DirectoryUnknown,
            gathered.bases_unknown,
            "a relative path's directory was gone",
        ),
        (LossKind::Unattributed, gathered.unattributed, "an open by a process that nothing names"),
        (LossKind::UnknownSyscall, unknown.len() as u64, "a system call that slim has no name for"),
        (LossKind::RecorderDied, died.into(), "the recorder's thread panicked"),
    ];
    let lost = counted.into_iter().chain(backend).filter(|(_, number, _)| *number > 0);
    lost.map(|(kind, number, detail)| Loss::new(kind, number, detail)).collect()
}

/// Calls that name no path and may have opened any file, each once.
fn opens_unseen(gathered: &Gathered) -> u64 {
    const CALLS: [&str; 2] = ["io_uring_enter", "open_by_handle_at"];
    let plain = |call: &CallUse| call.value.is_none() && call.failed.is_none();
    let made = |call: &&CallUse| call.refused.is_none() && plain(call);
    let named = |call: &&CallUse| {
        calls::name_of(call.arch, call.number).is_some_and(|name| CALLS.contains(&name))
    };
    gathered.calls.iter().filter(made).filter(named).count() as u64
}

fn fanotify_error(source: std::io::Error) -> RecordError {
    let way_out = match source.raw_os_error() {
        Some(1) => "run slim as root, with CAP_SYS_ADMIN",
        Some(38) => "use a kernel built with CONFIG_FANOTIFY",
        _ => "see fanotify_init(2) for this error",
    };
    RecordError::Fanotify { way_out, source }
}

fn open_cgroup(path: &Path) -> Result<std::fs::File, RecordError> {
    let no_cgroup = |source| RecordError::NoCgroup { path: path.to_owned(), source };
    if !path.join("cgroup.procs").exists() {
        return Err(no_cgroup(None));
    }
    std::fs::File::open(path).map_err(|error| no_cgroup(Some(error)))
}

/// `st_dev` as the kernel keeps it in `s_dev`.
fn kernel_device(device: u64) -> u32 {
    let (major, minor) = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
    u32::try_from(major << 20 | minor).unwrap_or(0)
}

/// The processes in a cgroup and below it.
fn processes(cgroup: &Path) -> Vec<u32> {
    let text = std::fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    let mut all: Vec<u32> = text.lines().filter_map(|line| line.parse().ok()).collect();
    for entry in std::fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            all.extend(processes(&entry.path()));
        }
    }
    all
}

/// `root` and the processes below it, by /proc.
fn family(root: u32) -> Vec<u32> {
    let mut parents = HashMap::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else {
            continue;
        };
        let status = std::fs::read_to_string(entry.path().join("status")).unwrap_or_default();
        let parent = status.lines().find_map(|l| l.strip_prefix("PPid:")?.trim().parse().ok());
        parents.insert(pid, parent.unwrap_or(0u32));
    }
    let below = |pid: &u32| {
        let up = |pid: &u32| parents.get(pid).copied();
        std::iter::successors(Some(*pid), up).take(64).any(|p| p == root)
    };
    parents.keys().filter(|pid| below(pid)).copied().collect()
}
