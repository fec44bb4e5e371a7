//! Devices by name: specifications of the Container Device Interface (CDI), in which a toolkit says what a
//! container needs for a device of its vendor: nodes, mounts, variables, hooks.
//!
//! <https://github.com/cncf-tags/container-device-interface>, SPEC.md up to version 1.0.0. Found as Docker and
//! Podman find them; put into a runtime configuration by `spec::devices`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;
use yaml_rust2::{Yaml, YamlLoader};

use super::RuntimeError;
use super::hooks::Stage;
use crate::model::Digest;

/// Where specifications are looked for without `--cdi-spec-dir`; the later one wins.
const FOLDERS: [&str; 2] = ["/etc/cdi", "/var/run/cdi"];

/// What a device, or all of a specification's, changes about a container.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Edits {
    pub env: Vec<String>,
    pub device_nodes: Vec<Node>,
    pub mounts: Vec<Mount>,
    pub hooks: Vec<Hook>,
    pub additional_gids: Vec<u32>,
    /// What slim has no use for is refused, not left out.
    intel_rdt: Option<Value>,
    net_devices: Option<Value>,
}

/// A device node. What is missing is the host's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Node {
    /// In the container.
    pub path: String,
    pub host_path: Option<String>,
    /// `b`, `c`, `u` or `p`.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    pub major: Option<i64>,
    pub minor: Option<i64>,
    pub file_mode: Option<u32>,
    /// For the device cgroup: letters of `rwm`.
    pub permissions: Option<String>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Mount {
    pub host_path: String,
    pub container_path: String,
    #[serde(default)]
    pub options: Vec<String>,
    #[serde(rename = "type")]
    pub kind: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Hook {
    pub hook_name: Stage,
    #[serde(flatten)]
    pub program: super::hooks::Program,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Specification {
    cdi_version: String,
    kind: String,
    devices: Vec<Device>,
    #[serde(default)]
    container_edits: Edits,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Device {
    name: String,
    #[serde(default)]
    container_edits: Edits,
}

impl Specification {
    /// What the device is asked for by.
    fn name_of(&self, device: &Device) -> String {
        format!("{}={}", self.kind, device.name)
    }
}

/// Edits, the file that they come from and its digest.
#[derive(Debug, Clone)]
pub(super) struct Wanted {
    pub file: PathBuf,
    pub digest: Digest,
    pub edits: Edits,
}

/// True for `vendor.com/class=name`, as against the path of a node.
pub(super) fn is_name(device: &str) -> bool {
    !device.starts_with('/') && device.contains('=') && device.contains('/')
}

/// The edits of `names`, each specification's common ones before those of its devices, and once.
///
/// # Errors
/// For a name that nothing defines, or that two files of one folder do, and for a folder or specification that cannot be
/// read; folders that are not there are no error unless they were asked for.
pub(super) fn find(names: &[&str], folders: &[PathBuf]) -> Result<Vec<Wanted>, RuntimeError> {
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let known = Known::read(folders)?;
    let (mut edits, mut common) = (Vec::new(), BTreeSet::new());
    for name in names {
        let (file, device) = known.device(name)?;
        let (digest, specification) = &known.files[file];
        let from =
            |edits: &Edits| Wanted { file: file.clone(), digest: *digest, edits: edits.clone() };
        if common.insert(file) {
            edits.push(from(&specification.container_edits));
        }
        edits.push(from(&device.container_edits));
    }
    for Wanted { file, edits, .. } in &edits {
        let lacking = [("intelRdt", &edits.intel_rdt), ("netDevices", &edits.net_devices)];
        if let Some((what, _)) = lacking.iter().find(|(_, value)| value.is_some()) {
            return Err(refuse(
                file,
                &format!("slim cannot apply its {what}; leave the device out"),
            ));
        }
    }
    Ok(edits)
}

/// What the folders define.
struct Known {
    files: BTreeMap<PathBuf, (Digest, Specification)>,
    /// Qualified name → the files of the last folder that has it.
    devices: BTreeMap<String, Vec<PathBuf>>,
    folders: Vec<PathBuf>,
}

impl Known {
    fn read(folders: &[PathBuf]) -> Result<Self, RuntimeError> {
        let asked = !folders.is_empty();
        let usual = || FOLDERS.map(PathBuf::from).to_vec();
        let folders = if asked { folders.to_vec() } else { usual() };
        let mut known = Self { files: BTreeMap::new(), devices: BTreeMap::new(), folders };
        for folder in known.folders.clone() {
            let mut here: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
            for file in files(&folder, asked)? {
                let bytes = std::fs::read(&file).map_err(|e| refuse(&file, &e.to_string()))?;
                let specification = parse(&bytes, file.extension() == Some("yaml".as_ref()))
                    .map_err(|why| refuse(&file, &why))?;
                for device in &specification.devices {
                    here.entry(specification.name_of(device)).or_default().push(file.clone());
                }
                known.files.insert(file, (Digest::of(&bytes), specification));
            }
            known.devices.extend(here);
        }
        Ok(known)
    }

    fn device(&self, name: &str) -> Result<(&PathBuf, &Device), RuntimeError> {
        let option = |why: String| RuntimeError::Option {
            option: "--device".into(),
            value: name.into(),
            why,
        };
        let folders: Vec<String> = self.folders.iter().map(|f| f.display().to_string()).collect();
        match self.devices.get(name).map(Vec::as_slice) {
            Some([file]) => {
                let (_, specification) = &self.files[file];
                let mut devices = specification.devices.iter();
                let device = devices.find(|device| specification.name_of(device) == name);
                Ok((file, device.expect("it was found by its name")))
            }
            Some(files) => {
                let files: Vec<String> = files.iter().map(|f| f.display().to_string()).collect();
                let files = files.join(" and ");
                Err(option(format!("both {files} define it; take one of them away")))
            }
            None => {
                let others: Vec<&str> = self.devices.keys().map(String::as_str).collect();
                let others = if others.is_empty() { "no device" } else { &others.join(", ") };
                let folders = folders.join(" and ");
                Err(option(format!(
                    "no CDI specification names it, {folders} have {others}; have the vendor's toolkit write one \
                     (nvidia-ctk cdi generate), or give --cdi-spec-dir"
                )))
            }
        }
    }
}

/// The specifications in a folder, sorted.
fn files(folder: &Path, asked: bool) -> Result<Vec<PathBuf>, RuntimeError> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && !asked => {
            return Ok(Vec::new());
        }
        Err(error) => return Err(refuse(folder, &error.to_string())),
    };
    let paths = entries.map(|entry| entry.map(|entry| entry.path()));
    let paths: Result<Vec<PathBuf>, _> = paths.collect();
    let mut paths = paths.map_err(|error| refuse(folder, &error.to_string()))?;
    paths.retain(|path| path.extension().is_some_and(|e| e == "json" || e == "yaml"));
    paths.sort();
    Ok(paths)
}

fn refuse(path: &Path, why: &str) -> RuntimeError {
    RuntimeError::Option {
        option: "--cdi-spec-dir".into(),
        value: path.display().to_string(),
        why: why.into(),
    }
}

fn parse(bytes: &[u8], yaml: bool) -> Result<Specification, String> {
    let value = if yaml {
        let text = std::str::from_utf8(bytes).map_err(|error| error.to_string())?;
        let documents = YamlLoader::load_from_str(text).map_err(|error| error.to_string())?;
        json_of(documents.first().ok_or("it is empty")?)?
    } else {
        serde_json::from_slice(bytes).map_err(|error| error.to_string())?
    };
    let specification: Specification =
        serde_json::from_value(value).map_err(|error| error.to_string())?;
    let major = specification.cdi_version.split('.').next();
    if !matches!(major, Some("0" | "1")) {
        return Err(format!(
            "its cdiVersion is {:?}, slim knows 0 and 1",
            specification.cdi_version
        ));
    }
    Ok(specification)
}

/// The same in JSON. Octal numbers of YAML 1.1 are read as written there, as toolkits mean them.
fn json_of(yaml: &Yaml) -> Result<Value, String> {
    Ok(match yaml {
        Yaml::Real(text) => {
            let number: f64 = text.parse().map_err(|_| format!("{text:?} is no number"))?;
            Value::from(number)
        }
        Yaml::Integer(number) => Value::from(*number),
        Yaml::String(text) => Value::from(text.as_str()),
        Yaml::Boolean(value) => Value::from(*value),
        Yaml::Array(items) => items.iter().map(json_of).collect::<Result<Value, _>>()?,
        Yaml::Hash(map) => {
            let pair = |(key, value): (&Yaml, &Yaml)| {
                let key = key.as_str().ok_or("a key is no text")?;
                Ok::<_, String>((key.to_owned(), json_of(value)?))
            };
            Value::Object(map.iter().map(pair).collect::<Result<_, _>>()?)
        }
        Yaml::Null => Value::Null,
        Yaml::Alias(_) | Yaml::BadValue => {
            return Err("it has a value that slim cannot read".into());
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const YAML: &str = r#"
cdiVersion: 0.5.0
kind: example.com/gpu
containerEdits:
  env: [COMMON=1]
  hooks:
  - hookName: createContainer
    path: /usr/bin/toolkit
    args: [toolkit, "update"]
devices:
- name: "0"
  containerEdits:
    deviceNodes:
    - path: /dev/gpu0
      hostPath: /dev/null
- name: all
  containerEdits:
    mounts:
    - {hostPath: /lib/x.so, containerPath: /lib/x.so, options: [ro, nosuid, bind]}
"#;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        dir
    }

    #[test]
    fn a_specification_s_own_edits_come_once_and_before_its_devices() {
        let dir = folder(&[("x.yaml", YAML), ("notes.txt", "no specification")]);
        let names = ["example.com/gpu=0", "example.com/gpu=all"];
        let found = find(&names, &[dir.path().into()]).unwrap();
        assert_eq!(found.len(), 3);
        assert_eq!(found[0].edits.env, ["COMMON=1"]);
        assert_eq!(found[0].edits.hooks[0].hook_name, Stage::CreateContainer);
        assert_eq!(found[0].edits.hooks[0].program.args, ["toolkit", "update"]);
        assert_eq!(found[1].edits.device_nodes[0].host_path.as_deref(), Some("/dev/null"));
        assert_eq!(found[2].edits.mounts[0].options, ["ro", "nosuid", "bind"]);
    }

    #[test]
    fn a_device_may_have_any_name() {
        let dir = folder(&[("x.yaml", &YAML.replace("name: \"0\"", "name: \"a=b\""))]);
        let found = find(&["example.com/gpu=a=b"], &[dir.path().to_owned()]).unwrap();
        assert_eq!(found.len(), 2);
    }

    #[test]
    fn later_folders_win_and_two_of_one_folder_are_refused() {
        let low = folder(&[("x.yaml", YAML)]);
        let text = r#"{"cdiVersion":"0.3.0","kind":"example.com/gpu",
            "devices":[{"name":"0","containerEdits":{"env":["HIGH=1"]}}]}"#;
        let high = folder(&[("y.json", text)]);
        let both = [low.path().to_owned(), high.path().to_owned()];
        let found = find(&["example.com/gpu=0"], &both).unwrap();
        assert_eq!(found[1].edits.env, ["HIGH=1"]);
        let twice = folder(&[("a.yaml", YAML), ("b.json", text)]);
        let error = find(&["example.com/gpu=0"], &[twice.path().into()]).unwrap_err().to_string();
        assert!(error.contains("a.yaml and ") && error.contains("define it"), "{error}");
    }

    #[test]
    fn what_is_no_specification_or_no_device_is_refused_by_name() {
        let find = |text: &str| {
            let dir = folder(&[("x.yaml", text)]);
            super::find(&["example.com/gpu=9"], &[dir.path().into()]).unwrap_err().to_string()
        };
        for (text, why) in [
            (YAML, "have example.com/gpu=0, example.com/gpu=all; have the vendor's"),
            ("cdiVersion: [", "x.yaml\": "),
            ("kind: a/b", "missing field `cdiVersion`"),
            ("cdiVersion: 2.0.0\nkind: a/b\ndevices: []", "cdiVersion is \"2.0.0\""),
        ] {
            let error = find(text);
            assert!(error.contains(why), "{error} lacks {why}");
        }
        let rdt = YAML.replace("env: [COMMON=1]", "intelRdt: {}").replace("\"0\"", "\"9\"");
        assert!(find(&rdt).contains("cannot apply its intelRdt"));
        assert!(is_name("a.b/c=d") && !is_name("/dev/x=y") && !is_name("a=b"));
    }
}
