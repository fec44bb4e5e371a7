//! What a folder holds, and what a slim tree holds, held against the model.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

use slim::model::{Digest, NodeKind, Tree};

use super::model::{Model, Node};
use super::recipe::{Kind, Meta};

/// What those who unpack may do otherwise.
#[derive(Clone, Copy, Default)]
pub struct Lenient {
    /// Folders that no layer describes have what mode they like.
    pub implied: bool,
    /// Folders have the time when something in them changed last.
    pub folder_times: bool,
    /// Folders that come twice may have attributes of both, and setgid of the one above.
    pub folder_attributes: bool,
    /// Times are in whole seconds, and from 1970 on.
    pub seconds: bool,
}

/// Compares a folder, the root's own metadata included if the layers have any.
pub fn same(root: &Path, model: &Model, lenient: Lenient) -> Result<(), String> {
    let mut found = BTreeMap::new();
    for entry in walkdir::WalkDir::new(root).min_depth(1) {
        let entry = entry.map_err(|e| e.to_string())?;
        let below = entry.path().strip_prefix(root).unwrap();
        let path = below.as_os_str().as_bytes().to_vec();
        found.insert(path, look(entry.path()).map_err(|e| format!("{below:?}: {e}"))?);
    }
    if let Some(meta) = &model.root {
        let (_, mut got, _) = look(root).map_err(|e| e.to_string())?;
        if lenient.folder_times {
            got.mtime = meta.mtime;
        }
        if lenient.folder_attributes {
            got.xattrs = meta.xattrs.clone();
            got.mode |= meta.mode & 0o2000;
        }
        same_meta(&got, meta).map_err(|why| format!("the root: {why}"))?;
    }
    let mut inodes: HashMap<u64, u64> = HashMap::new();
    for (path, want) in &model.nodes {
        let shown = path.escape_ascii();
        let (kind, meta, inode) = found.remove(path).ok_or(format!("{shown} is missing"))?;
        if kind != want.kind {
            return Err(format!("{shown} is {}, not {}", short(&kind), short(&want.kind)));
        }
        let mut want_meta = want.meta.clone();
        if want.implied || (lenient.folder_times && kind == Kind::Dir) {
            want_meta.mtime = meta.mtime;
        }
        let near = meta.mtime.0.abs_diff(want_meta.mtime.0.max(0)) < 2;
        if lenient.seconds && meta.mtime.1 == 0 && near {
            want_meta.mtime = meta.mtime;
        }
        if lenient.folder_attributes && kind == Kind::Dir {
            want_meta.xattrs = meta.xattrs.clone();
            want_meta.mode |= meta.mode & 0o2000;
        }
        if !(want.implied && lenient.implied) {
            if matches!(kind, Kind::Symlink(_)) {
                want_meta.mode = meta.mode;
            }
            same_meta(&meta, &want_meta).map_err(|why| format!("{shown}: {why}"))?;
        }
        if kind != Kind::Dir && *inodes.entry(want.inode).or_insert(inode) != inode {
            return Err(format!("{shown} is no name of its inode any more"));
        }
    }
    let distinct: std::collections::HashSet<_> = inodes.values().collect();
    if distinct.len() != inodes.len() {
        return Err("files are linked that were not".into());
    }
    found.keys().next().map_or(Ok(()), |path| Err(format!("{} is extra", path.escape_ascii())))
}

/// Compares a tree of slim's.
pub fn same_tree(tree: &Tree, model: &Model) -> Result<(), String> {
    let mut inodes: HashMap<u64, u64> = HashMap::new();
    for (path, want) in &model.nodes {
        let path = slim::model::RootPath::parse(path).unwrap();
        let got = tree.get(&path).ok_or(format!("{path} is missing"))?;
        let mut meta = meta_of(got);
        if want.implied {
            meta.mtime = want.meta.mtime;
        }
        same_meta(&meta, &want.meta).map_err(|why| format!("{path}: {why}"))?;
        if !same_kind(&got.kind, want) {
            return Err(format!("{path} is {:?}, not {}", got.kind, short(&want.kind)));
        }
        if want.kind != Kind::Dir && *inodes.entry(want.inode).or_insert(got.inode) != got.inode {
            return Err(format!("{path} is no name of its inode any more"));
        }
    }
    let distinct: std::collections::HashSet<_> = inodes.values().collect();
    if distinct.len() != inodes.len() {
        return Err("files are linked that were not".into());
    }
    let known = |path: &&slim::model::RootPath| !model.nodes.contains_key(path.relative());
    tree.nodes.keys().find(known).map_or(Ok(()), |path| Err(format!("{path} is extra")))?;
    let root = tree.shapes.iter().rev().find_map(|shape| shape.root.as_ref()).map(meta_of);
    if root == model.root { Ok(()) } else { Err(format!("the root is {root:?}")) }
}

fn meta_of(node: &slim::model::Node) -> Meta {
    let slim::model::Node { mode, uid, gid, mtime, ref xattrs, .. } = *node;
    Meta { mode, uid, gid, mtime, xattrs: (**xattrs).clone() }
}

fn same_kind(got: &NodeKind, want: &Node) -> bool {
    match (got, &want.kind) {
        (NodeKind::File { size, content, .. }, Kind::File(data)) => {
            *size == data.len() as u64 && *content == Digest::of(data)
        }
        (NodeKind::Dir, Kind::Dir) | (NodeKind::Fifo, Kind::Fifo) => true,
        (NodeKind::Symlink { target }, Kind::Symlink(want)) => target == want,
        (NodeKind::Char { major, minor }, Kind::Char(a, b))
        | (NodeKind::Block { major, minor }, Kind::Block(a, b)) => {
            (*major, *minor) == (u64::from(*a), u64::from(*b))
        }
        _ => false,
    }
}

fn same_meta(got: &Meta, want: &Meta) -> Result<(), String> {
    if got == want { Ok(()) } else { Err(format!("{got:?}, not {want:?}")) }
}

/// A file's kind with its content, metadata, inode.
fn look(path: &Path) -> std::io::Result<(Kind, Meta, u64)> {
    let stat = path.symlink_metadata()?;
    let kind = stat.file_type();
    let device = stat.rdev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let kind = if kind.is_file() {
        Kind::File(std::fs::read(path)?)
    } else if kind.is_dir() {
        Kind::Dir
    } else if kind.is_symlink() {
        Kind::Symlink(std::fs::read_link(path)?.into_os_string().as_bytes().to_vec())
    } else if kind.is_fifo() {
        Kind::Fifo
    } else if kind.is_char_device() {
        Kind::Char(major, minor)
    } else {
        Kind::Block(major, minor)
    };
    let own = |name: &OsStr| {
        let name = name.as_bytes();
        name.starts_with(b"trusted.overlay.") || name == b"security.selinux"
    };
    let mut xattrs = BTreeMap::new();
    for name in xattr::list(path)?.filter(|name| !own(name)) {
        let value = xattr::get(path, &name)?.unwrap_or_default();
        xattrs.insert(name.to_string_lossy().into_owned(), value);
    }
    let nanos = u32::try_from(stat.mtime_nsec()).unwrap();
    let mtime = (stat.mtime(), nanos);
    let meta = Meta { mode: stat.mode() & 0o7777, uid: stat.uid(), gid: stat.gid(), mtime, xattrs };
    Ok((kind, meta, stat.ino()))
}

fn short(kind: &Kind) -> String {
    match kind {
        Kind::File(data) => {
            format!("a file of {} bytes, {}", data.len(), &Digest::of(data).to_string()[..20])
        }
        other => format!("{other:?}"),
    }
}
