//! Unpacks layers once into a content-addressed store, indexes them into a `Tree`, mounts overlays.

use std::path::{Path, PathBuf};

use crate::model::{RootPath, Tree};
use crate::oci::Image;

/// Why layers could not be unpacked, indexed or mounted.
#[derive(Debug, thiserror::Error)]
pub enum RootfsError {
    #[error("not written yet")]
    Stub,
}

/// The folder with unpacked layers and the scratch space of runs.
pub struct Store;

/// An image, unpacked.
pub struct Rootfs {
    /// Folders with the unpacked layers, lowest first.
    pub lowers: Vec<PathBuf>,
    pub tree: Tree,
}

/// The scratch folder of a live run; removed on drop. Locked, so that `clean` leaves it alone.
pub struct RunDir {
    pub id: String,
    pub path: PathBuf,
}

/// What the upper directory says happened to a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    Created,
    Changed,
    Removed,
}

impl Store {
    /// Opens or creates the store at `path` (default `/var/lib/slim`). Where it lies on overlayfs, a
    /// tmpfs or loop image takes its place and a warning says so.
    pub fn open(_path: Option<&Path>) -> Result<Self, RootfsError> {
        Err(RootfsError::Stub)
    }

    /// Unpacks the layers that are not there yet and indexes the whole.
    /// `progress` gets (bytes done, bytes in all).
    pub fn unpack(
        &self,
        _image: &Image,
        _progress: &dyn Fn(u64, u64),
    ) -> Result<Rootfs, RootfsError> {
        Err(RootfsError::Stub)
    }

    /// Scratch space for one run.
    pub fn new_run(&self) -> Result<RunDir, RootfsError> {
        Err(RootfsError::Stub)
    }
}

/// Indexes an image without unpacking it.
pub fn index(_image: &Image) -> Result<Tree, RootfsError> {
    Err(RootfsError::Stub)
}

/// Mounts `lowers` (lowest first) with `upper` and `work` at `target`; any number of layers.
pub fn mount_overlay(
    _lowers: &[PathBuf],
    _upper: &Path,
    _work: &Path,
    _target: &Path,
) -> Result<(), RootfsError> {
    Err(RootfsError::Stub)
}

/// What an upper directory holds beyond `tree`: created, changed and removed paths.
pub fn changes(_upper: &Path, _tree: &Tree) -> Result<Vec<(RootPath, Change)>, RootfsError> {
    Err(RootfsError::Stub)
}
