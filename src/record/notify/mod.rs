//! Seccomp notification: calls wait while a thread of slim looks at them, then go on.
//!
//! The runtime loads the filter just before the target's exec and hands its listener over
//! ([`super::Recorder::add_listener`]). A thread per listener (`serve`) reads strings from the waiting
//! process (`task`), looks up what its paths lead to, and queues events; `Hub` is what they share.
//!
//! As the whole of a backend the filter notifies every call. Beside perf, which counts calls, it
//! notifies those that use paths.

mod serve;
mod task;

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::event::{Event, EventKind};
use super::gather::{MAIN, phase_number};
use super::source::{Control, Ends, Lost, Source, Start};
use super::{RecordError, lock};
use crate::model::{LossKind, Phase};
use crate::seccomp::{Judge, Watch};
use crate::sys::process;
use crate::sys::seccomp::{self, Listener};

/// What the threads of the listeners, the source and the control share.
pub(super) struct Hub {
    /// Where every call is notified, so that calls are counted here: who answers for the container's
    /// filter.
    judge: Option<Judge>,
    queue: Mutex<Vec<Event>>,
    wake: EventFd,
    stop: EventFd,
    /// Of the main container; a number of `gather`.
    phase: AtomicU8,
    roles: Mutex<HashMap<PathBuf, u8>>,
    /// Devices of the overlays, as the kernel has them.
    overlays: Mutex<HashSet<u32>>,
    /// (architecture, phase, number, errno) of calls reported; errno for those refused.
    calls: Mutex<HashSet<(u8, u8, u32, u32)>>,
    /// Hashes of values and paths reported.
    reported: Mutex<HashSet<u64>>,
    string_fault: AtomicU64,
    /// io_uring instances that the container made.
    rings: AtomicU64,
    /// Calls that were answered by nobody, or whose listener broke.
    gap: AtomicU64,
    /// Calls that a signal, or the end of their thread, took back before they were received.
    taken_back: AtomicU64,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Hub {
    pub(super) fn new(judge: Option<Judge>) -> Result<Arc<Self>, RecordError> {
        let io =
            |source: nix::Error| RecordError::Io { what: "make an eventfd", source: source.into() };
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        Ok(Arc::new(Self {
            judge,
            queue: Mutex::default(),
            wake: EventFd::from_flags(flags).map_err(io)?,
            stop: EventFd::from_flags(flags).map_err(io)?,
            phase: AtomicU8::new(phase_number(Phase::Start)),
            roles: Mutex::default(),
            overlays: Mutex::default(),
            calls: Mutex::default(),
            reported: Mutex::default(),
            string_fault: AtomicU64::new(0),
            rings: AtomicU64::new(0),
            gap: AtomicU64::new(0),
            taken_back: AtomicU64::new(0),
            threads: Mutex::default(),
        }))
    }

    /// True if plain clones are not notified but known by the processes and threads that come of them.
    fn clones_unseen(&self) -> bool {
        self.judge.as_ref().is_some_and(Judge::allows_plain_clones)
    }

    pub(super) fn descriptor(&self) -> io::Result<OwnedFd> {
        self.wake.as_fd().try_clone_to_owned()
    }

    fn push(&self, event: Event) {
        let mut queue = lock(&self.queue);
        queue.push(event);
        if queue.len() == 1 {
            let _ = self.wake.write(1);
        }
    }

    /// The events since the last time, oldest first.
    pub(super) fn take(&self) -> Vec<Event> {
        let mut queue = lock(&self.queue);
        let _ = self.wake.read();
        std::mem::take(&mut *queue)
    }

    pub(super) fn set_phase(&self, phase: Phase) {
        self.phase.store(phase_number(phase), Ordering::Release);
    }

    /// The phase that counts for processes of a role.
    pub(super) fn phase_of(&self, role: u8) -> u8 {
        if role == MAIN { self.phase.load(Ordering::Acquire) } else { role }
    }

    pub(super) fn set_role(&self, leaf: &Path, role: u8) {
        lock(&self.roles).insert(leaf.to_owned(), role);
    }

    pub(super) fn add_overlay(&self, device: u32) {
        lock(&self.overlays).insert(device);
    }

    /// The role of a process by its cgroup; `None` if it is gone or in no leaf.
    pub(super) fn role_by_cgroup(&self, pid: u32) -> Option<u8> {
        let path = process::cgroup_of(pid)?;
        let roles = lock(&self.roles);
        // the path may begin elsewhere in another cgroup namespace: names of leaves tell them apart
        let names: Vec<&str> = path.split('/').collect();
        let named = |leaf: &Path| {
            let name = leaf.file_name().and_then(|name| name.to_str());
            let run = leaf.parent().and_then(|run| run.file_name()?.to_str());
            names.windows(2).any(|pair| Some(pair[0]) == run && Some(pair[1]) == name)
        };
        roles.iter().find(|(leaf, _)| named(leaf)).map(|(_, role)| *role)
    }

    pub(super) fn add_listener(
        self: &Arc<Self>,
        role: Option<u8>,
        leaf: Option<&Path>,
        listener: OwnedFd,
    ) -> Result<(), RecordError> {
        // runc and crun, who say no role, load filters that know nothing of clones
        let births = self.clones_unseen() && role.is_some();
        // none: the first call's process tells
        let of_leaf = || lock(&self.roles).get(leaf?).copied();
        let role = role.or_else(of_leaf);
        let hub = Arc::clone(self);
        let thread = std::thread::Builder::new()
            .name("listener".to_owned())
            .spawn(move || serve::run(&hub, &Listener::new(listener), role, births))
            .map_err(|source| RecordError::Io { what: "start a listener's thread", source })?;
        let mut threads = lock(&self.threads);
        threads.retain(|thread| !thread.is_finished());
        threads.push(thread);
        Ok(())
    }

    /// A listener never came here.
    pub(super) fn lost_listener(&self) {
        self.gap.fetch_add(1, Ordering::AcqRel);
    }

    pub(super) fn stop(&self) {
        let _ = self.stop.write(1);
        for thread in std::mem::take(&mut *lock(&self.threads)) {
            let _ = thread.join();
        }
        let number = self.taken_back.load(Ordering::Acquire);
        if number > 0 {
            // nothing was lost by it: what did not happen need not be recorded
            tracing::info!(number, "calls were taken back by signals before slim received them");
        }
    }

    pub(super) fn losses(&self) -> Vec<Lost> {
        let number = |counter: &AtomicU64| counter.load(Ordering::Acquire);
        vec![
            (LossKind::StringFault, number(&self.string_fault), "a call's path could not be read"),
            (
                LossKind::IoUringUnseen,
                number(&self.rings),
                "io_uring was set up, whose operations only --recorder bpf sees",
            ),
            (
                LossKind::ListenerGap,
                number(&self.gap),
                "calls found nobody at their seccomp listener",
            ),
        ]
    }

    /// Who a process is, by /proc, if it lives in the run's cgroup: for one that no event named.
    pub(super) fn identify(&self, pid: u32) -> Vec<Event> {
        let (Some(role), Some(status)) = (self.role_by_cgroup(pid), task::status(pid)) else {
            return Vec::new();
        };
        vec![Event { role, pid: status.pid, uid: status.uid, ..Event::of(EventKind::Sight) }]
    }
}

/// Starts the backend that is notified of every call.
pub(super) fn start(start: &Start<'_>) -> Result<Ends, RecordError> {
    check()?;
    let hub = Hub::new(Some(Judge::of(start.filter)))?;
    Ok(Ends { source: Box::new(Events(Arc::clone(&hub))), control: Box::new(Steer(hub)) })
}

struct Events(Arc<Hub>);

impl Source for Events {
    fn descriptors(&self) -> io::Result<Vec<OwnedFd>> {
        Ok(vec![self.0.descriptor()?])
    }

    fn drain(&mut self, sink: &mut dyn FnMut(Event)) -> u64 {
        self.0.take().into_iter().for_each(sink);
        0
    }

    fn identify(&mut self, pid: u32) -> Vec<Event> {
        self.0.identify(pid)
    }
}

struct Steer(Arc<Hub>);

impl Control for Steer {
    fn set_phase(&mut self, phase: Phase) -> Result<(), RecordError> {
        self.0.set_phase(phase);
        Ok(())
    }

    fn set_role(&mut self, leaf: &Path, role: u8) -> Result<(), RecordError> {
        self.0.set_role(leaf, role);
        Ok(())
    }

    fn add_overlay(&mut self, device: u32) -> Result<(), RecordError> {
        self.0.add_overlay(device);
        Ok(())
    }

    fn watch(&self) -> Watch {
        if self.0.clones_unseen() { Watch::AllButClone } else { Watch::All }
    }

    fn add_listener(
        &mut self,
        role: Option<u8>,
        leaf: Option<&Path>,
        listener: OwnedFd,
    ) -> Result<(), RecordError> {
        self.0.add_listener(role, leaf, listener)
    }

    fn lost_listener(&mut self) {
        self.0.lost_listener();
    }

    fn stop(&mut self) {
        self.0.stop();
    }

    fn losses(&mut self) -> Result<Vec<Lost>, RecordError> {
        Ok(self.0.losses())
    }
}

/// Whether this kernel notifies a reader and lets calls go on, found by trying.
///
/// # Errors
/// Why not, with the way out.
pub(super) fn check() -> Result<(), RecordError> {
    seccomp::try_notification().map_err(|source| RecordError::Host {
        what: "notify",
        why: "seccomp notification does not work".to_owned(),
        way_out: "use Linux 5.6 or later with CONFIG_SECCOMP_FILTER; where slim itself runs in a container, its own seccomp filter has to allow seccomp and process_vm_readv",
        source: Some(Box::new(source)),
    })
}
