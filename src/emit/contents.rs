//! The contents of the original's files, in the order in which the result wants them.
//!
//! What was unpacked, or whose place is known, is taken from there. For the rest each layer is read once
//! more, and only as far as something in it is wanted; what comes before its turn waits. The layers were
//! verified as a whole when they were indexed, so here each content is held against the digest that it
//! had then.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Seek, Write};
use std::path::Path;

use sha2::{Digest as _, Sha256};

use crate::model::{Digest, Node, NodeKind, RootPath};
use crate::oci::layer::{self, LayerError, LayerStream};
use crate::oci::{Image, Place};
use crate::sys::section::Section;

use super::plan::{Filtered, Kept};
use super::{EmitError, Places};

/// Content kept in memory while it waits for its layer; more goes to a temporary file.
const SPOOL: usize = 1 << 20;
const CHUNK: usize = 128 << 10;
/// As much is read at a time where places are known: the next content may be near, or far.
const NEAR: usize = 32 << 10;

/// What is wanted, and where reading is.
pub(super) struct Contents<'a> {
    image: &'a Image,
    places: Places<'a>,
    /// For messages.
    blobs: &'a Path,
    /// What is wanted, by inode, so in the order of the layers and of their entries.
    wanted: std::vec::IntoIter<u64>,
    /// Contents that came before their turn, with their digests.
    waiting: HashMap<u64, (tempfile::SpooledTempFile, Digest)>,
    /// The layer being read, and how many entries of it were.
    open: Option<(usize, LayerStream, u64)>,
    /// Where contents whose places are known are read.
    near: Option<BufReader<Section<&'a File>>>,
}

impl<'a> Contents<'a> {
    /// Those of some filtered layers.
    pub fn new<'f, 'n: 'f>(
        image: &'a Image,
        places: Places<'a>,
        filtered: impl Iterator<Item = &'f Filtered<'n>>,
        blobs: &'a Path,
    ) -> Self {
        let read = |group: &&Kept<'_>| places.unpacked.is_none() || own_name(group).is_none();
        let wanted =
            filtered.flat_map(Filtered::groups).filter(read).filter_map(|group| {
                match group.first()?.1 {
                    Node { kind: NodeKind::File { size: 1.., .. }, inode, .. } => Some(*inode),
                    _ => None,
                }
            });
        let known = |inode: &u64| places.known.is_some_and(|known| known.find(*inode).is_some());
        let wanted: Vec<u64> = wanted.filter(|inode| !known(inode)).collect();
        tracing::debug!(contents = wanted.len(), "contents for which layers are read once more");
        Self { places, ..Self::of(image, wanted, blobs) }
    }

    /// The contents of these inodes, each a file that is not empty, read from the layers.
    pub fn of(image: &'a Image, mut wanted: Vec<u64>, blobs: &'a Path) -> Self {
        wanted.sort_unstable();
        let (wanted, waiting) = (wanted.into_iter(), HashMap::new());
        let (places, open, near) = (Places::default(), None, None);
        Self { image, places, blobs, wanted, waiting, open, near }
    }

    /// Copies the content of an inode, given its names, to `out`; each one can be had once.
    pub fn copy(
        &mut self,
        names: &Kept<'_>,
        want: Digest,
        out: &mut impl Write,
    ) -> Result<(), EmitError> {
        if crate::sys::signals::interrupted() {
            return Err(EmitError::Interrupted);
        }
        let Some((name, Node { kind, inode, .. })) = names.first() else { return Ok(()) };
        let layer = layer_of(*inode);
        let size = if let NodeKind::File { size, .. } = kind { *size } else { 0 };
        let own = self.places.unpacked.zip(own_name(names));
        if let Some((unpacked, path)) = own {
            match unpacked(layer, path) {
                Ok(file) => {
                    let room = usize::try_from(size).unwrap_or(CHUNK).clamp(1, CHUNK);
                    let mut file = BufReader::with_capacity(room, file);
                    let path = path.clone();
                    let unread = |source| EmitError::Unread { layer, path: path.clone(), source };
                    let got = self.drain(&mut file, u64::MAX, out, unread)?;
                    return match got == want {
                        true => Ok(()),
                        false => Err(EmitError::Copy { layer, path, want, got }),
                    };
                }
                // An engine may have removed what was to be used in its place.
                Err(error) => tracing::info!(%path, %error, "its content is read from the layer"),
            }
        }
        if let Some(place) = self.places.known.and_then(|known| known.find(*inode)) {
            let path = || (*name).clone();
            let unread = |source| match place.copy {
                true => EmitError::Unread { layer, path: path(), source },
                false => LayerError::Read { layer, blob: format!("with {name}"), source }.into(),
            };
            let got = self.fetch(place, size, out, unread)?;
            return match place.copy {
                true if got != want => Err(EmitError::Temporary { layer, path: path(), want, got }),
                _ => held_against(want, got, layer, name),
            };
        }
        let got = match self.waiting.remove(inode) {
            Some((mut spool, digest)) => {
                let copied = spool.rewind().and_then(|()| io::copy(&mut spool, out));
                copied.map_err(|e| EmitError::write(self.blobs, e))?;
                digest
            }
            // It was to come from elsewhere, so the readers of the layers do not know of it.
            None if own.is_some() => {
                Self::of(self.image, vec![*inode], self.blobs).reach(*inode, out)?
            }
            None => self.reach(*inode, out)?,
        };
        held_against(want, got, layer, name)
    }

    /// Copies a content of `size` bytes whose place is known; its digest.
    fn fetch(
        &mut self,
        Place { file, at, .. }: Place<'a>,
        size: u64,
        out: &mut impl Write,
        unread: impl Fn(io::Error) -> EmitError,
    ) -> Result<Digest, EmitError> {
        let same = |open: &BufReader<Section<&File>>| std::ptr::eq(open.get_ref().file, file);
        let open = self.near.take().filter(same);
        let whole = Section { file, at: 0, end: u64::MAX };
        let mut reader = open.unwrap_or_else(|| BufReader::with_capacity(NEAR, whole));
        // Most often it begins where the last one ended, or soon after.
        let now = reader.get_ref().at - reader.buffer().len() as u64;
        reader.seek_relative(at.cast_signed().wrapping_sub(now.cast_signed())).map_err(&unread)?;
        let digest = self.drain(&mut reader, size, out, unread)?;
        self.near = Some(reader);
        Ok(digest)
    }

    /// Copies the next `len` bytes, or as many as there are; their digest.
    fn drain(
        &self,
        from: &mut impl BufRead,
        mut len: u64,
        out: &mut impl Write,
        unread: impl Fn(io::Error) -> EmitError,
    ) -> Result<Digest, EmitError> {
        let mut hash = Sha256::new();
        while len > 0 {
            if crate::sys::signals::interrupted() {
                return Err(EmitError::Interrupted);
            }
            let there = match from.fill_buf() {
                Ok([]) => break,
                Ok(there) => there,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(unread(error)),
            };
            let n = there.len().min(usize::try_from(len).unwrap_or(usize::MAX));
            hash.update(&there[..n]);
            out.write_all(&there[..n]).map_err(|e| EmitError::write(self.blobs, e))?;
            from.consume(n);
            len -= n as u64;
        }
        Ok(Digest::from_raw(hash.finalize().into()))
    }

    /// Reads on to `inode` and copies it; what is wanted on the way waits.
    fn reach(&mut self, inode: u64, out: &mut impl Write) -> Result<Digest, EmitError> {
        loop {
            let at = self.advance()?;
            if at == inode {
                return self.take(out);
            }
            let mut spool = tempfile::SpooledTempFile::new(SPOOL);
            let digest = self.take(&mut spool)?;
            self.waiting.insert(at, (spool, digest));
        }
    }

    /// Goes on to the next entry that is wanted, and says which one it is.
    fn advance(&mut self) -> Result<u64, EmitError> {
        let next = self.wanted.next().ok_or(EmitError::OtherTree)?;
        let (layer, entry) = (layer_of(next), next & 0xffff_ffff);
        if self.open.as_ref().is_none_or(|(open, ..)| *open != layer) {
            if layer >= self.image.layers.len() {
                return Err(EmitError::OtherTree);
            }
            self.open = Some((layer, layer::open_again(self.image, layer)?, 0));
        }
        let Some((_, stream, at)) = &mut self.open else { return Err(EmitError::OtherTree) };
        while *at < entry {
            if crate::sys::signals::interrupted() {
                return Err(EmitError::Interrupted);
            }
            if !stream.skip_entry()? {
                return Err(EmitError::OtherTree);
            }
            *at += 1;
        }
        if *at == entry { Ok(next) } else { Err(EmitError::OtherTree) }
    }

    /// Copies the content at hand; its digest.
    fn take(&mut self, out: &mut impl Write) -> Result<Digest, EmitError> {
        let Some((_, stream, _)) = &mut self.open else { return Err(EmitError::OtherTree) };
        stream.content(|chunk| out.write_all(chunk).map_err(|e| EmitError::write(self.blobs, e)))
    }
}

/// The digest that a content had when it was indexed, and the one it has now.
fn held_against(want: Digest, got: Digest, layer: usize, name: &RootPath) -> Result<(), EmitError> {
    match got == want {
        true => Ok(()),
        false => Err(LayerError::Changed { layer, entry: name.to_string(), want, got }.into()),
    }
}

/// The name that the layer itself has for the inode, not one that a later layer gave it.
fn own_name<'a>(names: &Kept<'a>) -> Option<&'a RootPath> {
    let own = names.iter().find(|(_, node)| node.layer() == layer_of(node.inode));
    own.map(|(path, _)| *path)
}

fn layer_of(inode: u64) -> usize {
    usize::try_from(inode >> 32).unwrap_or(usize::MAX)
}

/// The tar of a whole layer that was verified before; the caller holds the digest of what it wrote against
/// the diffID.
pub(super) fn whole(
    image: &Image,
    layer: usize,
    blobs: &Path,
    out: &mut impl Write,
) -> Result<(), EmitError> {
    let mut stream = layer::open_again(image, layer)?;
    let mut buf = vec![0; CHUNK];
    loop {
        if crate::sys::signals::interrupted() {
            return Err(EmitError::Interrupted);
        }
        let n = stream.read_tar(&mut buf)?;
        if n == 0 {
            return Ok(stream.finish()?);
        }
        out.write_all(&buf[..n]).map_err(|e| EmitError::write(blobs, e))?;
    }
}
