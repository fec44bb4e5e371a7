//! An image as the archive that engines load, written while they read it.
//!
//! One tar is both an OCI layout and what `docker load` reads, so that an engine keeps what it knows
//! to keep: the manifest and its digest where it can, the configuration in any case.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Seek as _, SeekFrom, Write};

use serde_json::{Value, json};

use crate::model::Digest;
use crate::oci::Image;
use crate::oci::manifest::{
    CONTAINERD_NAME, DockerItem, OCI_INDEX, OCI_MANIFEST, Platform, REF_NAME,
};
use crate::wire::Reference;

use super::engine::go_on;

/// What is loaded, and as what.
#[derive(Clone, Copy)]
pub struct Parcel<'a> {
    pub image: &'a Image,
    /// Its manifest, where it has one.
    pub manifest: Option<&'a [u8]>,
    /// What it is to be called; the first name travels in the archive.
    pub names: &'a [Reference],
    /// Hears how many bytes of the layers went by, and of how many.
    pub progress: &'a (dyn Fn(u64, u64) + Sync),
}

impl Parcel<'_> {
    /// Writes the archive. Layers that are not `readable` go in uncompressed, and the manifest, of
    /// which they are no part then, stays away.
    pub(super) fn write(
        &self,
        to: &mut dyn Write,
        readable: &dyn Fn(&str) -> bool,
    ) -> io::Result<()> {
        let all = self.image.layers.iter().all(|layer| readable(&layer.media_type));
        let manifest = self.manifest.filter(|_| all);
        let mut tar = tar::Builder::new(to);
        let mut written = BTreeSet::new();
        let config = blob(&self.image.config_digest);
        member(&mut tar, &config, &self.image.config_bytes)?;
        written.insert(config.clone());
        let mut layers = Vec::new();
        let (mut done, total) = (0, self.image.stored_bytes());
        for at in 0..self.image.layers.len() {
            let name = self.layer_name(at, readable);
            if written.insert(name.clone()) {
                self.layer(&mut tar, at, &name, readable, &|n| (self.progress)(done + n, total))?;
            }
            done += self.image.stored_size(at);
            layers.push(name);
        }
        if let Some(manifest) = manifest {
            let digest = Digest::of(manifest);
            member(&mut tar, &blob(&digest), manifest)?;
            member(&mut tar, "index.json", self.index(manifest, &digest).to_string().as_bytes())?;
            member(&mut tar, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        }
        let first = self.names.first();
        let item =
            DockerItem { config, repo_tags: first.map(|name| vec![name.to_string()]), layers };
        member(&mut tar, "manifest.json", &serde_json::to_vec(&[item])?)?;
        tar.into_inner()?.flush()
    }

    fn index(&self, manifest: &[u8], digest: &Digest) -> Value {
        let parsed: Value = serde_json::from_slice(manifest).unwrap_or_default();
        let kind = parsed["mediaType"].as_str().unwrap_or(OCI_MANIFEST);
        let platform = Platform::parse(&self.image.platform);
        let mut entry = json!({
            "mediaType": kind, "digest": digest.to_string(), "size": manifest.len(), "platform": platform,
        });
        if let Some(name) = self.names.first() {
            // Podman takes the name from the one, containerd from the other; both want it in full.
            entry["annotations"] =
                json!({ REF_NAME: name.to_string(), CONTAINERD_NAME: name.to_string() });
        }
        json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry] })
    }

    /// By its blob where that goes in as it is, else by its content.
    fn layer_name(&self, at: usize, readable: &dyn Fn(&str) -> bool) -> String {
        let layer = &self.image.layers[at];
        let stored = layer.blob.filter(|_| readable(&layer.media_type)).map(|(digest, _)| digest);
        blob(&stored.unwrap_or(layer.diff_id.0))
    }

    fn layer(
        &self,
        tar: &mut tar::Builder<&mut dyn Write>,
        at: usize,
        name: &str,
        readable: &dyn Fn(&str) -> bool,
        progress: &dyn Fn(u64),
    ) -> io::Result<()> {
        let layer = &self.image.layers[at];
        let stored = Told { from: self.image.blobs.open(at)?, n: 0, progress };
        if !readable(&layer.media_type) {
            return spooled(tar, name, zstd::stream::read::Decoder::new(stored)?);
        }
        match layer.blob.map(|(_, size)| size).or_else(|| self.image.blobs.size(at)) {
            Some(size) => sized(tar, name, size, stored),
            None => spooled(tar, name, stored),
        }
    }
}

/// Says how many bytes were read.
struct Told<'a, R> {
    from: R,
    n: u64,
    progress: &'a dyn Fn(u64),
}

impl<R: Read> Read for Told<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        go_on()?;
        let n = self.from.read(buf)?;
        self.n += n as u64;
        (self.progress)(self.n);
        Ok(n)
    }
}

fn blob(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn member(tar: &mut tar::Builder<&mut dyn Write>, name: &str, bytes: &[u8]) -> io::Result<()> {
    sized(tar, name, bytes.len() as u64, bytes)
}

fn sized(
    tar: &mut tar::Builder<&mut dyn Write>,
    name: &str,
    size: u64,
    from: impl Read,
) -> io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(size);
    header.set_mode(0o644);
    let mut counted = Counted { from: from.take(size), n: 0 };
    tar.append_data(&mut header, name, &mut counted)?;
    if counted.n == size {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::UnexpectedEof, format!("{name} ends early")))
}

/// A tar's header says the size, which only the whole content tells here.
fn spooled(
    tar: &mut tar::Builder<&mut dyn Write>,
    name: &str,
    mut from: impl Read,
) -> io::Result<()> {
    let mut file: File = tempfile::tempfile()?;
    let size = io::copy(&mut from, &mut file)?;
    file.seek(SeekFrom::Start(0))?;
    sized(tar, name, size, file)
}

struct Counted<R> {
    from: R,
    n: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.from.read(buf)?;
        self.n += n as u64;
        Ok(n)
    }
}
