//! Layers that were packed before: compressing is most of what writing an image takes, and a pipeline
//! that traces the same image again mostly keeps the same of it.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::model::{DiffId, Digest};

use super::EmitError;
use super::blob::{self, Hashed, Written};
use super::layers;
use super::pack::Packing;
use super::plan::Filtered;

/// Part of every key. To be changed with anything that makes other bytes of the same layer: a test
/// pins those of one layer.
const REVISION: u32 = 1;

/// Where packed layers wait for the next image that has the same ones. It may forget any of them; a blob is
/// held against its note, and packed anew where it does not fit.
pub trait PackedLayers {
    /// The note and the blob that [`PackedLayers::keep`] was given under this key.
    fn find(&self, key: Digest) -> Option<(Vec<u8>, File)>;
    /// May keep a copy of `blob` with a note.
    fn keep(&self, key: Digest, note: &[u8], blob: &Path);
}

/// What is noted of a blob.
#[derive(Serialize, Deserialize)]
struct Note {
    diff_id: DiffId,
    digest: Digest,
    size: u64,
}

/// Names what a filtered layer will be: its headers as they are written, each content's digest in its
/// place, and the packing.
pub(super) fn key(filtered: &Filtered<'_>, packing: &Packing) -> Result<Digest, EmitError> {
    let unhashed = |e| EmitError::write(Path::new(""), e);
    let mut hash = Hashed::new(io::sink());
    let packing = (packing.compression, packing.depth());
    write!(hash, "slim packed layer {REVISION}, {packing:?}\0").map_err(unhashed)?;
    layers::fill(filtered, &mut hash, Path::new(""), |_, content, hash| {
        hash.write_all(content.hex().as_bytes()).map_err(unhashed)
    })?;
    Ok(hash.digest())
}

/// Brings a blob that was kept into the folder `blobs`; `None` if there is none, or another one than
/// was noted.
pub(super) fn bring(
    layers: &dyn PackedLayers,
    key: Digest,
    packing: &Packing,
    blobs: &Path,
) -> io::Result<Option<Written>> {
    let Some((note, mut file)) = layers.find(key) else { return Ok(None) };
    let Ok(Note { diff_id, digest, size }) = serde_json::from_slice(&note) else { return Ok(None) };
    if file.metadata()?.len() != size {
        return Ok(None);
    }
    let (got, _) = blob::copy(&mut file, Some(digest), blobs)?;
    if got != digest {
        tracing::info!(%key, "what the store has of a packed layer is damaged: it is packed anew");
        return Ok(None);
    }
    let media_type = packing.compression.media_type();
    Ok(Some(Written { diff_id, digest, size, media_type, whole: false }))
}

/// Offers a blob that was written into the folder `blobs`.
pub(super) fn offer(layers: &dyn PackedLayers, key: Digest, written: &Written, blobs: &Path) {
    let Written { diff_id, digest, size, .. } = *written;
    if let Ok(note) = serde_json::to_vec(&Note { diff_id, digest, size }) {
        layers.keep(key, &note, &blobs.join(digest.hex()));
    }
}
