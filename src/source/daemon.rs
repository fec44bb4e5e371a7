//! An image that Docker's engine has.

use std::fs::File;
use std::path::Path;

use serde_json::Value;

use crate::model::Digest;
use crate::oci::Image;
use crate::wire::Reference;
use crate::wire::engine::{Engine, EngineError, Host, in_path, layers};

use super::container::Container;
use super::trust::{self, Origin};
use super::unpacked::{self, Parts};
use super::{Access, SourceError, docker, host_platform, layout, overlay2, spool};

pub(super) const ENGINE: &str = "Docker's engine";

/// What it is called in messages, with where it is.
pub(super) fn place() -> String {
    Host::find().map_or(ENGINE.to_owned(), |host| format!("{ENGINE} ({host})"))
}

/// Opens the image `name`: a name, with or without tag, or an id, as `docker run` takes them.
///
/// # Errors
/// The engine does not answer, does not have it, or the policy refuses it.
pub(super) fn read(name: &str, access: &Access) -> Result<Image, SourceError> {
    let engine = Engine::open().map_err(unreachable)?;
    let what = format!("the image {name:?}");
    let known = engine.json(&format!("/images/{}/json", in_path(name)), &what);
    let known = known.map_err(|error| missing(name, error))?;
    trust::admit(access, &origin(name))?;
    let platform = access.platform.clone().unwrap_or_else(host_platform);
    let called = image_name(name, &known);
    match overlay2::in_place(&engine, name, &known) {
        Ok(parts) => return unpacked::image(Parts { name: called, ..parts }, &platform),
        Err(why) => tracing::info!("{name} is exported and not read in place: {why}"),
    }
    let file = export(&engine, name, &known)?;
    let container = Container::of_file(file, Path::new(&format!("docker-daemon:{name}")))?;
    // containerd's store keeps an image as it came: there is a manifest to read.
    let image = if known["Descriptor"].is_object() && container.has("index.json") {
        layout::read(container, None, &platform, None)?
    } else {
        let image = docker::read(container, None, &platform)?;
        check(&image, name, &known)?;
        image
    };
    Ok(Image { name: called, ..image })
}

/// Asks for the archive by id, so that no other image of the repository comes along.
fn export(engine: &Engine, name: &str, known: &Value) -> Result<File, SourceError> {
    let id = known["Id"].as_str().unwrap_or(name);
    let what = format!("the export of {name}");
    let mut from = engine.stream(&format!("/images/{}/get", in_path(id)), &what)?;
    spool::whole(ENGINE, &mut from)
}

/// What was exported has to be what the engine knows.
fn check(image: &Image, name: &str, known: &Value) -> Result<(), SourceError> {
    let told = layers(known);
    let got: Vec<String> = image.diff_ids().iter().map(ToString::to_string).collect();
    if told == got {
        return Ok(());
    }
    let why = "it exports other layers than the image has; remove the image and load it again";
    Err(SourceError::Engine { engine: ENGINE, name: name.to_owned(), why: why.to_owned() })
}

/// The name that was asked for, else the first that the engine knows.
fn image_name(asked: &str, known: &Value) -> Option<String> {
    let tags: Vec<&str> =
        known["RepoTags"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let asked = asked.parse::<Reference>().ok().map(|name| name.or_latest().familiar());
    asked.filter(|name| tags.contains(&name.as_str())).or(tags.first().map(|t| (*t).to_owned()))
}

fn origin(name: &str) -> Origin {
    let transport = "docker-daemon";
    match name.parse::<Reference>() {
        Ok(reference) if name.parse::<Digest>().is_err() => {
            Origin::Engine { transport, reference: reference.or_latest() }
        }
        _ => Origin::Unnamed { transport, shown: name.to_owned() },
    }
}

/// An engine that does not answer is none.
pub(super) fn unreachable(error: EngineError) -> SourceError {
    match error {
        EngineError::Unreachable { why, at } => {
            SourceError::NoEngine { engine: format!("{ENGINE} at {at}"), why }
        }
        EngineError::Host { at, why } => SourceError::NoEngine {
            engine: format!("{ENGINE}, by DOCKER_HOST or context {at},"),
            why,
        },
        other => other.into(),
    }
}

pub(super) fn missing(name: &str, error: EngineError) -> SourceError {
    match error {
        EngineError::NotFound { .. } => {
            SourceError::NotInEngine { engine: ENGINE, name: name.to_owned() }
        }
        other => unreachable(other),
    }
}
