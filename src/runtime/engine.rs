//! The OCI runtimes: how each is found, asked to create a container, to run a process in one, and
//! how its refusals read.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::cgroup::{self, Hierarchies};
use super::shim::{CANNOT_CREATE, Confine, TaskWork};
use super::{RuntimeError, RuntimeKind};
use crate::seccomp::Watch;

/// One of the runtimes, found.
#[derive(Debug)]
pub(super) struct Engine {
    kind: RuntimeKind,
    program: PathBuf,
    /// `embedded libcontainer 0.7.0`, `runc 1.1.5`, …
    pub version: String,
}

/// The files of one start of a container.
#[derive(Debug, Clone)]
pub(super) struct Start {
    /// The container's name for the runtime; a fresh one per start.
    pub id: String,
    /// The folder with config.json.
    pub bundle: PathBuf,
    /// Where the runtime keeps its state.
    pub state: PathBuf,
    /// A unix socket that takes the terminal's master end, with `-t`.
    pub console: Option<PathBuf>,
}

impl Start {
    pub fn pid_file(&self) -> PathBuf {
        self.bundle.join(format!("{}.pid", self.id))
    }

    pub fn log(&self) -> PathBuf {
        self.bundle.join(format!("{}.log", self.id))
    }
}

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Why there is no embedded runtime, which makes mounts by `fsopen(2)` and its like.
pub(super) const NO_FSOPEN: &str = "this kernel lacks fsopen";
/// What to do without it.
pub(super) const OTHER_RUNTIMES: &str = "use --runtime runc or crun, or Linux 5.2 or newer";

impl Engine {
    pub fn find(kind: RuntimeKind) -> Result<Self, RuntimeError> {
        let name = match kind {
            RuntimeKind::Embedded => {
                if !crate::sys::probe::fsopen() {
                    return Err(RuntimeError::Host {
                        what: "the embedded runtime".to_owned(),
                        why: NO_FSOPEN.to_owned(),
                        way_out: OTHER_RUNTIMES.to_owned(),
                    });
                }
                let version = "embedded libcontainer 0.7.0".to_owned();
                return Ok(Self { kind, program: PathBuf::new(), version });
            }
            RuntimeKind::Runc => "runc",
            RuntimeKind::Crun => "crun",
        };
        let program = look_up(name).ok_or_else(|| RuntimeError::Host {
            what: format!("--runtime {name}"),
            why: format!("{name} is not in PATH"),
            way_out: format!("install {name}, or leave --runtime out: the embedded one needs none"),
        })?;
        let version = version_of(&program).unwrap_or_default();
        Ok(Self { kind, program, version: format!("{name} {version}").trim_end().to_owned() })
    }

    pub fn is_embedded(&self) -> bool {
        self.kind == RuntimeKind::Embedded
    }

    /// Changes a runtime configuration to what this runtime needs to read.
    pub fn adapt(&self, config: &mut Value) {
        // libcontainer loads the filter before it drops capabilities only if this field is absent.
        let process = config.get_mut("process").and_then(Value::as_object_mut);
        if let (true, Some(process)) = (self.is_embedded(), process)
            && process.get("noNewPrivileges") == Some(&Value::Bool(false))
        {
            process.remove("noNewPrivileges");
        }
    }

    /// Readies a runtime configuration for a notifying filter. The embedded runtime's executor loads
    /// it, and then what is taken out of the configuration here: it needs privileges that libcontainer
    /// would have dropped. runc and crun load it themselves and hand its listener to `socket`.
    pub fn watch(
        &self,
        config: &mut Value,
        watch: Watch,
        socket: Option<&Path>,
    ) -> Option<Confine> {
        if watch == Watch::Nothing {
            return None;
        }
        if !self.is_embedded() {
            let socket = socket.map(|path| path.to_string_lossy()).unwrap_or_default();
            let profile = config.pointer("/linux/seccomp").cloned();
            config["linux"]["seccomp"] = watch.merged(profile.as_ref(), &socket).into();
            return None;
        }
        let mut take = |part: &str, key: &str| {
            config.get_mut(part).and_then(Value::as_object_mut).and_then(|o| o.remove(key))
        };
        // who is notified of every call answers for the container's filter too, see seccomp::Judge
        let seccomp = take("linux", "seccomp").filter(|_| !watch.is_all());
        let capabilities = take("process", "capabilities");
        Some(Confine { watch, seccomp, capabilities, hooks: take("hooks", "startContainer") })
    }

    /// The cgroup of a container of a user who has none. Without a path runc and crun make do; the
    /// embedded runtime cannot, see [`cgroup::pretend`].
    pub fn cgroup_of_a_user(&self) -> Option<&'static str> {
        self.is_embedded().then_some(cgroup::PRETENDED)
    }

    /// Mount points that the runtime must not see.
    pub fn hide(&self, hierarchies: &Hierarchies) -> Vec<PathBuf> {
        let mixed = self.kind == RuntimeKind::Crun && !hierarchies.is_pure();
        hierarchies.unified.iter().filter(|_| mixed).cloned().collect()
    }

    /// Creates and starts a container, leaving it in the background.
    pub fn create(&self, start: &Start, confine: Option<Confine>) -> TaskWork {
        if self.is_embedded() {
            return TaskWork::Create {
                confine,
                id: start.id.clone(),
                bundle: start.bundle.clone(),
                state: start.state.clone(),
                console: start.console.clone(),
            };
        }
        let mut argv = self.global(start, &start.log());
        argv.extend(["run", "--detach", "--bundle"].map(OsString::from));
        argv.extend([start.bundle.clone().into(), "--pid-file".into(), start.pid_file().into()]);
        if let Some(console) = &start.console {
            argv.extend(["--console-socket".into(), console.into()]);
        }
        argv.push(start.id.clone().into());
        TaskWork::Program { argv, env: vec![PATH.to_owned()] }
    }

    /// Takes an ended container out of the runtime's books, which runs its `poststop` hooks.
    pub fn delete(&self, start: &Start) -> TaskWork {
        if self.is_embedded() {
            return TaskWork::Poststop { id: start.id.clone(), bundle: start.bundle.clone() };
        }
        let mut argv = self.global(start, &start.bundle.join(format!("{}.end.log", start.id)));
        argv.extend(["delete".into(), start.id.clone().into()]);
        TaskWork::Program { argv, env: vec![PATH.to_owned()] }
    }

    /// Runs `process` in the container that `start` made, whose init is `pid`. `files` is a path
    /// without an extension for the files that runc and crun want (`.json`, `.pid`, `.log`).
    pub fn exec(
        &self,
        start: &Start,
        pid: i32,
        process: Value,
        (seccomp, watch): (Option<Value>, Watch),
        files: &Path,
    ) -> Result<TaskWork, RuntimeError> {
        if self.is_embedded() {
            let seccomp = seccomp.filter(|_| !watch.is_all());
            return Ok(TaskWork::Exec { pid, process, seccomp, watch });
        }
        let json = files.with_extension("json");
        std::fs::write(&json, process.to_string())
            .map_err(|source| RuntimeError::Io { what: format!("write({json:?})"), source })?;
        let mut argv = self.global(start, &files.with_extension("log"));
        argv.extend(["exec".into(), "--process".into(), json.into(), "--pid-file".into()]);
        argv.extend([files.with_extension("pid").into(), start.id.clone().into()]);
        Ok(TaskWork::Program { argv, env: vec![PATH.to_owned()] })
    }

    fn global(&self, start: &Start, log: &Path) -> Vec<OsString> {
        let mut argv: Vec<OsString> = vec![self.program.clone().into(), "--root".into()];
        argv.extend([start.state.clone().into(), "--log".into(), log.into()]);
        argv.extend(["--log-format", "json"].map(OsString::from));
        if self.kind == RuntimeKind::Crun && crate::sys::userns::inside() {
            argv.push("--cgroup-manager=disabled".into());
        }
        argv
    }
}

/// Where a program is, in PATH or the system's usual folders.
pub(super) fn look_up(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let own = std::env::split_paths(&path).collect::<Vec<_>>();
    let usual = ["/usr/local/sbin", "/usr/sbin", "/usr/local/bin", "/usr/bin"].map(PathBuf::from);
    own.into_iter().chain(usual).map(|dir| dir.join(name)).find(|path| path.is_file())
}

/// The last word of the first line of `--version`.
fn version_of(program: &Path) -> Option<String> {
    let output = Command::new(program).arg("--version").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().next()?.split_whitespace().last().map(str::to_owned)
}

/// What a runtime's log says went wrong, with the exit code that Docker gives for it.
pub(super) fn refusal(log: &Path, otherwise: &str) -> (i32, String) {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let message = |line: &str| {
        let entry: Value = serde_json::from_str(line).ok()?;
        let level = entry.get("level").and_then(Value::as_str);
        let told = level.is_none_or(|level| level == "error" || level == "fatal");
        entry.get("msg").and_then(Value::as_str).filter(|_| told).map(str::to_owned)
    };
    let why = text.lines().rev().find_map(message).unwrap_or_else(|| otherwise.to_owned());
    (code_of(&why), why)
}

/// Docker tells these apart by the text of the runtime's message, too.
fn code_of(why: &str) -> i32 {
    let lower = why.to_lowercase();
    let says = |words: &[&str]| words.iter().any(|word| lower.contains(word));
    if says(&["permission denied", "not a directory", "is a directory", "exec format error"]) {
        126
    } else if says(&["executable file", "no such file or directory", "executable path is empty"]) {
        127
    } else {
        CANNOT_CREATE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_get_the_codes_that_docker_gives() {
        for (why, code) in [
            ("exec: \"x\": executable file not found in $PATH", 127),
            ("executable file `x` not found in $PATH: No such file or directory", 127),
            ("exec: \"/etc/passwd\": permission denied", 126),
            ("cannot set memory limit", 125),
        ] {
            assert_eq!(code_of(why), code, "{why}");
        }
    }

    #[test]
    fn false_no_new_privileges_is_left_out_for_libcontainer() {
        let mut config = serde_json::json!({"process": {"noNewPrivileges": false, "cwd": "/"}});
        Engine::find(RuntimeKind::Embedded).unwrap().adapt(&mut config);
        assert_eq!(config, serde_json::json!({"process": {"cwd": "/"}}));
    }
}
