//! What the user wants another way in the result's configuration (image-spec v1.1, config.md).

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::model::ImageConfig;

/// Changes to `config` of the configuration; what is not named stays as it was.
///
/// What is removed goes first, then what is set is set.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Edits {
    /// Another `Entrypoint`; none at all if empty. As in a Dockerfile it takes the old `Cmd` away.
    pub entrypoint: Option<Vec<String>>,
    /// Another `Cmd`; none at all if empty.
    pub cmd: Option<Vec<String>>,
    /// Variables, in order; one that is there keeps its place.
    pub env: Vec<(String, String)>,
    pub labels: BTreeMap<String, String>,
    pub user: Option<String>,
    pub workdir: Option<String>,
    /// `PORT/PROTOCOL`.
    pub expose: Vec<String>,
    pub volumes: Vec<String>,
    pub remove: Removals,
}

/// What goes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Removals {
    /// Names of variables.
    pub env: Vec<String>,
    pub labels: Vec<String>,
    pub expose: Vec<String>,
    pub volumes: Vec<String>,
    /// Whole keys of `config`: `Healthcheck`, `User`…
    pub keys: Vec<&'static str>,
}

impl Edits {
    /// True if the configuration stays what it is.
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }

    /// Names something to be removed that is not there: a slip of the pen more often than not.
    pub fn missing(&self, config: &Value) -> Option<String> {
        let config = &config["config"];
        let names = |key: &str| -> Vec<String> {
            match &config[key] {
                Value::Object(map) => map.keys().cloned().collect(),
                Value::Array(list) => list.iter().filter_map(variable).collect(),
                _ => Vec::new(),
            }
        };
        [
            ("Env", "variable", &self.remove.env),
            ("Labels", "label", &self.remove.labels),
            ("ExposedPorts", "exposed port", &self.remove.expose),
            ("Volumes", "volume", &self.remove.volumes),
        ]
        .into_iter()
        .find_map(|(key, what, wanted)| {
            let there = names(key);
            let lost = wanted.iter().find(|name| !there.contains(name))?;
            Some(format!("the image has no {what} {lost:?} to remove"))
        })
    }

    /// A configuration as it becomes.
    pub fn config(&self, original: &ImageConfig) -> ImageConfig {
        let mut config = original.clone();
        if let Some(top) = config.0.as_object_mut() {
            self.apply(top);
        }
        config
    }

    /// Changes a whole configuration.
    pub fn apply(&self, top: &mut Map<String, Value>) {
        if self.is_nothing() {
            return;
        }
        if !top.get("config").is_some_and(Value::is_object) {
            top.insert("config".into(), json!({}));
        }
        let Some(config) = top.get_mut("config").and_then(Value::as_object_mut) else { return };
        self.remove(config);
        if let Some(entrypoint) = &self.entrypoint {
            set(config, "Entrypoint", entrypoint);
            config.remove("Cmd");
        }
        if let Some(cmd) = &self.cmd {
            set(config, "Cmd", cmd);
        }
        for (key, value) in [("User", &self.user), ("WorkingDir", &self.workdir)] {
            value.iter().for_each(|value| drop(config.insert(key.into(), json!(value))));
        }
        for (name, value) in &self.env {
            set_variable(config, name, value);
        }
        for (name, value) in &self.labels {
            object(config, "Labels").insert(name.clone(), json!(value));
        }
        for (key, names) in [("ExposedPorts", &self.expose), ("Volumes", &self.volumes)] {
            for name in names {
                object(config, key).insert(name.clone(), json!({}));
            }
        }
    }

    fn remove(&self, config: &mut Map<String, Value>) {
        for key in &self.remove.keys {
            config.shift_remove(*key);
        }
        if let Some(env) = config.get_mut("Env").and_then(Value::as_array_mut) {
            env.retain(|v| variable(v).is_none_or(|name| !self.remove.env.contains(&name)));
        }
        for (key, names) in [
            ("Labels", &self.remove.labels),
            ("ExposedPorts", &self.remove.expose),
            ("Volumes", &self.remove.volumes),
        ] {
            let Some(map) = config.get_mut(key).and_then(Value::as_object_mut) else { continue };
            names.iter().for_each(|name| drop(map.shift_remove(name)));
            if map.is_empty() && !names.is_empty() {
                config.shift_remove(key);
            }
        }
    }
}

fn set(config: &mut Map<String, Value>, key: &str, words: &[String]) {
    if words.is_empty() {
        config.shift_remove(key);
    } else {
        config.insert(key.into(), json!(words));
    }
}

fn variable(value: &Value) -> Option<String> {
    value.as_str().map(|text| text.split('=').next().unwrap_or(text).to_owned())
}

fn set_variable(config: &mut Map<String, Value>, name: &str, value: &str) {
    if !config.get("Env").is_some_and(Value::is_array) {
        config.insert("Env".into(), json!([]));
    }
    let Some(env) = config.get_mut("Env").and_then(Value::as_array_mut) else { return };
    let text = json!(format!("{name}={value}"));
    match env.iter_mut().find(|v| variable(v).as_deref() == Some(name)) {
        Some(old) => *old = text,
        None => env.push(text),
    }
}

fn object<'a>(config: &'a mut Map<String, Value>, key: &str) -> &'a mut Map<String, Value> {
    let entry = config.entry(key).or_insert_with(|| json!({}));
    if !entry.is_object() {
        *entry = json!({});
    }
    entry.as_object_mut().expect("just made one")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edited(config: Value, edits: &Edits) -> Value {
        let mut top = json!({ "architecture": "amd64", "config": config });
        edits.apply(top.as_object_mut().unwrap());
        top["config"].clone()
    }

    #[test]
    fn what_is_not_named_stays() {
        let config = json!({ "Env": ["A=1", "B=2"], "Cmd": ["x"], "Healthcheck": { "Test": [] } });
        assert_eq!(edited(config.clone(), &Edits::default()), config);
        let edits = Edits { env: vec![("A".into(), "3".into())], ..Edits::default() };
        let want = json!({ "Env": ["A=3", "B=2"], "Cmd": ["x"], "Healthcheck": { "Test": [] } });
        assert_eq!(edited(config, &edits), want);
        assert_eq!(edited(Value::Null, &edits), json!({ "Env": ["A=3"] }));
    }

    #[test]
    fn an_entrypoint_takes_the_old_command_away() {
        let config = json!({ "Entrypoint": ["a"], "Cmd": ["b"] });
        let entrypoint = Some(vec!["c".to_owned()]);
        let edits = Edits { entrypoint: entrypoint.clone(), ..Edits::default() };
        assert_eq!(edited(config.clone(), &edits), json!({ "Entrypoint": ["c"] }));
        let edits = Edits { entrypoint, cmd: Some(vec!["d".into()]), ..Edits::default() };
        assert_eq!(edited(config, &edits), json!({ "Entrypoint": ["c"], "Cmd": ["d"] }));
    }

    #[test]
    fn what_is_removed_must_be_there() {
        let top = json!({ "config": { "Labels": { "a": "1" }, "ExposedPorts": { "80/tcp": {} } } });
        let remove = Removals { labels: vec!["a".into()], ..Removals::default() };
        let edits = Edits { remove, ..Edits::default() };
        assert_eq!(edits.missing(&top), None);
        assert_eq!(
            edited(top["config"].clone(), &edits),
            json!({ "ExposedPorts": { "80/tcp": {} } })
        );
        let remove = Removals { expose: vec!["81/tcp".into()], ..Removals::default() };
        let missing = Edits { remove, ..Edits::default() }.missing(&top);
        assert_eq!(missing.as_deref(), Some("the image has no exposed port \"81/tcp\" to remove"));
    }
}
