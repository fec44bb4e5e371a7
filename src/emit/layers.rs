//! The layers of the result: whole ones as they are, the others entry by entry.

use std::collections::HashMap;
use std::io::{self, Write};
use std::path::Path;

use crate::model::{Digest, Node, NodeKind, RootPath};
use crate::oci::Image;
use crate::oci::layer::{self, LayerError, Meta};

use super::blob::{self, BlobWriter, Written};
use super::contents::{self, Contents};
use super::entry::{What, pad, write_header};
use super::pack::{Compression, Packing};
use super::packed::{self, PackedLayers};
use super::plan::{Filtered, Kept, Output, Plan};
use super::progress::Progress;
use super::{EmitError, Places};

/// Writes the layers of the result into the folder `blobs`, lowest first.
pub(super) fn write(
    image: &Image,
    places: Places<'_>,
    plan: &Plan<'_>,
    packing: &Packing,
    blobs: &Path,
    progress: &dyn Fn(u64, u64),
) -> Result<Vec<Written>, EmitError> {
    let progress = Progress::new(image, plan, progress);
    // what is only copied is as soon written anew
    let store = places.packed.filter(|_| packing.compression != Compression::None);
    let mut ready = before(store, plan, packing, blobs, &progress)?;
    let to_write =
        plan.filtered().filter(|(at, _)| ready.get(at).is_none_or(|(_, it)| it.is_none()));
    let mut contents = Contents::new(image, places, to_write.map(|(_, it)| it), blobs);
    let mut written = Vec::new();
    for (at, output) in plan.outputs.iter().enumerate() {
        written.push(match output {
            Output::Ready(folder, ready) => {
                let name = ready.digest.hex();
                let (from, to) = (folder.join(&name), blobs.join(&name));
                bring(&from, &to).map_err(|e| EmitError::write(&to, e))?;
                ready.clone()
            }
            Output::Whole(layer) => pass(image, *layer, packing, blobs, &progress)?,
            Output::Filtered(filtered) => match ready.remove(&at) {
                Some((_, Some(written))) => written,
                unknown => {
                    let written = filter(filtered, &mut contents, packing, blobs, &progress)?;
                    if let Some((packed, (key, _))) = store.zip(unknown) {
                        packed::offer(packed, key, &written, blobs);
                    }
                    written
                }
            },
        });
    }
    Ok(written)
}

/// The filtered layers by their place in the result, each with its key, and what was written of it if it was
/// packed before.
fn before(
    packed: Option<&dyn PackedLayers>,
    plan: &Plan<'_>,
    packing: &Packing,
    blobs: &Path,
    progress: &Progress<'_>,
) -> Result<HashMap<usize, (Digest, Option<Written>)>, EmitError> {
    let mut ready = HashMap::new();
    let Some(packed) = packed else { return Ok(ready) };
    for (at, filtered) in plan.filtered() {
        let key = packed::key(filtered, packing)?;
        let found = packed::bring(packed, key, packing, blobs);
        let found = found.map_err(|e| EmitError::write(blobs, e))?;
        if found.is_some() {
            progress.add(filtered.bytes());
        }
        ready.insert(at, (key, found));
    }
    Ok(ready)
}

/// Writes a filtered layer.
fn filter(
    filtered: &Filtered<'_>,
    contents: &mut Contents<'_>,
    packing: &Packing,
    blobs: &Path,
    progress: &Progress<'_>,
) -> Result<Written, EmitError> {
    let mut out = BlobWriter::new(blobs, packing).map_err(|e| EmitError::write(blobs, e))?;
    let copy = |group: &Kept<'_>, content, out: &mut BlobWriter| {
        contents.copy(group, content, &mut progress.of(out))
    };
    fill(filtered, &mut out, blobs, copy)?;
    out.finish().map_err(|e| EmitError::write(blobs, e))
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
        let want = source.blob.map(|(want, _)| want);
        let copied = blob::copy(&mut progress.of(blob), want, blobs);
        let (digest, size) = copied.map_err(|e| EmitError::write(blobs, e))?;
        if let Some(want) = want.filter(|want| *want != digest) {
            return Err(LayerError::BlobDigest { layer, want, got: digest }.into());
        }
        let media_type = packing.compression.media_type();
        return Ok(Written { diff_id: source.diff_id, digest, size, media_type, whole: true });
    }
    let mut out = BlobWriter::new(blobs, packing).map_err(|e| EmitError::write(blobs, e))?;
    contents::whole(image, layer, blobs, &mut out)?;
    let written = out.finish_as_it_is().map_err(|e| EmitError::write(blobs, e))?;
    let (want, got) = (source.diff_id, written.diff_id);
    if got != want {
        return Err(LayerError::DiffId { layer, want, got }.into());
    }
    progress.add(image.stored_size(layer));
    Ok(Written { whole: true, ..written })
}

/// Writes the tar of a filtered layer, but for its end; `copy` writes the content of a file, which may
/// have several names.
pub(super) fn fill<W: Write>(
    filtered: &Filtered<'_>,
    out: &mut W,
    blobs: &Path,
    mut copy: impl FnMut(&Kept<'_>, Digest, &mut W) -> Result<(), EmitError>,
) -> Result<(), EmitError> {
    let unwritten = |e| EmitError::write(blobs, e);
    let folder = |path: &RootPath, node: &Node, out: &mut W| {
        write_header(out, path, &What::Node(&node.kind), &Meta::of(node)).map_err(unwritten)
    };
    if let Some(root) = &filtered.root {
        folder(&RootPath::root(), root, out)?;
    }
    for (path, node) in &filtered.dirs {
        folder(path, node, out)?;
    }
    for path in &filtered.gone {
        whiteout(path, out).map_err(unwritten)?;
    }
    for group in filtered.groups() {
        let Some(((first, node), others)) = group.split_first() else { continue };
        let meta = Meta::of(node);
        write_header(out, first, &What::Node(&node.kind), &meta).map_err(unwritten)?;
        if let NodeKind::File { size, content, .. } = node.kind {
            if size > 0 {
                copy(group, content, out)?;
            }
            pad(out, size).map_err(unwritten)?;
        }
        for (other, _) in others {
            write_header(out, other, &What::Link(first), &meta).map_err(unwritten)?;
        }
    }
    Ok(())
}

/// `.wh.NAME` (image-spec v1.1, layer.md, "Whiteouts").
fn whiteout(path: &RootPath, out: &mut impl Write) -> io::Result<()> {
    let name = [b".wh.", path.file_name()].concat();
    let name = path.parent().unwrap_or_else(RootPath::root).join(&name);
    let content = Digest::of(b"");
    let kind = NodeKind::File { size: 0, content, facts: None };
    write_header(out, &name, &What::Node(&kind), &Meta::default())
}
