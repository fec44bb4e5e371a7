//! `slim doctor`: what this host offers, what is missing, what that costs and what to do about it.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::model::{Lack, Offer};
use crate::rootfs::{RunDir, Store};
use crate::{record, runtime};

/// One thing that a host offers or lacks.
#[derive(Debug, Clone, Serialize)]
pub struct Check {
    pub name: String,
    pub ok: bool,
    /// True if nothing can be traced without it.
    pub needed: bool,
    /// What was found, or what is missing, what that costs and the way out.
    pub detail: String,
    /// The first part of `detail`: what was found, or what the kernel or a program said.
    #[serde(skip)]
    pub found: String,
    /// What slim cannot do without it; only where it is missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub costs: Option<String>,
    /// What the user can do; only where it is missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub way_out: Option<String>,
    /// For a recorder: what it would not see here, other recorders left aside (fanotify, which works
    /// beside each of them where it may, included).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub blind: Vec<String>,
}

impl Check {
    fn of(offer: Offer) -> Self {
        let needed = match runtime::in_user_namespace() {
            true => NEEDED_BY_USER.contains(&offer.name),
            false => NEEDED.contains(&offer.name),
        };
        let (ok, name) = (offer.ok(), offer.name.to_owned());
        match offer.found {
            Ok(detail) => Self {
                name,
                ok,
                needed,
                found: detail.clone(),
                detail,
                costs: None,
                way_out: None,
                blind: Vec::new(),
            },
            Err(lack) => Self {
                name,
                ok,
                needed,
                detail: format!("{}; costs: {}; {}", lack.why, lack.costs, lack.way_out),
                found: lack.why,
                costs: Some(lack.costs),
                way_out: Some(lack.way_out),
                blind: Vec::new(),
            },
        }
    }
}

/// Rows without which nothing is traced as root. Of the recorders one is enough: the row `recorder`.
const NEEDED: [&str; 7] =
    ["root", "fanotify", "cgroup2", "overlayfs", "namespaces", "seccomp", "recorder"];
/// The same for an ordinary user in a user namespace.
const NEEDED_BY_USER: [&str; 5] =
    ["user_namespaces", "overlayfs", "namespaces", "seccomp", "recorder"];

/// Tries what tracing needs and what it can use, one by one: as an ordinary user inside the user
/// namespace that a run would have, if it could be entered. `store` is where the store would be.
pub fn doctor(store: Option<&Path>) -> Vec<Check> {
    let scratch = Scratch::new(store);
    let folder = |name: &str| scratch.folder(name);
    let check = Check::of;
    let probed = record::probe(&folder("record"));
    let mut checks = vec![Check::of(root())];
    checks.extend(probed.parts.into_iter().map(check));
    let recorders = probed.recorders.into_iter();
    checks.extend(recorders.map(|r| Check { blind: r.blind, ..Check::of(r.offer) }));
    checks.push(Check::of(probed.auto));
    checks.extend(runtime::probe(&folder("runtime")).into_iter().map(check));
    checks.push(check(crate::rootfs::probe(&folder("unpack"))));
    checks.extend(record::settings().into_iter().map(check));
    checks
}

fn root() -> Offer {
    let costs = "the recorders that see most, bpf and perf, and limits by cgroups";
    let found = match (runtime::in_user_namespace(), rustix::process::geteuid().is_root()) {
        (true, _) => {
            Err(Lack::new("not root, but of a user namespace", costs, "run slim with sudo"))
        }
        (false, true) => Ok("yes".to_owned()),
        (false, false) => Err(Lack::new("not root", "nothing can be traced", "run slim with sudo")),
    };
    Offer::new("root", found)
}

/// Scratch space where a run would have it, or wherever this user may write.
enum Scratch {
    Run(RunDir),
    Temporary(Option<tempfile::TempDir>),
}

impl Scratch {
    fn new(store: Option<&Path>) -> Self {
        let run = Store::open(store).and_then(|store| store.new_run());
        run.map_or_else(|_| Self::Temporary(tempfile::tempdir().ok()), Self::Run)
    }

    fn folder(&self, name: &str) -> PathBuf {
        let base = match self {
            Self::Run(run) => run.path.as_path(),
            Self::Temporary(dir) => dir.as_ref().map_or(Path::new("/nonexistent"), |d| d.path()),
        };
        let folder = base.join(name);
        // what cannot be made is missed by the probe that wants it, which says so
        let _ = std::fs::create_dir(&folder);
        folder
    }
}
