//! What dead runs left behind, and which layers the store has.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

use super::RootfsError;
use super::packed::PACKED;
use super::store::{Store, TEMPORARY};

/// What [`Store::clean`] or [`Store::gc`] removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cleaned {
    /// Folders of dead runs.
    pub runs: Vec<PathBuf>,
    /// Layers: half written ones of dead processes (`clean`), or whole ones (`gc`).
    pub layers: Vec<PathBuf>,
}

/// A whole layer in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredLayer {
    /// Its diffID's digits, and for a layer that fits one stack only, those of the chain; of a packed one
    /// the digits of what it is made of.
    pub key: String,
    /// Bytes on the disk.
    pub bytes: u64,
    /// A live process uses it.
    pub in_use: bool,
    /// A layer of a result, compressed, rather than one of an image, unpacked.
    pub packed: bool,
}

impl Store {
    /// Removes the folders of dead runs and half-unpacked layers of dead processes; never a whole
    /// layer or a live run.
    pub fn clean(&self) -> Result<Cleaned, RootfsError> {
        let _guard = self.lock_store()?;
        let mut cleaned = Cleaned::default();
        for path in self.layers()? {
            if is_temporary(&path) && remove_unused(&path)? {
                cleaned.layers.push(path);
            }
        }
        for path in self.list("runs")? {
            if remove_unused(&path)? {
                cleaned.runs.push(path);
            }
        }
        Ok(cleaned)
    }

    /// Removes the layers that no live process uses, and what [`Store::clean`] removes.
    pub fn gc(&self) -> Result<Cleaned, RootfsError> {
        let mut cleaned = self.clean()?;
        let _guard = self.lock_store()?;
        for path in self.layers()? {
            if remove_unused(&path)? {
                cleaned.layers.push(path);
            }
        }
        Ok(cleaned)
    }

    /// The whole layers by key, the packed ones last.
    pub fn ls(&self) -> Result<Vec<StoredLayer>, RootfsError> {
        let mut layers = Vec::new();
        for path in self.layers()?.into_iter().filter(|path| !is_temporary(path)) {
            let key = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let packed = path.parent().is_some_and(|folder| folder.ends_with(PACKED));
            let in_use = unused(&path).is_none();
            layers.push(StoredLayer { key, bytes: disk_bytes(&path), in_use, packed });
        }
        Ok(layers)
    }

    /// The folders of layers, unpacked and packed, whole or not.
    fn layers(&self) -> Result<Vec<PathBuf>, RootfsError> {
        let mut all = self.list("layers")?;
        all.extend(self.list(PACKED)?);
        Ok(all)
    }

    pub(super) fn list(&self, name: &str) -> Result<Vec<PathBuf>, RootfsError> {
        let folder = self.path.join(name);
        let entries = match std::fs::read_dir(&folder) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(|e| RootfsError::io("list", &folder, e))?,
        };
        let mut paths: Vec<PathBuf> = entries.filter_map(|e| Some(e.ok()?.path())).collect();
        paths.sort();
        Ok(paths)
    }
}

fn is_temporary(path: &Path) -> bool {
    path.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(TEMPORARY.as_bytes()))
}

/// The lock of a folder, if nobody alive holds it.
fn unused(folder: &Path) -> Option<File> {
    let lock = File::options().create(true).truncate(false).write(true).open(folder.join("lock"));
    let lock = lock.ok()?;
    rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).ok()?;
    Some(lock)
}

pub(super) fn remove_unused(folder: &Path) -> Result<bool, RootfsError> {
    let Some(_lock) = unused(folder) else { return Ok(false) };
    // First away from its name: a removal that is cut short must not look like a whole layer.
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    let grave = folder.with_file_name(format!("{TEMPORARY}{}", name.trim_start_matches(TEMPORARY)));
    let target = match std::fs::rename(folder, &grave) {
        Ok(()) => &grave,
        Err(_) => folder, // something is mounted there, or it is the same name
    };
    remove_tree(target).map_err(|e| RootfsError::io("remove", target, e))?;
    Ok(true)
}

/// Removes a folder, but nothing that is mounted inside it.
pub(super) fn remove_tree(folder: &Path) -> std::io::Result<()> {
    let walk = walkdir::WalkDir::new(folder).contents_first(true).same_file_system(true);
    for entry in walk {
        let entry = match entry {
            Ok(entry) => entry,
            Err(e) if e.io_error().is_some_and(|e| e.kind() == std::io::ErrorKind::NotFound) => {
                continue;
            }
            Err(e) => return Err(e.into()),
        };
        let removed = if entry.file_type().is_dir() {
            std::fs::remove_dir(entry.path())
        } else {
            std::fs::remove_file(entry.path())
        };
        match removed {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    Ok(())
}

pub(super) fn disk_bytes(folder: &Path) -> u64 {
    let walk = walkdir::WalkDir::new(folder).into_iter().filter_map(Result::ok);
    let mut seen = std::collections::HashSet::new();
    let blocks = walk.filter_map(|entry| {
        let meta = entry.metadata().ok()?;
        seen.insert(meta.ino()).then(|| meta.blocks())
    });
    blocks.sum::<u64>() * 512
}
