//! Events of the BPF side, from bytes to values. Mirrors `struct head` in `slim.bpf.c`.
//!
//! Directories and executables come as keys; their names were sent once, before. Mounts come one by
//! one and leave as the text of a mountinfo file, which is what other backends read.

use std::collections::{HashMap, HashSet};
use std::io::Write;

use crate::record::event::{BASE_ON_OVERLAY, Event, EventKind, ROOT_ON_OVERLAY, path_of};
use crate::record::gather::HOST_HOOK;

/// Bytes of `struct head`.
const HEAD: usize = 88;

/// Names sent so far, and mounts of a table that is not whole yet.
#[derive(Debug, Default)]
pub struct Decoder {
    names: HashMap<u64, Vec<u8>>,
    /// Those of them that are paths in an overlay.
    inside: HashSet<u64>,
    /// By mount namespace: the lines so far, and how many.
    mounts: HashMap<u32, (Vec<u8>, u64)>,
}

/// What came of a record.
#[derive(Debug, PartialEq, Eq)]
pub enum Decoded {
    Event(Box<Event>),
    /// Something for later.
    Nothing,
    /// A broken object, or a name that was lost.
    Nonsense,
}

impl Decoder {
    /// Reads one record of the ring.
    pub fn read(&mut self, raw: &[u8]) -> Decoded {
        self.event(raw).unwrap_or(Decoded::Nonsense)
    }

    fn event(&mut self, raw: &[u8]) -> Option<Decoded> {
        let head = Head::of(raw)?;
        let mut rest = raw.get(HEAD..)?;
        let mut pieces: [&[u8]; 4] = Default::default();
        for (index, piece) in pieces.iter_mut().enumerate() {
            let len = u16::from_ne_bytes(raw.get(80 + 2 * index..82 + 2 * index)?.try_into().ok()?);
            (*piece, rest) = rest.split_at_checked(len.into())?;
        }
        let kind = match raw[0] {
            NAME => {
                self.names.insert(head.value, pieces[0].to_vec());
                if u32_at(raw, 4)? & ON_OVERLAY != 0 {
                    self.inside.insert(head.value);
                }
                return Some(Decoded::Nothing);
            }
            MOUNT => {
                self.mount(&head)?;
                return Some(Decoded::Nothing);
            }
            MOUNTED => EventKind::Mounts,
            byte => kind(byte)?,
        };
        let mut event = head.event(raw, kind)?;
        match kind {
            EventKind::Mounts => {
                let (text, lines) = self.mounts.remove(&head.mnt_ns)?;
                (lines == head.value).then_some(())?;
                event.data[0] = text;
            }
            EventKind::Exec => {
                event.data[0] = pieces[0].to_vec();
                event.data[4] = pieces[1].to_vec();
                event.data[5] = pieces[2].to_vec();
            }
            _ => event.data[0] = pieces[0].to_vec(),
        }
        let keys = [(1, head.base), (2, head.root), (3, head.exe), (6, head.loader)];
        for (place, key) in keys.into_iter().filter(|(_, key)| *key != 0) {
            event.data[place] = self.names.get(&key)?.clone();
        }
        if event.role == HOST_HOOK {
            // it may stand anywhere
            event.flags &= !ROOT_ON_OVERLAY;
            let inside = |key| self.inside.contains(&key);
            event.flags |= if inside(head.root) { ROOT_ON_OVERLAY } else { 0 };
            event.flags |= if inside(head.base) { BASE_ON_OVERLAY } else { 0 };
        }
        Some(Decoded::Event(Box::new(event)))
    }

    /// Adds a line as in proc_pid_mountinfo(5). The names of a mount are used once.
    fn mount(&mut self, head: &Head) -> Option<()> {
        let (point, root) = (self.names.remove(&head.base)?, self.names.remove(&head.root)?);
        let (major, minor) = (head.other >> 20, head.other & 0xf_ffff);
        let (text, lines) = self.mounts.entry(head.mnt_ns).or_default();
        write!(text, "{} 0 {major}:{minor} ", head.value).ok()?;
        octal(&path_of(&root), text);
        text.push(b' ');
        octal(&path_of(&point), text);
        text.extend(b" rw - none none rw\n");
        *lines += 1;
        Some(())
    }
}

/// Writes a path as mountinfo does.
fn octal(path: &[u8], text: &mut Vec<u8>) {
    for byte in path {
        match byte {
            b' ' | b'\t' | b'\n' | b'\\' | b'#' => {
                let _ = write!(text, "\\{byte:03o}");
            }
            plain => text.push(*plain),
        }
    }
}

/// The part of `struct head` that is no plain field of an event.
struct Head {
    other: u32,
    mnt_ns: u32,
    value: u64,
    base: u64,
    root: u64,
    exe: u64,
    loader: u64,
}

fn u32_at(raw: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(raw.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(raw: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(raw.get(at..at + 8)?.try_into().ok()?))
}

impl Head {
    fn of(raw: &[u8]) -> Option<Self> {
        raw.get(..HEAD)?;
        Some(Self {
            other: u32_at(raw, 12)?,
            mnt_ns: u32_at(raw, 36)?,
            value: u64_at(raw, 40)?,
            base: u64_at(raw, 48)?,
            root: u64_at(raw, 56)?,
            exe: u64_at(raw, 64)?,
            loader: u64_at(raw, 72)?,
        })
    }

    fn event(&self, raw: &[u8], kind: EventKind) -> Option<Event> {
        Some(Event {
            kind,
            arch: raw[1],
            phase: raw[2],
            role: raw[3],
            flags: u32_at(raw, 4)?,
            pid: u32_at(raw, 8)?,
            other: self.other,
            time: u64_at(raw, 16)?,
            uid: u32_at(raw, 24)?,
            number: u32_at(raw, 28)?,
            result: u32_at(raw, 32)?.cast_signed(),
            mnt_ns: self.mnt_ns,
            value: self.value,
            data: Default::default(),
        })
    }
}

/// Of a name, `enum flags` of the C source.
const ON_OVERLAY: u32 = 128;

const NAME: u8 = 10;
const MOUNT: u8 = 15;
const MOUNTED: u8 = 16;

/// `enum kind` of the C source.
fn kind(byte: u8) -> Option<EventKind> {
    use EventKind::{
        Address, Call, Capability, Exec, Exit, Failed, Fork, Host, Map, Path, Refused, Sight, Value,
    };
    Some(match byte {
        1 => Sight,
        2 => Fork,
        3 => Exec,
        4 => Exit,
        5 => Call,
        6 => Refused,
        7 => Value,
        8 => Path,
        9 => Host,
        11 => Failed,
        12 => Map,
        13 => Address,
        14 => Capability,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::event::text;
    use crate::record::mounts::{MountTable, Place};

    fn record(kind: u8, value: u64, keys: [u64; 4], pieces: &[&[u8]]) -> Vec<u8> {
        let mut raw = vec![kind, 1, 2, 100];
        for word in [9u32, 42, 50] {
            raw.extend(word.to_ne_bytes());
        }
        raw.extend(7u64.to_ne_bytes());
        for word in [1000u32, 257, (-2i32).cast_unsigned(), 5] {
            raw.extend(word.to_ne_bytes());
        }
        raw.extend(value.to_ne_bytes());
        keys.iter().for_each(|key| raw.extend(key.to_ne_bytes()));
        for index in 0..4 {
            let len = pieces.get(index).map_or(0, |piece| piece.len());
            raw.extend(u16::try_from(len).unwrap().to_ne_bytes());
        }
        raw.extend(pieces.concat());
        raw
    }

    #[test]
    fn an_event_is_read_field_by_field() {
        let mut decoder = Decoder::default();
        let path = record(8, 6, [77, 0, 0, 0], &[b"abc\0"]);
        // the name must have come before
        assert_eq!(decoder.read(&path), Decoded::Nonsense);
        assert_eq!(decoder.read(&record(NAME, 77, [0; 4], &[b"lib\0usr\0"])), Decoded::Nothing);
        let Decoded::Event(event) = decoder.read(&path) else { panic!("no event") };
        assert_eq!((event.kind, event.role, event.pid), (EventKind::Path, 100, 42));
        assert_eq!((event.result, event.uid, event.number), (-2, 1000, 257));
        assert_eq!(text(&event.data[0]), b"abc");
        assert_eq!(path_of(&event.data[1]), b"/usr/lib");
        assert_eq!(path_of(&event.data[2]), b"/");
        assert_eq!(decoder.read(&path[..path.len() - 1]), Decoded::Nonsense);
    }

    #[test]
    fn mounts_become_a_table_once_they_are_all_there() {
        let mut decoder = Decoder::default();
        decoder.read(&record(NAME, 1, [0; 4], &[b"data\0"]));
        decoder.read(&record(NAME, 2, [0; 4], &[b"a b\0srv\0"]));
        assert_eq!(decoder.read(&record(MOUNT, 12, [1, 2, 0, 0], &[])), Decoded::Nothing);
        let Decoded::Event(event) = decoder.read(&record(MOUNTED, 1, [0; 4], &[])) else {
            panic!("no event")
        };
        let table = MountTable::parse(&event.data[0]);
        let path = |s: &str| crate::model::RootPath::parse(s.as_bytes()).unwrap();
        assert_eq!(table.place(&path("/data/x"), &[50]), Place::Overlay(path("/srv/a b/x")));
        // one of them was lost
        assert_eq!(decoder.read(&record(MOUNTED, 1, [0; 4], &[])), Decoded::Nonsense);
    }
}
