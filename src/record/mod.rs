//! Recorders: fanotify and BPF into events, events into a profile.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::model::{Loss, Phase, Profile, RunRecord, Tree};

/// Why recording failed to start or to end.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    #[error("not written yet")]
    Stub,
}

/// What is to be recorded.
#[derive(Debug, Clone)]
pub struct RecorderSpec {
    /// A cgroup v2 directory; everything in its subtree is seen.
    pub cgroup: PathBuf,
}

/// What the processes of a leaf cgroup do. Children inherit the role by fork, even if a runtime
/// moves them to another cgroup below [`RecorderSpec::cgroup`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The main container: its phase is the recorder's current one.
    Main,
    /// Always this phase (exec, run, health).
    Fixed(Phase),
    /// `slim exec --unrecorded`: seen, never counted.
    Unrecorded,
}

/// A recorder at work.
pub struct Recorder;

/// Everything a recorder saw. Folding it needs no kernel.
pub struct Recording {
    pub losses: Vec<Loss>,
}

impl Recorder {
    /// Attaches everything; nothing may run in the cgroup yet.
    pub fn start(_spec: RecorderSpec) -> Result<Self, RecordError> {
        Err(RecordError::Stub)
    }

    /// Marks the overlay mounted at `root` (as this process sees it). Before anything runs in it.
    pub fn watch(&self, _root: &Path) -> Result<(), RecordError> {
        Err(RecordError::Stub)
    }

    /// Says what the processes of a leaf cgroup (its inode number is its id) do.
    pub fn set_role(&self, _cgroup_leaf: &Path, _role: Role) -> Result<(), RecordError> {
        Err(RecordError::Stub)
    }

    /// From now on the main container's processes are in this phase.
    pub fn set_phase(&self, _phase: Phase) {}

    /// Waits until the main container's entrypoint was executed; false after `timeout`.
    pub fn wait_entry(&self, _timeout: Duration) -> bool {
        false
    }

    /// Reads what is left, detaches, returns everything.
    pub fn finish(self) -> Result<Recording, RecordError> {
        Err(RecordError::Stub)
    }
}

impl Recording {
    /// Adds this run to `profile`, resolving paths against the image's `tree`.
    pub fn fold(&self, _profile: &mut Profile, _tree: &Tree, _run: &RunRecord) {}
}
