//! An OCI image layout (image-spec, image-layout.md), in a folder or in a tar.

use std::sync::Arc;

use crate::model::{Digest, ImageConfig};
use crate::oci::manifest::{
    CONTAINERD_NAME, Descriptor, Index, Manifest, Platform, REF_NAME, is_index, is_layer,
    is_manifest,
};
use crate::oci::{BlobSource, Image};

use super::container::{Blobs, Container, blob_name, pair_layers};
use super::{SourceError, full_name, names};

/// Indexes may nest (image-spec, image-index.md); so deep none does in earnest.
const MAX_DEPTH: usize = 8;

pub(super) fn read(
    container: Container,
    tag: Option<&str>,
    platform: &str,
    pin: Option<Digest>,
) -> Result<Image, SourceError> {
    let index: Index = container.json("index.json", &container.read("index.json")?)?;
    let pinned = |d: &&Descriptor| pin.is_some_and(|pin| d.digest == pin.to_string());
    let top = match index.manifests.iter().find(pinned).filter(|_| tag.is_none()) {
        Some(top) => top,
        None => choose(&container, &index, tag, platform)?,
    };
    let name = image_names(top).into_iter().find_map(full_name);
    read_top(container, top, name, platform, pin)
}

/// The image of a manifest or index, whoever names it.
pub(super) fn read_top(
    container: Container,
    top: &Descriptor,
    name: Option<String>,
    platform: &str,
    pin: Option<Digest>,
) -> Result<Image, SourceError> {
    let mut found = Vec::new();
    let manifest = descend(&container, top, platform, &mut found, 0)?;
    let Some((manifest, manifest_digest)) = manifest else {
        let (path, wanted) = (container.path.clone(), platform.to_owned());
        return Err(SourceError::Platform { path, wanted, found });
    };
    let pinned = |pin: Digest| pin == manifest_digest || top.digest == pin.to_string();
    if let Some(want) = pin.filter(|pin| !pinned(*pin)) {
        let (path, got) = (container.path.clone(), manifest_digest);
        return Err(SourceError::Pin { path, want, got });
    }
    let (config_digest, config_bytes) = container.blob("configuration", &manifest.config)?;
    let config = ImageConfig(container.json("configuration", &config_bytes)?);
    let mut layers = Vec::new();
    for (at, layer) in manifest.layers.iter().enumerate() {
        let what = format!("layer {at}");
        if !is_layer(&layer.media_type) {
            let (path, found) = (container.path.clone(), layer.media_type.clone());
            return Err(SourceError::MediaType { path, what, found });
        }
        let digest = container.digest(&what, layer)?;
        let foreign = ["foreign", "nondistributable"].iter().any(|k| layer.media_type.contains(k));
        if foreign && !container.has(&blob_name(&digest)) {
            let path = container.path.clone();
            return Err(SourceError::Foreign { path, layer: at, digest });
        }
        container.size(&blob_name(&digest)).map_err(|source| SourceError::Read {
            path: container.path.clone(),
            what: format!("{what}, blob {digest}"),
            source,
        })?;
        layers.push((layer.media_type.clone(), Some((digest, layer.size))));
    }
    let blobs = layers.iter().filter_map(|(_, blob)| *blob);
    let names = blobs.map(|(digest, _)| blob_name(&digest)).collect();
    let layers = pair_layers(&container, layers, &config.diff_ids())?;
    let described = layers.into_iter().zip(&manifest.layers).map(|(l, of)| l.described(of));
    let layers = described.collect();
    let blobs: Arc<dyn BlobSource> = Arc::new(Blobs { container, names });
    Ok(Image {
        name,
        platform: config.platform(),
        manifest_digest,
        annotations: manifest.annotations,
        config_digest,
        config,
        config_bytes: config_bytes.into(),
        layers,
        blobs,
    })
}

/// The names an index gives an image, the fullest first.
fn image_names(descriptor: &Descriptor) -> Vec<&str> {
    let get = |key| descriptor.annotations.get(key).map(String::as_str);
    [get(CONTAINERD_NAME), get(REF_NAME)].into_iter().flatten().collect()
}

/// The entry of `index.json` that is meant: by tag, else the only one, else the only one that fits
/// the platform (an untagged index.json may itself be the list of platforms).
fn choose<'a>(
    container: &Container,
    index: &'a Index,
    tag: Option<&str>,
    platform: &str,
) -> Result<&'a Descriptor, SourceError> {
    let path = || container.path.clone();
    let images: Vec<&Descriptor> = index.manifests.iter().filter(|d| d.is_image()).collect();
    let shown =
        |d: &&Descriptor| image_names(d).last().map_or(d.digest.clone(), |n| (*n).to_owned());
    if images.is_empty() {
        return Err(match index.manifests.first() {
            None => SourceError::Empty { path: path() },
            Some(other) => SourceError::MediaType {
                path: path(),
                what: "an entry in index.json".into(),
                found: other.media_type.clone(),
            },
        });
    }
    let tagged = |d: &&&Descriptor| {
        tag.is_none_or(|tag| d.digest == tag || image_names(d).iter().any(|name| names(name, tag)))
    };
    let meant: Vec<&Descriptor> = images.iter().filter(tagged).copied().collect();
    if let Some(wanted) = tag.filter(|_| meant.is_empty()) {
        let found = images.iter().map(shown).collect();
        return Err(SourceError::NoSuchTag { path: path(), wanted: wanted.into(), found });
    }
    if let [only] = meant[..] {
        return Ok(only);
    }
    let fits = |d: &&&Descriptor| d.platform.as_ref().is_none_or(|p| p.matches(platform));
    let fitting: Vec<&Descriptor> = meant.iter().filter(fits).copied().collect();
    match fitting[..] {
        [only] => Ok(only),
        [] => {
            let found =
                meant.iter().filter_map(|d| Some(d.platform.as_ref()?.to_string())).collect();
            Err(SourceError::Platform { path: path(), wanted: platform.into(), found })
        }
        _ => {
            Err(SourceError::Ambiguous { path: path(), found: fitting.iter().map(shown).collect() })
        }
    }
}

/// The one image that is meant, whatever its platform; several names of it are one.
pub(super) fn only<'a>(
    container: &Container,
    index: &'a Index,
    tag: Option<&str>,
) -> Result<&'a Descriptor, SourceError> {
    let first = |d: &&Descriptor| index.manifests.iter().find(|o| o.digest == d.digest) == Some(*d);
    let named = |d: &&Descriptor| {
        tag.is_none_or(|tag| d.digest == tag || image_names(d).iter().any(|n| names(n, tag)))
    };
    let meant: Vec<&Descriptor> =
        index.manifests.iter().filter(|d| d.is_image()).filter(named).collect();
    let different: Vec<&Descriptor> = meant.iter().copied().filter(first).collect();
    let path = container.path.clone();
    let shown = |d: &&Descriptor| image_names(d).first().map_or(d.digest.clone(), |n| (*n).into());
    match (&different[..], &meant[..], tag) {
        ([only], ..) | (_, [only], _) => Ok(only),
        ([], [], None) => Err(SourceError::Empty { path }),
        ([], [], Some(wanted)) => {
            let found = index.manifests.iter().map(|d| shown(&d)).collect();
            Err(SourceError::NoSuchTag { path, wanted: wanted.to_owned(), found })
        }
        _ => Err(SourceError::Ambiguous { path, found: meant.iter().map(shown).collect() }),
    }
}

type Found = (Manifest, Digest);

/// Follows indexes down to the manifest for `platform`; collects the platforms passed by.
fn descend(
    container: &Container,
    descriptor: &Descriptor,
    platform: &str,
    passed: &mut Vec<String>,
    depth: usize,
) -> Result<Option<Found>, SourceError> {
    let kind = &descriptor.media_type;
    if is_manifest(kind) {
        let (digest, bytes) = container.blob("manifest", descriptor)?;
        let manifest: Manifest = container.json("manifest", &bytes)?;
        let real = real_platform(container, descriptor, &manifest)?;
        if real.matches(platform) {
            return Ok(Some((manifest, digest)));
        }
        passed.push(real.to_string());
        return Ok(None);
    }
    if !is_index(kind) || depth == MAX_DEPTH {
        let (path, what) = (container.path.clone(), "an index entry".to_owned());
        return Err(SourceError::MediaType { path, what, found: kind.clone() });
    }
    let (_, bytes) = container.blob("index", descriptor)?;
    let index: Index = container.json("index", &bytes)?;
    for below in index.manifests.iter().filter(|d| d.is_image()) {
        // A partial copy of an index lacks the blobs of other platforms: do not ask for them.
        if let Some(other) = below.platform.as_ref().filter(|p| !p.matches(platform)) {
            passed.push(other.to_string());
            continue;
        }
        if let Some(found) = descend(container, below, platform, passed, depth + 1)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// What the descriptor says, else what the configuration says.
fn real_platform(
    container: &Container,
    descriptor: &Descriptor,
    manifest: &Manifest,
) -> Result<Platform, SourceError> {
    if let Some(platform) = &descriptor.platform {
        return Ok(platform.clone());
    }
    let (_, bytes) = container.blob("configuration", &manifest.config)?;
    let config = ImageConfig(container.json("configuration", &bytes)?);
    Ok(Platform::parse(&config.platform()))
}
