//! The profile: what runs of an image were seen to use, in a form that adds up.
//!
//! Every cell is a map from run id to that run's first user, so joining profiles is a union of
//! maps: commutative, associative, idempotent. Counts are derived, never stored.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{ChainId, DiffId, Digest, LossKind, RootPath, Seen, SortedMap};

/// The schema name that this version writes. A newer major (`slim.profile/v2`) is refused.
pub const SCHEMA: &str = "slim.profile/v1";

/// Unknown fields of a JSON object, kept so that a round trip loses nothing.
pub type Extra = Map<String, Value>;

/// The digest of a run record (canonical JSON, see [`RunRecord::id`]).
pub type RunId = Digest;

/// What all runs of one image saw.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Profile {
    /// `slim.profile/v1`.
    pub schema: String,
    pub image: ImageIdentity,
    #[serde(default)]
    pub runs: BTreeMap<RunId, RunRecord>,
    /// Paths of the image (all layers applied) that were used, symlinks walked included. Boxed, so
    /// that the map's empty rooms are small.
    #[serde(default)]
    pub files: BTreeMap<RootPath, Box<FileCell>>,
    /// Lookups that failed: never a reason to keep anything. By absolute path.
    #[serde(default)]
    pub missing: BTreeMap<RootPath, Access>,
    /// Paths that the run created, changed or removed (the upper directory's witness and the
    /// recorder's). For changed and removed ones `files` has a cell too.
    #[serde(default)]
    pub written: BTreeMap<RootPath, Access>,
    /// Paths on other mounts than the image's (`/proc`, `/dev`, bind mounts).
    #[serde(default)]
    pub mounts: BTreeMap<RootPath, Access>,
    /// By architecture (`x86_64`, `x86`), name (`openat`), arguments (`""`, or for example
    /// `domain=AF_INET,type=SOCK_STREAM,protocol=6`; `...` stands for all beyond a bound): how the call
    /// was seen.
    #[serde(default)]
    pub syscalls: BTreeMap<String, BTreeMap<String, BTreeMap<String, Access>>>,
    /// Addresses that sockets were bound to, listened on, connected or sent to (`tcp 0.0.0.0:80`,
    /// `unix @name`; unix sockets with a path are in `files`, `written` and `mounts`). `...` stands for
    /// all beyond a bound.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub network: BTreeMap<String, Access>,
    /// Capabilities that the kernel asked for and granted after the entrypoint's exec, by name, where
    /// the recorder can see that (Linux 6.14).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub capabilities: BTreeMap<String, Access>,
    /// What each run read first until its container was ready.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub startup: BTreeMap<RunId, Startup>,
    #[serde(flatten)]
    pub extra: Extra,
    /// Fields below the ones with an `extra` of their own that this version does not know, by key;
    /// [`Profile::parse`] fills it, [`Profile::to_json`] puts them back.
    #[serde(skip)]
    pub unknown: Value,
}

/// Which image the profile is about. Names and manifest digests are aliases and join as sets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageIdentity {
    pub config_digest: Digest,
    pub chain_id: ChainId,
    /// `os/architecture[/variant]`.
    pub platform: String,
    #[serde(default)]
    pub names: BTreeSet<String>,
    #[serde(default)]
    pub manifest_digests: BTreeSet<Digest>,
    #[serde(flatten)]
    pub extra: Extra,
}

/// A file of the image and how it was used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileCell {
    /// The layer that holds the entry in force; absent for an implied parent directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer: Option<DiffId>,
    /// Digest of a regular file's content.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<Digest>,
    pub access: Access,
    /// As [`Extra`], in a third of the room.
    #[serde(flatten)]
    pub extra: SortedMap<String, Value>,
}

/// Kind of access (see [`kind`]) → run → its first user.
pub type Access = SortedMap<Cow<'static, str>, SortedMap<RunId, Seen>>;

/// Kinds of access: the keys of [`Access`]. Open-ended; these are the ones slim writes.
pub mod kind {
    /// Opened, for reading or writing.
    pub const OPEN: &str = "open";
    /// Executed (the binary, its `#!` interpreter, its ELF interpreter).
    pub const EXEC: &str = "exec";
    /// A directory opened or listed.
    pub const LIST: &str = "list";
    /// Looked at without opening: stat, access, readlink, chdir, statfs, getxattr, O_PATH …
    pub const STAT: &str = "stat";
    /// A symlink walked through on the way to another path.
    pub const WALK: &str = "walk";
    /// Changed: chmod, chown, utimes, truncate, setxattr, opened for writing.
    pub const CHANGE: &str = "change";
    /// Created.
    pub const CREATE: &str = "create";
    /// Removed or renamed away.
    pub const REMOVE: &str = "remove";
    /// Mapped for execution, as shared libraries are.
    pub const MAP: &str = "map";
    /// A unix socket bound or connected to.
    pub const SOCKET: &str = "socket";
    /// A call that entered the kernel.
    pub const CALL: &str = "call";
    /// A call that a seccomp filter refused: `refused:EPERM`.
    pub const REFUSED: &str = "refused:";
    /// A call that entered the kernel and failed, or failed on a file: `error:EACCES`.
    pub const ERROR: &str = "error:";
    /// A capability that was used.
    pub const USED: &str = "used";
    /// What was done with an address.
    pub const BIND: &str = "bind";
    pub const LISTEN: &str = "listen";
    pub const CONNECT: &str = "connect";
    pub const SEND: &str = "send";
}

/// Who used a thing first in a run.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FirstUse {
    /// The executable's path in the container, escaped.
    pub exe: String,
    /// `argv[0]`, escaped.
    pub argv0: String,
    pub uid: u32,
    /// A phase's name, see [`Phase`].
    pub phase: String,
    /// The process and its ancestors up to the container's first, in slim's pid namespace; as far as the
    /// backend knows them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pids: Vec<u32>,
    /// Microseconds since recording began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_us: Option<u64>,
    /// Who saw it: `bpf`, `fanotify`, `perf`, `notify`.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub backends: BTreeSet<String>,
}

/// What a run read until its container was ready, in the order of first touches.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Startup {
    pub touches: Vec<Touch>,
    /// There were more, which are left out.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub more: bool,
}

/// A file's first touch: opened, executed or mapped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Touch {
    pub path: RootPath,
    /// Its size in the image.
    pub bytes: u64,
    /// Microseconds since recording began.
    pub at_us: u64,
}

/// What a run does at a time. Written into the profile by [`Phase::name`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// The OCI runtime's own work before the entrypoint's exec: recorded, never a reason to keep.
    Runtime,
    Start,
    Coverage,
    /// `slim exec`, as a coverage script uses it.
    Exec,
    /// `SLIM_RUN`: a fresh container of the same image.
    Run,
    /// The image's HEALTHCHECK.
    Health,
    Stop,
    Restart,
    /// An OCI hook's work: a reason to keep, unlike the runtime's. A GPU toolkit's `ldconfig` is one. What
    /// a hook outside of the container calls has [`Self::Runtime`], since no filter binds it.
    Hook,
}

impl Phase {
    /// The name in profiles and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Runtime => "runtime",
            Self::Start => "start",
            Self::Coverage => "coverage",
            Self::Exec => "exec",
            Self::Run => "run",
            Self::Health => "health",
            Self::Stop => "stop",
            Self::Restart => "restart",
            Self::Hook => "hook",
        }
    }
}

/// What is to be known about one run. Its digest is its id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunRecord {
    /// Version of slim.
    pub slim: String,
    /// `trace`, or `verify` for a run of the slim image.
    pub purpose: String,
    /// Digest of the script's content, if it is a readable file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub script: Option<Digest>,
    /// The command line with values that may be secrets redacted.
    pub arguments: Vec<String>,
    /// `uname -r`.
    pub kernel: String,
    /// `embedded libcontainer 0.7.0`, `runc 1.1.5`, …
    pub runtime: String,
    /// The seccomp filter in force: `docker-default/…`, `unconfined`, or a digest.
    pub seccomp: String,
    /// `bpf`, …
    pub recorder: String,
    /// RFC 3339, UTC. Part of the identity, so that equal runs stay two runs.
    pub started: String,
    pub phases: Vec<PhaseRecord>,
    #[serde(default)]
    pub losses: Vec<Loss>,
    pub complete: bool,
    #[serde(flatten)]
    pub extra: Extra,
}

impl RunRecord {
    /// The digest of the record as compact JSON with sorted keys.
    pub fn id(&self) -> RunId {
        let value = serde_json::to_value(self).expect("a run record is plain data");
        Digest::of(canonical(&value).as_bytes())
    }
}

/// JSON without white space, keys sorted: equal values give equal bytes.
pub fn canonical(value: &Value) -> String {
    match value {
        Value::Object(map) => {
            let mut pairs: Vec<_> = map.iter().collect();
            pairs.sort_by_key(|(key, _)| key.as_str());
            let pairs: Vec<String> = pairs
                .into_iter()
                .map(|(key, value)| format!("{}:{}", Value::from(key.as_str()), canonical(value)))
                .collect();
            format!("{{{}}}", pairs.join(","))
        }
        Value::Array(items) => {
            format!("[{}]", items.iter().map(canonical).collect::<Vec<_>>().join(","))
        }
        plain => plain.to_string(),
    }
}

/// One phase of a run, by offset from the run's start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PhaseRecord {
    pub name: String,
    pub offset_ms: u64,
    pub duration_ms: u64,
    /// `ready`, `ended 0`, `killed 15`, `failed`, … where the phase has an outcome.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<String>,
}

/// Something that was not recorded. Any loss makes a run incomplete.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Loss {
    /// The name of a [`LossKind`], or of one that only another version of slim knows.
    pub kind: String,
    pub number: u64,
    /// One sentence for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

impl Loss {
    pub fn new(kind: LossKind, number: u64, detail: &str) -> Self {
        Self { kind: kind.name().to_owned(), number, detail: Some(detail.to_owned()) }
    }
}

impl Profile {
    /// What its runs lost, run by run.
    pub fn losses(&self) -> Vec<Loss> {
        self.runs.values().flat_map(|run| run.losses.clone()).collect()
    }

    /// A profile of nothing yet.
    pub fn new(image: ImageIdentity) -> Self {
        Self {
            schema: SCHEMA.to_owned(),
            image,
            runs: BTreeMap::new(),
            files: BTreeMap::new(),
            missing: BTreeMap::new(),
            written: BTreeMap::new(),
            mounts: BTreeMap::new(),
            syscalls: BTreeMap::new(),
            network: BTreeMap::new(),
            capabilities: BTreeMap::new(),
            startup: BTreeMap::new(),
            extra: Extra::new(),
            unknown: Value::Null,
        }
    }

    /// True if no run of the original lost anything. A profile without runs is not complete.
    pub fn is_complete(&self) -> bool {
        !self.runs.is_empty() && self.runs.values().all(|run| run.complete)
    }
}

/// Notes that `run` used a thing in this way, unless an earlier note of the run is there; then only
/// who saw it, and an earlier time, are added.
///
/// A use by the OCI runtime gives way to the container's own, whichever came first: only the latter
/// counts.
pub fn note(access: &mut Access, kind: impl Into<Cow<'static, str>>, run: RunId, by: &Seen) {
    let users = access.get_or_insert_with(kind.into(), SortedMap::default);
    let first = users.get_or_insert_with(run, || by.clone());
    if first.is_runtime() == by.is_runtime() {
        first.join(by);
    } else if first.is_runtime() {
        *first = by.clone();
    }
}
