//! OCI hooks: programs of the host (or of the image) that run at certain stages of a container's life.
//!
//! Which ones, folders of definitions say (`--hooks-dir`, oci-hooks(5) of Podman); this module reads them
//! and puts those that match into the runtime configuration. How they are run is in [`wrapper`].

pub(super) mod wrapper;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use regex::Regex;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::RuntimeError;
use crate::model::Digest;

const OPTION: &str = "--hooks-dir";

/// When a hook runs (config.md of the OCI runtime specification, "POSIX-platform Hooks").
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Stage {
    /// Deprecated, and the one that GPU toolkits used first: as [`Self::CreateRuntime`].
    Prestart,
    /// In the runtime's namespaces, once the container's are made.
    CreateRuntime,
    /// In the container's namespaces, before its root is entered.
    CreateContainer,
    /// In the container, under its filter: the program is the image's.
    StartContainer,
    Poststart,
    Poststop,
}

impl Stage {
    const ALL: [Self; 6] = [
        Self::Prestart,
        Self::CreateRuntime,
        Self::CreateContainer,
        Self::StartContainer,
        Self::Poststart,
        Self::Poststop,
    ];

    /// The key in the runtime configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Prestart => "prestart",
            Self::CreateRuntime => "createRuntime",
            Self::CreateContainer => "createContainer",
            Self::StartContainer => "startContainer",
            Self::Poststart => "poststart",
            Self::Poststop => "poststop",
        }
    }
}

/// A definition of oci-hooks(5), version 1.0.0.
#[derive(Debug, Clone, Deserialize)]
struct Definition {
    hook: Program,
    when: When,
    stages: Vec<Stage>,
}

/// The hook itself, as the runtime configuration has it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Program {
    pub path: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env: Option<Vec<String>>,
    /// Seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<i64>,
}

/// The conditions, all of which have to hold; without one a hook is never run.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct When {
    always: Option<bool>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    #[serde(default)]
    commands: Vec<String>,
    has_bind_mounts: Option<bool>,
}

/// A definition that was read and is sound.
#[derive(Debug, Clone)]
pub(super) struct Found {
    file: PathBuf,
    digest: Digest,
    definition: Definition,
}

/// What conditions are about.
pub(super) struct Facts<'a> {
    pub annotations: &'a BTreeMap<String, String>,
    /// The first word of the container's command.
    pub command: &'a str,
    pub bind_mounts: bool,
}

/// Reads the definitions in `folders`, in the order in which Podman injects them: by file name in lower
/// case; of two with the same name the one in the later folder counts.
///
/// # Errors
/// For a folder or a file that cannot be read or is no definition.
pub(super) fn read(folders: &[PathBuf]) -> Result<Vec<Found>, RuntimeError> {
    let mut found: BTreeMap<String, PathBuf> = BTreeMap::new();
    for folder in folders {
        let named = |error: std::io::Error| {
            refuse(
                folder,
                format!("{error}; give a folder with definitions of hooks, oci-hooks(5)"),
            )
        };
        for entry in std::fs::read_dir(folder).map_err(named)? {
            let entry = entry.map_err(named)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.ends_with(".json") && !entry.path().is_dir() {
                found.insert(name, entry.path());
            }
        }
    }
    let mut files: Vec<_> = found.into_iter().collect();
    files.sort_by_cached_key(|(name, _)| (name.to_lowercase(), name.clone()));
    files.into_iter().map(|(_, path)| read_file(path)).collect()
}

fn read_file(file: PathBuf) -> Result<Found, RuntimeError> {
    let bytes = std::fs::read(&file).map_err(|error| refuse(&file, error.to_string()))?;
    let definition = parse(&bytes).map_err(|why| {
        refuse(&file, format!("{why}; correct it, or take the file out of the folder"))
    })?;
    let inside = [Stage::StartContainer];
    if definition.stages != inside && !Path::new(&definition.hook.path).exists() {
        let why = format!(
            "its program {} is not there; install it, or take the file out of the \
                           folder",
            definition.hook.path
        );
        return Err(refuse(&file, why));
    }
    Ok(Found { file, digest: Digest::of(&bytes), definition })
}

fn parse(bytes: &[u8]) -> Result<Definition, String> {
    let value: Value = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    match value.get("version").and_then(Value::as_str) {
        Some("1.0.0") => {}
        Some(other) => return Err(format!("its version is {other:?}, slim knows 1.0.0")),
        None => return Err("it has no version; slim knows 1.0.0".to_owned()),
    }
    let definition: Definition =
        serde_json::from_value(value).map_err(|error| error.to_string())?;
    let hook = &definition.hook;
    if !hook.path.starts_with('/') {
        return Err(format!("its path {:?} is not absolute", hook.path));
    }
    if let Some(seconds) = hook.timeout.filter(|seconds| *seconds <= 0) {
        return Err(format!("its timeout {seconds} is not positive"));
    }
    if let Some(odd) = hook.env.iter().flatten().find(|pair| !pair.contains('=')) {
        return Err(format!("its variable {odd:?} has no ="));
    }
    if definition.stages.is_empty() {
        let all: Vec<&str> = Stage::ALL.iter().map(|stage| stage.name()).collect();
        return Err(format!("it has no stages; known are {}", all.join(", ")));
    }
    let When { annotations, commands, .. } = &definition.when;
    for pattern in annotations.iter().flat_map(|(key, value)| [key, value]).chain(commands) {
        Regex::new(pattern).map_err(|error| format!("{pattern:?} is no pattern: {error}"))?;
    }
    Ok(definition)
}

fn refuse(path: &Path, why: String) -> RuntimeError {
    let value = path.display().to_string();
    RuntimeError::Option { option: OPTION.into(), value, why }
}

impl When {
    /// As Podman decides it: all conditions have to hold, and there has to be one.
    fn holds(&self, facts: &Facts<'_>) -> bool {
        let matches = |pattern: &str, text: &str| {
            Regex::new(pattern).is_ok_and(|pattern| pattern.is_match(text))
        };
        let annotated = |(key, value): (&String, &String)| {
            facts.annotations.iter().any(|(k, v)| matches(key, k) && matches(value, v))
        };
        let some = self.always.is_some()
            || self.has_bind_mounts.is_some()
            || !self.annotations.is_empty()
            || !self.commands.is_empty();
        some && self.always.unwrap_or(true)
            && self.has_bind_mounts.is_none_or(|wanted| wanted && facts.bind_mounts)
            && self.annotations.iter().all(annotated)
            && (self.commands.is_empty()
                || self.commands.iter().any(|pattern| matches(pattern, facts.command)))
    }
}

/// Adds the hooks that match to a runtime configuration.
pub(super) fn inject(config: &mut Value, found: &[Found], facts: &Facts<'_>) {
    for Found { file, definition, .. } in found {
        if definition.when.holds(facts) {
            for stage in &definition.stages {
                add(config, *stage, &definition.hook, &file.display().to_string());
            }
        }
    }
}

/// Adds one hook, with a word on where it comes from, which [`wrapper::wrap`] takes away again.
pub(super) fn add(config: &mut Value, stage: Stage, hook: &Program, from: &str) {
    let mut hook = json!(hook);
    hook[FROM] = from.into();
    let list = &mut config["hooks"][stage.name()];
    match list.as_array_mut() {
        Some(list) => list.push(hook),
        None => *list = json!([hook]),
    }
}

/// The key of [`add`]'s word.
const FROM: &str = "slim.from";

/// Name and digest of the definitions in `folders` and their stages, for the run record.
pub(super) fn told(found: &[Found]) -> Vec<Value> {
    let one = |found: &Found| tell(&found.file, &found.digest, &found.definition.stages);
    found.iter().map(one).collect()
}

/// One of them.
pub(super) fn tell(file: &Path, digest: &Digest, stages: &[Stage]) -> Value {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    json!({ "name": name, "digest": digest, "stages": stages })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn definition(when: &Value) -> Vec<u8> {
        let hook = json!({ "path": "/bin/true", "args": ["true"] });
        let all = json!({ "version": "1.0.0", "hook": hook, "when": when, "stages": ["prestart"] });
        all.to_string().into_bytes()
    }

    #[test]
    fn a_hook_runs_when_all_its_conditions_hold_and_never_without_one() {
        let annotations = BTreeMap::from([("gpu.model".to_owned(), "big".to_owned())]);
        let facts = Facts { annotations: &annotations, command: "/usr/bin/app", bind_mounts: true };
        for (when, want) in [
            (json!({}), false),
            (json!({ "always": true }), true),
            (json!({ "always": false, "hasBindMounts": true }), false),
            (json!({ "hasBindMounts": false }), false),
            (json!({ "commands": ["^/bin", "app$"] }), true),
            (json!({ "commands": ["^/bin"] }), false),
            (json!({ "annotations": { "^gpu\\.": "^b" }, "commands": ["app"] }), true),
            (json!({ "annotations": { "^gpu\\.": "^b", "cpu": "." } }), false),
        ] {
            let parsed = parse(&definition(&when)).unwrap();
            assert_eq!(parsed.when.holds(&facts), want, "{when}");
        }
    }

    #[test]
    fn files_come_in_the_order_of_their_lower_case_names_and_later_folders_win() {
        let dir = tempfile::tempdir().unwrap();
        let (low, high) = (dir.path().join("low"), dir.path().join("high"));
        for folder in [&low, &high] {
            std::fs::create_dir(folder).unwrap();
        }
        let text = definition(&json!({ "always": true }));
        for file in [low.join("02-b.json"), low.join("01-B.json"), high.join("01-a.json")] {
            std::fs::write(file, &text).unwrap();
        }
        std::fs::write(low.join("notes.txt"), "no hook").unwrap();
        std::fs::write(high.join("02-b.json"), &text).unwrap();
        let found = read(&[low.clone(), high.clone()]).unwrap();
        let files: Vec<PathBuf> = found.into_iter().map(|found| found.file).collect();
        assert_eq!(files, [high.join("01-a.json"), low.join("01-B.json"), high.join("02-b.json")]);
    }

    #[test]
    fn a_file_that_is_no_definition_is_refused_by_name_with_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x.json");
        let good = String::from_utf8(definition(&json!({ "always": true }))).unwrap();
        for (text, why) in [
            ("{", "EOF"),
            (r#"{"version":"0.1.0"}"#, "\"0.1.0\", slim knows 1.0.0"),
            ("{}", "no version"),
            (&good.replace("/bin/true", "true"), "\"true\" is not absolute"),
            (&good.replace("/bin/true", "/no/such"), "/no/such is not there"),
            (&good.replace("[\"prestart\"]", "[]"), "no stages"),
            (&good.replace("prestart", "precreate"), "unknown variant `precreate`"),
            (&good.replace("\"args\"", "\"timeout\":0,\"args\""), "timeout 0"),
            (&good.replace("\"args\":[\"true\"]", "\"env\":[\"A\"]"), "\"A\" has no ="),
            (&good.replace("\"always\":true", "\"commands\":[\"(\"]"), "\"(\" is no pattern"),
        ] {
            std::fs::write(&file, text).unwrap();
            let error = read(&[dir.path().into()]).unwrap_err().to_string();
            assert!(error.starts_with(&format!("--hooks-dir {file:?}: ")), "{error}");
            assert!(error.contains(why), "{error} lacks {why}");
        }
        assert!(read(&[dir.path().join("none")]).is_err());
    }
}
