//! All the ways to name an image.
//!
//! ```text
//! oci:PATH[:TAG]  oci-archive:PATH[:TAG]  docker-archive:PATH[:REF]    on disk
//! -                                                                    archive on standard input
//! docker-daemon:NAME[:TAG]|ID                                          Docker's engine
//! containers-storage:[[driver@root[+runroot]]]NAME                     Podman, Buildah, CRI-O
//! containerd:[NAMESPACE/]NAME                                          containerd
//! docker://[HOST[:PORT]/]NAME[:TAG]                                    a registry
//! container:NAME                                                       what a container was made from
//! ```
//!
//! Whatever has no such beginning is a path if there is one, told by its content. Else it is a name,
//! looked for in Docker's engine, Podman's storage, containerd and its registry, in this order; where
//! it was found is told. `@DIGEST` at the end pins the manifest, or the index that it is picked from.

use std::path::{Path, PathBuf};

use crate::model::Digest;
use crate::oci::Image;
use crate::wire::{Fault, Reference as Name};

use super::container::Container;
use super::trust::{self, Origin};
use super::{
    Access, SourceError, containerd, daemon, docker, host_platform, layout, registry, running,
    stdin, storage,
};

/// What the reference says the path is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Layout,
    OciArchive,
    DockerArchive,
    ByContent,
}

const FILES: [(&str, Kind); 3] = [
    ("oci:", Kind::Layout),
    ("oci-archive:", Kind::OciArchive),
    ("docker-archive:", Kind::DockerArchive),
];

type Read = fn(&str, &Access) -> Result<Image, SourceError>;
type Place = fn(&str) -> String;

/// Beginnings that say where to look, and who looks there.
const PLACES: [(&str, Read); 5] = [
    ("docker-daemon:", daemon::read),
    ("containers-storage:", storage::read),
    ("containerd:", containerd::read),
    ("docker://", registry::read),
    ("container:", running::read),
];

/// Where a bare name is looked for, in order; what each place is called, and who looks there.
const SEARCHED: [(Place, Read); 4] = [
    (|_| daemon::place(), daemon::read),
    (|_| storage::place(), storage::read),
    (|_| containerd::place(), containerd::read),
    (registry_place, registry::read),
];

pub(super) fn open(reference: &str, access: &Access) -> Result<Image, SourceError> {
    if let Some((rest, read)) =
        PLACES.iter().find_map(|(begin, read)| Some((reference.strip_prefix(begin)?, read)))
    {
        if rest.is_empty() {
            let why = format!("what is it called? give {reference}NAME");
            return Err(SourceError::Transport { reference: reference.to_owned(), why });
        }
        return read(rest, access);
    }
    let (rest, pin) = split_pin(reference);
    if let Some(tag) = rest.strip_prefix('-').filter(|tag| tag.is_empty() || tag.starts_with(':')) {
        return stdin::read(tag.strip_prefix(':').filter(|tag| !tag.is_empty()), pin, access);
    }
    let (kind, path) = split_transport(rest)?;
    match split_tag(path) {
        Ok((path, tag)) => file(kind, &path, tag, pin, access),
        Err(_) if kind == Kind::ByContent && may_be_name(reference) => search(reference, access),
        Err(error) => Err(error),
    }
}

/// An image on disk.
fn file(
    kind: Kind,
    path: &Path,
    tag: Option<&str>,
    pin: Option<Digest>,
    access: &Access,
) -> Result<Image, SourceError> {
    let allowed = |kind| trust::admit(access, &origin(kind, path, tag));
    let wrong = |why: &str| SourceError::NotAnImage { path: path.into(), why: why.into() };
    if kind == Kind::Layout && !path.is_dir() {
        return Err(wrong("`oci:` wants a folder"));
    }
    if kind != Kind::ByContent {
        allowed(kind)?;
    }
    let container = Container::open(path)?;
    let kind = if kind == Kind::ByContent {
        let found = by_content(&container, path.is_dir());
        allowed(found)?;
        found
    } else {
        kind
    };
    inside(container, kind, tag, pin, access)
}

/// The image in a folder or archive that may be used.
pub(super) fn inside(
    container: Container,
    kind: Kind,
    tag: Option<&str>,
    pin: Option<Digest>,
    access: &Access,
) -> Result<Image, SourceError> {
    let platform = access.platform.clone().unwrap_or_else(host_platform);
    let is_oci = container.has("index.json");
    let is_docker = container.has("manifest.json");
    let path = container.path.clone();
    let wrong = |why: &str| SourceError::NotAnImage { path: path.clone(), why: why.into() };
    match (kind, pin) {
        _ if !is_oci && !is_docker => Err(wrong("it has neither index.json nor manifest.json")),
        (Kind::DockerArchive, _) if !is_docker => Err(wrong("it has no manifest.json")),
        (Kind::DockerArchive, Some(want)) => Err(SourceError::NoPin { path, want }),
        (Kind::DockerArchive, None) => docker::read(container, tag, &platform),
        _ if !is_oci => Err(wrong("it has no index.json")),
        _ => layout::read(container, tag, &platform, pin),
    }
}

/// What a folder or archive is, where nothing says so.
pub(super) fn by_content(container: &Container, folder: bool) -> Kind {
    match container.has("index.json") {
        _ if folder => Kind::Layout,
        true => Kind::OciArchive,
        false => Kind::DockerArchive,
    }
}

/// Looks for a bare name, place after place.
fn search(name: &str, access: &Access) -> Result<Image, SourceError> {
    let mut tried = vec![format!("the working folder: no file or folder is called {name:?}")];
    let mut last = Fault::Image;
    for (place, read) in SEARCHED {
        let place = place(name);
        match read(name, access) {
            Ok(image) => {
                if let Some(tell) = access.tell {
                    tell(&format!("{name} found in {place}"));
                }
                return Ok(image);
            }
            Err(error) if error.look_on() => {
                tried.push(format!("{place}: {}", error.shortly()));
                last = error.fault();
            }
            Err(error) => return Err(error),
        }
    }
    // Without a host it was looked for everywhere, and the registry is the last of several.
    let fault = if has_host(name) { last } else { Fault::Image };
    Err(SourceError::Nowhere { name: name.to_owned(), tried, fault })
}

/// True if it reads like the name of an image, and not like a path that should be there.
fn may_be_name(text: &str) -> bool {
    let file = [".tar", ".tgz", ".tar.gz", ".tar.zst"].iter().any(|end| text.ends_with(end));
    let digits = |id: &str| !id.is_empty() && id.chars().all(|c| c.is_ascii_hexdigit());
    !file && (text.parse::<Name>().is_ok() || text.strip_prefix("sha256:").is_some_and(digits))
}

/// True if the name says its registry.
fn has_host(name: &str) -> bool {
    name.parse::<Name>().is_ok_and(|name| name.host != "docker.io")
}

fn registry_place(name: &str) -> String {
    let host = name.parse::<Name>().map_or_else(|_| "docker.io".to_owned(), |name| name.host);
    format!("the registry {host}")
}

pub(super) fn split_transport(reference: &str) -> Result<(Kind, &str), SourceError> {
    for (prefix, kind) in FILES {
        if let Some(rest) = reference.strip_prefix(prefix) {
            return Ok((kind, rest));
        }
    }
    for (prefix, way_out) in [
        ("dir:", "copy it, for instance with `skopeo copy … oci-archive:image.tar`"),
        ("ostree:", "copy it, for instance with `skopeo copy … oci-archive:image.tar`"),
        ("registry:", "images in registries are docker://[HOST[:PORT]/]NAME[:TAG]"),
    ] {
        if reference.starts_with(prefix) && !Path::new(reference).exists() {
            let why = format!("slim does not read {prefix} images; {way_out}");
            return Err(SourceError::Transport { reference: reference.to_owned(), why });
        }
    }
    Ok((Kind::ByContent, reference))
}

/// What a policy calls an image on disk.
fn origin(kind: Kind, path: &Path, tag: Option<&str>) -> Origin {
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
pub(super) fn split_tag(rest: &str) -> Result<(PathBuf, Option<&str>), SourceError> {
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
    fn a_name_is_not_a_path_that_is_missing() {
        for (text, want) in [
            ("nginx", true),
            ("localhost:5000/a:1", true),
            ("sha256:0123abcd", true),
            ("./nginx", false),
            ("/var/nginx", false),
            ("image.tar", false),
            ("No-Name", false),
        ] {
            assert_eq!(may_be_name(text), want, "{text}");
        }
    }
}
