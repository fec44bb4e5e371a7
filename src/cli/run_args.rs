//! Options that say how a container is run: those of `docker run`, and slim's own beside them.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

use crate::pipeline::{PipelineError, RecorderChoice, RunSpec};
use crate::record::Backend;
use crate::runtime::{self, Network, RunOptions, RuntimeKind};

use super::units;

/// Everything but the script.
#[derive(Args, Debug, Default)]
pub(super) struct RunArgs {
    /// Set an environment variable, or pass one of slim's on
    #[arg(short = 'e', long, value_name = "K[=V]", help_heading = CONTAINER)]
    env: Vec<String>,
    /// Read environment variables from a file, one a line
    #[arg(long, value_name = "FILE", help_heading = CONTAINER)]
    env_file: Vec<PathBuf>,
    /// Run as this user: name or number, with :group if wanted
    #[arg(short = 'u', long, help_heading = CONTAINER)]
    user: Option<String>,
    /// Working directory inside
    #[arg(short = 'w', long, value_name = "DIR", help_heading = CONTAINER)]
    workdir: Option<String>,
    /// Bind a host path, or make a volume
    #[arg(short = 'v', long, value_name = "SRC:DST[:ro]", help_heading = CONTAINER)]
    volume: Vec<String>,
    /// Attach a mount, as docker run's --mount
    #[arg(long, value_name = "type=…,…", help_heading = CONTAINER)]
    mount: Vec<String>,
    /// Mount a tmpfs
    #[arg(long, value_name = "PATH[:OPTS]", help_heading = CONTAINER)]
    tmpfs: Vec<String>,
    /// Hold the container's stdin open (slim's own is never forwarded)
    #[arg(short = 'i', long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", help_heading = CONTAINER)]
    interactive: Option<bool>,
    /// Give the container a terminal
    #[arg(short = 't', long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", help_heading = CONTAINER)]
    tty: Option<bool>,
    /// Size of /dev/shm [default: 64m]
    #[arg(long, value_parser = units::size, value_name = "SIZE", help_heading = CONTAINER)]
    shm_size: Option<u64>,
    /// Host name inside
    #[arg(long, help_heading = CONTAINER)]
    hostname: Option<String>,
    /// Add a line to /etc/hosts
    #[arg(long, value_name = "HOST:IP", help_heading = CONTAINER)]
    add_host: Vec<String>,
    /// Replace the image's entrypoint
    #[arg(long, allow_hyphen_values = true, help_heading = CONTAINER)]
    entrypoint: Option<String>,
    /// Set a limit
    #[arg(long, value_name = "NAME=SOFT[:HARD]", help_heading = CONTAINER)]
    ulimit: Vec<String>,
    /// Memory limit
    #[arg(short = 'm', long, value_parser = units::size, value_name = "SIZE", help_heading = CONTAINER)]
    memory: Option<u64>,
    /// Number of CPUs
    #[arg(long, value_name = "N", help_heading = CONTAINER)]
    cpus: Option<f64>,
    /// Limit of processes; -1 is none
    #[arg(long, value_name = "N", allow_hyphen_values = true, help_heading = CONTAINER)]
    pids_limit: Option<i64>,
    /// Mount the root file system read-only
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", help_heading = CONTAINER)]
    read_only: Option<bool>,
    /// Run an init inside that forwards signals and reaps
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", help_heading = CONTAINER)]
    init: Option<bool>,
    /// Add a capability
    #[arg(long, value_name = "CAP", help_heading = CONTAINER)]
    cap_add: Vec<String>,
    /// Drop a capability
    #[arg(long, value_name = "CAP", help_heading = CONTAINER)]
    cap_drop: Vec<String>,
    /// no-new-privileges, seccomp=unconfined, seccomp=FILE
    #[arg(long, value_name = "OPT", help_heading = CONTAINER)]
    security_opt: Vec<String>,
    /// Annotate the container; conditions of hooks may ask for it
    #[arg(long, value_name = "KEY=VALUE", help_heading = CONTAINER)]
    annotation: Vec<String>,
    /// Give it a device of the host: a node, or a CDI device by name with its mounts and hooks
    #[arg(long, value_name = "HOST[:CONTAINER[:rwm]]|VENDOR/CLASS=NAME", help_heading = CONTAINER)]
    device: Vec<String>,
    /// Look for CDI specifications here instead of in /etc/cdi and /var/run/cdi
    #[arg(long, value_name = "DIR", help_heading = CONTAINER)]
    cdi_spec_dir: Vec<PathBuf>,
    /// Run the OCI hooks that this folder defines, oci-hooks(5), on this host; none unless given
    #[arg(long, value_name = "DIR", help_heading = CONTAINER)]
    hooks_dir: Vec<PathBuf>,
    /// Signal that stops the container
    #[arg(long, value_name = "SIGNAL", help_heading = CONTAINER)]
    stop_signal: Option<String>,
    /// Seconds until SIGKILL follows it [default: 10]
    #[arg(long, value_name = "SECONDS", help_heading = CONTAINER)]
    stop_timeout: Option<u64>,
    /// Replace the image's command, one word each time
    #[arg(long, value_name = "ARG", allow_hyphen_values = true, help_heading = CONTAINER)]
    cmd: Vec<String>,
    /// published, private, host or ns:PATH [default: published]
    #[arg(long, value_name = "MODE", value_parser = network, help_heading = CONTAINER)]
    network: Option<Network>,
    /// When the script may start: tcp:PORT, http:PATH, log:REGEX, healthy, exec:CMD or none
    #[arg(long, value_name = "HOW", help_heading = RUN)]
    ready: Option<String>,
    /// Bound of each wait for readiness [default: 60s]
    #[arg(long, value_name = "TIME", value_parser = units::duration, help_heading = RUN)]
    timeout: Option<Duration>,
    /// Bound of the script [default: none; on the slim image ten times what it took, 60s at least]
    #[arg(long, value_name = "TIME", value_parser = units::duration, help_heading = RUN)]
    script_timeout: Option<Duration>,
    /// Do not start the container a second time
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", help_heading = RUN)]
    no_restart: Option<bool>,
    /// What records; auto is bpf where its programs load, else perf, else notify
    #[arg(long, value_enum, help_heading = RUN)]
    recorder: Option<RecorderArg>,
    /// What runs the container [default: embedded]
    #[arg(long, value_enum, help_heading = RUN)]
    runtime: Option<RuntimeArg>,
}

const CONTAINER: &str = "The container, as docker run has it";
const RUN: &str = "The run";

#[derive(Debug, Clone, Copy, ValueEnum)]
enum RecorderArg {
    Auto,
    Bpf,
    Perf,
    Notify,
    None,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum RuntimeArg {
    Embedded,
    Runc,
    Crun,
}

fn network(text: &str) -> Result<Network, String> {
    Ok(match text {
        "published" => Network::Published,
        "private" => Network::Private,
        "host" => Network::Host,
        other => match other.strip_prefix("ns:") {
            Some(path) if !path.is_empty() => Network::Ns(PathBuf::from(path)),
            _ => return Err("use published, private, host or ns:PATH".to_owned()),
        },
    })
}

impl RunArgs {
    /// Checks and completes; `script` is what stands behind `--`.
    pub(super) fn spec(self, script: Vec<OsString>) -> Result<RunSpec, PipelineError> {
        let recorder = match self.recorder.unwrap_or(RecorderArg::Auto) {
            RecorderArg::Auto => RecorderChoice::Auto,
            RecorderArg::Bpf => RecorderChoice::Backend(Backend::Bpf),
            RecorderArg::Perf => RecorderChoice::Backend(Backend::Perf),
            RecorderArg::Notify => RecorderChoice::Backend(Backend::Notify),
            RecorderArg::None => RecorderChoice::None,
        };
        let runtime = match self.runtime.unwrap_or(RuntimeArg::Embedded) {
            RuntimeArg::Embedded => RuntimeKind::Embedded,
            RuntimeArg::Runc => RuntimeKind::Runc,
            RuntimeArg::Crun => RuntimeKind::Crun,
        };
        let ready = self.ready.as_deref().map(runtime::parse_ready).transpose()?;
        Ok(RunSpec {
            network: self.network.clone().unwrap_or(Network::Published),
            runtime,
            ready,
            timeout: self.timeout.unwrap_or(Duration::from_secs(60)),
            script,
            script_timeout: self.script_timeout,
            restart: !self.no_restart.unwrap_or(false),
            recorder,
            arguments: redacted(std::env::args_os().skip(1)),
            options: self.options()?,
        })
    }

    fn options(self) -> Result<RunOptions, PipelineError> {
        Ok(RunOptions {
            env: environment(&self.env_file, &self.env)?,
            user: self.user,
            workdir: self.workdir,
            volumes: self.volume,
            mounts: self.mount,
            tmpfs: self.tmpfs,
            interactive: self.interactive.unwrap_or(false),
            tty: self.tty.unwrap_or(false),
            shm_size: self.shm_size,
            hostname: self.hostname,
            add_host: self.add_host,
            entrypoint: self.entrypoint,
            cmd: (!self.cmd.is_empty()).then_some(self.cmd),
            ulimit: self.ulimit,
            memory: self.memory,
            cpus: self.cpus,
            pids_limit: self.pids_limit,
            read_only: self.read_only.unwrap_or(false),
            init: self.init.unwrap_or(false),
            cap_add: self.cap_add,
            cap_drop: self.cap_drop,
            security_opt: self.security_opt,
            stop_signal: self.stop_signal,
            stop_timeout: self.stop_timeout,
            annotations: self.annotation,
            hooks_dirs: self.hooks_dir,
            devices: self.device,
            cdi_spec_dirs: self.cdi_spec_dir,
        })
    }
}

/// Files first, then `-e`, as docker has it. `K` alone takes the value of slim's own environment,
/// and is left out where there is none.
fn environment(files: &[PathBuf], given: &[String]) -> Result<Vec<String>, PipelineError> {
    let mut lines = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(file).map_err(|error| {
            PipelineError::Usage(format!("--env-file {}: {error}", file.display()))
        })?;
        let kept =
            text.lines().map(str::trim_start).filter(|l| !l.is_empty() && !l.starts_with('#'));
        lines.extend(kept.map(str::to_owned));
    }
    lines.extend(given.iter().cloned());
    let mut pairs = Vec::new();
    for line in lines {
        let key = line.split('=').next().unwrap_or_default();
        if key.is_empty() {
            return Err(PipelineError::Usage(format!("-e {line:?} has no name before the =")));
        }
        if line.contains('=') {
            pairs.push(line);
        } else if let Ok(value) = std::env::var(&line) {
            pairs.push(format!("{line}={value}"));
        }
    }
    Ok(pairs)
}

/// The command line without values that may be secrets: those of `-e`, and `KEY=value` words whose
/// key sounds like one.
fn redacted(argv: impl Iterator<Item = OsString>) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    let mut value_of_env = false;
    for word in argv {
        let word = word.to_string_lossy().into_owned();
        let option = ["--env=", "-e"].iter().find(|p| word.starts_with(*p) && word.len() > p.len());
        out.push(match option {
            _ if value_of_env => hide(&word),
            Some(prefix) if !word.starts_with("--e") || *prefix == "--env=" => {
                format!("{prefix}{}", hide(&word[prefix.len()..]))
            }
            _ if sounds_secret(&word) => hide(&word),
            _ => word.clone(),
        });
        value_of_env = word == "-e" || word == "--env";
    }
    out
}

fn hide(pair: &str) -> String {
    pair.split_once('=').map_or_else(|| pair.to_owned(), |(key, _)| format!("{key}=<redacted>"))
}

fn sounds_secret(word: &str) -> bool {
    let Some((key, _)) = word.split_once('=') else { return false };
    let key = key.to_ascii_lowercase();
    ["pass", "secret", "token", "key", "credential", "auth"].iter().any(|hint| key.contains(hint))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_the_environment_stay_out_of_the_record() {
        let argv =
            ["trace", "-e", "A=1", "-eB=2", "--env=C=3", "-e", "D", "--", "x", "api_token=9"];
        let got = redacted(argv.into_iter().map(OsString::from)).join(" ");
        assert_eq!(
            got,
            "trace -e A=<redacted> -eB=<redacted> --env=C=<redacted> -e D -- x api_token=<redacted>"
        );
    }
}
