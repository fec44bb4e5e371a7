//! The minimiser: profile + tree + policy into a keep-set, each path with its reasons. Pure.

use crate::model::{ImageConfig, KeepSet, Policy, Profile, Tree};

/// Why no keep-set could be decided.
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    #[error("--{option} {glob:?} matches nothing in the image")]
    NoMatch { option: &'static str, glob: String },
    #[error("--{option} {glob:?} is no glob: {why}")]
    BadGlob { option: &'static str, glob: String, why: String },
}

/// Decides what stays. No clock, no disk: the same inputs always give the same keep-set.
pub fn decide(
    _profile: &Profile,
    _tree: &Tree,
    _config: &ImageConfig,
    _policy: &Policy,
) -> Result<KeepSet, KeepError> {
    Ok(KeepSet::default())
}

/// Something verification found wrong.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Finding {
    /// `static` or `dynamic`.
    pub check: &'static str,
    /// A path (escaped) or a call's name.
    pub subject: String,
    /// What is wrong, in a sentence.
    pub what: String,
    /// Who met it, for dynamic findings.
    pub by: Option<crate::model::FirstUse>,
}

/// Compares the slim tree with the original, path by path: every path of `keep`, and no other, with
/// type, mode, owner, times, xattrs, content and link groups as they were.
pub fn verify_static(_original: &Tree, _slim: &Tree, _keep: &KeepSet) -> Vec<Finding> {
    Vec::new()
}

/// Compares a run of the slim image (folded against the original's tree) with the runs of the
/// original.
pub fn verify_dynamic(
    _original: &Profile,
    _slim: &Profile,
    _tree: &Tree,
    _keep: &KeepSet,
) -> Vec<Finding> {
    Vec::new()
}
