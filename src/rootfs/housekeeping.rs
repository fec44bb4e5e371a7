//! What dead runs left behind, and which layers the store has.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

use super::RootfsError;
use super::packed::PACKED;
use super::store::{Store, TEMPORARY, random_hex};

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
        let half = self.layers()?.into_iter().filter(|path| is_temporary(path)).collect();
        let (layers, first) = remove_all_unused(half);
        let (runs, second) = remove_all_unused(self.list("runs")?);
        first.or(second).map_or(Ok(Cleaned { runs, layers }), Err)
    }

    /// Removes the layers that no live process uses, and what [`Store::clean`] removes.
    pub fn gc(&self) -> Result<Cleaned, RootfsError> {
        let mut cleaned = self.clean()?;
        let _guard = self.lock_store()?;
        let (layers, failed) = remove_all_unused(self.layers()?);
        cleaned.layers.extend(layers);
        failed.map_or(Ok(cleaned), Err)
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
        let entries = there(std::fs::read_dir(&folder));
        let entries = entries.map_err(|e| RootfsError::io("list", &folder, e))?;
        let entries = entries.into_iter().flatten();
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

/// Removes each of these folders that nobody alive uses; which, and the first failure: one that cannot be
/// removed keeps none of the others.
fn remove_all_unused(folders: Vec<PathBuf>) -> (Vec<PathBuf>, Option<RootfsError>) {
    let (mut removed, mut failed) = (Vec::new(), None);
    for folder in folders {
        match remove_unused(&folder) {
            Ok(true) => removed.push(folder),
            Ok(false) => {}
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    (removed, failed)
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

/// Removes a folder, but nothing that is mounted inside it: that is an error (EBUSY).
///
/// A container or a layer can make folders so deep that no path leads there: on the way they are brought up
/// to `top`, as one of the folders there.
pub(super) fn remove_tree(top: &Path) -> std::io::Result<()> {
    /// Bytes of a path below `top`; the name of an entry (255) comes on top, and PATH_MAX is 4096.
    const DEEP: usize = 2048;
    let Some(device) = there(std::fs::symlink_metadata(top))?.map(|found| found.dev()) else {
        return Ok(());
    };
    let mut folders = vec![top.to_owned()];
    while let Some(folder) = folders.last().cloned() {
        let mut within = Vec::new();
        for entry in there(std::fs::read_dir(&folder))?.into_iter().flatten() {
            let entry = entry?;
            let path = entry.path();
            if !entry.file_type()?.is_dir() {
                there(std::fs::remove_file(&path))?;
                continue;
            }
            let Some(found) = there(entry.metadata())? else { continue };
            if found.dev() != device {
                there(std::fs::remove_dir(&path))?;
            } else if path.as_os_str().len() > top.as_os_str().len() + DEEP {
                std::fs::rename(&path, top.join(format!(".raised-{}", random_hex())))?;
            } else {
                within.push(path);
            }
        }
        if within.is_empty() {
            there(std::fs::remove_dir(&folder))?;
            folders.pop();
        }
        folders.extend(within);
    }
    Ok(())
}

/// What came of something that somebody else may have removed meanwhile.
fn there<T>(done: std::io::Result<T>) -> std::io::Result<Option<T>> {
    match done {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        done => done.map(Some),
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::OwnedFd;

    use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat};

    fn deep(folder: &Path, levels: usize) {
        let open = |at: &OwnedFd, name: &str| {
            openat(at, name, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap()
        };
        let name = "d".repeat(200);
        let mut at =
            openat(CWD, folder, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap();
        for level in 0..levels {
            for name in [name.as_str(), "beside"] {
                mkdirat(&at, name, Mode::RWXU).unwrap();
            }
            let file = format!("file{level}");
            openat(&at, file, OFlags::CREATE | OFlags::WRONLY, Mode::RWXU).unwrap();
            at = open(&at, &name);
        }
    }

    #[test]
    fn a_tree_that_no_path_reaches_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let (top, other) = (folder.path().join("top"), folder.path().join("other"));
        for folder in [&top, &other] {
            std::fs::create_dir(folder).unwrap();
        }
        std::fs::write(other.join("kept"), "").unwrap();
        std::os::unix::fs::symlink(&other, top.join("link")).unwrap();
        deep(&top, 100);
        assert!(walkdir::WalkDir::new(&top).into_iter().any(|entry| entry.is_err()), "too shallow");
        remove_tree(&top).unwrap();
        assert!(!top.exists() && other.join("kept").exists());
        remove_tree(&top).unwrap();
    }

    #[test]
    fn what_cannot_be_removed_keeps_nothing_else() {
        let folder = tempfile::tempdir_in("/var/tmp").unwrap();
        let store = Store::open(Some(folder.path())).unwrap();
        let runs = folder.path().join("runs");
        for name in ["a", "b", "c"] {
            std::fs::create_dir_all(runs.join(name).join("upper")).unwrap();
        }
        // a file in place of a folder with a lock
        std::fs::create_dir(runs.join("b/lock")).unwrap();
        let cleaned = store.clean().unwrap();
        assert_eq!(cleaned.runs, [runs.join("a"), runs.join("c")]);
    }
}
