//! Tar entries in every dialect that layers are found in.

use std::collections::BTreeMap;

use super::model::{Ask, Kind, Meta};

/// How an entry is written; what it means is the same.
#[derive(Debug, Clone, Copy, Default)]
pub struct Style {
    /// `./NAME`, `/NAME` or `NAME`.
    pub lead: u8,
    /// Long names: GNU entries, PAX records, or ustar's prefix where that holds them.
    pub long: u8,
    /// Numbers: octal where they fit, base 256, PAX records.
    pub number: u8,
    /// Files with holes: plain, old GNU, PAX 0.0, 0.1, 1.0.
    pub sparse: u8,
    /// A PAX record nobody knows, or a global header before the entry.
    pub extra: u8,
}

/// Appends one entry to `tar`.
pub fn write(tar: &mut Vec<u8>, path: &[u8], ask: &Ask, meta: &Meta, style: Style) {
    let lead: &[u8] = [&b""[..], b"./", b"/", b".//"][usize::from(style.lead % 4)];
    let mut name = [lead, path].concat();
    let (mut kind, mut link, mut data, mut device) = (b'0', Vec::new(), Vec::new(), None);
    match ask {
        Ask::Make(Kind::File(bytes)) => data.clone_from(bytes),
        Ask::Make(Kind::Dir) => {
            kind = b'5';
            name.push(b'/');
        }
        Ask::Make(Kind::Symlink(to)) => (kind, link) = (b'2', to.clone()),
        Ask::Make(Kind::Fifo) => kind = b'6',
        Ask::Make(Kind::Char(major, minor)) => (kind, device) = (b'3', Some((*major, *minor))),
        Ask::Make(Kind::Block(major, minor)) => (kind, device) = (b'4', Some((*major, *minor))),
        Ask::Link(target) => (kind, link) = (b'1', [lead, &target[..]].concat()),
        Ask::Whiteout => name = rename(&name, |last| [b".wh.", last].concat()),
        Ask::Opaque => name.extend(b"/.wh..wh..opq"),
    }
    let mut records: Vec<(String, Vec<u8>)> = Vec::new();
    if style.extra == 1 {
        records.push(("SLIM.unknown".into(), b"a=b\nc\0".to_vec()));
    }
    if style.extra == 2 {
        // Engines read this and leave it at that.
        let global = pax(&[("uid".into(), b"77".to_vec()), ("mtime".into(), b"7.7".to_vec())]);
        raw(tar, &Head { kind: b'g', name: b"pax_global_header", ..Head::default() }, &global);
    }
    let mut head = Head { kind, name: &name, link: &link, device, ..Head::default() };
    (head.mode, head.uid, head.gid, head.mtime) =
        (meta.mode.into(), meta.uid.into(), meta.gid.into(), meta.mtime.0);
    head.base256 = style.number == 1;
    if style.number == 2 || meta.mtime.1 > 0 || (meta.mtime.0 < 0 && style.number != 1) {
        records.push(("mtime".into(), time(meta.mtime)));
        head.mtime = 0;
    }
    if style.number == 2 {
        records.push(("uid".into(), meta.uid.to_string().into()));
        records.push(("gid".into(), meta.gid.to_string().into()));
        (head.uid, head.gid) = (0, 0);
    }
    for (key, value) in &meta.xattrs {
        records.push((format!("SCHILY.xattr.{key}"), value.clone()));
    }
    let holes = matches!(ask, Ask::Make(Kind::File(bytes)) if bytes.len() > 4096);
    let sparse = if holes { Sparse::of(style.sparse, &data) } else { Sparse::default() };
    let utf8 = std::str::from_utf8(&name).is_ok() && std::str::from_utf8(&link).is_ok();
    let whole_name = name.clone();
    if style.long == 1 && utf8 {
        records.push(("path".into(), name.clone()));
        records.push(("linkpath".into(), link.clone()).clone());
        head.name = b"short";
        head.link = b"";
    } else if let Some(at) = split(&name).filter(|_| style.long == 2 && name.len() > 100) {
        (head.prefix, head.name) = (&whole_name[..at], &whole_name[at + 1..]);
    }
    records.retain(|(key, value)| key != "linkpath" || !value.is_empty());
    for (letter, text) in [(b'L', head.name), (b'K', head.link)] {
        if text.len() > 100 {
            let long = Head { kind: letter, name: b"././@LongLink", gnu: true, ..Head::default() };
            raw(tar, &long, &[text, b"\0"].concat());
        }
    }
    records.extend(sparse.records);
    if !records.is_empty() {
        let block = pax(&records);
        raw(tar, &Head { kind: b'x', name: b"PaxHeaders/x", ..Head::default() }, &block);
    }
    if sparse.old.is_some() {
        head.kind = b'S';
    }
    head.gnu = head.prefix.is_empty();
    head.sparse = sparse.old;
    raw(tar, &head, sparse.data.as_ref().unwrap_or(&data));
}

fn rename(path: &[u8], with: impl Fn(&[u8]) -> Vec<u8>) -> Vec<u8> {
    let at = path.iter().rposition(|b| *b == b'/').map_or(0, |at| at + 1);
    [&path[..at], &with(&path[at..])].concat()
}

/// Where ustar may cut a name in two: at most 155 bytes before a slash, 100 after it.
fn split(name: &[u8]) -> Option<usize> {
    (1..name.len().min(156))
        .rev()
        .find(|at| name[*at] == b'/' && (1..=100).contains(&(name.len() - at - 1)))
}

fn time((seconds, nanos): (i64, u32)) -> Vec<u8> {
    if seconds < 0 && nanos > 0 {
        return format!("-{}.{:09}", -(seconds + 1), 1_000_000_000 - nanos).into_bytes();
    }
    format!("{seconds}.{nanos:09}").into_bytes()
}

fn pax(records: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (key, value) in records {
        let rest = key.len() + value.len() + 3;
        let len = (rest..).find(|len| *len == rest + len.to_string().len()).unwrap();
        out.extend(format!("{len} {key}=").into_bytes());
        out.extend(value);
        out.push(b'\n');
    }
    out
}

type OldMap = (Vec<(u64, u64)>, u64);

/// A file's data without its holes, and where they were.
#[derive(Default)]
struct Sparse {
    records: Vec<(String, Vec<u8>)>,
    old: Option<OldMap>,
    data: Option<Vec<u8>>,
}

impl Sparse {
    fn of(style: u8, whole: &[u8]) -> Self {
        let chunks = whole.chunks(512).enumerate();
        let full = chunks.filter(|(_, chunk)| chunk.iter().any(|b| *b != 0));
        let map: Vec<(u64, u64)> =
            full.map(|(at, chunk)| (at as u64 * 512, chunk.len() as u64)).collect();
        let part = |(at, len): &(u64, u64)| &whole[*at as usize..(*at + *len) as usize];
        let data: Vec<u8> = map.iter().map(part).collect::<Vec<_>>().concat();
        let size = whole.len() as u64;
        let number = |n: u64| n.to_string().into_bytes();
        let mut records = vec![
            ("GNU.sparse.size".to_owned(), number(size)),
            ("GNU.sparse.numblocks".to_owned(), number(map.len() as u64)),
        ];
        match style {
            1 => Self { old: Some((map, size)), data: Some(data), ..Self::default() },
            2 => {
                for (at, len) in map {
                    records.push(("GNU.sparse.offset".into(), number(at)));
                    records.push(("GNU.sparse.numbytes".into(), number(len)));
                }
                Self { records, data: Some(data), old: None }
            }
            3 => {
                let list: Vec<String> =
                    map.iter().flat_map(|(a, l)| [a.to_string(), l.to_string()]).collect();
                if list.is_empty() {
                    return Self::default();
                }
                records.push(("GNU.sparse.map".into(), list.join(",").into()));
                Self { records, data: Some(data), old: None }
            }
            4 => {
                let numbers = map.iter().flat_map(|(a, l)| [*a, *l]);
                let mut head: Vec<u8> = std::iter::once(map.len() as u64)
                    .chain(numbers)
                    .flat_map(|n| format!("{n}\n").into_bytes())
                    .collect();
                head.resize(head.len().next_multiple_of(512), 0);
                let records = vec![
                    ("GNU.sparse.major".to_owned(), b"1".to_vec()),
                    ("GNU.sparse.minor".to_owned(), b"0".to_vec()),
                    ("GNU.sparse.realsize".to_owned(), number(size)),
                ];
                Self { records, data: Some([head, data].concat()), old: None }
            }
            _ => Self::default(),
        }
    }
}

#[derive(Default)]
struct Head<'a> {
    kind: u8,
    name: &'a [u8],
    prefix: &'a [u8],
    link: &'a [u8],
    mode: u64,
    uid: u64,
    gid: u64,
    mtime: i64,
    device: Option<(u32, u32)>,
    base256: bool,
    gnu: bool,
    sparse: Option<OldMap>,
}

fn number(field: &mut [u8], value: i64, base256: bool) {
    let digits = field.len() - 1;
    if !base256 && value >= 0 && value < 1 << (3 * digits) {
        field[..digits].copy_from_slice(format!("{value:0digits$o}").as_bytes());
        return;
    }
    let bytes = i128::from(value).to_be_bytes();
    let width = field.len();
    field.copy_from_slice(&bytes[16 - width..]);
    field[0] = if value < 0 { 0xff } else { 0x80 };
}

fn raw(tar: &mut Vec<u8>, head: &Head<'_>, data: &[u8]) {
    let mut block = [0u8; 512];
    let text = |field: &mut [u8], text: &[u8]| {
        let len = text.len().min(field.len());
        field[..len].copy_from_slice(&text[..len]);
    };
    text(&mut block[..100], head.name);
    text(&mut block[157..257], head.link);
    let mode = if head.mode == 0 && head.kind > b'9' { 0o644 } else { head.mode };
    number(&mut block[100..108], i64::try_from(mode).unwrap(), head.base256);
    number(&mut block[108..116], i64::try_from(head.uid).unwrap(), head.base256);
    number(&mut block[116..124], i64::try_from(head.gid).unwrap(), head.base256);
    number(&mut block[124..136], i64::try_from(data.len()).unwrap(), head.base256);
    number(&mut block[136..148], head.mtime, head.base256);
    block[156] = head.kind;
    text(&mut block[257..265], if head.gnu { b"ustar  \0" } else { b"ustar\x0000" });
    if let Some((major, minor)) = head.device {
        number(&mut block[329..337], major.into(), false);
        number(&mut block[337..345], minor.into(), false);
    }
    text(&mut block[345..500], head.prefix);
    let mut more = Vec::new();
    if let Some((map, real)) = &head.sparse {
        number(&mut block[483..495], i64::try_from(*real).unwrap(), head.base256);
        let put = |field: &mut [u8], pairs: &[(u64, u64)]| {
            for (at, (offset, len)) in pairs.iter().enumerate() {
                let at = at * 24;
                number(&mut field[at..at + 12], i64::try_from(*offset).unwrap(), false);
                number(&mut field[at + 12..at + 24], i64::try_from(*len).unwrap(), false);
            }
        };
        put(&mut block[386..482], &map[..map.len().min(4)]);
        let rest: Vec<_> = map.iter().skip(4).copied().collect();
        block[482] = u8::from(!rest.is_empty());
        let count = rest.chunks(21).count();
        for (at, pairs) in rest.chunks(21).enumerate() {
            let mut ext = [0u8; 512];
            put(&mut ext, pairs);
            ext[504] = u8::from(at + 1 < count);
            more.extend(ext);
        }
    }
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
    block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    tar.extend(block);
    tar.extend(more);
    tar.extend(data);
    tar.resize(tar.len().next_multiple_of(512), 0);
}

/// An access control list as the kernel keeps it (include/uapi/linux/posix_acl_xattr.h, version 2),
/// such that it says of owner, mask and others what `mode` says.
pub fn acl(mode: u32) -> Vec<u8> {
    let mut out = 2u32.to_le_bytes().to_vec();
    for (tag, bits, id) in [
        (1u16, mode >> 6 & 7, u32::MAX),
        (2, 4, 1000),
        (4, mode >> 3 & 5, u32::MAX),
        (16, mode >> 3 & 7, u32::MAX),
        (32, mode & 7, u32::MAX),
    ] {
        out.extend(tag.to_le_bytes());
        out.extend(u16::try_from(bits).unwrap().to_le_bytes());
        out.extend(id.to_le_bytes());
    }
    out
}

/// Attributes that Linux takes on a file of this kind.
pub fn attributes(pick: u8, kind: &Kind, mode: u32) -> BTreeMap<String, Vec<u8>> {
    let mut all = BTreeMap::new();
    let plain = matches!(kind, Kind::File(_) | Kind::Dir);
    if pick & 1 != 0 && plain {
        all.insert("user.a=".trim_end_matches('=').into(), b"1\n2=\0\xff".to_vec());
    }
    if pick & 2 != 0 && matches!(kind, Kind::File(_)) {
        let caps =
            b"\x01\x00\x00\x02\x00\x04\x00\x00\x0a\x3d\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00";
        all.insert("security.capability".into(), caps.to_vec());
    }
    if pick & 4 != 0 && plain {
        all.insert("system.posix_acl_access".into(), acl(mode));
    }
    if pick & 8 != 0 && *kind == Kind::Dir {
        all.insert("system.posix_acl_default".into(), acl(0o750));
    }
    if pick & 16 != 0 {
        all.insert("trusted.slim".into(), vec![pick; 40]);
    }
    all
}
