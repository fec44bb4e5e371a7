//! How a layer is stored.

use crate::oci::manifest::{OCI_LAYER, OCI_LAYER_GZIP, OCI_LAYER_ZSTD};

/// How a layer is compressed, if it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Compression {
    Gzip,
    Zstd,
    None,
}

impl Compression {
    /// Media type of a layer that is stored so (image-spec v1.1, layer.md).
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Gzip => OCI_LAYER_GZIP,
            Self::Zstd => OCI_LAYER_ZSTD,
            Self::None => OCI_LAYER,
        }
    }

    /// The levels there are; none without compression.
    pub fn levels(self) -> Option<std::ops::RangeInclusive<u32>> {
        match self {
            Self::Gzip => Some(0..=9),
            Self::Zstd => Some(1..=22),
            Self::None => None,
        }
    }

    /// What a blob that starts with `head` is compressed with.
    pub fn of(head: &[u8]) -> Self {
        match head {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            // A skippable frame (RFC 8878, 3.1.2), as zstd:chunked and some compressors start with.
            [first, 0x2a, 0x4d, 0x18, ..] if first & 0xf0 == 0x50 => Self::Zstd,
            _ => Self::None,
        }
    }
}
