//! Writes results: the slim image, seccomp files.

use std::path::Path;

use crate::model::{Digest, KeepSet, Tree};
use crate::oci::Image;

/// Why a result could not be written.
#[derive(Debug, thiserror::Error)]
pub enum EmitError {
    #[error("not written yet")]
    Stub,
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
pub fn write_image(
    _image: &Image,
    _tree: &Tree,
    _keep: &KeepSet,
    _tag: &str,
    _format: ImageFormat,
    _target: &Path,
) -> Result<Emitted, EmitError> {
    Err(EmitError::Stub)
}
