//! The contents of the original's files, in the order in which the result wants them.
//!
//! Each layer is read once, and only as far as something in it is wanted; what comes before its turn
//! waits. The layers were verified as a whole when they were indexed, so here each content is held
//! against the digest that it had then.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Read, Seek, Write};
use std::path::Path;

use sha2::{Digest as _, Sha256};

use crate::model::{Digest, NodeKind, RootPath, Tree};
use crate::oci::Image;
use crate::oci::layer::{self, LayerError, LayerStream};

use super::EmitError;
use super::plan::{Output, Plan};

/// Content kept in memory while it waits for its layer; more goes to a temporary file.
const SPOOL: usize = 1 << 20;

/// What is still wanted, and where reading is.
pub(super) struct Contents<'a> {
    image: &'a Image,
    /// For messages.
    blobs: &'a Path,
    /// The digests of what is wanted, by inode, so in the order of the layers.
    wanted: BTreeMap<u64, (Digest, RootPath)>,
    waiting: HashMap<u64, tempfile::SpooledTempFile>,
    /// The layer being read, and how many entries of it were.
    open: Option<(usize, LayerStream, u64)>,
}

impl<'a> Contents<'a> {
    pub fn new(image: &'a Image, tree: &Tree, plan: &Plan, blobs: &'a Path) -> Self {
        let filtered = plan.outputs.iter().filter_map(|output| match output {
            Output::Filtered(filtered) => Some(filtered),
            _ => None,
        });
        let wanted = filtered.flat_map(|filtered| &filtered.inodes).filter_map(|inode| {
            let name = plan.groups[inode].first()?;
            match &tree.get(name)?.kind {
                NodeKind::File { content, size: 1.., .. } => {
                    Some((*inode, (*content, name.clone())))
                }
                _ => None,
            }
        });
        let wanted = wanted.collect();
        Self { image, blobs, wanted, waiting: HashMap::new(), open: None }
    }

    /// Copies the content of `inode` to `out`; each one can be had once.
    pub fn copy(&mut self, inode: u64, out: &mut impl Write) -> Result<(), EmitError> {
        if let Some(mut spool) = self.waiting.remove(&inode) {
            let copied = spool.rewind().and_then(|()| io::copy(&mut spool, out));
            return copied.map(drop).map_err(|e| EmitError::write(self.blobs, e));
        }
        loop {
            let at = self.advance()?;
            if at == inode {
                return self.take(inode, out);
            }
            let mut spool = tempfile::SpooledTempFile::new(SPOOL);
            self.take(at, &mut spool)?;
            self.waiting.insert(at, spool);
        }
    }

    /// Goes on to the next entry that is wanted, and says which one it is.
    fn advance(&mut self) -> Result<u64, EmitError> {
        let next = *self.wanted.keys().next().ok_or(EmitError::OtherTree)?;
        let (layer, entry) =
            (usize::try_from(next >> 32).unwrap_or(usize::MAX), next & 0xffff_ffff);
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

    /// Copies the content at hand.
    fn take(&mut self, inode: u64, out: &mut impl Write) -> Result<(), EmitError> {
        let blobs = self.blobs;
        let (want, name) = self.wanted.remove(&inode).ok_or(EmitError::OtherTree)?;
        let Some((layer, stream, _)) = &mut self.open else { return Err(EmitError::OtherTree) };
        let mut hash = Sha256::new();
        let mut buf = vec![0; 128 << 10];
        loop {
            let n = stream.read(&mut buf)?;
            if n == 0 {
                break;
            }
            hash.update(&buf[..n]);
            out.write_all(&buf[..n]).map_err(|e| EmitError::write(blobs, e))?;
        }
        let got = Digest::from_raw(hash.finalize().into());
        if got == want {
            return Ok(());
        }
        let (layer, entry) = (*layer, name.to_string());
        Err(LayerError::Changed { layer, entry, want, got }.into())
    }
}

/// The tar of a whole layer, verified on the way.
pub(super) fn whole(
    image: &Image,
    layer: usize,
    blobs: &Path,
    out: &mut impl Write,
) -> Result<(), EmitError> {
    let mut stream = layer::open(image, layer)?;
    let mut buf = vec![0; 128 << 10];
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
