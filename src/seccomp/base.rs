//! Base sets: what a runtime, and an engine's init, calls between loading the filter and the target's
//! exec, measured by `scripts/measure-base-sets`, and what goes with the calls that were recorded.

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
    /// `timing`, `size`, `release`, `fallback` or `host`; what they mean is said in the set.
    kind: String,
    /// Any of these was recorded: then
    seen: Vec<String>,
    /// these may be made as well.
    adds: Vec<String>,
}

static RULES: LazyLock<BesideSet> =
    LazyLock::new(|| ours(include_str!("../../profiles/base-beside.json")));

/// A set of the project's own.
fn ours<T: serde::de::DeserializeOwned>(text: &str) -> T {
    serde_json::from_str(text).expect("the base sets in profiles were checked by a test")
}

/// What goes with `recorded`, which may be made without having been recorded:
/// name → `base set: timing beside wait4`.
pub fn beside(recorded: &BTreeSet<String>) -> BTreeMap<String, String> {
    let added = |rule: &'static Rule| {
        let seen = rule.seen.iter().find(|name| recorded.contains(*name))?;
        let label = format!("base set: {} beside {seen}", rule.kind);
        Some(rule.adds.iter().map(move |add| (add.clone(), label.clone())))
    };
    RULES.rules.iter().filter_map(added).flatten().collect()
}

const SETS: [&str; 10] = [
    include_str!("../../profiles/base-any.json"),
    include_str!("../../profiles/base-crun-1.8.1.json"),
    include_str!("../../profiles/base-crun-1.21.json"),
    include_str!("../../profiles/base-crun-1.28.json"),
    include_str!("../../profiles/base-embedded.json"),
    include_str!("../../profiles/base-init-catatonit.json"),
    include_str!("../../profiles/base-init-tini.json"),
    include_str!("../../profiles/base-runc-1.1.5.json"),
    include_str!("../../profiles/base-runc-1.1.15.json"),
    include_str!("../../profiles/base-runc-1.3.6.json"),
];

/// Every name of a base set with the sets it is in: `base set: crun 1.8.1, runc 1.1.5, runc 1.3.6`.
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
    fn what_goes_with_others_is_added_beside_them_only() {
        let added = |list: &[&str]| beside(&list.iter().map(|name| (*name).to_owned()).collect());
        assert_eq!(added(&["read", "write", "pkey_free", "faccessat"]), BTreeMap::new());
        let labels = |list: &[&str]| -> Vec<(String, String)> { added(list).into_iter().collect() };
        let label = |name: &str, why: &str| (name.to_owned(), format!("base set: {why}"));
        assert_eq!(
            labels(&["mlock2", "wait4", "write", "faccessat2"]),
            [
                label("faccessat", "fallback beside faccessat2"),
                label("munlock", "release beside mlock2"),
                label("rt_sigsuspend", "timing beside wait4"),
            ]
        );
        assert_eq!(
            labels(&["pkey_alloc"]),
            [
                label("pkey_free", "release beside pkey_alloc"),
                label("pkey_mprotect", "host beside pkey_alloc"),
            ]
        );
    }

    #[test]
    fn what_goes_with_others_are_calls_that_exist() {
        let known =
            |name: &str| [Arch::X86_64, Arch::X86].iter().any(|a| a.call_number(name).is_some());
        for rule in &RULES.rules {
            assert!(
                ["timing", "size", "release", "fallback", "host"].contains(&rule.kind.as_str())
            );
            for name in rule.seen.iter().chain(&rule.adds) {
                assert!(known(name), "{name}");
            }
        }
    }

    #[test]
    fn base_sets_name_calls_that_exist_and_stay_small() {
        assert!(BASE["execve"].contains("crun 1.8.1") && BASE["execve"].contains("runc 1.1.5"));
        // Without these no container starts: on Linux before 5.8, and under runc from 2025-11 on.
        assert!(BASE["faccessat"].contains("runc 1.1.5"));
        assert!(
            BASE["openat2"].contains("runc 1.3.6") && BASE["readlinkat"].contains("runc 1.3.6")
        );
        for name in BASE.keys().chain(HOOKS.keys()) {
            assert!(Arch::X86_64.call_number(name).is_some(), "{name}");
        }
        // The bound is the ground truth's names and 90 more.
        assert!(BASE.len() <= 80, "{}", BASE.len());
    }
}
