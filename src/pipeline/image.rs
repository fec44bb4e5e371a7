//! What trace, build and verify share: which image a profile is about, and the image that was made.

use std::path::Path;

use crate::model::profile::{Extra, ImageIdentity};
use crate::model::{KeepSet, Profile};
use crate::oci::Image;
use crate::source;

use super::PipelineError;

/// Which image a profile of `image` is about.
pub(super) fn identity(image: &Image) -> ImageIdentity {
    ImageIdentity {
        config_digest: image.config_digest,
        chain_id: image.chain_id(),
        platform: image.platform.clone(),
        names: image.name.clone().into_iter().collect(),
        manifest_digests: [image.manifest_digest].into(),
        extra: Extra::new(),
    }
}

/// Refuses a profile of another image.
pub(super) fn same_image(image: &Image, profile: &Profile) -> Result<(), PipelineError> {
    let (want, got) = (profile.image.chain_id, image.chain_id());
    if want == got && profile.image.config_digest == image.config_digest {
        return Ok(());
    }
    Err(PipelineError::Usage(format!(
        "the profile is of another image (chain {want}, configuration {}) than this one (chain \
         {got}, configuration {}): give the image that was traced, or trace this one",
        profile.image.config_digest, image.config_digest
    )))
}

/// Opens an image that slim wrote itself.
pub(super) fn open_file(path: &Path) -> Result<Image, PipelineError> {
    let reference = path.to_str().ok_or_else(|| {
        PipelineError::Usage(format!("{} is not UTF-8: choose another folder", path.display()))
    })?;
    let access = source::Access { ours: true, ..source::Access::default() };
    Ok(source::open(reference, &access)?)
}

/// Why each path stays, for whoever asks with RUST_LOG=slim=debug.
pub(super) fn log_reasons(keep: &KeepSet) {
    if !tracing::enabled!(tracing::Level::DEBUG) {
        return;
    }
    for (path, reasons) in &keep.paths {
        tracing::debug!(%path, ?reasons, "kept");
    }
}
