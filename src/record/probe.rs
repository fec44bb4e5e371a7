//! What this host offers a recorder, for `slim doctor`.

use super::{Backend, chain, fanotify_error};
use crate::sys::fanotify::Group;

/// Tries the recorder's parts one by one: name, and what was found or why not, with the way out.
pub fn probe() -> Vec<(String, Result<String, String>)> {
    let fanotify = Group::new()
        .map(|_| "unlimited queue".to_owned())
        .map_err(|error| chain(&fanotify_error(error)));
    let btf = match std::fs::metadata("/sys/kernel/btf/vmlinux") {
        Ok(meta) => Ok(format!("/sys/kernel/btf/vmlinux, {} bytes", meta.len())),
        Err(error) => Err(format!(
            "/sys/kernel/btf/vmlinux: {error}; use a kernel built with CONFIG_DEBUG_INFO_BTF"
        )),
    };
    let bpf = Backend::Bpf
        .check()
        .map(|()| "programs load and attach to their tracepoints".to_owned())
        .map_err(|error| chain(&error));
    let cgroup = match cgroup2() {
        Some(path) => Ok(path),
        None => Err("no cgroup v2 is mounted; mount -t cgroup2 none /sys/fs/cgroup".to_owned()),
    };
    let named = [("fanotify", fanotify), ("btf", btf), ("bpf", bpf), ("cgroup2", cgroup)];
    named.into_iter().map(|(name, found)| (name.to_owned(), found)).collect()
}

fn cgroup2() -> Option<String> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").ok()?;
    let found = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2"))?;
    found.split(' ').nth(1).map(str::to_owned)
}
