//! Into Podman's storage, by Podman: only it knows where that is and who else is at it.

use super::SinkError;
use super::archive::Parcel;
use super::engine::{Program, any, piped};

pub(super) fn load(parcel: Parcel<'_>) -> Result<String, SinkError> {
    let podman =
        Program { name: "podman", before: Vec::new(), package: "podman", engine: "Podman" };
    piped(parcel, any, |archive| podman.run(&["load", "--quiet"], Some(archive)))?;
    let want = parcel.image.config_digest;
    let asked = parcel.names.first().map_or(want.hex(), ToString::to_string);
    let id = podman.run(&["image", "inspect", "--format", "{{.Id}}", &asked], None)?;
    let id = format!("sha256:{}", id.trim_start_matches("sha256:"));
    if id != want.to_string() {
        let why = format!("it has {asked} as {id} now, and not as {want}: load the image again");
        return Err(podman.error(why));
    }
    for name in parcel.names.iter().skip(1) {
        podman.run(&["tag", &asked, &name.to_string()], None)?;
    }
    Ok(id)
}
