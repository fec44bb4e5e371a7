//! Control groups: which versions are mounted, and what slim may do with them.

use std::fs;
use std::path::Path;

use crate::model::{Lack, Offer};
use crate::runtime::cgroup::Hierarchies;
use crate::sys::probe;

/// The offer `cgroup2`: a group is made in the hierarchy of version 2 and removed again.
pub(super) fn probe() -> Offer {
    let found = Hierarchies::read().unwrap_or_default();
    let costs =
        "nothing can be recorded: the processes of a run are told from others by their cgroup";
    let Some(root) = &found.unified else {
        let way_out = "mount -t cgroup2 none /sys/fs/cgroup/unified, as root; inside a container that \
                       takes --privileged";
        return Offer::new("cgroup2", Err(Lack::new("no cgroup v2 is mounted", costs, way_out)));
    };
    let tried = probe::cgroup(root).map_err(|error| {
        let way_out = "run slim as root; inside a container that takes --privileged";
        Lack::new(format!("mkdir in {}: {error}", root.display()), costs, way_out)
    });
    Offer::new("cgroup2", tried.map(|()| describe(root, &found)))
}

fn describe(root: &Path, found: &Hierarchies) -> String {
    let read = |name: &str| fs::read_to_string(root.join(name)).unwrap_or_default();
    let kind = match found.is_pure() {
        true => "version 2 alone".to_owned(),
        false => format!("hybrid, {} of version 1 beside it", found.legacy.len()),
    };
    // Only the root of all cgroups has no type (cgroups(7)).
    let nested = if root.join("cgroup.type").exists() { ", of a container" } else { "" };
    let offered = read("cgroup.controllers");
    let handed = read("cgroup.subtree_control");
    let list = |text: &str| match text.trim() {
        "" => "no controllers".to_owned(),
        some => some.to_owned(),
    };
    format!(
        "{} ({kind}{nested}): {}; handed down: {}",
        root.display(),
        list(&offered),
        list(&handed)
    )
}
