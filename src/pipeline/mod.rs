//! The long verbs, each a plain sequence of steps: trace, build, verify, merge.
//!
//! Knows the order of things and what a failure means for the whole ([`PipelineError::exit`]); leaves
//! every single step to the rooms below and every word on the terminal to `cli`.

mod build;
mod doctor;
mod family;
mod host;
mod image;
mod index;
mod load;
mod play;
mod product;
mod push;
mod results;
mod run;
mod run_spec;
mod summary;
mod tag;
mod trace;
mod verify;

use std::path::PathBuf;

use crate::emit::EmitError;
use crate::keep::{Finding, KeepError};
use crate::model::Loss;
use crate::record::RecordError;
use crate::rootfs::RootfsError;
use crate::runtime::RuntimeError;
use crate::seccomp::SeccompError;
use crate::sink::SinkError;
use crate::source::{Fault, SourceError};
use crate::wire::WireError;

pub use build::{BuildSpec, build, merge, read_globs, read_profile, seccomp_text};
pub use doctor::{Check, doctor};
pub use family::{Family, FamilySpec, build_family};
pub use host::{Inspected, clean, inspect, store_gc, store_list};
pub use index::{IndexSpec, Joined, index};
pub use load::{LoadSpec, Loaded, load};
pub use product::ProductSpec;
pub use push::{PushSpec, check_names, push};
pub use results::write_whole;
pub use run_spec::{RecorderChoice, RunSpec};
pub use summary::{Bystanders, Summary, Verified};
pub use trace::{TraceSpec, trace};
pub use verify::{VerifySpec, verify};

/// What a person is told while a verb works.
pub trait Reporter: Send + Sync {
    /// A new step begins; it may take longer than a second.
    fn step(&self, text: &str);
    /// How far the step is, in bytes; `total` may be 0 where it is not known.
    fn progress(&self, done: u64, total: u64);
    /// Something the user should know that stops nothing.
    fn warn(&self, text: &str);
}

/// Exit codes of the command line, a contract.
pub mod exit {
    pub const OK: u8 = 0;
    pub const INTERNAL: u8 = 1;
    pub const USAGE: u8 = 2;
    pub const IMAGE: u8 = 3;
    pub const HOST: u8 = 4;
    pub const SCRIPT: u8 = 5;
    pub const NOT_READY: u8 = 6;
    pub const INCOMPLETE: u8 = 7;
    pub const VERIFY: u8 = 8;
    pub const POLICY: u8 = 9;
    pub const CONTAINER: u8 = 10;
    pub const INTERRUPTED: u8 = 130;
}

/// Why a verb did not come to its good end.
#[derive(Debug, thiserror::Error)]
pub enum PipelineError {
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    Rootfs(#[from] RootfsError),
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error(transparent)]
    Keep(#[from] KeepError),
    #[error(transparent)]
    Seccomp(#[from] SeccompError),
    #[error(transparent)]
    Emit(#[from] EmitError),
    #[error(transparent)]
    Sink(#[from] SinkError),
    #[error("{0}")]
    Usage(String),
    #[error("{what}: {why}; {way_out}")]
    Host { what: String, why: String, way_out: String },
    #[error("{what}")]
    Io { what: String, source: std::io::Error },
    #[error("the script {how}")]
    Script { how: String },
    #[error("{0}")]
    NotReady(String),
    #[error("the record is incomplete: {}", list_losses(.losses))]
    Incomplete { losses: Vec<Loss> },
    #[error("verification failed: {}", list_findings(.findings))]
    Verify { findings: Vec<Finding> },
    #[error("{0}")]
    Container(String),
    #[error("interrupted; everything was stopped and nothing was written")]
    Interrupted,
}

impl PipelineError {
    /// The exit code of the command line.
    pub fn exit(&self) -> u8 {
        if let Some(code) = deep_exit(self) {
            return code;
        }
        match self {
            Self::Rootfs(RootfsError::Interrupted) | Self::Emit(EmitError::Interrupted) => {
                exit::INTERRUPTED
            }
            Self::Source(SourceError::Interrupted) => exit::INTERRUPTED,
            Self::Source(error) => fault_exit(error.fault()),
            Self::Sink(error) => fault_exit(error.fault()),
            Self::Rootfs(error) if error.is_bad_image() => exit::IMAGE,
            Self::Emit(error) if error.is_bad_image() => exit::IMAGE,
            Self::Runtime(error) => runtime_exit(error),
            Self::Record(_) | Self::Host { .. } | Self::Rootfs(_) => exit::HOST,
            Self::Emit(
                EmitError::Full { .. }
                | EmitError::Write { .. }
                | EmitError::Unread { .. }
                | EmitError::Copy { .. }
                | EmitError::Temporary { .. },
            ) => exit::HOST,
            Self::Keep(_) | Self::Seccomp(_) | Self::Usage(_) => exit::USAGE,
            Self::Script { .. } => exit::SCRIPT,
            Self::NotReady(_) => exit::NOT_READY,
            Self::Incomplete { .. } => exit::INCOMPLETE,
            Self::Verify { .. } => exit::VERIFY,
            Self::Container(_) => exit::CONTAINER,
            Self::Interrupted => exit::INTERRUPTED,
            Self::Io { source, .. } => io_exit(source),
            Self::Emit(_) => exit::INTERNAL,
        }
    }
}

/// Where reading a layer failed for a reason that is not the image's: the registry went away, the
/// disk is full.
fn deep_exit(error: &PipelineError) -> Option<u8> {
    use std::io::{Error, ErrorKind};
    let mut next = std::error::Error::source(error);
    while let Some(cause) = next {
        if let Some(io) = cause.downcast_ref::<Error>() {
            if matches!(io.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) {
                return Some(exit::HOST);
            }
            if let Some(wire) = io.get_ref().and_then(|e| e.downcast_ref::<WireError>()) {
                return Some(fault_exit(wire.fault()));
            }
        }
        next = cause.source();
    }
    None
}

fn fault_exit(fault: Fault) -> u8 {
    match fault {
        Fault::Image => exit::IMAGE,
        Fault::Host => exit::HOST,
        Fault::Usage => exit::USAGE,
        Fault::Policy => exit::POLICY,
        Fault::Interrupted => exit::INTERRUPTED,
    }
}

fn runtime_exit(error: &RuntimeError) -> u8 {
    match error {
        RuntimeError::Host { .. } => exit::HOST,
        RuntimeError::Option { .. } => exit::USAGE,
        RuntimeError::Container { .. } => exit::CONTAINER,
        RuntimeError::Io { source, .. } => io_exit(source),
    }
}

/// A full disk or a missing permission is the host's lack; anything else is ours.
fn io_exit(source: &std::io::Error) -> u8 {
    use std::io::ErrorKind::{PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    match source.kind() {
        StorageFull | PermissionDenied | QuotaExceeded | ReadOnlyFilesystem => exit::HOST,
        _ => exit::INTERNAL,
    }
}

fn list_losses(losses: &[Loss]) -> String {
    if losses.is_empty() {
        return "the profile has no run".to_owned();
    }
    let one = |loss: &Loss| format!("{} {}", loss.number, loss.kind);
    losses.iter().map(one).collect::<Vec<_>>().join(", ")
}

fn list_findings(findings: &[Finding]) -> String {
    let shown = 8;
    let one = |finding: &Finding| {
        let by = finding.by.as_ref().map(|by| format!(" (by {}, {})", by.exe, by.phase));
        format!("{}: {}{}", finding.subject, finding.what, by.unwrap_or_default())
    };
    let mut lines: Vec<String> = findings.iter().take(shown).map(one).collect();
    if findings.len() > shown {
        lines.push(format!("and {} more", findings.len() - shown));
    }
    lines.join("; ")
}

/// Names a failed operation on a path.
pub(crate) fn io_at(
    what: &str,
    path: &std::path::Path,
) -> impl FnOnce(std::io::Error) -> PipelineError {
    let what = format!("{what} {}", path.display());
    move |source| PipelineError::Io { what, source }
}

/// The default folder for results.
pub fn default_output() -> PathBuf {
    PathBuf::from("slim-out")
}
