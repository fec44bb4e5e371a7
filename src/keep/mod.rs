//! The minimiser: profile + tree + policy into a keep-set, each path with its reasons. Pure.
//!
//! [`decide`] gathers what was used, what the configuration names and what the user asks for, and
//! closes it over what those files need. [`verify_static`] and [`verify_dynamic`] compare the result
//! with the original. Facts that need file contents arrive inside the tree; no file is opened here.

mod closure;
mod foresight;
mod globs;
mod needs;
mod verify;

use std::collections::BTreeSet;
use std::collections::btree_map::Entry;

use crate::model::{
    ImageConfig, KeepSet, Node, NodeKind, Policy, Profile, Reason, Reasons, RootPath, Tree,
};

pub use closure::program;
pub use foresight::{Foresight, Looker};
pub use verify::{Finding, verify_dynamic, verify_static};

/// Why no keep-set could be decided.
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    #[error("--{option} {glob:?} matches nothing in the image")]
    NoMatch { option: &'static str, glob: String },
    #[error("--{option} {glob:?} is no glob: {why}")]
    BadGlob { option: &'static str, glob: String, why: String },
    #[error(
        "--drop names {path}, but it lies in layers that stay whole: drop nothing of them, or keep fewer with --keep-base"
    )]
    DroppedBase { path: RootPath },
}

/// Decides what stays. No clock, no disk: the same inputs always give the same keep-set.
///
/// A `--drop` glob wins over every reason, except that a directory above a kept path stays.
pub fn decide(
    profile: &Profile,
    tree: &Tree,
    config: &ImageConfig,
    policy: &Policy,
) -> Result<KeepSet, KeepError> {
    decide_for(profile, tree, &[config], policy)
}

/// [`decide`] for a configuration that is edited: what the original's needs stays, and what the
/// result's does.
pub fn decide_for(
    profile: &Profile,
    tree: &Tree,
    configs: &[&ImageConfig],
    policy: &Policy,
) -> Result<KeepSet, KeepError> {
    let drop = globs::Globs::new("drop", &policy.drop)?;
    let keep = globs::Globs::new("keep", &policy.keep)?;
    let dropped = drop.matches(tree, |out: &mut Vec<_>, path, _, _| out.push(path.clone()))?;
    let mut keeper = Keeper::new(tree, dropped.into_iter().flatten().collect());
    keeper.executed = needs::executed(profile);
    let dropped = &keeper.keep.dropped;
    let named = keep.matches(tree, |out: &mut Named, path, node, glob| {
        if !dropped.contains(path) {
            out.add(path, node, glob);
        }
    })?;
    let mut paths = Vec::new();
    for mut part in named {
        paths.append(&mut part.paths);
        keeper.todo.append(&mut part.todo);
    }
    // They come in order: a map is made of such at once.
    keeper.keep.paths = paths.into_iter().collect();
    for (path, reason) in needs::used(profile, tree) {
        keeper.add(&path, &reason);
    }
    for (path, reason) in configs.iter().flat_map(|config| needs::configured(tree, config)) {
        keeper.add(&path, &reason);
    }
    for (path, reason) in needs::given(profile, tree) {
        keeper.add(&path, &reason);
    }
    for (path, node) in &tree.nodes {
        if node.kind == NodeKind::Dir {
            keeper.add(path, &Reason::Directory);
        }
    }
    let searches: Vec<_> = configs.iter().map(|config| closure::Search::new(config)).collect();
    while let Some(path) = keeper.todo.pop() {
        searches.iter().for_each(|search| search.close_over(&path, &mut keeper));
    }
    let mut keep = keeper.finish();
    if policy.keep_base > 0 {
        add_names(&mut keep, tree, &tree.names_at(policy.keep_base), &Reason::Base)?;
    }
    Ok(keep)
}

/// Keeps whatever the tree has at `names`, which lower layers show whether it is kept or not; the
/// folders above are among them.
///
/// # Errors
/// Where the policy drops one of them.
pub fn add_names(
    keep: &mut KeepSet,
    tree: &Tree,
    names: &BTreeSet<RootPath>,
    reason: &Reason,
) -> Result<(), KeepError> {
    for path in names.iter().filter(|path| tree.has(path)) {
        if keep.dropped.contains(path) {
            return Err(KeepError::DroppedBase { path: path.clone() });
        }
        keep.paths.entry(path.clone()).or_default().insert(reason);
    }
    Ok(())
}

/// What `--keep` globs make of paths of the tree.
#[derive(Default)]
struct Named {
    paths: Vec<(RootPath, Reasons)>,
    /// Those whose needs are to be looked at.
    todo: Vec<RootPath>,
    /// The reason given last, to be shared with the next path.
    last: Reasons,
}

impl Named {
    fn add(&mut self, path: &RootPath, node: &Node, glob: &str) {
        if closure::needs_others(node) {
            self.todo.push(path.clone());
        }
        let same = |reason: &Reason| matches!(reason, Reason::Policy(other) if other == glob);
        if !self.last.iter().all(same) || self.last.is_empty() {
            self.last = Reason::Policy(glob.to_owned()).into();
        }
        self.paths.push((path.clone(), self.last.clone()));
    }
}

/// A keep-set in the making.
struct Keeper<'a> {
    tree: &'a Tree,
    keep: KeepSet,
    /// Kept paths whose needs were not looked at yet.
    todo: Vec<RootPath>,
    /// The reason given last, to be shared with the next path.
    last: Reasons,
    /// What runs executed: the `#!` line of a script that was only read as data says nothing.
    executed: BTreeSet<RootPath>,
}

impl<'a> Keeper<'a> {
    fn new(tree: &'a Tree, dropped: BTreeSet<RootPath>) -> Self {
        let keep = KeepSet { dropped, ..KeepSet::default() };
        Self { tree, keep, todo: Vec::new(), last: Reasons::default(), executed: BTreeSet::new() }
    }

    /// Keeps a path of the tree, unless the policy drops it.
    fn add(&mut self, path: &RootPath, reason: &Reason) {
        // The tree's own path: copies of it share the room.
        let Some((path, node)) = self.tree.nodes.get_key_value(path) else { return };
        if self.keep.dropped.contains(path) {
            return;
        }
        match self.keep.paths.entry(path.clone()) {
            Entry::Occupied(mut there) => there.get_mut().insert(reason),
            Entry::Vacant(new) => {
                if self.last.iter().ne([reason]) {
                    self.last = reason.clone().into();
                }
                new.insert(self.last.clone());
                if closure::needs_others(node) {
                    self.todo.push(path.clone());
                }
            }
        }
    }

    /// True if a run executed `path`, or the policy keeps it for uses that no run showed.
    fn may_run(&self, path: &RootPath) -> bool {
        let by_policy = |reason: &Reason| matches!(reason, Reason::Policy(_));
        self.executed.contains(path)
            || self.keep.paths.get(path).is_some_and(|reasons| reasons.iter().any(by_policy))
    }

    /// Keeps what a walk along `raw` from `cwd` meets: the symlinks, and the end for `reason`.
    /// Returns the end, if the tree has it and the policy leaves it.
    fn walk(&mut self, cwd: &RootPath, raw: &[u8], reason: Reason) -> Option<RootPath> {
        let end = self.tree.resolve(&RootPath::root(), cwd, raw, true).filter(|end| end.exists)?;
        for link in &end.links {
            self.add(link, &Reason::Walked);
        }
        self.add(&end.path, &reason);
        (!self.keep.dropped.contains(&end.path)).then_some(end.path)
    }

    /// Adds the directories above kept paths: those that the policy named too, since nothing can lie
    /// below a directory that is not there.
    fn finish(mut self) -> KeepSet {
        let mut parents = std::collections::BTreeMap::new();
        let mut last: Option<&RootPath> = None;
        for path in self.keep.paths.keys() {
            // What lies in the folder of the path before has the same ones above it.
            if last.replace(path).is_some_and(|last| path.is_beside(last)) {
                continue;
            }
            for parent in path.ancestors().take_while(|p| !p.is_root()) {
                if self.keep.paths.contains_key(&parent) {
                    break;
                }
                parents.entry(parent).or_insert_with(|| path.clone());
            }
        }
        for (parent, child) in parents {
            self.keep.dropped.remove(&parent);
            self.keep.paths.entry(parent).or_default().insert(&Reason::ParentOf(child));
        }
        self.keep
    }
}

#[cfg(test)]
mod tests;
