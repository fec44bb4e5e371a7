//! The image configuration, kept whole.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::Value;

use super::DiffId;

/// An image configuration (OCI image-spec config.md, and Docker's fields beside it).
///
/// Kept as JSON, because typed readers drop Healthcheck, OnBuild, Shell and ArgsEscaped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageConfig(pub Value);

/// A HEALTHCHECK (moby's image specification v1.2); times default as Docker's engine has them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Healthcheck {
    /// The command: an exec form, or `["/bin/sh", "-c", …]` made of a CMD-SHELL form.
    pub command: Vec<String>,
    pub interval: Duration,
    pub timeout: Duration,
    pub start_period: Duration,
    pub retries: u32,
}

/// An exposed port: number and `tcp`, `udp` or `sctp`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ExposedPort {
    pub number: u16,
    pub protocol: String,
}

impl ImageConfig {
    fn config(&self, key: &str) -> Option<&Value> {
        self.0.get("config")?.get(key).filter(|v| !v.is_null())
    }

    fn strings(&self, key: &str) -> Vec<String> {
        let items = self.config(key).and_then(Value::as_array);
        items.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    }

    fn text(&self, key: &str) -> Option<&str> {
        self.config(key).and_then(Value::as_str).filter(|s| !s.is_empty())
    }

    pub fn entrypoint(&self) -> Vec<String> {
        self.strings("Entrypoint")
    }

    pub fn cmd(&self) -> Vec<String> {
        self.strings("Cmd")
    }

    /// `KEY=value` pairs, in order.
    pub fn env(&self) -> Vec<String> {
        self.strings("Env")
    }

    /// `user[:group]`, names or numbers; `None` is root.
    pub fn user(&self) -> Option<&str> {
        self.text("User")
    }

    pub fn workdir(&self) -> Option<&str> {
        self.text("WorkingDir")
    }

    pub fn stop_signal(&self) -> Option<&str> {
        self.text("StopSignal")
    }

    /// The shell that CMD-SHELL forms run under.
    pub fn shell(&self) -> Vec<String> {
        let shell = self.strings("Shell");
        if shell.is_empty() { vec!["/bin/sh".to_owned(), "-c".to_owned()] } else { shell }
    }

    pub fn volumes(&self) -> BTreeSet<String> {
        let keys = self.config("Volumes").and_then(Value::as_object);
        keys.into_iter().flat_map(|map| map.keys().cloned()).collect()
    }

    pub fn labels(&self) -> BTreeMap<String, String> {
        let map = self.config("Labels").and_then(Value::as_object);
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        map.into_iter().flatten().map(|(key, value)| (key.clone(), text(value))).collect()
    }

    /// Exposed ports, lowest first, TCP before UDP of the same number.
    pub fn exposed_ports(&self) -> BTreeSet<ExposedPort> {
        let keys = self.config("ExposedPorts").and_then(Value::as_object);
        let parse = |key: &String| {
            let (number, protocol) = key.split_once('/').unwrap_or((key, "tcp"));
            Some(ExposedPort { number: number.parse().ok()?, protocol: protocol.to_lowercase() })
        };
        keys.into_iter().flat_map(|map| map.keys().filter_map(parse)).collect()
    }

    /// The health check; `None` where there is none or it is `["NONE"]`.
    pub fn healthcheck(&self) -> Option<Healthcheck> {
        let check = self.config("Healthcheck")?;
        let words = check.get("Test")?.as_array()?.iter().filter_map(Value::as_str);
        let words: Vec<String> = words.map(str::to_owned).collect();
        let command = match words.split_first()? {
            (first, rest) if first == "CMD" => rest.to_vec(),
            (first, rest) if first == "CMD-SHELL" => [self.shell(), rest.to_vec()].concat(),
            _ => return None,
        };
        let time = |key: &str, default: u64| {
            let nanos = check.get(key).and_then(Value::as_u64).filter(|n| *n > 0);
            nanos.map_or(Duration::from_secs(default), Duration::from_nanos)
        };
        let retries = check.get("Retries").and_then(Value::as_u64).filter(|n| *n > 0).unwrap_or(3);
        (!command.is_empty()).then(|| Healthcheck {
            command,
            interval: time("Interval", 30),
            timeout: time("Timeout", 30),
            start_period: time("StartPeriod", 0),
            retries: u32::try_from(retries).unwrap_or(u32::MAX),
        })
    }

    /// `rootfs.diff_ids`, lowest first; entries that are no digests are left out.
    pub fn diff_ids(&self) -> Vec<DiffId> {
        let ids = self.0.get("rootfs").and_then(|r| r.get("diff_ids")).and_then(Value::as_array);
        let parse = |v: &Value| v.as_str()?.parse().ok().map(DiffId);
        ids.into_iter().flatten().filter_map(parse).collect()
    }

    /// `os/architecture[/variant]`, `linux/amd64` where the configuration says nothing.
    pub fn platform(&self) -> String {
        let text = |key: &str| self.0.get(key).and_then(Value::as_str).filter(|s| !s.is_empty());
        let base = format!(
            "{}/{}",
            text("os").unwrap_or("linux"),
            text("architecture").unwrap_or("amd64")
        );
        text("variant").map_or(base.clone(), |variant| format!("{base}/{variant}"))
    }
}
