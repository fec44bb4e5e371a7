//! Writes results: the slim image, seccomp files.
//!
//! The image is the original's layers filtered through a keep-set, never a copy made of a file
//! system, so that owners, modes, times, attributes and link groups survive.

use std::fs::File;
use std::path::{Path, PathBuf};

use crate::model::{Digest, KeepSet, RootPath, Tree};
use crate::oci::layer::LayerError;
use crate::oci::{Image, KnownPlaces};

mod blob;
mod config;
mod contents;
mod dockerfile;
mod edits;
mod entry;
mod index;
mod layers;
mod output;
mod pack;
mod packed;
mod plan;
mod progress;
mod unfinished;

pub use blob::Written;
pub use dockerfile::{Recipe, recipe_in, write_recipe};
pub use edits::{Edits, Removals};
pub use index::{Member, write_index};
pub use pack::{Compression, Packing};
pub use packed::PackedLayers;
pub use plan::{Base, Shared};
pub use unfinished::{part, sweep, unfinished};

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
    /// A disk is failing: exit 4.
    #[error(
        "the copy of {path} in layer {layer} that was made a moment ago cannot be read: is its disk failing? start again with another store or TMPDIR"
    )]
    Unread { layer: usize, path: RootPath, source: std::io::Error },
    /// The store was tampered with, or its disk is failing: exit 4.
    #[error(
        "the unpacked copy of {path} in layer {layer} hashes to {got}, the layer has {want}: somebody changed the store; remove it with `slim store gc` and start again"
    )]
    Copy { layer: usize, path: RootPath, want: Digest, got: Digest },
    /// A disk is failing: exit 4.
    #[error(
        "the temporary copy of {path} in layer {layer} hashes to {got}, the layer has {want}: is the disk failing? start again with another TMPDIR"
    )]
    Temporary { layer: usize, path: RootPath, want: Digest, got: Digest },
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
    /// Lowest first.
    pub layers: Vec<Written>,
}

/// Opens the file that the entries of a layer (0 is the lowest) made at a path, where layers are unpacked.
pub type Unpacked<'a> = dyn Fn(usize, &RootPath) -> std::io::Result<File> + 'a;

/// Where parts of a result can be had for less than by reading the layers; what they lack comes from there.
#[derive(Clone, Copy, Default)]
pub struct Places<'a> {
    /// Contents.
    pub unpacked: Option<&'a Unpacked<'a>>,
    /// Contents whose places are known.
    pub known: Option<&'a dyn KnownPlaces>,
    /// Whole layers of an earlier result.
    pub packed: Option<&'a dyn PackedLayers>,
}

/// Which image is to be written, and how.
#[derive(Clone, Copy)]
pub struct Order<'a> {
    pub image: &'a Image,
    pub places: Places<'a>,
    /// The image's, and of no other.
    pub tree: &'a Tree,
    pub keep: &'a KeepSet,
    /// Layers that are decided already.
    pub base: Option<&'a Base>,
    /// Full references (`repo:tag`), at least one; the first one names the image where only one can.
    pub tags: &'a [String],
    pub format: ImageFormat,
    pub packing: Packing,
    pub edits: &'a Edits,
    /// Hears how many bytes of the layers are written, and of how many.
    pub progress: &'a dyn Fn(u64, u64),
}

impl<'a> Order<'a> {
    /// A folder, gzip, from the layers alone, nobody who hears how far it is.
    pub fn new(
        image: &'a Image,
        tree: &'a Tree,
        keep: &'a KeepSet,
        tags: &'a [String],
        edits: &'a Edits,
    ) -> Self {
        let (places, base, progress) = (Places::default(), None, &|_, _| ());
        let (format, packing) = (ImageFormat::Layout, Packing::default());
        Self { image, places, tree, keep, base, tags, format, packing, edits, progress }
    }
}

/// Filters the layers of an image and writes the result at `target` (a file for `Archive`, a folder
/// for `Layout`).
///
/// The result appears whole or not at all, and is the same, byte for byte, for equal layers, equal
/// kept paths and equal wishes. A layer of which nothing is lost is in it byte for byte.
pub fn write(order: &Order<'_>, target: &Path) -> Result<Emitted, EmitError> {
    let Order { image, tree, keep, .. } = *order;
    if tree.layers != image.diff_ids() {
        return Err(EmitError::OtherTree);
    }
    let mut output = output::Output::start(target)?;
    let plan = plan::Plan::new(tree, keep, order.base);
    let layers =
        layers::write(image, order.places, &plan, &order.packing, output.blobs(), order.progress)?;
    let config = config::edit(&image.config_bytes, &layers, &plan, order.edits)?;
    let config_digest = Digest::of(&config);
    let manifest = config::manifest(image, keep, &config, &layers);
    let manifest_digest = Digest::of(&manifest);
    output.add(&config)?;
    output.add(&manifest)?;
    output.publish(order.format, image, order.tags, &manifest, &layers)?;
    Ok(Emitted { manifest_digest, config_digest, generated: Vec::new(), layers })
}

/// Writes layers alone, for several images that have them in common, into the folder `blobs`.
///
/// The order's base is what is written already of the lowest of them, its image ends with the last one
/// that is shared, its tree is the tree of just those layers; its tags, format and edits say nothing.
pub fn write_shared(order: &Order<'_>, blobs: &Path) -> Result<Base, EmitError> {
    let Order { image, tree, keep, .. } = *order;
    if tree.layers != image.diff_ids() {
        return Err(EmitError::OtherTree);
    }
    std::fs::create_dir_all(blobs).map_err(|e| EmitError::write(blobs, e))?;
    let plan = plan::Plan::new(tree, keep, order.base);
    let layers = layers::write(image, order.places, &plan, &order.packing, blobs, order.progress)?;
    let shared = Shared { output_of: plan.output_of.clone(), layers, blobs: blobs.to_owned() };
    let names = plan::names(tree, keep);
    Ok(Base { layers: image.layers.len(), names, written: Some(shared) })
}

/// [`write`] with one tag, gzip, and nothing else that one could wish.
pub fn write_image(
    image: &Image,
    tree: &Tree,
    keep: &KeepSet,
    tag: &str,
    format: ImageFormat,
    target: &Path,
) -> Result<Emitted, EmitError> {
    let (tags, edits) = ([tag.to_owned()], Edits::default());
    write(&Order { format, ..Order::new(image, tree, keep, &tags, &edits) }, target)
}
