//! Finds an image: layout or archive on disk, or in a registry; and whether it may be used at all.
//!
//! Checks index, manifest and configuration; layers are checked by `oci::layer` while they are read.

use std::path::{Path, PathBuf};

use crate::model::{Digest, DigestError};
use crate::oci::Image;
use crate::oci::limits::Limits;
pub use crate::wire::Fault;

mod container;
mod docker;
mod layout;
mod limited;
pub mod registry;
mod spool;
mod stored;
pub mod trust;

pub use stored::{Stored, image_file, stored};

use trust::Origin;

use container::Container;

/// Why an image could not be opened; [`SourceError::fault`] says what that means for the whole.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    #[error(
        "no image at {}: give oci:PATH[:TAG], oci-archive:PATH[:TAG], docker-archive:PATH[:REF] or the path of one of these",
        path.display()
    )]
    NotFound { path: PathBuf },
    #[error(
        "{reference:?}: slim opens images from disk only; save it first, for instance with `skopeo copy {reference} oci-archive:image.tar`"
    )]
    Transport { reference: String },
    #[error(
        "{} is no image: {why}; an image is a folder with oci-layout, or a tar with index.json or manifest.json",
        path.display()
    )]
    NotAnImage { path: PathBuf, why: String },
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
            Self::Policy { .. } => Fault::Usage,
            _ => Fault::Image,
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
}

impl Access {
    /// The defaults, for a platform.
    pub fn platform(platform: &str) -> Self {
        Self { platform: Some(platform.to_owned()), ..Self::default() }
    }
}

/// What the reference says the path is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Layout,
    OciArchive,
    DockerArchive,
    ByContent,
}

/// Opens `reference` (`oci:PATH[:TAG]`, `oci-archive:PATH[:TAG]`, `docker-archive:PATH[:REF]`, or a
/// bare path recognised by its content) and picks the platform from an index.
///
/// `docker://[HOST[:PORT]/]NAME[:TAG][@DIGEST]` is an image in a registry; `@DIGEST` behind any other
/// pins the manifest, or the index that it is picked from. Policy and pin are checked before
/// anything of the image is unpacked.
pub fn open(reference: &str, access: &Access) -> Result<Image, SourceError> {
    Ok(limited::limited(find(reference, access)?, access.limits))
}

fn find(reference: &str, access: &Access) -> Result<Image, SourceError> {
    if let Some(name) = reference.strip_prefix("docker://") {
        return registry::read(name, access);
    }
    let (kind, rest) = split_transport(reference)?;
    let (rest, pin) = split_pin(rest);
    let (path, tag) = split_tag(rest)?;
    trust::admit(access, &origin(kind, &path, tag))?;
    let container = Container::open(&path)?;
    let platform = access.platform.clone().unwrap_or_else(host_platform);
    let is_oci = container.has("index.json");
    let is_docker = container.has("manifest.json");
    let wrong = |why: &str| SourceError::NotAnImage { path: path.clone(), why: why.into() };
    match kind {
        Kind::Layout if !path.is_dir() => Err(wrong("`oci:` wants a folder")),
        Kind::Layout | Kind::OciArchive if !is_oci => Err(wrong("it has no index.json")),
        Kind::DockerArchive if !is_docker => Err(wrong("it has no manifest.json")),
        Kind::ByContent | Kind::Layout | Kind::OciArchive if is_oci => {
            layout::read(container, tag, &platform, pin)
        }
        Kind::DockerArchive | Kind::ByContent if is_docker => match pin {
            Some(want) => Err(SourceError::NoPin { path, want }),
            None => docker::read(container, tag, &platform),
        },
        _ => Err(wrong("it has neither index.json nor manifest.json")),
    }
}

fn split_transport(reference: &str) -> Result<(Kind, &str), SourceError> {
    for (prefix, kind) in [
        ("oci:", Kind::Layout),
        ("oci-archive:", Kind::OciArchive),
        ("docker-archive:", Kind::DockerArchive),
    ] {
        if let Some(rest) = reference.strip_prefix(prefix) {
            return Ok((kind, rest));
        }
    }
    let elsewhere = ["docker-daemon:", "containers-storage:", "registry:"];
    if elsewhere.iter().any(|prefix| reference.starts_with(prefix)) {
        return Err(SourceError::Transport { reference: reference.to_owned() });
    }
    Ok((Kind::ByContent, reference))
}

/// What a policy calls an image on disk; a bare path is what its content says.
fn origin(kind: Kind, path: &Path, tag: Option<&str>) -> Origin {
    let by_content = || match Container::open(path) {
        _ if path.is_dir() => Kind::Layout,
        Ok(container) if container.has("index.json") => Kind::OciArchive,
        _ => Kind::DockerArchive,
    };
    let kind = if kind == Kind::ByContent { by_content() } else { kind };
    let (path, image) = (path.to_owned(), tag.map(str::to_owned));
    match kind {
        Kind::Layout => Origin::Path { transport: "oci", path, image },
        Kind::OciArchive => Origin::Path { transport: "oci-archive", path, image },
        Kind::DockerArchive | Kind::ByContent => {
            Origin::Unnamed { transport: "docker-archive", shown: path.display().to_string() }
        }
    }
}

/// `@sha256:…` at the end, unless a file is called so.
fn split_pin(rest: &str) -> (&str, Option<Digest>) {
    let split = rest.rsplit_once('@').filter(|_| !Path::new(rest).exists());
    match split.and_then(|(path, pin)| Some((path, pin.parse::<Digest>().ok()?))) {
        Some((path, pin)) => (path, Some(pin)),
        None => (rest, None),
    }
}

/// Paths may hold colons and so may tags: the longest prefix that exists is the path.
fn split_tag(rest: &str) -> Result<(PathBuf, Option<&str>), SourceError> {
    if Path::new(rest).exists() {
        return Ok((PathBuf::from(rest), None));
    }
    for (at, _) in rest.rmatch_indices(':') {
        if Path::new(&rest[..at]).exists() && at > 0 {
            return Ok((
                PathBuf::from(&rest[..at]),
                Some(&rest[at + 1..]).filter(|t| !t.is_empty()),
            ));
        }
    }
    Err(SourceError::NotFound { path: PathBuf::from(rest) })
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

/// `repository:tag`, if `name` is that and not a mere tag.
fn full_name(name: &str) -> Option<String> {
    (name.contains('/') || name.contains(':')).then(|| familiar(name).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_path_that_exists_is_the_path() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().to_str().unwrap();
        std::fs::create_dir(dir.path().join("a:b")).unwrap();
        for (rest, want) in [
            (format!("{base}/a:b"), Some((format!("{base}/a:b"), None))),
            (format!("{base}/a:b:1"), Some((format!("{base}/a:b"), Some("1")))),
            (format!("{base}/a:b:x/y:1"), Some((format!("{base}/a:b"), Some("x/y:1")))),
            (format!("{base}/none:1"), None),
        ] {
            let got = split_tag(&rest).ok().map(|(path, tag)| (path.display().to_string(), tag));
            assert_eq!(got, want, "{rest}");
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
