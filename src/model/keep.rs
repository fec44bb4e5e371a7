//! The keep-set: which paths stay, each with its reasons.

use std::collections::{BTreeMap, BTreeSet, btree_map};
use std::iter::Peekable;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::RootPath;

/// Why a path stays: a closed list, each reason re-derivable from profile, tree and policy.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "reason", content = "of")]
pub enum Reason {
    /// A run used it (`files` of the profile), directly.
    Touched,
    /// A symlink that was walked on the way to a used path.
    Walked,
    /// The target of a kept symlink.
    TargetOf(RootPath),
    /// A directory above a kept path.
    ParentOf(RootPath),
    /// PT_INTERP of a kept ELF file.
    InterpreterOf(RootPath),
    /// DT_NEEDED of a kept ELF file.
    NeededBy(RootPath),
    /// The `#!` interpreter of a kept script.
    ShebangOf(RootPath),
    /// What the loader takes in place of a kept library on a processor that can do less.
    PlainOf(RootPath),
    /// The image's directories stay: programs list them, or fail without them.
    Directory,
    /// What USER, WORKDIR, name resolution and the like need (`/etc/passwd`, …); says which.
    Config(String),
    /// Below a VOLUME of the image.
    Volume(RootPath),
    /// The run changed or removed it; the original stays.
    Changed,
    /// `--keep` or `--keep-from`; the glob.
    Policy(String),
    /// The layers that `--keep-base` keeps whole have something there.
    Base,
    /// A layer shared with other images of the family has something there, since one of them uses it.
    Family,
}

impl Reason {
    /// The key of `kept_by_reason` in summary.json.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Touched => "touched",
            Self::Walked => "walked",
            Self::TargetOf(_) => "target_of",
            Self::ParentOf(_) => "parent_of",
            Self::InterpreterOf(_) => "interpreter_of",
            Self::NeededBy(_) => "needed_by",
            Self::ShebangOf(_) => "shebang_of",
            Self::PlainOf(_) => "plain_of",
            Self::Directory => "directory",
            Self::Config(_) => "config",
            Self::Volume(_) => "volume",
            Self::Changed => "changed",
            Self::Policy(_) => "policy",
            Self::Base => "base",
            Self::Family => "family",
        }
    }
}

/// A few reasons, sorted. Clones share them: most paths of an image stay for the same few.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reasons(Arc<Vec<Reason>>);

impl Reasons {
    /// Adds a reason, if it is not there.
    pub fn insert(&mut self, reason: &Reason) {
        if let Err(at) = self.0.binary_search(reason) {
            let own = Arc::make_mut(&mut self.0);
            own.reserve_exact(1);
            own.insert(at, reason.clone());
        }
    }

    pub fn iter(&self) -> std::slice::Iter<'_, Reason> {
        self.0.iter()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn contains(&self, reason: &Reason) -> bool {
        self.0.contains(reason)
    }
}

impl<'a> IntoIterator for &'a Reasons {
    type Item = &'a Reason;
    type IntoIter = std::slice::Iter<'a, Reason>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl From<Reason> for Reasons {
    fn from(reason: Reason) -> Self {
        Self(Arc::new(vec![reason]))
    }
}

/// The paths that stay, each with at least one reason, the first one found first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeepSet {
    pub paths: BTreeMap<RootPath, Reasons>,
    /// Every path of the tree that a `--drop` glob names, but for directories above kept paths.
    pub dropped: BTreeSet<RootPath>,
}

/// Kept paths, asked for in order.
pub struct KeptInOrder<'a>(Peekable<btree_map::Keys<'a, RootPath, Reasons>>);

impl KeptInOrder<'_> {
    /// True if `path`, which comes after all that were asked for before, is kept.
    pub fn has(&mut self, path: &RootPath) -> bool {
        while self.0.next_if(|kept| !kept.is(path) && *kept < path).is_some() {}
        self.0.next_if(|kept| kept.is(path)).is_some()
    }
}

impl KeepSet {
    /// For asking about many paths in order.
    pub fn in_order(&self) -> KeptInOrder<'_> {
        KeptInOrder(self.paths.keys().peekable())
    }

    /// How many paths stay for each reason (a path with two reasons counts for both).
    pub fn by_reason(&self) -> BTreeMap<String, u64> {
        let mut counts = BTreeMap::new();
        for reason in self.paths.values().flatten() {
            *counts.entry(reason.name()).or_insert(0) += 1;
        }
        counts.into_iter().map(|(name, count)| (name.to_owned(), count)).collect()
    }
}

/// What the user asked to keep, drop and allow, checked and ready to apply.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// Globs as in .gitignore, relative to the image's root (`/**` is everything).
    pub keep: Vec<String>,
    /// Globs to drop, even where something else would keep a path.
    pub drop: Vec<String>,
    /// Extra system calls to allow, by name.
    pub allow: Vec<String>,
    /// How many of the lowest layers stay whole.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub keep_base: usize,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde hands it so")]
fn is_zero(number: &usize) -> bool {
    *number == 0
}
