//! Which layer of the result each kept path goes to, and which layers stay whole. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use std::path::PathBuf;

use crate::model::{KeepSet, Node, NodeKind, RootPath, Tree};

use super::blob::Written;

/// Docker 20.10 loads 120 layers and refuses 240.
pub(super) const MAX_LAYERS: usize = 120;

/// The lowest layers of the result, decided before: kept whole on purpose, or written already because
/// other images share them.
#[derive(Debug, Clone)]
pub struct Base {
    /// How many layers of the original it stands for.
    pub layers: usize,
    /// Every path that those layers show in the result. What the layers above have there stays too,
    /// and what they removed is removed again.
    pub names: BTreeSet<RootPath>,
    /// What was written; `None` keeps the layers as they are.
    pub written: Option<Shared>,
}

/// Layers that were written for several images.
#[derive(Debug, Clone)]
pub struct Shared {
    /// For each layer of the original, the layer of the result it went to.
    pub output_of: Vec<Option<usize>>,
    pub layers: Vec<Written>,
    /// The folder with the blobs, each named by the digits of its digest.
    pub blobs: PathBuf,
}

impl Base {
    /// The lowest `layers` of an image, whole.
    pub fn whole(tree: &Tree, layers: usize) -> Self {
        Self { layers, names: tree.names_at(layers), written: None }
    }
}

/// Where everything goes.
pub(super) struct Plan<'a> {
    /// For each layer of the original, the layer of the result that takes what is in force there.
    pub output_of: Vec<Option<usize>>,
    /// The layers of the result.
    pub outputs: Vec<Output<'a>>,
}

/// A layer of the result.
pub(super) enum Output<'a> {
    /// One that was written before, into a folder.
    Ready(PathBuf, Written),
    /// This layer of the original, byte for byte.
    Whole(usize),
    /// Kept paths of one layer or of several neighbours.
    Filtered(Filtered<'a>),
}

/// What a filtered layer has, in the order in which it is written.
#[derive(Default)]
pub(super) struct Filtered<'a> {
    /// The root's own entry.
    pub root: Option<Node>,
    /// Folders, each with those above it.
    pub dirs: BTreeMap<RootPath, &'a Node>,
    /// What the base shows and the original does not.
    pub gone: BTreeSet<RootPath>,
    /// Everything else, by inode and name. All names of one inode go to the layer that has the last of
    /// them: Docker 20.10 refuses a hard link into a lower layer.
    pub files: Vec<(&'a RootPath, &'a Node)>,
}

impl<'a> Filtered<'a> {
    /// The names of each inode in turn.
    pub fn groups(&self) -> impl Iterator<Item = &Kept<'a>> {
        self.files.chunk_by(|(_, a), (_, b)| a.inode == b.inode)
    }

    /// The bytes of its contents.
    pub fn bytes(&self) -> u64 {
        let size = |group: &Kept<'_>| match group.first()?.1.kind {
            NodeKind::File { size, .. } => Some(size),
            _ => None,
        };
        self.groups().filter_map(size).sum()
    }

    /// Names the folders above `path`: engines make missing ones with modes of their own.
    fn above(&mut self, tree: &'a Tree, path: &RootPath) {
        for above in path.ancestors().filter(|p| !p.is_root()) {
            let Some(node) = tree.get(&above).filter(|node| !node.implied) else { continue };
            if self.dirs.insert(above, node).is_some() {
                return; // and so are those above it
            }
        }
    }
}

pub(super) type Kept<'a> = [(&'a RootPath, &'a Node)];

impl<'a> Plan<'a> {
    /// The filtered layers, with their places in the result.
    pub fn filtered(&self) -> impl Iterator<Item = (usize, &Filtered<'a>)> {
        self.outputs.iter().enumerate().filter_map(|(at, output)| match output {
            Output::Filtered(filtered) => Some((at, filtered)),
            _ => None,
        })
    }

    pub fn new(tree: &'a Tree, keep: &KeepSet, base: Option<&Base>) -> Self {
        let kept = kept(tree, keep);
        let below = base.map_or(0, |base| base.layers.min(tree.layers.len()));
        let gone = base.map_or_else(BTreeMap::new, |base| gone(tree, base));
        let whole = whole(tree, &kept, below, &gone);
        Self::with(tree, &kept, base, &gone, &whole)
    }

    fn with(
        tree: &'a Tree,
        kept: &Kept<'a>,
        base: Option<&Base>,
        gone: &BTreeMap<RootPath, usize>,
        whole: &BTreeSet<usize>,
    ) -> Self {
        let layers = tree.layers.len();
        let below = base.map_or(0, |base| base.layers.min(layers));
        let stays = |layer: usize| layer < below || whole.contains(&layer);
        let homes = homes(kept);
        let home = |node: &Node| homes.get(&node.inode).copied().unwrap_or(node.layer());
        let files = || {
            let files = kept.iter().filter(|(_, node)| node.kind != NodeKind::Dir);
            files.map(|(path, node)| (*path, *node, home(node))).filter(|(.., at)| !stays(*at))
        };
        let folders = folders(kept, stays);
        let mut used: BTreeSet<usize> = files().map(|(.., at)| at).collect();
        used.extend(folders.iter().map(|(_, node)| node.layer()));
        used.extend(gone.values().chain(whole));
        let root = root(tree, stays, &mut used);
        if used.len() > MAX_LAYERS.saturating_sub(below) && !whole.is_empty() {
            // Neighbours will share a layer, and none of those can be whole.
            return Self::with(tree, kept, base, gone, &BTreeSet::new());
        }
        let (output_of, mut outputs) = slots(layers, below, &used, whole, base);
        let mut on = |layer: usize, add: &mut dyn FnMut(&mut Filtered<'a>)| {
            let output = output_of[layer].and_then(|at| outputs.get_mut(at));
            if let Some(Output::Filtered(filtered)) = output {
                add(filtered);
            }
        };
        for (path, node) in folders {
            on(node.layer(), &mut |to| {
                to.above(tree, path);
                to.dirs.insert(path.clone(), node);
            });
        }
        for (path, layer) in gone {
            on(*layer, &mut |to| {
                to.above(tree, path);
                to.gone.insert(path.clone());
            });
        }
        let mut last: Option<(&RootPath, usize)> = None;
        for (path, node, at) in files() {
            // Neighbours lie in one folder most often.
            let near = last.is_some_and(|(other, same)| same == at && path.is_beside(other));
            on(at, &mut |to| {
                if !near {
                    to.above(tree, path);
                }
                to.files.push((path, node));
            });
            last = Some((path, at));
        }
        if let Some((layer, node)) = root {
            on(layer, &mut |to| to.root = Some(node.clone()));
        }
        for output in &mut outputs {
            if let Output::Filtered(filtered) = output {
                // They are in the order of their names, and stay so among themselves.
                filtered.files.sort_by_key(|(_, node)| node.inode);
            }
        }
        Self { output_of, outputs }
    }
}

/// What the tree has of the kept paths, and the folders above them, in order.
pub(super) fn kept<'a>(tree: &'a Tree, keep: &KeepSet) -> Vec<(&'a RootPath, &'a Node)> {
    let parents = parents(tree, keep);
    let mut wanted = keep.in_order();
    let mut kept = Vec::new();
    for (path, node) in &tree.nodes {
        if wanted.has(path) || (node.kind == NodeKind::Dir && parents.contains(path)) {
            kept.push((path, node.as_ref()));
        }
    }
    kept
}

/// The folders above kept paths.
fn parents(tree: &Tree, keep: &KeepSet) -> BTreeSet<RootPath> {
    let mut parents = BTreeSet::new();
    let mut last: Option<&RootPath> = None;
    for path in keep.paths.keys() {
        if last.is_some_and(|last| path.is_beside(last)) || !tree.has(path) {
            continue;
        }
        last = Some(path);
        for parent in path.ancestors().filter(|p| !p.is_root()) {
            if !parents.insert(parent) {
                break;
            }
        }
    }
    parents
}

/// The names of [`Base`]: the kept paths that the tree has, and the folders above them.
pub(super) fn names(tree: &Tree, keep: &KeepSet) -> BTreeSet<RootPath> {
    kept(tree, keep).into_iter().map(|(path, _)| path.clone()).collect()
}

/// What the base shows and the original has no more, with the layer that removed it. A name below one
/// that is gone, or below something that is no folder now, needs nothing of its own.
fn gone(tree: &Tree, base: &Base) -> BTreeMap<RootPath, usize> {
    let last = tree.layers.len().saturating_sub(1);
    let removed = |path: &&RootPath| {
        let parent = path.parent().unwrap_or_else(RootPath::root);
        let in_folder =
            parent.is_root() || tree.get(&parent).is_some_and(|n| n.kind == NodeKind::Dir);
        in_folder && !tree.has(path)
    };
    let by = |path: &RootPath| {
        let past = tree.past.get(path).into_iter().flatten();
        past.map(|past| past.ended).filter(|ended| *ended >= base.layers).max().unwrap_or(last)
    };
    base.names.iter().filter(removed).map(|path| (path.clone(), by(path))).collect()
}

/// The layers of which nothing is lost: every entry is in force and kept, or is a folder that a later
/// layer describes once more.
fn whole(
    tree: &Tree,
    kept: &Kept<'_>,
    below: usize,
    gone: &BTreeMap<RootPath, usize>,
) -> BTreeSet<usize> {
    let mut here = vec![0; tree.layers.len()];
    for (path, node) in kept.iter().filter(|(_, node)| !node.implied) {
        here[node.layer()] += 1;
        if node.kind == NodeKind::Dir {
            let past = tree.past.get(path).into_iter().flatten();
            past.filter(|past| past.dir && !past.implied).for_each(|past| here[past.layer] += 1);
        }
    }
    let removing: BTreeSet<usize> = gone.values().copied().collect();
    let homes = homes(kept);
    // A symlink that names go through must be in the result, and below.
    let leads = |link: &RootPath, layer: usize| {
        let at = kept.binary_search_by_key(&link, |(path, _)| path);
        at.is_ok_and(|at| {
            let node = kept[at].1;
            let moved = homes.get(&node.inode).is_some_and(|home| *home >= layer);
            matches!(node.kind, NodeKind::Symlink { .. }) && node.layer() < layer && !moved
        })
    };
    let is_whole = |layer: &usize| {
        let shape = tree.shapes.get(*layer);
        let all = shape.is_some_and(|s| {
            let led = s.through.iter().all(|link| leads(link, *layer));
            !s.bound && s.named > 0 && s.named == here[*layer] && led
        });
        all && !removing.contains(layer)
    };
    (below..tree.layers.len()).filter(is_whole).collect()
}

/// Where the names of an inode go that has them in several layers: to the last one.
fn homes(kept: &Kept<'_>) -> HashMap<u64, usize> {
    let made = |node: &Node| usize::try_from(node.inode >> 32).unwrap_or(usize::MAX);
    let mut homes = HashMap::new();
    for (_, node) in kept.iter().filter(|(_, node)| node.kind != NodeKind::Dir) {
        if made(node) != node.layer() || homes.contains_key(&node.inode) {
            let home = homes.entry(node.inode).or_insert(node.layer());
            *home = node.layer().max(*home);
        }
    }
    homes
}

/// The folders to be written for their own sake. An implied one stays implied by what it holds; an
/// empty one must be named.
fn folders<'a>(kept: &Kept<'a>, stays: impl Fn(usize) -> bool) -> Vec<(&'a RootPath, &'a Node)> {
    let holds = |at: usize| {
        let (path, _) = kept[at];
        // What lies in a folder comes soon after it: names like `/a-b` sort between `/a` and `/a/b`.
        let after = kept[at + 1..].iter().map(|(other, _)| other);
        let mut near = after.take_while(|other| other.as_bytes().starts_with(path.as_bytes()));
        near.any(|other| other.is_within(path))
    };
    let all = kept.iter().enumerate().filter(|(_, (_, node))| node.kind == NodeKind::Dir);
    let named =
        all.filter(|(at, (_, node))| (!node.implied || !holds(*at)) && !stays(node.layer()));
    named.map(|(_, folder)| *folder).collect()
}

/// The root as the topmost layer that names it has it, and the layer to say it in: above every whole
/// layer that says otherwise, the lowest one that is used at all.
fn root(
    tree: &Tree,
    stays: impl Fn(usize) -> bool,
    used: &mut BTreeSet<usize>,
) -> Option<(usize, Node)> {
    let named = |layer: &usize| tree.shapes.get(*layer).is_some_and(|s| s.root.is_some());
    let top = (0..tree.layers.len()).rev().find(named)?;
    let node = tree.shapes[top].root.clone()?;
    let whole = (0..=top).rev().filter(|layer| stays(*layer)).find(named);
    let same = |layer: usize| {
        let other = tree.shapes[layer].root.as_ref();
        other.is_some_and(|o| o.same_meta(&node))
    };
    if whole.is_some_and(|layer| layer == top || same(layer)) {
        return None;
    }
    let from = whole.map_or(0, |layer| layer + 1);
    let fits = |layer: &&usize| **layer >= from && !stays(**layer);
    let layer = used.iter().find(fits).copied().unwrap_or(top);
    used.insert(layer);
    Some((layer, node))
}

/// Numbers the layers that have something; beyond the limit neighbours share a number.
fn slots<'a>(
    layers: usize,
    below: usize,
    used: &BTreeSet<usize>,
    whole: &BTreeSet<usize>,
    base: Option<&Base>,
) -> (Vec<Option<usize>>, Vec<Output<'a>>) {
    let mut output_of = vec![None; layers];
    let mut outputs: Vec<Output<'a>> = Vec::new();
    match base.and_then(|base| base.written.as_ref()) {
        Some(shared) => {
            output_of[..below].clone_from_slice(&shared.output_of[..below]);
            let ready = |layer: &Written| Output::Ready(shared.blobs.clone(), layer.clone());
            outputs.extend(shared.layers.iter().map(ready));
        }
        None => {
            output_of[..below].iter_mut().enumerate().for_each(|(at, to)| *to = Some(at));
            outputs.extend((0..below).map(Output::Whole));
        }
    }
    let first = outputs.len();
    let own: Vec<usize> = used.iter().copied().filter(|layer| *layer >= below).collect();
    let number = assign(own.len(), MAX_LAYERS.saturating_sub(first).max(1));
    for (at, layer) in own.iter().enumerate() {
        output_of[*layer] = Some(first + number[at]);
        if outputs.len() == first + number[at] {
            outputs.push(match whole.contains(layer) {
                true => Output::Whole(*layer),
                false => Output::Filtered(Filtered::default()),
            });
        }
    }
    (output_of, outputs)
}

/// A number for each of `count` things in a row, of which there are `limit`.
fn assign(count: usize, limit: usize) -> Vec<usize> {
    if count > limit {
        tracing::warn!(
            layers = count,
            limit,
            "more layers than Docker loads: neighbours are merged"
        );
    }
    (0..count).map(|at| if count > limit { at * limit / count } else { at }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_many_layers_are_merged_in_order() {
        let got = assign(150, MAX_LAYERS);
        assert_eq!(got.iter().max(), Some(&(MAX_LAYERS - 1)));
        assert!(got.is_sorted());
        assert_eq!(assign(2, 2), [0, 1]);
    }
}
