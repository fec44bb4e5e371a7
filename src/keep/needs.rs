//! Where a keep-set starts: what runs used, and what the configuration names.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::model::profile::{Access, kind};
use crate::model::{ImageConfig, NodeKind, Profile, Reason, RootPath, Seen, Tree};

/// What name resolution and the choice of a user read, in the container or on the engine's side,
/// whether a run did or not. The first three are looked up by engines for `USER`, `--user` and
/// `exec --user`; the others are mounted over by engines, and read where one does not.
pub const CONFIGURED: [(&str, &str); 6] = [
    ("/etc/passwd", "USER"),
    ("/etc/group", "USER"),
    ("/etc/nsswitch.conf", "name resolution"),
    ("/etc/hosts", "name resolution"),
    ("/etc/resolv.conf", "name resolution"),
    ("/etc/hostname", "name resolution"),
];

/// True if a run of the original, and not the runtime before the entrypoint, did one of `kinds`.
pub fn counts(profile: &Profile, access: &Access, kinds: impl Fn(&str) -> bool) -> bool {
    let runs = access.iter().filter(|(kind, _)| kinds(kind)).flat_map(|(_, runs)| runs);
    runs.into_iter().any(|(run, by)| is_trace(profile, run) && is_use(by))
}

/// Runs of the slim image (`verify`) are no reason to keep anything. A run whose record is not
/// there counts: its use was seen.
pub fn is_trace(profile: &Profile, run: &crate::model::profile::RunId) -> bool {
    profile.runs.get(run).is_none_or(|record| record.purpose != "verify")
}

fn is_use(by: &Seen) -> bool {
    !by.is_runtime()
}

/// Paths that runs executed.
pub fn executed(profile: &Profile) -> BTreeSet<RootPath> {
    let run = profile
        .files
        .iter()
        .filter(|(_, cell)| counts(profile, &cell.access, |kind| kind == kind::EXEC));
    run.map(|(path, _)| path.clone()).collect()
}

/// Paths that runs used, walked through, changed or removed.
pub fn used(profile: &Profile, tree: &Tree) -> Vec<(RootPath, Reason)> {
    let mut used = Vec::new();
    for (path, cell) in &profile.files {
        if counts(profile, &cell.access, |k| k != kind::WALK) {
            used.push((path.clone(), Reason::Touched));
        } else if counts(profile, &cell.access, |_| true) {
            used.push((path.clone(), Reason::Walked));
        }
    }
    for (path, access) in &profile.written {
        if !counts(profile, access, |_| true) {
            continue;
        }
        used.push((path.clone(), Reason::Changed));
        // A directory that was renamed took along what lay below, and a removed one was emptied.
        if counts(profile, access, |k| k == kind::REMOVE) {
            used.extend(below(tree, path).map(|path| (path.clone(), Reason::Changed)));
        }
    }
    used
}

/// What USER, WORKDIR, VOLUME and name resolution need.
pub fn configured(tree: &Tree, config: &ImageConfig) -> Vec<(RootPath, Reason)> {
    let mut found: BTreeMap<RootPath, Reason> = BTreeMap::new();
    for volume in config.volumes() {
        let Some(end) = walk(tree, &volume, &mut found, "VOLUME") else { continue };
        for path in below(tree, &end) {
            found.insert(path.clone(), Reason::Volume(end.clone()));
        }
        found.insert(end.clone(), Reason::Volume(end));
    }
    if let Some(workdir) = config.workdir() {
        walk(tree, workdir, &mut found, "WORKDIR");
    }
    for (path, what) in CONFIGURED {
        walk(tree, path, &mut found, what);
    }
    found.into_iter().collect()
}

/// What the options of runs need that the runtime looks up before the entrypoint: the working
/// directory, and the symlinks on the way to mounts (what lies under a mount is not seen).
pub fn given(profile: &Profile, tree: &Tree) -> Vec<(RootPath, Reason)> {
    let mut found = BTreeMap::new();
    for run in profile.runs.values().filter(|run| run.purpose != "verify") {
        if let Some(workdir) = run.extra.get("workdir").and_then(Value::as_str) {
            walk(tree, workdir, &mut found, "WORKDIR");
        }
        let places = run.extra.get("mount_points").and_then(Value::as_array);
        for place in places.into_iter().flatten().filter_map(Value::as_str) {
            let mut passed = BTreeMap::new();
            let end = walk(tree, place, &mut passed, "mount");
            passed.retain(|path, _| Some(path) != end.as_ref());
            found.extend(passed);
        }
    }
    found.into_iter().collect()
}

/// Follows a configured path, noting symlinks and end; the end, if the tree has it.
fn walk(
    tree: &Tree,
    raw: &str,
    found: &mut BTreeMap<RootPath, Reason>,
    what: &str,
) -> Option<RootPath> {
    let root = RootPath::root();
    let end = tree.resolve(&root, &root, raw.as_bytes(), true)?;
    for path in end.links.iter().chain(end.exists.then_some(&end.path)) {
        found.entry(path.clone()).or_insert_with(|| Reason::Config(what.to_owned()));
    }
    end.exists.then_some(end.path)
}

/// Everything below a directory, not the directory itself.
fn below<'a>(tree: &'a Tree, dir: &'a RootPath) -> impl Iterator<Item = &'a RootPath> {
    let is_dir = dir.is_root() || tree.get(dir).is_some_and(|n| n.kind == NodeKind::Dir);
    // Not a range of the map: `/a-b` sorts between `/a` and `/a/b`.
    tree.nodes.keys().filter(move |path| is_dir && *path != dir && path.is_within(dir))
}
