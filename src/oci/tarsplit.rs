//! A layer's tar, byte for byte, from its unpacked folder and what was left over when it was unpacked.
//!
//! Docker's engine and containers-storage keep that beside a layer (the format is tar-split's): JSON
//! lines, gzip-compressed. Type 1 names a file whose content follows in the tar, type 2 holds the
//! bytes between contents: headers, padding, the end. Whoever reads the tar checks its diffID, so
//! nothing here needs to be believed.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use rustix::fs::{Mode, OFlags, ResolveFlags};
use serde::Deserialize;

/// More than any line: a header's data is at most a megabyte or two.
const MAX_LINE: u64 = 64 << 20;

const FILE: u8 = 1;
const SEGMENT: u8 = 2;

/// A line of the list.
#[derive(Deserialize)]
struct Line {
    #[serde(rename = "type")]
    kind: u8,
    #[serde(default)]
    name: String,
    /// Base64 of a name that is no UTF-8.
    #[serde(default)]
    name_raw: Option<String>,
    /// Bytes of content.
    #[serde(default)]
    size: i64,
    /// Base64: of a segment its bytes, of a file a checksum.
    #[serde(default)]
    payload: Option<String>,
}

impl Line {
    /// The file's name relative to the folder; `None` for a segment or a file without content.
    fn content(&self) -> io::Result<Option<(Vec<u8>, u64)>> {
        let size = u64::try_from(self.size).map_err(|_| bad("a negative size"))?;
        if self.kind != FILE || size == 0 {
            return Ok(None);
        }
        let name = match &self.name_raw {
            Some(raw) => decode(raw)?,
            None => self.name.clone().into_bytes(),
        };
        Ok(Some((name, size)))
    }
}

/// The list, read line by line.
struct Lines {
    from: BufReader<flate2::read::MultiGzDecoder<File>>,
    line: Vec<u8>,
}

impl Lines {
    fn open(list: &Path) -> io::Result<Self> {
        let from = BufReader::with_capacity(
            128 << 10,
            flate2::read::MultiGzDecoder::new(File::open(list)?),
        );
        Ok(Self { from, line: Vec::new() })
    }

    fn next(&mut self) -> io::Result<Option<Line>> {
        self.line.clear();
        self.from.by_ref().take(MAX_LINE).read_until(b'\n', &mut self.line)?;
        if self.line.is_empty() {
            return Ok(None);
        }
        let line: Line = serde_json::from_slice(&self.line).map_err(io::Error::from)?;
        if line.kind != FILE && line.kind != SEGMENT {
            return Err(bad("a line of a kind that nobody knows"));
        }
        Ok(Some(line))
    }
}

/// Bytes of the tar that `list` describes, found without reading a file's content.
///
/// # Errors
/// The list cannot be read or is none.
pub fn size(list: &Path) -> io::Result<u64> {
    let mut lines = Lines::open(list)?;
    let mut size = 0u64;
    while let Some(line) = lines.next()? {
        let bytes = match (line.kind, &line.payload) {
            (SEGMENT, Some(payload)) => decoded_len(payload),
            _ => u64::try_from(line.size).map_err(|_| bad("a negative size"))?,
        };
        size = size.checked_add(bytes).ok_or_else(|| bad("a size beyond all disks"))?;
    }
    Ok(size)
}

/// Reads the tar that `list` describes, contents taken from below `folder`.
///
/// # Errors
/// List or folder cannot be opened. Reading fails where a content is missing or shorter than it was.
pub fn open(list: &Path, folder: &Path) -> io::Result<Assembly> {
    let lines = Lines::open(list).map_err(|error| gone(list, &error))?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(folder, flags, Mode::empty());
    let root = root.map_err(|errno| gone(folder, &errno.into()))?;
    Ok(Assembly { lines, root, folder: folder.to_owned(), now: Now::Between })
}

/// A tar being put together.
pub struct Assembly {
    lines: Lines,
    root: OwnedFd,
    folder: PathBuf,
    now: Now,
}

enum Now {
    Between,
    Segment(Vec<u8>, usize),
    Content { file: File, left: u64, name: Vec<u8> },
}

impl Assembly {
    /// A regular file of the folder. A name may lead through the layer's own symlinks, as it did when
    /// it was unpacked, but not out of the folder (`openat2(2)`, Linux 5.6).
    fn content(&self, name: &[u8]) -> io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let file = rustix::fs::openat2(&self.root, name, flags, Mode::empty(), resolve)
            .map_err(|errno| self.lost(name, &errno.into()))?;
        let file = File::from(file);
        if !file.metadata()?.is_file() {
            return Err(self.lost(name, &bad("it is no regular file")));
        }
        Ok(file)
    }

    fn lost(&self, name: &[u8], error: &io::Error) -> io::Error {
        gone(&self.folder.join(String::from_utf8_lossy(name).trim_start_matches('/')), error)
    }
}

impl Read for Assembly {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        loop {
            match &mut self.now {
                Now::Segment(bytes, at) if *at < bytes.len() => {
                    let n = buf.len().min(bytes.len() - *at);
                    buf[..n].copy_from_slice(&bytes[*at..*at + n]);
                    *at += n;
                    return Ok(n);
                }
                Now::Content { file, left, name } if *left > 0 => {
                    let max = buf.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                    let n = file.read(&mut buf[..max])?;
                    if n == 0 {
                        let name = std::mem::take(name);
                        return Err(self.lost(&name, &bad("it is shorter than it was")));
                    }
                    *left -= n as u64;
                    return Ok(n);
                }
                _ => {}
            }
            let Some(line) = self.lines.next()? else { return Ok(0) };
            self.now = match (line.content()?, line.kind, &line.payload) {
                (Some((name, left)), ..) => {
                    let file = self.content(&name)?;
                    Now::Content { file, left, name }
                }
                (None, SEGMENT, Some(payload)) => Now::Segment(decode(payload)?, 0),
                _ => Now::Between,
            };
        }
    }
}

fn decode(text: &str) -> io::Result<Vec<u8>> {
    base64::engine::general_purpose::STANDARD.decode(text).map_err(|_| bad("no base64"))
}

fn decoded_len(text: &str) -> u64 {
    let padding = text.bytes().rev().take_while(|b| *b == b'=').count();
    (text.len() / 4 * 3).saturating_sub(padding) as u64
}

fn bad(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// Layers in use are not locked: their engine may remove them at any time.
fn gone(path: &Path, error: &io::Error) -> io::Error {
    let way_out = match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "; run slim as the storage's owner sees it: as root, or by `podman unshare slim …`"
        }
        _ => {
            "; if its engine removed the image while slim used it, pull it again and leave it there until slim is done"
        }
    };
    io::Error::new(error.kind(), format!("{}: {error}{way_out}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn fixture(lines: &str) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let list = dir.path().join("list.gz");
        let file = File::create(&list).unwrap();
        let mut gzip = flate2::write::GzEncoder::new(file, flate2::Compression::fast());
        gzip.write_all(lines.as_bytes()).unwrap();
        gzip.finish().unwrap();
        let folder = dir.path().join("diff");
        std::fs::create_dir(&folder).unwrap();
        (dir, list)
    }

    fn read(dir: &Path, list: &Path) -> io::Result<Vec<u8>> {
        let mut all = Vec::new();
        open(list, &dir.join("diff"))?.read_to_end(&mut all).map(|_| all)
    }

    #[test]
    fn contents_stand_between_segments() {
        let (dir, list) = fixture(
            "{\"type\":2,\"payload\":\"PA==\",\"position\":0}\n\
             {\"type\":1,\"name\":\"d/\",\"payload\":null,\"position\":1}\n\
             {\"type\":1,\"name\":\"./d/a\",\"size\":3,\"payload\":\"AAAAAAAAAAA=\",\"position\":2}\n\
             {\"type\":2,\"payload\":\"fHw=\",\"position\":3}\n\
             {\"type\":1,\"name_raw\":\"/w==\",\"size\":1,\"payload\":\"AAAAAAAAAAA=\",\"position\":4}\n\
             {\"type\":2,\"payload\":\"Pg==\",\"position\":5}\n",
        );
        let diff = dir.path().join("diff");
        std::fs::create_dir(diff.join("d")).unwrap();
        std::fs::write(diff.join("d/a"), "abc").unwrap();
        let odd: &std::ffi::OsStr = std::os::unix::ffi::OsStrExt::from_bytes(b"\xff");
        std::fs::write(diff.join(odd), "z").unwrap();
        assert_eq!(read(dir.path(), &list).unwrap(), b"<abc||z>");
        assert_eq!(size(&list).unwrap(), 8);
        std::fs::write(diff.join("d/a"), "ab").unwrap();
        let error = read(dir.path(), &list).unwrap_err().to_string();
        assert!(error.contains("d/a: it is shorter than it was"), "{error}");
        std::fs::remove_file(diff.join("d/a")).unwrap();
        let error = read(dir.path(), &list).unwrap_err().to_string();
        assert!(error.contains("d/a") && error.contains("pull it again"), "{error}");
    }

    #[test]
    fn no_name_leads_out_of_the_folder() {
        for name in ["../secret", "/../secret", "out/secret"] {
            let (dir, list) = fixture(&format!("{{\"type\":1,\"name\":\"{name}\",\"size\":1}}\n"));
            std::fs::write(dir.path().join("secret"), "s").unwrap();
            std::os::unix::fs::symlink(dir.path(), dir.path().join("diff/out")).unwrap();
            assert!(read(dir.path(), &list).is_err(), "{name}");
        }
        // The same names inside the folder are found.
        let (dir, list) = fixture("{\"type\":1,\"name\":\"in/secret\",\"size\":1}\n");
        std::fs::write(dir.path().join("diff/secret"), "s").unwrap();
        std::os::unix::fs::symlink("/", dir.path().join("diff/in")).unwrap();
        assert_eq!(read(dir.path(), &list).unwrap(), b"s");
    }

    #[test]
    fn what_is_no_list_is_an_error() {
        for lines in ["{}\n", "x\n", "{\"type\":3}\n", "{\"type\":1,\"name\":\"a\",\"size\":-1}\n"]
        {
            let (dir, list) = fixture(lines);
            assert!(read(dir.path(), &list).is_err(), "{lines}");
        }
    }
}
