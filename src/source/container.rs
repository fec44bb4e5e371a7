//! The folder or archive that holds an image: named files, read whole or streamed.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::model::{DiffId, Digest};
use crate::oci::limits::MAX_LAYERS;
use crate::oci::manifest::Descriptor;
use crate::oci::{BlobSource, Layer};
use crate::sys::section::Section;

use super::SourceError;

/// More than any index, manifest or configuration; bounds memory.
const MAX_JSON: u64 = 64 << 20;

/// A folder or a tar, its members by name.
#[derive(Clone)]
pub(super) struct Container {
    pub path: PathBuf,
    inner: Inner,
}

#[derive(Clone)]
enum Inner {
    Folder,
    Archive { file: Arc<File>, members: Arc<HashMap<String, Member>> },
}

fn foreign(path: &Path, what: &str) -> SourceError {
    let why = format!("it is compressed with {what}: decompress it first");
    SourceError::NotAnImage { path: path.into(), why }
}

#[derive(Clone)]
enum Member {
    /// Where the content lies in the archive.
    Content { at: u64, size: u64 },
    /// Old `docker save` links equal layers.
    Link(String),
}

impl Container {
    /// Opens a folder, a tar (indexed by seeking from header to header), or a gzip-compressed tar
    /// (unpacked into an unnamed temporary file first, since it cannot be sought in).
    pub fn open(path: &Path) -> Result<Self, SourceError> {
        if path.is_dir() {
            return Ok(Self { path: path.to_owned(), inner: Inner::Folder });
        }
        let read =
            |source| SourceError::Read { path: path.into(), what: "the archive".into(), source };
        Self::of_file(File::open(path).map_err(read)?, path)
    }

    /// The same for a file that is open already; `path` is what messages call it.
    pub fn of_file(mut file: File, path: &Path) -> Result<Self, SourceError> {
        let read =
            |source| SourceError::Read { path: path.into(), what: "the archive".into(), source };
        file.seek(SeekFrom::Start(0)).map_err(read)?;
        let mut head = [0; 4];
        let n = file.read(&mut head).map_err(read)?;
        file.seek(SeekFrom::Start(0)).map_err(read)?;
        let file = match &head[..n] {
            [0x1f, 0x8b, ..] => unpacked(flate2::read::MultiGzDecoder::new(file)).map_err(read)?,
            [0x28, 0xb5, 0x2f, 0xfd] => {
                let plain = zstd::stream::read::Decoder::new(file).and_then(unpacked);
                plain.map_err(read)?
            }
            [0xfd, b'7', b'z', b'X'] => return Err(foreign(path, "xz")),
            [b'B', b'Z', b'h', _] => return Err(foreign(path, "bzip2")),
            [] => {
                let why = "it is empty: nothing came, or nothing was written".to_owned();
                return Err(SourceError::NotAnImage { path: path.into(), why });
            }
            _ => file,
        };
        let members = members(&file).map_err(|why| SourceError::NotAnImage {
            path: path.into(),
            why: format!("it cannot be read as a tar ({why})"),
        })?;
        let inner = Inner::Archive { file: Arc::new(file), members: Arc::new(members) };
        Ok(Self { path: path.to_owned(), inner })
    }

    pub fn has(&self, name: &str) -> bool {
        self.find(name).is_ok()
    }

    /// Size in bytes of a member.
    pub fn size(&self, name: &str) -> io::Result<u64> {
        Ok(self.find(name)?.1)
    }

    /// A reader of its own for a member.
    pub fn stream(&self, name: &str) -> io::Result<Box<dyn Read + Send>> {
        let (at, size) = self.find(name)?;
        match &self.inner {
            Inner::Folder => Ok(Box::new(File::open(self.path.join(name))?)),
            Inner::Archive { file, .. } => {
                Ok(Box::new(Section { file: Arc::clone(file), at, end: at + size }))
            }
        }
    }

    /// The same, from byte `from` on.
    pub fn stream_from(&self, name: &str, from: u64) -> io::Result<Box<dyn Read + Send>> {
        let (at, size) = self.find(name)?;
        let from = from.min(size);
        match &self.inner {
            Inner::Folder => {
                let mut file = File::open(self.path.join(name))?;
                file.seek(SeekFrom::Start(from))?;
                Ok(Box::new(file))
            }
            Inner::Archive { file, .. } => {
                Ok(Box::new(Section { file: Arc::clone(file), at: at + from, end: at + size }))
            }
        }
    }

    /// The archive, and where in it a member begins.
    pub fn place(&self, name: &str) -> Option<(Arc<File>, u64)> {
        match &self.inner {
            Inner::Archive { file, .. } => Some((Arc::clone(file), self.find(name).ok()?.0)),
            Inner::Folder => None,
        }
    }

    /// A small member, whole.
    pub fn read(&self, name: &str) -> Result<Vec<u8>, SourceError> {
        let error =
            |source| SourceError::Read { path: self.path.clone(), what: name.into(), source };
        let mut bytes = Vec::new();
        let stream = self.stream(name).map_err(error)?;
        stream.take(MAX_JSON).read_to_end(&mut bytes).map_err(error)?;
        Ok(bytes)
    }

    /// A blob that is JSON, its size and digest checked.
    pub fn blob(
        &self,
        what: &str,
        descriptor: &Descriptor,
    ) -> Result<(Digest, Vec<u8>), SourceError> {
        let digest = self.digest(what, descriptor)?;
        if descriptor.size > MAX_JSON {
            let (path, what) = (self.path.clone(), what.to_owned());
            return Err(SourceError::TooLarge { path, what, size: descriptor.size, max: MAX_JSON });
        }
        let bytes = self.read(&blob_name(&digest))?;
        let (path, what) = (self.path.clone(), what.to_owned());
        let size = bytes.len() as u64;
        if size != descriptor.size {
            return Err(SourceError::WrongSize {
                path,
                what,
                digest,
                want: descriptor.size,
                got: size,
            });
        }
        let got = Digest::of(&bytes);
        if got != digest {
            return Err(SourceError::WrongDigest { path, what, want: digest, got });
        }
        Ok((digest, bytes))
    }

    pub fn digest(&self, what: &str, descriptor: &Descriptor) -> Result<Digest, SourceError> {
        descriptor.digest.parse().map_err(|source| SourceError::Digest {
            path: self.path.clone(),
            what: what.to_owned(),
            source,
        })
    }

    pub fn json<T: serde::de::DeserializeOwned>(
        &self,
        what: &str,
        bytes: &[u8],
    ) -> Result<T, SourceError> {
        serde_json::from_slice(bytes).map_err(|source| SourceError::Json {
            path: self.path.clone(),
            what: what.to_owned(),
            source,
        })
    }

    /// Offset (0 in a folder) and size of a member.
    fn find(&self, name: &str) -> io::Result<(u64, u64)> {
        let missing = || io::Error::new(io::ErrorKind::NotFound, format!("{name} is missing"));
        match &self.inner {
            // A list of layers may name anything; what it names lies in the folder.
            Inner::Folder if clean(name.as_bytes(), "").as_deref() != Some(name) => Err(missing()),
            Inner::Folder => {
                let meta = std::fs::metadata(self.path.join(name))?;
                if meta.is_file() { Ok((0, meta.len())) } else { Err(missing()) }
            }
            Inner::Archive { members, .. } => {
                let mut name = name.to_owned();
                for _ in 0..40 {
                    match members.get(&name).ok_or_else(missing)? {
                        Member::Content { at, size } => return Ok((*at, *size)),
                        Member::Link(target) => name.clone_from(target),
                    }
                }
                Err(missing())
            }
        }
    }
}

/// Where a layout keeps a blob.
pub(super) fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn unpacked(mut from: impl Read) -> io::Result<File> {
    let mut file = tempfile::tempfile_in(crate::sys::temporary::folder())?;
    io::copy(&mut from, &mut file)?;
    Ok(file)
}

/// Indexes a tar by its headers. Names are compared without `./`; the last of two equal ones wins.
fn members(file: &File) -> io::Result<HashMap<String, Member>> {
    let mut reader = BufReader::with_capacity(4096, file);
    reader.seek(SeekFrom::Start(0))?;
    let len = file.metadata()?.len();
    let mut archive = tar::Archive::new(reader);
    let mut members = HashMap::new();
    for entry in archive.entries_with_seek()? {
        let entry = entry?;
        let Some(name) = clean(&entry.path_bytes(), "") else { continue };
        let parent = name.rsplit_once('/').map_or("", |(parent, _)| parent).to_owned();
        let link = |base: &str| clean(&entry.link_name_bytes().unwrap_or_default(), base);
        let member = match entry.header().entry_type() {
            tar::EntryType::Symlink => link(&parent).map(Member::Link),
            tar::EntryType::Link => link("").map(Member::Link),
            tar::EntryType::Regular | tar::EntryType::Continuous => {
                let (at, size) = (entry.raw_file_position(), entry.size());
                if at.checked_add(size).is_none_or(|end| end > len) {
                    return Err(io::Error::new(
                        io::ErrorKind::UnexpectedEof,
                        format!("it ends inside {name}"),
                    ));
                }
                Some(Member::Content { at, size })
            }
            _ => None,
        };
        members.extend(member.map(|member| (name, member)));
    }
    Ok(members)
}

/// A member's name from the archive's root, `..` of links resolved; `None` if it leaves the archive.
fn clean(raw: &[u8], base: &str) -> Option<String> {
    let text = std::str::from_utf8(raw).ok()?;
    let base = if text.starts_with('/') { "" } else { base };
    let mut names: Vec<&str> = Vec::new();
    for name in base.split('/').chain(text.split('/')).filter(|n| !matches!(*n, "" | ".")) {
        if name == ".." {
            names.pop()?;
        } else {
            names.push(name);
        }
    }
    Some(names.join("/"))
}

/// The layers of an opened image.
pub(super) struct Blobs {
    pub container: Container,
    /// Member names, lowest layer first.
    pub names: Vec<String>,
}

impl BlobSource for Blobs {
    fn open(&self, index: usize) -> io::Result<Box<dyn Read + Send>> {
        let name = self.names.get(index);
        self.container.stream(name.ok_or_else(|| io::Error::other("no such layer"))?)
    }

    fn file(&self, index: usize) -> Option<(Arc<File>, u64)> {
        self.container.place(self.names.get(index)?)
    }

    fn size(&self, index: usize) -> Option<u64> {
        self.container.size(self.names.get(index)?).ok()
    }
}

/// Layers and diffIDs side by side, which must be as many.
pub(super) fn pair_layers(
    container: &Container,
    blobs: Vec<(String, Option<(Digest, u64)>)>,
    diff_ids: &[DiffId],
) -> Result<Vec<Layer>, SourceError> {
    if blobs.len().max(diff_ids.len()) > MAX_LAYERS {
        let (path, what) = (container.path.clone(), "its list of layers".to_owned());
        let (size, max) = (blobs.len().max(diff_ids.len()) as u64, MAX_LAYERS as u64);
        return Err(SourceError::TooLarge { path, what, size, max });
    }
    if blobs.len() != diff_ids.len() {
        let (layers, diff_ids) = (blobs.len(), diff_ids.len());
        return Err(SourceError::LayerCount { path: container.path.clone(), layers, diff_ids });
    }
    let layer = |((media_type, blob), diff_id)| Layer::new(media_type, blob, diff_id);
    Ok(blobs.into_iter().zip(diff_ids.iter().copied()).map(layer).collect())
}
