//! What a backend is to the rest of a recorder: a source of events, and the hand that steers it.
//!
//! fanotify is no backend: whichever runs, the recorder reads it too where the kernel lets it.
//! `gather`, `event`, `fold`, `mounts` and `calls` are shared by all.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use super::RecordError;
use super::event::Event;
use crate::model::{LossKind, Phase};
use crate::seccomp::Watch;
use crate::sys::bpf::BpfError;

/// What a backend is started with.
pub(super) struct Start<'a> {
    /// The run's cgroup v2 directory, open.
    pub cgroup: Option<&'a File>,
    /// The same by its path, for hosts where another hierarchy is to be found by it.
    pub path: &'a Path,
    /// slim and its descendants: what they open is not the container's.
    pub family: &'a [u32],
    /// The container's seccomp filter.
    pub filter: Option<&'a serde_json::Value>,
}

impl<'a> Start<'a> {
    /// The cgroup, for a backend that filters by it.
    pub fn cgroup(&self) -> Result<&'a File, RecordError> {
        self.cgroup.ok_or_else(|| RecordError::NoCgroup { path: self.path.into(), source: None })
    }
}

/// The two ends of a backend: one belongs to the reader's thread, the other to whoever steers.
pub(super) struct Ends {
    pub source: Box<dyn Source>,
    pub control: Box<dyn Control>,
}

/// Where events come from.
pub(crate) trait Source: Send {
    /// Descriptors that are readable when there is something to drain; asked once.
    fn descriptors(&self) -> io::Result<Vec<OwnedFd>>;

    /// Hands out what is there, in an order in which causes come before effects. The count is that of
    /// events that made no sense.
    fn drain(&mut self, sink: &mut dyn FnMut(Event)) -> u64;

    /// Says who `pid` is, if it lives and no event has named it; for backends that do not see forks.
    fn identify(&mut self, _pid: u32) -> Vec<Event> {
        Vec::new()
    }
}

/// How a backend is steered.
pub(super) trait Control: Send {
    /// From now on the main container's processes are in this phase.
    fn set_phase(&mut self, phase: Phase) -> Result<(), RecordError>;

    /// What the processes of a leaf cgroup do, by the number that `gather` has for it.
    fn set_role(&mut self, leaf: &Path, role: u8) -> Result<(), RecordError>;

    /// An overlay's files are the container's; by the kernel's device number.
    fn add_overlay(&mut self, device: u32) -> Result<(), RecordError>;

    /// What a seccomp filter of the container is to notify; its listeners come to
    /// [`Self::add_listener`].
    fn watch(&self) -> Watch {
        Watch::Nothing
    }

    /// Takes in a seccomp listener of work with this role, or in a leaf cgroup whose role was set.
    fn add_listener(
        &mut self,
        _role: Option<u8>,
        _leaf: Option<&Path>,
        _listener: OwnedFd,
    ) -> Result<(), RecordError> {
        Err(RecordError::Listener)
    }

    /// A listener was lost on the way here: the calls of its processes fail unseen.
    fn lost_listener(&mut self) {}

    /// Stops what threads the backend has, before the last drain.
    fn stop(&mut self) {}

    /// What was lost so far.
    fn losses(&mut self) -> Result<Vec<Lost>, RecordError>;
}

/// Kind, number and a sentence; see [`crate::model::Loss`].
pub(super) type Lost = (LossKind, u64, &'static str);

impl From<BpfError> for RecordError {
    fn from(error: BpfError) -> Self {
        Self::Bpf(Box::new(error))
    }
}
