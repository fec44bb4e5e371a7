//! A profile's note of who used a thing first, in little memory: there is one for every file.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{FirstUse, Phase};

/// A [`FirstUse`] that shares what many uses have in common. In JSON it is one like any other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "FirstUse", into = "FirstUse")]
pub struct Seen {
    /// Without time and backends.
    who: Arc<FirstUse>,
    /// Microseconds since recording began.
    at_us: Option<u64>,
    backends: Backends,
}

/// Names of backends: a bit for each that this version has, others as they are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Backends {
    known: u8,
    #[expect(clippy::box_collection, reason = "nearly always none, and then a third as large")]
    other: Option<Box<BTreeSet<String>>>,
}

const KNOWN: [&str; 5] = ["bpf", "fanotify", "notify", "perf", "upper"];

impl Seen {
    /// The same user at another time, seen by whom this one was.
    pub fn at(&self, at_us: u64) -> Self {
        Self { at_us: Some(at_us), ..self.clone() }
    }

    /// The name of the phase, see [`Phase`].
    pub fn phase(&self) -> &str {
        &self.who.phase
    }

    /// True for a use by the OCI runtime: never a reason to keep.
    pub fn is_runtime(&self) -> bool {
        self.phase() == Phase::Runtime.name()
    }

    /// All of it, as a value by itself.
    pub fn first_use(&self) -> FirstUse {
        self.clone().into()
    }

    /// Takes over who else saw the use, and an earlier time.
    pub(super) fn join(&mut self, other: &Self) {
        self.backends.join(&other.backends);
        self.at_us = [self.at_us, other.at_us].into_iter().flatten().min();
    }

    pub(super) fn join_backends(&mut self, other: &Self) {
        self.backends.join(&other.backends);
    }
}

impl Backends {
    fn join(&mut self, other: &Self) {
        self.known |= other.known;
        if let Some(names) = &other.other {
            self.other.get_or_insert_default().extend(names.iter().cloned());
        }
    }
}

impl FromIterator<String> for Backends {
    fn from_iter<I: IntoIterator<Item = String>>(names: I) -> Self {
        let mut all = Self::default();
        for name in names {
            match KNOWN.iter().position(|known| *known == name) {
                Some(at) => all.known |= 1 << at,
                None => drop(all.other.get_or_insert_default().insert(name)),
            }
        }
        all
    }
}

impl From<Backends> for BTreeSet<String> {
    fn from(all: Backends) -> Self {
        let known = KNOWN.iter().enumerate().filter(|(at, _)| all.known & (1 << at) != 0);
        let known = known.map(|(_, name)| (*name).to_owned());
        known.chain(all.other.into_iter().flat_map(|other| *other)).collect()
    }
}

impl From<FirstUse> for Seen {
    fn from(mut by: FirstUse) -> Self {
        let backends = std::mem::take(&mut by.backends).into_iter().collect();
        Self { at_us: by.at_us.take(), backends, who: Arc::new(by) }
    }
}

impl From<Seen> for FirstUse {
    fn from(seen: Seen) -> Self {
        Self { at_us: seen.at_us, backends: seen.backends.into(), ..Self::clone(&seen.who) }
    }
}
