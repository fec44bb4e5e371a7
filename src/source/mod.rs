//! Finds an image: on disk, on standard input, in an engine or a registry; and whether it may be used
//! at all.
//!
//! Checks index, manifest and configuration; layers are checked by `oci::layer` while they are read.

use std::path::PathBuf;

use crate::model::{Digest, DigestError};
use crate::oci::Image;
use crate::oci::limits::Limits;
pub use crate::wire::Fault;
use crate::wire::Reference;

mod container;
mod containerd;
mod daemon;
mod docker;
mod layout;
mod limited;
mod overlay2;
pub mod reference;
pub mod registry;
mod running;
mod spool;
mod stdin;
mod storage;
mod storage_conf;
mod stored;
pub mod trust;
mod unpacked;

pub use stored::{Stored, image_file, stored};

/// Why an image could not be opened; [`SourceError::fault`] says what that means for the whole.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    #[error(
        "no image at the path {}: give oci:PATH[:TAG], oci-archive:PATH[:TAG], docker-archive:PATH[:REF] or the path of one of these",
        path.display()
    )]
    NotFound { path: PathBuf },
    #[error("{reference:?}: {why}")]
    Transport { reference: String, why: String },
    #[error("no image {name:?}; looked in{}", list(.tried))]
    Nowhere { name: String, tried: Vec<String>, fault: Fault },
    #[error("{engine} does not answer: {why}; is it running, and may you use it?")]
    NoEngine { engine: String, why: String },
    #[error("{engine} has no image {name:?}")]
    NotInEngine { engine: &'static str, name: String },
    #[error("{engine} does not give {name}: {why}")]
    Engine { engine: &'static str, name: String, why: String },
    #[error(transparent)]
    Docker(#[from] crate::wire::engine::EngineError),
    #[error("no container {name:?}; looked in{}", list(.tried))]
    NoContainer { name: String, tried: Vec<String> },
    #[error("interrupted; everything was stopped and nothing was written")]
    Interrupted,
    #[error("cannot keep what comes from {from} in {}: set TMPDIR to a folder with room", folder.display())]
    Spool { from: String, folder: PathBuf, source: std::io::Error },
    #[error(
        "{} is no image: {why}; an image is a folder with oci-layout, or a tar with index.json or manifest.json",
        path.display()
    )]
    NotAnImage { path: PathBuf, why: String },
    #[error(
        "layer {layer} of {} is not in it: it is a foreign layer, which its maker gives away, and slim fetches none of those; put the blob {digest} into the image",
        path.display()
    )]
    Foreign { path: PathBuf, layer: usize, digest: Digest },
    #[error("cannot read {what} in {}: is the image complete? copy it again", path.display())]
    Read { path: PathBuf, what: String, source: std::io::Error },
    #[error("{what} in {} is no valid JSON of its kind: the image is damaged, copy it again", path.display())]
    Json { path: PathBuf, what: String, source: serde_json::Error },
    #[error("{what} in {}: {source}", path.display())]
    Digest { path: PathBuf, what: String, source: DigestError },
    #[error("{what} {want} in {} hashes to {got}: the image is damaged, copy it again", path.display())]
    WrongDigest { path: PathBuf, what: String, want: Digest, got: Digest },
    #[error("{what} {digest} in {} has {got} bytes, its descriptor says {want}: the image is damaged, copy it again", path.display())]
    WrongSize { path: PathBuf, what: String, digest: Digest, want: u64, got: u64 },
    #[error(
        "{} has {what} of media type {found:?}, which slim cannot read; convert it, for instance with `skopeo copy --format oci`",
        path.display()
    )]
    MediaType { path: PathBuf, what: String, found: String },
    #[error("{} has no image for {wanted}, only for {}: choose one with --platform", path.display(), found.join(", "))]
    Platform { path: PathBuf, wanted: String, found: Vec<String> },
    #[error("{} has no image {wanted:?}, only {}", path.display(), found.join(", "))]
    NoSuchTag { path: PathBuf, wanted: String, found: Vec<String> },
    #[error("{} holds several images, name one of them after a colon: {}", path.display(), found.join(", "))]
    Ambiguous { path: PathBuf, found: Vec<String> },
    #[error("{} holds no image", path.display())]
    Empty { path: PathBuf },
    #[error("the image in {} has {layers} layers, its configuration lists {diff_ids} diffIDs: it is damaged or no container image", path.display())]
    LayerCount { path: PathBuf, layers: usize, diff_ids: usize },
    #[error("{what} in {} has {size}, and slim takes {max} at most: no honest image has so many", path.display())]
    TooLarge { path: PathBuf, what: String, size: u64, max: u64 },
    #[error(transparent)]
    Wire(#[from] crate::wire::WireError),
    #[error(
        "{} refuses {image} ({scope}): {why}; change that scope if you trust the image, or give another file with --policy",
        policy.display()
    )]
    Refused { image: String, policy: PathBuf, scope: String, why: String },
    #[error("{} is no policy as containers-policy.json(5) describes it: {why}", path.display())]
    Policy { path: PathBuf, why: String },
    #[error(
        "{} is pinned to {want} and is {got}: it was changed, or the pin is another image's; look what it is before you change the pin",
        path.display()
    )]
    Pin { path: PathBuf, want: Digest, got: Digest },
    #[error("{} is pinned to {want}, and a docker-archive has no manifest that could have a digest: use an OCI archive", path.display())]
    NoPin { path: PathBuf, want: Digest },
}

impl SourceError {
    /// Whose fault it is.
    pub fn fault(&self) -> Fault {
        match self {
            Self::Wire(error) => error.fault(),
            Self::Refused { .. } | Self::Pin { .. } | Self::NoPin { .. } => Fault::Policy,
            Self::Policy { .. } | Self::Transport { .. } => Fault::Usage,
            Self::Nowhere { fault, .. } => *fault,
            Self::NoEngine { .. } | Self::Engine { .. } | Self::Spool { .. } => Fault::Host,
            Self::Docker(error) => error.fault(),
            _ => Fault::Image,
        }
    }

    /// As a part of a list of places, each named already.
    fn shortly(&self) -> String {
        match self {
            Self::NoEngine { why, .. } => format!("no answer ({why})"),
            Self::NotInEngine { .. } => "not there".to_owned(),
            other => crate::model::chain(other),
        }
    }

    /// True if the image may well be somewhere else.
    fn look_on(&self) -> bool {
        let wire =
            |error: &crate::wire::WireError| matches!(error.fault(), Fault::Host | Fault::Image);
        match self {
            Self::NoEngine { .. } | Self::NotInEngine { .. } => true,
            Self::Wire(error) => wire(error),
            _ => false,
        }
    }
}

/// How an image is reached, whatever its reference says.
#[derive(Debug, Clone, Default)]
pub struct Access {
    /// What to pick from an index, `os/architecture[/variant]`; the host's where it is not given.
    pub platform: Option<String>,
    /// How registries are reached.
    pub wire: crate::wire::Options,
    /// containers-policy.json(5) to obey instead of the user's or the host's.
    pub policy: Option<PathBuf>,
    /// How much an image may be, unpacked.
    pub limits: Limits,
    /// A result of slim's own, for which nobody else has to vouch: no policy is asked.
    pub ours: bool,
    /// Hears where an image was found whose reference does not say it.
    pub tell: Option<fn(&str)>,
}

impl Access {
    /// The defaults, for a platform.
    pub fn platform(platform: &str) -> Self {
        Self { platform: Some(platform.to_owned()), ..Self::default() }
    }
}

/// Opens the image that `reference` names, see [`reference`] for all the ways to name one, and picks
/// the platform from an index. Policy and pin are checked before anything of it is unpacked.
///
/// # Errors
/// There is no such image, it is refused, or it is damaged; an engine or a registry does not answer.
pub fn open(reference: &str, access: &Access) -> Result<Image, SourceError> {
    Ok(limited::limited(reference::open(reference, access)?, access.limits))
}

/// What was looked at, a line each.
fn list(tried: &[String]) -> String {
    tried.iter().map(|one| format!("\n  {one}")).collect()
}

/// `os/architecture` of this host in the words of OCI (which are Go's).
fn host_platform() -> String {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        other => other,
    };
    format!("linux/{architecture}")
}

/// True if `name`, as an image is called in its source, is what `wanted` asks for: all of it, or
/// its tag alone.
fn names(name: &str, wanted: &str) -> bool {
    name == wanted
        || familiar(name) == familiar(wanted)
        || (!wanted.contains('/') && tag_of(name).is_some_and(|tag| tag == wanted))
}

/// Without the parts that Docker leaves out.
fn familiar(name: &str) -> &str {
    let name = name.strip_prefix("docker.io/").unwrap_or(name);
    name.strip_prefix("library/").unwrap_or(name)
}

fn tag_of(name: &str) -> Option<&str> {
    let last = name.rsplit('/').next()?;
    last.split_once(':').map(|(_, tag)| tag)
}

/// `repository:tag`, if `name` is that and not a mere tag. What no engine or registry takes for a name
/// is none: files are called after it, and other people's tools read it.
fn full_name(name: &str) -> Option<String> {
    let named = (name.contains('/') || name.contains(':')) && name.parse::<Reference>().is_ok();
    named.then(|| familiar(name).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_engine_takes_for_a_name_is_none() {
        let known = |name: &str| full_name(name);
        assert_eq!(known("docker.io/library/app:1").as_deref(), Some("app:1"));
        assert_eq!(known("localhost:5000/a/b").as_deref(), Some("localhost:5000/a/b"));
        for bad in
            ["latest", "a/..", "a/.", "a/", "Foo/Bar:X", "a:1\nRUN x", "a:1 AS b", "a/b:x\u{1b}[2J"]
        {
            assert_eq!(known(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_wanted_name_may_be_the_tag_alone() {
        for (name, wanted, want) in [
            ("latest", "latest", true),
            ("docker.io/library/app:1", "1", true),
            ("docker.io/library/app:1", "app:1", true),
            ("localhost:5000/app:1", "1", true),
            ("localhost:5000/app", "5000/app", false),
            ("app:1", "2", false),
        ] {
            assert_eq!(names(name, wanted), want, "{name} as {wanted}");
        }
    }
}
