//! Results on their way to where they are used: registries, and the engines of this host.
//!
//! An image goes up blob by blob; what is there already is not sent, what the registry has in another
//! repository is mounted, what broke off goes on. The manifest comes last, so that a name never
//! points at an image that is not whole.

use std::io::{self, Read};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::model::{Digest, DigestError};
use crate::oci::manifest::Descriptor;
use crate::wire::{Content, Fault, Options, Pushed, Reference, Repository, WireError};

mod archive;
mod artifact;
mod containerd;
mod docker;
mod engine;
mod parts;
mod podman;

pub use archive::Parcel;
pub use artifact::{Attachment, attach};
pub use engine::{Target, load};

use parts::Parts;

/// Blobs on their way at once.
const STREAMS: usize = 4;

/// Why a result did not arrive.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    #[error("cannot push to {name}")]
    Wire { name: String, source: Box<WireError> },
    #[error("cannot read {what} of the image that is to be handed on; build it again")]
    Read { what: String, source: std::io::Error },
    #[error(
        "{what} of the image that is to be handed on is no valid JSON of its kind; build it again"
    )]
    Json { what: String, source: serde_json::Error },
    #[error("{what} of the image that is to be handed on has a digest that slim cannot read")]
    Digest { what: String, source: DigestError },
    #[error(
        "{what} of the image that is to be handed on has the media type {found:?}: no image is made of that"
    )]
    MediaType { what: String, found: String },
    #[error(
        "{name} asks for {want}, and the image is {got}: leave the digest out, it comes from the content"
    )]
    Pinned { name: String, want: Digest, got: Digest },
    #[error(
        "interrupted while {engine} took the image: it has it only if all of it had been sent by then"
    )]
    Interrupted { engine: &'static str },
    #[error(
        "{name} does not take layer {layer} with the addresses that it is said to be at ({urls}): allow them in the registry (validation.manifests.urls in the configuration of Docker's), or push the image with `slim push --drop-urls`, which makes an ordinary layer of it and so another manifest"
    )]
    Foreign { name: String, layer: String, urls: String, source: Box<WireError> },
    #[error(
        "layer {layer} is not in the image, which only says where it is ({urls}): without --drop-urls the registry may take it so"
    )]
    Elsewhere { layer: String, urls: String },
    #[error("{engine} does not take the image: {why}")]
    Engine { engine: &'static str, why: String },
    #[error(transparent)]
    Docker(#[from] crate::wire::engine::EngineError),
}

impl SinkError {
    fn wire(name: &Reference, source: WireError) -> Self {
        Self::Wire { name: name.to_string(), source: Box::new(source) }
    }

    /// Whose fault it is: a registry that refuses is no fault of the image.
    pub fn fault(&self) -> Fault {
        match self {
            Self::Wire { source, .. } if matches!(**source, WireError::Content { .. }) => {
                Fault::Image
            }
            Self::Wire { source, .. } if source.fault() == Fault::Image => Fault::Host,
            Self::Wire { source, .. } => source.fault(),
            Self::Pinned { .. } => Fault::Usage,
            Self::Interrupted { .. } => Fault::Interrupted,
            Self::Engine { .. } | Self::Foreign { .. } => Fault::Host,
            // An image that is not there after it was loaded is the engine's doing, too.
            Self::Docker(error) if error.fault() == Fault::Image => Fault::Host,
            Self::Docker(error) => error.fault(),
            _ => Fault::Image,
        }
    }
}

/// An image as it lies on disk: its manifest or index, and what they name.
#[derive(Clone, Copy)]
pub struct Image<'a> {
    pub top: &'a Descriptor,
    pub content: &'a dyn Content,
}

/// What a push did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Receipt {
    /// The name in full, with tag.
    pub name: String,
    pub digest: String,
    /// The manifest or index as it is in the registry.
    pub top: Descriptor,
    /// Blobs by what became of them.
    pub present: u64,
    pub mounted: u64,
    pub sent: u64,
    /// Stored bytes of the blobs that were sent.
    pub sent_bytes: u64,
}

/// Pushes `image` under `name`. `mount_from` are repositories of which the registry may have blobs
/// already: those of other registries are passed over. With `drop_urls` layers that are said to be
/// elsewhere become ordinary ones. `progress` hears of bytes done and in all.
///
/// # Errors
/// The image cannot be read, or the registry does not take it.
pub fn push(
    image: Image<'_>,
    name: &Reference,
    mount_from: &[Reference],
    drop_urls: bool,
    options: &Options,
    progress: &(dyn Fn(u64, u64) + Sync),
) -> Result<Receipt, SinkError> {
    let parts = Parts::of(image, drop_urls)?;
    let digest = parts.top().digest;
    if let Some(want) = name.digest.filter(|want| *want != digest) {
        return Err(SinkError::Pinned { name: name.to_string(), want, got: digest });
    }
    let wire = |source| SinkError::wire(name, source);
    let target = Repository::target(name).map_err(wire)?;
    let repository = Arc::new(Repository::open(&target, options).map_err(wire)?);
    let from = mount_from
        .iter()
        .find(|other| other.host == name.host && other.repository != name.repository)
        .map(|other| other.repository.as_str());
    let receipt = blobs(image, name, &repository, &parts, from, progress)?;
    // Manifests, the lowest first; the last is the image itself.
    for part in &parts.manifests {
        let tag = name.tag.clone().filter(|_| part.digest == digest);
        let wanted = tag.unwrap_or_else(|| part.digest.to_string());
        let pushed = repository.push_manifest(&wanted, &part.media_type, &part.bytes);
        pushed.map_err(|source| part.refused(name, source))?;
    }
    let shown = Reference { digest: None, ..name.clone() }.to_string();
    let top = parts.top().descriptor();
    Ok(Receipt { name: shown, digest: digest.to_string(), top, ..receipt })
}

/// Sends the blobs, several at once.
fn blobs(
    image: Image<'_>,
    name: &Reference,
    repository: &Repository,
    parts: &Parts,
    from: Option<&str>,
    progress: &(dyn Fn(u64, u64) + Sync),
) -> Result<Receipt, SinkError> {
    let total = parts.blobs.iter().map(|(_, size)| size).sum();
    let done = Arc::new(AtomicU64::new(0));
    let (content, stop) = (image.content, repository.stop());
    let content = Told { content, done: Arc::clone(&done), stop };
    let failed = AtomicBool::new(false);
    let queue = Mutex::new(parts.blobs.iter());
    let outcome = Mutex::new(Ok(Receipt::default()));
    let work = || {
        while !failed.load(Ordering::Relaxed) {
            let next = queue.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some((digest, size)) = next else { return };
            let pushed = repository.push_blob(digest, *size, &content, from);
            let mut outcome = outcome.lock().unwrap_or_else(PoisonError::into_inner);
            match (pushed, outcome.as_mut()) {
                (Err(source), _) => {
                    *outcome = Err(SinkError::wire(name, source));
                    failed.store(true, Ordering::Relaxed);
                }
                (Ok(pushed), Ok(receipt)) => {
                    match pushed {
                        Pushed::Present => receipt.present += 1,
                        Pushed::Mounted => receipt.mounted += 1,
                        Pushed::Sent => {
                            receipt.sent += 1;
                            receipt.sent_bytes += size;
                        }
                    }
                    if pushed != Pushed::Sent {
                        done.fetch_add(*size, Ordering::Relaxed);
                    }
                }
                (Ok(_), Err(_)) => {}
            }
        }
    };
    std::thread::scope(|scope| {
        let streams = 0..STREAMS.min(parts.blobs.len());
        let streams: Vec<_> = streams.map(|_| scope.spawn(work)).collect();
        while streams.iter().any(|stream| !stream.is_finished()) {
            // What broke off is read again.
            progress(done.load(Ordering::Relaxed).min(total), total);
            std::thread::sleep(Duration::from_millis(10));
        }
    });
    outcome.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// Content that counts what is read of it, and ends when it is to.
struct Told<'a> {
    content: &'a dyn Content,
    done: Arc<AtomicU64>,
    stop: Option<fn() -> bool>,
}

impl Content for Told<'_> {
    fn open(&self, digest: &Digest, at: u64) -> io::Result<Box<dyn Read + Send>> {
        let from = self.content.open(digest, at)?;
        Ok(Box::new(Counted { from, done: Arc::clone(&self.done), stop: self.stop }))
    }
}

struct Counted {
    from: Box<dyn Read + Send>,
    done: Arc<AtomicU64>,
    stop: Option<fn() -> bool>,
}

impl Read for Counted {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        // A part takes minutes on a slow line: Ctrl-C is not to wait for its end.
        if self.stop.is_some_and(|stop| stop()) {
            return Err(io::Error::other("interrupted"));
        }
        let n = self.from.read(buf)?;
        self.done.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }
}

fn digest(what: &str, descriptor: &Descriptor) -> Result<Digest, SinkError> {
    let parsed = descriptor.digest.parse();
    parsed.map_err(|source| SinkError::Digest { what: what.to_owned(), source })
}
