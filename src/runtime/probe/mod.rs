//! What this host offers for running containers, found by trying it.

mod engines;
mod groups;

use std::path::Path;

use nix::sched::CloneFlags;

use crate::model::{Lack, Offer};
use crate::runtime::engine::{NO_FSOPEN, OTHER_RUNTIMES};
use crate::runtime::spec::caps;
use crate::sys::{mount, probe};

/// Tries what running containers takes, one by one. `folder` is a scratch folder where the store is to
/// be.
pub fn probe(folder: &Path) -> Vec<Offer> {
    vec![
        Offer::new("capabilities", capabilities()),
        groups::probe(),
        Offer::new("overlayfs", overlay(folder)),
        Offer::new("namespaces", namespaces()),
        Offer::new("seccomp", seccomp()),
        Offer::new("user_namespaces", user_namespaces()),
        Offer::new("subuid", subuid()),
        Offer::new("embedded_runtime", embedded()),
        engines::version("runc", "only --runtime runc needs it"),
        engines::version("crun", "only --runtime crun needs it"),
        engines::docker(),
        engines::podman(),
    ]
}

/// An overlay of the store's own folders, as a container's root is made.
fn overlay(folder: &Path) -> Result<String, Lack> {
    const COSTS: &str = "no container can be run";
    let folders = ["lower", "upper", "work", "root"].map(|name| folder.join(name));
    let made = folders.iter().try_for_each(std::fs::create_dir);
    made.map_err(|error| Lack::of(&error, COSTS, "put the store elsewhere with --store"))?;
    let [lower, upper, work, root] = folders;
    let mounted = mount::in_private(|| mount::overlay(&[lower], &upper, &work, &root));
    let where_to = "put the store on ext4, xfs, btrfs or tmpfs with --store; `modprobe overlay` \
                    loads the module";
    match mounted {
        Ok(Ok(())) => Ok("mounts where the store is".to_owned()),
        Ok(Err(error)) => Err(Lack::of(&error, COSTS, where_to)),
        Err(error) => Err(Lack::of(&error, COSTS, "run slim as root, with CAP_SYS_ADMIN")),
    }
}

/// What the run of a container takes, beside what the rows of their own try: effective ones of slim
/// itself (capabilities(7)).
fn capabilities() -> Result<String, Lack> {
    const WANTED: [&str; 14] = [
        "CHOWN",
        "DAC_OVERRIDE",
        "FOWNER",
        "FSETID",
        "KILL",
        "MKNOD",
        "NET_ADMIN",
        "SETFCAP",
        "SETGID",
        "SETPCAP",
        "SETUID",
        "SYS_ADMIN",
        "SYS_CHROOT",
        "SYS_PTRACE",
    ];
    let have = caps::effective();
    let missing: Vec<&str> = WANTED.into_iter().filter(|name| !have.contains(name)).collect();
    if missing.is_empty() {
        let limit = if have.contains(&"SYS_RESOURCE") {
            ""
        } else {
            "; without SYS_RESOURCE the limits of containers end at the host's"
        };
        return Ok(format!("all that running containers takes{limit}"));
    }
    let costs = "unpacking layers, or running containers, fails where one of them is needed";
    let way_out = "run slim with sudo; inside a container that takes --privileged";
    Err(Lack::new(format!("no {}", missing.join(", ")), costs, way_out))
}

fn namespaces() -> Result<String, Lack> {
    let flags = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWCGROUP;
    let way_out = "run slim as root; inside a container that takes --privileged";
    probe::namespaces(flags)
        .map(|()| "mount, pid, network, uts, ipc and cgroup namespaces can be made".to_owned())
        .map_err(|error| Lack::of(&error, "no container can be run", way_out))
}

/// The actions of filters, from the kernel's own list (`seccomp(2)`, Linux 4.14).
fn seccomp() -> Result<String, Lack> {
    const LIST: &str = "/proc/sys/kernel/seccomp/actions_avail";
    let costs = "containers would run unfiltered, and no filter could be verified";
    let way_out = "use a kernel built with CONFIG_SECCOMP_FILTER";
    let actions = std::fs::read_to_string(LIST)
        .map_err(|error| Lack::new(format!("{LIST}: {error}"), costs, way_out))?;
    if actions.split_whitespace().any(|action| action == "errno") {
        return Ok(format!("filters with {}", actions.trim()));
    }
    Err(Lack::new(format!("filters know {} only", actions.trim()), costs, way_out))
}

/// What the embedded runtime needs of the kernel.
fn embedded() -> Result<String, Lack> {
    let costs = "nothing runs without --runtime";
    match (probe::mount_setattr(), probe::fsopen()) {
        (true, _) => Ok("its mounts can be made".to_owned()),
        (_, true) => Ok("slim makes its mounts, since this kernel lacks mount_setattr".to_owned()),
        _ => Err(Lack::new(NO_FSOPEN, costs, OTHER_RUNTIMES)),
    }
}

/// What an ordinary user needs in place of root.
fn user_namespaces() -> Result<String, Lack> {
    if super::in_user_namespace() {
        return Ok("slim is root of one".to_owned());
    }
    let way_out = "sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone=1 or \
                   kernel.apparmor_restrict_unprivileged_userns=0, whichever this host has";
    probe::namespaces(CloneFlags::CLONE_NEWUSER)
        .map(|()| "this user may make one".to_owned())
        .map_err(|error| Lack::of(&error, "an ordinary user cannot run containers", way_out))
}

/// Ids of an ordinary user beside the own one (`subuid(5)`, `newuidmap(1)`).
fn subuid() -> Result<String, Lack> {
    if !super::in_user_namespace() {
        return Ok("not needed as root".to_owned());
    }
    let costs = "files of other owners belong to root in the container, and programs that become \
                 another user fail";
    let way_out = "as root: usermod --add-subuids 100000-165535 --add-subgids 100000-165535 USER, and \
                   install uidmap (shadow-utils)";
    match super::rootless_warnings().into_iter().next() {
        None => Ok("ranges of ids are mapped".to_owned()),
        Some(why) => Err(Lack::new(why, costs, way_out)),
    }
}
