//! Image formats: descriptor, manifest, index, config, layer, whiteout, layout.
//!
//! Parsing works on bytes in memory; where the bytes come from is `source`'s business, where files
//! go is `rootfs`'s.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;

use crate::model::{ChainId, DiffId, Digest, ImageConfig};

pub mod apply;
pub mod layer;
pub mod limits;
pub mod manifest;
pub mod tarsplit;

/// An image that was found and whose manifest and configuration were checked.
#[derive(Clone)]
pub struct Image {
    /// `repository:tag` as the source names it, if it does.
    pub name: Option<String>,
    /// `os/architecture[/variant]`.
    pub platform: String,
    /// Digest of the manifest in the source; for a docker-archive of the OCI manifest that stands
    /// for it.
    pub manifest_digest: Digest,
    /// Of the manifest; none where the source keeps no manifest.
    pub annotations: BTreeMap<String, String>,
    pub config_digest: Digest,
    pub config: ImageConfig,
    /// The configuration, byte for byte.
    pub config_bytes: Arc<[u8]>,
    /// Lowest first.
    pub layers: Vec<Layer>,
    /// Opens blobs (still compressed) by layer.
    pub blobs: Arc<dyn BlobSource>,
}

/// A layer as the manifest names it.
#[derive(Debug, Clone)]
pub struct Layer {
    pub media_type: String,
    /// Digest and size in bytes of the blob as stored; `None` where the source does not say
    /// (docker-archive).
    pub blob: Option<(Digest, u64)>,
    pub diff_id: DiffId,
    /// What the manifest says of the blob, and where else it can be had.
    pub annotations: BTreeMap<String, String>,
    pub urls: Vec<String>,
}

impl Layer {
    /// A layer of which nothing else is known.
    pub fn new(media_type: String, blob: Option<(Digest, u64)>, diff_id: DiffId) -> Self {
        Self { media_type, blob, diff_id, annotations: BTreeMap::new(), urls: Vec::new() }
    }

    /// Adds what its descriptor says beside that.
    pub fn described(self, descriptor: &manifest::Descriptor) -> Self {
        let manifest::Descriptor { annotations, urls, .. } = descriptor.clone();
        Self { annotations, urls, ..self }
    }
}

/// Where the bytes of layers come from.
pub trait BlobSource: Send + Sync {
    /// The stored bytes of layer `index`, lowest 0.
    fn open(&self, index: usize) -> std::io::Result<Box<dyn Read + Send>>;

    /// The file in which the stored bytes of layer `index` lie in one piece, and where they begin, if they
    /// do and it costs nothing to say.
    fn file(&self, _index: usize) -> Option<(Arc<File>, u64)> {
        None
    }

    /// How much the whole image may be.
    fn limits(&self) -> limits::Limits {
        limits::Limits::default()
    }

    /// Stored size of layer `index` in bytes, where known without reading it.
    fn size(&self, _index: usize) -> Option<u64> {
        None
    }

    /// A folder of somebody else's that holds layer `index` as a lower directory of overlayfs, to be
    /// read only. It can vanish at any time; what [`BlobSource::open`] gives then fails.
    fn unpacked(&self, _index: usize) -> Option<PathBuf> {
        None
    }
}

/// Contents whose places were learnt while the layers were indexed.
pub trait KnownPlaces {
    /// Where the content of an inode ([`crate::model::Node::inode`]) lies.
    fn find(&self, inode: u64) -> Option<Place<'_>>;
}

/// Where a content lies.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    pub file: &'a File,
    /// Where in it the content begins, in bytes.
    pub at: u64,
    /// True for a file of slim's own, not the archive that holds the layer.
    pub copy: bool,
}

impl Image {
    /// The identity of the layer stack.
    pub fn chain_id(&self) -> ChainId {
        ChainId::of(&self.diff_ids())
    }

    /// Lowest first.
    pub fn diff_ids(&self) -> Vec<DiffId> {
        self.layers.iter().map(|layer| layer.diff_id).collect()
    }

    /// Stored bytes of all layers together, as far as known.
    pub fn stored_bytes(&self) -> u64 {
        (0..self.layers.len()).map(|at| self.stored_size(at)).sum()
    }

    /// Stored bytes of layer `index`; 0 where nobody says.
    pub fn stored_size(&self, index: usize) -> u64 {
        let said = self.layers[index].blob.map(|(_, size)| size);
        self.blobs.size(index).or(said).unwrap_or(0)
    }
}
