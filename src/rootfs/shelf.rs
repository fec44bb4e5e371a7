//! A tree that is out of memory while nobody looks at it.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::model::{DiffId, LayerShape, Node, Past, RootPath, Tree};

use super::RootfsError;
use super::lines::{self, Lines};

/// A tree, and a file that it waits in: beside the tree of a large image all that recording takes is
/// little.
pub struct Shelf {
    file: PathBuf,
    written: bool,
    tree: OnceLock<Tree>,
}

impl Shelf {
    /// A tree in memory; `file` is made when it is put away.
    pub fn new(tree: Tree, file: &Path) -> Self {
        Self { file: file.to_owned(), written: false, tree: tree.into() }
    }

    /// The tree, read again if it was put away.
    ///
    /// # Errors
    /// Where the file cannot be read.
    pub fn tree(&self) -> Result<&Tree, RootfsError> {
        if let Some(tree) = self.tree.get() {
            return Ok(tree);
        }
        let tree = self.read().map_err(|e| RootfsError::io("read", &self.file, e))?;
        Ok(self.tree.get_or_init(|| tree))
    }

    /// Takes the tree out of memory.
    ///
    /// # Errors
    /// Where the file cannot be written; the tree is in memory still.
    pub fn put_away(&mut self) -> Result<(), RootfsError> {
        if let Some(tree) = self.tree.get()
            && !self.written
        {
            self.write(tree).map_err(|e| RootfsError::io("write", &self.file, e))?;
            self.written = true;
        }
        self.tree.take();
        crate::sys::memory::give_back();
        Ok(())
    }

    fn write(&self, tree: &Tree) -> std::io::Result<()> {
        let mut lines = Lines::create(&self.file)?;
        let (layers, shapes) = (tree.layers.clone(), tree.shapes.clone());
        lines.put(&Line::<&RootPath, &Node>::Layers(layers, shapes))?;
        for (path, past) in &tree.past {
            lines.put(&Line::<&RootPath, &Node>::Past(path, past.clone()))?;
        }
        for (path, node) in &tree.nodes {
            lines.put(&Line::Node(path, node.as_ref()))?;
        }
        lines.finish()
    }

    fn read(&self) -> std::io::Result<Tree> {
        let mut tree = Tree::default();
        // a map made of all at once has no empty rooms, one that grew in order has as many as full ones
        let mut nodes = Vec::new();
        for line in lines::read::<Line<RootPath, Node>>(&self.file)? {
            match line? {
                Line::Layers(layers, shapes) => (tree.layers, tree.shapes) = (layers, shapes),
                Line::Past(path, past) => drop(tree.past.insert(path, past)),
                Line::Node(path, node) => nodes.push((path, node.into())),
            }
        }
        tree.nodes = nodes.into_iter().collect();
        Ok(tree)
    }
}

/// A line of the file: the layers first, then the nodes in order.
#[derive(serde::Serialize, serde::Deserialize)]
enum Line<P, N> {
    Layers(Vec<DiffId>, Vec<LayerShape>),
    Past(P, Vec<Past>),
    Node(P, N),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Digest, NodeKind};

    #[test]
    fn a_tree_comes_back_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let mut tree = Tree { layers: vec![DiffId(Digest::of(b"layer"))], ..Tree::default() };
        let kinds = [
            NodeKind::Dir,
            NodeKind::File { size: 7, content: Digest::of(b"content"), facts: None },
            NodeKind::Symlink { target: b"\xff/b".to_vec() },
            NodeKind::Char { major: 1, minor: 3 },
        ];
        for (number, kind) in (0..).zip(kinds) {
            let path = RootPath::root().join(format!("{number}").as_bytes()).join(b"\xfe");
            let xattrs = [("user.a".to_owned(), vec![0, 255])].into();
            let (mode, uid, gid, mtime) = (0o4755, 1, 2, (-3, 4));
            let (layer, inode, implied) = (0, number, number == 0);
            let node = Node { kind, mode, uid, gid, mtime, xattrs, layer, inode, implied };
            tree.nodes.insert(path, node.into());
        }
        tree.shapes.push(LayerShape { named: 4, ..LayerShape::default() });
        let past = Past { layer: 0, ended: 1, dir: true, implied: false };
        tree.past.insert(RootPath::root().join(b"gone"), vec![past]);
        let mut shelf = Shelf::new(tree.clone(), &folder.path().join("tree"));
        for _ in 0..2 {
            shelf.put_away().unwrap();
            assert!(shelf.tree.get().is_none());
            assert_eq!(*shelf.tree().unwrap(), tree);
        }
    }
}
