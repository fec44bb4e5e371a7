//! Finds an image: layout or archive on disk (daemons and registries come later).

use crate::oci::Image;

/// Why an image could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    #[error("not written yet")]
    Stub,
}

/// Opens `reference` (`oci:PATH[:TAG]`, `oci-archive:PATH[:TAG]`, `docker-archive:PATH[:REF]`, or a
/// bare path recognised by its content) and picks `platform` (default: the host's) from an index.
pub fn open(_reference: &str, _platform: Option<&str>) -> Result<Image, SourceError> {
    Err(SourceError::Stub)
}
