//! Is the slim image the original, less what nobody used? Findings, each with who met it.

use std::collections::BTreeMap;

use super::needs::is_trace;
use crate::model::profile::{Access, kind};
use crate::model::{FirstUse, KeepSet, Node, NodeKind, Profile, RootPath, Seen, Tree, escape};

/// Something verification found wrong.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Finding {
    /// `static` or `dynamic`.
    pub check: &'static str,
    /// A path (escaped) or a call's name.
    pub subject: String,
    /// What is wrong, in a sentence.
    pub what: String,
    /// Who met it, for dynamic findings.
    pub by: Option<FirstUse>,
}

/// Compares the slim tree with the original, path by path: every path of `keep`, and no other, with
/// type, mode, owner, times, xattrs, content and link groups as they were.
///
/// A directory that no layer of the original names has no metadata of its own: for it only the type
/// is compared. Directories above kept paths may be there without being in `keep`.
pub fn verify_static(original: &Tree, slim: &Tree, keep: &KeepSet) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut find = |path: &RootPath, what: String| {
        let subject = path.to_string();
        findings.push(Finding { check: "static", subject, what, by: None });
    };
    let links = (LinkGroups::of(original, keep), LinkGroups::of(slim, keep));
    for path in keep.paths.keys() {
        match (original.get(path), slim.get(path)) {
            (None, _) => find(path, "is to be kept but is not in the original".into()),
            (_, None) => find(path, "is missing from the slim image".into()),
            (Some(was), Some(is)) => {
                differences(was, is).into_iter().for_each(|what| find(path, what));
                if links.0.first(was) != links.1.first(is) && was.kind != NodeKind::Dir {
                    let name = |first: Option<&RootPath>| first.unwrap_or(path).to_string();
                    let (was, is) = (name(links.0.first(was)), name(links.1.first(is)));
                    find(path, format!("is a hard link of {is}, was one of {was}"));
                }
            }
        }
    }
    let parents: std::collections::BTreeSet<RootPath> =
        keep.paths.keys().flat_map(RootPath::ancestors).collect();
    for (path, node) in &slim.nodes {
        let is_parent = node.kind == NodeKind::Dir && parents.contains(path);
        if !keep.paths.contains_key(path) && !is_parent {
            find(path, "is in the slim image but not in the keep-set".into());
        }
    }
    findings
}

/// The kept names of each inode; the first one stands for the group.
struct LinkGroups<'a>(BTreeMap<u64, &'a RootPath>);

impl<'a> LinkGroups<'a> {
    fn of(tree: &Tree, keep: &'a KeepSet) -> Self {
        let mut groups = BTreeMap::new();
        for path in keep.paths.keys() {
            if let Some(node) = tree.get(path) {
                groups.entry(node.inode).or_insert(path);
            }
        }
        Self(groups)
    }

    fn first(&self, node: &Node) -> Option<&'a RootPath> {
        self.0.get(&node.inode).copied()
    }
}

fn differences(was: &Node, is: &Node) -> Vec<String> {
    let mut found = Vec::new();
    if let Some(what) = content(&was.kind, &is.kind) {
        found.push(what);
    }
    if was.implied {
        return found;
    }
    if is.implied {
        found.push("has lost its entry: owner, mode and times are not the original's".into());
        return found;
    }
    if was.mode != is.mode {
        found.push(format!("has mode {:04o}, was {:04o}", is.mode, was.mode));
    }
    if (was.uid, was.gid) != (is.uid, is.gid) {
        let (a, b) = (format!("{}:{}", is.uid, is.gid), format!("{}:{}", was.uid, was.gid));
        found.push(format!("has owner {a}, was {b}"));
    }
    if was.mtime != is.mtime {
        let text = |(seconds, nanos): (i64, u32)| format!("{seconds}.{nanos:09}");
        found.push(format!("has mtime {}, was {}", text(is.mtime), text(was.mtime)));
    }
    let names = was.xattrs.keys().chain(is.xattrs.keys());
    let names: std::collections::BTreeSet<&String> = names.collect();
    for name in names {
        match (was.xattrs.get(name), is.xattrs.get(name)) {
            (Some(_), None) => found.push(format!("has lost its {name}")),
            (None, Some(_)) => found.push(format!("has a {name}, had none")),
            (a, b) if a != b => found.push(format!("has another {name}")),
            _ => {}
        }
    }
    found
}

/// Type and content; facts follow from the content.
fn content(was: &NodeKind, is: &NodeKind) -> Option<String> {
    use NodeKind::{Block, Char, Dir, Fifo, File, Symlink};
    match (was, is) {
        (File { size: a, content: x, .. }, File { size: b, content: y, .. }) => {
            (x != y || a != b).then(|| format!("has other content ({b} bytes {y}, was {a} {x})"))
        }
        (Symlink { target: a }, Symlink { target: b }) => {
            (a != b).then(|| format!("points to {}, pointed to {}", escape(b), escape(a)))
        }
        (Dir, Dir) | (Fifo, Fifo) => None,
        (Char { .. }, Char { .. }) | (Block { .. }, Block { .. }) => {
            (was != is).then(|| "is another device".to_owned())
        }
        _ => Some(format!("is a {}, was a {}", word(is), word(was))),
    }
}

fn word(kind: &NodeKind) -> &'static str {
    match kind {
        NodeKind::File { .. } => "file",
        NodeKind::Dir => "directory",
        NodeKind::Symlink { .. } => "symlink",
        NodeKind::Fifo => "FIFO",
        NodeKind::Char { .. } => "character device",
        NodeKind::Block { .. } => "block device",
    }
}

/// Compares a run of the slim image (folded against the original's tree) with the runs of the
/// original: calls refused now that no traced run saw refused, and paths of the original that are
/// not found now though no traced run missed them.
///
/// A path that the slim run itself removed or renamed, or that `--drop` names, is no finding; nor is
/// what the runtime does before the entrypoint.
pub fn verify_dynamic(
    original: &Profile,
    slim: &Profile,
    tree: &Tree,
    keep: &KeepSet,
) -> Vec<Finding> {
    let mut findings = refused(original, slim);
    for (path, access) in &slim.missing {
        let Some(by) = first(access, |_| true) else { continue };
        let known = original.missing.get(path).is_some_and(|seen| traced(original, seen, |_| true));
        let above = || std::iter::once(path.clone()).chain(path.ancestors());
        let removed = || {
            let cell = |p: &RootPath| slim.written.get(p).and_then(|a| a.get(kind::REMOVE));
            above().any(|p| cell(&p).is_some_and(|runs| !runs.is_empty()))
        };
        let dropped = || above().any(|p| keep.dropped.contains(&p));
        if !tree.has(path) || known || removed() || dropped() {
            continue;
        }
        findings.push(Finding {
            check: "dynamic",
            subject: path.to_string(),
            what: "was not found in the slim image; the original has it".into(),
            by: Some(by),
        });
    }
    findings
}

fn refused(original: &Profile, slim: &Profile) -> Vec<Finding> {
    let mut findings = Vec::new();
    let is_refusal = |k: &str| k.starts_with(kind::REFUSED);
    for (arch, name, arguments, access) in calls(slim) {
        let Some(by) = first(access, is_refusal) else { continue };
        let same = |a: &Access| traced(original, a, is_refusal);
        let seen = original.syscalls.get(arch).and_then(|names| names.get(name)?.get(arguments));
        if seen.is_some_and(same) {
            continue;
        }
        let errors: Vec<&str> =
            access.keys().filter_map(|k| k.strip_prefix(kind::REFUSED)).collect();
        let with = if arguments.is_empty() { String::new() } else { format!(" ({arguments})") };
        let what = format!(
            "{arch} call{with} was refused with {}; no run of the original saw that",
            errors.join(", ")
        );
        findings.push(Finding { check: "dynamic", subject: name.to_owned(), what, by: Some(by) });
    }
    findings
}

fn calls(profile: &Profile) -> impl Iterator<Item = (&str, &str, &str, &Access)> {
    profile.syscalls.iter().flat_map(|(arch, names)| {
        names.iter().flat_map(move |(name, all)| {
            all.iter()
                .map(move |(args, access)| (arch.as_str(), name.as_str(), args.as_str(), access))
        })
    })
}

/// True if a traced run did one of `kinds`, in any phase.
fn traced(profile: &Profile, access: &Access, kinds: impl Fn(&str) -> bool) -> bool {
    let runs = access.iter().filter(|(k, _)| kinds(k)).flat_map(|(_, runs)| runs.keys());
    runs.into_iter().any(|run| is_trace(profile, run))
}

/// The first user beside the runtime, of any run.
fn first(access: &Access, kinds: impl Fn(&str) -> bool) -> Option<FirstUse> {
    let users = access.iter().filter(|(k, _)| kinds(k)).flat_map(|(_, runs)| runs.values());
    users.filter(|by| !by.is_runtime()).map(Seen::first_use).min()
}
