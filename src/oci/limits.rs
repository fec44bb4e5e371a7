//! How much an image may be before slim refuses it: a few kilobytes can unpack to anything.

/// Bounds on a whole image; absolute, since honest images of zeros compress without bounds too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of all layers uncompressed, and apart from that of all files (holes count).
    pub bytes: u64,
    /// Entries of all layers, and apart from that paths of the tree.
    pub entries: u64,
}

impl Default for Limits {
    /// Ten times the largest images that are known to be in use.
    fn default() -> Self {
        Self { bytes: 200 << 30, entries: 5_000_000 }
    }
}

/// Layers that an image may have. An overlay takes 500 (`OVL_MAX_STACK`, fs/overlayfs/params.c), Docker
/// and Podman some 125; equal ones count once there.
pub const MAX_LAYERS: usize = 1000;

/// What was used up, of the layers so far.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Spent {
    bytes: u64,
    entries: u64,
}

impl Limits {
    /// Why `bytes` of content are too many.
    pub(super) fn too_large(self, bytes: u64) -> Option<String> {
        (bytes > self.bytes).then(|| {
            format!(
                "the image unpacks to more than {} bytes: if it is no decompression bomb, allow more \
                 with --max-image-bytes",
                self.bytes
            )
        })
    }

    /// Why `entries` are too many.
    pub(super) fn too_many(self, entries: u64) -> Option<String> {
        (entries > self.entries).then(|| {
            format!(
                "the image has more than {} entries: if it is no bomb, allow more with --max-entries",
                self.entries
            )
        })
    }
}

impl Spent {
    /// Adds an entry with `bytes` of content; says why that is too much.
    pub(super) fn add(&mut self, bytes: u64, limits: Limits) -> Option<String> {
        self.entries += 1;
        self.bytes = self.bytes.saturating_add(bytes);
        limits.too_large(self.bytes).or_else(|| limits.too_many(self.entries))
    }
}
