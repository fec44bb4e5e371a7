//! What backends saw, as values; and those of the BPF side from bytes: mirrors `struct head` in
//! `bpf/slim.bpf.c`.

/// Bytes of `struct head`.
const HEAD: usize = 64;

/// What the BPF side saw.
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
    pub data: [Vec<u8>; 6],
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
    /// The text of a mountinfo file, as the first piece of data.
    Mounts,
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

pub const ENTERED: u32 = 1;
pub const BASE_UNKNOWN: u32 = 4;
pub const ROOT_ON_OVERLAY: u32 = 8;
pub const EXE_ON_OVERLAY: u32 = 16;

/// Reads one event; `None` if the bytes are none (a broken object, never a running system).
pub fn parse_event(raw: &[u8]) -> Option<Event> {
    let head = raw.get(..HEAD)?;
    let u16_at = |at: usize| Some(u16::from_ne_bytes(head.get(at..at + 2)?.try_into().ok()?));
    let u32_at = |at: usize| Some(u32::from_ne_bytes(head.get(at..at + 4)?.try_into().ok()?));
    let u64_at = |at: usize| Some(u64::from_ne_bytes(head.get(at..at + 8)?.try_into().ok()?));
    let mut rest = raw.get(HEAD..)?;
    let mut data: [Vec<u8>; 6] = Default::default();
    for (index, piece) in data.iter_mut().enumerate() {
        let (bytes, tail) = rest.split_at_checked(u16_at(48 + 2 * index)?.into())?;
        *piece = bytes.to_vec();
        rest = tail;
    }
    Some(Event {
        kind: kind(head[0])?,
        arch: head[1],
        phase: head[2],
        role: head[3],
        flags: u32_at(4)?,
        pid: u32_at(8)?,
        other: u32_at(12)?,
        time: u64_at(16)?,
        uid: u32_at(24)?,
        number: u32_at(28)?,
        result: u32_at(32)?.cast_signed(),
        mnt_ns: u32_at(36)?,
        value: u64_at(40)?,
        data,
    })
}

fn kind(byte: u8) -> Option<EventKind> {
    use EventKind::{Call, Exec, Exit, Fork, Host, Path, Refused, Sight, Value};
    [Sight, Fork, Exec, Exit, Call, Refused, Value, Path, Host]
        .get(usize::from(byte).checked_sub(1)?)
        .copied()
}

/// A string without its NUL.
pub fn text(piece: &[u8]) -> &[u8] {
    piece.split(|b| *b == 0).next().unwrap_or_default()
}

/// A path from the names that the BPF side gathered leaf first; the root for none.
pub fn path_of(names: &[u8]) -> Vec<u8> {
    let mut names: Vec<&[u8]> = names.split(|b| *b == 0).filter(|n| !n.is_empty()).collect();
    names.reverse();
    let mut path = vec![b'/'];
    path.extend(names.join(&b'/'));
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_read_field_by_field() {
        let mut raw = vec![8, 1, 2, 100];
        for word in [9u32, 42, 1] {
            raw.extend(word.to_ne_bytes());
        }
        raw.extend(7u64.to_ne_bytes());
        for word in [1000u32, 257, (-2i32).cast_unsigned(), 5] {
            raw.extend(word.to_ne_bytes());
        }
        raw.extend(6u64.to_ne_bytes());
        for len in [4u16, 8, 0, 0, 0, 0] {
            raw.extend(len.to_ne_bytes());
        }
        raw.extend([0; 4]);
        raw.extend(b"abc\0lib\0usr\0");
        let event = parse_event(&raw).unwrap();
        assert_eq!((event.kind, event.role, event.pid), (EventKind::Path, 100, 42));
        assert_eq!((event.result, event.uid, event.number), (-2, 1000, 257));
        assert_eq!(text(&event.data[0]), b"abc");
        assert_eq!(path_of(&event.data[1]), b"/usr/lib");
        assert_eq!(path_of(&event.data[2]), b"/");
        assert_eq!(parse_event(&raw[..raw.len() - 1]), None);
    }
}
