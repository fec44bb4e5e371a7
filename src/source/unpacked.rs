//! Layers that an engine holds unpacked: their tar is put together again, their folder used in place.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::model::{Digest, ImageConfig};
use crate::oci::manifest::OCI_LAYER;
use crate::oci::{BlobSource, Image, Layer, tarsplit};

use super::SourceError;

/// An unpacked layer.
#[derive(Debug, Clone)]
pub(super) struct Place {
    /// Where what is left over of its tar is listed.
    pub list: PathBuf,
    /// Its files.
    pub folder: PathBuf,
    /// Bytes of its tar.
    pub size: u64,
    /// Whether the folder is a lower directory of overlayfs with owners as the image says.
    pub lower: bool,
}

/// Unpacked layers, lowest first.
pub(super) struct Places(pub Vec<Place>);

impl BlobSource for Places {
    fn open(&self, index: usize) -> io::Result<Box<dyn Read + Send>> {
        let place = self.0.get(index).ok_or_else(|| io::Error::other("no such layer"))?;
        Ok(Box::new(tarsplit::open(&place.list, &place.folder)?))
    }

    fn size(&self, index: usize) -> Option<u64> {
        self.0.get(index).map(|place| place.size)
    }

    fn unpacked(&self, index: usize) -> Option<PathBuf> {
        let place = self.0.get(index).filter(|place| place.lower)?;
        Some(place.folder.clone())
    }
}

/// True if slim may mount somebody else's layers: as the host's root, not as a user namespace's.
pub(super) fn may_use_in_place() -> bool {
    rustix::process::geteuid().is_root() && !crate::sys::userns::inside()
}

/// What an engine says of an image whose layers it holds unpacked.
pub(super) struct Parts {
    /// The image, as messages have it in the place of a path.
    pub place: PathBuf,
    pub name: Option<String>,
    pub config_bytes: Vec<u8>,
    /// `None` where the engine keeps no manifest.
    pub manifest_digest: Option<Digest>,
    pub annotations: BTreeMap<String, String>,
    pub layers: Vec<Place>,
}

/// An image of unpacked layers.
pub(super) fn image(parts: Parts, platform: &str) -> Result<Image, SourceError> {
    let config_digest = Digest::of(&parts.config_bytes);
    let config = serde_json::from_slice(&parts.config_bytes).map_err(|source| {
        let (path, what) = (parts.place.clone(), "configuration".to_owned());
        SourceError::Json { path, what, source }
    })?;
    let config = ImageConfig(config);
    super::docker::check_platform(&parts.place, &config, platform)?;
    let diff_ids = config.diff_ids();
    if diff_ids.len() != parts.layers.len() {
        let (layers, diff_ids) = (parts.layers.len(), diff_ids.len());
        return Err(SourceError::LayerCount { path: parts.place, layers, diff_ids });
    }
    let sizes: Vec<u64> = parts.layers.iter().map(|place| place.size).collect();
    let size = parts.config_bytes.len() as u64;
    let stand_in = || super::docker::stand_in(config_digest, size, &config, &sizes);
    let layer = |diff_id| Layer::new(OCI_LAYER.to_owned(), None, diff_id);
    Ok(Image {
        name: parts.name,
        platform: config.platform(),
        manifest_digest: parts.manifest_digest.unwrap_or_else(stand_in),
        annotations: parts.annotations,
        config_digest,
        config_bytes: parts.config_bytes.into(),
        layers: diff_ids.into_iter().map(layer).collect(),
        blobs: Arc::new(Places(parts.layers)),
        config,
    })
}

/// Reads a small file of an engine.
pub(super) fn read(path: &Path, what: &str) -> Result<Vec<u8>, SourceError> {
    std::fs::read(path).map_err(|source| SourceError::Read {
        path: path.to_owned(),
        what: what.to_owned(),
        source,
    })
}
