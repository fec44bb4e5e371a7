//! An image in containerd, by its own client `ctr`, which finds it by `CONTAINERD_ADDRESS`.
//!
//! The content store is a folder with `blobs/sha256`, as an OCI layout has it: where slim can read it,
//! layers are read there and nothing is exported.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::model::Digest;
use crate::oci::Image;
use crate::oci::manifest::Descriptor;
use crate::sys::temporary;
use crate::wire::{Reference, engine};

use super::container::{Container, blob_name};
use super::trust::{self, Origin};
use super::{Access, SourceError, full_name, host_platform, layout};

const TRANSPORT: &str = "containerd";
const ENGINE: &str = "containerd";
/// Where a name is looked for first, if no namespace is given: `ctr`'s own default.
const DEFAULT: &str = "default";

/// What it is called in messages, with where it is.
pub(super) fn place() -> String {
    format!("{ENGINE} ({})", engine::containerd_socket().display())
}

/// Opens `[NAMESPACE/]NAME[:TAG][@DIGEST]`.
///
/// A first part that is a namespace is meant as one, if the image is there. Else `CONTAINERD_NAMESPACE`
/// counts, and where that is not set `default` comes first and the others follow.
///
/// # Errors
/// containerd does not answer, does not have it, or the policy refuses it.
pub(super) fn read(text: &str, access: &Access) -> Result<Image, SourceError> {
    let places = places(text)?;
    for (namespace, name) in &places {
        let Some((called, top)) = find(namespace, name)? else { continue };
        if let Some(tell) = access.tell.filter(|_| name == text && namespace != DEFAULT) {
            tell(&format!("{called} is in containerd's namespace {namespace}"));
        }
        trust::admit(access, &origin(&called))?;
        return open(namespace, &called, &top, access);
    }
    Err(SourceError::NotInEngine { engine: ENGINE, name: text.to_owned() })
}

/// The image that a container was made from, as [`read`] takes it.
///
/// # Errors
/// There is no such container.
pub(super) fn of_container(container: &str) -> Result<String, SourceError> {
    for (namespace, name) in &places(container)? {
        let info = match ask(Some(namespace), &["containers", "info", name]) {
            Err(SourceError::Engine { why, .. }) if why.contains("not found") => continue,
            other => other?,
        };
        let info: Value = serde_json::from_str(&info).unwrap_or_default();
        if let Some(image) = info["Image"].as_str().filter(|image| !image.is_empty()) {
            return Ok(format!("{namespace}/{image}"));
        }
    }
    Err(SourceError::NotInEngine { engine: ENGINE, name: container.to_owned() })
}

/// Namespaces to look in, each with what to look for there. A name may well begin like a namespace:
/// Docker has one called `moby`, and there are images called `moby/buildkit`.
fn places(text: &str) -> Result<Vec<(String, String)>, SourceError> {
    engine::containerd().map_err(|why| SourceError::NoEngine { engine: ENGINE.to_owned(), why })?;
    if text.is_empty() || text.starts_with('-') || text.contains(char::is_whitespace) {
        return Err(SourceError::NotInEngine { engine: ENGINE, name: text.to_owned() });
    }
    let listed = ask(None, &["namespaces", "list", "--quiet"])?;
    let all: Vec<String> = listed.lines().map(|line| line.trim().to_owned()).collect();
    let said = text.split_once('/').filter(|(first, _)| all.iter().any(|one| one == first));
    let said = said.map(|(namespace, name)| (namespace.to_owned(), name.to_owned()));
    let set = std::env::var("CONTAINERD_NAMESPACE").ok().filter(|set| !set.is_empty());
    let searched = set.map_or_else(
        || {
            let others = all.iter().filter(|namespace| *namespace != DEFAULT).cloned();
            std::iter::once(DEFAULT.to_owned()).chain(others).collect()
        },
        |set| vec![set],
    );
    let whole = searched.into_iter().map(|namespace| (namespace, text.to_owned()));
    Ok(said.into_iter().chain(whole).collect())
}

/// What containerd has under one of the names that `name` may be short for.
fn find(namespace: &str, name: &str) -> Result<Option<(String, Descriptor)>, SourceError> {
    let full = name.parse::<Reference>().ok().map(|reference| reference.or_latest().to_string());
    let tagged = format!("{name}:latest");
    let wanted: Vec<&str> =
        std::iter::once(name).chain(full.as_deref()).chain([&*tagged]).collect();
    let filters: Vec<String> = wanted.iter().map(|name| format!("name=={name}")).collect();
    let mut args = vec!["images", "list"];
    args.extend(filters.iter().map(String::as_str));
    let table = ask(Some(namespace), &args)?;
    // REF TYPE DIGEST …
    let rows: Vec<Vec<&str>> = table.lines().map(|l| l.split_whitespace().collect()).collect();
    let row = wanted.iter().find_map(|want| rows.iter().find(|row| row.first() == Some(want)));
    let Some([name, kind, digest, ..]) = row.map(Vec::as_slice) else { return Ok(None) };
    let descriptor = Descriptor {
        media_type: (*kind).to_owned(),
        digest: (*digest).to_owned(),
        ..Descriptor::default()
    };
    Ok(Some(((*name).to_owned(), descriptor)))
}

fn open(
    namespace: &str,
    name: &str,
    top: &Descriptor,
    access: &Access,
) -> Result<Image, SourceError> {
    let platform = access.platform.clone().unwrap_or_else(host_platform);
    let (plain, pin) = match name.split_once('@') {
        Some((plain, pin)) => (plain, pin.parse::<Digest>().ok()),
        None => (name, None),
    };
    let called = full_name(plain);
    if let Some(store) = store()?.filter(|store| store.join("blobs/sha256").read_dir().is_ok()) {
        let container = Container::open(&store)?;
        // The table rounds sizes; the digest is checked all the same.
        let size = container.size(&blob_name(&container.digest("manifest", top)?)).unwrap_or(0);
        let top = Descriptor { size, ..top.clone() };
        return layout::read_top(container, &top, called, &platform, pin);
    }
    tracing::info!("{name} is exported: containerd's content store cannot be read from here");
    let file = export(namespace, name, &platform)?;
    let path = PathBuf::from(format!("{TRANSPORT}:{namespace}/{name}"));
    let image = layout::read(Container::of_file(file, &path)?, None, &platform, pin)?;
    Ok(Image { name: called, ..image })
}

/// The image as an OCI archive in an unnamed file.
fn export(namespace: &str, name: &str, platform: &str) -> Result<File, SourceError> {
    let folder = temporary::folder();
    let error =
        |source| SourceError::Spool { from: ENGINE.to_owned(), folder: folder.clone(), source };
    let file = tempfile::tempfile_in(&folder).map_err(error)?;
    let out = file.try_clone().map_err(error)?;
    let args = ["images", "export", "--platform", platform, "-", name];
    run(Some(namespace), &args, Stdio::from(out))?;
    Ok(file)
}

/// The folder of the content store, as the daemon says.
fn store() -> Result<Option<PathBuf>, SourceError> {
    let text = ask(None, &["plugins", "list", "--detailed", "id==content"])?;
    let mut words = text.split_whitespace().skip_while(|word| *word != "root");
    Ok(words.nth(1).map(PathBuf::from).filter(|path: &PathBuf| Path::is_absolute(path)))
}

fn ask(namespace: Option<&str>, args: &[&str]) -> Result<String, SourceError> {
    let out = run(namespace, args, Stdio::piped())?;
    Ok(String::from_utf8_lossy(&out).into_owned())
}

fn run(namespace: Option<&str>, args: &[&str], out: Stdio) -> Result<Vec<u8>, SourceError> {
    let mut command = Command::new("ctr");
    command.args(namespace.map(|namespace| ["--namespace", namespace]).into_iter().flatten());
    command.args(args).stdin(Stdio::null()).stdout(out).stderr(Stdio::piped());
    let output = command.spawn().and_then(|child| child.wait_with_output());
    let output = output.map_err(|error| {
        let why = match error.kind() {
            std::io::ErrorKind::NotFound => "its client ctr is not installed".to_owned(),
            _ => format!("ctr cannot be run: {error}"),
        };
        SourceError::NoEngine { engine: ENGINE.to_owned(), why }
    })?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    let silent = ["connection refused", "permission denied", "deadline exceeded", "no such file"];
    if silent.iter().any(|word| said.contains(word)) {
        return Err(SourceError::NoEngine { engine: ENGINE.to_owned(), why: said });
    }
    let name = args.last().copied().unwrap_or_default().to_owned();
    Err(SourceError::Engine { engine: ENGINE, name, why: said })
}

fn origin(name: &str) -> Origin {
    match name.parse::<Reference>() {
        Ok(reference) => Origin::Engine { transport: TRANSPORT, reference },
        Err(_) => Origin::Unnamed { transport: TRANSPORT, shown: name.to_owned() },
    }
}
