//! Tar headers (POSIX pax, "ustar Interchange Format" and "pax Extended Header").
//!
//! What a plain header cannot say goes into PAX records; long names that are no UTF-8, which PAX
//! forbids, into GNU long-name entries. The same node always gives the same bytes.

use std::io::{self, Write};

use crate::model::{NodeKind, RootPath};
use crate::oci::layer::Meta;

const BLOCK: usize = 512;
/// Eleven octal digits.
const MAX_OCTAL_11: u64 = 0o777_7777_7777;
/// Seven octal digits.
const MAX_OCTAL_7: u64 = 0o777_7777;

/// What a header is about.
pub(super) enum What<'a> {
    Node(&'a NodeKind),
    /// Another name of a file that came before in the same layer.
    Link(&'a RootPath),
}

/// Writes the header of `path`; a file's content must follow, then [`pad`].
pub(super) fn write_header(
    out: &mut impl Write,
    path: &RootPath,
    what: &What<'_>,
    meta: &Meta,
) -> io::Result<()> {
    let mut name = path.relative().to_vec();
    if path.is_root() {
        name = b"./".to_vec();
    } else if matches!(what, What::Node(NodeKind::Dir)) {
        name.push(b'/');
    }
    let (kind, link, size) = match what {
        What::Link(target) => (b'1', target.relative().to_vec(), 0),
        What::Node(NodeKind::File { size, .. }) => (b'0', Vec::new(), *size),
        What::Node(NodeKind::Symlink { target }) => (b'2', target.clone(), 0),
        What::Node(NodeKind::Char { .. }) => (b'3', Vec::new(), 0),
        What::Node(NodeKind::Block { .. }) => (b'4', Vec::new(), 0),
        What::Node(NodeKind::Dir) => (b'5', Vec::new(), 0),
        What::Node(NodeKind::Fifo) => (b'6', Vec::new(), 0),
    };
    let mut records = Vec::new();
    long(out, &mut records, "path", b'L', &name)?;
    long(out, &mut records, "linkpath", b'K', &link)?;
    let mut header = Header::new(kind);
    header.text(0..100, &name);
    header.text(157..257, &link);
    header.octal(100..108, u64::from(meta.mode));
    numbers(&mut header, &mut records, meta, size);
    if let What::Node(NodeKind::Char { major, minor } | NodeKind::Block { major, minor }) = what {
        header.octal(329..337, (*major).min(MAX_OCTAL_7));
        header.octal(337..345, (*minor).min(MAX_OCTAL_7));
    }
    for (name, value) in &meta.xattrs {
        record(&mut records, &format!("SCHILY.xattr.{name}"), value);
    }
    if !records.is_empty() {
        extension(out, b'x', b"PaxHeaders/entry", &records)?;
    }
    out.write_all(&header.finish())
}

/// Fills up a file's content of `size` bytes to a whole block.
pub(super) fn pad(out: &mut impl Write, size: u64) -> io::Result<()> {
    let over = usize::try_from(size % BLOCK as u64).unwrap_or(0);
    out.write_all(&[0; BLOCK][..(BLOCK - over) % BLOCK])
}

fn numbers(header: &mut Header, records: &mut Vec<u8>, meta: &Meta, size: u64) {
    for (range, key, value, max) in [
        (108..116, "uid", u64::from(meta.uid), MAX_OCTAL_7),
        (116..124, "gid", u64::from(meta.gid), MAX_OCTAL_7),
        (124..136, "size", size, MAX_OCTAL_11),
    ] {
        if value > max {
            record(records, key, value.to_string().as_bytes());
        }
        header.octal(range, if value > max { 0 } else { value });
    }
    let (seconds, nanos) = meta.mtime;
    let plain = u64::try_from(seconds).ok().filter(|s| *s <= MAX_OCTAL_11);
    header.octal(136..148, plain.unwrap_or(0));
    if plain.is_none() || nanos > 0 {
        record(records, "mtime", pax_time(seconds, nanos).as_bytes());
    }
}

/// A name too long for the header: a PAX record, or for bytes that are no UTF-8 a GNU entry.
fn long(
    out: &mut impl Write,
    records: &mut Vec<u8>,
    key: &str,
    gnu: u8,
    name: &[u8],
) -> io::Result<()> {
    if name.len() <= 100 {
        return Ok(());
    }
    if std::str::from_utf8(name).is_ok() {
        record(records, key, name);
        return Ok(());
    }
    extension(out, gnu, b"././@LongLink", &[name, b"\0"].concat())
}

fn extension(out: &mut impl Write, kind: u8, name: &[u8], data: &[u8]) -> io::Result<()> {
    let mut header = Header::new(kind);
    header.text(0..100, name);
    header.octal(100..108, 0o644);
    header.octal(108..116, 0);
    header.octal(116..124, 0);
    header.octal(124..136, data.len() as u64);
    header.octal(136..148, 0);
    if matches!(kind, b'L' | b'K') {
        header.0[257..265].copy_from_slice(b"ustar  \0");
    }
    out.write_all(&header.finish())?;
    out.write_all(data)?;
    pad(out, data.len() as u64)
}

/// `LENGTH KEY=VALUE\n`, LENGTH counting itself.
fn record(records: &mut Vec<u8>, key: &str, value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut len = rest + 1;
    while len != rest + len.to_string().len() {
        len = rest + len.to_string().len();
    }
    records.extend(format!("{len} {key}=").as_bytes());
    records.extend(value);
    records.push(b'\n');
}

fn pax_time(seconds: i64, nanos: u32) -> String {
    let all = i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
    let (sign, all) = (if all < 0 { "-" } else { "" }, all.unsigned_abs());
    let text = format!("{sign}{}.{:09}", all / 1_000_000_000, all % 1_000_000_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

struct Header([u8; BLOCK]);

impl Header {
    fn new(kind: u8) -> Self {
        let mut raw = [0; BLOCK];
        raw[156] = kind;
        raw[257..265].copy_from_slice(b"ustar\x0000");
        Self(raw)
    }

    /// As much of `text` as fits; what does not is said elsewhere.
    fn text(&mut self, field: std::ops::Range<usize>, text: &[u8]) {
        let len = text.len().min(field.len());
        self.0[field.start..field.start + len].copy_from_slice(&text[..len]);
    }

    fn octal(&mut self, field: std::ops::Range<usize>, value: u64) {
        let digits = &mut self.0[field.start..field.end - 1];
        for (digit, place) in digits.iter_mut().rev().zip(0..) {
            *digit = b'0' + u8::try_from(value >> (3 * place) & 7).unwrap_or(0);
        }
    }

    fn finish(mut self) -> [u8; BLOCK] {
        self.0[148..156].fill(b' ');
        let sum: u32 = self.0.iter().map(|b| u32::from(*b)).sum();
        self.0[154] = 0;
        self.octal(148..155, sum.into());
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{DiffId, Digest};
    use crate::oci::layer::{EntryKind, TarReader};

    #[test]
    fn a_header_is_read_back_as_it_was() {
        let long_utf8 = "/é".repeat(90);
        let long_raw = [b"/\xff".repeat(60), b"/x".to_vec()].concat();
        for (raw, mode, ids, mtime) in [
            (&b"/bin/su"[..], 0o4755, (0, 0), (1_600_000_000, 0)),
            (b"/tmp/\xff\xfe", 0o1777, (1000, 4_000_000_000), (-1, 750_000_000)),
            (long_utf8.as_bytes(), 0o644, (3_000_000, 1), (9_000_000_000, 1)),
            (&long_raw, 0o600, (65534, 65534), (0, 999_999_999)),
        ] {
            let path = RootPath::parse(raw).unwrap();
            let caps = ("security.capability".to_owned(), b"\x01\n=\0".to_vec());
            let meta = Meta { mode, uid: ids.0, gid: ids.1, mtime, xattrs: [caps].into() };
            let kind = NodeKind::Symlink { target: raw.to_vec() };
            let mut tar = Vec::new();
            write_header(&mut tar, &path, &What::Node(&kind), &meta).unwrap();
            let diff_id = DiffId(Digest::of(b""));
            let got = TarReader::new(&tar[..], 0, diff_id).next_entry().unwrap().unwrap();
            assert_eq!((&got.path, &got.meta), (&path, &meta));
            assert_eq!(got.kind, EntryKind::Symlink { target: raw.to_vec() });
        }
    }
}
