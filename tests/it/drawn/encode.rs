//! Entries as tar blocks, in every form that tars have had.

use super::recipe::{Entry, Kind, Long, Numbers, Sparse};

const BLOCK: usize = 512;

/// The tar of a layer, without its end.
pub fn tar(entries: &[Entry]) -> Vec<u8> {
    let mut out = Vec::new();
    for entry in entries {
        if entry.style.global {
            let mut data = Vec::new();
            record(&mut data, "comment", b"of nobody's concern");
            extension(&mut out, b'g', &data);
        }
        put(&mut out, entry);
    }
    out
}

fn put(out: &mut Vec<u8>, entry: &Entry) {
    let style = entry.style;
    let (kind, link, data): (u8, &[u8], &[u8]) = match &entry.kind {
        Kind::File(data) if style.old_type && style.sparse.is_none() => {
            (if data.len() % 2 == 0 { 0 } else { b'7' }, b"", data)
        }
        Kind::File(data) => (b'0', b"", data),
        Kind::Dir => (b'5', b"", b""),
        Kind::Symlink(target) => (b'2', target, b""),
        Kind::Link(target) => (b'1', target, b""),
        Kind::Fifo => (b'6', b"", b""),
        Kind::Char(..) => (b'3', b"", b""),
        Kind::Block(..) => (b'4', b"", b""),
        Kind::Whiteout | Kind::Opaque => (b'0', b"", b""),
    };
    let mut header = [0u8; BLOCK];
    let mut records = Vec::new();
    let (mut kind, mut stored, mut blocks) = (kind, data.to_vec(), Vec::new());
    let mut written = name(entry);
    if let Some(sparse) = style.sparse {
        let map = segments(data);
        stored = map.iter().flat_map(|(at, len)| &data[*at..at + len]).copied().collect();
        match sparse {
            Sparse::Old => {
                kind = b'S';
                blocks = old_map(&mut header, &map, data.len());
            }
            _ => pax_map(&mut records, &mut stored, &mut written, &map, data.len(), sparse),
        }
    }
    let ustar = style.sparse != Some(Sparse::Old)
        && style.long == Long::Ustar
        && style.numbers != Numbers::Base256;
    header[257..265].copy_from_slice(if ustar { b"ustar\x0000" } else { b"ustar  \0" });
    long_name(out, &mut header, &mut records, &written, style.long, ustar);
    if link.len() > 100 {
        match style.long {
            Long::Gnu => long_entry(out, b'K', link),
            _ => record(&mut records, "linkpath", link),
        }
    }
    header[157..157 + link.len().min(100)].copy_from_slice(&link[..link.len().min(100)]);
    header[156] = kind;
    octal(&mut header[100..108], u64::from(entry.meta.mode));
    let numbers = style.numbers;
    let meta = &entry.meta;
    number(&mut header, 108..116, &mut records, "uid", meta.uid.into(), numbers);
    number(&mut header, 116..124, &mut records, "gid", meta.gid.into(), numbers);
    let size = i64::try_from(stored.len()).unwrap();
    number(&mut header, 124..136, &mut records, "size", size, numbers);
    time(&mut header, &mut records, meta.mtime, numbers);
    if let Kind::Char(major, minor) | Kind::Block(major, minor) = entry.kind {
        octal(&mut header[329..337], major.into());
        octal(&mut header[337..345], minor.into());
    }
    for (name, value) in meta.xattrs.iter().filter(|_| !matches!(entry.kind, Kind::Link(_))) {
        record(&mut records, &format!("SCHILY.xattr.{name}"), value);
    }
    if !records.is_empty() {
        extension(out, b'x', &records);
    }
    finish(out, header);
    out.extend(blocks);
    out.extend(stored);
    pad(out);
}

fn name(entry: &Entry) -> Vec<u8> {
    let mut name = entry.style.prefix.as_bytes().to_vec();
    let (dir, last) = match entry.name.iter().rposition(|b| *b == b'/') {
        Some(at) => entry.name.split_at(at + 1),
        None => (&b""[..], &entry.name[..]),
    };
    match entry.kind {
        Kind::Whiteout => [&name[..], dir, b".wh.", last].concat(),
        Kind::Opaque if entry.name.is_empty() => [&name[..], b".wh..wh..opq"].concat(),
        Kind::Opaque => [&name[..], &entry.name, b"/.wh..wh..opq"].concat(),
        _ => {
            name.extend(&entry.name);
            if entry.kind == Kind::Dir && !entry.style.bare && !entry.name.is_empty() {
                name.push(b'/');
            }
            name
        }
    }
}

fn long_name(
    out: &mut Vec<u8>,
    header: &mut [u8; BLOCK],
    records: &mut Vec<u8>,
    name: &[u8],
    long: Long,
    ustar: bool,
) {
    let mut text = name;
    if name.len() > 100 {
        let fits = |at: &usize| {
            name[*at] == b'/' && *at <= 155 && (1..=100).contains(&(name.len() - at - 1))
        };
        match (long, (1..name.len()).find(fits)) {
            (Long::Gnu, _) => long_entry(out, b'L', name),
            (Long::Ustar, Some(at)) if ustar => {
                header[345..345 + at].copy_from_slice(&name[..at]);
                text = &name[at + 1..];
            }
            _ => record(records, "path", name),
        }
    }
    header[..text.len().min(100)].copy_from_slice(&text[..text.len().min(100)]);
}

fn long_entry(out: &mut Vec<u8>, kind: u8, text: &[u8]) {
    let mut header = [0u8; BLOCK];
    header[..13].copy_from_slice(b"././@LongLink");
    header[156] = kind;
    header[257..265].copy_from_slice(b"ustar  \0");
    for field in [100..108, 108..116, 116..124, 136..148] {
        octal(&mut header[field], 0);
    }
    octal(&mut header[124..136], text.len() as u64 + 1);
    finish(out, header);
    out.extend(text);
    out.push(0);
    pad(out);
}

fn extension(out: &mut Vec<u8>, kind: u8, data: &[u8]) {
    let mut header = [0u8; BLOCK];
    header[..12].copy_from_slice(b"PaxHeaders/x");
    header[156] = kind;
    header[257..265].copy_from_slice(b"ustar\x0000");
    for field in [100..108, 108..116, 116..124, 136..148] {
        octal(&mut header[field], 0);
    }
    octal(&mut header[124..136], data.len() as u64);
    finish(out, header);
    out.extend(data);
    pad(out);
}

pub fn record(out: &mut Vec<u8>, key: &str, value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let len = (rest..).find(|len| *len == rest + len.to_string().len()).unwrap();
    out.extend(format!("{len} {key}=").as_bytes());
    out.extend(value);
    out.push(b'\n');
}

fn finish(out: &mut Vec<u8>, mut header: [u8; BLOCK]) {
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    out.extend(header);
}

fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(BLOCK), 0);
}

fn octal(field: &mut [u8], value: u64) {
    let width = field.len() - 1;
    field[..width].copy_from_slice(format!("{value:0width$o}").as_bytes());
}

fn number(
    header: &mut [u8; BLOCK],
    field: std::ops::Range<usize>,
    records: &mut Vec<u8>,
    key: &str,
    value: i64,
    numbers: Numbers,
) {
    let width = field.len() - 1;
    let plain = u64::try_from(value).ok().filter(|v| *v < 1 << (3 * width));
    match (numbers, plain) {
        (Numbers::Octal, Some(value)) => octal(&mut header[field], value),
        (Numbers::Octal | Numbers::Base256, _) => base_256(&mut header[field], value),
        (Numbers::Pax, _) => {
            record(records, key, value.to_string().as_bytes());
            octal(&mut header[field], 0);
        }
    }
}

/// Two's complement, the highest bit set.
fn base_256(field: &mut [u8], value: i64) {
    let fill = if value < 0 { 0xff } else { 0 };
    field.fill(fill);
    let bytes = value.to_be_bytes();
    let start = field.len().saturating_sub(8);
    let from = 8 - (field.len() - start);
    field[start..].copy_from_slice(&bytes[from..]);
    field[0] |= 0x80;
}

fn time(header: &mut [u8; BLOCK], records: &mut Vec<u8>, time: (i64, u32), numbers: Numbers) {
    let (seconds, nanos) = time;
    if nanos == 0 {
        return number(header, 136..148, records, "mtime", seconds, numbers);
    }
    octal(&mut header[136..148], 0);
    let text = match seconds {
        ..0 => format!("-{}.{:09}", -(seconds + 1), 1_000_000_000 - nanos),
        _ => format!("{seconds}.{nanos:09}"),
    };
    record(records, "mtime", text.trim_end_matches('0').as_bytes());
}

/// Where the data of a sparse file is: stretches of zeros of 4 KiB and more are holes.
fn segments(data: &[u8]) -> Vec<(usize, usize)> {
    let (mut map, mut at) = (Vec::new(), 0);
    while at < data.len() {
        let zeros = data[at..].iter().take_while(|b| **b == 0).count();
        at += zeros;
        let mut end = at;
        while end < data.len() {
            let zeros = data[end..].iter().take_while(|b| **b == 0).count();
            if zeros >= 4096 || end + zeros == data.len() {
                break;
            }
            end += zeros.max(1);
        }
        if end > at {
            // GNU tar reads each piece from a block of its own, Go one after the other: whole blocks
            // are the same to both.
            let (from, to) = (at / BLOCK * BLOCK, end.next_multiple_of(BLOCK).min(data.len()));
            map.push((from, to - from));
        }
        at = end.next_multiple_of(BLOCK).min(data.len());
    }
    // A hole at the end is told by an empty piece of data, as GNU tar does.
    map.push((data.len(), 0));
    map
}

/// The map in a GNU header and the blocks after it.
fn old_map(header: &mut [u8; BLOCK], map: &[(usize, usize)], size: usize) -> Vec<u8> {
    let put = |to: &mut [u8], (at, len): (usize, usize)| {
        octal(&mut to[..12], at as u64);
        octal(&mut to[12..24], len as u64);
    };
    let (first, rest) = map.split_at(map.len().min(4));
    for (n, piece) in first.iter().enumerate() {
        put(&mut header[386 + 24 * n..][..24], *piece);
    }
    header[482] = u8::from(!rest.is_empty());
    octal(&mut header[483..495], size as u64);
    let mut blocks = Vec::new();
    let mut chunks = rest.chunks(21).peekable();
    while let Some(chunk) = chunks.next() {
        let mut block = [0u8; BLOCK];
        for (n, piece) in chunk.iter().enumerate() {
            put(&mut block[24 * n..][..24], *piece);
        }
        block[504] = u8::from(chunks.peek().is_some());
        blocks.extend(block);
    }
    blocks
}

fn pax_map(
    records: &mut Vec<u8>,
    stored: &mut Vec<u8>,
    name: &mut Vec<u8>,
    map: &[(usize, usize)],
    size: usize,
    sparse: Sparse,
) {
    let real = std::mem::replace(name, b"GNUSparseFile.0/x".to_vec());
    let size = size.to_string();
    let count = map.len().to_string();
    match sparse {
        Sparse::Pax10 => {
            record(records, "GNU.sparse.major", b"1");
            record(records, "GNU.sparse.minor", b"0");
            record(records, "GNU.sparse.name", &real);
            record(records, "GNU.sparse.realsize", size.as_bytes());
            let pieces = map.iter().map(|(at, len)| format!("{at}\n{len}\n"));
            let text: String = std::iter::once(format!("{count}\n")).chain(pieces).collect();
            let mut head = text.into_bytes();
            pad(&mut head);
            stored.splice(..0, head);
        }
        Sparse::Pax01 => {
            record(records, "GNU.sparse.size", size.as_bytes());
            record(records, "GNU.sparse.numblocks", count.as_bytes());
            record(records, "GNU.sparse.name", &real);
            let pieces: Vec<_> = map.iter().map(|(at, len)| format!("{at},{len}")).collect();
            record(records, "GNU.sparse.map", pieces.join(",").as_bytes());
        }
        _ => {
            *name = real;
            record(records, "GNU.sparse.size", size.as_bytes());
            record(records, "GNU.sparse.numblocks", count.as_bytes());
            for (at, len) in map {
                record(records, "GNU.sparse.offset", at.to_string().as_bytes());
                record(records, "GNU.sparse.numbytes", len.to_string().as_bytes());
            }
        }
    }
}
