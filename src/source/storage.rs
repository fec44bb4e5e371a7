//! An image in containers-storage, which Podman, Buildah, skopeo and CRI-O share.
//!
//! Below its root lie `overlay-images/images.json` with a folder for each image (manifest and
//! configuration, named by key), `overlay-layers/{layers.json,ID.tar-split.gz}` and
//! `overlay/ID/diff`. The files are replaced whole, never written in place, so that reading them takes
//! no lock.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::model::{DiffId, Digest, ImageConfig};
use crate::oci::Image;
use crate::oci::manifest::Manifest;
use crate::wire::Reference;

use super::storage_conf::{self, Storage};
use super::trust::{self, Origin};
use super::unpacked::{self, Parts, Place};
use super::{Access, SourceError, host_platform};

const TRANSPORT: &str = "containers-storage";
const ENGINE: &str = "Podman's storage";

#[derive(Debug, Clone, Deserialize)]
struct Record {
    id: String,
    #[serde(default)]
    digest: String,
    #[serde(default)]
    names: Option<Vec<String>>,
    #[serde(default)]
    layer: String,
    #[serde(default, rename = "big-data-names")]
    keys: Option<Vec<String>>,
}

#[derive(Debug, Clone, Deserialize)]
struct LayerRecord {
    id: String,
    #[serde(default)]
    parent: String,
    #[serde(default, rename = "diff-digest")]
    diff_id: String,
    #[serde(default, rename = "diff-size")]
    size: u64,
    #[serde(default)]
    uidmap: Option<Vec<serde_json::Value>>,
    #[serde(default)]
    gidmap: Option<Vec<serde_json::Value>>,
}

#[derive(Debug, Clone, Deserialize)]
struct ContainerRecord {
    id: String,
    #[serde(default)]
    names: Option<Vec<String>>,
    #[serde(default)]
    image: String,
}

/// Opens `[[DRIVER@ROOT[+RUNROOT][:OPTIONS]]]NAME[:TAG][@DIGEST]` or an id, in the storages that
/// Podman would use where none is given.
///
/// # Errors
/// None of them has it, the policy refuses it, or it is damaged.
pub(super) fn read(text: &str, access: &Access) -> Result<Image, SourceError> {
    let (storages, name) = storage_conf::split(text)?;
    for storage in made(&storages)? {
        if let Some(image) = find(storage, name, access)? {
            return Ok(image);
        }
    }
    Err(SourceError::NotInEngine { engine: ENGINE, name: name.to_owned() })
}

/// What it is called in messages, with where it is.
pub(super) fn place() -> String {
    let storages = storage_conf::split("").map(|(storages, _)| storages).unwrap_or_default();
    let roots: Vec<String> = storages.iter().map(|s| s.root.display().to_string()).collect();
    if roots.is_empty() { ENGINE.to_owned() } else { format!("{ENGINE} ({})", roots.join(", ")) }
}

/// The image that a container was made from, as [`read`] takes it.
///
/// # Errors
/// There is no such container.
pub(super) fn of_container(container: &str) -> Result<String, SourceError> {
    let (storages, _) = storage_conf::split("")?;
    for storage in made(&storages)? {
        let list = storage.root.join(format!("{}-containers/containers.json", storage.driver));
        if !list.exists() {
            continue;
        }
        let all: Vec<ContainerRecord> = json(&list, "containers.json")?;
        let named = |c: &&ContainerRecord| c.names.iter().flatten().any(|name| name == container);
        let with_id = |c: &&ContainerRecord| is_id(container) && c.id.starts_with(container);
        let found = all.iter().find(named).or_else(|| all.iter().find(with_id));
        if let Some(found) = found.filter(|c| !c.image.is_empty()) {
            return Ok(format!("{}{}", storage.spec(), found.image));
        }
    }
    Err(SourceError::NotInEngine { engine: ENGINE, name: container.to_owned() })
}

/// The storages that there are.
fn made(storages: &[Storage]) -> Result<Vec<&Storage>, SourceError> {
    let there = |s: &&Storage| s.root.join(format!("{}-images", s.driver)).exists();
    let found: Vec<&Storage> = storages.iter().filter(there).collect();
    if found.is_empty() {
        let roots: Vec<String> = storages.iter().map(|s| s.root.display().to_string()).collect();
        let why = format!("nothing is stored in {}", roots.join(" or "));
        return Err(SourceError::NoEngine { engine: ENGINE.to_owned(), why });
    }
    Ok(found)
}

fn find(storage: &Storage, name: &str, access: &Access) -> Result<Option<Image>, SourceError> {
    let folder = storage.root.join(format!("{}-images", storage.driver));
    let list = folder.join("images.json");
    if !list.exists() {
        return Ok(None);
    }
    let all: Vec<Record> = json(&list, "images.json")?;
    let Some((record, called)) = choose(&all, name) else { return Ok(None) };
    trust::admit(access, &origin(storage, called.as_deref(), name))?;
    let image = open(storage, &folder.join(&record.id), record, called, name, access)?;
    Ok(Some(image))
}

fn origin(storage: &Storage, called: Option<&str>, name: &str) -> Origin {
    match called.and_then(|called| called.parse::<Reference>().ok()) {
        Some(reference) => Origin::Storage { store: storage.spec(), reference },
        None => Origin::Unnamed { transport: TRANSPORT, shown: name.to_owned() },
    }
}

/// The image that `name` means, and its full name if it was found by that.
///
/// As Podman does: a name in full, `localhost/` and Docker's registry before any other registry for
/// a short one, then an id or the start of one.
fn choose<'a>(all: &'a [Record], name: &str) -> Option<(&'a Record, Option<String>)> {
    let bare = name.strip_prefix("sha256:").unwrap_or(name);
    let (named, pin) = match name.split_once('@') {
        Some((named, pin)) => (named, Some(pin)),
        None => (name, None),
    };
    let has_tag = named.rsplit('/').next().is_some_and(|last| last.contains(':'));
    let full = if has_tag || pin.is_some() { named.to_owned() } else { format!("{named}:latest") };
    let fits = |record: &Record, wanted: &dyn Fn(&str) -> bool| -> Option<String> {
        let pinned = pin.is_none_or(|pin| {
            let kept = format!("manifest-{pin}");
            record.digest == pin || record.keys.iter().flatten().any(|key| *key == kept)
        });
        record.names.iter().flatten().find(|name| pinned && wanted(name)).cloned()
    };
    let same = |stored: &str, wanted: &str| match pin {
        Some(_) if !has_tag => repository(stored) == wanted,
        _ => stored == wanted,
    };
    for prefix in ["", "localhost/", "docker.io/library/", "docker.io/"] {
        let wanted = format!("{prefix}{full}");
        let hit = |r: &'a Record| fits(r, &|stored| same(stored, &wanted)).map(|c| (r, Some(c)));
        if let Some(found) = all.iter().find_map(hit) {
            return Some(found);
        }
    }
    let tail = format!("/{full}");
    let anywhere = |stored: &str| match pin {
        Some(_) if !has_tag => repository(stored).ends_with(&tail),
        _ => stored.ends_with(&tail),
    };
    let hit = |r: &'a Record| fits(r, &anywhere).map(|c| (r, Some(c)));
    if let Some(found) = all.iter().find_map(hit) {
        return Some(found);
    }
    let mut by_id = all.iter().filter(|record| is_id(bare) && record.id.starts_with(bare));
    let first = by_id.next()?;
    by_id.next().is_none().then(|| {
        let called = first.names.iter().flatten().next().cloned();
        (first, called)
    })
}

fn repository(name: &str) -> &str {
    let name = name.split('@').next().unwrap_or(name);
    match name.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => repository,
        _ => name,
    }
}

/// Long enough for an id not to be a word.
fn is_id(text: &str) -> bool {
    (7..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit())
}

fn open(
    storage: &Storage,
    folder: &Path,
    record: &Record,
    called: Option<String>,
    name: &str,
    access: &Access,
) -> Result<Image, SourceError> {
    let place: PathBuf = format!("{TRANSPORT}:{}{name}", storage.spec()).into();
    let (manifest, manifest_digest) = manifest(folder, record, &place, name)?;
    let config_digest: Digest = manifest.config.digest.parse().map_err(|source| {
        SourceError::Digest { path: place.clone(), what: "configuration".into(), source }
    })?;
    let config_bytes =
        unpacked::read(&folder.join(file_name(&manifest.config.digest)), "configuration")?;
    let got = Digest::of(&config_bytes);
    if got != config_digest {
        let (path, what) = (place, "configuration".to_owned());
        return Err(SourceError::WrongDigest { path, what, want: config_digest, got });
    }
    let config = serde_json::from_slice(&config_bytes).map_err(|source| SourceError::Json {
        path: place.clone(),
        what: "configuration".into(),
        source,
    })?;
    let layers = layers(storage, record, &ImageConfig(config).diff_ids(), &place)?;
    let platform = access.platform.clone().unwrap_or_else(host_platform);
    let name = called.as_deref().and_then(super::full_name);
    let manifest_digest = Some(manifest_digest);
    let annotations = manifest.annotations;
    let parts = Parts { place, name, config_bytes, manifest_digest, annotations, layers };
    unpacked::image(parts, &platform)
}

/// The image's manifest: the one that is asked for by digest, else the one that it is known by. An
/// index may be kept beside it, of which only this host's image was pulled.
fn manifest(
    folder: &Path,
    record: &Record,
    place: &Path,
    name: &str,
) -> Result<(Manifest, Digest), SourceError> {
    let keys = record.keys.clone().unwrap_or_default();
    let pin = name.split_once('@').map(|(_, pin)| format!("manifest-{pin}"));
    let mut order: Vec<String> = pin.into_iter().collect();
    order.push("manifest".into());
    order.extend(keys.iter().filter(|key| key.starts_with("manifest-")).cloned());
    let mut last = None;
    for key in order.iter().filter(|key| keys.contains(key)) {
        let bytes = unpacked::read(&folder.join(file_name(key)), key)?;
        let digest = Digest::of(&bytes);
        let want = key.strip_prefix("manifest-").and_then(|text| text.parse::<Digest>().ok());
        if let Some(want) = want.filter(|want| *want != digest) {
            let (path, what) = (place.to_owned(), "manifest".to_owned());
            return Err(SourceError::WrongDigest { path, what, want, got: digest });
        }
        match serde_json::from_slice::<Manifest>(&bytes) {
            Ok(manifest) if keys.contains(&manifest.config.digest) => {
                return Ok((manifest, digest));
            }
            Ok(_) => {}
            Err(source) => last = Some(source),
        }
    }
    let path = place.to_owned();
    Err(match last {
        Some(source) => SourceError::Json { path, what: "manifest".into(), source },
        None => SourceError::NotAnImage { path, why: "the storage has no manifest for it".into() },
    })
}

/// The layers, from the topmost down by their parents, against the diffIDs.
fn layers(
    storage: &Storage,
    record: &Record,
    diff_ids: &[DiffId],
    place: &Path,
) -> Result<Vec<Place>, SourceError> {
    let folder = storage.root.join(format!("{}-layers", storage.driver));
    let all: Vec<LayerRecord> = json(&folder.join("layers.json"), "layers.json")?;
    let all: HashMap<&str, &LayerRecord> = all.iter().map(|l| (l.id.as_str(), l)).collect();
    let odd = |why: String| SourceError::NotAnImage { path: place.to_owned(), why };
    let in_place = unpacked::may_use_in_place() && storage.driver == "overlay" && storage.plain;
    let (mut found, mut at) = (Vec::new(), record.layer.as_str());
    for want in diff_ids.iter().rev() {
        let layer =
            all.get(at).ok_or_else(|| odd(format!("the storage lacks its layer {want}")))?;
        if layer.diff_id != want.0.to_string() {
            return Err(odd(format!(
                "the storage has {} as layer {at}, the configuration {want}; `podman save {} -o image.tar` and --image docker-archive:image.tar may do",
                layer.diff_id, record.id
            )));
        }
        let mapped =
            [&layer.uidmap, &layer.gidmap].iter().any(|map| map.iter().flatten().next().is_some());
        let files = match storage.driver.as_str() {
            "overlay" => storage.root.join("overlay").join(at).join("diff"),
            _ => storage.root.join("vfs/dir").join(at),
        };
        found.push(Place {
            list: folder.join(format!("{at}.tar-split.gz")),
            folder: files,
            size: layer.size,
            lower: in_place && !mapped,
        });
        at = &layer.parent;
    }
    found.reverse();
    Ok(found)
}

fn json<T: DeserializeOwned>(path: &Path, what: &str) -> Result<T, SourceError> {
    let bytes = unpacked::read(path, what)?;
    let bad = |source| SourceError::Json { path: path.to_owned(), what: what.to_owned(), source };
    serde_json::from_slice(&bytes).map_err(bad)
}

/// The file that holds `key`: the key itself if it is letters, digits and dots, else `=` and base64.
fn file_name(key: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'.';
    if !key.starts_with('.') && key.bytes().all(plain) {
        return key.to_owned();
    }
    format!("={}", base64::engine::general_purpose::STANDARD.encode(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_as_podman_finds_them() {
        let record = |id: &str, names: &[&str]| Record {
            id: id.repeat(16),
            digest: format!("sha256:{}", id.repeat(16)),
            names: Some(names.iter().map(|name| (*name).to_owned()).collect()),
            layer: String::new(),
            keys: None,
        };
        let all = [
            record("aaaa", &["quay.io/x/app:latest"]),
            record("bbbb", &["docker.io/library/app:latest", "docker.io/library/app:1"]),
            record("cccc", &["localhost/own:2"]),
            record("dddd", &[]),
        ];
        for (name, want) in [
            ("quay.io/x/app", Some("aaaa")),
            ("x/app", Some("aaaa")),
            ("app", Some("bbbb")),
            ("app:1", Some("bbbb")),
            ("own:2", Some("cccc")),
            ("own", None),
            ("wn:2", None),
            ("ddddddd", Some("dddd")),
            ("dddd", None),
            (&format!("sha256:{}", "dddd".repeat(16)), Some("dddd")),
            (&format!("app@sha256:{}", "bbbb".repeat(16)), Some("bbbb")),
            (&format!("app@sha256:{}", "eeee".repeat(16)), None),
        ] {
            let got = choose(&all, name).map(|(record, _)| &record.id[..4]);
            assert_eq!(got, want, "{name}");
        }
    }

    #[test]
    fn keys_that_are_no_words_are_files_in_base64() {
        assert_eq!(file_name("manifest"), "manifest");
        assert_eq!(file_name("sha256:ab"), "=c2hhMjU2OmFi");
        assert_eq!(file_name(".x"), "=Lng=");
    }
}
