//! The contents of the original's files, in the order in which the result wants them.
//!
//! Each layer is read once, and only as far as something in it is wanted; what comes before its turn
//! waits. The layers were verified as a whole when they were indexed, so here each content is held
//! against the digest that it had then.

use std::collections::HashMap;
use std::io::{self, Read, Seek, Write};
use std::path::Path;

use sha2::{Digest as _, Sha256};

use crate::model::{Digest, Node, NodeKind, RootPath};
use crate::oci::Image;
use crate::oci::layer::{self, LayerError, LayerStream};

use super::EmitError;
use super::plan::{Filtered, Output, Plan};

/// Content kept in memory while it waits for its layer; more goes to a temporary file.
const SPOOL: usize = 1 << 20;
const CHUNK: usize = 128 << 10;

/// What is wanted, and where reading is.
pub(super) struct Contents<'a> {
    image: &'a Image,
    /// For messages.
    blobs: &'a Path,
    /// What is wanted, by inode, so in the order of the layers and of their entries.
    wanted: std::vec::IntoIter<u64>,
    /// Contents that came before their turn, with their digests.
    waiting: HashMap<u64, (tempfile::SpooledTempFile, Digest)>,
    /// The layer being read, and how many entries of it were.
    open: Option<(usize, LayerStream, u64)>,
    buffer: Vec<u8>,
}

impl<'a> Contents<'a> {
    pub fn new(image: &'a Image, plan: &Plan<'_>, blobs: &'a Path) -> Self {
        let filtered = plan.outputs.iter().filter_map(|output| match output {
            Output::Filtered(filtered) => Some(filtered),
            _ => None,
        });
        let wanted =
            filtered.flat_map(Filtered::groups).filter_map(|group| match group.first()?.1 {
                Node { kind: NodeKind::File { size: 1.., .. }, inode, .. } => Some(*inode),
                _ => None,
            });
        Self::of(image, wanted.collect(), blobs)
    }

    /// The contents of these inodes, each a file that is not empty.
    pub fn of(image: &'a Image, mut wanted: Vec<u64>, blobs: &'a Path) -> Self {
        wanted.sort_unstable();
        let (waiting, buffer) = (HashMap::new(), vec![0; CHUNK]);
        Self { image, blobs, wanted: wanted.into_iter(), waiting, open: None, buffer }
    }

    /// Copies the content of `inode`, which `name` is a name of, to `out`; each one can be had once.
    pub fn copy(
        &mut self,
        inode: u64,
        want: Digest,
        name: &RootPath,
        out: &mut impl Write,
    ) -> Result<(), EmitError> {
        let got = match self.waiting.remove(&inode) {
            Some((mut spool, digest)) => {
                let copied = spool.rewind().and_then(|()| io::copy(&mut spool, out));
                copied.map_err(|e| EmitError::write(self.blobs, e))?;
                digest
            }
            None => self.reach(inode, out)?,
        };
        if got == want {
            return Ok(());
        }
        let (layer, entry) = (layer_of(inode), name.to_string());
        Err(LayerError::Changed { layer, entry, want, got }.into())
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
            stream.next_entry()?.ok_or(EmitError::OtherTree)?;
            *at += 1;
        }
        if *at == entry { Ok(next) } else { Err(EmitError::OtherTree) }
    }

    /// Copies the content at hand; its digest.
    fn take(&mut self, out: &mut impl Write) -> Result<Digest, EmitError> {
        let Some((_, stream, _)) = &mut self.open else { return Err(EmitError::OtherTree) };
        let mut hash = Sha256::new();
        loop {
            let n = stream.read(&mut self.buffer)?;
            if n == 0 {
                return Ok(Digest::from_raw(hash.finalize().into()));
            }
            hash.update(&self.buffer[..n]);
            out.write_all(&self.buffer[..n]).map_err(|e| EmitError::write(self.blobs, e))?;
        }
    }
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

/// The first bytes of a layer's blob, by which its compression is known, and all of it.
pub(super) fn blob(image: &Image, layer: usize) -> io::Result<([u8; 4], impl Read)> {
    let mut blob = image.blobs.open(layer)?;
    let (mut head, mut filled) = ([0; 4], 0);
    while filled < head.len() {
        match blob.read(&mut head[filled..])? {
            0 => break,
            n => filled += n,
        }
    }
    Ok((head, io::Cursor::new(head[..filled].to_vec()).chain(blob)))
}
