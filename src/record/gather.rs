//! Gives events their meaning while they come in: who a process is, whether an open counts, and
//! when a file may be silenced.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::event::{
    BASE_UNKNOWN, ENTERED, EXE_ON_OVERLAY, Event, EventKind, ROOT_ON_OVERLAY, path_of, text,
};
use super::mounts::MountTable;
use crate::model::{FirstUse, Phase, escape};

/// Phases by the number that the BPF side has for them.
pub const PHASES: [Phase; 8] = [
    Phase::Runtime,
    Phase::Start,
    Phase::Coverage,
    Phase::Exec,
    Phase::Run,
    Phase::Health,
    Phase::Stop,
    Phase::Restart,
];
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

#[derive(Debug, Default)]
struct Who {
    exe: String,
    argv0: String,
}

/// A path handed to a call.
#[derive(Debug, Clone)]
pub struct PathUse {
    pub raw: Vec<u8>,
    /// Where a relative path starts; absolute, in the overlay.
    pub base: Vec<u8>,
    /// The task's root, in the overlay.
    pub root: Vec<u8>,
    pub arch: u8,
    pub number: u32,
    /// 0 first path, 1 second, 2 socket address.
    pub which: u32,
    pub flags: u64,
    pub result: i32,
    pub time: u64,
    pub mnt_ns: u32,
    pub by: FirstUse,
}

/// A file of the overlay that was opened, by its own path there.
#[derive(Debug, Clone)]
pub struct FileUse {
    pub path: Vec<u8>,
    pub exec: bool,
    pub dir: bool,
    pub by: FirstUse,
}

/// A call, its refusal (with the result) or one of its arguments.
#[derive(Debug, Clone)]
pub struct CallUse {
    pub arch: u8,
    pub number: u32,
    pub refused: Option<i32>,
    pub value: Option<u64>,
    pub by: FirstUse,
}

/// Whose an open is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Owner {
    /// Counts; by whom, and whether it may be silenced from here on.
    Counted {
        by: FirstUse,
        silence: bool,
    },
    /// `slim exec --unrecorded`, or slim's own helpers.
    NotCounted,
    Unknown,
}

/// Everything seen so far.
#[derive(Debug, Default)]
pub struct Gathered {
    processes: HashMap<u32, Process>,
    gone: Vec<u32>,
    going: Vec<u32>,
    pub paths: Vec<PathUse>,
    paths_seen: HashSet<PathKey>,
    pub files: Vec<FileUse>,
    files_seen: HashSet<(Vec<u8>, bool, bool)>,
    pub calls: Vec<CallUse>,
    /// By the inode number of the mount namespace.
    pub mounts: HashMap<u32, MountTable>,
    /// The entrypoint's exec happened.
    pub entered: bool,
    /// The entrypoint's exec was read from the fanotify queue.
    entry_in_queue: bool,
    pub bases_unknown: u64,
    pub unattributed: u64,
    /// Mount namespaces to look at, with a process in each.
    pub look_at: Vec<(u32, u32)>,
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct PathKey {
    raw: Vec<u8>,
    base: Vec<u8>,
    root: Vec<u8>,
    call: (u8, u32, u32),
    flags: u64,
    error: i32,
    runtime: bool,
}

impl Gathered {
    /// Takes in one event of the BPF side. `is_mount` says whether a call changes mounts.
    pub fn apply(&mut self, event: Event, is_mount: impl Fn(u8, u32) -> bool) {
        match event.kind {
            EventKind::Sight => self.start(&event),
            EventKind::Fork => self.fork(&event),
            EventKind::Host => self.add_host(event.other),
            EventKind::Exec => self.exec(event),
            EventKind::Exit => self.exit(event.pid),
            EventKind::Name => self.name(&event),
            EventKind::Mounts => {
                self.mounts.insert(event.mnt_ns, MountTable::parse(&event.data[0]));
            }
            EventKind::Call | EventKind::Refused | EventKind::Value => self.call(&event),
            EventKind::Path => {
                if event.result == 0 && is_mount(event.arch, event.number) {
                    self.look_at.push((event.mnt_ns, event.pid));
                }
                self.path(event);
            }
        }
    }

    /// A helper of slim outside the cgroup: what it opens is not the container's.
    pub fn add_host(&mut self, pid: u32) {
        let host = Process { host: true, ..Process::new(UNRECORDED, 0) };
        self.processes.insert(pid, host);
    }

    fn start(&mut self, event: &Event) {
        self.processes.insert(event.pid, Process::new(event.role, event.uid));
    }

    fn fork(&mut self, event: &Event) {
        let entered = event.flags & ENTERED != 0;
        let who = self.processes.get(&event.pid).map(|p| Arc::clone(&p.who)).unwrap_or_default();
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
        process.who = Arc::new(Who { exe, argv0: escape(text(&event.data[5])) });
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
            process.who = Arc::new(Who { exe, argv0 });
            process.uid = event.uid;
            process.role = event.role;
            process.entered = entered;
        }
        if !entered || event.role == UNRECORDED {
            return;
        }
        self.enter_in_queue(&event);
        if !self.mounts.contains_key(&event.mnt_ns) {
            self.look_at.push((event.mnt_ns, event.pid));
        }
        self.entered |= event.role == MAIN;
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
        if process.entered_in_queue || executing.is_empty() {
            return;
        }
        process.entered_in_queue = true;
        self.entry_in_queue |= event.role == MAIN;
        let by = self.by(event);
        executing.into_iter().for_each(|path| self.opened(path, true, false, by.clone()));
    }

    fn call(&mut self, event: &Event) {
        let by = self.by(event);
        let refused = (event.kind == EventKind::Refused).then_some(event.result);
        let value = (event.kind == EventKind::Value).then_some(event.value);
        self.calls.push(CallUse { arch: event.arch, number: event.number, refused, value, by });
    }

    fn path(&mut self, event: Event) {
        if event.flags & ROOT_ON_OVERLAY == 0 {
            return; // a runtime that is still at the host's root
        }
        let raw = text(&event.data[0]).to_vec();
        if event.flags & BASE_UNKNOWN != 0 {
            // EBADF is the call's own answer to a descriptor that is none
            self.bases_unknown += u64::from(event.result != -libc_errno::EBADF);
            return;
        }
        let absolute = raw.first() == Some(&b'/');
        let base = if absolute { b"/".to_vec() } else { path_of(&event.data[1]) };
        let path = PathUse {
            raw,
            base,
            root: path_of(&event.data[2]),
            arch: event.arch,
            number: event.number,
            which: event.other,
            flags: event.value,
            result: event.result,
            time: event.time,
            mnt_ns: event.mnt_ns,
            by: self.by(&event),
        };
        let key = PathKey {
            raw: path.raw.clone(),
            base: path.base.clone(),
            root: path.root.clone(),
            call: (path.arch, path.number, path.which),
            flags: path.flags,
            error: path.result.min(0),
            runtime: event.phase == 0,
        };
        if self.paths_seen.insert(key) {
            self.paths.push(path);
        }
    }

    fn by(&self, event: &Event) -> FirstUse {
        let phase = PHASES[usize::from(event.phase) % PHASES.len()];
        let who = self.processes.get(&event.pid).map(|p| Arc::clone(&p.who)).unwrap_or_default();
        first_use(&who, event.uid, phase)
    }

    /// Whose an open by `pid` is, in the order of the fanotify queue. `exec`: it was for execution.
    pub fn owner(&mut self, pid: u32, exec: bool, main_phase: Phase) -> Owner {
        let Some(process) = self.processes.get_mut(&pid) else { return Owner::Unknown };
        if process.host || process.role == UNRECORDED {
            return Owner::NotCounted;
        }
        // Opens before the exec that entered the image are the runtime's; the exec itself counts.
        process.entered_in_queue |= exec && process.entered;
        let counts = process.entered_in_queue;
        if !exec {
            process.executing.clear(); // that exec failed: the runtime goes on
        }
        self.entry_in_queue |= counts && process.role == MAIN;
        let phase = match process.role {
            _ if !counts => Phase::Runtime,
            MAIN => main_phase,
            fixed => PHASES[usize::from(fixed) % PHASES.len()],
        };
        let by = first_use(&process.who, process.uid, phase);
        Owner::Counted { by, silence: counts && self.entry_in_queue }
    }

    /// Keeps in mind that `pid`, not in the image yet, began to execute `path`.
    pub fn executing(&mut self, pid: u32, path: &[u8]) {
        if let Some(process) = self.processes.get_mut(&pid) {
            process.executing.push(path.to_vec());
        }
    }

    /// Notes an open.
    pub fn opened(&mut self, path: Vec<u8>, exec: bool, dir: bool, by: FirstUse) {
        let runtime = by.phase == Phase::Runtime.name();
        if self.files_seen.insert((path.clone(), exec, runtime)) {
            self.files.push(FileUse { path, exec, dir, by });
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

fn first_use(who: &Who, uid: u32, phase: Phase) -> FirstUse {
    let phase = phase.name().to_owned();
    FirstUse { exe: who.exe.clone(), argv0: who.argv0.clone(), uid, phase }
}

/// The errno values in use here, without reaching for libc.
pub mod libc_errno {
    pub const ENOENT: i32 = 2;
    pub const EBADF: i32 = 9;
    pub const EFAULT: i32 = 14;
    pub const ENOTDIR: i32 = 20;
    pub const ENAMETOOLONG: i32 = 36;
    pub const ENOSYS: i32 = 38;
}
