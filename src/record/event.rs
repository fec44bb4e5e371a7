//! What backends saw, as values. Who sees what, and by which means, is the backend's own affair.

/// What a backend saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    pub kind: EventKind,
    /// 0 native, 1 compat.
    pub arch: u8,
    /// Number of the phase.
    pub phase: u8,
    pub role: u8,
    pub flags: u32,
    /// Process, in the reader's pid namespace.
    pub pid: u32,
    pub other: u32,
    /// ns, `CLOCK_MONOTONIC`.
    pub time: u64,
    pub uid: u32,
    pub number: u32,
    pub result: i32,
    pub mnt_ns: u32,
    pub value: u64,
    /// Path, exec: the string as used, the directory it starts from, the task's root; exec: the
    /// executable, the interpreter of a script, argv[0], the ELF interpreter. Directories and files are
    /// names leaf first, each with a NUL.
    pub data: [Vec<u8>; 7],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    /// A process came into the cgroup without a fork there.
    Sight,
    Fork,
    Exec,
    Exit,
    Call,
    Refused,
    Value,
    Path,
    /// A helper of slim outside the cgroup forked.
    Host,
    /// What a process runs, found by looking and not by its exec.
    Name,
    /// The text of a mountinfo file, as the first piece of data: the mounts of `mnt_ns` from now on.
    Mounts,
    /// A call failed, with the error as its result.
    Failed,
    /// A file (the executable's place in the data) was mapped for execution.
    Map,
    /// A socket address was handed to a call: the address as the first piece of data, the socket's
    /// type in the low half of the value and its protocol in the high one.
    Address,
    /// A capability, by its number, was asked for and granted.
    Capability,
}

impl Event {
    /// An event of now about nothing yet.
    pub fn of(kind: EventKind) -> Self {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let (seconds, nanos) = (now.tv_sec.cast_unsigned(), now.tv_nsec.cast_unsigned());
        Self {
            kind,
            arch: 0,
            phase: 0,
            role: 0,
            flags: 0,
            pid: 0,
            other: 0,
            time: seconds * 1_000_000_000 + nanos,
            uid: 0,
            number: 0,
            result: 0,
            mnt_ns: 0,
            value: 0,
            data: Default::default(),
        }
    }
}

/// The task runs what the image holds.
pub const ENTERED: u32 = 1;
pub const BASE_UNKNOWN: u32 = 4;
pub const ROOT_ON_OVERLAY: u32 = 8;
pub const EXE_ON_OVERLAY: u32 = 16;
/// What a relative path starts from is in the overlay; told of hooks, whose root may be the host's.
pub const BASE_ON_OVERLAY: u32 = 256;
/// A value stands for all that follow.
pub const OTHERS: u32 = 64;

/// A string without its NUL.
pub fn text(piece: &[u8]) -> &[u8] {
    piece.split(|b| *b == 0).next().unwrap_or_default()
}

/// A path as events carry it: names leaf first, each with a NUL.
pub fn leaf_first(path: &[u8]) -> Vec<u8> {
    let mut names: Vec<&[u8]> = path.split(|b| *b == b'/').filter(|n| !n.is_empty()).collect();
    names.reverse();
    names.into_iter().flat_map(|name| [name, b"\0"].concat()).collect()
}

/// A path from the names that the BPF side gathered leaf first; the root for none.
pub fn path_of(names: &[u8]) -> Vec<u8> {
    let mut names: Vec<&[u8]> = names.split(|b| *b == 0).filter(|n| !n.is_empty()).collect();
    names.reverse();
    let mut path = vec![b'/'];
    path.extend(names.join(&b'/'));
    path
}
