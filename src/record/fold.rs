//! From what was seen to a profile, against the tree of the image. Needs no kernel.

use std::collections::HashMap;

use super::Recording;
use super::calls::{self, O_CREAT, O_PATH, O_TRUNC, Op};
use super::gather::{CallUse, FileUse, PathUse, libc_errno as errno};
use super::mounts::{MountTable, Place};
use crate::model::profile::{FileCell, RunId, kind, note};
use crate::model::{Arch, FirstUse, NodeKind, Phase, Profile, Resolved, RootPath, Tree};

/// Kind of access of a failed lookup on another mount; [`Profile::missing`] is the overlay's.
const MISSING: &str = "missing";
/// Argument values that a cell keeps for each call.
const MAX_VALUES: usize = 64;

struct Fold<'a> {
    profile: &'a mut Profile,
    tree: &'a Tree,
    run: RunId,
    recording: &'a Recording,
    usual: MountTable,
    /// Path → when the run first removed it or renamed it away.
    removed: HashMap<RootPath, u64>,
}

/// Adds `recording` to `profile`. What the runtime did comes last, so that a cell names the runtime
/// only where nobody else used the thing.
pub fn fold(recording: &Recording, profile: &mut Profile, tree: &Tree, run: RunId) {
    let usual = MountTable::usual();
    let mut fold = Fold { profile, tree, run, recording, usual, removed: HashMap::new() };
    fold.note_removals();
    for runtime in [false, true] {
        let pass = |by: &FirstUse| (by.phase == Phase::Runtime.name()) == runtime;
        recording.files.iter().filter(|f| pass(&f.by)).for_each(|f| fold.file(f));
        recording.paths.iter().filter(|p| pass(&p.by)).for_each(|p| fold.path(p));
        recording.calls.iter().filter(|c| pass(&c.by)).for_each(|c| fold.call(c));
    }
}

/// The architecture behind an event's number for it.
pub fn arch_of(number: u8) -> Option<Arch> {
    if number == 0 { Some(Arch::NATIVE) } else { Arch::NATIVE.compat() }
}

fn op_of(used: &PathUse) -> Option<&'static calls::PathCall> {
    let call = calls::path_call(arch_of(used.arch)?.call_name(used.number)?)?;
    call.is_path(used.which, used.flags).then_some(call)
}

impl Fold<'_> {
    fn file(&mut self, used: &FileUse) {
        let Some(path) = RootPath::parse(&used.path) else { return };
        let what = match (used.exec, used.dir) {
            (true, _) => kind::EXEC,
            (_, true) => kind::LIST,
            _ => kind::OPEN,
        };
        self.note_file(&path, what, &used.by);
    }

    fn note_file(&mut self, path: &RootPath, what: &str, by: &FirstUse) {
        let Some(node) = self.tree.get(path) else { return };
        let content = match &node.kind {
            NodeKind::File { content, .. } => Some(*content),
            _ => None,
        };
        let layer = if node.implied { None } else { self.tree.layers.get(node.layer).copied() };
        let cell = self.profile.files.entry(path.clone()).or_insert_with(|| FileCell {
            layer,
            content,
            access: Default::default(),
            extra: Default::default(),
        });
        note(&mut cell.access, what, self.run, by);
    }

    fn path(&mut self, used: &PathUse) {
        let Some(call) = op_of(used) else { return };
        let error = -used.result.min(0);
        if matches!(error, errno::EFAULT | errno::EBADF | errno::ENAMETOOLONG | errno::ENOSYS) {
            return;
        }
        let Some((found, place)) = self.locate(used, call.follows(used.flags)) else { return };
        for link in &found.links {
            self.note_file(link, kind::WALK, &used.by);
        }
        let failed = matches!(error, errno::ENOENT | errno::ENOTDIR);
        match place {
            Place::Elsewhere => {
                let what = if failed { MISSING } else { kinds(call.op, used)[0] };
                let access = self.profile.mounts.entry(found.path).or_default();
                note(access, what, self.run, &used.by);
            }
            Place::Overlay(_) if failed => self.missing(&found, call.op, used),
            Place::Overlay(_) if error != 0 => self.note_file(&found.path, kind::STAT, &used.by),
            Place::Overlay(_) => self.done(&found, call.op, used),
        }
    }

    /// Notes a failed lookup, unless the run itself had removed what it looked for.
    fn missing(&mut self, found: &Resolved, op: Op, used: &PathUse) {
        let makes = matches!(op, Op::Create)
            || used.which == 1
            || (op == Op::Open && used.flags & O_CREAT != 0);
        let path = match found.path.parent() {
            Some(parent) if makes => parent,
            _ => found.path.clone(),
        };
        let gone = |p: &RootPath| self.removed.get(p).is_some_and(|at| *at < used.time);
        if gone(&path) || path.ancestors().any(|p| gone(&p)) || path.is_root() {
            return;
        }
        note(self.profile.missing.entry(path).or_default(), kind::STAT, self.run, &used.by);
    }

    /// Notes a call that succeeded.
    fn done(&mut self, found: &Resolved, op: Op, used: &PathUse) {
        for what in kinds(op, used) {
            let dir = self.tree.get(&found.path).is_some_and(|n| n.kind == NodeKind::Dir);
            let what = if dir && *what == kind::OPEN { kind::LIST } else { *what };
            match what {
                kind::CREATE | kind::CHANGE | kind::REMOVE => {
                    let replaces = found.exists && what == kind::CREATE;
                    let what = if replaces { kind::CHANGE } else { what };
                    self.note_file(&found.path, what, &used.by);
                    let access = self.profile.written.entry(found.path.clone()).or_default();
                    note(access, what, self.run, &used.by);
                }
                _ => self.note_file(&found.path, what, &used.by),
            }
        }
    }

    /// Where a path leads in the tree, and whether that lies on the overlay.
    fn locate(&self, used: &PathUse, follow: bool) -> Option<(Resolved, Place)> {
        let root = RootPath::parse(&used.root)?;
        let base = RootPath::parse(&used.base)?;
        let table = self.recording.mounts.get(&used.mnt_ns);
        let table = table.or_else(|| self.recording.mounts.values().next()).unwrap_or(&self.usual);
        let mut found = self.tree.resolve(&root, &base, &used.raw, follow)?;
        // once for each mount of the overlay on itself that leads somewhere else
        for _ in 0..4 {
            match table.place(&found.path, &self.recording.overlays) {
                Place::Overlay(own) if own != found.path => {
                    let mut links = std::mem::take(&mut found.links);
                    found = self.tree.resolve(&root, &root, own.as_bytes(), follow)?;
                    links.append(&mut found.links);
                    found.links = links;
                }
                place => return Some((found, place)),
            }
        }
        None
    }

    fn note_removals(&mut self) {
        for used in &self.recording.paths {
            let Some(call) = op_of(used) else { continue };
            let removes = call.op == Op::Remove || (call.op == Op::Rename && used.which == 0);
            if !removes || used.result < 0 {
                continue;
            }
            if let Some((found, Place::Overlay(_))) = self.locate(used, false) {
                let at = self.removed.entry(found.path).or_insert(used.time);
                *at = used.time.min(*at);
            }
        }
    }

    fn call(&mut self, used: &CallUse) {
        let Some(arch) = arch_of(used.arch) else { return };
        let Some(name) = arch.call_name(used.number) else { return };
        let calls = self.profile.syscalls.entry(arch.name().to_owned()).or_default();
        let cells = calls.entry(name.to_owned()).or_default();
        let args = used.value.map(|value| calls::value_text(name, value)).unwrap_or_default();
        if cells.len() >= MAX_VALUES && !args.is_empty() && !cells.contains_key(&args) {
            return;
        }
        let what = used.refused.map_or_else(|| kind::CALL.to_owned(), refusal);
        note(cells.entry(args).or_default(), &what, self.run, &used.by);
    }
}

/// `refused:EPERM`. A filter that traps leaves no error: SIGSYS.
fn refusal(result: i32) -> String {
    if result >= 0 {
        return format!("{}SIGSYS", kind::REFUSED);
    }
    format!("{}{:?}", kind::REFUSED, nix::errno::Errno::from_raw(-result))
}

fn kinds(op: Op, used: &PathUse) -> &'static [&'static str] {
    match op {
        Op::Open if used.flags & O_PATH != 0 => &[kind::STAT],
        Op::Open if used.flags & O_CREAT != 0 => &[kind::OPEN, kind::CREATE],
        Op::Open if used.flags & 3 != 0 || used.flags & O_TRUNC != 0 => &[kind::OPEN, kind::CHANGE],
        Op::Open => &[kind::OPEN],
        Op::Stat => &[kind::STAT],
        Op::Change => &[kind::CHANGE],
        Op::Create | Op::Bind => &[kind::CREATE],
        Op::Remove => &[kind::REMOVE],
        Op::Rename if used.which == 0 => &[kind::REMOVE],
        Op::Link if used.which == 0 => &[kind::STAT],
        Op::Rename | Op::Link => &[kind::CREATE],
        Op::Exec => &[kind::EXEC],
        Op::Connect => &[kind::SOCKET],
    }
}
