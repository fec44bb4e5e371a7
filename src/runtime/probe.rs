//! What this host offers for running containers, found by trying it.

use std::path::Path;
use std::process::Command;

/// Name → what was found, or what is missing with the way out.
pub fn probe() -> Vec<(String, Result<String, String>)> {
    vec![
        ("overlayfs".to_owned(), filesystem("overlay")),
        ("seccomp".to_owned(), seccomp()),
        ("runc".to_owned(), version("runc")),
        ("crun".to_owned(), version("crun")),
    ]
}

fn filesystem(name: &str) -> Result<String, String> {
    let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if known.lines().any(|line| line.trim_start_matches("nodev").trim() == name) {
        return Ok("in the kernel".to_owned());
    }
    Err(format!("the kernel has no {name}: `modprobe {name}`"))
}

fn seccomp() -> Result<String, String> {
    if Path::new("/proc/sys/kernel/seccomp/actions_avail").exists() {
        return Ok("filters with errno and notification".to_owned());
    }
    Err("the kernel was built without seccomp filters: containers would run unfiltered".to_owned())
}

fn version(program: &str) -> Result<String, String> {
    let output = Command::new(program).arg("--version").output();
    let text = output.ok().filter(|o| o.status.success()).map(|o| o.stdout);
    let text = text.and_then(|t| String::from_utf8(t).ok());
    let line = text.as_deref().and_then(|t| t.lines().next()).map(str::to_owned);
    line.ok_or_else(|| format!("not installed; only --runtime {program} needs it"))
}
