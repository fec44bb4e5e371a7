//! Which layer of the result each kept path goes to. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::model::{KeepSet, NodeKind, RootPath, Tree};

/// Docker 20.10 loads 120 layers and refuses 240.
pub(super) const MAX_LAYERS: usize = 120;

/// Where everything goes.
pub(super) struct Plan {
    /// For each layer of the original, the layer of the result that takes what is in force there.
    pub output_of: Vec<Option<usize>>,
    /// For each layer of the result, the folders it has entries for.
    pub dirs: Vec<BTreeSet<RootPath>>,
    /// The kept names of every inode that is no folder.
    pub groups: HashMap<u64, Group>,
}

/// The kept names of one inode.
pub(super) struct Group {
    /// Sorted; the first one carries the content.
    pub names: Vec<RootPath>,
    /// The layer of the original that has the last of its names. All of them go there: Docker 20.10
    /// refuses a hard link into a lower layer.
    pub home: usize,
}

impl Plan {
    pub fn new(tree: &Tree, keep: &KeepSet) -> Self {
        let kept = with_parents(tree, keep);
        let groups = groups(tree, &kept);
        let above: BTreeSet<RootPath> = kept.iter().filter_map(RootPath::parent).collect();
        // An implied folder stays implied by what it holds; an empty one must be named.
        let named = |path: &RootPath| {
            let node = tree.get(path)?;
            let explicit = node.kind == NodeKind::Dir && (!node.implied || !above.contains(path));
            explicit.then_some((path.clone(), node.layer))
        };
        let folders: Vec<(RootPath, usize)> = kept.iter().filter_map(named).collect();
        let homes = groups.values().map(|g| g.home).chain(folders.iter().map(|(_, layer)| *layer));
        let used: BTreeSet<usize> = homes.collect();
        let output_of = assign(tree.layers.len(), &used);
        let outputs = output_of.iter().flatten().max().map_or(0, |last| last + 1);
        let mut dirs = vec![BTreeSet::new(); outputs];
        let mut add = |layer: usize, path: &RootPath, itself: bool| {
            let Some(output) = output_of[layer] else { return };
            // Engines make missing parents with modes of their own: each layer names all it needs.
            let above = path.ancestors().filter(|p| tree.get(p).is_some_and(|node| !node.implied));
            dirs[output].extend(above);
            dirs[output].extend(itself.then(|| path.clone()));
        };
        folders.iter().for_each(|(path, layer)| add(*layer, path, true));
        for group in groups.values() {
            group.names.iter().for_each(|name| add(group.home, name, false));
        }
        Self { output_of, dirs, groups }
    }
}

fn with_parents(tree: &Tree, keep: &KeepSet) -> BTreeSet<RootPath> {
    let mut kept = BTreeSet::new();
    for path in keep.paths.keys().filter(|path| tree.get(path).is_some()) {
        kept.extend(path.ancestors().filter(|p| !p.is_root()));
        kept.insert(path.clone());
    }
    kept
}

fn groups(tree: &Tree, kept: &BTreeSet<RootPath>) -> HashMap<u64, Group> {
    let mut groups: HashMap<u64, Group> = HashMap::new();
    for path in kept {
        let Some(node) = tree.get(path).filter(|node| node.kind != NodeKind::Dir) else { continue };
        let group = groups.entry(node.inode).or_insert(Group { names: Vec::new(), home: 0 });
        group.names.push(path.clone());
        group.home = group.home.max(node.layer);
    }
    groups
}

/// Numbers the layers that keep something; beyond the limit neighbours share a number.
fn assign(layers: usize, used: &BTreeSet<usize>) -> Vec<Option<usize>> {
    let rank: BTreeMap<usize, usize> = used.iter().copied().zip(0..).collect();
    if rank.len() > MAX_LAYERS {
        tracing::warn!(
            layers = rank.len(),
            limit = MAX_LAYERS,
            "more layers than Docker loads: neighbours are merged"
        );
    }
    let number = |rank: usize| {
        if used.len() > MAX_LAYERS { rank * MAX_LAYERS / used.len() } else { rank }
    };
    (0..layers).map(|layer| rank.get(&layer).map(|rank| number(*rank))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_many_layers_are_merged_in_order() {
        let used: BTreeSet<usize> = (0..300).filter(|n| n % 2 == 0).collect();
        let got = assign(301, &used);
        assert_eq!(got.iter().flatten().max(), Some(&(MAX_LAYERS - 1)));
        assert!(got.iter().flatten().is_sorted());
        assert_eq!(got.iter().flatten().count(), 150);
        assert_eq!(assign(3, &BTreeSet::from([0, 2])), [Some(0), None, Some(1)]);
    }
}
