//! Base sets: what a runtime calls between loading the filter and the target's exec, measured by
//! `scripts/measure-base-sets`, and what goes with the calls that were recorded.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use serde::Deserialize;

/// A measured set.
#[derive(Debug, Deserialize)]
struct BaseSet {
    runtime: String,
    version: String,
    calls: Vec<String>,
    margin: Option<Margin>,
}

/// What no measurement is sure to meet.
#[derive(Debug, Deserialize)]
struct Margin {
    calls: Vec<String>,
}

/// Calls that go with others.
#[derive(Debug, Deserialize)]
struct BesideSet {
    rules: Vec<Rule>,
}

#[derive(Debug, Deserialize)]
struct Rule {
    /// Any of these was recorded: then
    seen: Vec<String>,
    /// these may be made as well.
    adds: Vec<String>,
}

static TIMING: LazyLock<BesideSet> =
    LazyLock::new(|| ours(include_str!("../../profiles/base-timing.json")));

static RELEASE: LazyLock<BesideSet> =
    LazyLock::new(|| ours(include_str!("../../profiles/base-release.json")));

/// A set of the project's own.
fn ours<T: serde::de::DeserializeOwned>(text: &str) -> T {
    serde_json::from_str(text).expect("the base sets in profiles were checked by a test")
}

impl BesideSet {
    /// What goes with `recorded`: name → `base set: {why} beside {seen}`.
    fn beside(&'static self, recorded: &BTreeSet<String>, why: &str) -> BTreeMap<String, String> {
        let added = |rule: &'static Rule| {
            let seen = rule.seen.iter().find(|name| recorded.contains(*name))?;
            let label = format!("base set: {why} beside {seen}");
            Some(rule.adds.iter().map(move |add| (add.clone(), label.clone())))
        };
        self.rules.iter().filter_map(added).flatten().collect()
    }
}

/// What timing adds to `recorded`: name → `base set: timing beside wait4`.
pub fn timing(recorded: &BTreeSet<String>) -> BTreeMap<String, String> {
    TIMING.beside(recorded, "timing")
}

/// What gives back that which a call of `recorded` took: name → `base set: release beside pkey_alloc`.
pub fn release(recorded: &BTreeSet<String>) -> BTreeMap<String, String> {
    RELEASE.beside(recorded, "release")
}

const SETS: [&str; 4] = [
    include_str!("../../profiles/base-any.json"),
    include_str!("../../profiles/base-crun.json"),
    include_str!("../../profiles/base-embedded.json"),
    include_str!("../../profiles/base-runc.json"),
];

/// Every name of a base set with the sets it is in: `base set: crun 1.8.1, runc 1.1.5`.
pub static BASE: LazyLock<BTreeMap<String, String>> = LazyLock::new(|| {
    let mut owners: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for text in SETS {
        let set: BaseSet = ours(text);
        let label = match set.runtime.as_str() {
            "any" => "kernel and libc".to_owned(),
            // Here the version names the library too.
            "embedded" => format!("embedded {}", set.version),
            name => format!("{name} {}", set.version),
        };
        let calls: BTreeSet<String> =
            set.calls.into_iter().chain(set.margin.into_iter().flat_map(|m| m.calls)).collect();
        for call in calls {
            owners.entry(call).or_default().push(label.clone());
        }
    }
    let label = |sets: Vec<String>| format!("base set: {}", sets.join(", "));
    owners.into_iter().map(|(call, sets)| (call, label(sets))).collect()
});

/// What a runtime calls beside to run a `startContainer` hook under the filter.
pub static HOOKS: LazyLock<BTreeMap<String, String>> = LazyLock::new(|| {
    let set: BaseSet = ours(include_str!("../../profiles/base-hooks.json"));
    let label = format!("base set: {} {}", set.runtime, set.version);
    set.calls.into_iter().map(|call| (call, label.clone())).collect()
});

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Arch;

    #[test]
    fn timing_adds_to_what_was_recorded_only() {
        let names = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect();
        assert_eq!(timing(&names(&["read", "write"])), BTreeMap::new());
        let added = timing(&names(&["wait4", "write"]));
        assert_eq!(added["rt_sigsuspend"], "base set: timing beside wait4");
        assert_eq!(added.len(), 1);
    }

    #[test]
    fn what_was_taken_may_be_given_back() {
        let names = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect();
        assert_eq!(release(&names(&["pkey_free", "wait4"])), BTreeMap::new());
        let added = release(&names(&["mlock2", "pkey_alloc"]));
        assert_eq!(added["pkey_free"], "base set: release beside pkey_alloc");
        assert_eq!(added["munlock"], "base set: release beside mlock2");
        assert_eq!(added.len(), 2);
    }

    #[test]
    fn what_goes_with_others_are_calls_that_exist() {
        let rules = TIMING.rules.iter().chain(&RELEASE.rules);
        for name in rules.flat_map(|rule| rule.seen.iter().chain(&rule.adds)) {
            assert!(Arch::X86_64.call_number(name).is_some(), "{name}");
        }
    }

    #[test]
    fn base_sets_name_calls_that_exist_and_stay_small() {
        assert!(BASE["execve"].contains("crun 1.8.1") && BASE["execve"].contains("runc 1.1.5"));
        for name in BASE.keys().chain(HOOKS.keys()) {
            assert!(Arch::X86_64.call_number(name).is_some(), "{name}");
        }
        // The bound is the ground truth's names and 90 more.
        assert!(BASE.len() <= 80, "{}", BASE.len());
    }
}
