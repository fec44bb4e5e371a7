//! The default backend: BPF programs on the call and process tracepoints, see `slim.bpf.c`.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::RecordError;
use super::calls;
use super::event::{Event, parse_event};
use super::gather::phase_number;
use super::source::{Control, Ends, Lost, Source, Start};
use crate::model::Phase;
use crate::sys::bpf::{Bpf, BpfError, Ring};

/// Bytes of the ring between kernel and reader. What finds it full is counted (`ring_full`).
pub(super) const RING_BYTES: u32 = 16 << 20;
/// Tasks (threads) below the cgroup that can be told apart at a time, twice the default `pid_max`. A
/// further one is not recorded, and counted (`map_full`).
pub(super) const TASKS: u32 = 65_536;

/// Loads, configures and attaches the programs, with a ring of `ring` bytes and room for `tasks`.
pub(super) fn start(start: &Start<'_>, ring: u32, tasks: u32) -> Result<Ends, RecordError> {
    let mut bpf = Bpf::load(ring, tasks).map_err(host_error)?;
    let ring = bpf.ring()?;
    bpf.set_cgroup(start.cgroup.as_fd()).map_err(|error| {
        tracing::debug!(%error, "the cgroup was refused");
        RecordError::NoCgroup { path: start.path.to_owned(), source: None }
    })?;
    for (index, call) in calls::descriptors() {
        bpf.set_call(index, call)?;
    }
    let pid_ns = pid_namespace()?;
    bpf.set_config(phase_number(Phase::Start).into(), pid_ns)?;
    for pid in start.family {
        bpf.set_host(*pid)?;
    }
    bpf.attach().map_err(host_error)?;
    let (source, control) = (Box::new(Events(ring)), Box::new(Steer { bpf, pid_ns }));
    Ok(Ends { source, control })
}

/// Tries whether the programs load and attach here.
///
/// # Errors
/// Why not, with the way out.
pub(super) fn probe() -> Result<(), RecordError> {
    Bpf::load(RING_BYTES, TASKS).and_then(|mut bpf| bpf.attach()).map_err(host_error)
}

struct Events(Ring);

impl Source for Events {
    fn descriptors(&self) -> io::Result<Vec<OwnedFd>> {
        Ok(vec![self.0.as_fd().try_clone_to_owned()?])
    }

    fn drain(&mut self, sink: &mut dyn FnMut(Event)) -> u64 {
        let mut nonsense = 0;
        self.0.drain(|raw| match parse_event(raw) {
            Some(event) => sink(event),
            None => nonsense += 1,
        });
        nonsense
    }
}

struct Steer {
    bpf: Bpf,
    pid_ns: u32,
}

impl Control for Steer {
    fn set_phase(&mut self, phase: Phase) -> Result<(), RecordError> {
        Ok(self.bpf.set_config(phase_number(phase).into(), self.pid_ns)?)
    }

    fn set_role(&mut self, leaf: &Path, role: u8) -> Result<(), RecordError> {
        let id = std::fs::metadata(leaf)
            .map_err(|e| RecordError::NoCgroup { path: leaf.to_owned(), source: Some(e) })?
            .ino();
        Ok(self.bpf.set_role(id, role.into())?)
    }

    fn add_overlay(&mut self, device: u32) -> Result<(), RecordError> {
        Ok(self.bpf.set_overlay(device)?)
    }

    fn losses(&mut self) -> Result<Vec<Lost>, RecordError> {
        let [ring_full, map_full, string_fault, string_cut] = self.bpf.losses()?;
        Ok(vec![
            ("ring_full", ring_full, "events found the ring full"),
            ("map_full", map_full, "tasks found the table of tasks full"),
            ("string_fault", string_fault, "a call's path could not be read"),
            ("string_cut", string_cut, "a path was too deep to be read whole"),
        ])
    }
}

fn host_error(error: BpfError) -> RecordError {
    let (why, way_out) = match &error {
        BpfError::NoBtf(_) => (
            "the kernel has no type information (/sys/kernel/btf/vmlinux)".to_owned(),
            "use a kernel built with CONFIG_DEBUG_INFO_BTF (Debian 11, Ubuntu 20.10, RHEL 8 and later have it), or --recorder perf",
        ),
        BpfError::Architecture => (
            error.to_string(),
            "trace on an x86_64 machine, or with --recorder none for a baseline",
        ),
        other => (
            format!("{other}"),
            "run slim as root, with CAP_BPF, CAP_PERFMON and CAP_SYS_ADMIN, on Linux 5.17 or later, or with --recorder perf",
        ),
    };
    RecordError::Host { what: "BPF", why, way_out, source: Some(Box::new(error)) }
}

fn pid_namespace() -> Result<u32, RecordError> {
    let what = "read /proc/self/ns/pid";
    let meta = std::fs::metadata("/proc/self/ns/pid")
        .map_err(|source| RecordError::Io { what, source })?;
    Ok(u32::try_from(meta.ino()).unwrap_or(0))
}
