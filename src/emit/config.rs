//! The result's configuration and manifest: values in, bytes out.

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::model::{Digest, KeepSet};
use crate::oci::manifest::{Descriptor, Manifest, OCI_CONFIG, OCI_MANIFEST};
use crate::oci::{Image, Layer};

use super::EmitError;
use super::blob::Written;
use super::edits::Edits;
use super::plan::Plan;

/// image-spec v1.1, annotations.md.
const BASE_DIGEST: &str = "org.opencontainers.image.base.digest";
const BASE_NAME: &str = "org.opencontainers.image.base.name";
/// Digest over the kept paths, escaped, sorted, a line each.
const KEEP_SET: &str = "slim.keep-set.digest";

/// The original's configuration with the result's layers and what the user edits; everything else as
/// it was.
pub(super) fn edit(
    original: &[u8],
    layers: &[Written],
    plan: &Plan<'_>,
    edits: &Edits,
) -> Result<Vec<u8>, EmitError> {
    let mut config: Value = serde_json::from_slice(original).map_err(|_| EmitError::Config)?;
    let top = config.as_object_mut().ok_or(EmitError::Config)?;
    let ids: Vec<String> = layers.iter().map(|layer| layer.diff_id.to_string()).collect();
    match top.get_mut("rootfs").and_then(Value::as_object_mut) {
        Some(rootfs) => {
            rootfs.insert("diff_ids".into(), json!(ids));
        }
        None => {
            top.insert("rootfs".into(), json!({ "type": "layers", "diff_ids": ids }));
        }
    }
    if let Some(history) = top.get_mut("history").and_then(Value::as_array_mut) {
        trim(history, plan);
    }
    edits.apply(top);
    serde_json::to_vec(&config).map_err(|_| EmitError::Config)
}

/// Every layer has a step of the history that is not empty. A step whose layer went, or was merged
/// into a later one, becomes an empty one. Where an original tells of fewer steps than it has layers,
/// which engines refuse to convert, the others are added.
fn trim(history: &mut Vec<Value>, plan: &Plan<'_>) {
    if history.is_empty() {
        return;
    }
    let last_of = |output: usize| plan.output_of.iter().rposition(|o| *o == Some(output));
    let mut layer = 0;
    for step in history.iter_mut().filter_map(Value::as_object_mut) {
        if step.get("empty_layer").and_then(Value::as_bool) == Some(true) {
            continue;
        }
        let output = plan.output_of.get(layer).copied().flatten();
        if output.is_none_or(|output| last_of(output) != Some(layer)) {
            step.insert("empty_layer".into(), json!(true));
        }
        layer += 1;
    }
    let missing = (layer..plan.output_of.len())
        .filter(|at| plan.output_of[*at].is_some_and(|output| last_of(output) == Some(*at)));
    history.extend(missing.map(|_| json!({ "comment": "not in the original's history" })));
}

/// The manifest: the original's annotations, and what is known before the image is verified.
pub(super) fn manifest(
    image: &Image,
    keep: &KeepSet,
    config: &[u8],
    layers: &[Written],
) -> Vec<u8> {
    let mut annotations = image.annotations.clone();
    // Of what the original was made from; the result is made from the original.
    annotations.remove(BASE_NAME);
    annotations.insert(BASE_DIGEST.to_owned(), image.manifest_digest.to_string());
    annotations.insert(KEEP_SET.to_owned(), keep_digest(keep).to_string());
    let manifest = Manifest {
        schema_version: 2,
        media_type: OCI_MANIFEST.into(),
        config: descriptor(OCI_CONFIG, Digest::of(config), config.len() as u64),
        layers: layers.iter().map(|layer| described(image, layer)).collect(),
        annotations,
    };
    serde_json::to_vec(&manifest).expect("a manifest is plain JSON")
}

/// What is said of a blob holds as long as it is that blob: the digests and places in it of eStargz
/// and zstd:chunked are wrong once the layer is compressed again.
fn described(image: &Image, layer: &Written) -> Descriptor {
    let new = descriptor(layer.media_type, layer.digest, layer.size);
    let same = |of: &&Layer| of.blob.is_some_and(|(digest, _)| digest == layer.digest);
    match image.layers.iter().find(same).cloned() {
        Some(Layer { annotations, urls, .. }) => Descriptor { annotations, urls, ..new },
        None => new,
    }
}

pub(super) fn descriptor(media_type: &str, digest: Digest, size: u64) -> Descriptor {
    Descriptor {
        media_type: media_type.into(),
        digest: digest.to_string(),
        size,
        ..Descriptor::default()
    }
}

fn keep_digest(keep: &KeepSet) -> Digest {
    let mut hash = Sha256::new();
    for path in keep.paths.keys() {
        hash.update(path.escaped().as_bytes());
        hash.update("\n");
    }
    Digest::from_raw(hash.finalize().into())
}
