//! The mounts of a container where libcontainer cannot make them: it gives every mount its attributes
//! by `mount_setattr(2)`, which is younger (Linux 5.12) than the oldest kernel that slim runs on.
//!
//! They are taken out of its configuration and made by a hook of slim's own, at the point where
//! libcontainer is done with its part of the root and has not yet moved into it. All but `/dev`: in it
//! libcontainer makes its devices, so it has to be there before. Hooks of the user's that come earlier
//! (`prestart`, `createRuntime`) therefore see the root without the rest.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use libcontainer::oci_spec::runtime::Mount;
use libcontainer::rootfs::utils;
use rustix::mount::MountFlags;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::cgroup::Hierarchies;
use super::shim;
use super::spec::inside;
use crate::model::chain;
use crate::sys::attach::{self, Fresh};

/// The first word of the hook's command line.
pub(super) const HIDDEN: &str = "__mounts";
/// Where Linux and its containers have control groups.
const CGROUPS: &str = "/sys/fs/cgroup";

/// What a mount is given of its flags; the others (propagation, `sync`) are left alone.
const ATTRIBUTES: MountFlags = MountFlags::RDONLY
    .union(MountFlags::NOSUID)
    .union(MountFlags::NODEV)
    .union(MountFlags::NOEXEC)
    .union(MountFlags::NOATIME)
    .union(MountFlags::NODIRATIME)
    .union(MountFlags::RELATIME)
    .union(MountFlags::STRICTATIME);

/// What the hook is to do.
#[derive(Debug, Serialize, Deserialize)]
struct Job {
    /// The container's root directory.
    root: PathBuf,
    mounts: Vec<Mount>,
    /// Where the hook leaves why it failed: libcontainer tells its exit code only.
    why: PathBuf,
}

/// Takes the mounts out of the configuration in `bundle`, leaves them to the hook and makes `/dev`.
/// To be called in a mount namespace that is the container's alone.
pub(super) fn take_over(bundle: &Path) -> Result<(), String> {
    let told = |error: &dyn std::fmt::Display| format!("config.json: {error}");
    let mut config = shim::config(bundle)?;
    let root = config.pointer("/root/path").and_then(Value::as_str).ok_or("no root in it")?;
    let root = PathBuf::from(root);
    let all = config.as_object_mut().and_then(|all| all.remove("mounts")).unwrap_or_default();
    let mounts: Vec<Mount> = serde_json::from_value(all).map_err(|error| told(&error))?;
    let (dev, mounts): (Vec<Mount>, _) =
        mounts.into_iter().partition(|mount| mount.destination() == Path::new("/dev"));
    dev.iter().try_for_each(|mount| make(mount, &root))?;
    let why = log(bundle);
    let _ = fs::remove_file(&why); // an earlier start's
    let job = serde_json::to_string(&Job { root, mounts, why }).map_err(|error| told(&error))?;
    let hook = json!({ "path": "/proc/self/exe", "args": ["slim-mounts", HIDDEN, job] });
    // before those of the user, which may look at what is mounted
    let of_user = config.pointer("/hooks/createContainer").and_then(Value::as_array).cloned();
    config["hooks"]["createContainer"] = [vec![hook], of_user.unwrap_or_default()].concat().into();
    fs::write(bundle.join("config.json"), config.to_string()).map_err(|error| told(&error))
}

/// What the hook of the container of `bundle` says went wrong, if it ran and failed.
pub(super) fn failure(bundle: &Path) -> Option<String> {
    fs::read_to_string(log(bundle)).ok()
}

fn log(bundle: &Path) -> PathBuf {
    bundle.join("mounts.log")
}

/// The hook: makes the mounts, in the container's namespaces.
pub(super) fn main(job: &OsString) -> ! {
    let job: Option<Job> = job.to_str().and_then(|text| serde_json::from_str(text).ok());
    let Some(job) = job else { std::process::exit(2) };
    let made = job.mounts.iter().try_for_each(|mount| make(mount, &job.root));
    if let Err(why) = &made {
        let _ = fs::write(&job.why, why);
    }
    std::process::exit(i32::from(made.is_err()))
}

/// Makes a mount, and what it is mounted on.
fn make(mount: &Mount, root: &Path) -> Result<(), String> {
    let destination = mount.destination();
    let told = |error: &dyn std::fmt::Display| format!("{}: {error}", destination.display());
    let at = inside::resolve(root, destination).map_err(|error| told(&error))?;
    let options = utils::parse_mount(mount).map_err(|error| told(&error))?;
    let attributes = MountFlags::from_bits_truncate(options.flags.bits() as _) & ATTRIBUTES;
    let source = mount.source().as_deref().unwrap_or(Path::new(""));
    if utils::is_bind(mount) {
        let source = fs::canonicalize(source).map_err(|error| told(&error))?;
        make_point(&at, source.is_dir()).map_err(|error| told(&error))?;
        let recursive = mount.options().iter().flatten().any(|option| option == "rbind");
        return attach::bound(&source, recursive, attributes, &at).map_err(|e| chain(&e));
    }
    make_point(&at, true).map_err(|error| told(&error))?;
    let kind = mount.typ().as_deref().unwrap_or_default();
    if kind == "cgroup" {
        return control_groups(&at, attributes);
    }
    let (source, options) = (&*source.to_string_lossy(), &options.data);
    let options = options.iter().map(String::as_str).collect();
    attach::fresh(&Fresh { kind, source, options, attributes }, &at).map_err(|e| chain(&e))
}

/// Makes a folder or an empty file to mount on, with its parents, unless something is there.
fn make_point(at: &Path, folder: bool) -> std::io::Result<()> {
    let folders = |path: &Path| fs::DirBuilder::new().recursive(true).mode(0o755).create(path);
    if folder {
        return folders(at);
    }
    at.parent().map_or(Ok(()), folders)?;
    match fs::File::options().write(true).create_new(true).open(at) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// The container's view of its control groups: of version 2 alone its own namespace's; else its own
/// group of each hierarchy of version 1.
fn control_groups(at: &Path, attributes: MountFlags) -> Result<(), String> {
    let told = |error: &dyn std::fmt::Display| format!("control groups: {error}");
    let seen = Hierarchies::seen().map_err(|error| told(&error))?;
    let fresh = |kind, source, options, attributes| {
        let what = Fresh { kind, source, options, attributes };
        attach::fresh(&what, at).map_err(|error| chain(&error))
    };
    if seen.is_pure() {
        return fresh("cgroup2", "cgroup", Vec::new(), attributes);
    }
    let own = fs::read_to_string("/proc/self/cgroup").map_err(|error| told(&error))?;
    fresh("tmpfs", "tmpfs", vec!["mode=755"], attributes - MountFlags::RDONLY)?;
    for point in seen.legacy.iter().filter(|point| point.starts_with(CGROUPS)) {
        let Some(name) = point.file_name().and_then(|name| name.to_str()) else { continue };
        let Some(group) = group_of(&own, name) else { continue };
        let here = at.join(name);
        fs::create_dir(&here).map_err(|error| told(&error))?;
        let source = point.join(group.trim_start_matches('/'));
        attach::bound(&source, true, attributes, &here).map_err(|error| chain(&error))?;
        for one in name.split(',').filter(|one| *one != name) {
            std::os::unix::fs::symlink(name, at.join(one)).map_err(|error| told(&error))?;
        }
    }
    Ok(())
}

/// The group that a process is in, by its `cgroup` file (cgroups(7)), of the hierarchy mounted as `name`.
fn group_of<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let mut lines = text.lines().filter_map(|line| line.split_once(':')?.1.split_once(':'));
    let is = |list: &str| list == name || list.strip_prefix("name=") == Some(name);
    lines.find(|(list, _)| is(list)).map(|(_, group)| group)
}
