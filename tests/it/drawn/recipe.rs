//! Images as lists of entries, drawn from a seed: everything that a layer may say, and how oddly it may
//! be written.

use std::collections::BTreeMap;

use crate::support::image::Packed;

use super::model::{Model, Turn};

/// Layers, lowest first.
#[derive(Clone)]
pub struct Recipe {
    pub layers: Vec<LayerRecipe>,
}

#[derive(Clone)]
pub struct LayerRecipe {
    pub entries: Vec<Entry>,
    pub packed: Packed,
}

/// One entry, its name relative to the root and perhaps through symlinks.
#[derive(Clone, Debug)]
pub struct Entry {
    pub name: Vec<u8>,
    pub kind: Kind,
    pub meta: Meta,
    pub style: Style,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    File(Vec<u8>),
    Dir,
    Symlink(Vec<u8>),
    Link(Vec<u8>),
    Fifo,
    Char(u32, u32),
    Block(u32, u32),
    Whiteout,
    Opaque,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: (i64, u32),
    pub xattrs: BTreeMap<String, Vec<u8>>,
}

/// How the entry is written.
#[derive(Clone, Copy, Debug, Default)]
pub struct Style {
    /// `""`, `./` or `/`.
    pub prefix: &'static str,
    pub long: Long,
    pub numbers: Numbers,
    pub sparse: Option<Sparse>,
    /// A folder's name without its slash.
    pub bare: bool,
    /// A global header with a comment goes before.
    pub global: bool,
    /// A regular file as type NUL (before POSIX) or `7` (contiguous).
    pub old_type: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Long {
    #[default]
    Gnu,
    Pax,
    Ustar,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Numbers {
    #[default]
    Octal,
    Base256,
    Pax,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sparse {
    Old,
    Pax00,
    Pax01,
    Pax10,
}

/// Numbers from a seed (xorshift64*, Vigna 2016).
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        usize::try_from((self.next() >> 16) % n as u64).unwrap()
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())].clone()
    }
}

/// Draws an image. A `tame` one has only what all engines take alike: no names through symlinks that
/// lead nowhere, no links to what the same layer hides, no default ACLs (some let files inherit them
/// while they unpack), no empty attributes (Go drops them), no global headers, old types and old sparse
/// files (umoci 0.4.7 refuses them).
pub fn draw(seed: u64, tame: bool) -> Recipe {
    let mut dice = Dice::new(seed);
    let mut model = Model::default();
    let mut layers = Vec::new();
    for _ in 0..=dice.below(5) {
        let entries = layer(&mut dice, &mut model, tame);
        // Debian 12's umoci has no zstd.
        let all = [Packed::Gzip, Packed::Plain, Packed::Zstd];
        let packed = dice.pick(&all[..if tame { 2 } else { 3 }]);
        layers.push(LayerRecipe { entries, packed });
    }
    Recipe { layers }
}

fn layer(dice: &mut Dice, model: &mut Model, tame: bool) -> Vec<Entry> {
    if dice.one_in(12) {
        assert!(model.clone().apply(&[]).is_ok());
        return Vec::new();
    }
    let mut cuts = Vec::new();
    if dice.one_in(2) {
        for _ in 0..=dice.below(3) {
            cuts.extend(cut(dice, model));
        }
    }
    let cuts: Vec<Entry> = Turn::of(model, &cuts).map_or_else(|_| Vec::new(), |_| cuts);
    let mut entries = Vec::new();
    let mut turn = Turn::of(model, &cuts).expect("tried just now");
    for _ in 0..dice.below(20) {
        let entry = entry(dice, &turn, tame);
        if turn.add(&entry, tame).is_ok() {
            entries.push(entry);
        }
    }
    *model = turn.finish();
    for cut in cuts {
        let at = dice.below(entries.len() + 1);
        entries.insert(at, cut);
    }
    entries
}

/// A whiteout of something below, or of nothing, or an opaque mark.
fn cut(dice: &mut Dice, model: &Model) -> Option<Entry> {
    let there: Vec<&Vec<u8>> = model.nodes.keys().collect();
    let style = Style { prefix: dice.pick(&["", "./", "/"]), ..Style::default() };
    let (name, kind) = match dice.below(6) {
        0 => (path(dice), Kind::Whiteout),
        1 if !there.is_empty() => {
            let dirs = model.nodes.iter().filter(|(_, node)| node.kind == Kind::Dir);
            let dirs: Vec<Vec<u8>> = dirs.map(|(path, _)| path.clone()).collect();
            let some = (!dirs.is_empty()).then(|| dice.pick(&dirs))?;
            (some, Kind::Opaque)
        }
        2 if dice.one_in(6) => (Vec::new(), Kind::Opaque),
        _ if there.is_empty() => return None,
        _ => (dice.pick(&there).clone(), Kind::Whiteout),
    };
    Some(Entry { name, kind, meta: Meta { mode: 0o644, ..Meta::default() }, style })
}

const NAMES: &[&[u8]] = &[
    b"a",
    b"b",
    b"c",
    b"d",
    b"e f",
    b"\xff\xfe",
    b"new\nline",
    b"x=y",
    "\u{e9}t\u{e9}".as_bytes(),
    b"..a",
    b".hidden",
    b"a-b",
    b"%25\\",
    b"a-name-that-is-so-long-that-two-of-it-do-not-fit-into-the-hundred-bytes-of-a-header",
];

fn path(dice: &mut Dice) -> Vec<u8> {
    let mut path = Vec::new();
    for at in 0..=dice.below(3) {
        if at > 0 {
            path.push(b'/');
        }
        let few = if dice.one_in(3) { NAMES.len() } else { 4 };
        path.extend(dice.pick(&NAMES[..few]));
    }
    if dice.one_in(25) {
        path.extend(b"/");
        path.extend([b'n'; 200]);
    }
    path
}

fn entry(dice: &mut Dice, turn: &Turn, tame: bool) -> Entry {
    let mut style = Style {
        prefix: dice.pick(&["", "", "./", "/"]),
        long: dice.pick(&[Long::Gnu, Long::Pax, Long::Ustar]),
        numbers: dice.pick(&[Numbers::Octal, Numbers::Octal, Numbers::Base256, Numbers::Pax]),
        sparse: None,
        bare: dice.one_in(5),
        global: dice.one_in(20) && !tame,
        old_type: dice.one_in(15) && !tame,
    };
    if dice.one_in(30) {
        let meta = meta(dice, &Kind::Dir, tame);
        style.prefix = "./";
        return Entry { name: Vec::new(), kind: Kind::Dir, meta, style };
    }
    let name = match dice.below(4) {
        0 => turn.some_path(dice).unwrap_or_else(|| path(dice)),
        _ => path(dice),
    };
    let kind = match dice.below(16) {
        0..4 => Kind::Dir,
        4..6 => Kind::Symlink(target(dice)),
        6..9 => match turn.some_file(dice) {
            Some(target) => Kind::Link(target),
            None => Kind::Fifo,
        },
        9 => Kind::Fifo,
        10 => Kind::Char(dice.pick(&[1, 5, 4095]), dice.pick(&[3, 0, 70_000])),
        11 => Kind::Block(dice.pick(&[7, 8]), dice.pick(&[0, 1, 255])),
        _ => {
            let data = content(dice);
            if data.len() > 60_000 {
                let kinds = [Sparse::Pax00, Sparse::Pax01, Sparse::Pax10, Sparse::Old];
                style.sparse =
                    Some(dice.pick(&kinds[..if tame { 3 } else { 4 }])).filter(|_| !dice.one_in(4));
                if tame {
                    // GNU tar 1.34 takes a PAX size for that of the file with its holes, and the map for
                    // an old one where the header is GNU's.
                    style.numbers = Numbers::Octal;
                    style.long = Long::Ustar;
                }
            }
            Kind::File(data)
        }
    };
    let meta = match &kind {
        Kind::Link(target) => turn.meta_of(target).unwrap_or_default(),
        kind => meta(dice, kind, tame),
    };
    Entry { name, kind, meta, style }
}

fn target(dice: &mut Dice) -> Vec<u8> {
    match dice.below(6) {
        0 => [&b"/"[..], &path(dice)].concat(),
        1 => [&b"../../../"[..], &path(dice)].concat(),
        2 => dice.pick(&[&b"/"[..], b".", b"..", b"/proc/self/root", b"//a/./b/"]).to_vec(),
        3 => [&path(dice)[..], b"/", &[b't'; 120]].concat(),
        _ => path(dice),
    }
}

fn content(dice: &mut Dice) -> Vec<u8> {
    let start: &[u8] = dice.pick(&[&b""[..], b"", b"#!/bin/sh\n", b"\x7fELF\x02\x01\x01"]);
    let mut data = start.to_vec();
    match dice.below(8) {
        0 => {}
        1 => {
            // Data and holes in turn, not all of them on the borders of blocks.
            for _ in 0..=dice.below(7) {
                data.resize(data.len() + dice.pick(&[4096, 65_536, 70_001]), 0);
                data.extend((0..dice.below(5000)).map(|n| 1 | n.to_le_bytes()[0]));
            }
            if dice.one_in(2) {
                data.resize(data.len() + 131_072, 0);
            }
        }
        _ => data.extend((0..dice.below(1500)).map(|_| dice_byte(start.len()))),
    }
    if dice.one_in(3) {
        data.extend(dice.next().to_le_bytes());
    }
    data
}

fn dice_byte(n: usize) -> u8 {
    n.to_le_bytes()[0].wrapping_mul(31) ^ 0x5a
}

fn meta(dice: &mut Dice, kind: &Kind, tame: bool) -> Meta {
    let ids = [0, 0, 1, 33, 1000, 65_534, 2_097_152, 4_000_000_000];
    let seconds = [0, 1, 1_600_000_000, 1_600_000_001, 9_000_000_000, -1, -1_000_000_000];
    let nanos = [0, 0, 0, 1, 999_999_999, 500_000_000, 120];
    let mut meta = Meta {
        mode: dice.pick(&[0o644, 0o755, 0o600, 0o700, 0o4755, 0o2755, 0o1777, 0o6711, 0, 0o444]),
        uid: dice.pick(&ids),
        gid: dice.pick(&ids),
        mtime: (dice.pick(&seconds), dice.pick(&nanos)),
        xattrs: BTreeMap::new(),
    };
    if let Kind::Symlink(_) = kind {
        meta.mode = 0o777;
    }
    if !dice.one_in(4) {
        return meta;
    }
    let plain = matches!(kind, Kind::File(_) | Kind::Dir);
    let values = [&b"v"[..], b"\0\xff=\n", b"12 user.y=x\n", b""];
    let values = &values[..if tame { 3 } else { 4 }];
    meta.xattrs.insert("trusted.slim".into(), dice.pick(values).to_vec());
    if plain {
        meta.xattrs.insert("user.n=1".replace('=', "."), dice.pick(values).to_vec());
    }
    if matches!(kind, Kind::File(_)) && dice.one_in(2) {
        // Revision 2, effective, CAP_NET_RAW and CAP_SETFCAP; a newline is one of the bytes.
        let mut caps = b"\x01\x00\x00\x02\x0a\x20\x00\x00".to_vec();
        caps.extend([0; 12]);
        meta.xattrs.insert("security.capability".into(), caps);
    }
    if plain && dice.one_in(2) {
        let permissions = [meta.mode >> 6 & 7, 5, 4, meta.mode >> 3 & 7, meta.mode & 7];
        meta.xattrs.insert("system.posix_acl_access".into(), acl(permissions));
    }
    if *kind == Kind::Dir && dice.one_in(3) && !tame {
        meta.xattrs.insert("system.posix_acl_default".into(), acl([7, 6, 5, 7, 0]));
    }
    meta
}

/// An ACL as the kernel keeps it (linux/posix_acl_xattr.h): owner, user 1000, group, mask, others.
fn acl(permissions: [u32; 5]) -> Vec<u8> {
    let mut raw = 2u32.to_le_bytes().to_vec();
    let tags = [(1u16, u32::MAX), (2, 1000), (4, u32::MAX), (0x10, u32::MAX), (0x20, u32::MAX)];
    for ((tag, id), permission) in tags.into_iter().zip(permissions) {
        raw.extend(tag.to_le_bytes());
        raw.extend(u16::try_from(permission).unwrap().to_le_bytes());
        raw.extend(id.to_le_bytes());
    }
    raw
}
