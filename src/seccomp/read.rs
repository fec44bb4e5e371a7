//! Filters that others wrote, or slim itself earlier, read back.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::model::{Policy, Profile};

use super::{SeccompError, allowlist};

/// Reads a filter in Docker's form or flat and returns the flat one, `linux.seccomp` of an OCI runtime
/// configuration.
///
/// Docker's `archMap` becomes `architectures` of this machine; rules with `includes` or `excludes` that
/// name capabilities are taken as if the container had Docker's default ones.
///
/// # Errors
/// For JSON that is no filter.
pub fn parse_filter(bytes: &[u8]) -> Result<Value, SeccompError> {
    let bad = |why: String| SeccompError::NotAFilter(why);
    let mut value: Value = serde_json::from_slice(bytes).map_err(|e| bad(e.to_string()))?;
    let object = value.as_object_mut().ok_or_else(|| bad("not a JSON object".to_owned()))?;
    if !object.get("defaultAction").is_some_and(Value::is_string) {
        return Err(bad("it has no defaultAction".to_owned()));
    }
    if let Some(map) = object.remove("archMap") {
        let native = crate::model::Arch::NATIVE.scmp();
        let mut arches = vec![Value::from(native)];
        for entry in map.as_array().into_iter().flatten() {
            if entry["architecture"] == native {
                arches.extend(entry["subArchitectures"].as_array().cloned().unwrap_or_default());
            }
        }
        object.insert("architectures".to_owned(), arches.into());
    }
    let rules = object.get("syscalls").and_then(Value::as_array).cloned().unwrap_or_default();
    let kept: Vec<Value> = rules.iter().filter(|rule| applies(rule)).map(flat).collect();
    object.insert("syscalls".to_owned(), kept.into());
    Ok(value)
}

fn applies(rule: &Value) -> bool {
    let names = |key: &str, list: &str| -> Vec<String> {
        let items = rule[key][list].as_array().into_iter().flatten();
        items.filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let granted = |cap: &String| super::DEFAULT_CAPS.contains(&cap.as_str());
    let (needs, unless) = (names("includes", "caps"), names("excludes", "caps"));
    let goarch = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
    let here = |arch: &String| arch == goarch;
    let (arches, others) = (names("includes", "arches"), names("excludes", "arches"));
    needs.iter().all(granted)
        && !unless.iter().any(granted)
        && (arches.is_empty() || arches.iter().any(here))
        && !others.iter().any(here)
}

fn flat(rule: &Value) -> Value {
    let mut rule = rule.clone();
    if let Some(object) = rule.as_object_mut() {
        for key in ["includes", "excludes", "comment"] {
            object.remove(key);
        }
        if let Some(name) = object.remove("name") {
            object.entry("names").or_insert_with(|| json!([name]));
        }
        if object.get("args").is_some_and(Value::is_null) {
            object.remove("args");
        }
    }
    rule
}

/// Names that `profile` says are to be allowed and `filter` (flat) does not allow.
///
/// # Errors
/// As for [`allowlist`].
pub fn missing_calls(
    filter: &Value,
    profile: &Profile,
    policy: &Policy,
) -> Result<Vec<String>, SeccompError> {
    let wanted = allowed(&allowlist(profile, policy)?.oci);
    let given = allowed(filter);
    Ok(wanted.difference(&given).cloned().collect())
}

fn allowed(filter: &Value) -> BTreeSet<String> {
    let rules = filter["syscalls"].as_array().into_iter().flatten();
    let names = rules
        .filter(|rule| rule["action"] == "SCMP_ACT_ALLOW")
        .flat_map(|rule| rule["names"].as_array().cloned().unwrap_or_default());
    names.filter_map(|name| name.as_str().map(str::to_owned)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dockers_form_becomes_flat() {
        let docker = json!({
            "defaultAction": "SCMP_ACT_ERRNO",
            "archMap": [{"architecture": crate::model::Arch::NATIVE.scmp(), "subArchitectures": ["SCMP_ARCH_X86"]}],
            "syscalls": [
                {"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": null, "comment": "x"},
                {"names": ["mount"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
                {"names": ["chroot"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_CHROOT"]}},
            ],
        });
        let flat = parse_filter(docker.to_string().as_bytes()).unwrap();
        assert_eq!(allowed(&flat).into_iter().collect::<Vec<_>>(), ["chroot", "read"]);
        assert_eq!(flat["architectures"].as_array().unwrap().len(), 2);
        assert!(flat.get("archMap").is_none());
        for bad in ["", "[]", "{}", "{\"defaultAction\": 1}"] {
            assert!(parse_filter(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
