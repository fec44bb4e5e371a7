//! Archive and layout, whole or not at all.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::model::{Digest, NodeKind, RootPath};
use crate::oci::Image;
use crate::oci::layer::Meta;
use crate::oci::manifest::{
    CONTAINERD_NAME, Descriptor, DockerItem, OCI_INDEX, OCI_MANIFEST, Platform, REF_NAME,
};

use super::blob::Written;
use super::config::descriptor;
use super::entry::{What, pad, write_header};
use super::unfinished::unfinished;
use super::{EmitError, ImageFormat};

const LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;

/// A result in the making, in a temporary folder beside its target.
pub(super) struct Output {
    target: PathBuf,
    parent: PathBuf,
    folder: tempfile::TempDir,
    /// Holds the lock that says that somebody is at it.
    _lock: File,
    blobs: PathBuf,
}

impl Output {
    pub fn start(target: &Path) -> Result<Self, EmitError> {
        let parent = match target.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let error = |e| EmitError::write(target, e);
        std::fs::create_dir_all(parent).map_err(error)?;
        let (folder, lock) = unfinished(parent).map_err(error)?;
        let blobs = folder.path().join("image/blobs/sha256");
        std::fs::create_dir_all(&blobs).map_err(error)?;
        Ok(Self {
            target: target.to_owned(),
            parent: parent.to_owned(),
            folder,
            _lock: lock,
            blobs,
        })
    }

    /// Where blobs go, named by their digest's digits.
    pub fn blobs(&self) -> &Path {
        &self.blobs
    }

    /// Adds a small blob.
    pub fn add(&mut self, bytes: &[u8]) -> Result<(), EmitError> {
        let path = self.blobs.join(Digest::of(bytes).hex());
        std::fs::write(&path, bytes).map_err(|e| EmitError::write(&path, e))
    }

    /// Puts the result in its place.
    pub fn publish(
        self,
        format: ImageFormat,
        image: &Image,
        tags: &[String],
        manifest: &[u8],
        layers: &[Written],
    ) -> Result<(), EmitError> {
        let entry = entry(OCI_MANIFEST, manifest, Some(Platform::parse(&image.platform)));
        let docker = docker_manifest(tags, manifest, layers);
        self.publish_as(format, entry, tags.first().map_or("", String::as_str), Some(&docker))
    }

    /// The same for whatever `top` describes; `docker` is what `docker load` reads of an archive.
    pub fn publish_as(
        self,
        format: ImageFormat,
        top: Descriptor,
        tag: &str,
        docker: Option<&[u8]>,
    ) -> Result<(), EmitError> {
        let index = index(top, tag);
        let done = match format {
            ImageFormat::Archive => self.archive(&index, docker),
            ImageFormat::Layout => self.layout(&index),
        };
        done.map_err(|e| EmitError::write(&self.target, e))
    }

    fn archive(&self, index: &[u8], docker: Option<&[u8]>) -> io::Result<()> {
        let temporary = self.folder.path().join("image.tar");
        let mut out = BufWriter::with_capacity(1 << 20, File::create(&temporary)?);
        member(&mut out, "oci-layout", LAYOUT)?;
        member(&mut out, "index.json", index)?;
        if let Some(docker) = docker {
            member(&mut out, "manifest.json", docker)?;
        }
        folder(&mut out, "blobs")?;
        folder(&mut out, "blobs/sha256")?;
        let names: io::Result<BTreeSet<_>> =
            std::fs::read_dir(&self.blobs)?.map(|entry| Ok(entry?.file_name())).collect();
        for name in names? {
            let mut blob = File::open(self.blobs.join(&name))?;
            let size = blob.metadata()?.len();
            header(&mut out, &format!("blobs/sha256/{}", name.to_string_lossy()), size)?;
            out.flush()?;
            io::copy(&mut blob, out.get_mut())?;
            pad(&mut out, size)?;
        }
        out.write_all(&[0; 1024])?;
        out.flush()?;
        out.get_ref().sync_all()?;
        std::fs::rename(&temporary, &self.target)?;
        File::open(&self.parent)?.sync_all()
    }

    fn layout(&self, index: &[u8]) -> io::Result<()> {
        let made = self.folder.path().join("image");
        std::fs::write(made.join("index.json"), index)?;
        std::fs::write(made.join("oci-layout"), LAYOUT)?;
        let blobs = std::fs::read_dir(&self.blobs)?;
        let own = ["index.json", "oci-layout"].map(|name| Ok(made.join(name)));
        for path in blobs.map(|entry| entry.map(|e| e.path())).chain(own) {
            File::open(path?)?.sync_all()?;
        }
        // An older result goes first out of the way, then away with the temporary folder.
        match std::fs::rename(&self.target, self.folder.path().join("old")) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        std::fs::rename(&made, &self.target)?;
        File::open(&self.parent)?.sync_all()
    }
}

/// `index.json`; its annotations carry the full reference, from which Podman takes the name.
fn index(mut top: Descriptor, tag: &str) -> Vec<u8> {
    for key in [REF_NAME, CONTAINERD_NAME] {
        top.annotations.insert(key.to_owned(), full_reference(tag));
    }
    index_of(&[top])
}

/// An index over `entries`, as it is stored.
pub(super) fn index_of(entries: &[Descriptor]) -> Vec<u8> {
    let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries });
    index.to_string().into_bytes()
}

/// What an index says of something it lists.
pub(super) fn entry(media_type: &str, bytes: &[u8], platform: Option<Platform>) -> Descriptor {
    Descriptor { platform, ..descriptor(media_type, Digest::of(bytes), bytes.len() as u64) }
}

/// `manifest.json` as `docker load` reads it, its parts in the layout's blobs.
fn docker_manifest(tags: &[String], manifest: &[u8], layers: &[Written]) -> Vec<u8> {
    let parsed: crate::oci::manifest::Manifest =
        serde_json::from_slice(manifest).expect("a manifest of ours is JSON");
    let blob = |digest: &str| digest.replacen("sha256:", "blobs/sha256/", 1);
    let item = DockerItem {
        config: blob(&parsed.config.digest),
        repo_tags: Some(tags.iter().map(|tag| with_tag(tag)).collect()),
        layers: layers.iter().map(|layer| blob(&layer.digest.to_string())).collect(),
    };
    serde_json::to_vec(&[item]).expect("a docker manifest is plain JSON")
}

fn with_tag(tag: &str) -> String {
    let last = tag.rsplit('/').next().unwrap_or(tag);
    if last.contains(':') { tag.to_owned() } else { format!("{tag}:latest") }
}

/// With the registry and repository that Docker leaves out.
fn full_reference(tag: &str) -> String {
    let tag = with_tag(tag);
    match tag.split_once('/') {
        None => format!("docker.io/library/{tag}"),
        Some((first, _)) if first.contains(['.', ':']) || first == "localhost" => tag,
        Some(_) => format!("docker.io/{tag}"),
    }
}

fn member(out: &mut impl Write, name: &str, bytes: &[u8]) -> io::Result<()> {
    header(out, name, bytes.len() as u64)?;
    out.write_all(bytes)?;
    pad(out, bytes.len() as u64)
}

fn header(out: &mut impl Write, name: &str, size: u64) -> io::Result<()> {
    let kind = NodeKind::File { size, content: Digest::from_raw([0; 32]), facts: None };
    write(out, name, &kind, 0o644)
}

fn folder(out: &mut impl Write, name: &str) -> io::Result<()> {
    write(out, name, &NodeKind::Dir, 0o755)
}

fn write(out: &mut impl Write, name: &str, kind: &NodeKind, mode: u32) -> io::Result<()> {
    let path = RootPath::parse(name.as_bytes()).expect("a plain name");
    write_header(out, &path, &What::Node(kind), &Meta { mode, ..Meta::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_written_in_full() {
        for (tag, want) in [
            ("nginx-slim", "docker.io/library/nginx-slim:latest"),
            ("corpus/nginx:1", "docker.io/corpus/nginx:1"),
            ("localhost/app", "localhost/app:latest"),
            ("registry:5000/app:2", "registry:5000/app:2"),
            ("quay.io/a/b:c", "quay.io/a/b:c"),
        ] {
            assert_eq!(full_reference(tag), want);
        }
    }
}
