//! `--keep` and `--drop`: globs as in .gitignore(5), relative to the image's root.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use ignore::Match;
use ignore::gitignore::{Gitignore, GitignoreBuilder};

use super::KeepError;
use crate::model::{Node, NodeKind, RootPath, Tree};

/// The globs of one option, in order: the last one that matches decides, `!` takes back.
pub struct Globs {
    option: &'static str,
    /// Each glob by itself, to tell whether it matches anything at all.
    each: Vec<(String, Gitignore)>,
    all: Gitignore,
}

impl Globs {
    /// Empty lines and comments, as `--keep-from` files have them, are left out.
    pub fn new(option: &'static str, globs: &[String]) -> Result<Self, KeepError> {
        let lines = globs.iter().filter(|g| !g.trim().is_empty() && !g.starts_with('#'));
        let mut each = Vec::new();
        for glob in lines.clone() {
            let plain = glob.strip_prefix('!').unwrap_or(glob);
            each.push((glob.clone(), compile(option, std::iter::once(plain))?));
        }
        Ok(Self { option, each, all: compile(option, lines.map(String::as_str))? })
    }

    /// Calls `found` with what of the tree matches, in order, and the glob that decided. What
    /// lies below a directory that matches, matches too.
    pub fn matches(
        &self,
        tree: &Tree,
        mut found: impl FnMut(&RootPath, &Node, &str),
    ) -> Result<(), KeepError> {
        let mut idle: Vec<bool> = vec![true; self.each.len()];
        if self.each.is_empty() {
            return Ok(());
        }
        for (path, node) in &tree.nodes {
            let is_dir = node.kind == NodeKind::Dir;
            for ((_, glob), idle) in self.each.iter().zip(&mut idle) {
                *idle = *idle && matched(glob, path, is_dir).is_none();
            }
            if let Match::Ignore(glob) = matched(&self.all, path, is_dir) {
                found(path, node, glob.original());
            }
        }
        match self.each.iter().zip(idle).find(|(_, idle)| *idle) {
            Some(((glob, _), _)) => {
                Err(KeepError::NoMatch { option: self.option, glob: glob.clone() })
            }
            None => Ok(()),
        }
    }
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

fn matched<'a>(
    globs: &'a Gitignore,
    path: &RootPath,
    is_dir: bool,
) -> Match<&'a ignore::gitignore::Glob> {
    globs.matched_path_or_any_parents(Path::new(OsStr::from_bytes(path.relative())), is_dir)
}
