//! Into Docker's engine, by its API.

use std::sync::Arc;

use serde_json::Value;

use crate::wire::engine::{self, Engine, in_path};

use super::SinkError;
use super::archive::Parcel;
use super::engine::{piped, unless_interrupted};

const ENGINE: &str = "Docker's engine";

pub(super) fn load(parcel: Parcel<'_>) -> Result<String, SinkError> {
    let engine = Arc::new(Engine::open()?);
    let said = piped(parcel, readable, |archive| {
        let engine = Arc::clone(&engine);
        let said = unless_interrupted(move || {
            engine.post("/images/load?quiet=1", "to load the image", Some(Box::new(archive)))
        });
        // Once it has read all it cannot be told to stop.
        Ok(said.ok_or(SinkError::Interrupted { engine: ENGINE })??)
    })?;
    // It answers 200 before it reads on: what fails after that is told in the stream.
    let failure = said.lines().find_map(|line| {
        let line: Value = serde_json::from_str(line).ok()?;
        line["error"].as_str().map(str::to_owned)
    });
    if let Some(mut why) = failure {
        // layer_store.go: its drivers stack 125.
        if why.contains("max depth") {
            let layers = parcel.image.layers.len();
            why = format!(
                "{why}: it takes 125 layers, and the image has {layers}; Podman and containerd take more"
            );
        }
        return Err(SinkError::Engine { engine: ENGINE, why });
    }
    let image = parcel.image;
    let first = parcel.names.first();
    let asked = first.map_or(image.config_digest.to_string(), |name| name.familiar());
    let known = engine.json(&format!("/images/{}/json", in_path(&asked)), &asked)?;
    let id = known["Id"].as_str().unwrap_or_default().to_owned();
    check(parcel, &id, &known)?;
    for name in parcel.names.iter().skip(1) {
        let (repository, tag) = (name.name(), name.tag.as_deref().unwrap_or("latest"));
        let path = format!("/images/{}/tag?repo={}&tag={tag}", in_path(&id), in_path(&repository));
        engine.post(&path, "to tag the image", None)?;
    }
    Ok(id)
}

/// Engines before 23.0 cannot read zstd.
fn readable(media_type: &str) -> bool {
    !media_type.contains("zstd")
}

/// An image's id is the digest of its configuration; with containerd's store that of its manifest,
/// which the engine may have made itself.
fn check(parcel: Parcel<'_>, id: &str, known: &Value) -> Result<(), SinkError> {
    let image = parcel.image;
    let expected = [image.config_digest.to_string(), image.manifest_digest.to_string()];
    let layers: Vec<String> = image.diff_ids().iter().map(ToString::to_string).collect();
    let told = engine::layers(known);
    // Where it got none, containerd's store makes a manifest.
    let whole = image.layers.iter().all(|layer| readable(&layer.media_type));
    let made = known["Descriptor"].is_object() && !(whole && parcel.manifest.is_some());
    if (made || expected.iter().any(|one| one == id)) && told == layers {
        return Ok(());
    }
    let why = format!("it has {id} now, and not {}: load the image again", image.config_digest);
    Err(SinkError::Engine { engine: ENGINE, why })
}
