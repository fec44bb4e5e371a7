//! An image in a registry.

use std::cell::RefCell;
use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use crate::model::{Digest, ImageConfig};
use crate::oci::manifest::{
    DOCKER_INDEX, DOCKER_MANIFEST, Descriptor, Index, Manifest, OCI_INDEX, OCI_MANIFEST, Platform,
    is_index, is_layer, is_manifest,
};
use crate::oci::{BlobSource, Image, Layer};
use crate::wire::{Fetched, Reference, Repository, WireError};

use super::spool::Spool;
use super::trust::{Gate, Origin, Signature};
use super::{Access, SourceError, host_platform};

const ACCEPT: [&str; 4] = [OCI_MANIFEST, DOCKER_MANIFEST, OCI_INDEX, DOCKER_INDEX];
/// Indexes may nest (image-spec, image-index.md); so deep none does in earnest.
const MAX_DEPTH: usize = 8;
/// More than any configuration, bytes.
const MAX_CONFIG: u64 = 64 << 20;

/// Opens `name` (`[host[:port]/]repository[:tag][@digest]`) in its registry: policy, manifest,
/// signatures and configuration are checked, no layer is asked for yet.
///
/// # Errors
/// The image is not there, is refused, or is damaged; the registry cannot be reached.
pub fn read(name: &str, access: &Access) -> Result<Image, SourceError> {
    let reference: Reference = name.parse::<Reference>()?.or_latest();
    let origin = Origin::Docker(reference.clone());
    let gate = Gate::of(access, &origin)?;
    let (repository, top) = fetch(&reference, access)?;
    let platform = access.platform.clone().unwrap_or_else(host_platform);
    let seen = RefCell::default();
    let found = Found { name: &reference, repository: &repository, platform: &platform, seen };
    let mut passed = Vec::new();
    let top_digest = top.digest;
    let Some((manifest, digest)) = found.descend(top, None, &mut passed, 0)? else {
        let (path, wanted) = (found.place(), platform);
        return Err(SourceError::Platform { path, wanted, found: passed });
    };
    if let Some(gate) = gate.filter(Gate::wants_signatures) {
        let mut digests = vec![digest, top_digest];
        digests.dedup();
        let mut signatures = Vec::new();
        for digest in &digests {
            signatures.extend(Signature::attached(&repository, digest)?);
        }
        gate.check(&origin, &digests, &signatures)?;
    }
    found.image(manifest, digest)
}

/// Asks mirrors and registry for the manifest, in order; the last one's error counts.
fn fetch(
    reference: &Reference,
    access: &Access,
) -> Result<(Arc<Repository>, Fetched), SourceError> {
    let mut last = None;
    for location in Repository::sources(reference)? {
        let repository = Arc::new(Repository::open(&location, &access.wire)?);
        match repository.manifest(&reference.wanted(), &ACCEPT) {
            Ok(found) => return Ok((repository, found)),
            Err(error) => {
                if let Some(earlier) = last.replace(error) {
                    tracing::warn!("a mirror of {reference} did not help: {earlier}");
                }
            }
        }
    }
    Err(last.map_or_else(|| no_place(reference), SourceError::from))
}

fn no_place(reference: &Reference) -> SourceError {
    let (what, message) = (reference.to_string(), String::new());
    WireError::NotFound { host: reference.host.clone(), what, message }.into()
}

/// What is being opened.
struct Found<'a> {
    name: &'a Reference,
    repository: &'a Arc<Repository>,
    platform: &'a str,
    /// The configuration that was fetched to learn a platform.
    seen: RefCell<Option<(Digest, Vec<u8>)>>,
}

type Chosen = (Manifest, Digest);

impl Found<'_> {
    /// The image, as messages have it in the place of a path.
    fn place(&self) -> PathBuf {
        PathBuf::from(self.name.to_string())
    }

    fn json<T: serde::de::DeserializeOwned>(
        &self,
        what: &str,
        bytes: &[u8],
    ) -> Result<T, SourceError> {
        serde_json::from_slice(bytes).map_err(|source| SourceError::Json {
            path: self.place(),
            what: what.to_owned(),
            source,
        })
    }

    fn digest(&self, what: &str, descriptor: &Descriptor) -> Result<Digest, SourceError> {
        descriptor.digest.parse().map_err(|source| SourceError::Digest {
            path: self.place(),
            what: what.to_owned(),
            source,
        })
    }

    /// Follows indexes down to the manifest for the platform; collects the platforms passed by.
    fn descend(
        &self,
        fetched: Fetched,
        descriptor: Option<&Descriptor>,
        passed: &mut Vec<String>,
        depth: usize,
    ) -> Result<Option<Chosen>, SourceError> {
        let kind = self.kind(&fetched, descriptor);
        if is_manifest(&kind) {
            let manifest: Manifest = self.json("manifest", &fetched.bytes)?;
            let real = match descriptor.and_then(|d| d.platform.clone()) {
                Some(platform) => platform,
                None => self.real_platform(&manifest)?,
            };
            if real.matches(self.platform) {
                return Ok(Some((manifest, fetched.digest)));
            }
            passed.push(real.to_string());
            return Ok(None);
        }
        if !is_index(&kind) || depth == MAX_DEPTH {
            let (path, what) = (self.place(), "a manifest".to_owned());
            return Err(SourceError::MediaType { path, what, found: kind });
        }
        let index: Index = self.json("index", &fetched.bytes)?;
        for below in index.manifests.iter().filter(|d| d.is_image()) {
            if let Some(other) = below.platform.as_ref().filter(|p| !p.matches(self.platform)) {
                passed.push(other.to_string());
                continue;
            }
            let digest = self.digest("an index entry", below)?;
            let fetched = self.repository.manifest(&digest.to_string(), &ACCEPT)?;
            self.size("manifest", &digest, below.size, fetched.bytes.len() as u64)?;
            if let Some(found) = self.descend(fetched, Some(below), passed, depth + 1)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// The media type: what the content says of itself, else the registry, else the descriptor.
    fn kind(&self, fetched: &Fetched, descriptor: Option<&Descriptor>) -> String {
        let json: serde_json::Value = serde_json::from_slice(&fetched.bytes).unwrap_or_default();
        let own = json["mediaType"].as_str().filter(|kind| !kind.is_empty());
        let told = || (!fetched.media_type.is_empty()).then_some(fetched.media_type.as_str());
        let listed = || descriptor.map(|d| d.media_type.as_str());
        own.or_else(told).or_else(listed).unwrap_or_default().to_owned()
    }

    fn size(&self, what: &str, digest: &Digest, want: u64, got: u64) -> Result<(), SourceError> {
        if want == got {
            return Ok(());
        }
        let (path, what, digest) = (self.place(), what.to_owned(), *digest);
        Err(SourceError::WrongSize { path, what, digest, want, got })
    }

    fn config(&self, manifest: &Manifest) -> Result<(Digest, Vec<u8>), SourceError> {
        let digest = self.digest("configuration", &manifest.config)?;
        if let Some(seen) = self.seen.borrow_mut().take_if(|(seen, _)| *seen == digest) {
            return Ok(seen);
        }
        let size = manifest.config.size;
        let bytes = self.repository.small_blob(&digest, size, MAX_CONFIG)?;
        self.size("configuration", &digest, size, bytes.len() as u64)?;
        Ok((digest, bytes))
    }

    fn real_platform(&self, manifest: &Manifest) -> Result<Platform, SourceError> {
        let (digest, bytes) = self.config(manifest)?;
        let text = ImageConfig(self.json("configuration", &bytes)?).platform();
        *self.seen.borrow_mut() = Some((digest, bytes));
        Ok(Platform::parse(&text))
    }

    fn image(&self, manifest: Manifest, manifest_digest: Digest) -> Result<Image, SourceError> {
        let (config_digest, config_bytes) = self.config(&manifest)?;
        let config = ImageConfig(self.json("configuration", &config_bytes)?);
        let mut blobs = Vec::new();
        for (at, layer) in manifest.layers.iter().enumerate() {
            let what = format!("layer {at}");
            if !is_layer(&layer.media_type) {
                let (path, found) = (self.place(), layer.media_type.clone());
                return Err(SourceError::MediaType { path, what, found });
            }
            blobs.push((self.digest(&what, layer)?, layer.size));
        }
        let diff_ids = config.diff_ids();
        if blobs.len() != diff_ids.len() {
            let (path, layers, diff_ids) = (self.place(), blobs.len(), diff_ids.len());
            return Err(SourceError::LayerCount { path, layers, diff_ids });
        }
        let layer = |((layer, blob), diff_id): ((&Descriptor, &(Digest, u64)), _)| {
            Layer::new(layer.media_type.clone(), Some(*blob), diff_id).described(layer)
        };
        let layers = manifest.layers.iter().zip(&blobs).zip(diff_ids).map(layer).collect();
        Ok(Image {
            name: Some(self.name.familiar()),
            platform: config.platform(),
            manifest_digest,
            annotations: manifest.annotations,
            config_digest,
            config,
            config_bytes: config_bytes.into(),
            layers,
            blobs: Arc::new(Blobs::new(Arc::clone(self.repository), blobs)),
        })
    }
}

/// Layers in a registry, each fetched when it is first read and kept while the image is open.
struct Blobs {
    repository: Arc<Repository>,
    blobs: Vec<(Digest, u64)>,
    spools: Vec<Mutex<Option<Arc<Spool>>>>,
}

impl Blobs {
    fn new(repository: Arc<Repository>, blobs: Vec<(Digest, u64)>) -> Self {
        let spools = blobs.iter().map(|_| Mutex::default()).collect();
        Self { repository, blobs, spools }
    }
}

impl BlobSource for Blobs {
    fn open(&self, index: usize) -> io::Result<Box<dyn Read + Send>> {
        let missing = || io::Error::other("no such layer");
        let (digest, size) = *self.blobs.get(index).ok_or_else(missing)?;
        // The same blob may be several layers (empty ones): the first of them fetches it.
        let first = self.blobs.iter().position(|(other, _)| *other == digest).unwrap_or(index);
        let slot = self.spools.get(first).ok_or_else(missing)?;
        let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(spool) = &*slot {
            return Ok(Box::new(spool.reader()));
        }
        let reader = self.repository.blob(&digest, size).map_err(io::Error::other)?;
        let spool = Arc::new(Spool::new(Box::new(reader))?);
        *slot = Some(Arc::clone(&spool));
        Ok(Box::new(spool.reader()))
    }

    fn size(&self, index: usize) -> Option<u64> {
        self.blobs.get(index).map(|(_, size)| *size)
    }
}
