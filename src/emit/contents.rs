//! The contents of the original's files, in the order in which the result wants them.
//!
//! Each layer is read once, and only as far as something in it is wanted; what comes before its turn
//! waits. The layers were verified as a whole when they were indexed, so here each content is held
//! against the digest that it had then.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::path::Path;

use sha2::{Digest as _, Sha256};

use crate::model::{Digest, Node, NodeKind, RootPath};
use crate::oci::Image;
use crate::oci::layer::{self, LayerError, LayerStream};

use super::plan::{Filtered, Kept};
use super::{EmitError, Unpacked};

/// Content kept in memory while it waits for its layer; more goes to a temporary file.
const SPOOL: usize = 1 << 20;
const CHUNK: usize = 128 << 10;

/// What is wanted, and where reading is.
pub(super) struct Contents<'a> {
    image: &'a Image,
    unpacked: Option<&'a Unpacked<'a>>,
    /// For messages.
    blobs: &'a Path,
    /// What is wanted, by inode, so in the order of the layers and of their entries.
    wanted: std::vec::IntoIter<u64>,
    /// Contents that came before their turn, with their digests.
    waiting: HashMap<u64, (tempfile::SpooledTempFile, Digest)>,
    /// The layer being read, and how many entries of it were.
    open: Option<(usize, LayerStream, u64)>,
}

impl<'a> Contents<'a> {
    /// Those of some filtered layers.
    pub fn new<'f, 'n: 'f>(
        image: &'a Image,
        unpacked: Option<&'a Unpacked<'a>>,
        filtered: impl Iterator<Item = &'f Filtered<'n>>,
        blobs: &'a Path,
    ) -> Self {
        let read = |group: &&Kept<'_>| unpacked.is_none() || own_name(group).is_none();
        let wanted =
            filtered.flat_map(Filtered::groups).filter(read).filter_map(|group| {
                match group.first()?.1 {
                    Node { kind: NodeKind::File { size: 1.., .. }, inode, .. } => Some(*inode),
                    _ => None,
                }
            });
        Self { unpacked, ..Self::of(image, wanted.collect(), blobs) }
    }

    /// The contents of these inodes, each a file that is not empty, read from the layers.
    pub fn of(image: &'a Image, mut wanted: Vec<u64>, blobs: &'a Path) -> Self {
        wanted.sort_unstable();
        let (wanted, waiting) = (wanted.into_iter(), HashMap::new());
        Self { image, unpacked: None, blobs, wanted, waiting, open: None }
    }

    /// Copies the content of an inode, given its names, to `out`; each one can be had once.
    pub fn copy(
        &mut self,
        names: &Kept<'_>,
        want: Digest,
        out: &mut impl Write,
    ) -> Result<(), EmitError> {
        let Some((name, Node { inode, .. })) = names.first() else { return Ok(()) };
        let layer = layer_of(*inode);
        let own = self.unpacked.zip(own_name(names));
        if let Some((unpacked, path)) = own {
            match unpacked(layer, path) {
                Ok(mut file) => {
                    let got = self.drain(&mut file, out)?;
                    let path = path.clone();
                    return match got == want {
                        true => Ok(()),
                        false => Err(EmitError::Copy { layer, path, want, got }),
                    };
                }
                // An engine may have removed what was to be used in its place.
                Err(error) => tracing::info!(%path, %error, "its content is read from the layer"),
            }
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
        if got == want {
            return Ok(());
        }
        Err(LayerError::Changed { layer, entry: name.to_string(), want, got }.into())
    }

    /// Copies a file; the digest of what it had.
    fn drain(&self, file: &mut File, out: &mut impl Write) -> Result<Digest, EmitError> {
        let (mut hash, mut buf) = (Sha256::new(), vec![0; CHUNK]);
        loop {
            let n = file.read(&mut buf).map_err(EmitError::Unread)?;
            if n == 0 {
                return Ok(Digest::from_raw(hash.finalize().into()));
            }
            hash.update(&buf[..n]);
            out.write_all(&buf[..n]).map_err(|e| EmitError::write(self.blobs, e))?;
        }
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

/// The name that the layer itself has for the inode, not one that a later layer gave it.
fn own_name<'a>(names: &Kept<'a>) -> Option<&'a RootPath> {
    let own = names.iter().find(|(_, node)| node.layer() == layer_of(node.inode));
    own.map(|(path, _)| *path)
}

fn layer_of(inode: u64) -> usize {
    usize::try_from(inode >> 32).unwrap_or(usize::MAX)
}

/// The tar of a whole layer, verified on the way.
pub(super) fn whole(
    image: &Image,
    layer: usize,
    blobs: &Path,
    out: &mut impl Write,
) -> Result<(), EmitError> {
    let mut stream = layer::open(image, layer)?;
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
