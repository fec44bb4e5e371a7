//! perf tracepoints for calls and processes, seccomp notification for paths.

use super::RecordError;
use super::source::{Ends, Start};

pub(super) fn start(_: &Start<'_>) -> Result<Ends, RecordError> {
    check()?;
    unreachable!("check refuses")
}

/// Whether this host lets the backend work, found by trying.
///
/// # Errors
/// Why not, with the way out.
pub fn check() -> Result<(), RecordError> {
    Err(RecordError::Host {
        what: "perf",
        why: "it is not there yet".to_owned(),
        way_out: "use --recorder bpf",
        source: None,
    })
}
