//! Docker's layers where they lie: `image/overlay2/layerdb/sha256/CHAIN/{cache-id,tar-split.json.gz}`
//! and `overlay2/CACHE-ID/diff` below the engine's folder (moby, `layer/filestore.go`).
//!
//! Nothing that is read is believed: configuration and layers are checked by their digests. Where
//! anything is not as it was found with overlay2, the caller asks for an export instead.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::model::{ChainId, Digest, ImageConfig};
use crate::oci::tarsplit;
use crate::wire::engine::{Engine, Host};

use super::unpacked::{self, Parts, Place};

const DRIVER: &str = "overlay2";

/// The parts of the image that the engine says `known` of, or why they cannot be read in place.
pub(super) fn in_place(engine: &Engine, name: &str, known: &Value) -> Result<Parts, String> {
    if !matches!(Host::find(), Ok(Host::Unix(_))) {
        return Err("the engine may be on another host".into());
    }
    if !unpacked::may_use_in_place() {
        return Err("slim is not root".into());
    }
    let info = engine.json("/info", "where it keeps images").map_err(|error| error.to_string())?;
    let root = root(&info)?;
    let id: Digest = known["Id"]
        .as_str()
        .and_then(|id| id.parse().ok())
        .ok_or_else(|| "the engine gives no id".to_owned())?;
    let store = root.join("image").join(DRIVER);
    let path = store.join("imagedb/content/sha256").join(id.hex());
    let config_bytes = std::fs::read(&path).map_err(|e| failed(&path, &e))?;
    if Digest::of(&config_bytes) != id {
        return Err(failed(&path, &"not the image's configuration"));
    }
    let config = serde_json::from_slice(&config_bytes).map_err(|error| error.to_string())?;
    let diff_ids = ImageConfig(config).diff_ids();
    let layer = |at: usize| layer(&root, &store, &ChainId::of(&diff_ids[..=at]));
    let layers = (0..diff_ids.len()).map(layer).collect::<Result<_, _>>()?;
    let place = format!("docker-daemon:{name}").into();
    let (manifest_digest, annotations) = (None, BTreeMap::new());
    Ok(Parts { place, name: None, config_bytes, manifest_digest, annotations, layers })
}

/// The engine's folder, if it keeps images there as slim knows it.
fn root(info: &Value) -> Result<PathBuf, String> {
    let driver = info["Driver"].as_str().unwrap_or_default();
    if driver != DRIVER {
        return Err(format!("the engine keeps images with {driver}, not {DRIVER}"));
    }
    let options = info["SecurityOptions"].as_array().into_iter().flatten();
    let shifts = ["name=userns", "name=rootless"];
    if options.filter_map(Value::as_str).any(|option| shifts.contains(&option)) {
        return Err("the engine maps users, so that files have other owners".into());
    }
    let root = info["DockerRootDir"].as_str().filter(|root| root.starts_with('/'));
    root.map(PathBuf::from).ok_or_else(|| "the engine does not say where its folder is".into())
}

fn layer(root: &Path, store: &Path, chain: &ChainId) -> Result<Place, String> {
    let record = store.join("layerdb/sha256").join(chain.0.hex());
    let cache = record.join("cache-id");
    let id = std::fs::read_to_string(&cache).map_err(|e| failed(&cache, &e))?;
    let id = id.trim();
    if id.is_empty() || !id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
        return Err(failed(&cache, &"no id"));
    }
    let folder = root.join(DRIVER).join(id).join("diff");
    if !folder.is_dir() {
        return Err(failed(&folder, &"no folder"));
    }
    let list = record.join("tar-split.json.gz");
    let size = tarsplit::size(&list).map_err(|e| failed(&list, &e))?;
    Ok(Place { list, folder, size, lower: true })
}

fn failed(path: &Path, error: &dyn std::fmt::Display) -> String {
    format!("{}: {error}", path.display())
}
