//! Applies layers one on the other: whiteouts, replaced kinds, hard links, names through symlinks
//! (OCI image-spec, layer.md, "Applying Changesets").
//!
//! `rootfs` and `emit` both replay layers through this, so they number inodes alike.

use std::collections::{BTreeMap, BTreeSet, HashMap, btree_map};
use std::ops::Bound;
use std::sync::Arc;

use crate::model::{DiffId, Digest, LayerShape, Node, NodeKind, Past, RootPath, Tree, Xattrs};

use super::layer::{Entry, EntryKind, LayerError, Meta};
use super::limits::{Limits, Spent};

/// The layers applied so far.
#[derive(Debug, Clone, Default)]
pub struct Stack {
    tree: Tree,
    /// Entries of this layer so far, the one at hand included.
    entry: u64,
    /// Folders so far that no entry made.
    implied: u64,
    /// The names of inodes that were linked; some may have gone since, or be there twice.
    links: HashMap<u64, Vec<RootPath>>,
    /// The folder of the last entry, if it is there and stayed: entries come folder by folder.
    last: Option<RootPath>,
    /// Metadata of the root itself, where a layer has an entry for it.
    root: Option<Meta>,
    /// Paths of this layer below which nothing of the layers below shows.
    cut: BTreeSet<RootPath>,
    /// What whiteouts of this layer removed: its own links may still name it, whatever the order.
    hidden: BTreeMap<RootPath, Arc<Node>>,
    depends: bool,
    limits: Limits,
    spent: Spent,
}

/// What an entry did, in terms of real paths: no component of them is a symlink.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Applied {
    /// The root's metadata.
    Root,
    /// A directory, new or with new metadata.
    Dir(RootPath),
    /// A new inode that is no directory.
    New { path: RootPath, inode: u64 },
    /// Another name of an inode. `from` is where it was found, with its layer (a name this layer's
    /// whiteouts removed will do).
    Link { path: RootPath, inode: u64, from: (RootPath, usize) },
    /// A whiteout or an opaque mark, remembered until the layer ends.
    Cut,
}

impl Stack {
    /// Starts the next layer.
    pub fn begin_layer(&mut self, diff_id: DiffId) {
        self.tree.layers.push(diff_id);
        self.tree.shapes.push(LayerShape::default());
        self.entry = 0;
        self.last = None;
        self.cut.clear();
        self.hidden.clear();
        self.depends = false;
    }

    /// Nothing yet, and at most so much.
    pub fn limited(limits: Limits) -> Self {
        Self { limits, ..Self::default() }
    }

    /// Counts an entry: the whole image is bounded, not each layer.
    fn count(&mut self, entry: &Entry) -> Result<(), LayerError> {
        let bytes = if let EntryKind::File { size, .. } = entry.kind { size } else { 0 };
        let why = self.spent.add(bytes, self.limits);
        // Folders that nobody names cost memory too: a deep path has many.
        let why = why.or_else(|| self.limits.too_many(self.tree.nodes.len() as u64));
        why.map_or(Ok(()), |why| Err(LayerError::Limit { layer: self.layer(), why }))
    }

    /// The tree as it is now.
    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    /// The names that a linked inode has now, but for `one`.
    pub fn others(&self, inode: u64, one: &RootPath) -> BTreeSet<RootPath> {
        let all = self.links.get(&inode).into_iter().flatten();
        let there = |name: &RootPath| self.tree.get(name).is_some_and(|n| n.inode == inode);
        all.filter(|name| *name != one && there(name)).cloned().collect()
    }

    /// Metadata of the root, from the topmost layer that gives any.
    pub fn root(&self) -> Option<&Meta> {
        self.root.as_ref()
    }

    /// Paths that hide the layers below: whiteouts, opaque directories, replaced directories.
    pub fn cut(&self) -> &BTreeSet<RootPath> {
        &self.cut
    }

    /// True if what this layer means depends on the layers below it (a name through a symlink of
    /// theirs, a hard link to a file of theirs, a directory it does not describe).
    pub fn depends(&self) -> bool {
        self.depends
    }

    /// The tree with all layers applied.
    pub fn into_tree(self) -> Tree {
        let mut tree = self.tree;
        // Names that come in order leave half of the map's rooms empty; made at once it fills them.
        tree.nodes = tree.nodes.into_iter().collect();
        tree
    }

    /// Fills in what reading a file just applied at `path` told about its content.
    pub fn set_content(&mut self, path: &RootPath, entry: &Entry) {
        let EntryKind::File { content: Some(digest), facts: known, .. } = &entry.kind else {
            return;
        };
        let node = self.tree.nodes.get_mut(path).map(|node| &mut Arc::make_mut(node).kind);
        if let Some(NodeKind::File { content, facts, .. }) = node {
            (*content, *facts) = (*digest, known.clone());
        }
    }

    fn layer(&self) -> usize {
        self.tree.layers.len() - 1
    }

    /// The same as a node has it. There are fewer layers than that (see [`super::limits::MAX_LAYERS`]).
    fn number(&self) -> u16 {
        u16::try_from(self.layer()).unwrap_or(u16::MAX)
    }

    fn shape(&mut self) -> &mut LayerShape {
        self.tree.shapes.last_mut().expect("a layer was begun")
    }

    /// Applies one entry of the current layer.
    pub fn apply(&mut self, entry: &Entry) -> Result<Applied, LayerError> {
        self.entry += 1;
        self.count(entry)?;
        if entry.path.is_root() {
            if entry.kind == EntryKind::Opaque {
                self.shape().bound = true;
                // An overlay has no opaque root: each name in it is hidden by itself.
                let root = RootPath::root();
                let names = self.tree.nodes.keys().filter(|p| p.parent().as_ref() == Some(&root));
                self.cut.extend(names.cloned());
                self.depends = true;
                self.hide_below(&root);
                return Ok(Applied::Cut);
            }
            self.root = Some(entry.meta.clone());
            let node = self.node(NodeKind::Dir, &entry.meta);
            self.shape().root = Some(node);
            return Ok(Applied::Root);
        }
        self.shape().named += 1;
        self.shape().bound |= matches!(entry.kind, EntryKind::Whiteout | EntryKind::Opaque);
        let path = self.real(&entry.path, entry)?;
        match &entry.kind {
            EntryKind::Whiteout => {
                let layer = self.layer();
                self.depends |= self.tree.get(&path).is_none_or(|node| node.layer() == layer);
                // A whiteout of nothing must not bring up folders above it.
                if self.tree.has(&path) {
                    self.hide(&path);
                    self.cut.insert(path);
                }
                Ok(Applied::Cut)
            }
            EntryKind::Opaque => {
                self.depends |= !matches!(self.kind(&path), Some(NodeKind::Dir));
                if self.tree.has(&path) {
                    self.hide_below(&path);
                    self.cut.insert(path);
                }
                Ok(Applied::Cut)
            }
            EntryKind::Dir => Ok(self.directory(path, &entry.meta)),
            EntryKind::HardLink { target } => self.link(path, target, entry),
            _ => Ok(self.create(path, entry)),
        }
    }

    fn kind(&self, path: &RootPath) -> Option<&NodeKind> {
        self.tree.get(path).map(|node| &node.kind)
    }

    /// `path` with the symlinks above its last component resolved inside the root.
    fn real(&mut self, path: &RootPath, entry: &Entry) -> Result<RootPath, LayerError> {
        if self.is_in_last(path) {
            return Ok(path.clone());
        }
        let parent = path.parent().unwrap_or_else(RootPath::root);
        if parent.is_root() || matches!(self.kind(&parent), Some(NodeKind::Dir)) {
            return Ok(path.clone());
        }
        let root = RootPath::root();
        let walked = self.tree.resolve(&root, &root, parent.as_bytes(), true);
        let walked =
            walked.ok_or_else(|| self.refuse(entry, "its folder is a loop of symlinks"))?;
        let layer = self.layer();
        let below = |link: &RootPath| self.tree.get(link).is_some_and(|n| n.layer() < layer);
        let through: Vec<RootPath> = walked.links.into_iter().filter(below).collect();
        self.depends |= !through.is_empty();
        self.shape().through.extend(through);
        Ok(walked.path.join(path.file_name()))
    }

    fn refuse(&self, entry: &Entry, why: &str) -> LayerError {
        let (layer, diff_id) = (self.layer(), self.tree.layers[self.layer()]);
        LayerError::Entry { layer, diff_id, entry: entry.path.to_string(), why: why.into() }
    }

    fn is_in_last(&self, path: &RootPath) -> bool {
        self.last.as_ref().is_some_and(|last| path.is_in(last))
    }

    /// Makes the folders above `path`, as far as nothing has them.
    fn parents(&mut self, path: &RootPath) {
        if self.is_in_last(path) {
            return;
        }
        let mut above: Vec<RootPath> = path.ancestors().filter(|p| !p.is_root()).collect();
        above.reverse();
        for parent in above {
            match self.tree.get(&parent) {
                Some(node) if node.kind == NodeKind::Dir => {
                    // Unpacked on its own, the layer must repeat what the ones below say of it.
                    let plain = (node.mode, node.uid, node.gid) == (0o755, 0, 0);
                    let plain = plain && node.xattrs.is_empty();
                    self.depends |= node.layer() < self.layer() && !plain;
                }
                found => {
                    let replaced = found.is_some();
                    self.remove(&parent);
                    if replaced {
                        self.cut.insert(parent.clone());
                    }
                    let node = self.implied_dir();
                    self.tree.nodes.insert(parent, node.into());
                }
            }
        }
        self.last = path.parent();
    }

    fn implied_dir(&mut self) -> Node {
        self.implied += 1;
        let inode = 1 << 63 | self.implied;
        Node { implied: true, inode, ..self.node(NodeKind::Dir, &Meta::implied()) }
    }

    /// The node that the entry at hand makes.
    fn node(&self, kind: NodeKind, meta: &Meta) -> Node {
        Node {
            kind,
            mode: meta.mode,
            uid: meta.uid,
            gid: meta.gid,
            mtime: meta.mtime,
            xattrs: meta.xattrs.clone(),
            layer: self.number(),
            inode: (self.layer() as u64) << 32 | self.entry,
            implied: false,
        }
    }

    fn directory(&mut self, path: RootPath, meta: &Meta) -> Applied {
        self.parents(&path);
        let mut node = self.node(NodeKind::Dir, meta);
        match self.tree.get(&path) {
            Some(old) if old.kind == NodeKind::Dir => {
                node.inode = old.inode;
                self.remember(&path);
            }
            _ => self.remove(&path),
        }
        self.tree.nodes.insert(path.clone(), node.into());
        Applied::Dir(path)
    }

    fn create(&mut self, path: RootPath, entry: &Entry) -> Applied {
        self.parents(&path);
        let kind = match &entry.kind {
            EntryKind::File { size, content, facts } => NodeKind::File {
                size: *size,
                content: content.unwrap_or(Digest::from_raw([0; 32])),
                facts: facts.clone(),
            },
            EntryKind::Symlink { target } => NodeKind::Symlink { target: target.clone() },
            EntryKind::Char { major, minor } => NodeKind::Char { major: *major, minor: *minor },
            EntryKind::Block { major, minor } => NodeKind::Block { major: *major, minor: *minor },
            _ => NodeKind::Fifo,
        };
        let node = self.node(kind, &entry.meta);
        let inode = node.inode;
        match self.tree.nodes.entry(path.clone()) {
            btree_map::Entry::Vacant(room) => drop(room.insert(node.into())),
            btree_map::Entry::Occupied(_) => {
                self.make_room(&path);
                self.tree.nodes.insert(path.clone(), node.into());
            }
        }
        Applied::New { path, inode }
    }

    fn link(
        &mut self,
        path: RootPath,
        target: &RootPath,
        entry: &Entry,
    ) -> Result<Applied, LayerError> {
        let target = self.real(target, entry)?;
        let found = self.tree.nodes.get(&target).or_else(|| self.hidden.get(&target));
        let Some(node) = found.cloned() else {
            let why = format!("a hard link to {target}, which no layer up to here has");
            return Err(self.refuse(entry, &why));
        };
        if node.kind == NodeKind::Dir {
            return Err(self.refuse(entry, &format!("a hard link to {target}, a directory")));
        }
        let inode = node.inode;
        if target != path && path.is_within(&target) {
            return Err(self.refuse(entry, &format!("a hard link to {target} below itself")));
        }
        self.parents(&path);
        if target != path {
            if target.is_within(&path) {
                return Err(self.refuse(entry, &format!("a hard link in place of {target}")));
            }
            self.make_room(&path);
        }
        let names = self.links.entry(inode).or_insert_with(|| vec![target.clone()]);
        names.push(path.clone());
        self.depends |= node.layer() < self.layer();
        let own = inode >> 32 == self.layer() as u64 && node.layer() == self.layer();
        self.shape().bound |= !own;
        self.remember(&path);
        let from = (target, node.layer());
        let node = Node { layer: self.number(), ..Arc::unwrap_or_clone(node) };
        self.tree.nodes.insert(path.clone(), node.into());
        Ok(Applied::Link { path, inode, from })
    }

    /// Notes what a layer below has at `path`, before it goes.
    fn remember(&mut self, path: &RootPath) {
        let ended = self.layer();
        let Some(node) = self.tree.get(path).filter(|node| node.layer() < ended) else { return };
        let (layer, dir, implied) = (node.layer(), node.kind == NodeKind::Dir, node.implied);
        let past = Past { layer, ended, dir, implied };
        self.tree.past.entry(path.clone()).or_default().push(past);
    }

    fn take(&mut self, path: &RootPath) -> Option<Arc<Node>> {
        self.remember(path);
        let node = self.tree.nodes.remove(path)?;
        if node.kind == NodeKind::Dir {
            self.last = None;
        }
        Some(node)
    }

    /// Removes what is at `path` so that something that is no directory can take its place.
    fn make_room(&mut self, path: &RootPath) {
        match self.kind(path) {
            None => return,
            Some(NodeKind::Dir) => drop(self.cut.insert(path.clone())),
            Some(_) => {}
        }
        self.remove(path);
    }

    fn remove(&mut self, path: &RootPath) {
        let Some(node) = self.take(path) else { return };
        if node.kind == NodeKind::Dir {
            for below in self.below(path) {
                self.take(&below);
            }
        }
    }

    fn below(&self, path: &RootPath) -> Vec<RootPath> {
        let range = self.tree.nodes.range((Bound::Excluded(path), Bound::Unbounded));
        // Names like `/a-b` sort between `/a` and `/a/b`.
        let prefix = |p: &RootPath| p.as_bytes().starts_with(path.as_bytes());
        let names = range.map(|(name, _)| name).take_while(|name| prefix(name));
        names.filter(|name| name.is_within(path)).cloned().collect()
    }

    /// A whiteout: everything the layers below have at and below `path` goes. What this layer has
    /// there stays, whatever the order of its entries.
    fn hide(&mut self, path: &RootPath) {
        self.hide_below(path);
        let layer = self.layer();
        if self.tree.get(path).is_some_and(|node| node.layer() < layer) {
            if self.below(path).is_empty() {
                self.bury(path);
            } else {
                self.imply(path);
            }
        }
    }

    fn hide_below(&mut self, path: &RootPath) {
        let layer = self.layer();
        let mut needed = BTreeSet::new();
        // Deepest first, so that a folder is seen after what it holds.
        for name in self.below(path).into_iter().rev() {
            let own = self.tree.get(&name).is_some_and(|node| node.layer() == layer);
            if own || needed.contains(&name) {
                needed.extend(name.parent());
                if !own {
                    self.imply(&name);
                }
            } else {
                self.bury(&name);
            }
        }
    }

    fn bury(&mut self, path: &RootPath) {
        if let Some(node) = self.take(path) {
            self.hidden.insert(path.clone(), node);
        }
    }

    fn imply(&mut self, path: &RootPath) {
        self.remember(path);
        let node = self.implied_dir();
        self.tree.nodes.insert(path.clone(), node.into());
    }
}

impl Meta {
    /// What a node says of itself.
    pub fn of(node: &Node) -> Self {
        Self {
            mode: node.mode,
            uid: node.uid,
            gid: node.gid,
            mtime: node.mtime,
            xattrs: node.xattrs.clone(),
        }
    }

    /// What a folder gets that no layer describes.
    pub fn implied() -> Self {
        Self { mode: 0o755, uid: 0, gid: 0, mtime: (0, 0), xattrs: Xattrs::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> RootPath {
        RootPath::parse(text.as_bytes()).unwrap()
    }

    fn entry(name: &str, kind: EntryKind) -> Entry {
        let meta = Meta { mode: 0o700, ..Meta::default() };
        Entry { path: path(name), kind, meta }
    }

    fn file(name: &str) -> Entry {
        entry(name, EntryKind::File { size: 1, content: None, facts: None })
    }

    fn link(name: &str, target: &str) -> Entry {
        entry(name, EntryKind::HardLink { target: path(target) })
    }

    fn symlink(name: &str, target: &str) -> Entry {
        entry(name, EntryKind::Symlink { target: target.as_bytes().to_vec() })
    }

    fn apply(layers: &[&[Entry]]) -> Stack {
        let mut stack = Stack::default();
        for entries in layers {
            stack.begin_layer(DiffId(Digest::of(b"")));
            for entry in *entries {
                stack.apply(entry).unwrap();
            }
        }
        stack
    }

    fn names(stack: &Stack) -> String {
        let line = |(path, node): (&RootPath, &Arc<Node>)| {
            let implied = if node.implied { "?" } else { "" };
            format!("{path}{implied}@{}", node.layer)
        };
        stack.tree.nodes.iter().map(line).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn later_layers_win() {
        let dir = |name: &str| entry(name, EntryKind::Dir);
        let gone = |name: &str| entry(name, EntryKind::Whiteout);
        let opaque = |name: &str| entry(name, EntryKind::Opaque);
        for (why, layers, want) in [
            ("a parent nobody names", vec![vec![file("/a/b/c")]], "/a?@0 /a/b?@0 /a/b/c@0"),
            ("the last of two", vec![vec![file("/a"), dir("/a"), file("/a/b")]], "/a@0 /a/b@0"),
            (
                "a file in place of a folder",
                vec![vec![dir("/a"), file("/a/b"), file("/a-b")], vec![file("/a")]],
                "/a@1 /a-b@0",
            ),
            (
                "a whiteout before",
                vec![vec![file("/a/b")], vec![gone("/a"), file("/a/c")]],
                "/a?@1 /a/c@1",
            ),
            (
                "a whiteout after",
                vec![vec![file("/a/b")], vec![file("/a/c"), gone("/a")]],
                "/a?@1 /a/c@1",
            ),
            ("a whiteout of its own layer's file", vec![vec![file("/a"), gone("/a")]], "/a@0"),
            (
                "an opaque folder",
                vec![vec![dir("/a"), file("/a/b/c")], vec![file("/a/d"), opaque("/a")]],
                "/a@0 /a/d@1",
            ),
            (
                "a name through a symlink",
                vec![vec![dir("/usr"), symlink("/lib", "usr/lib")], vec![file("/lib/x")]],
                "/lib@0 /usr@0 /usr/lib?@1 /usr/lib/x@1",
            ),
        ] {
            let layers: Vec<&[Entry]> = layers.iter().map(Vec::as_slice).collect();
            assert_eq!(names(&apply(&layers)), want, "{why}");
        }
    }

    #[test]
    fn a_link_joins_its_target_in_any_layer() {
        let gone = entry("/a", EntryKind::Whiteout);
        let stack = apply(&[&[file("/a"), link("/b", "/a")], &[link("/c", "/b"), gone]]);
        assert_eq!(names(&stack), "/b@0 /c@1");
        assert!(stack.depends());
        let inode = |name: &str| stack.tree.get(&path(name)).unwrap().inode;
        assert_eq!(inode("/b"), inode("/c"));
    }

    #[test]
    fn impossible_links_are_refused() {
        for entries in [
            vec![link("/a", "/missing")],
            vec![entry("/d", EntryKind::Dir), link("/a", "/d")],
            vec![symlink("/a", "b"), symlink("/b", "a"), file("/a/x")],
        ] {
            let mut stack = Stack::default();
            stack.begin_layer(DiffId(Digest::of(b"")));
            assert!(entries.iter().any(|e| stack.apply(e).is_err()), "{entries:?}");
        }
    }
}
