//! The kernel's settings that decide what a recorder may see.

use std::fs;

use crate::model::{Lack, Offer};

/// What is set on this host, one offer each. Nothing here is tried: the parts that depend on these
/// settings are rows of their own.
pub fn settings() -> Vec<Offer> {
    vec![
        Offer::new("lsms", Ok(lsms())),
        Offer::new("lockdown", lockdown()),
        Offer::new("ptrace_scope", ptrace_scope()),
        Offer::new("unprivileged_bpf", Ok(unprivileged_bpf())),
        Offer::new("perf_event_paranoid", Ok(value("kernel/perf_event_paranoid"))),
        Offer::new("bpf_stats", Ok(bpf_stats())),
    ]
}

fn sysctl(name: &str) -> Option<String> {
    fs::read_to_string(format!("/proc/sys/{name}")).ok().map(|text| text.trim().to_owned())
}

fn value(name: &str) -> String {
    sysctl(name).unwrap_or_else(|| "this kernel has no such setting".to_owned())
}

/// From securityfs (`/sys/kernel/security/lsm`, Linux 4.20), which not every host mounts.
fn lsms() -> String {
    let read = fs::read_to_string("/sys/kernel/security/lsm");
    read.map(|text| text.trim().to_owned()).unwrap_or_else(|_| "securityfs is not mounted".into())
}

/// kernel_lockdown(7): in mode "confidentiality" BPF programs may not read the kernel's memory.
fn lockdown() -> Result<String, Lack> {
    let Ok(text) = fs::read_to_string("/sys/kernel/security/lockdown") else {
        return Ok("not part of this kernel, or securityfs is not mounted".into());
    };
    let mode = text.split(['[', ']']).nth(1).unwrap_or("none").to_owned();
    if mode == "confidentiality" {
        let way_out = "boot without lockdown=confidentiality; integrity is fine";
        return Err(Lack::new("confidentiality", "no BPF recorder, no perf recorder", way_out));
    }
    Ok(mode)
}

/// Yama's `kernel.yama.ptrace_scope`: 3 forbids it to everyone.
fn ptrace_scope() -> Result<String, Lack> {
    match sysctl("kernel/yama/ptrace_scope").as_deref() {
        None => Ok("Yama is not part of this kernel".into()),
        Some("3") => {
            let costs = "no recording by seccomp notification: pidfd_getfd is refused";
            Err(Lack::new(
                "3: nobody may attach",
                costs,
                "boot with kernel.yama.ptrace_scope=2 or less",
            ))
        }
        Some(scope) => Ok(scope.to_owned()),
    }
}

fn unprivileged_bpf() -> String {
    match sysctl("kernel/unprivileged_bpf_disabled").as_deref() {
        Some("0") => "allowed; slim does not use it".into(),
        Some(_) => "not allowed, as is usual; slim's BPF programs are loaded as root".into(),
        None => "this kernel has no such setting".into(),
    }
}

fn bpf_stats() -> String {
    match sysctl("kernel/bpf_stats_enabled").as_deref() {
        Some("1") => "on: the kernel times every BPF program, which costs a little".into(),
        Some(_) => {
            "off; `sysctl kernel.bpf_stats_enabled=1` makes the kernel time slim's programs".into()
        }
        None => "this kernel has no such setting".into(),
    }
}
