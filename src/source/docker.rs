//! A docker-archive: what `docker save` writes (moby's image specification v1.2, "Combined Image").

use std::path::Path;
use std::sync::Arc;

use crate::model::{Digest, ImageConfig};
use crate::oci::manifest::{
    Descriptor, DockerItem, Manifest, OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, Platform,
};
use crate::oci::{BlobSource, Image};

use super::container::{Blobs, Container, pair_layers};
use super::{SourceError, full_name, names};

pub(super) fn read(
    container: Container,
    tag: Option<&str>,
    platform: &str,
) -> Result<Image, SourceError> {
    let items: Vec<DockerItem> =
        container.json("manifest.json", &container.read("manifest.json")?)?;
    let item = choose(&container, &items, tag)?;
    let config_bytes = container.read(&item.config)?;
    let config_digest = Digest::of(&config_bytes);
    check_name(&container, &item.config, config_digest)?;
    let config = ImageConfig(container.json("configuration", &config_bytes)?);
    check_platform(&container.path, &config, platform)?;
    let mut sizes = Vec::new();
    for name in &item.layers {
        sizes.push(container.size(name).map_err(|source| SourceError::Read {
            path: container.path.clone(),
            what: format!("layer {name}"),
            source,
        })?);
    }
    let plain = item.layers.iter().map(|_| (OCI_LAYER.to_owned(), None)).collect();
    let layers = pair_layers(&container, plain, &config.diff_ids())?;
    let tags = item.repo_tags.as_deref().unwrap_or_default();
    let name = tags.first().and_then(|name| full_name(name));
    let config_size = config_bytes.len() as u64;
    let manifest_digest = stand_in(config_digest, config_size, &config, &sizes);
    let names = item.layers.clone();
    let blobs: Arc<dyn BlobSource> = Arc::new(Blobs { container, names });
    Ok(Image {
        name,
        platform: config.platform(),
        manifest_digest,
        annotations: Default::default(),
        config_digest,
        config,
        config_bytes: config_bytes.into(),
        layers,
        blobs,
    })
}

fn choose<'a>(
    container: &Container,
    items: &'a [DockerItem],
    tag: Option<&str>,
) -> Result<&'a DockerItem, SourceError> {
    let path = || container.path.clone();
    let tags = |item: &DockerItem| item.repo_tags.clone().unwrap_or_default();
    let all: Vec<String> = items
        .iter()
        .enumerate()
        .flat_map(|(at, item)| {
            let tags = tags(item);
            if tags.is_empty() { vec![format!("@{at}")] } else { tags }
        })
        .collect();
    let Some(wanted) = tag else {
        return match items {
            [] => Err(SourceError::Empty { path: path() }),
            [only] => Ok(only),
            _ => Err(SourceError::Ambiguous { path: path(), found: all }),
        };
    };
    let by_index = wanted.strip_prefix('@').and_then(|n| items.get(n.parse::<usize>().ok()?));
    let fits = |item: &&DockerItem| tags(item).iter().any(|name| names(name, wanted));
    let meant: Vec<&DockerItem> = items.iter().filter(fits).collect();
    match (by_index, &meant[..]) {
        (Some(item), _) => Ok(item),
        (None, [only]) => Ok(only),
        (None, []) => {
            Err(SourceError::NoSuchTag { path: path(), wanted: wanted.into(), found: all })
        }
        (None, _) => Err(SourceError::Ambiguous { path: path(), found: all }),
    }
}

/// The configuration's file is named by its digest, so that damage shows.
fn check_name(container: &Container, name: &str, got: Digest) -> Result<(), SourceError> {
    let stem = name.rsplit('/').next().unwrap_or(name).trim_end_matches(".json");
    match format!("sha256:{stem}").parse::<Digest>() {
        Ok(want) if want != got => Err(SourceError::WrongDigest {
            path: container.path.clone(),
            what: "configuration".into(),
            want,
            got,
        }),
        _ => Ok(()),
    }
}

pub(super) fn check_platform(
    path: &Path,
    config: &ImageConfig,
    wanted: &str,
) -> Result<(), SourceError> {
    let text = config.platform();
    let have = Platform::parse(&text);
    if have.matches(wanted) {
        return Ok(());
    }
    let path = path.to_owned();
    Err(SourceError::Platform { path, wanted: wanted.into(), found: vec![text] })
}

/// The digest of an OCI manifest over the uncompressed layers, the same for every copy of the image.
pub(super) fn stand_in(config: Digest, size: u64, parsed: &ImageConfig, sizes: &[u64]) -> Digest {
    let descriptor = |media_type: &str, digest: String, size| Descriptor {
        media_type: media_type.into(),
        digest,
        size,
        ..Descriptor::default()
    };
    let layers = parsed.diff_ids().into_iter().zip(sizes);
    let manifest = Manifest {
        schema_version: 2,
        media_type: OCI_MANIFEST.into(),
        config: descriptor(OCI_CONFIG, config.to_string(), size),
        layers: layers.map(|(id, size)| descriptor(OCI_LAYER, id.to_string(), *size)).collect(),
        annotations: Default::default(),
    };
    Digest::of(&serde_json::to_vec(&manifest).unwrap_or_default())
}
