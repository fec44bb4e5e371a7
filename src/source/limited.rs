//! An image whose layers are read up to other limits than the usual ones.

use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::Arc;

use crate::oci::limits::Limits;
use crate::oci::{BlobSource, Image};

struct Limited {
    inner: Arc<dyn BlobSource>,
    limits: Limits,
}

impl BlobSource for Limited {
    fn open(&self, index: usize) -> io::Result<Box<dyn Read + Send>> {
        self.inner.open(index)
    }

    fn file(&self, index: usize) -> Option<(Arc<File>, u64)> {
        self.inner.file(index)
    }

    fn limits(&self) -> Limits {
        self.limits
    }

    fn size(&self, index: usize) -> Option<u64> {
        self.inner.size(index)
    }

    fn unpacked(&self, index: usize) -> Option<PathBuf> {
        self.inner.unpacked(index)
    }
}

/// The same image, read up to `limits`.
pub(super) fn limited(image: Image, limits: Limits) -> Image {
    if image.blobs.limits() == limits {
        return image;
    }
    let blobs = Arc::new(Limited { inner: Arc::clone(&image.blobs), limits });
    Image { blobs, ..image }
}
