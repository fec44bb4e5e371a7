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
    when: When,
    /// Names of backends that this version does not have.
    #[expect(clippy::box_collection, reason = "nearly always none, and then a third as large")]
    other: Option<Box<BTreeSet<String>>>,
}

/// The time and the known backends in one word: a bit for each of [`KNOWN`], above them the microseconds
/// since recording began, counted from 1, or 0 where nothing is known of them. They reach for 2,284 years.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct When(u64);

const KNOWN: [&str; 5] = ["bpf", "fanotify", "notify", "perf", "upper"];

impl Seen {
    /// The same user at another time, seen by whom this one was.
    pub fn at(&self, at_us: u64) -> Self {
        Self { when: When::new(Some(at_us), self.when.backends()), ..self.clone() }
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
        let at_us = [self.when.at_us(), other.when.at_us()].into_iter().flatten().min();
        self.when = When::new(at_us, self.when.backends());
        self.join_backends(other);
    }

    pub(super) fn join_backends(&mut self, other: &Self) {
        self.when.0 |= u64::from(other.when.backends());
        if let Some(names) = &other.other {
            self.other.get_or_insert_default().extend(names.iter().cloned());
        }
    }

    fn all_backends(&self) -> BTreeSet<String> {
        let known = KNOWN.iter().enumerate();
        let known = known.filter(|(at, _)| self.when.backends() & (1 << at) != 0);
        let other = self.other.iter().flat_map(|other| other.iter().cloned());
        known.map(|(_, name)| (*name).to_owned()).chain(other).collect()
    }
}

impl When {
    const BACKENDS: u32 = u8::BITS;

    fn new(at_us: Option<u64>, backends: u8) -> Self {
        let most = u64::MAX >> Self::BACKENDS;
        let at = at_us.map_or(0, |at_us| at_us.saturating_add(1).min(most));
        Self(at << Self::BACKENDS | u64::from(backends))
    }

    fn at_us(self) -> Option<u64> {
        (self.0 >> Self::BACKENDS).checked_sub(1)
    }

    fn backends(self) -> u8 {
        self.0.to_le_bytes()[0]
    }
}

impl From<FirstUse> for Seen {
    fn from(mut by: FirstUse) -> Self {
        let (mut known, mut other) = (0, None::<Box<BTreeSet<String>>>);
        for name in std::mem::take(&mut by.backends) {
            match KNOWN.iter().position(|known| *known == name) {
                Some(at) => known |= 1 << at,
                None => drop(other.get_or_insert_default().insert(name)),
            }
        }
        let when = When::new(by.at_us.take(), known);
        Self { who: Arc::new(by), when, other }
    }
}

impl From<Seen> for FirstUse {
    fn from(seen: Seen) -> Self {
        let (at_us, backends) = (seen.when.at_us(), seen.all_backends());
        Self { at_us, backends, ..Self::clone(&seen.who) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_time_and_backends_in_one_word() {
        let backends = ["fanotify", "upper", "of tomorrow"].map(str::to_owned).into();
        for at_us in [None, Some(0), Some(7), Some((1 << 56) - 2)] {
            let by =
                FirstUse { at_us, backends: BTreeSet::clone(&backends), ..FirstUse::default() };
            assert_eq!(Seen::from(by.clone()).first_use(), by);
        }
        assert_eq!(When::new(Some(u64::MAX), 0), When::new(Some((1 << 56) - 2), 0));
        assert_eq!(std::mem::size_of::<Seen>(), 24);
    }

    #[test]
    fn joined_it_has_the_earlier_time_and_all_backends() {
        let by = |at_us, backend: &str| FirstUse {
            at_us,
            backends: [backend.to_owned()].into(),
            ..FirstUse::default()
        };
        let mut seen = Seen::from(by(Some(5), "bpf"));
        seen.join(&by(None, "of tomorrow").into());
        seen.join(&by(Some(3), "fanotify").into());
        let all = ["bpf", "fanotify", "of tomorrow"].map(str::to_owned).into();
        assert_eq!(seen.first_use(), FirstUse { backends: all, ..by(Some(3), "bpf") });
    }
}
