//! Joining profiles: what runs on many machines saw, added up.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::profile::{Access, Extra, FileCell, FirstUse, ImageIdentity, Profile, RunId, canonical};
use super::{DiffId, Digest, RootPath, Seen, SortedMap};

/// Why two profiles cannot be joined. Nothing was changed then.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    #[error(
        "the profiles are of different images: {what} {ours} and {theirs}; merge only profiles of \
         one image, and trace the other one by itself"
    )]
    OtherImage { what: &'static str, ours: String, theirs: String },
    #[error(
        "{path} has {what} {ours} in one profile and {theirs} in the other, though both are of the \
         same image; one of the files was altered, trace again"
    )]
    Conflict { path: RootPath, what: &'static str, ours: String, theirs: String },
}

impl Profile {
    /// Adds everything `other` saw: the join of a semilattice, so neither order nor grouping nor
    /// repetition of profiles changes the result.
    pub fn merge(&mut self, other: Self) -> Result<(), MergeError> {
        self.image.same_as(&other.image)?;
        for (path, theirs) in &other.files {
            self.files.get(path).map_or(Ok(()), |ours| ours.agrees(theirs, path))?;
        }
        self.schema = newer_schema(std::mem::take(&mut self.schema), other.schema);
        self.image.names.extend(other.image.names);
        self.image.manifest_digests.extend(other.image.manifest_digests);
        join_extra(&mut self.image.extra, other.image.extra);
        for (id, theirs) in other.runs {
            // The id is the record's digest: two records under one id mean a field that this
            // version does not know, or a forgery. Any fixed choice keeps the laws.
            let text = |run| canonical(&serde_json::to_value(run).unwrap_or_default());
            match self.runs.get(&id) {
                Some(ours) if text(ours) <= text(&theirs) => {}
                _ => drop(self.runs.insert(id, theirs)),
            }
        }
        for (path, theirs) in other.files {
            match self.files.get_mut(&path) {
                Some(ours) => ours.join(*theirs),
                None => drop(self.files.insert(path, theirs)),
            }
        }
        join_paths(&mut self.missing, other.missing);
        join_paths(&mut self.written, other.written);
        join_paths(&mut self.mounts, other.mounts);
        for (arch, names) in other.syscalls {
            let ours = self.syscalls.entry(arch).or_default();
            for (name, arguments) in names {
                join_paths(ours.entry(name).or_default(), arguments);
            }
        }
        join_paths(&mut self.network, other.network);
        join_paths(&mut self.capabilities, other.capabilities);
        for (run, theirs) in other.startup {
            // one run has one start; of two versions any fixed choice keeps the laws
            let text = |start| canonical(&serde_json::to_value(start).unwrap_or_default());
            match self.startup.get(&run) {
                Some(ours) if text(ours) <= text(&theirs) => {}
                _ => drop(self.startup.insert(run, theirs)),
            }
        }
        join_extra(&mut self.extra, other.extra);
        let ours = std::mem::take(&mut self.unknown);
        self.unknown = join_values(ours, other.unknown);
        Ok(())
    }
}

impl ImageIdentity {
    /// Fails unless both name the same configuration, layers and platform.
    pub fn same_as(&self, other: &Self) -> Result<(), MergeError> {
        let pairs = [
            ("chainID", self.chain_id.to_string(), other.chain_id.to_string()),
            ("config digest", self.config_digest.to_string(), other.config_digest.to_string()),
            ("platform", self.platform.clone(), other.platform.clone()),
        ];
        match pairs.into_iter().find(|(_, ours, theirs)| ours != theirs) {
            Some((what, ours, theirs)) => Err(MergeError::OtherImage { what, ours, theirs }),
            None => Ok(()),
        }
    }
}

impl FileCell {
    fn agrees(&self, other: &Self, path: &RootPath) -> Result<(), MergeError> {
        let conflict = |what, ours: String, theirs: String| {
            Err(MergeError::Conflict { path: path.clone(), what, ours, theirs })
        };
        match (self.layer, other.layer, self.content, other.content) {
            (Some(DiffId(a)), Some(DiffId(b)), ..) if a != b => {
                conflict("layer", a.to_string(), b.to_string())
            }
            (_, _, Some(a), Some(b)) if a != b => conflict("content", a.to_string(), b.to_string()),
            _ => Ok(()),
        }
    }

    /// Where a field is known to one side only, that side's value stays.
    fn join(&mut self, other: Self) {
        self.layer = self.layer.or(other.layer);
        self.content = self.content.or(other.content);
        join_access(&mut self.access, other.access);
        for (key, theirs) in other.extra {
            let ours = self.extra.get_or_insert_with(key, || theirs.clone());
            *ours = join_values(std::mem::take(ours), theirs);
        }
    }
}

fn join_paths<K: Ord>(ours: &mut BTreeMap<K, Access>, theirs: BTreeMap<K, Access>) {
    for (key, access) in theirs {
        join_access(ours.entry(key).or_default(), access);
    }
}

fn join_access(ours: &mut Access, theirs: Access) {
    for (kind, runs) in theirs {
        let cell = ours.get_or_insert_with(kind, SortedMap::default);
        for (run, by) in runs {
            join_first(cell, run, by);
        }
    }
}

/// One run has one first user of a thing. If two profiles of a run differ there, the smaller one
/// stays, and any real use rather than the runtime's: a use must not vanish behind it. Who saw it
/// adds up.
fn join_first(cell: &mut SortedMap<RunId, Seen>, run: Digest, mut theirs: Seen) {
    let Some(ours) = cell.get_mut(&run) else {
        cell.insert(run, theirs);
        return;
    };
    let who = |by: &Seen| FirstUse { backends: BTreeSet::new(), ..by.first_use() };
    let order =
        |a: &Seen, b: &Seen| a.is_runtime().cmp(&b.is_runtime()).then_with(|| who(a).cmp(&who(b)));
    if order(ours, &theirs) == Ordering::Greater {
        std::mem::swap(ours, &mut theirs);
    }
    ours.join_backends(&theirs);
}

fn join_extra(ours: &mut Extra, theirs: Extra) {
    for (key, value) in theirs {
        let joined = match ours.remove(&key) {
            Some(mine) => join_values(mine, value),
            None => value,
        };
        ours.insert(key, joined);
    }
}

/// Joins values whose meaning is unknown: objects key by key, anything else by a fixed order, with
/// objects above all else and `null` below. Commutative, associative, idempotent.
fn join_values(ours: Value, theirs: Value) -> Value {
    match (ours, theirs) {
        (Value::Object(mut a), Value::Object(b)) => {
            join_extra(&mut a, b);
            Value::Object(a)
        }
        (Value::Null, other) | (other, Value::Null) => other,
        (a @ Value::Object(_), _) => a,
        (_, b @ Value::Object(_)) => b,
        (a, b) => {
            if canonical(&a) >= canonical(&b) {
                a
            } else {
                b
            }
        }
    }
}

/// The schema name with the higher minor version; both are of the major that this version reads.
fn newer_schema(ours: String, theirs: String) -> String {
    let minor = |name: &str| super::parse::version(name).map_or(0, |(_, minor)| minor);
    if (minor(&theirs), &theirs) > (minor(&ours), &ours) { theirs } else { ours }
}

#[cfg(test)]
#[path = "merge_tests.rs"]
mod tests;
