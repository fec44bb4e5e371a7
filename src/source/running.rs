//! The image that a container was made from, whether it runs or has ended.

use crate::oci::Image;
use crate::wire::engine::{Engine, in_path};

use super::{Access, SourceError, daemon};

type Place = fn() -> String;
type Find = fn(&str) -> Result<String, SourceError>;
type Read = fn(&str, &Access) -> Result<Image, SourceError>;

/// Who is asked for the container, in order; and who opens its image then.
const ASKED: [(Place, Find, Read); 1] = [(daemon::place, in_docker, daemon::read)];

/// Opens the image of the container `name`: its name or id, in Docker, else Podman, else containerd.
///
/// # Errors
/// No engine that answers has such a container, or its image is gone.
pub(super) fn read(name: &str, access: &Access) -> Result<Image, SourceError> {
    let mut tried = Vec::new();
    for (place, find, open) in ASKED {
        let place = place();
        match find(name) {
            Ok(image) => {
                if let Some(tell) = access.tell {
                    tell(&format!("container {name} found in {place}, image {image}"));
                }
                return open(&image, access);
            }
            Err(error) if error.look_on() => tried.push(format!("{place}: {}", error.shortly())),
            Err(error) => return Err(error),
        }
    }
    Err(SourceError::NoContainer { name: name.to_owned(), tried })
}

/// The image's id: its name may be another's by now.
fn in_docker(name: &str) -> Result<String, SourceError> {
    let engine = Engine::open().map_err(daemon::unreachable)?;
    let what = format!("the container {name:?}");
    let known = engine.json(&format!("/containers/{}/json", in_path(name)), &what);
    let known = known.map_err(|error| daemon::missing(name, error))?;
    known["Image"].as_str().map(str::to_owned).ok_or_else(|| SourceError::Engine {
        engine: daemon::ENGINE,
        name: name.to_owned(),
        why: "it does not say the container's image".to_owned(),
    })
}
