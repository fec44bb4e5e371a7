//! Results beside an image in its registry: OCI 1.1 artifacts that refer to it.
//!
//! Image spec 1.1, "Guidelines for Artifact Usage": an empty configuration, the file as the only
//! layer, `artifactType` for what it is, `subject` for what it is about. Nothing in it depends on
//! time or place, so that the same result attached twice is one artifact.

use std::io::{self, Read};
use std::sync::Arc;

use serde_json::{Map, json};

use crate::model::Digest;
use crate::oci::manifest::{Descriptor, OCI_MANIFEST};
use crate::wire::{Content, Options, Reference, Referrer, Repository};

use super::SinkError;

/// The configuration of an artifact that has none, and its media type.
const EMPTY: &[u8] = b"{}";
const EMPTY_TYPE: &str = "application/vnd.oci.empty.v1+json";
const TITLE: &str = "org.opencontainers.image.title";

/// A file to be attached.
#[derive(Debug, Clone)]
pub struct Attachment {
    /// As the file is called where somebody fetches it.
    pub title: String,
    /// Both the artifact's type and the file's media type.
    pub kind: String,
    pub bytes: Vec<u8>,
}

/// Attaches files to the image `subject` in the repository of `name`; returns their digests.
///
/// # Errors
/// The registry does not take them.
pub fn attach(
    subject: &Descriptor,
    name: &Reference,
    files: &[Attachment],
    options: &Options,
) -> Result<Vec<Digest>, SinkError> {
    let wire = |source| SinkError::wire(name, source);
    let subject_digest = super::digest("the image", subject)?;
    let target = Repository::target(name).map_err(wire)?;
    let repository = Arc::new(Repository::open(&target, options).map_err(wire)?);
    let mut attached = Vec::new();
    for file in files {
        for bytes in [EMPTY, &file.bytes] {
            let (digest, size) = (Digest::of(bytes), bytes.len() as u64);
            repository.push_blob(&digest, size, &Bytes(bytes), None).map_err(wire)?;
        }
        let manifest = manifest(subject, file);
        let digest = Digest::of(&manifest);
        let mut rest = Map::new();
        rest.insert("annotations".into(), json!({ TITLE: file.title }));
        let referrer = Referrer {
            media_type: OCI_MANIFEST.to_owned(),
            digest: digest.to_string(),
            size: manifest.len() as u64,
            artifact_type: Some(file.kind.clone()),
            rest,
        };
        repository.attach(&subject_digest, &referrer, &manifest).map_err(wire)?;
        attached.push(digest);
    }
    Ok(attached)
}

fn manifest(subject: &Descriptor, file: &Attachment) -> Vec<u8> {
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": file.kind,
        "config": {
            "mediaType": EMPTY_TYPE, "digest": Digest::of(EMPTY), "size": EMPTY.len(),
        },
        "layers": [{
            "mediaType": file.kind, "digest": Digest::of(&file.bytes), "size": file.bytes.len(),
            "annotations": { TITLE: file.title },
        }],
        "subject": {
            "mediaType": subject.media_type, "digest": subject.digest, "size": subject.size,
        },
        "annotations": { TITLE: file.title },
    });
    manifest.to_string().into_bytes()
}

/// Content in memory, whatever digest is asked for.
struct Bytes<'a>(&'a [u8]);

impl Content for Bytes<'_> {
    fn open(&self, _: &Digest, at: u64) -> io::Result<Box<dyn Read + Send>> {
        let from = usize::try_from(at).unwrap_or(usize::MAX).min(self.0.len());
        Ok(Box::new(io::Cursor::new(self.0[from..].to_vec())))
    }
}
