//! The tar framing: headers, PAX records, GNU long names, sparse maps.
//!
//! The `tar` crate decodes single headers; its own iterator splits PAX records at newlines, which
//! cuts binary attribute values (a file capability may hold one), so the framing is here.

use std::collections::VecDeque;
use std::io::{self, BufRead, Read};

use crate::model::{DiffId, RootPath, Xattrs, escape};

use super::name::{MAX_PATH, Name, clean, is_ignored, parse_name};
use super::{Entry, EntryKind, LayerError, Meta};

const BLOCK: u64 = 512;
/// What holes are read from.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
/// Names and attributes of one entry: what engines take at most (Go's archive/tar, `maxSpecialFileSize`).
const MAX_HEADER_DATA: u64 = 1 << 20;
/// The map of a sparse file: a million stretches.
const MAX_SPARSE_MAP: usize = 1 << 20;
/// Linux has 12 bits for a device's major number and 20 for its minor one (include/linux/kdev_t.h).
const MAX_MAJOR: u64 = 0xfff;
const MAX_MINOR: u64 = 0xf_ffff;
/// xattr(7): a name, and a value.
const MAX_XATTR: (usize, usize) = (255, 64 << 10);

/// Reads the entries of a layer in order. Between two of them it is a reader of the first one's
/// content, holes of sparse files filled with zeros.
pub struct TarReader<R> {
    inner: R,
    layer: usize,
    diff_id: DiffId,
    /// The header at hand, in one place: half a kilobyte is dear to move a million times.
    header: Box<tar::Header>,
    /// The name of the last entry seen, for messages.
    after: Option<Vec<u8>>,
    segments: VecDeque<Segment>,
    /// Bytes up to the next header once all segments are read.
    padding: u64,
}

enum Segment {
    Hole(u64),
    Data(u64),
}

/// What the headers before an entry's own said about it.
#[derive(Default)]
struct Extra {
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    pax: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Extra {
    /// The last record of a key wins (POSIX pax, "pax Extended Header").
    fn get(&self, key: &str) -> Option<&[u8]> {
        self.pax.iter().rev().find(|(k, _)| k == key.as_bytes()).map(|(_, v)| v.as_slice())
    }

    fn number(&self, key: &str) -> Result<Option<u64>, String> {
        let Some(raw) = self.get(key).filter(|raw| !raw.is_empty()) else { return Ok(None) };
        let text = std::str::from_utf8(raw).ok().and_then(|text| text.parse().ok());
        text.map(Some).ok_or_else(|| format!("PAX record {key} is no number: {}", escape(raw)))
    }
}

impl<R: BufRead> TarReader<R> {
    /// `layer` and `diff_id` are for messages.
    pub fn new(inner: R, layer: usize, diff_id: DiffId) -> Self {
        let header = Box::new(tar::Header::new_old());
        Self { inner, layer, diff_id, header, after: None, segments: VecDeque::new(), padding: 0 }
    }

    /// The reader underneath, for what follows the archive's end.
    pub fn inner_mut(&mut self) -> &mut R {
        &mut self.inner
    }

    /// True if the content of the entry at hand is a stretch of the archive.
    pub fn is_in_one_piece(&self) -> bool {
        self.segments.len() == 1 && matches!(self.segments[0], Segment::Data(_))
    }

    /// The next entry; what is left of the last one's content is skipped.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, LayerError> {
        loop {
            let found = self.next_header().map_err(|why| self.broken(&why))?;
            let Some(extra) = found else { return Ok(None) };
            let raw = name(&self.header, &extra);
            let entry = self.entry(&extra, &raw);
            self.after = Some(raw);
            if let Some(entry) = entry.map_err(|why| self.refused(why))? {
                return Ok(Some(entry));
            }
        }
    }

    /// Passes over the next entry, as [`TarReader::next_entry`] counts them, of an archive whose entries
    /// were all read before; false at the end.
    pub fn skip_entry(&mut self) -> Result<bool, LayerError> {
        loop {
            let found = self.next_header().map_err(|why| self.broken(&why))?;
            let Some(extra) = found else { return Ok(false) };
            let raw = name(&self.header, &extra);
            let raw = extra.get("GNU.sparse.name").unwrap_or(&raw);
            if !is_ignored(raw) {
                return Ok(true);
            }
        }
    }

    fn after(&self) -> String {
        self.after.as_deref().map_or_else(|| "the start".to_owned(), escape)
    }

    fn broken(&self, why: &io::Error) -> LayerError {
        let (layer, diff_id, after) = (self.layer, self.diff_id, self.after());
        LayerError::Tar { layer, diff_id, after, why: why.to_string() }
    }

    fn refused(&self, why: String) -> LayerError {
        let (layer, diff_id, entry) = (self.layer, self.diff_id, self.after());
        LayerError::Entry { layer, diff_id, entry, why }
    }

    /// A content read that failed, as an error of the layer.
    pub fn content_error(&self, error: &io::Error) -> LayerError {
        self.broken(error)
    }

    /// Goes on to the header of the next entry.
    fn next_header(&mut self) -> io::Result<Option<Extra>> {
        self.skip_content()?;
        let mut extra = Extra::default();
        let mut budget = MAX_HEADER_DATA;
        loop {
            if !self.read_header()? {
                return Ok(None);
            }
            let size = number(&self.header.as_old().size).and_then(|n| u64::try_from(n).ok());
            let size = size.ok_or_else(|| bad("a header whose size is no number"))?;
            match self.header.as_bytes()[156] {
                b'L' => extra.name = Some(text(self.header_data(size, &mut budget)?)),
                b'K' => extra.link = Some(text(self.header_data(size, &mut budget)?)),
                b'x' => extra.pax.extend(pax_records(&self.header_data(size, &mut budget)?)?),
                // Engines leave what a global header says alone (Go's archive/tar keeps no state from
                // one entry to the next), so the container never sees it.
                b'g' => drop(self.header_data(size, &mut { MAX_HEADER_DATA })?),
                _ => {
                    self.start_content(&extra, size)?;
                    return Ok(Some(extra));
                }
            }
        }
    }

    /// Reads one header; false at the end of the archive (a block of zeros, or no more bytes).
    fn read_header(&mut self) -> io::Result<bool> {
        let block = self.header.as_mut_bytes();
        let mut filled = 0;
        while filled < block.len() {
            match self.inner.read(&mut block[filled..])? {
                0 if filled == 0 => return Ok(false),
                0 => return Err(bad("it ends inside a header")),
                n => filled += n,
            }
        }
        if block.iter().all(|b| *b == 0) {
            return Ok(false);
        }
        let want = number(&block[148..156]);
        let (before, after) = (&block[..148], &block[156..]);
        let blanks = 8 * i64::from(b' ');
        let plain = |part: &[u8]| part.iter().map(|b| u32::from(*b)).sum::<u32>();
        let signed = |part: &[u8]| part.iter().map(|b| i64::from(*b as i8)).sum::<i64>();
        // Some old writers summed signed bytes (POSIX pax, "ustar Interchange Format", rationale).
        let sound = want == Some(i64::from(plain(before) + plain(after)) + blanks)
            || want == Some(signed(before) + signed(after) + blanks);
        if sound { Ok(true) } else { Err(bad("a header whose checksum is wrong")) }
    }

    /// `budget` is what the headers of one entry may still have.
    fn header_data(&mut self, size: u64, budget: &mut u64) -> io::Result<Vec<u8>> {
        *budget = budget
            .checked_sub(size)
            .ok_or_else(|| bad("extended headers of more than 1 MiB for one entry"))?;
        let mut data = vec![0; usize::try_from(size.next_multiple_of(BLOCK)).unwrap_or(0)];
        self.inner.read_exact(&mut data).map_err(|e| ended(e, "an extended header"))?;
        data.truncate(usize::try_from(size).unwrap_or(0));
        Ok(data)
    }

    /// Lays out what follows the header: how many bytes, and where the holes of a sparse file are.
    fn start_content(&mut self, extra: &Extra, size: u64) -> io::Result<()> {
        let kind = self.header.as_bytes()[156];
        let stored = match kind {
            b'1'..=b'6' => 0, // a header alone, whatever its size says
            _ => extra.number("size").map_err(|why| bad(&why))?.unwrap_or(size),
        };
        if stored > i64::MAX as u64 {
            return Err(bad("an entry larger than any file"));
        }
        self.padding = stored.next_multiple_of(BLOCK) - stored;
        let sparse = match kind {
            b'S' => Some(self.old_sparse(stored)?),
            _ => self.pax_sparse(extra, stored)?,
        };
        match sparse {
            Some(segments) => self.segments = segments,
            None => self.segments.push_back(Segment::Data(stored)),
        }
        Ok(())
    }

    /// The old GNU format: map in the header and in extension blocks after it (GNU tar manual,
    /// "Old GNU Format").
    fn old_sparse(&mut self, stored: u64) -> io::Result<VecDeque<Segment>> {
        let header = self.header.clone();
        let gnu = header.as_gnu().ok_or_else(|| bad("a sparse entry without a GNU header"))?;
        let real = number(&gnu.realsize).and_then(|n| u64::try_from(n).ok());
        let mut map = Vec::new();
        let mut add = |block: &tar::GnuSparseHeader| -> io::Result<()> {
            if map.len() == MAX_SPARSE_MAP {
                return Err(bad("a sparse map of more than a million stretches"));
            }
            if !block.is_empty() {
                map.push((block.offset()?, block.length()?));
            }
            Ok(())
        };
        gnu.sparse.iter().try_for_each(&mut add)?;
        let mut more = gnu.is_extended();
        while more {
            let mut ext = tar::GnuExtSparseHeader::new();
            self.inner.read_exact(ext.as_mut_bytes()).map_err(|e| ended(e, "a sparse map"))?;
            ext.sparse().iter().try_for_each(&mut add)?;
            more = ext.is_extended();
        }
        segments(&map, real.ok_or_else(|| bad("a sparse entry without a size"))?, stored)
    }

    /// The PAX formats 0.0, 0.1 and 1.0 (GNU tar manual, "Storing Sparse Files").
    fn pax_sparse(&mut self, extra: &Extra, stored: u64) -> io::Result<Option<VecDeque<Segment>>> {
        let get = |key: &str| extra.number(key).map_err(|why| bad(&why));
        if get("GNU.sparse.major")? == Some(1) {
            let real = get("GNU.sparse.realsize")?.ok_or_else(|| bad("a sparse file, no size"))?;
            let (map, used) = self.sparse_map_in_data(stored)?;
            let left = stored.checked_sub(used).ok_or_else(|| bad("a sparse map too long"))?;
            return segments(&map, real, left).map(Some);
        }
        let Some(real) = get("GNU.sparse.size")? else { return Ok(None) };
        let number = |raw: &[u8]| std::str::from_utf8(raw).ok().and_then(|t| t.parse::<u64>().ok());
        let numbers: Option<Vec<u64>> = match extra.get("GNU.sparse.map") {
            Some(map) => map.split(|b| *b == b',').map(number).collect(),
            None => {
                let pair =
                    |key: &[u8]| matches!(key, b"GNU.sparse.offset" | b"GNU.sparse.numbytes");
                extra.pax.iter().filter(|(k, _)| pair(k)).map(|(_, v)| number(v)).collect()
            }
        };
        let numbers = numbers.ok_or_else(|| bad("a sparse map that is no list of numbers"))?;
        let map: Vec<_> = numbers.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect();
        segments(&map, real, stored).map(Some)
    }

    /// The map of format 1.0: decimal lines at the start of the data, filled up to a block.
    fn sparse_map_in_data(&mut self, stored: u64) -> io::Result<(Vec<(u64, u64)>, u64)> {
        let (mut raw, mut numbers, mut used) = (VecDeque::new(), Vec::new(), 0);
        let mut line = || -> io::Result<u64> {
            let mut digits = String::new();
            loop {
                if raw.is_empty() {
                    used += BLOCK;
                    let mut block = [0; BLOCK as usize];
                    if used > stored.min(MAX_SPARSE_MAP as u64 * 16) {
                        return Err(bad("a sparse map without an end"));
                    }
                    self.inner.read_exact(&mut block).map_err(|e| ended(e, "a sparse map"))?;
                    raw.extend(block);
                }
                match raw.pop_front() {
                    Some(b'\n') => {
                        return digits.parse().map_err(|_| bad("a sparse map that is no number"));
                    }
                    Some(b) if digits.len() < 20 => digits.push(char::from(b)),
                    _ => return Err(bad("a sparse map that is no number")),
                }
            }
        };
        let count = line()?;
        for _ in 0..count {
            numbers.push((line()?, line()?));
        }
        Ok((numbers, used))
    }

    fn skip_content(&mut self) -> io::Result<()> {
        for segment in self.segments.drain(..) {
            if let Segment::Data(len) = segment
                && discard(&mut self.inner, len)? > 0
            {
                return Err(bad("it ends inside a file"));
            }
        }
        // Writers that stop right after the last byte are common enough to be let through.
        discard(&mut self.inner, self.padding)?;
        self.padding = 0;
        Ok(())
    }

    fn entry(&self, extra: &Extra, raw: &[u8]) -> Result<Option<Entry>, String> {
        let sparse_name = extra.get("GNU.sparse.name");
        let path = match parse_name(sparse_name.unwrap_or(raw))? {
            Name::Ignored => return Ok(None),
            Name::Whiteout(path) => {
                let kind = EntryKind::Whiteout;
                return Ok(Some(Entry { path, kind, meta: Meta::default() }));
            }
            Name::Opaque(path) => {
                let kind = EntryKind::Opaque;
                return Ok(Some(Entry { path, kind, meta: Meta::default() }));
            }
            Name::Plain(path) => path,
        };
        let kind = self.kind(extra, raw)?;
        if path.is_root() && kind != EntryKind::Dir {
            return Err("the root can only be a directory".into());
        }
        // A 0/0 device is how overlay file systems store a whiteout; it can mean nothing else there.
        if kind == (EntryKind::Char { major: 0, minor: 0 }) {
            return Ok(Some(Entry { path, kind: EntryKind::Whiteout, meta: Meta::default() }));
        }
        Ok(Some(Entry { path, kind, meta: meta(&self.header, extra)? }))
    }

    fn kind(&self, extra: &Extra, raw: &[u8]) -> Result<EntryKind, String> {
        let header = &self.header;
        let link = || -> Vec<u8> {
            let long = extra.link.clone().or_else(|| extra.get("linkpath").map(<[u8]>::to_vec));
            long.unwrap_or_else(|| header.link_name_bytes().unwrap_or_default().into_owned())
        };
        let device = |field: &[u8]| number(field).and_then(|n| u64::try_from(n).ok());
        let devices = || {
            let raw = header.as_bytes();
            let pair = device(&raw[329..337]).zip(device(&raw[337..345]));
            pair.filter(|(major, minor)| *major <= MAX_MAJOR && *minor <= MAX_MINOR)
                .ok_or_else(|| "a device whose numbers are none that Linux has".to_owned())
        };
        Ok(match header.as_bytes()[156] {
            // Before POSIX, a directory was a file whose name ends in a slash. Of a file as POSIX has it
            // engines drop the slash.
            0 if raw.ends_with(b"/") => EntryKind::Dir,
            0 | b'0' | b'7' | b'S' => {
                let sum = |n: u64, s: &Segment| match s {
                    Segment::Hole(len) | Segment::Data(len) => n.saturating_add(*len),
                };
                let size = self.segments.iter().fold(0, sum);
                EntryKind::File { size, content: None, facts: None }
            }
            b'1' => EntryKind::HardLink { target: link_target(&link())? },
            b'2' => EntryKind::Symlink { target: symlink_target(link())? },
            b'3' => devices().map(|(major, minor)| EntryKind::Char { major, minor })?,
            b'4' => devices().map(|(major, minor)| EntryKind::Block { major, minor })?,
            b'5' => EntryKind::Dir,
            b'6' => EntryKind::Fifo,
            other => return Err(format!("unknown entry type {:?}", char::from(other))),
        })
    }
}

/// The content of the entry at hand.
impl<R: BufRead> BufRead for TarReader<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while matches!(self.segments.front(), Some(Segment::Hole(0) | Segment::Data(0))) {
            self.segments.pop_front();
        }
        let up_to = |len: u64, there: usize| there.min(usize::try_from(len).unwrap_or(there));
        match self.segments.front() {
            None => Ok(&[]),
            Some(Segment::Hole(len)) => Ok(&ZEROS[..up_to(*len, ZEROS.len())]),
            Some(Segment::Data(len)) => match self.inner.fill_buf()? {
                [] => Err(bad("it ends inside a file")),
                there => Ok(&there[..up_to(*len, there.len())]),
            },
        }
    }

    fn consume(&mut self, n: usize) {
        match self.segments.front_mut() {
            Some(Segment::Hole(len)) => *len = len.saturating_sub(n as u64),
            Some(Segment::Data(len)) => {
                *len = len.saturating_sub(n as u64);
                self.inner.consume(n);
            }
            None => {}
        }
    }
}

impl<R: BufRead> Read for TarReader<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        read_buffered(self, buf)
    }
}

/// [`Read::read`] of a reader whose own way is to lend what it has.
pub(super) fn read_buffered(from: &mut impl BufRead, buf: &mut [u8]) -> io::Result<usize> {
    let n = from.fill_buf()?.read(buf)?;
    from.consume(n);
    Ok(n)
}

/// Passes over `len` bytes; how many of them there were not.
fn discard(from: &mut impl BufRead, mut len: u64) -> io::Result<u64> {
    while len > 0 {
        let there = from.fill_buf()?.len();
        if there == 0 {
            break;
        }
        let n = there.min(usize::try_from(len).unwrap_or(usize::MAX));
        from.consume(n);
        len -= n as u64;
    }
    Ok(len)
}

/// The name an entry goes by, before sparse formats have their say.
fn name(header: &tar::Header, extra: &Extra) -> Vec<u8> {
    let long = extra.name.as_deref().or_else(|| extra.get("path"));
    long.map_or_else(|| header.path_bytes().into_owned(), <[u8]>::to_vec)
}

fn link_target(raw: &[u8]) -> Result<RootPath, String> {
    let target = clean(raw).map_err(|why| format!("its hard-link target: {why}"))?;
    if target.is_root() {
        return Err("a hard link to the root".into());
    }
    Ok(target)
}

fn symlink_target(raw: Vec<u8>) -> Result<Vec<u8>, String> {
    if raw.is_empty() || raw.contains(&0) {
        return Err("a symlink without a target".into());
    }
    if raw.len() > MAX_PATH {
        return Err(format!("a symlink to a name of more than {MAX_PATH} bytes"));
    }
    Ok(raw)
}

fn meta(header: &tar::Header, extra: &Extra) -> Result<Meta, String> {
    let old = header.as_old();
    let field = |name: &str, raw: &[u8]| {
        number(raw).ok_or_else(|| format!("its {name} cannot be read: {}", escape(raw)))
    };
    let id = |key: &str, raw: &[u8]| -> Result<u32, String> {
        let n = match extra.number(key)? {
            Some(n) => n,
            None => {
                u64::try_from(field(key, raw)?).map_err(|_| format!("its {key} is negative"))?
            }
        };
        // The largest number is -1 to chown(2): "leave it".
        let id = u32::try_from(n).ok().filter(|id| *id != u32::MAX);
        id.ok_or_else(|| format!("its {key} {n} is more than Linux knows"))
    };
    let mtime = match extra.get("mtime").filter(|raw| !raw.is_empty()) {
        Some(raw) => {
            pax_time(raw).ok_or_else(|| format!("its mtime {:?} is no time", escape(raw)))?
        }
        None => (field("mtime", &old.mtime)?, 0),
    };
    let mode = u32::try_from(field("mode", &old.mode)? & 0o7777).unwrap_or(0);
    Ok(Meta {
        mode,
        uid: id("uid", &old.uid)?,
        gid: id("gid", &old.gid)?,
        mtime,
        xattrs: xattrs(extra)?,
    })
}

/// `SCHILY.xattr.NAME` records, the form every engine writes and reads; the last one of a name wins.
/// `SCHILY.acl.access` and `LIBARCHIVE.xattr.NAME` no engine applies, so the container never has them.
fn xattrs(extra: &Extra) -> Result<Xattrs, String> {
    let mut all = Xattrs::default();
    for (key, value) in &extra.pax {
        let Some(name) = key.strip_prefix(b"SCHILY.xattr.") else { continue };
        if name.is_empty() || name.len() > MAX_XATTR.0 || value.len() > MAX_XATTR.1 {
            return Err(format!(
                "an extended attribute that Linux has no room for: {}",
                escape(name)
            ));
        }
        all.insert(String::from_utf8_lossy(name).into_owned(), value.clone());
    }
    Ok(all)
}

/// Seconds with a decimal fraction, perhaps negative; digits beyond nanoseconds are cut.
fn pax_time(raw: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(raw).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits: String = fraction.chars().chain(std::iter::repeat('0')).take(9).collect();
    let nanos: u32 = digits.parse().ok()?;
    let seconds: i64 = whole.parse().ok()?;
    if text.starts_with('-') && nanos > 0 {
        return Some((seconds.checked_sub(1)?, 1_000_000_000 - nanos));
    }
    Some((seconds, nanos))
}

/// A numeric field: octal digits among blanks, or GNU's base 256 (two's complement).
fn number(raw: &[u8]) -> Option<i64> {
    let first = *raw.first()?;
    if first & 0x80 != 0 {
        let start: i128 = if first & 0x40 != 0 { -1 } else { 0 };
        let head = (start << 7) | i128::from(first & 0x7f);
        let value =
            raw[1..].iter().try_fold(head, |n, b| n.checked_mul(256).map(|n| n | i128::from(*b)));
        return i64::try_from(value?).ok();
    }
    if let Some(plain) = octal(raw) {
        return Some(plain);
    }
    let digits = raw.split(|b| *b == 0).next()?;
    let text = std::str::from_utf8(digits).ok()?.trim();
    if text.is_empty() { Some(0) } else { i64::from_str_radix(text, 8).ok() }
}

/// Digits up to a NUL, a blank or the end: what nearly all writers write. `None` for anything else.
fn octal(raw: &[u8]) -> Option<i64> {
    let (mut value, mut end) = (0, 0);
    for digit in raw.iter().take_while(|b| !matches!(b, 0 | b' ')) {
        let digit = digit.checked_sub(b'0').filter(|digit| *digit < 8)?;
        (value, end) = (value << 3 | i64::from(digit), end + 1);
    }
    let mut blanks = raw[end..].iter().take_while(|b| **b != 0);
    (matches!(end, 1..=20) && blanks.all(|b| *b == b' ')).then_some(value)
}

/// `LENGTH KEY=VALUE\n`, where LENGTH counts the whole record, so that values may hold anything.
fn pax_records(data: &[u8]) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let (mut records, mut rest) = (Vec::new(), data);
    while !rest.is_empty() && rest[0] != 0 {
        let record = || -> Option<(&[u8], &[u8], &[u8])> {
            let blank = rest.iter().position(|b| *b == b' ')?;
            let len: usize = std::str::from_utf8(&rest[..blank]).ok()?.parse().ok()?;
            let body = rest.get(blank + 1..len)?.strip_suffix(b"\n")?;
            let equals = body.iter().position(|b| *b == b'=')?;
            Some((&body[..equals], &body[equals + 1..], &rest[len..]))
        };
        let (key, value, tail) = record().ok_or_else(|| bad("a malformed PAX record"))?;
        records.push((key.to_vec(), value.to_vec()));
        rest = tail;
    }
    Ok(records)
}

fn segments(map: &[(u64, u64)], real: u64, stored: u64) -> io::Result<VecDeque<Segment>> {
    let (mut at, mut data, mut out) = (0u64, 0u64, VecDeque::new());
    for (offset, len) in map {
        let hole = offset.checked_sub(at).ok_or_else(|| bad("a sparse map out of order"))?;
        out.push_back(Segment::Hole(hole));
        out.push_back(Segment::Data(*len));
        data = data.saturating_add(*len);
        at = offset.checked_add(*len).ok_or_else(|| bad("a sparse map too large"))?;
    }
    let tail = real.checked_sub(at).ok_or_else(|| bad("a sparse map beyond its file"))?;
    if data != stored {
        return Err(bad("a sparse map that does not fit its data"));
    }
    out.push_back(Segment::Hole(tail));
    Ok(out)
}

/// GNU long names end in a NUL.
fn text(mut raw: Vec<u8>) -> Vec<u8> {
    if let Some(end) = raw.iter().position(|b| *b == 0) {
        raw.truncate(end);
    }
    raw
}

fn ended(error: io::Error, what: &str) -> io::Error {
    if error.kind() == io::ErrorKind::UnexpectedEof {
        return bad(&format!("it ends inside {what}"));
    }
    error
}

fn bad(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_base_256() {
        for (raw, want) in [
            (&b"0000755\0"[..], Some(0o755)),
            (b"    644 ", Some(0o644)),
            (b"\0\0\0\0", Some(0)),
            (b"\x80\0\0\0\0\0\0\0\0\0\x01\0", Some(256)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", Some(-1)),
            (b"0009\0", None),
        ] {
            assert_eq!(number(raw), want, "{raw:?}");
        }
    }

    #[test]
    fn pax_values_may_hold_newlines_and_times_be_negative() {
        let got = pax_records(b"12 a=x\ny=\n\0\n10 b=1234\n").unwrap();
        assert_eq!(got[0], (b"a".to_vec(), b"x\ny=\n\0".to_vec()));
        assert_eq!(got[1], (b"b".to_vec(), b"1234".to_vec()));
        assert!(pax_records(b"99 a=x\n").is_err());
        assert_eq!(pax_time(b"12.5"), Some((12, 500_000_000)));
        assert_eq!(pax_time(b"-0.25"), Some((-1, 750_000_000)));
        assert_eq!(pax_time(b"1.1234567891"), Some((1, 123_456_789)));
    }
}
