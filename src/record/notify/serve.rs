//! One listener's thread: takes a waiting call, looks at it, lets it go on.
//!
//! What was seen before costs a look into a table; only what is new is read from the process and
//! looked up.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::LazyLock;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::super::calls::{self, O_CREAT, O_EXCL, Op, PathCall};
use super::super::event::{ENTERED, EXE_ON_OVERLAY, Event, EventKind, ROOT_ON_OVERLAY};
use super::super::gather::{MAIN, UNRECORDED, libc_errno as errno};
use super::super::kernel_device;
use super::task::{self, Found, Place, Text};
use super::{Hub, guard, names_of};
use crate::model::Arch;
use crate::sys::seccomp::{Listener, Notice, be_prompt};

const AT_FDCWD: i32 = -100;
const AT_EMPTY_PATH: u64 = 0x1000;
const EEXIST: i32 = 17;
const EISDIR: i32 = 21;
const ENOTEMPTY: i32 = 39;
/// How long a change of mounts may take until what it made is read by way of another thread.
const MOUNTING: Duration = Duration::from_millis(20);

/// Answers calls until the last process under the filter is gone, or the hub stops.
pub(super) fn run(hub: &Hub, listener: &Listener, mut known: Option<u8>) {
    be_prompt();
    let role = known.unwrap_or(MAIN);
    let mut server = Server { hub, role, entered: false, tasks: HashMap::new(), mounts: None };
    loop {
        let mut fds = [
            PollFd::new(listener.as_fd(), PollFlags::POLLIN),
            PollFd::new(hub.stop.as_fd(), PollFlags::POLLIN),
        ];
        if poll(&mut fds, PollTimeout::NONE).is_err() {
            continue; // EINTR
        }
        let said = fds[0].revents().unwrap_or(PollFlags::empty());
        if said.contains(PollFlags::POLLIN) {
            match listener.receive() {
                Ok(None) => {
                    hub.taken_back.fetch_add(1, Ordering::AcqRel);
                }
                Ok(Some(notice)) => {
                    if known.is_none() {
                        server.role = hub.role_by_cgroup(notice.tid).unwrap_or(MAIN);
                        known = Some(server.role);
                    }
                    server.serve(listener, &notice);
                }
                Err(error) => return server.gap("receive", &error),
            }
        } else if !said.is_empty() {
            return; // nobody is left under the filter
        } else if fds[1].any().unwrap_or(false) {
            // whoever lives on has its calls fail from here
            hub.gap.fetch_add(1, Ordering::AcqRel);
            return;
        }
    }
}

/// A thread under the filter.
#[derive(Debug, Clone)]
struct Task {
    pid: u32,
    uid: u32,
    mnt_ns: u32,
    /// Path of its root directory, and whether that is on a watched overlay.
    root: Vec<u8>,
    on_overlay: bool,
    /// The last call may have changed user, namespace or root.
    stale: bool,
    /// The executable that an exec is taken to have led to.
    expected: Option<Vec<u8>>,
}

struct Server<'a> {
    hub: &'a Hub,
    role: u8,
    /// The target was executed: whatever is under the filter runs what the image holds.
    entered: bool,
    tasks: HashMap<u32, Task>,
    /// Who changed the mounts of which namespace, and when.
    mounts: Option<(u32, u32, Instant)>,
}

/// What is to be done with a call beside counting it.
#[derive(Debug, Clone, Copy, Default)]
struct Plan {
    path: Option<&'static PathCall>,
    value: Option<u8>,
    special: Special,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Special {
    #[default]
    None,
    /// It changes who the thread is or where.
    Changes,
    /// It changes mounts.
    Mounts,
    Exit,
    ExitGroup,
}

static PLANS: LazyLock<[Vec<Plan>; 2]> = LazyLock::new(|| {
    [Some(Arch::NATIVE), Arch::NATIVE.compat()].map(|arch| {
        let mut plans = vec![Plan::default(); 1024];
        for (number, name) in arch.map(Arch::calls).unwrap_or_default() {
            plans[number as usize] = plan(name);
        }
        plans
    })
});

fn plan(name: &str) -> Plan {
    let special = match name {
        "exit" => Special::Exit,
        "exit_group" => Special::ExitGroup,
        "mount" | "move_mount" | "umount" | "umount2" | "pivot_root" => Special::Mounts,
        "unshare" | "setns" | "chroot" => Special::Changes,
        name if name.starts_with("setuid") || name.starts_with("setre") => Special::Changes,
        _ => Special::None,
    };
    let value = calls::VALUES.iter().find(|(call, ..)| *call == name).map(|(_, index, _)| *index);
    Plan { path: calls::path_call(name), value, special }
}

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
    fn gap(&self, what: &str, error: &std::io::Error) {
        tracing::debug!(%error, what, "a seccomp listener broke");
        self.hub.gap.fetch_add(1, Ordering::AcqRel);
    }

    /// Looks at a call and lets it go on, also if the looking fails.
    fn serve(&mut self, listener: &Listener, notice: &Notice) {
        if catch_unwind(AssertUnwindSafe(|| self.look(listener, notice))).is_err() {
            self.hub.gap.fetch_add(1, Ordering::AcqRel);
        }
        if let Err(error) = listener.go_on(notice.id) {
            self.gap("answer", &error);
        }
    }

    fn look(&mut self, listener: &Listener, notice: &Notice) {
        if self.role == UNRECORDED {
            return;
        }
        let arch = u8::from(Arch::NATIVE.compat().is_some_and(|arch| arch.audit() == notice.arch));
        let number = notice.number;
        if !self.know(notice.tid) {
            return;
        }
        self.catch_up(notice.tid);
        let foreign = arch == 1 || number >= 1024;
        if self.hub.all || foreign {
            self.count(notice, arch);
        }
        let plans = &PLANS[usize::from(arch)];
        let plan = plans.get(number as usize).copied().unwrap_or_default();
        if let Some(index) = plan.value {
            self.value(notice, arch, index);
        }
        if let Some(call) = plan.path {
            self.paths(listener, notice, arch, call);
        }
        self.special(notice, plan.special);
    }

    fn phase(&self) -> u8 {
        if self.entered { self.hub.phase_of(self.role) } else { 0 }
    }

    fn event(&self, kind: EventKind, tid: u32) -> Event {
        let (pid, uid, mnt_ns) =
            self.tasks.get(&tid).map_or((tid, 0, 0), |task| (task.pid, task.uid, task.mnt_ns));
        let flags = if self.entered { ENTERED } else { 0 };
        let (phase, role) = (self.phase(), self.role);
        Event { phase, role, flags, pid, uid, mnt_ns, ..Event::of(kind) }
    }

    /// False if the thread is gone already.
    fn know(&mut self, tid: u32) -> bool {
        if self.tasks.contains_key(&tid) {
            return true;
        }
        let Some(status) = task::status(tid) else { return false };
        let first = !self.tasks.values().any(|task| task.pid == status.pid);
        let (pid, uid) = (status.pid, status.uid);
        let (root, on_overlay, stale) = (Vec::new(), false, false);
        let task = Task { pid, uid, mnt_ns: 0, root, on_overlay, stale, expected: None };
        self.tasks.insert(tid, task);
        self.refresh(tid);
        // beside perf, which sees forks, names come with them
        if first && self.hub.all {
            let sight = self.event(EventKind::Sight, tid);
            self.hub.push(sight);
            if self.entered {
                self.name(tid);
            }
        }
        true
    }

    /// Says what a process runs, found by looking.
    fn name(&self, tid: u32) {
        let mut event = self.event(EventKind::Name, tid);
        event.data[3] = names_of(&task::link(tid, "exe").unwrap_or_default());
        event.data[5] = task::command(tid);
        event.flags |= EXE_ON_OVERLAY;
        self.hub.push(event);
    }

    /// Brings up to date what the thread's calls before may have changed.
    fn catch_up(&mut self, tid: u32) {
        let Some(task) = self.tasks.get_mut(&tid) else { return };
        if let Some(expected) = task.expected.take()
            && task::link(tid, "exe").is_some_and(|exe| exe != expected)
        {
            self.name(tid);
        }
        let Some(task) = self.tasks.get_mut(&tid) else { return };
        if std::mem::take(&mut task.stale) {
            task.uid = task::status(tid).map_or(task.uid, |status| status.uid);
            self.refresh(tid);
        }
        let mnt_ns = self.tasks.get(&tid).map_or(0, |task| task.mnt_ns);
        if let Some((who, namespace, since)) = self.mounts
            && (who == tid || (namespace == mnt_ns && since.elapsed() > MOUNTING))
        {
            self.mounts = None;
            self.read_mounts(tid);
        }
    }

    /// Looks again where the thread is.
    fn refresh(&mut self, tid: u32) {
        let Some(task) = self.tasks.get_mut(&tid) else { return };
        task.mnt_ns = task::mount_namespace(tid);
        task.root = task::link(tid, "root").unwrap_or_default();
        let overlays = guard(&self.hub.overlays);
        let device = task::root_device(tid).map(kernel_device);
        task.on_overlay = device.is_some_and(|device| overlays.contains(&device));
    }

    fn read_mounts(&self, tid: u32) {
        if let Ok(text) = std::fs::read(format!("/proc/{tid}/mountinfo")) {
            let mut event = self.event(EventKind::Mounts, tid);
            event.data[0] = text;
            self.hub.push(event);
        }
    }

    fn special(&mut self, notice: &Notice, special: Special) {
        let tid = notice.tid;
        match special {
            Special::None => {}
            Special::Changes => self.doubt(tid),
            Special::Mounts => {
                let namespace = self.tasks.get(&tid).map_or(0, |task| task.mnt_ns);
                self.mounts = Some((tid, namespace, Instant::now()));
                self.doubt(tid);
            }
            Special::Exit | Special::ExitGroup => self.exit(tid, special == Special::ExitGroup),
        }
    }

    /// The thread and those it may share its root with are to be looked at again.
    fn doubt(&mut self, tid: u32) {
        let Some(pid) = self.tasks.get(&tid).map(|task| task.pid) else { return };
        self.tasks.values_mut().filter(|task| task.pid == pid).for_each(|task| task.stale = true);
    }

    fn exit(&mut self, tid: u32, group: bool) {
        let event = self.event(EventKind::Exit, tid);
        self.tasks.remove(&tid);
        if group {
            self.tasks.retain(|_, task| task.pid != event.pid);
        }
        if self.hub.all && !self.tasks.values().any(|task| task.pid == event.pid) {
            self.hub.push(event);
        }
    }

    fn count(&self, notice: &Notice, arch: u8) {
        let key = (arch, self.phase(), notice.number);
        if guard(&self.hub.calls).insert(key) {
            let event = self.event(EventKind::Call, notice.tid);
            self.hub.push(Event { arch, number: notice.number, ..event });
        }
    }

    fn value(&self, notice: &Notice, arch: u8, index: u8) {
        let Some(value) = calls::argument(index, &notice.args) else { return };
        if self.first(&("value", arch, notice.number, value, self.phase())) {
            let event = self.event(EventKind::Value, notice.tid);
            self.hub.push(Event { arch, number: notice.number, value, ..event });
        }
    }

    fn first(&self, key: &impl Hash) -> bool {
        guard(&self.hub.reported).insert(hash(key))
    }

    fn paths(&mut self, listener: &Listener, notice: &Notice, arch: u8, call: &PathCall) {
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
        if let Some((address, length)) = socket_arguments(call.name) {
            let read = task::socket_path(tid, notice.args[address], notice.args[length]);
            if !listener.is_valid(notice.id) {
                return;
            }
            match read {
                Ok(None) => {}
                Err(bad) => drop(self.readable(bad)),
                Ok(Some(raw)) => {
                    let Some((base, root)) = self.bearings(tid, &raw, None) else { return };
                    let asked = Asked { call, which: 2, flags, raw, base, root };
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
        let key = (arch, notice.number, asked.which, asked.flags, self.phase());
        let key = (key, &asked.raw, &asked.base, &asked.root);
        // what was seen there once is looked up no more; what was missing may have come
        if guard(&self.hub.reported).contains(&hash(&(&key, 0))) {
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
        event.data[1] = names_of(&asked.base);
        event.data[2] = names_of(&asked.root);
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
        let was = std::mem::replace(&mut self.entered, true);
        let mut event = self.path_event(EventKind::Exec, notice, asked);
        if event.flags & ROOT_ON_OVERLAY == 0 {
            self.entered = was; // the runtime's own, before it is inside
            return;
        }
        (event.flags, event.value, event.other) = (event.flags | EXE_ON_OVERLAY, 0, 0);
        event.data[3] = names_of(&exe);
        event.data[4] = interpreter.unwrap_or_else(|| asked.raw.clone());
        event.data[5] = argv0;
        self.hub.push(event);
        if !was {
            self.read_mounts(notice.tid);
        }
        let Some(mut task) = self.tasks.remove(&notice.tid) else { return };
        // the other threads die, and this one takes the leader's id
        self.tasks.retain(|_, other| other.pid != task.pid);
        (task.expected, task.stale) = (Some(exe), true);
        self.tasks.insert(task.pid, task);
    }
}

fn hash(key: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    hasher.finish()
}

/// Indices of a call's socket address and its length.
fn socket_arguments(name: &str) -> Option<(usize, usize)> {
    match name {
        "connect" | "bind" => Some((1, 2)),
        "sendto" => Some((4, 5)),
        _ => None,
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
        // unlinkat's AT_REMOVEDIR
        Op::Remove if name == "unlinkat" => match (asked.flags & 0x200 != 0, dir) {
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
