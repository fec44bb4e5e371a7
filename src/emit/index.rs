//! Images of several platforms under one name (image-spec v1.1, image-index.md).

use std::io::Read as _;
use std::path::Path;

use crate::model::Digest;
use crate::oci::Image;
use crate::oci::layer::LayerError;
use crate::oci::manifest::{OCI_INDEX, OCI_MANIFEST, Platform};

use super::output::{Output, entry, index_of};
use super::{EmitError, ImageFormat, blob};

/// An image of one platform, with its manifest as it is stored.
pub struct Member {
    pub image: Image,
    pub manifest: Vec<u8>,
}

/// Writes one image that is an index over `members`, in their order, at `target`; returns the digest
/// of the index. Blobs stay what they are, and one that several have is there once.
pub fn write_index(
    members: &[Member],
    tag: &str,
    format: ImageFormat,
    target: &Path,
) -> Result<Digest, EmitError> {
    let mut output = Output::start(target)?;
    let mut entries = Vec::new();
    for Member { image, manifest } in members {
        for layer in 0..image.layers.len() {
            copy_layer(image, layer, output.blobs())?;
        }
        output.add(&image.config_bytes)?;
        output.add(manifest)?;
        entries.push(entry(OCI_MANIFEST, manifest, Some(Platform::parse(&image.platform))));
    }
    let index = index_of(&entries);
    output.add(&index)?;
    output.publish_as(format, entry(OCI_INDEX, &index, None), tag, None)?;
    Ok(Digest::of(&index))
}

fn copy_layer(image: &Image, layer: usize, blobs: &Path) -> Result<(), EmitError> {
    let Some((want, size)) = image.layers[layer].blob else { return Err(EmitError::OtherTree) };
    if crate::sys::signals::interrupted() {
        return Err(EmitError::Interrupted);
    }
    if blobs.join(want.hex()).exists() {
        return Ok(());
    }
    let unread = |source| LayerError::Read { layer, blob: want.to_string(), source };
    let mut from = image.blobs.open(layer).map_err(unread)?.take(size + 1);
    let (got, _) =
        blob::copy(&mut from, Some(want), blobs).map_err(|e| EmitError::write(blobs, e))?;
    if got == want { Ok(()) } else { Err(LayerError::BlobDigest { layer, want, got }.into()) }
}
