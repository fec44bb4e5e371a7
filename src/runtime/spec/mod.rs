//! The OCI runtime specification (`config.json`) of a container, as Docker would have made it from
//! the same image configuration and options.
//!
//! Reads the mounted root file system for users and links and makes the directories that Docker
//! makes; starts nothing.

pub(super) mod caps;
mod devices;
mod files;
pub(super) mod inside;
mod limits;
mod mounts;
mod rootless;
mod signals;
mod user;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::cdi;
use super::hooks::{self, Facts};
use super::{RunOptions, RuntimeError};
use crate::model::ImageConfig;

pub use devices::check as check_devices;
pub use rootless::{Ids, refuse_limits};
pub use signals::signal_number;

const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Where Docker puts the init of `--init`.
const INIT: &str = "/sbin/docker-init";
/// Docker's least, in bytes.
const LEAST_MEMORY: u64 = 6 << 20;
/// `sethostname(2)`.
const LONGEST_HOSTNAME: usize = 64;
/// Microseconds, as Docker turns `--cpus` into a quota.
const CPU_PERIOD: u32 = 100_000;

const MASKED: [&str; 12] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
const READ_ONLY: [&str; 5] =
    ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// What a runtime specification is made of.
pub struct SpecInput<'a> {
    pub config: &'a ImageConfig,
    pub options: &'a RunOptions,
    /// The mounted overlay as this process reaches it.
    pub rootfs: &'a Path,
    /// The same as the runtime reaches it; becomes `root.path` as is.
    pub root_path: &'a Path,
    /// `--hostname` wins over it.
    pub hostname: &'a str,
    /// `None`: the host's network.
    pub netns: Option<PathBuf>,
    /// The address of a namespace of our own; `None` for a borrowed one, whose sysctls stay.
    pub container_ip: Option<IpAddr>,
    /// `host-gateway` and the nameserver; `None`: the host's resolv.conf.
    pub gateway_ip: Option<IpAddr>,
    pub seccomp: Option<&'a Value>,
    pub cgroups_path: String,
    /// hosts, hostname and resolv.conf are written here and bind-mounted.
    pub files_dir: &'a Path,
    /// Replaces the command, keeps the entrypoint (SLIM_RUN); the container then has no terminal.
    pub argv: Option<&'a [String]>,
    /// A static `init` binary to be pid 1 for `--init`, on the host.
    pub init: Option<&'a Path>,
    /// The ids of slim's user namespace; `None` if it runs as the host's root.
    pub ids: Option<&'a Ids>,
}

/// A `config.json` and what the user should know about it.
#[derive(Debug)]
pub struct Built {
    pub spec: Value,
    pub warnings: Vec<String>,
}

/// Makes the specification. Writes below `files_dir`, and makes missing working directories, volumes
/// and sources of binds.
pub fn build(input: &SpecInput<'_>) -> Result<Built, RuntimeError> {
    let options = input.options;
    let security = security(&options.security_opt)?;
    let hostname = options.hostname.as_deref().unwrap_or(input.hostname);
    if hostname.is_empty() || hostname.len() > LONGEST_HOSTNAME {
        return Err(refuse("--hostname", hostname, "want 1 to 64 bytes"));
    }
    let mut warnings = Vec::new();
    let process = process(input, hostname, &security, &mut warnings)?;
    let mounts = mounts(input, hostname, &mut warnings)?;
    let hidden = |paths: &[&str]| if security.open_paths { json!([]) } else { json!(paths) };
    let mut linux = json!({
        "namespaces": namespaces(input.netns.as_deref()),
        "resources": resources(options, input.ids.is_some())?,
        "cgroupsPath": input.cgroups_path,
        "maskedPaths": hidden(&MASKED),
        "readonlyPaths": hidden(&READ_ONLY),
    });
    if input.container_ip.is_some() {
        linux["sysctl"] = json!({
            "net.ipv4.ip_unprivileged_port_start": "0",
            "net.ipv4.ping_group_range": ping_groups(input.ids),
        });
    }
    if let Some(seccomp) = input.seccomp {
        linux["seccomp"] = seccomp.clone();
    }
    let mut spec = json!({
        "ociVersion": "1.0.2",
        "process": process,
        "root": { "path": input.root_path.to_string_lossy(), "readonly": options.read_only },
        "hostname": hostname,
        "mounts": mounts,
        "linux": linux,
    });
    devices::apply(&mut spec, options, input.ids.is_some())?;
    add_hooks(&mut spec, options)?;
    Ok(Built { spec, warnings })
}

/// Where the options mount something or make directories: absolute paths in the container.
pub fn mount_points(options: &RunOptions) -> Result<Vec<String>, RuntimeError> {
    let mut all = mounts::mount_points(options)?;
    let edits = devices::wanted(options)?.into_iter().map(|from| from.edits);
    all.extend(edits.flat_map(|edits| edits.mounts).map(|mount| mount.container_path));
    Ok(all)
}

/// File name, digest and stages of the CDI specifications whose devices bring hooks.
pub fn hooks_of_devices(options: &RunOptions) -> Result<Vec<Value>, RuntimeError> {
    let told = |from: cdi::Wanted| {
        let stages: Vec<_> = from.edits.hooks.iter().map(|hook| hook.hook_name).collect();
        (!stages.is_empty()).then(|| hooks::tell(&from.file, &from.digest, &stages))
    };
    Ok(devices::wanted(options)?.into_iter().filter_map(told).collect())
}

/// Annotations, and the hooks whose conditions hold.
fn add_hooks(spec: &mut Value, options: &RunOptions) -> Result<(), RuntimeError> {
    let annotations = annotations(options)?;
    if !annotations.is_empty() {
        spec["annotations"] = json!(annotations);
    }
    let command = spec["process"]["args"][0].as_str().unwrap_or_default().to_owned();
    let bind_mounts = mounts::wanted(options)?.mounts.iter().any(|mount| mount["type"] == "bind");
    let facts = Facts { annotations: &annotations, command: &command, bind_mounts };
    hooks::inject(spec, &hooks::read(&options.hooks_dirs)?, &facts);
    Ok(())
}

/// `--annotation`, later ones over earlier ones; without a value the empty one.
pub(super) fn annotations(options: &RunOptions) -> Result<BTreeMap<String, String>, RuntimeError> {
    let pair = |text: &String| match text.split_once('=').unwrap_or((text, "")) {
        ("", _) => Err(refuse("--annotation", text, "want KEY=VALUE")),
        (key, value) => Ok((key.to_owned(), value.to_owned())),
    };
    options.annotations.iter().map(pair).collect()
}

fn ping_groups(ids: Option<&Ids>) -> String {
    ids.map_or_else(|| format!("0 {}", i32::MAX), Ids::ping_groups)
}

/// The OCI process object of an exec in the container of `spec`: same user, environment, working
/// directory, capabilities and limits; no terminal.
pub fn exec_process(spec: &Value, argv: &[String]) -> Value {
    let mut process = spec["process"].clone();
    process["args"] = json!(argv);
    process["terminal"] = json!(false);
    process
}

fn refuse(option: &str, value: &str, why: &str) -> RuntimeError {
    RuntimeError::Option { option: option.into(), value: value.into(), why: why.into() }
}

/// What `--security-opt` says, seccomp apart: that arrives as [`SpecInput::seccomp`].
#[derive(Default)]
struct Security {
    no_new_privileges: bool,
    open_paths: bool,
}

fn security(texts: &[String]) -> Result<Security, RuntimeError> {
    let mut security = Security::default();
    for text in texts {
        let (key, value) = text.split_once(['=', ':']).unwrap_or((text, ""));
        match (key, value) {
            ("no-new-privileges", "" | "true") => security.no_new_privileges = true,
            ("no-new-privileges", "false") => security.no_new_privileges = false,
            ("systempaths", "unconfined") => security.open_paths = true,
            ("seccomp", _) | ("apparmor", "unconfined") | ("label", "disable") => (),
            _ => {
                let why = "know no-new-privileges, seccomp=FILE|unconfined, systempaths=unconfined, \
                           apparmor=unconfined and label=disable";
                return Err(refuse("--security-opt", text, why));
            }
        }
    }
    Ok(security)
}

fn process(
    input: &SpecInput<'_>,
    hostname: &str,
    security: &Security,
    warnings: &mut Vec<String>,
) -> Result<Value, RuntimeError> {
    let options = input.options;
    let terminal = options.tty && input.argv.is_none();
    let mut args = command(input)?;
    if options.init {
        args.splice(0..0, [INIT.to_owned(), "--".to_owned()]);
    }
    let wanted = options.user.as_deref().or(input.config.user()).unwrap_or_default();
    let mut who = user::look_up(input.rootfs, wanted)?;
    if let Some(ids) = input.ids {
        ids.fit(&mut who, warnings)?;
    }
    let (caps, lacking) = caps::choose(&options.cap_add, &options.cap_drop, caps::own_bounding())?;
    let (rlimits, lowered) = limits::rlimits(&options.ulimit)?;
    warnings.extend(lacking.into_iter().chain(lowered));
    Ok(json!({
        "terminal": terminal,
        "user": { "uid": who.uid, "gid": who.gid, "additionalGids": who.groups },
        "args": args,
        "env": environment(&input.config.env(), &options.env, hostname, terminal, &who.home),
        "cwd": workdir(input)?,
        "capabilities": { "bounding": caps, "effective": caps, "permitted": caps },
        "rlimits": rlimits,
        "noNewPrivileges": security.no_new_privileges,
    }))
}

/// Entrypoint and command: `--entrypoint` empties the image's command, arguments replace it.
fn command(input: &SpecInput<'_>) -> Result<Vec<String>, RuntimeError> {
    let (config, options) = (input.config, input.options);
    let mut words = match options.entrypoint.as_deref() {
        Some("") => Vec::new(),
        Some(word) => vec![word.to_owned()],
        None => config.entrypoint(),
    };
    match (input.argv, &options.cmd) {
        (Some(argv), _) => words.extend_from_slice(argv),
        (None, Some(cmd)) => words.extend_from_slice(cmd),
        (None, None) if options.entrypoint.is_none() => words.extend(config.cmd()),
        (None, None) => (),
    }
    if words.is_empty() {
        return Err(RuntimeError::Container {
            what: "image".to_owned(),
            why: "no command specified: it has neither entrypoint nor cmd; use --cmd".to_owned(),
        });
    }
    Ok(words)
}

/// Docker's own variables, then the user's, then the image's; a later mention of a name replaces the
/// value where the first one stands, and a user's name without `=` removes it.
fn environment(
    image: &[String],
    user: &[String],
    hostname: &str,
    terminal: bool,
    home: &str,
) -> Vec<String> {
    let name = |pair: &str| pair.split_once('=').map_or(pair, |(name, _)| name).to_owned();
    let mut env = vec![DEFAULT_PATH.to_owned(), format!("HOSTNAME={hostname}")];
    env.extend(terminal.then(|| "TERM=xterm".to_owned()));
    let named = |pair: &&String| user.iter().any(|other| name(other) == name(pair));
    for pair in user.iter().chain(image.iter().filter(|pair| !named(pair))) {
        let at = env.iter().position(|other| name(other) == name(pair));
        match (at, pair.contains('=')) {
            (Some(at), true) => env[at].clone_from(pair),
            (Some(at), false) => drop(env.remove(at)),
            (None, true) => env.push(pair.clone()),
            (None, false) => (),
        }
    }
    if !env.iter().any(|pair| pair.starts_with("HOME=")) {
        env.push(format!("HOME={home}"));
    }
    env
}

/// The working directory, made if the image lacks it.
fn workdir(input: &SpecInput<'_>) -> Result<String, RuntimeError> {
    let path = match (&input.options.workdir, input.config.workdir()) {
        (Some(path), _) if path.starts_with('/') => path.clone(),
        (Some(path), _) => return Err(refuse("--workdir", path, "the path must be absolute")),
        (None, Some(path)) if path.starts_with('/') => path.to_owned(),
        (None, path) => format!("/{}", path.unwrap_or_default()),
    };
    make_inside(input.rootfs, &path, "working directory")?;
    Ok(path)
}

/// Makes a directory; where it is, without `root`.
fn make_inside(root: &Path, path: &str, what: &str) -> Result<PathBuf, RuntimeError> {
    inside::ensure_dir(root, Path::new(path)).map_err(|error| RuntimeError::Container {
        what: format!("{what} {path}"),
        why: error.to_string(),
    })
}

fn mounts(
    input: &SpecInput<'_>,
    hostname: &str,
    warnings: &mut Vec<String>,
) -> Result<Vec<Value>, RuntimeError> {
    let mounts::Wanted { mounts: mut wanted, mut volumes } = mounts::wanted(input.options)?;
    let mut usual = mounts::usual(input.options.shm_size);
    if let Some(ids) = input.ids {
        ids.mounts(&mut usual, input.netns.is_some());
    }
    usual.extend(files::write(input, hostname)?);
    for path in input.config.volumes() {
        let Some(path) = path.strip_prefix('/').map(|path| format!("/{}", path.trim_matches('/')))
        else {
            warnings.push(format!("the image's volume {path:?} is no absolute path"));
            continue;
        };
        // What every container has there is what a container of it needs.
        let of_the_kernel = |top: &&str| Path::new(&path).starts_with(top);
        if path == "/" || ["/dev", "/proc", "/sys"].iter().any(of_the_kernel) {
            warnings.push(format!("the image's volume {path:?} is not mounted here"));
            continue;
        }
        let covered = |mount: &Value| mount["destination"].as_str() == Some(&path);
        if !wanted.iter().any(covered) && !volumes.iter().any(|other| other.inside == path) {
            volumes.push(mounts::Volume::anonymous(&path));
        }
    }
    for volume in volumes {
        let at = make_inside(input.rootfs, &volume.inside, "volume")?;
        wanted.push(volume.mount(&input.root_path.join(at)));
    }
    if input.options.init {
        wanted.push(init_mount(input.init)?);
    }
    Ok(mounts::combine(usual, wanted))
}

fn init_mount(binary: Option<&Path>) -> Result<Value, RuntimeError> {
    let binary = binary.ok_or_else(|| RuntimeError::Host {
        what: "--init".to_owned(),
        why: "no docker-init or tini on this host".to_owned(),
        way_out: "install tini, or leave the option out".to_owned(),
    })?;
    Ok(json!({
        "destination": INIT,
        "type": "bind",
        "source": binary.to_string_lossy(),
        "options": ["bind", "ro"],
    }))
}

fn namespaces(netns: Option<&Path>) -> Vec<Value> {
    let mut list: Vec<Value> =
        ["mount", "uts", "ipc", "pid"].iter().map(|kind| json!({ "type": kind })).collect();
    if let Some(path) = netns {
        list.push(json!({ "type": "network", "path": path.to_string_lossy() }));
    }
    // As Docker has it: a private view on v2, the host's on v1 and hybrid hosts.
    if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        list.push(json!({ "type": "cgroup" }));
    }
    list
}

fn resources(options: &RunOptions, rootless: bool) -> Result<Value, RuntimeError> {
    if rootless {
        refuse_limits(options)?;
        return Ok(json!({}));
    }
    let mut resources = json!({ "devices": devices() });
    if let Some(bytes) = options.memory.filter(|bytes| *bytes > 0) {
        if bytes < LEAST_MEMORY {
            return Err(refuse("--memory", &bytes.to_string(), "the minimum is 6 MB"));
        }
        resources["memory"] = json!({ "limit": bytes });
    }
    if let Some(cpus) = options.cpus.filter(|cpus| *cpus != 0.0) {
        if !(0.01..=8192.0).contains(&cpus) {
            return Err(refuse("--cpus", &cpus.to_string(), "want a number from 0.01 upwards"));
        }
        let quota = (cpus * f64::from(CPU_PERIOD)).round() as i64;
        resources["cpu"] = json!({ "quota": quota, "period": CPU_PERIOD });
    }
    if let Some(limit) = options.pids_limit.filter(|limit| *limit > 0) {
        resources["pids"] = json!({ "limit": limit });
    }
    Ok(resources)
}

/// The device cgroup: everything may be made, these may be used.
fn devices() -> Vec<Value> {
    let rule = |kind: &str, major: Option<u32>, minor: Option<u32>, access: &str| {
        let mut rule = json!({ "allow": true, "type": kind, "access": access });
        for (key, number) in [("major", major), ("minor", minor)] {
            if let Some(number) = number {
                rule[key] = json!(number);
            }
        }
        rule
    };
    let mut rules = vec![json!({ "allow": false, "access": "rwm" })];
    rules.extend(["c", "b"].map(|kind| rule(kind, None, None, "m")));
    // null, zero, full, random, urandom; tty, console, ptmx; pseudo-terminals
    let known = [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2)];
    rules.extend(known.map(|(major, minor)| rule("c", Some(major), Some(minor), "rwm")));
    rules.push(rule("c", Some(136), None, "rwm"));
    rules
}

#[cfg(test)]
mod tests;
