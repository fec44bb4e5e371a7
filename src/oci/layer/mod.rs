//! Layers: a tar's entries as typed values, checked names, verified bytes.
//!
//! Says what a layer says; what that does to the layers below is `oci::apply`'s business.

use serde::{Deserialize, Serialize};

use crate::model::{DiffId, Digest, Facts, RootPath, Xattrs};

mod compression;
mod name;
mod reader;
mod stream;

pub use compression::Compression;
pub use reader::TarReader;
pub use stream::{LayerStream, open, open_again, sniff};

/// Why a layer could not be read. All of them mean that the image is bad (exit 3).
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    #[error(
        "layer {layer}: the blob {blob} cannot be read; is the image complete? copy it again from where it came from"
    )]
    Read { layer: usize, blob: String, source: std::io::Error },
    #[error(
        "layer {layer}: blob {want} hashes to {got}: the image is damaged; copy it again from where it came from"
    )]
    BlobDigest { layer: usize, want: Digest, got: Digest },
    #[error(
        "layer {layer}: blob {blob} has {got} bytes, its manifest says {want}: the image is damaged; copy it again from where it came from"
    )]
    BlobSize { layer: usize, blob: Digest, want: u64, got: u64 },
    #[error(
        "layer {layer}: its uncompressed bytes hash to {got}, the configuration's diffID is {want}: the image is damaged; copy it again from where it came from"
    )]
    DiffId { layer: usize, want: DiffId, got: DiffId },
    #[error(
        "layer {layer}: the content of {entry} hashes to {got} now, to {want} when it was read first: the image is being changed; copy it and start again"
    )]
    Changed { layer: usize, entry: String, want: Digest, got: Digest },
    #[error(
        "layer {layer} ({diff_id}), after entry {after:?}: {why}: the layer is no sound tar; build or copy the image again"
    )]
    Tar { layer: usize, diff_id: DiffId, after: String, why: String },
    #[error(
        "layer {layer} ({diff_id}), entry {entry:?}: {why}; slim unpacks no such image, build it without this entry"
    )]
    Entry { layer: usize, diff_id: DiffId, entry: String, why: String },
    #[error("layer {layer}: {why}")]
    Limit { layer: usize, why: String },
}

/// One entry of a layer, its name relative to the root and not yet resolved through symlinks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub path: RootPath,
    pub kind: EntryKind,
    /// Nothing for whiteouts and opaque marks.
    #[serde(default, skip_serializing_if = "Meta::is_nothing")]
    pub meta: Meta,
}

/// Who owns a file, and the like.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// Permission bits with setuid, setgid and sticky: `07777`.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Seconds and nanoseconds.
    pub mtime: (i64, u32),
    #[serde(default, skip_serializing_if = "Xattrs::is_empty")]
    pub xattrs: Xattrs,
}

impl Meta {
    fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}

/// What an entry adds or removes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EntryKind {
    /// The bytes follow in the stream; digest and facts are filled in by whoever reads them.
    File {
        size: u64,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        content: Option<Digest>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        facts: Option<Box<Facts>>,
    },
    Dir,
    Symlink {
        #[serde(with = "crate::model::escaped")]
        target: Vec<u8>,
    },
    HardLink {
        target: RootPath,
    },
    Fifo,
    Char {
        major: u64,
        minor: u64,
    },
    Block {
        major: u64,
        minor: u64,
    },
    /// `.wh.NAME`: the path of this entry, NAME resolved, is gone from the layers below.
    Whiteout,
    /// `.wh..wh..opq`: everything the layers below have in the directory `path` is gone.
    Opaque,
}
