//! What this host offers a recorder, for `slim doctor`: every part is used once, and undone.

mod backends;
mod files;
mod settings;

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

use crate::model::{Lack, Offer};
use crate::record::perf;
use crate::sys::perf::{PerfEvent, Tracefs, What};
use crate::sys::{probe, seccomp};

pub use backends::Recorder;
pub use settings::settings;

/// What the BPF programs are attached to, and what each is for.
const NEEDED: [&str; 6] = [
    "sys_exit",
    "signal_deliver",
    "task_rename",
    "sched_process_fork",
    "sched_process_exec",
    "sched_process_exit",
];
/// Names of one tracepoint: the second before Linux 6.1.
const URING: [&str; 2] = ["io_uring_submit_req", "io_uring_submit_sqe"];

/// What was found.
pub struct Probed {
    /// The parts that recorders stand on.
    pub parts: Vec<Offer>,
    /// The recorders, best first.
    pub recorders: Vec<Recorder>,
    /// What `--recorder auto` picks.
    pub auto: Offer,
}

/// Tries the recorders and their parts one by one. `folder` is a scratch folder where the store is to
/// be.
pub fn probe(folder: &Path) -> Probed {
    let (fanotify, ignore_marks) = files::probe(folder);
    let parts = vec![
        fanotify,
        ignore_marks,
        Offer::new("btf", btf()),
        Offer::new("tracepoints", tracepoints()),
        Offer::new("filters_kept", filters_kept()),
        Offer::new("io_uring", io_uring()),
        Offer::new("cap_capable", cap_capable()),
        Offer::new("bpf_loop", bpf_loop()),
        Offer::new("perf_events", perf_events()),
        Offer::new("seccomp_notify", seccomp_notify()),
        Offer::new("pidfd_getfd", pidfd_getfd()),
    ];
    let (recorders, auto) = backends::recorders(&parts);
    Probed { parts, recorders, auto }
}

fn btf() -> Result<String, Lack> {
    let path = "/sys/kernel/btf/vmlinux";
    let found = std::fs::metadata(path);
    found.map(|meta| format!("{path}, {} bytes", meta.len())).map_err(|error| {
        let way_out = "use a kernel built with CONFIG_DEBUG_INFO_BTF";
        Lack::new(format!("{path}: {error}"), "no BPF recorder", way_out)
    })
}

fn attachable<'a>(names: &[&'a str]) -> Result<Vec<&'a str>, Lack> {
    let way_out = "use a kernel built with CONFIG_DEBUG_INFO_BTF";
    probe::tracepoints(names).map_err(|error| Lack::of(&error, "no BPF recorder", way_out))
}

fn tracepoints() -> Result<String, Lack> {
    let found = attachable(&NEEDED)?;
    let missing: Vec<&str> = NEEDED.into_iter().filter(|name| !found.contains(name)).collect();
    if missing.is_empty() {
        return Ok(NEEDED.join(", "));
    }
    let why = format!("no {}", missing.join(", "));
    let way_out = "use a kernel built with CONFIG_FTRACE_SYSCALLS and CONFIG_TRACEPOINTS";
    Err(Lack::new(why, "no BPF recorder", way_out))
}

fn filters_kept() -> Result<String, Lack> {
    if probe::filters_kept() {
        return Ok("a refused call is told by the filter that refused it".to_owned());
    }
    let costs =
        "a second BPF program at each system call, some 45 ns for every task on the machine";
    let why = "the kernel does not keep seccomp filters as they were loaded";
    Err(Lack::new(why, costs, "use a kernel built with CONFIG_CHECKPOINT_RESTORE"))
}

fn io_uring() -> Result<String, Lack> {
    let costs = "what a program does through io_uring is not named (files that it opens are seen)";
    match attachable(&URING)?.first() {
        Some(name) => Ok(format!("operations are seen at {name}")),
        None => {
            Err(Lack::new("no tracepoint io_uring_submit_req", costs, "use Linux 5.6 or newer"))
        }
    }
}

fn cap_capable() -> Result<String, Lack> {
    let costs = "which capabilities a program used is not seen where it happens";
    match attachable(&["cap_capable"])?.first() {
        Some(_) => Ok("uses of capabilities are seen".to_owned()),
        None => Err(Lack::new("no tracepoint cap_capable", costs, "use Linux 6.14 or newer")),
    }
}

fn bpf_loop() -> Result<String, Lack> {
    let way_out = "use Linux 5.17 or newer; or record with --recorder perf";
    match probe::bpf_loop() {
        Ok(true) => Ok("programs that call it load".to_owned()),
        Ok(false) => Err(Lack::new("the kernel has no such helper", "no BPF recorder", way_out)),
        Err(error) => {
            let way_out = "run slim as root, with CAP_BPF and CAP_PERFMON, or CAP_SYS_ADMIN";
            Err(Lack::of(&error, "no BPF recorder", way_out))
        }
    }
}

/// A system-call tracepoint as a perf event of one cgroup, with a filter.
fn perf_events() -> Result<String, Lack> {
    let tried = || -> std::io::Result<()> {
        let id = Tracefs::open()?.tracepoint("raw_syscalls/sys_enter")?;
        let group = File::open(perf::hierarchy()?)?;
        PerfEvent::open(What::Tracepoint(id), group.as_fd(), 0)?.set_filter("id!=0")
    };
    let way_out = "run slim as root, with CAP_PERFMON or CAP_SYS_ADMIN, on a kernel with \
                   CONFIG_FTRACE_SYSCALLS and CONFIG_CGROUP_PERF";
    tried()
        .map(|()| "raw_syscalls:sys_enter opens for a cgroup and takes a filter".to_owned())
        .map_err(|error| Lack::of(&error, "no perf recorder", way_out))
}

fn seccomp_notify() -> Result<String, Lack> {
    let way_out = "use Linux 5.5 or newer, built with CONFIG_SECCOMP_FILTER";
    seccomp::try_notification()
        .map(|()| match seccomp::outlasts_signals() {
            true => "a call was notified and let go on; signals let it wait".to_owned(),
            false => "a call was notified and let go on; before Linux 5.19 a signal may end it \
                      with EINTR"
                .to_owned(),
        })
        .map_err(|error| Lack::of(&error, "no recording by seccomp notification", way_out))
}

fn pidfd_getfd() -> Result<String, Lack> {
    let way_out = "use Linux 5.6 or newer";
    probe::pidfd_getfd()
        .map(|()| "descriptors of other processes can be taken".to_owned())
        .map_err(|error| Lack::of(&error, "no recording by seccomp notification", way_out))
}
