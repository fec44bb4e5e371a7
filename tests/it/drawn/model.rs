//! What layers mean, said once more and more simply than `oci::apply` does: whiteouts first, then the
//! entries in order. Entries whose meaning would hang on the order of the two are not drawn.

use std::collections::{BTreeMap, BTreeSet};

use super::recipe::{Dice, Entry, Kind, Meta, Recipe};

type Path = Vec<u8>;

/// An image's files.
#[derive(Clone, Default)]
pub struct Model {
    /// By real path, without a slash before.
    pub nodes: BTreeMap<Path, Node>,
    pub root: Option<Meta>,
    inodes: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Never a link, a whiteout or an opaque mark.
    pub kind: Kind,
    pub meta: Meta,
    pub inode: u64,
    pub implied: bool,
}

/// Why an entry is not drawn.
#[derive(Debug)]
pub struct Unclear;

/// A layer being applied.
pub struct Turn {
    model: Model,
    /// What the whiteouts took.
    hidden: BTreeMap<Path, Node>,
    /// What whiteouts are named by must stay what it is in this layer.
    frozen: BTreeSet<Path>,
    /// Folders that something else took the place of.
    replaced: BTreeSet<Path>,
}

impl Model {
    pub fn of(recipe: &Recipe) -> Result<Self, Unclear> {
        let mut model = Self::default();
        for layer in &recipe.layers {
            model = model.apply(&layer.entries)?;
        }
        Ok(model)
    }

    pub fn apply(&self, entries: &[Entry]) -> Result<Self, Unclear> {
        let cuts = |entry: &&Entry| matches!(entry.kind, Kind::Whiteout | Kind::Opaque);
        let (cuts, rest): (Vec<&Entry>, Vec<&Entry>) = entries.iter().partition(cuts);
        let cuts: Vec<Entry> = cuts.into_iter().cloned().collect();
        let mut turn = Turn::of(self, &cuts)?;
        rest.into_iter().try_for_each(|entry| turn.add(entry, false))?;
        Ok(turn.finish())
    }

    /// Paths at and below `path`.
    fn within(&self, path: &[u8]) -> Vec<Path> {
        let below = [path, b"/"].concat();
        let inside = |p: &&Path| path.is_empty() || *p == path || p.starts_with(&below);
        self.nodes.keys().filter(inside).cloned().collect()
    }

    fn is_dir(&self, path: &[u8]) -> bool {
        path.is_empty() || self.nodes.get(path).is_some_and(|node| node.kind == Kind::Dir)
    }
}

impl Turn {
    pub fn of(below: &Model, cuts: &[Entry]) -> Result<Self, Unclear> {
        let mut turn = Self {
            model: below.clone(),
            hidden: BTreeMap::new(),
            frozen: BTreeSet::new(),
            replaced: BTreeSet::new(),
        };
        for cut in cuts {
            // Whiteouts are named by real paths only, of folders that are there.
            let mut parents: Vec<Path> = parents(&cut.name);
            if cut.kind == Kind::Opaque {
                parents.push(cut.name.clone());
            }
            let there = below.nodes.contains_key(&cut.name) || cut.name.is_empty();
            let sound = |p: &Path| below.is_dir(p) || !below.nodes.contains_key(p);
            if !parents.iter().all(sound) || (cut.kind == Kind::Opaque && !there) {
                return Err(Unclear);
            }
            turn.frozen.extend(parents);
            for path in turn.model.within(&cut.name) {
                if cut.kind == Kind::Opaque && path == cut.name {
                    continue;
                }
                let node = turn.model.nodes.remove(&path).expect("listed just now");
                turn.hidden.insert(path, node);
            }
        }
        Ok(turn)
    }

    pub fn finish(self) -> Model {
        self.model
    }

    pub fn some_path(&self, dice: &mut Dice) -> Option<Path> {
        let all: Vec<&Path> = self.model.nodes.keys().chain(self.hidden.keys()).collect();
        (!all.is_empty()).then(|| dice.pick(&all).clone())
    }

    /// Something that a hard link can name; perhaps it is hidden in this layer.
    pub fn some_file(&self, dice: &mut Dice) -> Option<Path> {
        let from = if dice.one_in(3) { &self.hidden } else { &self.model.nodes };
        let files = from.iter().filter(|(_, node)| node.kind != Kind::Dir);
        let all: Vec<Path> = files.map(|(path, _)| path.clone()).collect();
        (!all.is_empty()).then(|| dice.pick(&all))
    }

    pub fn meta_of(&self, path: &[u8]) -> Option<Meta> {
        let node = self.model.nodes.get(path).or_else(|| self.hidden.get(path));
        node.map(|node| node.meta.clone())
    }

    pub fn add(&mut self, entry: &Entry, tame: bool) -> Result<(), Unclear> {
        if entry.name.is_empty() {
            self.model.root = Some(entry.meta.clone());
            return Ok(());
        }
        let path = self.real(&entry.name, tame)?;
        if entry.kind != Kind::Dir && self.frozen.contains(&path) {
            return Err(Unclear);
        }
        match &entry.kind {
            Kind::Link(target) if tame && !self.model.nodes.contains_key(target) => {
                return Err(Unclear);
            }
            Kind::Link(target) => self.link(&path, target)?,
            Kind::Dir => {
                let was = self.model.nodes.get(&path);
                let inode = was.filter(|node| node.kind == Kind::Dir).map(|node| node.inode);
                if self.hidden.get(&path).is_some_and(|n| n.kind != Kind::Dir) && tame {
                    return Err(Unclear);
                }
                let inode = inode.unwrap_or_else(|| self.inode());
                self.parents(&path);
                self.put(&path, Kind::Dir, &entry.meta, inode);
            }
            kind => {
                self.clear(&path);
                self.parents(&path);
                let inode = self.inode();
                self.put(&path, kind.clone(), &entry.meta, inode);
            }
        }
        Ok(())
    }

    fn put(&mut self, path: &[u8], kind: Kind, meta: &Meta, inode: u64) {
        let node = Node { kind, meta: meta.clone(), inode, implied: false };
        self.model.nodes.insert(path.to_vec(), node);
    }

    fn inode(&mut self) -> u64 {
        self.model.inodes += 1;
        self.model.inodes
    }

    fn clear(&mut self, path: &[u8]) {
        let was = self.model.nodes.get(path).or_else(|| self.hidden.get(path));
        if was.is_some_and(|node| node.kind == Kind::Dir) {
            self.replaced.insert(path.to_vec());
        }
        for path in self.model.within(path) {
            self.model.nodes.remove(&path);
        }
    }

    fn parents(&mut self, path: &[u8]) {
        for parent in parents(path).into_iter().filter(|p| !p.is_empty()) {
            if self.model.nodes.contains_key(&parent) {
                continue;
            }
            let meta = Meta { mode: 0o755, ..Meta::default() };
            let inode = self.inode();
            let node = Node { kind: Kind::Dir, meta, inode, implied: true };
            self.model.nodes.insert(parent, node);
        }
    }

    fn link(&mut self, path: &[u8], target: &[u8]) -> Result<(), Unclear> {
        let here = self.model.nodes.get(target);
        if here.is_none() {
            let above = parents(target);
            let lost = |p: &Path| {
                self.replaced.contains(p)
                    || self.model.nodes.get(p).is_some_and(|node| node.kind != Kind::Dir)
                    || self.hidden.get(p).is_some_and(|node| node.kind != Kind::Dir)
            };
            if above.iter().any(lost) || self.replaced.contains(target) {
                return Err(Unclear);
            }
        }
        let node = here.or_else(|| self.hidden.get(target)).cloned().ok_or(Unclear)?;
        let inside = |a: &[u8], b: &[u8]| a == b || a.starts_with(&[b, b"/"].concat());
        if node.kind == Kind::Dir || inside(path, target) || inside(target, path) {
            return Err(Unclear);
        }
        self.clear(path);
        self.parents(path);
        self.model.nodes.insert(path.to_vec(), node);
        Ok(())
    }

    /// The real path: symlinks above the last name are followed inside the root.
    fn real(&self, name: &[u8], tame: bool) -> Result<Path, Unclear> {
        let mut todo: Vec<Vec<u8>> = split(name);
        let last = todo.pop().ok_or(Unclear)?;
        todo.reverse();
        let (mut at, mut links): (Vec<Vec<u8>>, u32) = (Vec::new(), 0);
        while let Some(next) = todo.pop() {
            if next == b".." {
                at.pop();
                continue;
            }
            at.push(next);
            let here = at.join(&b'/');
            let hidden = self.hidden.get(&here).map(|node| &node.kind);
            match self.model.nodes.get(&here).map(|node| &node.kind) {
                None if matches!(hidden, Some(Kind::Symlink(_))) => return Err(Unclear),
                None if tame && (links > 0 || hidden.is_some_and(|k| *k != Kind::Dir)) => {
                    return Err(Unclear);
                }
                None | Some(Kind::Dir) => {}
                Some(Kind::Symlink(target)) => {
                    links += 1;
                    if links > 30 {
                        return Err(Unclear);
                    }
                    at.pop();
                    if target.starts_with(b"/") {
                        at.clear();
                    }
                    todo.extend(split(target).into_iter().rev());
                }
                // Engines fail where a file is in the way.
                Some(_) => return Err(Unclear),
            }
        }
        at.push(last);
        Ok(at.join(&b'/'))
    }
}

fn split(name: &[u8]) -> Vec<Vec<u8>> {
    let names = name.split(|b| *b == b'/').filter(|n| !matches!(*n, b"" | b"."));
    names.map(<[u8]>::to_vec).collect()
}

/// Every path above, the root (empty) first.
fn parents(path: &[u8]) -> Vec<Path> {
    let slashes = path.iter().enumerate().filter(|(_, b)| **b == b'/').map(|(at, _)| at);
    std::iter::once(0).chain(slashes).map(|at| path[..at].to_vec()).collect()
}
