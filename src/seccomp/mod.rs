//! System calls into filters: Docker's default, the emitted allowlist, Docker and OCI JSON. Pure.

use serde_json::Value;

use crate::model::{Policy, Profile};

/// Why no filter could be made.
#[derive(Debug, thiserror::Error)]
pub enum SeccompError {
    #[error("--allow {0:?} names no system call known here")]
    UnknownCall(String),
    #[error("the profile has no system calls of {0}")]
    NothingRecorded(String),
}

/// An allowlist with the reason of each name.
#[derive(Debug, Clone)]
pub struct Allowlist {
    pub docker: Value,
    pub oci: Value,
    /// Name → `recorded`, `base: runc 1.1.5 …`, `--allow`.
    pub why: std::collections::BTreeMap<String, String>,
}

/// The allowlist for what `profile` recorded plus the measured base sets, never wider than Docker's
/// default but for `policy.allow`.
pub fn allowlist(_profile: &Profile, _policy: &Policy) -> Result<Allowlist, SeccompError> {
    Err(SeccompError::NothingRecorded("x86_64".into()))
}

/// Docker's default filter for a container with `caps` (`CAP_…`), flat, as `linux.seccomp` of a
/// runtime configuration. Returns it with its name (`docker-default/28.5.2`).
pub fn docker_default(_caps: &[String]) -> (String, Value) {
    (String::new(), Value::Null)
}
