//! Where containers-storage is: containers-storage.conf(5), and how a reference says otherwise.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::SourceError;

/// A storage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Storage {
    /// `overlay` or `vfs`.
    pub driver: String,
    pub root: PathBuf,
    /// Files have the owners that images say, and the kernel's marks of overlayfs.
    pub plain: bool,
}

impl Storage {
    /// `[driver@root]`, as references have it.
    pub fn spec(&self) -> String {
        format!("[{}@{}]", self.driver, self.root.display())
    }
}

#[derive(Debug, Clone, Default, Deserialize)]
struct File {
    #[serde(default)]
    storage: Section,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct Section {
    #[serde(default)]
    driver: String,
    #[serde(default)]
    graphroot: String,
    #[serde(default)]
    rootless_storage_path: String,
    #[serde(default)]
    options: toml::Table,
}

/// The storages that `text` means, in order, and the name that is left.
pub(super) fn split(text: &str) -> Result<(Vec<Storage>, &str), SourceError> {
    let Some(rest) = text.strip_prefix('[') else { return Ok((configured()?, text)) };
    let bad = |why: &str| SourceError::Transport {
        reference: text.to_owned(),
        why: format!("{why}; it is containers-storage:[DRIVER@ROOT+RUNROOT]NAME"),
    };
    let (spec, name) = rest.split_once(']').ok_or_else(|| bad("the bracket is not closed"))?;
    let (driver, place) = spec.split_once('@').unwrap_or(("", spec));
    let root = place.split(['+', ':']).next().unwrap_or_default();
    if !root.starts_with('/') {
        return Err(bad("the storage's folder is to be absolute"));
    }
    let root = PathBuf::from(root);
    let driver = if driver.is_empty() { driver_of(&root, "") } else { driver.to_owned() };
    Ok((vec![checked(Storage { driver, root, plain: true })?], name))
}

fn checked(storage: Storage) -> Result<Storage, SourceError> {
    if matches!(storage.driver.as_str(), "overlay" | "vfs") {
        return Ok(storage);
    }
    Err(SourceError::Transport {
        reference: storage.spec(),
        why: "slim reads storages of the drivers overlay and vfs; `podman save NAME -o image.tar` and --image docker-archive:image.tar work with all".into(),
    })
}

/// The driver that a storage was made with, where the configuration does not say.
fn driver_of(root: &Path, said: &str) -> String {
    if !said.is_empty() {
        return said.to_owned();
    }
    let made = |driver: &&&str| root.join(format!("{driver}-images")).exists();
    (*["overlay", "vfs"].iter().find(made).unwrap_or(&"overlay")).to_owned()
}

/// The storage of the configuration file, and those that it adds for images.
fn configured() -> Result<Vec<Storage>, SourceError> {
    let file = files().into_iter().find(|path| path.exists());
    let section = file.as_deref().map(read).transpose()?.unwrap_or_default();
    let rootless = !rustix::process::geteuid().is_root() || crate::sys::userns::inside();
    let home =
        |text: &str| PathBuf::from(text.replace("$HOME", &variable("HOME").unwrap_or_default()));
    let root = match (&section.rootless_storage_path, &section.graphroot) {
        (path, _) if rootless && !path.is_empty() => home(path),
        // The host's file speaks of root's storage.
        (_, path) if !(path.is_empty() || rootless && is_hosts(file.as_deref())) => home(path),
        _ if rootless => data().join("containers/storage"),
        _ => "/var/lib/containers/storage".into(),
    };
    let driver = variable("STORAGE_DRIVER").unwrap_or_else(|| section.driver.clone());
    let overlay = section.options.get("overlay").and_then(toml::Value::as_table);
    let set = |key: &str| {
        let of = |table: &toml::Table| {
            table.get(key).and_then(toml::Value::as_str).is_some_and(|v| !v.is_empty())
        };
        of(&section.options) || overlay.is_some_and(of)
    };
    let plain =
        !["mount_program", "force_mask", "remap-uids", "remap-user"].iter().any(|key| set(key));
    let more = section.options.get("additionalimagestores").and_then(toml::Value::as_array);
    let more = more.into_iter().flatten().filter_map(toml::Value::as_str).map(PathBuf::from);
    let storage = |root: PathBuf| Storage { driver: driver_of(&root, &driver), root, plain };
    std::iter::once(root).chain(more).map(|root| checked(storage(root))).collect()
}

fn files() -> Vec<PathBuf> {
    if let Some(path) = variable("CONTAINERS_STORAGE_CONF") {
        return vec![path.into()];
    }
    let own = variable("XDG_CONFIG_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(variable("HOME")?).join(".config")));
    let rootless = !rustix::process::geteuid().is_root() || crate::sys::userns::inside();
    let own = own.filter(|_| rootless).map(|folder| folder.join("containers/storage.conf"));
    own.into_iter().chain(HOSTS.iter().map(PathBuf::from)).collect()
}

const HOSTS: [&str; 2] = ["/etc/containers/storage.conf", "/usr/share/containers/storage.conf"];

fn is_hosts(file: Option<&Path>) -> bool {
    file.is_some_and(|file| HOSTS.iter().any(|host| file == Path::new(host)))
}

fn read(path: &Path) -> Result<Section, SourceError> {
    let unreadable = |why: String| SourceError::Transport {
        reference: path.display().to_string(),
        why: format!("it is no storage.conf that slim can read: {why}"),
    };
    let text = std::fs::read_to_string(path).map_err(|error| unreadable(error.to_string()))?;
    let file: File = toml::from_str(&text).map_err(|error| unreadable(error.to_string()))?;
    Ok(file.storage)
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|text| !text.is_empty())
}

/// `$XDG_DATA_HOME` (XDG Base Directory Specification).
fn data() -> PathBuf {
    let home = || PathBuf::from(variable("HOME").unwrap_or_default()).join(".local/share");
    variable("XDG_DATA_HOME").map_or_else(home, PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_may_say_where_the_storage_is() {
        for (text, want) in [
            ("[overlay@/a/b]x:1", Some(("overlay", "/a/b", "x:1"))),
            ("[vfs@/a+/run/a]x", Some(("vfs", "/a", "x"))),
            ("[overlay@/a+/run/a:opt=1]localhost/x", Some(("overlay", "/a", "localhost/x"))),
            ("[/a]x", Some(("overlay", "/a", "x"))),
            ("[overlay@a]x", None),
            ("[overlay@/a", None),
            ("[zfs@/a]x", None),
        ] {
            let got = split(text).ok();
            let got = got.as_ref().map(|(storages, name)| {
                (storages[0].driver.as_str(), storages[0].root.to_str().unwrap(), *name)
            });
            assert_eq!(got, want, "{text}");
        }
    }
}
