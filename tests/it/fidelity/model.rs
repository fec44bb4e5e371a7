//! What a stack of layers means, written once more and as plainly as can be: maps of byte strings,
//! no sharing, no shortcuts. It judges `oci::apply`, so it uses nothing of it.

use std::collections::BTreeMap;

pub type Path = Vec<u8>;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meta {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: (i64, u32),
    pub xattrs: BTreeMap<String, Vec<u8>>,
}

impl Meta {
    fn implied() -> Self {
        Self { mode: 0o755, uid: 0, gid: 0, mtime: (0, 0), xattrs: BTreeMap::new() }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    Dir,
    File(Vec<u8>),
    Symlink(Vec<u8>),
    Fifo,
    Char(u32, u32),
    Block(u32, u32),
}

/// What an entry asks for; paths are relative to the root, without `.`, `..` and doubled slashes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ask {
    Make(Kind),
    Link(Path),
    Whiteout,
    Opaque,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    pub kind: Kind,
    pub meta: Meta,
    /// Nobody described it.
    pub implied: bool,
    /// Equal for names of one file.
    pub file: u64,
    layer: u32,
}

#[derive(Debug, Clone, Default)]
pub struct Model {
    pub nodes: BTreeMap<Path, Node>,
    /// What this layer's whiteouts took away.
    gone: BTreeMap<Path, Node>,
    layer: u32,
    files: u64,
}

fn names(path: &[u8]) -> Vec<Vec<u8>> {
    path.split(|b| *b == b'/').filter(|n| !matches!(*n, b"" | b".")).map(<[u8]>::to_vec).collect()
}

fn below(path: &[u8], other: &[u8]) -> bool {
    path.len() > other.len() && path.starts_with(other) && path[other.len()] == b'/'
}

fn parents(path: &[u8]) -> Vec<Path> {
    let names = names(path);
    (1..names.len()).map(|n| names[..n].join(&b'/')).collect()
}

impl Model {
    pub fn next_layer(&mut self) {
        self.layer += 1;
        self.gone.clear();
    }

    /// The folder of `path` with its symlinks walked, and the last name as it is.
    fn real(&self, path: &[u8]) -> Result<Path, &'static str> {
        let mut todo = names(path);
        let last = todo.pop().ok_or("the root")?;
        let mut at: Vec<Vec<u8>> = Vec::new();
        let mut followed = 0;
        while !todo.is_empty() {
            let name = todo.remove(0);
            if name == b".." {
                at.pop();
                continue;
            }
            at.push(name);
            let Some(Node { kind: Kind::Symlink(to), .. }) = self.nodes.get(&at.join(&b'/')) else {
                continue;
            };
            followed += 1;
            if followed == 40 {
                return Err("a loop of symlinks");
            }
            at.pop();
            if to.first() == Some(&b'/') {
                at.clear();
            }
            todo = [names(to), todo].concat();
        }
        at.push(last);
        Ok(at.join(&b'/'))
    }

    /// Applies an entry of the current layer, or says why no engine should.
    pub fn apply(&mut self, path: &[u8], ask: &Ask, meta: &Meta) -> Result<(), &'static str> {
        let path = self.real(path)?;
        match ask {
            Ask::Whiteout if self.nodes.contains_key(&path) => self.cut(&path, true),
            Ask::Opaque if self.nodes.contains_key(&path) => self.cut(&path, false),
            Ask::Whiteout | Ask::Opaque => {}
            Ask::Make(Kind::Dir) => {
                let kept = self.nodes.get(&path).filter(|n| n.kind == Kind::Dir).is_some();
                self.folders(&path);
                if !kept {
                    self.clear(&path);
                }
                self.put(path, Kind::Dir, meta.clone());
            }
            Ask::Make(kind) => {
                self.folders(&path);
                self.clear(&path);
                self.put(path, kind.clone(), meta.clone());
            }
            Ask::Link(target) => self.link(path, target)?,
        }
        Ok(())
    }

    fn link(&mut self, path: Path, target: &[u8]) -> Result<(), &'static str> {
        let target = self.real(target)?;
        let node = self.nodes.get(&target).or_else(|| self.gone.get(&target));
        let node = node.cloned().ok_or("a link to nothing")?;
        if node.kind == Kind::Dir || below(&path, &target) || below(&target, &path) {
            return Err("a link to or through its own folder");
        }
        self.folders(&path);
        if path != target {
            self.clear(&path);
        }
        self.nodes.insert(path, Node { layer: self.layer, ..node });
        Ok(())
    }

    fn put(&mut self, path: Path, kind: Kind, meta: Meta) {
        self.files += 1;
        let (file, layer) = (self.files, self.layer);
        self.nodes.insert(path, Node { kind, meta, implied: false, file, layer });
    }

    fn imply(&mut self, path: Path) {
        self.put(path.clone(), Kind::Dir, Meta::implied());
        self.nodes.get_mut(&path).unwrap().implied = true;
    }

    fn folders(&mut self, path: &[u8]) {
        for parent in parents(path) {
            if self.nodes.get(&parent).is_none_or(|node| node.kind != Kind::Dir) {
                self.clear(&parent);
                self.imply(parent);
            }
        }
    }

    fn clear(&mut self, path: &[u8]) {
        self.nodes.retain(|name, _| name != path && !below(name, path));
    }

    /// Takes away what the layers below have below `path`, and at it if `whole`.
    fn cut(&mut self, path: &[u8], whole: bool) {
        let layer = self.layer;
        let old = |name: &Path, node: &Node| {
            node.layer < layer && (below(name, path) || whole && name == path)
        };
        let taken: Vec<Path> =
            self.nodes.iter().filter(|(p, n)| old(p, n)).map(|(p, _)| p.clone()).collect();
        for name in &taken {
            let node = self.nodes.remove(name).unwrap();
            self.gone.insert(name.clone(), node);
        }
        let left: Vec<Path> = self.nodes.keys().filter(|name| below(name, path)).cloned().collect();
        for parent in left.iter().flat_map(|name| parents(name)) {
            if !self.nodes.contains_key(&parent) {
                self.gone.remove(&parent);
                self.imply(parent);
            }
        }
    }
}
