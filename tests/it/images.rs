//! Images in and out: sources, layers, store, index, emit.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

use slim::model::{KeepSet, Node, NodeKind, Reason, RootPath, Tree};

/// Everything stays.
pub fn keep_all(tree: &Tree) -> KeepSet {
    let reasons = BTreeSet::from([Reason::Policy("/**".into())]);
    let paths = tree.nodes.keys().map(|path| (path.clone(), reasons.clone())).collect();
    KeepSet { paths, ..KeepSet::default() }
}

/// What an image must not lose: all but the numbers of layers and inodes, link groups as such.
fn essence(tree: &Tree) -> BTreeMap<RootPath, (Node, RootPath)> {
    let mut first: HashMap<u64, RootPath> = HashMap::new();
    let mut essence = BTreeMap::new();
    for (path, node) in &tree.nodes {
        let group = first.entry(node.inode).or_insert_with(|| path.clone()).clone();
        let node = Node { layer: 0, inode: 0, ..node.clone() };
        essence.insert(path.clone(), (node, group));
    }
    essence
}

pub fn assert_same_tree(got: &Tree, want: &Tree, what: &str) {
    let (got, want) = (essence(got), essence(want));
    for (path, node) in &want {
        assert_eq!(got.get(path), Some(node), "{what}: {path}");
    }
    let extra: Vec<_> = got.keys().filter(|path| !want.contains_key(*path)).collect();
    assert!(extra.is_empty(), "{what}: {extra:?}");
}

/// Compares a tree with a folder that somebody else unpacked.
pub fn on_disk(tree: &Tree, root: &Path, what: &str) {
    let mut seen = BTreeMap::new();
    let mut inodes: HashMap<u64, u64> = HashMap::new();
    for entry in walkdir::WalkDir::new(root).min_depth(1) {
        let entry = entry.unwrap();
        let below = entry.path().strip_prefix(root).unwrap();
        let path = RootPath::parse(below.as_os_str().as_bytes()).unwrap();
        seen.insert(path, (entry.path().to_owned(), entry.metadata().unwrap()));
    }
    for (path, node) in &tree.nodes {
        let Some((host, meta)) = seen.remove(path) else { panic!("{what}: {path} is missing") };
        let kind = meta.file_type();
        match &node.kind {
            NodeKind::File { size, .. } => {
                assert!(kind.is_file(), "{what}: {path}");
                assert_eq!(meta.len(), *size, "{what}: {path}");
            }
            NodeKind::Dir => assert!(kind.is_dir(), "{what}: {path}"),
            NodeKind::Symlink { target } => {
                let got = std::fs::read_link(&host).unwrap();
                assert_eq!(got.as_os_str().as_bytes(), target, "{what}: {path}");
            }
            NodeKind::Fifo => assert!(kind.is_fifo(), "{what}: {path}"),
            NodeKind::Char { .. } => assert!(kind.is_char_device(), "{what}: {path}"),
            NodeKind::Block { .. } => assert!(kind.is_block_device(), "{what}: {path}"),
        }
        assert_eq!((meta.uid(), meta.gid()), (node.uid, node.gid), "{what}: owner of {path}");
        if !kind.is_symlink() {
            assert_eq!(meta.mode() & 0o7777, node.mode, "{what}: mode of {path}");
        }
        if !node.implied {
            assert_eq!(meta.mtime(), node.mtime.0, "{what}: time of {path}");
        }
        if !kind.is_dir() {
            let group = *inodes.entry(node.inode).or_insert(meta.ino());
            assert_eq!(group, meta.ino(), "{what}: links of {path}");
        }
    }
    assert!(seen.is_empty(), "{what}: {:?}", seen.keys());
}
