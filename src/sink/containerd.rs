//! Into containerd, by its own client `ctr`, which finds it by `CONTAINERD_ADDRESS`.

use serde_json::Value;

use crate::wire::engine;

use super::SinkError;
use super::archive::Parcel;
use super::engine::{Program, any, piped};

pub(super) fn load(parcel: Parcel<'_>, space: Option<&str>) -> Result<String, SinkError> {
    let before = space.map_or(Vec::new(), |space| vec!["--namespace".into(), space.to_owned()]);
    let ctr = Program { name: "ctr", before, package: "containerd", engine: "containerd" };
    let Some(first) = parcel.names.first().map(ToString::to_string) else {
        return Err(ctr.error("an image has no name, and there is none without: give --tag".into()));
    };
    // `ctr` waits until its patience ends.
    engine::containerd().map_err(|why| ctr.error(why))?;
    piped(parcel, any, |archive| ctr.run(&["images", "import", "-"], Some(archive)))?;
    let id = target(&ctr, &first)?;
    check(&ctr, parcel, &id)?;
    for name in parcel.names.iter().skip(1) {
        ctr.run(&["images", "tag", "--force", &first, &name.to_string()], None)?;
    }
    Ok(id)
}

/// The digest that a name points at, from `ctr`'s table: REF TYPE DIGEST …
fn target(ctr: &Program, name: &str) -> Result<String, SinkError> {
    let table = ctr.run(&["images", "list", &format!("name=={name}")], None)?;
    let row = table.lines().find(|line| line.split_whitespace().next() == Some(name));
    let digest = row.and_then(|row| row.split_whitespace().nth(2));
    digest
        .map(str::to_owned)
        .ok_or_else(|| ctr.error(format!("it does not have {name} after loading it")))
}

/// The manifest is the image's, or one of containerd's own with the same configuration.
fn check(ctr: &Program, parcel: Parcel<'_>, digest: &str) -> Result<(), SinkError> {
    let image = parcel.image;
    if parcel.manifest.is_some() && digest == image.manifest_digest.to_string() {
        return Ok(());
    }
    let manifest = ctr.run(&["content", "get", digest], None)?;
    let manifest: Value = serde_json::from_str(&manifest).unwrap_or_default();
    if manifest["config"]["digest"].as_str() == Some(&image.config_digest.to_string()) {
        return Ok(());
    }
    let want = image.config_digest;
    Err(ctr.error(format!("it has {digest} now, which is not of {want}: load the image again")))
}
