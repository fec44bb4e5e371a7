//! The layers of the result: whole ones as they are, the others entry by entry.

use std::path::Path;

use crate::model::{Node, NodeKind, RootPath};
use crate::oci::Image;
use crate::oci::layer::{self, LayerError, Meta};

use super::blob::{self, BlobWriter, Written};
use super::contents::{self, Contents};
use super::entry::{What, pad, write_header};
use super::pack::{Compression, Packing};
use super::plan::{Filtered, Output, Plan};
use super::progress::Progress;
use super::{EmitError, Unpacked};

/// Writes the layers of the result into the folder `blobs`, lowest first.
pub(super) fn write(
    image: &Image,
    unpacked: Option<&Unpacked<'_>>,
    plan: &Plan<'_>,
    packing: &Packing,
    blobs: &Path,
    progress: &dyn Fn(u64, u64),
) -> Result<Vec<Written>, EmitError> {
    let progress = Progress::new(image, plan, progress);
    let mut contents = Contents::new(image, unpacked, plan, blobs);
    let mut written = Vec::new();
    for output in &plan.outputs {
        written.push(match output {
            Output::Ready(folder, ready) => {
                let name = ready.digest.hex();
                let (from, to) = (folder.join(&name), blobs.join(&name));
                bring(&from, &to).map_err(|e| EmitError::write(&to, e))?;
                ready.clone()
            }
            Output::Whole(layer) => pass(image, *layer, packing, blobs, &progress)?,
            Output::Filtered(filtered) => {
                let out =
                    BlobWriter::new(blobs, packing).map_err(|e| EmitError::write(blobs, e))?;
                let mut layer = Layer { blobs, out, progress: &progress };
                layer.fill(filtered, &mut contents)?;
                layer.out.finish().map_err(|e| EmitError::write(blobs, e))?
            }
        });
    }
    Ok(written)
}

/// A blob that is there already, under another name; the same one may be in an image twice.
fn bring(from: &Path, to: &Path) -> std::io::Result<()> {
    if to.exists() {
        return Ok(());
    }
    std::fs::hard_link(from, to).or_else(|_| std::fs::copy(from, to).map(drop))
}

/// A layer byte for byte: the very blob, if it is compressed as the result is to be.
fn pass(
    image: &Image,
    layer: usize,
    packing: &Packing,
    blobs: &Path,
    progress: &Progress<'_>,
) -> Result<Written, EmitError> {
    let unread = |source| LayerError::Read { layer, blob: "of a whole layer".into(), source };
    let stored = image.blobs.open(layer).and_then(layer::sniff);
    let (compression, blob) = stored.map_err(unread)?;
    let source = &image.layers[layer];
    if compression == packing.compression && packing.compression != Compression::None {
        let (digest, size) =
            blob::copy(&mut progress.of(blob), blobs).map_err(|e| EmitError::write(blobs, e))?;
        if let Some((want, _)) = source.blob.filter(|(want, _)| *want != digest) {
            return Err(LayerError::BlobDigest { layer, want, got: digest }.into());
        }
        let media_type = packing.compression.media_type();
        return Ok(Written { diff_id: source.diff_id, digest, size, media_type, whole: true });
    }
    let mut out = BlobWriter::new(blobs, packing).map_err(|e| EmitError::write(blobs, e))?;
    contents::whole(image, layer, blobs, &mut out)?;
    let written = out.finish_as_it_is().map_err(|e| EmitError::write(blobs, e))?;
    progress.add(image.stored_size(layer));
    Ok(Written { whole: true, ..written })
}

/// A filtered layer being written.
struct Layer<'a> {
    blobs: &'a Path,
    out: BlobWriter,
    progress: &'a Progress<'a>,
}

impl Layer<'_> {
    fn fill(
        &mut self,
        filtered: &Filtered<'_>,
        contents: &mut Contents<'_>,
    ) -> Result<(), EmitError> {
        if let Some(root) = &filtered.root {
            self.header(&RootPath::root(), &What::Node(&NodeKind::Dir), &Meta::of(root))?;
        }
        for (path, node) in &filtered.dirs {
            self.header(path, &What::Node(&node.kind), &Meta::of(node))?;
        }
        for path in &filtered.gone {
            self.whiteout(path)?;
        }
        for group in filtered.groups() {
            self.group(group, contents)?;
        }
        Ok(())
    }

    /// `.wh.NAME` (image-spec v1.1, layer.md, "Whiteouts").
    fn whiteout(&mut self, path: &RootPath) -> Result<(), EmitError> {
        let name = [b".wh.", path.file_name()].concat();
        let name = path.parent().unwrap_or_else(RootPath::root).join(&name);
        let content = crate::model::Digest::of(b"");
        let kind = NodeKind::File { size: 0, content, facts: None };
        self.header(&name, &What::Node(&kind), &Meta::default())
    }

    /// Writes the first name with the content, the others as links to it.
    fn group(
        &mut self,
        group: &[(&RootPath, &Node)],
        contents: &mut Contents<'_>,
    ) -> Result<(), EmitError> {
        let Some(((first, node), others)) = group.split_first() else { return Ok(()) };
        let meta = Meta::of(node);
        self.header(first, &What::Node(&node.kind), &meta)?;
        if let NodeKind::File { size, content, .. } = node.kind {
            if size > 0 {
                contents.copy(group, content, &mut self.progress.of(&mut self.out))?;
            }
            pad(&mut self.out, size).map_err(|e| EmitError::write(self.blobs, e))?;
        }
        for (other, _) in others {
            self.header(other, &What::Link(first), &meta)?;
        }
        Ok(())
    }

    fn header(&mut self, path: &RootPath, what: &What<'_>, meta: &Meta) -> Result<(), EmitError> {
        let written = write_header(&mut self.out, path, what, meta);
        written.map_err(|e| EmitError::write(self.blobs, e))
    }
}
