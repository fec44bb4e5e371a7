//! skeleton
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::time::Duration;

use super::{RuntimeError, ScriptEnd};

/// A script about to run.
pub struct Script<'a> {
    pub argv: &'a [OsString],
    /// Added to slim's environment.
    pub env: &'a BTreeMap<String, String>,
    pub timeout: Option<Duration>,
    /// A cgroup v2 directory for it, made and removed here; `None` where there is none.
    pub cgroup: Option<&'a Path>,
    /// The host's mount namespace, if slim has left it.
    pub mount_ns: Option<BorrowedFd<'a>>,
    /// `--network private`.
    pub netns: Option<BorrowedFd<'a>>,
    /// The binary that knows [`hidden_supervisor`]; `None` is `/proc/self/exe`.
    pub program: Option<&'a Path>,
}

/// Call it from a thread whose children are born into the host's pid namespace.
pub fn run_script(
    _script: &Script<'_>,
    _interrupted: &dyn Fn() -> bool,
) -> Result<ScriptEnd, RuntimeError> {
    todo!()
}

/// Early check: the script exists and is executable (PATH lookup as a shell does).
pub fn check_script(_argv: &[OsString]) -> Result<(), RuntimeError> {
    todo!()
}

/// For `run_hidden`: `Some(exit code)` if `args` was one of this file's re-executions.
pub fn hidden_supervisor(_args: &[OsString]) -> Option<i32> {
    None
}
