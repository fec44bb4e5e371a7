//! Unpacks layers once into a content-addressed store, indexes them into a `Tree`.
//!
//! A layer's folder holds it as a lower directory of overlayfs; how layers add up is `oci::apply`'s
//! business, what runs on them `runtime`'s.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};

use crate::model::{RootPath, Tree};
use crate::oci::Image;
use crate::oci::apply::Stack;
use crate::oci::layer::LayerError;

use ahead::Turn;

mod ahead;
mod aside;
mod changes;
mod confine;
mod content;
mod elsewhere;
mod housekeeping;
mod limits;
mod lines;
mod packed;
mod shelf;
mod store;
mod writer;

pub use aside::{Aside, Room, Wish};
pub use confine::probe;
pub use housekeeping::{Cleaned, StoredLayer};
pub use shelf::Shelf;
pub use store::{RunDir, Store};

/// Why layers could not be unpacked or indexed.
#[derive(Debug, thiserror::Error)]
pub enum RootfsError {
    /// The image is bad: exit 3.
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// The disk is full: exit 4.
    #[error("no space left for {}: free some, run `slim store gc`, or choose another place with --store", path.display())]
    Full { path: PathBuf },
    /// The host forbids or lacks something: exit 4.
    #[error("{what}: {why}; {way_out}")]
    Host { what: String, why: String, way_out: String },
    /// SIGINT or SIGTERM came.
    #[error("interrupted; everything was stopped and nothing was written")]
    Interrupted,
    /// A file of the store cannot be read or written: exit 4.
    #[error("cannot {what} {}", path.display())]
    Io { what: &'static str, path: PathBuf, source: std::io::Error },
}

impl RootfsError {
    /// True if the image is to blame (exit 3), false if the host is (exit 4).
    pub fn is_bad_image(&self) -> bool {
        matches!(self, Self::Layer(_))
    }

    /// An error of a system call on `path`, told apart by what the user can do about it.
    pub(crate) fn io(what: &'static str, path: &Path, source: impl Into<std::io::Error>) -> Self {
        let source = source.into();
        match source.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                Self::Full { path: path.to_owned() }
            }
            std::io::ErrorKind::PermissionDenied => Self::Host {
                what: format!("cannot {what} {}", path.display()),
                why: source.to_string(),
                way_out: "run slim as root, or choose a folder you own with --store".into(),
            },
            _ => Self::Io { what, path: path.to_owned(), source },
        }
    }
}

/// An image, unpacked.
pub struct Rootfs {
    /// Folders with the unpacked layers, lowest first; a layer that occurs twice is here once.
    pub lowers: Vec<PathBuf>,
    pub folders: Folders,
    pub tree: Tree,
}

/// The folder of each layer of an image, lowest first.
#[derive(Debug, Clone)]
pub struct Folders(Vec<PathBuf>);

impl Folders {
    /// Opens the regular file that the entries of layer `layer` made at `path`.
    ///
    /// # Errors
    /// Where there is none, or one only through a symlink.
    pub fn open(&self, layer: usize, path: &RootPath) -> std::io::Result<File> {
        let folder = self.0.get(layer).ok_or(std::io::ErrorKind::NotFound)?;
        let file = File::from(writer::open_in(folder, path)?);
        match file.metadata()?.is_file() {
            true => Ok(file),
            false => Err(std::io::ErrorKind::InvalidInput.into()),
        }
    }
}

/// What the upper directory says happened to a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    Created,
    Changed,
    Removed,
}

/// Indexes an image without unpacking it.
pub fn index(image: &Image) -> Result<Tree, RootfsError> {
    Ok(index_at(image, &BTreeSet::new(), None)?.0)
}

/// The same, with the places of contents.
pub fn index_aside(image: &Image, wish: Wish<'_>) -> Result<(Tree, Aside), RootfsError> {
    let (tree, _, aside) = index_at(image, &BTreeSet::new(), Some(wish))?;
    Ok((tree, aside))
}

/// The same, with the tree as it is after as many layers as each of `cuts` says.
pub fn index_at(
    image: &Image,
    cuts: &BTreeSet<usize>,
    wish: Option<Wish<'_>>,
) -> Result<(Tree, BTreeMap<usize, Tree>, Aside), RootfsError> {
    let mut stack = Stack::limited(image.blobs.limits());
    let mut trees = BTreeMap::new();
    let aside = ahead::read(image, wish, |turn| {
        match turn {
            Turn::Begin(at) => stack.begin_layer(image.layers[at].diff_id),
            Turn::Entry(entry) => drop(stack.apply(entry)?),
            Turn::End(at) if cuts.contains(&(at + 1)) => {
                trees.insert(at + 1, stack.tree().clone());
            }
            Turn::End(_) => {}
        }
        Ok(())
    })?;
    Ok((stack.into_tree(), trees, aside))
}

/// What an upper directory holds beyond `tree`: created, changed and removed paths.
pub fn changes(upper: &Path, tree: &Tree) -> Result<Vec<(RootPath, Change)>, RootfsError> {
    changes::read(upper, tree)
}
