//! An image file as it lies on disk, to be handed on whole: what a push reads.

use std::collections::BTreeSet;
use std::io::{self, Read};
use std::path::Path;

use crate::model::Digest;
use crate::oci::Image;
use crate::oci::manifest::{CONTAINERD_NAME, Descriptor, DockerItem, Index, OCI_INDEX, REF_NAME};
use crate::wire::Content;

use super::container::{Container, blob_name};
use super::reference::{Kind, split_tag, split_transport};
use super::{SourceError, full_name};

/// More than any manifest, bytes.
const MAX_MANIFEST: u64 = 16 << 20;

/// A layout in a folder or a tar, and the image of it that is meant.
pub struct Stored {
    container: Container,
    /// Its manifest or index.
    pub top: Descriptor,
    /// `index.json`, where that itself is the index.
    whole: Option<Vec<u8>>,
}

/// Finds the image file `reference`: `oci:PATH[:TAG]`, `oci-archive:PATH[:TAG]` or a path.
///
/// # Errors
/// There is no OCI layout, or it holds several images and none of them is named.
pub fn stored(reference: &str) -> Result<Stored, SourceError> {
    let (kind, rest) = split_transport(reference)?;
    let (path, tag) = split_tag(rest)?;
    let container = Container::open(&path)?;
    if kind == Kind::DockerArchive || !container.has("index.json") {
        let why = "it has no index.json, and only an OCI layout or archive has a manifest to push";
        return Err(SourceError::NotAnImage { path, why: why.to_owned() });
    }
    let bytes = container.read("index.json")?;
    let index: Index = container.json("index.json", &bytes)?;
    if tag.is_none() && is_list_of_platforms(&index) {
        let top = Descriptor {
            media_type: OCI_INDEX.to_owned(),
            digest: Digest::of(&bytes).to_string(),
            size: bytes.len() as u64,
            ..Descriptor::default()
        };
        return Ok(Stored { container, top, whole: Some(bytes) });
    }
    let top = super::layout::only(&container, &index, tag)?.clone();
    Ok(Stored { container, top, whole: None })
}

/// True if the entries are one image for different platforms: then the list is what is meant.
fn is_list_of_platforms(index: &Index) -> bool {
    let platforms: BTreeSet<String> =
        index.manifests.iter().filter_map(|d| Some(d.platform.as_ref()?.to_string())).collect();
    index.manifests.len() > 1 && platforms.len() == index.manifests.len()
}

impl Stored {
    /// The manifest of `image`, which this file holds, byte for byte.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn manifest(&self, image: &Image) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.open(&image.manifest_digest, 0)?.take(MAX_MANIFEST).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// What the image file calls its images, the first name first.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        let listed = self.container.read("manifest.json").ok();
        let items: Vec<DockerItem> =
            listed.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
        let tags: Vec<String> =
            items.into_iter().filter_map(|item| item.repo_tags).flatten().collect();
        if !tags.is_empty() {
            return tags;
        }
        let annotations = &self.top.annotations;
        let own = [CONTAINERD_NAME, REF_NAME].into_iter().filter_map(|key| annotations.get(key));
        own.filter_map(|name| full_name(name)).take(1).collect()
    }
}

impl Content for Stored {
    fn open(&self, digest: &Digest, at: u64) -> io::Result<Box<dyn Read + Send>> {
        match &self.whole {
            Some(bytes) if self.top.digest == digest.to_string() => {
                let from = usize::try_from(at).unwrap_or(usize::MAX).min(bytes.len());
                Ok(Box::new(io::Cursor::new(bytes[from..].to_vec())))
            }
            _ => self.container.stream_from(&blob_name(digest), at),
        }
    }
}

/// The folder of results or the image file that `path` is.
pub fn image_file(path: &Path) -> String {
    let inside = ["image.tar", "image"].map(|name| path.join(name));
    let found =
        inside.into_iter().find(|inner| inner.exists() && !path.join("oci-layout").exists());
    found.unwrap_or_else(|| path.to_owned()).display().to_string()
}
