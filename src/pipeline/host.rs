//! `slim inspect`, `slim clean`, `slim store`: looking and tidying, nothing is run.

use std::path::Path;

use serde_json::{Value, json};

use crate::model::Totals;
use crate::oci::Image;
use crate::rootfs::{self, Store, StoredLayer};
use crate::runtime;
use crate::source::{self, Access};

use super::PipelineError;

/// An image and what its root file system adds up to.
pub struct Inspected {
    pub image: Image,
    /// Paths that are not directories.
    pub files: u64,
    /// Bytes of regular files, each inode once.
    pub bytes: u64,
}

impl Inspected {
    /// The same for programs.
    pub fn to_json(&self) -> Value {
        let image = &self.image;
        let layer = |layer: &crate::oci::Layer| {
            json!({
                "diff_id": layer.diff_id, "media_type": layer.media_type,
                "digest": layer.blob.map(|b| b.0), "size": layer.blob.map(|b| b.1),
            })
        };
        json!({
            "schema": "slim.inspect/v1", "name": image.name, "platform": image.platform,
            "manifest_digest": image.manifest_digest, "config_digest": image.config_digest,
            "chain_id": image.chain_id(), "files": self.files, "bytes": self.bytes,
            "layers": image.layers.iter().map(layer).collect::<Vec<_>>(), "config": image.config.0,
        })
    }
}

/// Opens and reads an image; every layer is checked on the way.
///
/// # Errors
/// Whatever is wrong with the image.
pub fn inspect(image: &str, access: &Access) -> Result<Inspected, PipelineError> {
    let image = source::open(image, access)?;
    let Totals { files, bytes } = rootfs::index(&image)?.totals();
    Ok(Inspected { image, files, bytes })
}

/// Removes what dead runs left; returns what was removed.
///
/// # Errors
/// If the store cannot be read.
pub fn clean(store: Option<&Path>) -> Result<Vec<String>, PipelineError> {
    let cleaned = Store::open(store)?.clean()?;
    let paths = cleaned.runs.into_iter().chain(cleaned.layers);
    let mut removed: Vec<String> = paths.map(|path| path.display().to_string()).collect();
    removed.extend(runtime::clean_leftovers()?);
    Ok(removed)
}

/// The layers of the store.
///
/// # Errors
/// If the store cannot be read.
pub fn store_list(store: Option<&Path>) -> Result<Vec<StoredLayer>, PipelineError> {
    Ok(Store::open(store)?.ls()?)
}

/// Removes every layer that no live run uses; returns what was removed.
///
/// # Errors
/// If the store cannot be read.
pub fn store_gc(store: Option<&Path>) -> Result<Vec<String>, PipelineError> {
    let removed = Store::open(store)?.gc()?;
    let paths = removed.runs.into_iter().chain(removed.layers);
    Ok(paths.map(|path| path.display().to_string()).collect())
}
