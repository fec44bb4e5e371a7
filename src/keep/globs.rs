//! `--keep` and `--drop`: globs as in .gitignore(5), relative to the image's root.

use std::ffi::OsStr;
use std::ops::Bound::{self, Excluded, Included, Unbounded};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::thread::ScopedJoinHandle;

use ignore::Match;
use ignore::gitignore::{Gitignore, GitignoreBuilder, Glob};

use super::KeepError;
use crate::model::{Node, NodeKind, RootPath, Tree};

/// Paths that a thread should have at least.
const LEAST: usize = 10_000;

/// The globs of one option, in order: the last one that matches decides, `!` takes back.
pub struct Globs {
    option: &'static str,
    /// Each glob by itself, to tell whether it matches anything at all.
    each: Vec<(String, Gitignore)>,
    all: Gitignore,
}

impl Globs {
    /// See [`lines`].
    pub fn new(option: &'static str, globs: &[String]) -> Result<Self, KeepError> {
        let mut each = Vec::new();
        for glob in lines(globs) {
            let plain = glob.strip_prefix('!').unwrap_or(glob);
            each.push((glob.clone(), compile(option, std::iter::once(plain))?));
        }
        Ok(Self { option, each, all: compile(option, lines(globs).map(String::as_str))? })
    }

    /// The globs for [`Globs::in_order`] alone.
    pub fn joined(option: &'static str, globs: &[String]) -> Result<Self, KeepError> {
        let all = compile(option, lines(globs).map(String::as_str))?;
        Ok(Self { option, each: Vec::new(), all })
    }

    /// A matcher of its own, for one thread.
    pub fn in_order(&self) -> InOrder<'_> {
        InOrder::new(&self.all)
    }

    /// Calls `found` with what of the tree matches, and the glob that decided. What lies below a
    /// directory that matches, matches too.
    ///
    /// Threads share the work: the tree is cut into stretches, each of which has a `T` of its own and is
    /// gone through in order. These come back in the order of the stretches.
    pub fn matches<T: Default + Send>(
        &self,
        tree: &Tree,
        found: impl Fn(&mut T, &RootPath, &Node, &str) + Sync,
    ) -> Result<Vec<T>, KeepError> {
        if self.each.is_empty() {
            return Ok(Vec::new());
        }
        let parts = std::thread::scope(|scope| {
            let found = &found;
            let start = |stretch| scope.spawn(move || self.stretch(tree, stretch, found));
            let threads: Vec<_> = stretches(tree).into_iter().map(start).collect();
            let join = |thread: ScopedJoinHandle<'_, _>| {
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            threads.into_iter().map(join).collect::<Vec<(T, Vec<bool>)>>()
        });
        let idle = |at: &usize| parts.iter().all(|(_, used)| !used[*at]);
        match (0..self.each.len()).find(idle) {
            Some(at) => {
                let glob = self.each[at].0.clone();
                Err(KeepError::NoMatch { option: self.option, glob })
            }
            None => Ok(parts.into_iter().map(|(part, _)| part).collect()),
        }
    }

    /// One stretch; and for each glob, whether it matched anything there.
    fn stretch<T: Default>(
        &self,
        tree: &Tree,
        stretch: Stretch<'_>,
        found: impl Fn(&mut T, &RootPath, &Node, &str),
    ) -> (T, Vec<bool>) {
        let mut part = T::default();
        let mut used = vec![false; self.each.len()];
        let mut each: Vec<InOrder<'_>> =
            self.each.iter().map(|(_, globs)| InOrder::new(globs)).collect();
        let mut all = self.in_order();
        for (path, node) in tree.nodes.range(stretch) {
            let is_dir = node.kind == NodeKind::Dir;
            for (glob, used) in each.iter_mut().zip(&mut used) {
                *used = *used || !glob.matched(path, is_dir).is_none();
            }
            if let Match::Ignore(glob) = all.matched(path, is_dir) {
                found(&mut part, path, node, glob.original());
            }
        }
        (part, used)
    }
}

type Stretch<'a> = (Bound<&'a RootPath>, Bound<&'a RootPath>);

/// Cuts a tree into a stretch for each processor; a small one stays in one piece.
fn stretches(tree: &Tree) -> Vec<Stretch<'_>> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let step = tree.nodes.len().div_ceil(threads).max(LEAST);
    let starts: Vec<&RootPath> = tree.nodes.keys().step_by(step).collect();
    let ends = starts.iter().skip(1).map(|next| Excluded(*next)).chain([Unbounded]);
    starts.iter().map(|start| Included(*start)).zip(ends).collect()
}

/// Globs, for paths that come folder by folder: what they say of a folder holds for all that lies in it, unless
/// they say something of that itself.
pub struct InOrder<'a> {
    globs: &'a Gitignore,
    folder: Option<RootPath>,
    /// What is said of that folder.
    above: Match<&'a Glob>,
}

impl<'a> InOrder<'a> {
    fn new(globs: &'a Gitignore) -> Self {
        Self { globs, folder: None, above: Match::None }
    }

    /// True if the globs pick this file.
    pub fn picks(&mut self, path: &RootPath) -> bool {
        !self.globs.is_empty() && self.matched(path, false).is_ignore()
    }

    fn matched(&mut self, path: &RootPath, is_dir: bool) -> Match<&Glob> {
        let own = self.globs.matched(plain(path), is_dir);
        if !own.is_none() {
            return own;
        }
        if self.folder.as_ref().is_none_or(|folder| !path.is_in(folder)) {
            let folder = path.parent().unwrap_or_else(RootPath::root);
            self.above = self.globs.matched_path_or_any_parents(plain(&folder), true);
            self.folder = Some(folder);
        }
        self.above.clone()
    }
}

/// Empty lines and comments, as `--keep-from` files have them, are left out.
fn lines(globs: &[String]) -> impl Iterator<Item = &String> {
    globs.iter().filter(|g| !g.trim().is_empty() && !g.starts_with('#'))
}

/// The matcher is given lines, never a file name: it opens nothing.
fn compile<'a>(
    option: &'static str,
    globs: impl Iterator<Item = &'a str>,
) -> Result<Gitignore, KeepError> {
    let mut builder = GitignoreBuilder::new("");
    let bad = |glob: &str, e: ignore::Error| KeepError::BadGlob {
        option,
        glob: glob.to_owned(),
        why: e.to_string(),
    };
    for glob in globs {
        builder.add_line(None, glob).map_err(|e| bad(glob, e))?;
    }
    builder.build().map_err(|e| bad("", e))
}

fn plain(path: &RootPath) -> &Path {
    Path::new(OsStr::from_bytes(path.relative()))
}
