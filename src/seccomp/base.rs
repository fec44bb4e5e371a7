//! Base sets: what a runtime calls between loading the filter and the target's exec, measured by
//! `scripts/measure-base-sets`.

use std::collections::BTreeMap;
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
        let set: BaseSet =
            serde_json::from_str(text).expect("the base sets in profiles were checked by a test");
        let label = match set.runtime.as_str() {
            "any" => "kernel and libc".to_owned(),
            // Here the version names the library too.
            "embedded" => format!("embedded {}", set.version),
            name => format!("{name} {}", set.version),
        };
        let calls: std::collections::BTreeSet<String> =
            set.calls.into_iter().chain(set.margin.into_iter().flat_map(|m| m.calls)).collect();
        for call in calls {
            owners.entry(call).or_default().push(label.clone());
        }
    }
    let label = |sets: Vec<String>| format!("base set: {}", sets.join(", "));
    owners.into_iter().map(|(call, sets)| (call, label(sets))).collect()
});

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Arch;

    #[test]
    fn base_sets_name_calls_that_exist_and_stay_small() {
        assert!(BASE["execve"].contains("crun 1.8.1") && BASE["execve"].contains("runc 1.1.5"));
        for name in BASE.keys() {
            assert!(Arch::X86_64.call_number(name).is_some(), "{name}");
        }
        // The bound is the ground truth's names and 90 more.
        assert!(BASE.len() <= 80, "{}", BASE.len());
    }
}
