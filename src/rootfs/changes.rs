//! The upper directory of an overlay as a witness of what a run changed (kernel documentation,
//! filesystems/overlayfs.rst).

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use crate::model::{Node, NodeKind, RootPath, Tree};

use super::limits::present;
use super::{Change, RootfsError};
use crate::sys::userns::IdMap;

pub(super) fn read(upper: &Path, tree: &Tree) -> Result<Vec<(RootPath, Change)>, RootfsError> {
    let mut found = BTreeMap::new();
    let ids = [IdMap::users(), IdMap::groups()];
    for entry in walkdir::WalkDir::new(upper).min_depth(1).same_file_system(true) {
        if too_deep(&entry) {
            continue; // no path of an image is that long: the run made it
        }
        let entry = entry.map_err(|error| {
            let path = error.path().unwrap_or(upper).to_owned();
            RootfsError::io("read the changes in", &path, std::io::Error::from(error))
        })?;
        let below = entry.path().strip_prefix(upper).unwrap_or(entry.path());
        let Some(path) = RootPath::parse(below.as_os_str().as_bytes()) else { continue };
        let meta = entry.metadata().map_err(|e| {
            RootfsError::io("read the changes in", entry.path(), std::io::Error::from(e))
        })?;
        let is_whiteout = meta.file_type().is_char_device() && meta.rdev() == 0;
        match tree.get(&path) {
            None if is_whiteout => {}
            None => {
                found.insert(path, Change::Created);
            }
            Some(_) if is_whiteout => {
                removed_below(&path, tree, &mut found);
                found.insert(path, Change::Removed);
            }
            Some(node) => {
                if !meta.is_dir() || is_opaque(entry.path()) {
                    removed_below(&path, tree, &mut found);
                }
                if !meta.is_dir() || differs(node, &meta, &ids) {
                    found.insert(path, Change::Changed);
                } else {
                    found.remove(&path);
                }
            }
        }
    }
    Ok(found.into_iter().collect())
}

/// Whether a name cannot be reached by its path any more (`PATH_MAX`, 4,096 bytes).
fn too_deep(entry: &walkdir::Result<walkdir::DirEntry>) -> bool {
    let error = entry.as_ref().err().and_then(walkdir::Error::io_error);
    error.is_some_and(|error| {
        error.raw_os_error() == Some(rustix::io::Errno::NAMETOOLONG.raw_os_error())
    })
}

/// A folder above something that changed is copied up too; only a change of its own counts.
fn differs(node: &Node, meta: &std::fs::Metadata, ids: &[IdMap; 2]) -> bool {
    let owner = (present(&ids[0], node.uid), present(&ids[1], node.gid));
    let same = (node.mode, owner) == (meta.mode() & 0o7777, (meta.uid(), meta.gid()));
    node.kind != NodeKind::Dir || !same
}

/// Everything the image had below `path` is gone, until the walk finds it again.
fn removed_below(path: &RootPath, tree: &Tree, found: &mut BTreeMap<RootPath, Change>) {
    let from = (std::ops::Bound::Excluded(path.clone()), std::ops::Bound::Unbounded);
    let names = tree.nodes.range(from).map(|(name, _)| name);
    let names = names.take_while(|name| name.as_bytes().starts_with(path.as_bytes()));
    for name in names.filter(|name| name.is_within(path)) {
        found.insert(name.clone(), Change::Removed);
    }
}

fn is_opaque(path: &Path) -> bool {
    ["trusted.overlay.opaque", "user.overlay.opaque"]
        .iter()
        .any(|name| xattr::get(path, name).ok().flatten().is_some_and(|value| value == b"y"))
}
