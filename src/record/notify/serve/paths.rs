//! Paths of a waiting call: reading them, looking up what they lead to, and execs.

use std::sync::atomic::Ordering;

use super::super::super::calls::{self, O_CREAT, O_EXCL, Op, PathCall};
use super::super::super::event::{EXE_ON_OVERLAY, Event, EventKind, ROOT_ON_OVERLAY, leaf_first};
use super::super::super::gather::libc_errno as errno;
use super::super::super::lock;
use super::super::task::{self, Found, Place, Text};
use super::{Server, hash};
use crate::model::Arch;
use crate::sys::seccomp::{Listener, Notice};

const AT_FDCWD: i32 = -100;
const AT_EMPTY_PATH: u64 = 0x1000;
const AT_REMOVEDIR: u64 = 0x200;
const EEXIST: i32 = 17;
const EISDIR: i32 = 21;
const ENOTEMPTY: i32 = 39;

/// A path as a call has it.
struct Asked<'a> {
    call: &'a PathCall,
    which: u32,
    flags: u64,
    raw: Vec<u8>,
    base: Vec<u8>,
    root: Vec<u8>,
}

impl Server<'_> {
    pub(super) fn paths(
        &mut self,
        listener: &Listener,
        notice: &Notice,
        arch: u8,
        call: &PathCall,
    ) {
        let argument = |index: i8| {
            let index = usize::try_from(index).ok()?;
            notice.args.get(index).copied()
        };
        let flags = argument(call.flags).unwrap_or(0);
        let tid = notice.tid;
        for (which, (dir, path)) in (0..).zip(call.paths) {
            let Some(address) = argument(path).filter(|address| *address != 0) else { continue };
            if !call.is_path(which, flags) {
                continue;
            }
            let text = task::text(tid, address);
            if !listener.is_valid(notice.id) {
                return; // whatever was read belongs to somebody else
            }
            let Some(raw) = self.readable(text) else { continue };
            if raw.is_empty() {
                if call.op == Op::Exec && flags & AT_EMPTY_PATH != 0 {
                    self.exec_by_descriptor(notice, argument(dir));
                }
                continue; // the descriptor itself, which was seen when it was opened
            }
            let Some((base, root)) = self.bearings(tid, &raw, argument(dir)) else { continue };
            let asked = Asked { call, which, flags, raw, base, root };
            if call.op == Op::Exec {
                self.exec(notice, arch, &asked);
            } else {
                self.report(notice, arch, &asked);
            }
        }
        if matches!(call.op, Op::Connect | Op::Bind) {
            self.sockets(listener, notice, arch, call);
        }
    }

    /// Paths in the addresses that a socket's call is given.
    fn sockets(&self, listener: &Listener, notice: &Notice, arch: u8, call: &PathCall) {
        let tid = notice.tid;
        let (name, args) = match call.name {
            "socketcall" => {
                let Some(inner) = task::socket_call(tid, notice.args) else { return };
                inner
            }
            name => (name, notice.args),
        };
        let [_, message, many, ..] = args;
        let addresses = match name {
            "connect" | "bind" => vec![(args[1], args[2])],
            "sendto" => vec![(args[4], args[5])],
            "sendmsg" => task::message_addresses(tid, message, 1, arch == 1),
            "sendmmsg" => task::message_addresses(tid, message, many, arch == 1),
            _ => return,
        };
        for (address, length) in addresses {
            let read = task::socket_path(tid, address, length);
            if !listener.is_valid(notice.id) {
                return;
            }
            match read {
                Ok(None) => {}
                Err(bad) => drop(self.readable(bad)),
                Ok(Some(raw)) => {
                    let Some((base, root)) = self.bearings(tid, &raw, None) else { return };
                    let asked = Asked { call, which: 2, flags: 0, raw, base, root };
                    self.report(notice, arch, &asked);
                }
            }
        }
    }

    /// The string, unless it is none; what is there and cannot be read is lost.
    fn readable(&self, text: Text) -> Option<Vec<u8>> {
        match text {
            Text::Whole(raw) => Some(raw),
            Text::Bad | Text::Gone => None,
            Text::Refused => {
                self.hub.string_fault.fetch_add(1, Ordering::AcqRel);
                None
            }
        }
    }

    /// Where a path starts, and the thread's root; `None` if the call will fail for want of them.
    fn bearings(&self, tid: u32, raw: &[u8], dir: Option<u64>) -> Option<(Vec<u8>, Vec<u8>)> {
        let root = self.tasks.get(&tid)?.root.clone();
        if raw.first() == Some(&b'/') {
            return Some((b"/".to_vec(), root));
        }
        let dir = dir.map_or(AT_FDCWD, |dir| dir as u32 as i32);
        let base = if dir == AT_FDCWD {
            task::link(tid, "cwd")?
        } else {
            task::link(tid, &format!("fd/{dir}"))?
        };
        Some((base, root))
    }

    fn report(&self, notice: &Notice, arch: u8, asked: &Asked<'_>) {
        let key = (arch, notice.number, asked.which, asked.flags, self.phase(notice.tid));
        let key = (key, &asked.raw, &asked.base, &asked.root);
        // what was seen there once is looked up no more; what was missing may have come
        if lock(&self.hub.reported).contains(&hash(&(&key, 0))) {
            return;
        }
        let result = self.outcome(notice.tid, asked);
        if self.first(&(&key, result)) {
            let event = self.path_event(EventKind::Path, notice, asked);
            self.hub.push(Event { arch, result, ..event });
        }
    }

    fn path_event(&self, kind: EventKind, notice: &Notice, asked: &Asked<'_>) -> Event {
        let mut event = self.event(kind, notice.tid);
        if self.tasks.get(&notice.tid).is_some_and(|task| task.on_overlay) {
            event.flags |= ROOT_ON_OVERLAY;
        }
        event.number = notice.number;
        event.other = asked.which;
        event.value = asked.flags;
        event.data[0] = asked.raw.clone();
        event.data[1] = leaf_first(&asked.base);
        event.data[2] = leaf_first(&asked.root);
        event
    }

    /// What the call will come to as far as it can be told beforehand: 0, or a negative errno.
    fn outcome(&self, tid: u32, asked: &Asked<'_>) -> i32 {
        let Some(place) = Place::of(tid, asked.root.clone()) else { return 0 };
        let follow = asked.call.follows(asked.flags) && asked.which != 1;
        let found = place.look(&asked.base, &asked.raw, follow);
        let makes = match asked.call.op {
            Op::Create | Op::Bind => true,
            Op::Open => asked.flags & O_CREAT != 0,
            Op::Rename | Op::Link => asked.which == 1,
            _ => false,
        };
        match found {
            Err(errno::ENOENT) if makes => {
                let parent = place.look(&asked.base, parent(&asked.raw), true);
                parent.map_or(-errno::ENOENT, |_| 0)
            }
            Err(error @ (errno::ENOENT | errno::ENOTDIR | errno::ENAMETOOLONG)) => -error,
            Err(_) => 0, // a magic link, which leads somewhere only for the thread itself
            Ok(found) => -conflict(asked, &found),
        }
    }

    fn exec(&mut self, notice: &Notice, arch: u8, asked: &Asked<'_>) {
        let follow = asked.call.follows(asked.flags);
        let place = Place::of(notice.tid, asked.root.clone());
        let found = place.map(|place| place.look(&asked.base, &asked.raw, follow));
        match found {
            Some(Ok(file)) if file.executable => {
                let exe = file.path().unwrap_or_else(|| asked.raw.clone());
                self.executed(notice, arch, asked, exe, file.interpreter());
            }
            _ => self.report(notice, arch, asked),
        }
    }

    /// `fexecve(3)`: what the descriptor is open on.
    fn exec_by_descriptor(&mut self, notice: &Notice, dir: Option<u64>) {
        let fd = dir.unwrap_or_default() as u32;
        let (Some(exe), Some(root)) =
            (task::link(notice.tid, &format!("fd/{fd}")), task::link(notice.tid, "root"))
        else {
            return;
        };
        let Some(call) = calls::path_call("execveat") else { return };
        let base = b"/".to_vec();
        let asked = Asked { call, which: 0, flags: 0, raw: exe.clone(), base, root };
        let interp = Place::of(notice.tid, asked.root.clone())
            .and_then(|place| place.look(b"/", &exe, true).ok()?.interpreter());
        let arch = u8::from(notice.arch != Arch::NATIVE.audit());
        self.executed(notice, arch, &asked, exe, interp);
    }

    /// An exec that will succeed, as far as can be told.
    fn executed(
        &mut self,
        notice: &Notice,
        arch: u8,
        asked: &Asked<'_>,
        exe: Vec<u8>,
        interpreter: Option<Vec<u8>>,
    ) {
        let vector = if asked.call.name == "execveat" { 2 } else { 1 };
        let argv0 = task::argv0(notice.tid, notice.args[vector], arch == 1);
        let before = (self.entered, self.hooking);
        match self.starts_hook(notice.tid) {
            true => self.hooking = true,
            false => self.entered = true,
        }
        let mut event = self.path_event(EventKind::Exec, notice, asked);
        if event.flags & ROOT_ON_OVERLAY == 0 {
            (self.entered, self.hooking) = before; // the runtime's own, before it is inside
            return;
        }
        (event.flags, event.value, event.other) = (event.flags | EXE_ON_OVERLAY, 0, 0);
        event.data[3] = leaf_first(&exe);
        event.data[4] = interpreter.unwrap_or_else(|| asked.raw.clone());
        event.data[5] = argv0;
        self.hub.push(event);
        if !before.0 {
            self.read_mounts(notice.tid);
        }
        let Some(mut task) = self.tasks.remove(&notice.tid) else { return };
        // the other threads die, and this one takes the leader's id
        self.tasks.retain(|_, other| other.pid != task.pid);
        (task.expected, task.stale) = (Some(exe), true);
        self.tasks.insert(task.pid, task);
    }
}

/// The errno with which a call fails because of what is there; 0 for none.
fn conflict(asked: &Asked<'_>, found: &Found) -> i32 {
    let (name, dir) = (asked.call.name, found.kind.is_dir());
    match asked.call.op {
        Op::Create | Op::Bind if name != "creat" => EEXIST,
        Op::Link if asked.which == 1 => EEXIST,
        Op::Open if asked.flags & (O_CREAT | O_EXCL) == O_CREAT | O_EXCL => EEXIST,
        Op::Remove if name == "rmdir" && !dir => errno::ENOTDIR,
        Op::Remove if name == "rmdir" && found.is_full() => ENOTEMPTY,
        Op::Remove if name == "unlink" && dir => EISDIR,
        Op::Remove if name == "unlinkat" => match (asked.flags & AT_REMOVEDIR != 0, dir) {
            (true, false) => errno::ENOTDIR,
            (true, true) if found.is_full() => ENOTEMPTY,
            (false, true) => EISDIR,
            _ => 0,
        },
        _ => 0,
    }
}

fn parent(raw: &[u8]) -> &[u8] {
    let end = raw.iter().rposition(|b| *b != b'/').map_or(0, |at| at + 1);
    match raw[..end].iter().rposition(|b| *b == b'/') {
        Some(0) => b"/",
        Some(at) => &raw[..at],
        None => b".",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parent_is_what_stands_before_the_last_name() {
        for (raw, want) in
            [("/a/b", "/a"), ("/a", "/"), ("a", "."), ("a/b/", "a"), ("/", "/"), ("./x", ".")]
        {
            let got = String::from_utf8_lossy(parent(raw.as_bytes())).into_owned();
            let fine = got == want || (raw == "/" && got == ".");
            assert!(fine, "{raw}: {got}");
        }
    }
}
