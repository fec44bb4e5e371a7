//! Gives events their meaning while they come in: who a process is, whether an open counts, and
//! when a file may be silenced.

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use super::calls::{changes_mounts, name_of};
use super::event::{
    BASE_ON_OVERLAY, BASE_UNKNOWN, ENTERED, EXE_ON_OVERLAY, Event, EventKind, OTHERS,
    ROOT_ON_OVERLAY, leaf_first, path_of, text,
};
use super::mounts::Mounts;
use super::notes::Notes;
use crate::model::{FirstUse, Phase, Seen, escape};

/// Phases by the number that the BPF side has for them.
pub const PHASES: [Phase; 10] = [
    Phase::Runtime,
    Phase::Start,
    Phase::Coverage,
    Phase::Exec,
    Phase::Run,
    Phase::Health,
    Phase::Stop,
    Phase::Restart,
    Phase::Hook,
    Phase::Hook,
];
/// The number, and role, of an OCI hook in the container, under its filter.
pub const HOOK: u8 = 8;
/// The number, and role, of an OCI hook outside of it: no filter binds what it calls.
pub const HOST_HOOK: u8 = 9;
/// The BPF side's number for the main container's role.
pub const MAIN: u8 = 100;
/// The BPF side's number for what never counts.
pub const UNRECORDED: u8 = 101;

/// The number of a phase.
pub fn phase_number(phase: Phase) -> u8 {
    let at = PHASES.iter().position(|p| *p == phase).unwrap_or(0);
    u8::try_from(at).unwrap_or(0)
}

/// What a process is, kept after its end until all its opens are read.
#[derive(Debug, Clone)]
struct Process {
    role: u8,
    /// It ran, at the last BPF event, what the image holds.
    entered: bool,
    /// The same by the order of the fanotify queue, which still holds opens from before.
    entered_in_queue: bool,
    /// Files whose opening for execution was read before the exec was done.
    executing: Vec<Vec<u8>>,
    /// A helper of slim outside the cgroup.
    host: bool,
    ended: bool,
    uid: u32,
    who: Arc<Who>,
}

impl Process {
    fn new(role: u8, uid: u32) -> Self {
        Self {
            role,
            entered: false,
            entered_in_queue: false,
            executing: Vec::new(),
            host: false,
            ended: false,
            uid,
            who: Arc::default(),
        }
    }
}

/// What a process ran at a time. Shared by all that it used meanwhile.
#[derive(Debug, Default, PartialEq, Eq, Hash)]
pub struct Who {
    exe: String,
    argv0: String,
    /// The process and its ancestors up to the container's first.
    pids: Vec<u32>,
}

/// Who used a thing, in which phase, and who says so.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct User {
    who: Arc<Who>,
    uid: u32,
    phase: Phase,
    backend: &'static str,
}

impl User {
    /// As profiles have it but for the time.
    fn first_use(&self) -> FirstUse {
        FirstUse {
            exe: self.who.exe.clone(),
            argv0: self.who.argv0.clone(),
            uid: self.uid,
            phase: self.phase.name().to_owned(),
            pids: self.who.pids.clone(),
            at_us: None,
            backends: [self.backend.to_owned()].into(),
        }
    }
}

/// Who used a thing and when; small, because there are as many as things used.
#[derive(Debug, Clone)]
pub struct By {
    user: Arc<User>,
    /// ns, `CLOCK_MONOTONIC`.
    pub time: u64,
}

/// The backend that opens come from.
pub const FANOTIFY: &str = "fanotify";

impl By {
    /// A use by somebody that nothing names.
    pub fn nobody(phase: Phase) -> Self {
        let user = User { who: Arc::default(), uid: 0, phase, backend: FANOTIFY };
        Self { user: user.into(), time: now() }
    }

    pub fn phase(&self) -> Phase {
        self.user.phase
    }

    pub fn backend(&self) -> &'static str {
        self.user.backend
    }

    pub fn is_runtime(&self) -> bool {
        self.phase() == Phase::Runtime
    }
}

/// Equal things that many share, each kept once.
#[derive(Debug)]
struct Shared<T>(HashSet<Arc<T>>);

impl<T: Eq + Hash> Shared<T> {
    /// Things kept in mind; more come of storms of processes, which use little each.
    const MOST: usize = 4096;

    fn of(&mut self, thing: T) -> Arc<T> {
        if let Some(shared) = self.0.get(&thing) {
            return Arc::clone(shared);
        }
        if self.0.len() >= Self::MOST {
            self.0.clear();
        }
        let shared = Arc::new(thing);
        self.0.insert(Arc::clone(&shared));
        shared
    }
}

impl<T> Default for Shared<T> {
    fn default() -> Self {
        Self(HashSet::new())
    }
}

/// Users as profiles have them, each made once: most things are used by few.
pub struct Users {
    start: u64,
    /// By the address of the user, who is kept alive for that.
    made: HashMap<usize, (Arc<User>, Seen)>,
}

impl Users {
    /// Users kept in mind, as in [`Shared`].
    const MOST: usize = 4096;

    /// For a recorder that started at `start`.
    pub fn new(start: u64) -> Self {
        Self { start, made: HashMap::new() }
    }

    /// As profiles have it.
    pub fn seen(&mut self, by: &By) -> Seen {
        if self.made.len() >= Self::MOST {
            self.made.clear();
        }
        let make = || (Arc::clone(&by.user), by.user.first_use().into());
        let (_, seen) = self.made.entry(Arc::as_ptr(&by.user).addr()).or_insert_with(make);
        seen.at(by.time.saturating_sub(self.start) / 1000)
    }
}

/// ns of `CLOCK_MONOTONIC`.
pub fn now() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec.cast_unsigned() * 1_000_000_000 + now.tv_nsec.cast_unsigned()
}

/// A path handed to a call.
#[derive(Debug, Clone)]
pub struct PathUse {
    pub raw: Box<[u8]>,
    pub place: Arc<Place>,
    pub arch: u8,
    pub number: u32,
    /// 0 first path, 1 second, 2 socket address.
    pub which: u32,
    pub flags: u64,
    pub result: i32,
    pub by: By,
}

/// From where a path is looked up.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Place {
    /// Where a relative path starts; absolute, in the overlay.
    pub base: Box<[u8]>,
    /// The task's root, in the overlay.
    pub root: Box<[u8]>,
    pub mnt_ns: u32,
}

/// A place by what an event said of it: names leaf first, and a hash of what they say.
#[derive(Debug)]
struct LastPlace {
    absolute: bool,
    base: Vec<u8>,
    root: Vec<u8>,
    place: Arc<Place>,
    print: u128,
}

/// How a file of the overlay was used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum How {
    Open,
    List,
    Exec,
    /// Mapped for execution.
    Map,
}

/// A file of the overlay that was used, by its own path there.
#[derive(Debug, Clone)]
pub struct FileUse {
    pub path: Box<[u8]>,
    pub how: How,
    pub by: By,
}

/// A call, its refusal or failure (with the result), or one of its arguments.
#[derive(Debug, Clone)]
pub struct CallUse {
    pub arch: u8,
    pub number: u32,
    pub refused: Option<i32>,
    pub failed: Option<i32>,
    pub value: Option<u64>,
    /// The value stands for all that followed.
    pub others: bool,
    pub by: By,
}

/// A socket address handed to a call.
#[derive(Debug, Clone)]
pub struct AddressUse {
    pub arch: u8,
    pub number: u32,
    pub result: i32,
    /// `SOCK_STREAM` and the like.
    pub kind: u32,
    pub protocol: u32,
    pub address: Box<[u8]>,
    pub by: By,
}

/// Whose an open is.
#[derive(Debug, Clone)]
pub enum Owner {
    /// Counts; by whom, and whether it may be silenced from here on.
    Counted {
        by: By,
        silence: bool,
    },
    /// `slim exec --unrecorded`, or slim's own helpers.
    NotCounted,
    Unknown,
}

/// Everything seen so far.
#[derive(Debug, Default)]
pub struct Gathered {
    /// Name of the backend that events come from.
    pub backend: &'static str,
    processes: HashMap<u32, Process>,
    gone: Vec<u32>,
    going: Vec<u32>,
    pub paths: Notes<PathUse>,
    /// Hashes of what was noted.
    noted: HashSet<u128>,
    places: Shared<Place>,
    users: Shared<User>,
    /// Where the last path started from, and who the last event was about: mostly the next one's, too.
    last_place: Option<LastPlace>,
    last_user: Option<Arc<User>>,
    pub files: Notes<FileUse>,
    pub calls: Notes<CallUse>,
    pub addresses: Notes<AddressUse>,
    pub capabilities: Vec<(u64, By)>,
    /// By the inode number of the mount namespace.
    pub mounts: HashMap<u32, Mounts>,
    /// The entrypoint's exec happened.
    pub entered: bool,
    /// The entrypoint's exec was read from the fanotify queue.
    entry_in_queue: bool,
    /// Files whose execution is silenced: it tells no longer when a process enters.
    pub silent_execs: HashSet<Vec<u8>>,
    pub bases_unknown: u64,
    pub unattributed: u64,
    /// Mount namespaces to look at, with a process in each.
    pub look_at: Vec<(u32, u32)>,
    /// Where overlays are mounted in the cell: hooks at the host's root use them by these paths.
    pub roots: Vec<Vec<u8>>,
}

impl Gathered {
    /// Takes in one event of the backend.
    pub fn apply(&mut self, event: Event) {
        match event.kind {
            EventKind::Sight => self.start(&event),
            EventKind::Fork => self.fork(&event),
            EventKind::Host => self.add_host(event.other),
            EventKind::Exec => self.exec(event),
            EventKind::Exit => self.exit(event.pid),
            EventKind::Name => self.name(&event),
            EventKind::Mounts => {
                let mounts = self.mounts.entry(event.mnt_ns).or_default();
                mounts.add(event.time, &event.data[0]);
            }
            EventKind::Call | EventKind::Refused | EventKind::Failed | EventKind::Value => {
                self.call(&as_runtime(event));
            }
            EventKind::Path => {
                let name = name_of(event.arch, event.number);
                if event.result == 0 && name.is_some_and(changes_mounts) {
                    self.look_at(&event);
                }
                self.path(event);
            }
            EventKind::Map => {
                let by = self.by(&event);
                self.used(path_of(&event.data[3]), How::Map, by);
            }
            EventKind::Address => self.address(as_runtime(event)),
            EventKind::Capability if event.role == HOST_HOOK => {}
            EventKind::Capability => {
                let by = self.by(&event);
                self.capabilities.push((event.value, by));
            }
        }
    }

    /// A helper of slim outside the cgroup: what it opens is not the container's.
    pub fn add_host(&mut self, pid: u32) {
        let host = Process { host: true, ..Process::new(UNRECORDED, 0) };
        self.processes.insert(pid, host);
    }

    /// The mounts of a process's namespace are to be read, by a backend that does not tell them.
    fn look_at(&mut self, event: &Event) {
        if !self.tells_mounts() {
            self.look_at.push((event.mnt_ns, event.pid));
        }
    }

    fn tells_mounts(&self) -> bool {
        self.backend == crate::record::Backend::Bpf.name()
    }

    fn start(&mut self, event: &Event) {
        let who = Arc::new(Who { pids: vec![event.pid], ..Who::default() });
        let process = Process { who, ..Process::new(event.role, event.uid) };
        self.processes.insert(event.pid, process);
    }

    /// Whether `pid` is one of the container's, by what the backend said.
    pub fn knows(&self, pid: u32) -> bool {
        self.processes.get(&pid).is_some_and(|process| !process.host)
    }

    fn fork(&mut self, event: &Event) {
        let entered = event.flags & ENTERED != 0;
        let parent = self.processes.get(&event.pid).map(|p| Arc::clone(&p.who)).unwrap_or_default();
        let pids = [&[event.other], &parent.pids[..]].concat();
        let (exe, argv0) = (parent.exe.clone(), parent.argv0.clone());
        let who = Arc::new(Who { exe, argv0, pids });
        let base = Process::new(event.role, event.uid);
        let child = Process { entered, entered_in_queue: entered, who, ..base };
        self.processes.insert(event.other, child);
    }

    fn exit(&mut self, pid: u32) {
        if let Some(process) = self.processes.get_mut(&pid) {
            process.ended = true;
            self.going.push(pid);
        }
    }

    /// A process that a backend without forks or execs found: it is in the image already.
    fn name(&mut self, event: &Event) {
        let process =
            self.processes.entry(event.pid).or_insert_with(|| Process::new(event.role, event.uid));
        let exe = escape(&path_of(&event.data[3]));
        let pids = match &process.who.pids {
            none if none.is_empty() => vec![event.pid],
            pids => pids.clone(),
        };
        process.who = Arc::new(Who { exe, argv0: escape(text(&event.data[5])), pids });
        (process.role, process.uid) = (event.role, event.uid);
        if event.flags & ENTERED != 0 {
            (process.entered, process.entered_in_queue) = (true, true);
        }
    }

    fn exec(&mut self, event: Event) {
        if !self.processes.contains_key(&event.pid) {
            self.start(&event);
        }
        let entered = event.flags & ENTERED != 0;
        let on_overlay = event.flags & EXE_ON_OVERLAY != 0;
        if let Some(process) = self.processes.get_mut(&event.pid) {
            let exe = escape(&path_of(&event.data[3]));
            let argv0 = escape(text(&event.data[5]));
            let pids = process.who.pids.clone();
            process.who = Arc::new(Who { exe, argv0, pids });
            process.uid = event.uid;
            process.role = event.role;
            process.entered = entered;
        }
        if !entered || event.role == UNRECORDED {
            return;
        }
        self.enter_in_queue(&event);
        if !self.mounts.contains_key(&event.mnt_ns) {
            self.look_at(&event);
        }
        self.entered |= event.role == MAIN;
        let loader = (!event.data[6].is_empty()).then(|| path_of(&event.data[6]));
        let exe = on_overlay.then(|| path_of(&event.data[3]));
        for path in loader.into_iter().chain(exe) {
            let by = self.by(&event);
            self.used(path, How::Exec, by);
        }
        let execve = crate::model::Arch::NATIVE.call_number("execve").unwrap_or(0);
        let interp = text(&event.data[4]).to_vec();
        let file = text(&event.data[0]).to_vec();
        for raw in if interp == file { vec![file] } else { vec![file, interp] } {
            // fexecve: the descriptor's number, not a path; the file itself is in `exe`
            if raw.starts_with(b"/dev/fd/") && !on_overlay {
                continue;
            }
            let mut data = event.data.clone();
            data[0] = raw;
            self.path(Event { kind: EventKind::Path, number: execve, data, ..event.clone() });
        }
    }

    /// The opening for execution that this exec began with may have been read already: then the
    /// process entered there, and what was opened counts.
    fn enter_in_queue(&mut self, event: &Event) {
        let Some(process) = self.processes.get_mut(&event.pid) else { return };
        let executing = std::mem::take(&mut process.executing);
        // No event will say that a silenced file was executed. What is still queued of the runtime's
        // opens then counts too, which keeps a file too many; waiting for one would lose all.
        let executed = [path_of(&event.data[3]), text(&event.data[0]).to_vec()];
        let silent = executed.iter().any(|path| self.silent_execs.contains(path));
        if process.entered_in_queue || (executing.is_empty() && !silent) {
            return;
        }
        process.entered_in_queue = true;
        self.entry_in_queue |= event.role == MAIN;
        let by = self.by(event);
        let user = self.users.of(User { backend: FANOTIFY, ..User::clone(&by.user) });
        let by = By { user, ..by };
        executing.into_iter().for_each(|path| self.used(path, How::Exec, by.clone()));
    }

    fn call(&mut self, event: &Event) {
        let only = |kind| event.kind == kind;
        let by = self.by(event);
        self.calls.push(CallUse {
            arch: event.arch,
            number: event.number,
            refused: only(EventKind::Refused).then_some(event.result),
            failed: only(EventKind::Failed).then_some(event.result),
            value: only(EventKind::Value).then_some(event.value),
            others: event.flags & OTHERS != 0,
            by,
        });
    }

    fn address(&mut self, event: Event) {
        let by = self.by(&event);
        let [address, ..] = event.data;
        self.addresses.push(AddressUse {
            arch: event.arch,
            number: event.number,
            result: event.result,
            kind: u32::try_from(event.value & 0xffff_ffff).unwrap_or(0),
            protocol: u32::try_from(event.value >> 32).unwrap_or(0),
            address: address.into(),
            by,
        });
    }

    fn path(&mut self, event: Event) {
        let event = match event.flags & ROOT_ON_OVERLAY {
            0 if event.role != HOST_HOOK => return, // a runtime that is still at the host's root
            0 => match from_outside(event, &self.roots) {
                Some(event) => event,
                None => return,
            },
            _ if event.role == HOST_HOOK => in_a_root(event, &self.roots),
            _ => event,
        };
        let raw = text(&event.data[0]);
        if event.flags & BASE_UNKNOWN != 0 {
            self.bases_unknown += u64::from(looked_up(event.result));
            return;
        }
        let (place, print) = self.place(&event);
        let call = (event.arch, event.number, event.other, event.value, event.result.min(0));
        let when =
            (event.phase == 0, event.mnt_ns, self.mounts.get(&event.mnt_ns).map(Mounts::len));
        if !self.noted.insert(fingerprint(&(raw, print, call, when))) {
            return;
        }
        let path = PathUse {
            raw: raw.into(),
            place,
            arch: event.arch,
            number: event.number,
            which: event.other,
            flags: event.value,
            result: event.result,
            by: self.by(&event),
        };
        self.paths.push(path);
    }

    /// Where a path starts from, and a hash of that.
    fn place(&mut self, event: &Event) -> (Arc<Place>, u128) {
        let absolute = text(&event.data[0]).first() == Some(&b'/');
        let [_, base, root, ..] = &event.data;
        if let Some(last) = &self.last_place
            && (last.absolute, &last.base, &last.root) == (absolute, base, root)
            && last.place.mnt_ns == event.mnt_ns
        {
            return (Arc::clone(&last.place), last.print);
        }
        let from = if absolute { b"/".to_vec() } else { path_of(base) };
        let place = Place { base: from.into(), root: path_of(root).into(), mnt_ns: event.mnt_ns };
        let print = fingerprint(&place);
        let place = self.places.of(place);
        let (base, root) = (base.clone(), root.clone());
        let last = LastPlace { absolute, base, root, place: Arc::clone(&place), print };
        self.last_place = Some(last);
        (place, print)
    }

    fn by(&mut self, event: &Event) -> By {
        let phase = PHASES[usize::from(event.phase) % PHASES.len()];
        let who = self.processes.get(&event.pid).map(|p| Arc::clone(&p.who)).unwrap_or_default();
        let same = |user: &&Arc<User>| {
            Arc::ptr_eq(&user.who, &who) && (user.uid, user.phase) == (event.uid, phase)
        };
        let user = match self.last_user.as_ref().filter(same) {
            Some(user) => Arc::clone(user),
            None => self.users.of(User { who, uid: event.uid, phase, backend: self.backend }),
        };
        self.last_user = Some(Arc::clone(&user));
        By { user, time: event.time }
    }

    /// Whose an open by `pid` is, in the order of the fanotify queue. `exec`: it was for execution.
    pub fn owner(&mut self, pid: u32, exec: bool, main_phase: Phase) -> Owner {
        let Some(process) = self.processes.get_mut(&pid) else { return Owner::Unknown };
        if process.host || process.role == UNRECORDED {
            return Owner::NotCounted;
        }
        // Opens before the exec that entered the image are the runtime's; the exec itself counts.
        process.entered_in_queue |= exec && process.entered;
        let counts = process.entered_in_queue || process.role == HOST_HOOK;
        if !exec {
            process.executing.clear(); // that exec failed: the runtime goes on
        }
        self.entry_in_queue |= counts && process.role == MAIN;
        let phase = match process.role {
            _ if !counts => Phase::Runtime,
            MAIN => main_phase,
            fixed => PHASES[usize::from(fixed) % PHASES.len()],
        };
        let (who, uid) = (Arc::clone(&process.who), process.uid);
        let user = self.users.of(User { who, uid, phase, backend: FANOTIFY });
        let by = By { user, time: now() };
        Owner::Counted { by, silence: counts && self.entry_in_queue }
    }

    /// Keeps in mind that `pid`, not in the image yet, began to execute `path`.
    pub fn executing(&mut self, pid: u32, path: &[u8]) {
        if let Some(process) = self.processes.get_mut(&pid) {
            process.executing.push(path.to_vec());
        }
    }

    /// Notes the use of a file.
    pub fn used(&mut self, path: Vec<u8>, how: How, by: By) {
        if self.noted.insert(fingerprint(&(&path, how, by.is_runtime(), by.backend()))) {
            self.files.push(FileUse { path: path.into(), how, by });
        }
    }

    /// Forgets processes whose end was known before the queue was last read to its end.
    pub fn queue_was_empty(&mut self) {
        for pid in std::mem::take(&mut self.gone) {
            // the id may be somebody else's by now
            if self.processes.get(&pid).is_some_and(|p| p.ended) {
                self.processes.remove(&pid);
            }
        }
        self.gone = std::mem::take(&mut self.going);
    }
}

/// What a hook outside of the container calls is no reason to allow anything inside: it counts as the
/// runtime's.
fn as_runtime(event: Event) -> Event {
    let phase = if event.phase == HOST_HOOK { 0 } else { event.phase };
    Event { phase, ..event }
}

/// A path that a process at the host's root used, from the root of the overlay that it leads into;
/// `None` if it leads into none of them (by its text: links on the host's side are not followed).
fn from_outside(mut event: Event, roots: &[Vec<u8>]) -> Option<Event> {
    let raw = text(&event.data[0]);
    let absolute = raw.first() == Some(&b'/');
    if event.flags & BASE_UNKNOWN != 0 {
        return Some(event); // anywhere, in an overlay too
    }
    if absolute || event.flags & BASE_ON_OVERLAY == 0 {
        let base = if absolute { Vec::new() } else { path_of(&event.data[1]) };
        let path = [&base[..], if absolute { b"" } else { b"/" }, raw].concat();
        event.data[0] = roots.iter().find_map(|root| below(root, &path))?;
        event.data[1] = Vec::new();
    }
    event.data[2] = Vec::new();
    event.flags |= ROOT_ON_OVERLAY;
    event.mnt_ns = 0; // the host's mounts say nothing of the overlay's own paths
    Some(event)
}

/// A path of a hook that changed its root to an overlay's. Where the backend has that root and the folder
/// by their paths on the host, they become the overlay's own.
fn in_a_root(mut event: Event, roots: &[Vec<u8>]) -> Event {
    for names in &mut event.data[1..3] {
        let path = path_of(names);
        if let Some(own) = roots.iter().find_map(|root| below(root, &path)) {
            *names = leaf_first(&own);
        }
    }
    event
}

/// The part of `path` below `root`.
fn below(root: &[u8], path: &[u8]) -> Option<Vec<u8>> {
    let rest = path.strip_prefix(root)?;
    match rest.first() {
        None => Some(b"/".to_vec()),
        Some(b'/') => Some(rest.to_vec()),
        Some(_) => None,
    }
}

/// A hash that two things never share by chance.
fn fingerprint(what: &impl Hash) -> u128 {
    let half = |salt: u8| {
        let mut hasher = DefaultHasher::new();
        (salt, what).hash(&mut hasher);
        u128::from(hasher.finish())
    };
    half(0) << 64 | half(1)
}

/// Whether a call with this result had read its path: others fail before they look at it. The BPF
/// side has the same list.
fn looked_up(result: i32) -> bool {
    use nix::errno::Errno::{
        EACCES, EEXIST, EISDIR, ELOOP, ENOENT, ENOTDIR, EPERM, EROFS, ETXTBSY, EXDEV,
    };
    let path_was_read =
        [EPERM, ENOENT, EACCES, EEXIST, EXDEV, ENOTDIR, EISDIR, ETXTBSY, EROFS, ELOOP];
    result >= 0 || path_was_read.contains(&nix::errno::Errno::from_raw(-result))
}

/// The errno values in use here, without reaching for libc.
pub mod libc_errno {
    pub const ENOENT: i32 = 2;
    pub const EBADF: i32 = 9;
    pub const EFAULT: i32 = 14;
    pub const EINPROGRESS: i32 = 115;
    pub const ENOTDIR: i32 = 20;
    pub const ENAMETOOLONG: i32 = 36;
    pub const ENOSYS: i32 = 38;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn used(raw: &str, base: &str, flags: u32) -> Event {
        let mut event = Event { role: HOST_HOOK, flags, mnt_ns: 7, ..Event::of(EventKind::Path) };
        event.data[0] = raw.into();
        event.data[1] = leaf_first(base.as_bytes());
        event
    }

    #[test]
    fn a_path_on_the_host_that_leads_into_an_overlay_becomes_the_overlays_own() {
        let roots = [b"/run/a/rootfs".to_vec(), b"/run/b".to_vec()];
        for (raw, base, flags, want) in [
            ("/run/a/rootfs/etc/x", "/", 0, Some(("/etc/x", "/"))),
            ("/run/a/rootfs", "/", 0, Some(("/", "/"))),
            ("/run/a/rootfs2/x", "/", 0, None),
            ("/etc/passwd", "/", 0, None),
            ("etc/x", "/run/b", 0, Some(("/etc/x", "/"))),
            ("passwd", "/etc", 0, None),
            ("../x", "/srv/in", BASE_ON_OVERLAY, Some(("../x", "/srv/in"))),
        ] {
            let got = from_outside(used(raw, base, flags), &roots);
            let got = got.map(|event| {
                assert_eq!((event.flags & ROOT_ON_OVERLAY, event.mnt_ns), (ROOT_ON_OVERLAY, 0));
                let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                (text(&event.data[0]), text(&path_of(&event.data[1])))
            });
            let want = want.map(|(raw, base)| (raw.to_owned(), base.to_owned()));
            assert_eq!(got, want, "{raw} from {base}");
        }
        let mut event = used("x", "/run/b/srv", ROOT_ON_OVERLAY);
        event.data[2] = leaf_first(b"/run/b");
        let event = in_a_root(event, &roots);
        assert_eq!(
            (path_of(&event.data[1]), path_of(&event.data[2])),
            (b"/srv".into(), b"/".into())
        );
    }

    #[test]
    fn calls_of_a_hook_outside_are_the_runtimes() {
        let phase = |phase| as_runtime(Event { phase, ..Event::of(EventKind::Call) }).phase;
        assert_eq!((phase(HOST_HOOK), phase(HOOK), phase(1)), (0, HOOK, 1));
    }
}
