//! What an image on disk is made of: blobs and manifests, as they go up.

use std::collections::BTreeSet;
use std::io::Read as _;

use serde_json::Value;

use crate::model::Digest;
use crate::oci::manifest::{Descriptor, Index, Manifest, distributable, is_index, is_manifest};
use crate::wire::{Reference, WireError};

use super::{Image, SinkError};

/// More than any manifest or index, bytes.
const MAX_JSON: u64 = 16 << 20;
/// Indexes may nest; so deep none does in earnest.
const MAX_DEPTH: usize = 8;

/// All that an image is made of.
pub(super) struct Parts {
    pub blobs: BTreeSet<(Digest, u64)>,
    /// What refers to others comes after them: the image itself is the last.
    pub manifests: Vec<Part>,
    drop_urls: bool,
}

/// A manifest or index, as it goes up.
pub(super) struct Part {
    pub digest: Digest,
    pub media_type: String,
    pub bytes: Vec<u8>,
    /// A layer that is said to be elsewhere, too, and where.
    foreign: Option<(String, String)>,
}

impl Part {
    pub fn descriptor(&self) -> Descriptor {
        Descriptor {
            media_type: self.media_type.clone(),
            digest: self.digest.to_string(),
            size: self.bytes.len() as u64,
            ..Descriptor::default()
        }
    }

    /// Why the registry does not take it: Docker's knows the blob, and calls it unknown if it does not
    /// like the addresses.
    pub fn refused(&self, name: &Reference, source: WireError) -> SinkError {
        match (&self.foreign, &source) {
            (Some((layer, urls)), WireError::Status { .. } | WireError::NotFound { .. }) => {
                let (name, layer, urls) = (name.to_string(), layer.clone(), urls.clone());
                SinkError::Foreign { name, layer, urls, source: Box::new(source) }
            }
            _ => SinkError::wire(name, source),
        }
    }
}

impl Parts {
    pub fn of(image: Image<'_>, drop_urls: bool) -> Result<Self, SinkError> {
        let (blobs, manifests) = (BTreeSet::new(), Vec::new());
        let mut parts = Self { blobs, manifests, drop_urls };
        parts.collect(image, image.top, 0)?;
        Ok(parts)
    }

    /// The image itself.
    pub fn top(&self) -> &Part {
        self.manifests.last().expect("the image itself is among them")
    }

    /// Adds what is described and all below it; what it is in the registry then.
    fn collect(
        &mut self,
        image: Image<'_>,
        descriptor: &Descriptor,
        depth: usize,
    ) -> Result<Descriptor, SinkError> {
        let media_type = descriptor.media_type.clone();
        let digest = super::digest("a manifest", descriptor)?;
        let bytes = read(image, &digest)?;
        let json = |source| SinkError::Json { what: format!("the manifest {digest}"), source };
        let mut value: Value = serde_json::from_slice(&bytes).map_err(json)?;
        let before = value.clone();
        let mut foreign = None;
        if is_manifest(&media_type) {
            if self.drop_urls {
                make_ordinary(&mut value);
            }
            let manifest: Manifest = serde_json::from_slice(&bytes).map_err(json)?;
            self.blob(&manifest.config)?;
            for layer in &manifest.layers {
                let (name, urls) = (layer.digest.clone(), layer.urls.join(", "));
                let here = urls.is_empty() || has(image, layer)?;
                if here {
                    self.blob(layer)?;
                } else if self.drop_urls {
                    return Err(SinkError::Elsewhere { layer: name, urls });
                }
                if !urls.is_empty() && !self.drop_urls {
                    foreign = foreign.or(Some((name, urls)));
                }
            }
        } else if is_index(&media_type) && depth < MAX_DEPTH {
            let index: Index = serde_json::from_slice(&bytes).map_err(json)?;
            for (at, below) in index.manifests.iter().enumerate() {
                let there = self.collect(image, below, depth + 1)?;
                if there.digest != below.digest {
                    let entry = &mut value["manifests"][at];
                    entry["digest"] = there.digest.into();
                    entry["size"] = there.size.into();
                }
            }
        } else {
            let what = format!("the manifest {digest}");
            return Err(SinkError::MediaType { what, found: media_type });
        }
        // Byte for byte what it was, unless it says something else.
        let bytes = if value == before { bytes } else { value.to_string().into_bytes() };
        let digest = if value == before { digest } else { Digest::of(&bytes) };
        let part = Part { digest, media_type, bytes, foreign };
        let there = part.descriptor();
        self.manifests.push(part);
        Ok(there)
    }

    fn blob(&mut self, blob: &Descriptor) -> Result<(), SinkError> {
        self.blobs.insert((super::digest("a layer", blob)?, blob.size));
        Ok(())
    }
}

/// Layers that are in the registry and nowhere else.
fn make_ordinary(manifest: &mut Value) {
    for layer in manifest["layers"].as_array_mut().into_iter().flatten() {
        let Some(layer) = layer.as_object_mut() else { continue };
        layer.remove("urls");
        if let Some(Value::String(kind)) = layer.get_mut("mediaType") {
            *kind = distributable(kind);
        }
    }
}

fn has(image: Image<'_>, layer: &Descriptor) -> Result<bool, SinkError> {
    Ok(image.content.open(&super::digest("a layer", layer)?, 0).is_ok())
}

fn read(image: Image<'_>, digest: &Digest) -> Result<Vec<u8>, SinkError> {
    let mut bytes = Vec::new();
    let read =
        image.content.open(digest, 0).and_then(|from| from.take(MAX_JSON).read_to_end(&mut bytes));
    read.map_err(|source| SinkError::Read { what: format!("the manifest {digest}"), source })?;
    Ok(bytes)
}
