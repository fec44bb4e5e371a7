//! What an image's root file system holds once all layers are applied.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{DiffId, Digest, RootPath, Xattrs};

/// An image's root file system: every path with its metadata. Facts that need file contents were
/// gathered by `inspect` while the layers were unpacked, so the core never opens a file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tree {
    /// Every path but the root, sorted. Parents that no layer names are present too (`implied`).
    /// Copies of a tree share nodes, and the map's rooms, of which half are empty, stay small.
    pub nodes: BTreeMap<RootPath, Arc<Node>>,
    /// The layers, lowest first; [`Node::layer()`] counts in here.
    pub layers: Vec<DiffId>,
    /// What each layer has, beside what is still in force of it.
    pub shapes: Vec<LayerShape>,
    /// What was at a path before a later layer replaced or removed it, lowest layer first; only
    /// paths with such a past.
    pub past: BTreeMap<RootPath, Vec<Past>>,
}

/// A layer as its own entries have it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerShape {
    /// Entries that name a path other than the root's.
    pub named: u64,
    /// True if it has whiteouts, opaque marks, or hard links to files of layers below: it cannot
    /// stand in an image that lacks what those are about.
    pub bound: bool,
    /// Symlinks of layers below that names in it go through: without them the names mean other paths.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub through: BTreeSet<RootPath>,
    /// Mode, owner, times and attributes of the root, if it names it: a directory's node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<Node>,
}

/// Something that a later layer replaced or removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Past {
    /// The layer whose entry it was.
    pub layer: usize,
    /// The layer that ended it.
    pub ended: usize,
    pub dir: bool,
    /// See [`Node::implied`].
    pub implied: bool,
}

/// One path of a tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    pub kind: NodeKind,
    /// Permission bits with setuid, setgid and sticky: `07777`.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Seconds since the epoch and nanoseconds, as the layer has them.
    pub mtime: (i64, u32),
    #[serde(default, skip_serializing_if = "Xattrs::is_empty")]
    pub xattrs: Xattrs,
    /// See [`Node::layer`].
    pub layer: u16,
    /// Paths with the same number are names of one inode: the layer in the upper half, in the lower
    /// the place among its entries of the one that made it, counted from 1.
    pub inode: u64,
    /// True for a directory that no layer names, only paths below it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub implied: bool,
}

/// What kind of file a node is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeKind {
    File {
        /// Bytes.
        size: u64,
        content: Digest,
        /// What the content says about other files it needs.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        facts: Option<Box<Facts>>,
    },
    Dir,
    Symlink {
        #[serde(with = "escaped")]
        target: Vec<u8>,
    },
    Fifo,
    Char {
        major: u64,
        minor: u64,
    },
    Block {
        major: u64,
        minor: u64,
    },
}

/// What the content of a file says about other files it needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Facts {
    Elf(ElfFacts),
    /// The interpreter of a `#!` line, as written there.
    Shebang {
        #[serde(with = "escaped")]
        interpreter: Vec<u8>,
    },
}

/// The parts of an ELF file that name other files (System V ABI, dynamic section; ld.so(8)).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ElfFacts {
    /// 32 or 64.
    pub class: u8,
    /// `e_machine`.
    pub machine: u16,
    /// PT_INTERP.
    #[serde(default, with = "escaped_option", skip_serializing_if = "Option::is_none")]
    pub interpreter: Option<Vec<u8>>,
    /// DT_NEEDED, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub needed: Vec<String>,
    /// DT_SONAME.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub soname: Option<String>,
    /// DT_RPATH split at colons.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rpath: Vec<String>,
    /// DT_RUNPATH split at colons.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub runpath: Vec<String>,
}

/// Where a walk along a path ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// Every symlink passed, in order, as its own real path.
    pub links: Vec<RootPath>,
    /// The real path at the end: no component but perhaps the last one is a symlink.
    pub path: RootPath,
    /// False if the tree has nothing there (`path` then names what is missing, parents resolved as
    /// far as they exist).
    pub exists: bool,
}

impl Node {
    /// The layer (index into [`Tree::layers`]) whose entry is in force here.
    pub fn layer(&self) -> usize {
        self.layer.into()
    }

    /// True if mode, owner, time and attributes are the same.
    pub fn same_meta(&self, other: &Self) -> bool {
        let plain = |n: &Self| (n.mode, n.uid, n.gid, n.mtime);
        plain(self) == plain(other) && self.xattrs == other.xattrs
    }
}

impl Tree {
    /// Every path that the lowest `layers` show by themselves.
    pub fn names_at(&self, layers: usize) -> BTreeSet<RootPath> {
        let there = |past: &Past| past.layer < layers && past.ended >= layers;
        let now = self.nodes.iter().filter(|(_, node)| node.layer() < layers);
        let then = self.past.iter().filter(|(_, all)| all.iter().any(there));
        now.map(|(path, _)| path).chain(then.map(|(path, _)| path)).cloned().collect()
    }

    /// The node at a real path; the root itself has none.
    pub fn get(&self, path: &RootPath) -> Option<&Node> {
        self.nodes.get(path).map(Arc::as_ref)
    }

    /// True if the tree has this real path (the root always).
    pub fn has(&self, path: &RootPath) -> bool {
        path.is_root() || self.nodes.contains_key(path)
    }

    /// Walks `raw` as the kernel does (path_resolution(7)) from `cwd` inside `root`: symlinks
    /// inside the tree are followed, absolute ones from `root`, `..` stops at `root`.
    ///
    /// `follow` says whether a symlink in the last place is followed. `None` after 40 links (ELOOP)
    /// or for an empty path or a NUL.
    pub fn resolve(
        &self,
        root: &RootPath,
        cwd: &RootPath,
        raw: &[u8],
        follow: bool,
    ) -> Option<Resolved> {
        if raw.is_empty() || raw.contains(&0) {
            return None;
        }
        let mut links = Vec::new();
        let mut at = if raw[0] == b'/' { root.clone() } else { cwd.clone() };
        let mut todo: Vec<Vec<u8>> = names_reversed(raw);
        let must_follow_last = raw.ends_with(b"/");
        let mut budget = 40;
        while let Some(name) = todo.pop() {
            if name == b".." {
                if at != *root {
                    at = at.parent().unwrap_or_else(RootPath::root);
                }
                continue;
            }
            let next = at.join(&name);
            let last = todo.is_empty();
            match self.nodes.get(&next).map(|n| &n.kind) {
                Some(NodeKind::Symlink { target }) if !last || follow || must_follow_last => {
                    links.push(next);
                    budget -= 1;
                    if budget == 0 {
                        return None;
                    }
                    if target.first() == Some(&b'/') {
                        at = root.clone();
                    }
                    todo.extend(names_reversed(target));
                }
                _ => at = next,
            }
        }
        let exists = self.has(&at);
        Some(Resolved { links, path: at, exists })
    }

    /// How much there is.
    pub fn totals(&self) -> Totals {
        self.totals_with(|_| false).0
    }

    /// How much there is, and how much of it `counts` picks; it is asked in order.
    pub fn totals_with(&self, mut counts: impl FnMut(&RootPath) -> bool) -> (Totals, Totals) {
        let (mut all, mut picked) = (Totals::default(), Totals::default());
        let (mut known, mut known_picked) = (Inodes::default(), Inodes::default());
        for (path, node) in &self.nodes {
            let counts = counts(path);
            if node.kind == NodeKind::Dir {
                continue;
            }
            all.add(node, &mut known);
            if counts {
                picked.add(node, &mut known_picked);
            }
        }
        (all, picked)
    }
}

/// How much a tree has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Paths that are not directories.
    pub files: u64,
    /// Those of regular files, each inode once.
    pub bytes: u64,
}

impl Totals {
    fn add(&mut self, node: &Node, known: &mut Inodes) {
        self.files += 1;
        if let NodeKind::File { size: size @ 1.., .. } = node.kind
            && known.is_new(node.inode)
        {
            self.bytes += size;
        }
    }
}

/// Inodes that were seen, a bit for each, by layer: they are numbered by its entries, so that is little.
#[derive(Default)]
struct Inodes(Vec<Vec<u64>>);

impl Inodes {
    fn is_new(&mut self, inode: u64) -> bool {
        let [layer, entry] = [inode >> 32, inode & 0xffff_ffff].map(|n| n as usize);
        let (word, bit) = (entry / 64, 1 << (entry % 64));
        if self.0.len() <= layer {
            self.0.resize_with(layer + 1, Vec::new);
        }
        let words = &mut self.0[layer];
        if words.len() <= word {
            words.resize(word + 1, 0);
        }
        let new = words[word] & bit == 0;
        words[word] |= bit;
        new
    }
}

fn names_reversed(raw: &[u8]) -> Vec<Vec<u8>> {
    let names = raw.split(|b| *b == b'/').filter(|n| !matches!(*n, b"" | b"."));
    let mut names: Vec<Vec<u8>> = names.map(<[u8]>::to_vec).collect();
    names.reverse();
    names
}

/// Bytes as escaped text, for serde.
pub mod escaped {
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(raw: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&super::super::path::escape(raw))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        super::super::path::unescape(&text)
            .ok_or_else(|| serde::de::Error::custom(format!("{text:?} is no escaped byte string")))
    }
}

mod escaped_option {
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(
        raw: &Option<Vec<u8>>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match raw {
            Some(raw) => super::escaped::serialize(raw, serializer),
            None => serializer.serialize_none(),
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Vec<u8>>, D::Error> {
        #[derive(Deserialize)]
        struct Wrapped(#[serde(with = "super::escaped")] Vec<u8>);
        Ok(Option::<Wrapped>::deserialize(deserializer)?.map(|w| w.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(entries: &[(&str, NodeKind)]) -> Tree {
        let mut tree = Tree::default();
        for (inode, (path, kind)) in (1..).zip(entries) {
            let node = Node {
                kind: kind.clone(),
                mode: 0o755,
                uid: 0,
                gid: 0,
                mtime: (0, 0),
                xattrs: Xattrs::default(),
                layer: 0,
                inode,
                implied: false,
            };
            tree.nodes.insert(RootPath::parse(path.as_bytes()).unwrap(), node.into());
        }
        tree
    }

    fn link(to: &str) -> NodeKind {
        NodeKind::Symlink { target: to.as_bytes().to_vec() }
    }

    #[test]
    fn resolve_walks_links_as_the_kernel_does() {
        let file = NodeKind::File { size: 1, content: Digest::of(b"x"), facts: None };
        let tree = tree(&[
            ("/bin", link("usr/bin")),
            ("/usr", NodeKind::Dir),
            ("/usr/bin", NodeKind::Dir),
            ("/usr/bin/sh", link("/bin/dash")),
            ("/usr/bin/dash", file),
            ("/loop", link("loop")),
        ]);
        let root = RootPath::root();
        let at = |raw: &str, follow| tree.resolve(&root, &root, raw.as_bytes(), follow);
        let got = at("/bin/sh", true).unwrap();
        assert_eq!(got.path.to_string(), "/usr/bin/dash");
        let links: Vec<String> = got.links.iter().map(ToString::to_string).collect();
        assert_eq!(links, ["/bin", "/usr/bin/sh", "/bin"]);
        assert_eq!(at("bin/sh", false).unwrap().path.to_string(), "/usr/bin/sh");
        assert_eq!(at("../../bin/x/../sh", false).unwrap().path.to_string(), "/usr/bin/sh");
        assert!(!at("/bin/none", true).unwrap().exists);
        assert_eq!(at("/loop", true), None);
        assert_eq!(at("/loop", false).unwrap().path.to_string(), "/loop");
    }
}
