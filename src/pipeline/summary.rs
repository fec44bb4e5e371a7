//! `summary.json`: what a verb did, in numbers.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::emit::{Recipe, Written};
use crate::keep::Finding;
use crate::model::{ChainId, DiffId, Digest, KeepSet, Loss, Policy, Profile, Totals, Tree};
use crate::oci::Image;
use crate::seccomp::Allowlist;

/// The schema name that this version writes.
pub const SCHEMA: &str = "slim.summary/v1";

/// The whole of `summary.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Summary {
    pub schema: String,
    /// The original image.
    pub image: ImageIds,
    /// False if anything was lost, see `losses`.
    pub complete: bool,
    pub losses: Vec<Loss>,
    /// `null` where nothing was verified.
    pub verified: Option<Verified>,
    /// Paths that are not directories.
    pub files: BeforeAfter,
    /// Bytes of regular files, each inode once.
    pub bytes: BeforeAfter,
    pub syscalls: Calls,
    /// Paths of the image whose bytes are not the original's; at most 20.
    pub generated: Vec<String>,
    /// Reason → number of kept paths that have it.
    pub kept_by_reason: BTreeMap<String, u64>,
    /// The image that was written, if one was.
    #[serde(default)]
    pub output: Option<OutputIds>,
    /// The Dockerfile that was written in place of an image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recipe: Option<Recipe>,
    /// What the user asked to keep, drop and allow: `slim verify` reads it back.
    #[serde(default)]
    pub policy: Policy,
    /// How the script ended: `exited 0`, …
    #[serde(default)]
    pub script: Option<String>,
    /// Times the original was recorded: more than one where verification asked for another.
    #[serde(default)]
    pub recordings: u64,
    /// What the last recording cost those that were not recorded; `null` where nothing was.
    #[serde(default)]
    pub bystanders: Option<Bystanders>,
    /// What verification found and could not mend.
    #[serde(default)]
    pub findings: Vec<FindingText>,
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// What a system call that does nothing takes a process outside the container, ns: before the recorder
/// was attached, and while it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bystanders {
    #[serde(rename = "ns_per_call_before")]
    pub before: u64,
    #[serde(rename = "ns_per_call_during")]
    pub during: u64,
}

/// How the original is known.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ImageIds {
    pub config_digest: Digest,
    pub chain_id: ChainId,
    pub manifest_digest: Digest,
}

/// How the written image is known.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct OutputIds {
    /// The first of the tags.
    pub tag: String,
    #[serde(default)]
    pub tags: Vec<String>,
    pub config_digest: Digest,
    pub manifest_digest: Digest,
    /// Lowest first.
    #[serde(default)]
    pub layers: Vec<OutputLayer>,
    /// How many of them, from the lowest, were made for all images of a family that have them.
    #[serde(default)]
    pub family_layers: usize,
}

/// A layer of the written image.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct OutputLayer {
    pub diff_id: DiffId,
    pub digest: Digest,
    /// Bytes as stored.
    pub size: u64,
    /// True for a layer of the original that lost nothing.
    pub whole: bool,
}

impl OutputLayer {
    pub(super) fn of(written: &Written) -> Self {
        let Written { diff_id, digest, size, whole, .. } = *written;
        Self { diff_id, digest, size, whole }
    }
}

/// Which checks passed. `dynamic` is `null` where no script was run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verified {
    #[serde(rename = "static")]
    pub statically: bool,
    pub dynamic: Option<bool>,
}

#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct BeforeAfter {
    pub before: u64,
    pub after: u64,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Calls {
    /// Names that runs of the original used.
    pub recorded: u64,
    /// Names that the emitted filter allows, base sets included.
    pub allowed: u64,
    /// Allowed name → `recorded`, the base set it comes from, or `--allow`.
    #[serde(default)]
    pub why: BTreeMap<String, String>,
}

/// A finding for readers of the summary.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct FindingText {
    pub check: String,
    pub subject: String,
    pub what: String,
    #[serde(default)]
    pub by: Option<crate::model::FirstUse>,
}

impl From<&Finding> for FindingText {
    fn from(finding: &Finding) -> Self {
        Self {
            check: finding.check.to_owned(),
            subject: finding.subject.clone(),
            what: finding.what.clone(),
            by: finding.by.clone(),
        }
    }
}

impl Summary {
    /// What is known from the original and a profile alone; the rest is filled in as it happens.
    pub fn of(image: &Image, tree: &Tree, profile: &Profile, policy: &Policy) -> Self {
        let Totals { files, bytes } = tree.totals();
        let mut new = Self::uncounted(image, profile, policy);
        (new.files.before, new.bytes.before) = (files, bytes);
        new
    }

    /// The same without what [`Summary::decided`] counts.
    pub(super) fn uncounted(image: &Image, profile: &Profile, policy: &Policy) -> Self {
        let losses = profile.losses();
        Self {
            schema: SCHEMA.to_owned(),
            image: ImageIds {
                config_digest: image.config_digest,
                chain_id: image.chain_id(),
                manifest_digest: image.manifest_digest,
            },
            complete: profile.is_complete(),
            losses,
            verified: None,
            files: BeforeAfter::default(),
            bytes: BeforeAfter::default(),
            syscalls: Calls { recorded: recorded_calls(profile), ..Calls::default() },
            generated: Vec::new(),
            kept_by_reason: BTreeMap::new(),
            output: None,
            recipe: None,
            policy: policy.clone(),
            script: None,
            recordings: profile.runs.len() as u64,
            bystanders: None,
            findings: Vec::new(),
            warnings: Vec::new(),
        }
    }

    /// Adds what the keep-set and the allowlist say.
    pub fn decided(&mut self, tree: &Tree, keep: &KeepSet, allowlist: &Allowlist) {
        let mut kept = keep.in_order();
        let (all, left) = tree.totals_with(|path| kept.has(path));
        self.files = BeforeAfter { before: all.files, after: left.files };
        self.bytes = BeforeAfter { before: all.bytes, after: left.bytes };
        self.kept_by_reason = keep.by_reason();
        self.syscalls.allowed = allowlist.why.len() as u64;
        self.syscalls.why = allowlist.why.clone();
    }
}

/// Names of calls that entered the kernel on behalf of the container, over all architectures.
fn recorded_calls(profile: &Profile) -> u64 {
    let names = profile.syscalls.values().flat_map(|names| {
        names.iter().filter(|(_, cells)| cells.values().any(counts)).map(|(name, _)| name)
    });
    names.collect::<std::collections::BTreeSet<_>>().len() as u64
}

/// True if somebody else than the OCI runtime made the call and it entered the kernel.
fn counts(access: &crate::model::profile::Access) -> bool {
    let by = access.get(crate::model::profile::kind::CALL).into_iter().flat_map(|c| c.values());
    by.into_iter().any(|by| !by.is_runtime())
}
