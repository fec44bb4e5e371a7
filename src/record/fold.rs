//! From what was seen to a profile, against the tree of the image. Needs no kernel.

use std::borrow::Cow;
use std::collections::HashMap;

use super::Recording;
use super::calls::{self, O_CREAT, O_PATH, O_TRUNC, OTHERS, Op};
use super::gather::{AddressUse, By, CallUse, FileUse, How, PathUse, Users, libc_errno as errno};
use super::mounts::{MountTable, Mounts, Place};
use super::network::{self, Address};
use super::notes::Notes;
use crate::model::profile::{FileCell, RunId, Startup, Touch, kind, note};
use crate::model::{NodeKind, Phase, Profile, Resolved, RootPath, Tree};

/// Kind of access of a failed lookup on another mount; [`Profile::missing`] is the overlay's.
const MISSING: &str = "missing";
/// Argument values that a cell keeps for each call, and network addresses for each run.
const MAX_VALUES: usize = 64;
const MAX_ADDRESSES: usize = 1024;
/// First touches that a run's `startup` lists.
const MAX_TOUCHES: usize = 4096;

struct Fold<'a> {
    profile: &'a mut Profile,
    tree: &'a Tree,
    run: RunId,
    start: u64,
    users: Users,
    mounts: HashMap<u32, Mounts>,
    overlays: Vec<u32>,
    usual: MountTable,
    /// Path → when the run first removed it or renamed it away.
    removed: HashMap<RootPath, u64>,
    /// When what was renamed to which path, and its path before.
    moved: Vec<(u64, RootPath, RootPath)>,
    /// First touches of regular files until the container was ready, ns after the start.
    touches: HashMap<RootPath, u64>,
}

/// Adds `recording` to `profile`. What the runtime did comes last, so that a cell names the runtime
/// only where nobody else used the thing. Notes are freed as they are added.
pub fn fold(recording: Recording, profile: &mut Profile, tree: &Tree, run: RunId) {
    let Recording { mut files, mut paths, mut calls, mut addresses, .. } = recording;
    let mut fold = Fold {
        profile,
        tree,
        run,
        start: recording.start,
        users: Users::new(recording.start),
        mounts: recording.mounts,
        overlays: recording.overlays,
        usual: MountTable::usual(),
        removed: HashMap::new(),
        moved: Vec::new(),
        touches: HashMap::new(),
    };
    fold.note_removals(&paths);
    for runtime in [false, true] {
        let pass = |by: &By| by.is_runtime() == runtime;
        let mut later = (Notes::default(), Notes::default(), Notes::default(), Notes::default());
        loop {
            // in turn, so that as many notes go as cells come
            let more = paths.work_off(&mut later.0, |p| pass(&p.by), |p| fold.path(p));
            if !files.work_off(&mut later.1, |f| pass(&f.by), |f| fold.file(f)) && !more {
                break;
            }
        }
        while calls.work_off(&mut later.2, |c| pass(&c.by), |c| fold.call(c)) {}
        while addresses.work_off(&mut later.3, |a| pass(&a.by), |a| fold.address(a)) {}
        (paths, files, calls, addresses) = later;
    }
    for (number, by) in &recording.capabilities {
        fold.capability(*number, by);
    }
    fold.startup();
}

fn op_of(used: &PathUse) -> Option<&'static calls::PathCall> {
    let call = calls::path_call(calls::name_of(used.arch, used.number)?)?;
    call.is_path(used.which, used.flags).then_some(call)
}

impl Fold<'_> {
    fn file(&mut self, used: &FileUse) {
        let Some(path) = RootPath::parse(&used.path) else { return };
        let path = if self.tree.has(&path) { path } else { self.before_moves(path, used.by.time) };
        let what = match used.how {
            How::Exec => kind::EXEC,
            How::List => kind::LIST,
            How::Open => kind::OPEN,
            How::Map => kind::MAP,
        };
        self.note_file(&path, what, &used.by);
    }

    fn note_file(&mut self, path: &RootPath, what: impl Into<Cow<'static, str>>, by: &By) {
        let what = what.into();
        // cells share the tree's own path
        let Some((path, node)) = self.tree.nodes.get_key_value(path) else { return };
        let content = match &node.kind {
            NodeKind::File { content, .. } => Some(*content),
            _ => None,
        };
        let layer = if node.implied { None } else { self.tree.layers.get(node.layer()).copied() };
        let make =
            || FileCell { layer, content, access: Default::default(), extra: Default::default() };
        let cell = self.profile.files.entry(path.clone()).or_insert_with(|| make().into());
        let read = matches!(&*what, kind::OPEN | kind::EXEC | kind::MAP);
        note(&mut cell.access, what, self.run, &self.users.seen(by));
        if read && content.is_some() && by.phase() == Phase::Start {
            let at = by.time.saturating_sub(self.start);
            let first = self.touches.entry(path.clone()).or_insert(at);
            *first = at.min(*first);
        }
    }

    /// The order in which files were first read until the container was ready.
    fn startup(&mut self) {
        let mut all: Vec<_> = std::mem::take(&mut self.touches).into_iter().collect();
        if all.is_empty() {
            return;
        }
        all.sort_by(|(p, a), (q, b)| a.cmp(b).then_with(|| p.cmp(q)));
        let more = all.len() > MAX_TOUCHES;
        all.truncate(MAX_TOUCHES);
        let touch = |(path, at): (RootPath, u64)| {
            let bytes = match self.tree.get(&path)?.kind {
                NodeKind::File { size, .. } => size,
                _ => 0,
            };
            Some(Touch { path, bytes, at_us: at / 1000 })
        };
        let touches = all.into_iter().filter_map(touch).collect();
        self.profile.startup.insert(self.run, Startup { touches, more });
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
                note(access, what, self.run, &self.users.seen(&used.by));
            }
            Place::Overlay(_) if failed => self.missing(&found, call.op, used),
            Place::Overlay(_) if error != 0 => {
                self.note_file(&found.path, kind::STAT, &used.by);
                self.note_file(&found.path, failure(error), &used.by);
            }
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
        let gone = |p: &RootPath| self.removed.get(p).is_some_and(|at| *at < used.by.time);
        if gone(&path) || path.ancestors().any(|p| gone(&p)) || path.is_root() {
            return;
        }
        let by = self.users.seen(&used.by);
        note(self.profile.missing.entry(path).or_default(), kind::STAT, self.run, &by);
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
                    note(access, what, self.run, &self.users.seen(&used.by));
                }
                _ => self.note_file(&found.path, what, &used.by),
            }
        }
    }

    /// Where a path leads in the tree, and whether that lies on the overlay.
    fn locate(&self, used: &PathUse, follow: bool) -> Option<(Resolved, Place)> {
        let root = RootPath::parse(&used.place.root)?;
        let base = RootPath::parse(&used.place.base)?;
        // a call that changes the mounts found its paths by those before
        let time = used.by.time;
        let mounts = self.mounts.get(&used.place.mnt_ns);
        let table = match op_of(used).is_some_and(|call| calls::changes_mounts(call.name)) {
            true => mounts.and_then(|m| m.before(time)),
            false => mounts.and_then(|m| m.at(time)),
        };
        // A hook in a chroot sees the host's mounts, and none of the overlay's own paths there.
        let inside = |table: &&MountTable| {
            used.by.phase() != Phase::Hook
                || matches!(table.place(&RootPath::root(), &self.overlays), Place::Overlay(_))
        };
        let table = table.filter(inside).unwrap_or(&self.usual);
        let mut found = self.tree.resolve(&root, &base, &used.raw, follow)?;
        // once for each mount of the overlay on itself that leads somewhere else
        for _ in 0..4 {
            match table.place(&found.path, &self.overlays) {
                Place::Overlay(own) if own != found.path => {
                    let mut links = std::mem::take(&mut found.links);
                    found = self.tree.resolve(&root, &root, own.as_bytes(), follow)?;
                    links.append(&mut found.links);
                    found.links = links;
                }
                place => {
                    if !found.exists && used.result >= 0 {
                        found.path = self.before_moves(found.path, used.by.time);
                        found.exists = self.tree.has(&found.path);
                    }
                    return Some((found, place));
                }
            }
        }
        None
    }

    /// The image's own path of what is at `path` after the renames until `time`; `path` itself if none
    /// of them explains it.
    fn before_moves(&self, path: RootPath, time: u64) -> RootPath {
        let mut at = path.clone();
        for (_, new, old) in self.moved.iter().rev().filter(|(when, ..)| *when <= time) {
            if at.is_within(new) {
                let below = at.components().skip(new.components().count());
                at = below.fold(old.clone(), |at, name| at.join(name));
            }
        }
        if self.tree.has(&at) { at } else { path }
    }

    fn note_removals(&mut self, paths: &Notes<PathUse>) {
        let mut before: Option<(u64, RootPath)> = None;
        for used in paths.iter() {
            let Some(call) = op_of(used) else { continue };
            let moves = call.op == Op::Rename && used.result >= 0;
            let removes = call.op == Op::Remove && used.result >= 0;
            if !moves && !removes {
                continue;
            }
            let Some((found, Place::Overlay(_))) = self.locate(used, false) else { continue };
            match used.which {
                0 => {
                    let at = self.removed.entry(found.path.clone()).or_insert(used.by.time);
                    *at = used.by.time.min(*at);
                    before = moves.then_some((used.by.time, found.path));
                }
                // the two paths of one call come one after the other
                _ => {
                    if let Some((_, old)) = before.take() {
                        self.moved.push((used.by.time, found.path, old));
                    }
                }
            }
        }
    }

    fn call(&mut self, used: &CallUse) {
        let Some(arch) = calls::arch_of(used.arch) else { return };
        let Some(name) = arch.call_name(used.number) else { return };
        let calls = self.profile.syscalls.entry(arch.name().to_owned()).or_default();
        let cells = calls.entry(name.to_owned()).or_default();
        let mut args = used.value.map(|value| calls::value_text(name, value)).unwrap_or_default();
        let told = cells.keys().filter(|args| !args.is_empty()).count();
        if !args.is_empty() && (used.others || told >= MAX_VALUES && !cells.contains_key(&args)) {
            OTHERS.clone_into(&mut args);
        }
        let what: Cow<'static, str> = match (used.refused, used.failed) {
            (Some(result), _) => refusal(result).into(),
            (_, Some(result)) => failure(-result).into(),
            _ => kind::CALL.into(),
        };
        let by = self.users.seen(&used.by);
        note(cells.entry(args).or_default(), what, self.run, &by);
    }

    fn address(&mut self, used: &AddressUse) {
        let name = calls::name_of(used.arch, used.number);
        let Some(Address { text, what }) = name.and_then(|name| network::address(name, used))
        else {
            return;
        };
        let full = self.profile.network.len() >= MAX_ADDRESSES;
        let key =
            if full && !self.profile.network.contains_key(&text) { OTHERS.into() } else { text };
        let access = self.profile.network.entry(key).or_default();
        let by = self.users.seen(&used.by);
        // a connect that goes on in the background has not failed
        if used.result >= 0 || used.result == -errno::EINPROGRESS {
            note(access, what, self.run, &by);
        } else {
            note(access, failure(-used.result), self.run, &by);
        }
    }

    fn capability(&mut self, number: u64, by: &By) {
        let name = network::capability(number);
        let by = self.users.seen(by);
        note(self.profile.capabilities.entry(name).or_default(), kind::USED, self.run, &by);
    }
}

/// `error:EACCES`.
fn failure(error: i32) -> String {
    format!("{}{:?}", kind::ERROR, nix::errno::Errno::from_raw(error))
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
