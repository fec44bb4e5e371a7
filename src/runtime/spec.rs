//! skeleton
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{RunOptions, RuntimeError};
use crate::model::ImageConfig;

/// What a runtime specification is made of.
pub struct SpecInput<'a> {
    pub config: &'a ImageConfig,
    pub options: &'a RunOptions,
    /// The mounted overlay as this process reaches it; becomes `root.path` as is.
    pub rootfs: &'a Path,
    /// `--hostname` wins over it.
    pub hostname: &'a str,
    /// `None`: the host's network.
    pub netns: Option<PathBuf>,
    pub container_ip: Option<IpAddr>,
    /// `host-gateway` and the nameserver; `None`: the host's resolv.conf.
    pub gateway_ip: Option<IpAddr>,
    pub seccomp: Option<&'a Value>,
    pub cgroups_path: String,
    /// hosts, hostname and resolv.conf are written here and bind-mounted.
    pub files_dir: &'a Path,
    /// Replaces the command, keeps the entrypoint (SLIM_RUN); the container then has no terminal.
    pub argv: Option<&'a [String]>,
    /// A static `init` binary to be pid 1 for `--init`, on the host.
    pub init: Option<&'a Path>,
}

/// A `config.json` and what the user should know about it.
pub struct Built {
    pub spec: Value,
    pub warnings: Vec<String>,
}

pub fn build(_input: &SpecInput<'_>) -> Result<Built, RuntimeError> {
    todo!()
}

/// The OCI process object of an exec in the container of `spec`: same user, environment, working
/// directory, capabilities and limits; no terminal.
pub fn exec_process(_spec: &Value, _argv: &[String]) -> Value {
    todo!()
}

/// `SIGTERM`, `term`, `15`, `RTMIN+3`.
pub fn signal_number(_name: &str) -> Option<i32> {
    todo!()
}
