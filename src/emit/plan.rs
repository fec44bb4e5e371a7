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
pub(super) struct Plan {
    /// For each layer of the original, the layer of the result that takes what is in force there.
    pub output_of: Vec<Option<usize>>,
    /// The layers of the result.
    pub outputs: Vec<Output>,
    /// The kept names of every inode that is no folder and has to be written.
    pub groups: HashMap<u64, Vec<RootPath>>,
}

/// A layer of the result.
pub(super) enum Output {
    /// One that was written before, into a folder.
    Ready(PathBuf, Written),
    /// This layer of the original, byte for byte.
    Whole(usize),
    /// Kept paths of one layer or of several neighbours.
    Filtered(Filtered),
}

/// What a filtered layer has, in the order in which it is written.
#[derive(Default)]
pub(super) struct Filtered {
    /// The root's own entry.
    pub root: Option<Node>,
    /// Folders, each with those above it.
    pub dirs: BTreeSet<RootPath>,
    /// What the base shows and the original does not.
    pub gone: BTreeSet<RootPath>,
    /// Inodes, see [`Plan::groups`]. All names of one go to the layer that has the last of them:
    /// Docker 20.10 refuses a hard link into a lower layer.
    pub inodes: BTreeSet<u64>,
}

impl Plan {
    pub fn new(tree: &Tree, keep: &KeepSet, base: Option<&Base>) -> Self {
        let kept = with_parents(tree, keep);
        let below = base.map_or(0, |base| base.layers.min(tree.layers.len()));
        let gone = base.map_or_else(BTreeMap::new, |base| gone(tree, base));
        let whole = whole(tree, &kept, below, &gone);
        Self::with(tree, &kept, base, &gone, &whole)
    }

    fn with(
        tree: &Tree,
        kept: &BTreeSet<RootPath>,
        base: Option<&Base>,
        gone: &BTreeMap<RootPath, usize>,
        whole: &BTreeSet<usize>,
    ) -> Self {
        let layers = tree.layers.len();
        let below = base.map_or(0, |base| base.layers.min(layers));
        let stays = |layer: usize| layer < below || whole.contains(&layer);
        let (groups, homes) = groups(tree, kept, stays);
        let folders = folders(tree, kept, stays);
        let used = homes.values().chain(folders.values()).chain(gone.values());
        let mut used: BTreeSet<usize> = used.copied().chain(whole.iter().copied()).collect();
        let root = root(tree, stays, &mut used);
        if used.len() > MAX_LAYERS.saturating_sub(below) && !whole.is_empty() {
            // Neighbours will share a layer, and none of those can be whole.
            return Self::with(tree, kept, base, gone, &BTreeSet::new());
        }
        let (output_of, mut outputs) = slots(layers, below, &used, whole, base);
        let mut on = |layer: usize, add: &mut dyn FnMut(&mut Filtered)| {
            let output = output_of[layer].and_then(|at| outputs.get_mut(at));
            if let Some(Output::Filtered(filtered)) = output {
                add(filtered);
            }
        };
        // Engines make missing parents with modes of their own: each layer names all it needs.
        let above = |path: &RootPath| -> Vec<RootPath> {
            let explicit = |p: &RootPath| tree.get(p).is_some_and(|node| !node.implied);
            path.ancestors().filter(explicit).collect()
        };
        for (path, layer) in &folders {
            on(*layer, &mut |to| {
                to.dirs.extend(above(path));
                to.dirs.insert(path.clone());
            });
        }
        for (path, layer) in gone {
            on(*layer, &mut |to| {
                to.dirs.extend(above(path));
                to.gone.insert(path.clone());
            });
        }
        for (inode, names) in &groups {
            on(homes[inode], &mut |to| {
                names.iter().for_each(|name| to.dirs.extend(above(name)));
                to.inodes.insert(*inode);
            });
        }
        if let Some((layer, node)) = root {
            on(layer, &mut |to| to.root = Some(node.clone()));
        }
        Self { output_of, outputs, groups }
    }
}

/// The kept paths that the tree has, and the folders above them.
pub(super) fn with_parents(tree: &Tree, keep: &KeepSet) -> BTreeSet<RootPath> {
    let mut kept = BTreeSet::new();
    for path in keep.paths.keys().filter(|path| tree.get(path).is_some()) {
        kept.extend(path.ancestors().filter(|p| !p.is_root()));
        kept.insert(path.clone());
    }
    kept
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
    kept: &BTreeSet<RootPath>,
    below: usize,
    gone: &BTreeMap<RootPath, usize>,
) -> BTreeSet<usize> {
    let mut here = vec![0; tree.layers.len()];
    for path in kept {
        let Some(node) = tree.get(path).filter(|node| !node.implied) else { continue };
        here[node.layer] += 1;
        if node.kind == NodeKind::Dir {
            let past = tree.past.get(path).into_iter().flatten();
            past.filter(|past| past.dir && !past.implied).for_each(|past| here[past.layer] += 1);
        }
    }
    let removing: BTreeSet<usize> = gone.values().copied().collect();
    let is_whole = |layer: &usize| {
        let shape = tree.shapes.get(*layer);
        let all = shape.is_some_and(|s| !s.bound && s.named > 0 && s.named == here[*layer]);
        all && !removing.contains(layer)
    };
    (below..tree.layers.len()).filter(is_whole).collect()
}

type Groups = HashMap<u64, Vec<RootPath>>;

/// The names of each inode that is to be written, sorted, and the layer where they go.
fn groups(
    tree: &Tree,
    kept: &BTreeSet<RootPath>,
    stays: impl Fn(usize) -> bool,
) -> (Groups, HashMap<u64, usize>) {
    let (mut groups, mut homes) = (Groups::new(), HashMap::new());
    for path in kept {
        let Some(node) = tree.get(path).filter(|node| node.kind != NodeKind::Dir) else { continue };
        groups.entry(node.inode).or_default().push(path.clone());
        let home = homes.entry(node.inode).or_insert(0);
        *home = node.layer.max(*home);
    }
    homes.retain(|_, home| !stays(*home));
    groups.retain(|inode, _| homes.contains_key(inode));
    (groups, homes)
}

/// The folders to be written for their own sake. An implied one stays implied by what it holds; an
/// empty one must be named.
fn folders(
    tree: &Tree,
    kept: &BTreeSet<RootPath>,
    stays: impl Fn(usize) -> bool,
) -> BTreeMap<RootPath, usize> {
    let above: BTreeSet<RootPath> = kept.iter().filter_map(RootPath::parent).collect();
    let named = |path: &RootPath| {
        let node = tree.get(path)?;
        let explicit = node.kind == NodeKind::Dir && (!node.implied || !above.contains(path));
        (explicit && !stays(node.layer)).then(|| (path.clone(), node.layer))
    };
    kept.iter().filter_map(named).collect()
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
fn slots(
    layers: usize,
    below: usize,
    used: &BTreeSet<usize>,
    whole: &BTreeSet<usize>,
    base: Option<&Base>,
) -> (Vec<Option<usize>>, Vec<Output>) {
    let mut output_of = vec![None; layers];
    let mut outputs: Vec<Output> = Vec::new();
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
