//! Writes results: the slim image, seccomp files.
//!
//! The image is the original's layers filtered through a keep-set, never a copy made of a file
//! system, so that owners, modes, times, attributes and link groups survive.

use std::path::{Path, PathBuf};

use crate::model::{Digest, KeepSet, Tree};
use crate::oci::Image;
use crate::oci::layer::LayerError;

mod blob;
mod config;
mod entry;
mod layers;
mod output;
mod plan;

/// Why a result could not be written.
#[derive(Debug, thiserror::Error)]
pub enum EmitError {
    /// The original cannot be read: exit 3.
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// The disk is full: exit 4.
    #[error("no space left for {}: free some, or choose another place with -o", path.display())]
    Full { path: PathBuf },
    /// SIGINT or SIGTERM came.
    #[error("interrupted; everything was stopped and nothing was written")]
    Interrupted,
    #[error("cannot write {}: choose a folder that can be written with -o", path.display())]
    Write { path: PathBuf, source: std::io::Error },
    #[error("the index was made of other layers than the image has; index it again")]
    OtherTree,
    #[error("the image's configuration is no JSON object: it is damaged, copy it again")]
    Config,
}

impl EmitError {
    /// True if the image is to blame (exit 3).
    pub fn is_bad_image(&self) -> bool {
        matches!(self, Self::Layer(_) | Self::Config)
    }

    pub(crate) fn write(path: &Path, source: std::io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                Self::Full { path }
            }
            _ => Self::Write { path, source },
        }
    }
}

/// The shape of the emitted image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageFormat {
    /// One tar that is an OCI layout and a docker-archive at once.
    Archive,
    /// A folder, an OCI layout.
    Layout,
}

/// What was emitted.
#[derive(Debug, Clone)]
pub struct Emitted {
    pub manifest_digest: Digest,
    pub config_digest: Digest,
    /// Paths in the image whose bytes are not the original's.
    pub generated: Vec<String>,
}

/// Filters the layers of `image` through `keep` and writes the result at `target` (a file for
/// `Archive`, a folder for `Layout`), under the full reference `tag` (`repo:tag`).
///
/// The result appears whole or not at all, and is the same, byte for byte, for equal layers, equal
/// kept paths and an equal tag.
pub fn write_image(
    image: &Image,
    tree: &Tree,
    keep: &KeepSet,
    tag: &str,
    format: ImageFormat,
    target: &Path,
) -> Result<Emitted, EmitError> {
    if tree.layers != image.diff_ids() {
        return Err(EmitError::OtherTree);
    }
    let mut output = output::Output::start(target)?;
    let plan = plan::Plan::new(tree, keep);
    let layers = layers::write(image, tree, &plan, output.blobs())?;
    let config = config::edit(&image.config_bytes, &layers, &plan)?;
    let config_digest = Digest::of(&config);
    let manifest = config::manifest(image, keep, &config, &layers);
    let manifest_digest = Digest::of(&manifest);
    output.add(&config)?;
    output.add(&manifest)?;
    output.publish(format, image, tag, &manifest, &layers)?;
    Ok(Emitted { manifest_digest, config_digest, generated: Vec::new() })
}
