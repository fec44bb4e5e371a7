//! The default backend: BPF programs on the call and process tracepoints, see `slim.bpf.c`.

mod decode;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use decode::{Decoded, Decoder};

use super::RecordError;
use super::calls;
use super::event::Event;
use super::gather::phase_number;
use super::source::{Control, Ends, Lost, Source, Start};
use crate::model::{LossKind, Phase};
use crate::sys::bpf::{Bpf, BpfError, Config};
use crate::sys::probe::filters_kept;
use crate::sys::ring::BpfRing;

/// Bytes of the ring between kernel and reader. What finds it full is counted (`ring_full`).
const RING_BYTES: u32 = 16 << 20;
/// Tasks (threads) below the cgroup that can be told apart at a time, twice the default `pid_max`. A
/// further one is not recorded, and counted (`map_full`).
const TASKS: u32 = 65_536;

/// How much there is room for, and what is looked at.
#[derive(Debug, Clone, Copy)]
pub(super) struct Size {
    /// Bytes.
    pub ring: u32,
    pub tasks: u32,
    /// Whether calls are seen when they begin, too.
    pub both: bool,
}

impl Default for Size {
    fn default() -> Self {
        Self { ring: RING_BYTES, tasks: TASKS, both: !filters_kept() }
    }
}

/// Loads, configures and attaches the programs.
pub(super) fn start(start: &Start<'_>, size: Size) -> Result<Ends, RecordError> {
    let mut bpf = Bpf::load(size.ring, size.tasks, size.both).map_err(host_error)?;
    let no_cgroup = |e| RecordError::NoCgroup { path: start.path.to_owned(), source: Some(e) };
    let config = Config {
        cgroup: start.cgroup()?.metadata().map_err(no_cgroup)?.ino(),
        phase: phase_number(Phase::Start).into(),
        pid_ns: pid_namespace()?,
        both: size.both.into(),
        wake: size.ring / 8,
    };
    bpf.set_config(config)?;
    for (index, call) in calls::descriptors() {
        bpf.set_call(index, call)?;
    }
    for pid in start.family {
        bpf.set_host(*pid)?;
    }
    let ring = bpf.ring()?;
    bpf.attach().map_err(host_error)?;
    let source = Box::new(Events { ring, decoder: Decoder::default() });
    Ok(Ends { source, control: Box::new(Steer { bpf, config, blind: 0 }) })
}

/// Tries whether the programs load and attach here.
///
/// # Errors
/// Why not, with the way out.
pub(super) fn probe() -> Result<(), RecordError> {
    let Size { ring, tasks, both } = Size::default();
    Bpf::load(ring, tasks, both).and_then(|mut bpf| bpf.attach()).map_err(host_error)
}

struct Events {
    ring: BpfRing,
    decoder: Decoder,
}

impl Source for Events {
    fn descriptors(&self) -> io::Result<Vec<OwnedFd>> {
        Ok(vec![self.ring.as_fd().try_clone_to_owned()?])
    }

    fn drain(&mut self, sink: &mut dyn FnMut(Event)) -> u64 {
        let mut nonsense = 0;
        self.ring.drain(|raw| match self.decoder.read(raw) {
            Decoded::Event(event) => sink(*event),
            Decoded::Nothing => {}
            Decoded::Nonsense => nonsense += 1,
        });
        nonsense
    }
}

struct Steer {
    bpf: Bpf,
    config: Config,
    /// Looks at what tasks wait in that came to nothing.
    blind: u64,
}

impl Steer {
    /// A call that waits is seen when it ends: in another phase, or never.
    fn look_inside(&mut self) {
        if let Err(error) = self.bpf.look_inside() {
            tracing::warn!(%error, "what tasks wait in was not looked at");
            self.blind += 1;
        }
    }
}

impl Control for Steer {
    fn set_phase(&mut self, phase: Phase) -> Result<(), RecordError> {
        self.look_inside();
        self.config.phase = phase_number(phase).into();
        Ok(self.bpf.set_config(self.config)?)
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

    fn stop(&mut self) {
        self.look_inside();
    }

    fn losses(&mut self) -> Result<Vec<Lost>, RecordError> {
        let [ring_full, map_full, string_fault, string_cut, left, mounts] = self.bpf.losses()?;
        let missed = self.bpf.missed()?;
        Ok(vec![
            (LossKind::RingFull, ring_full, "events found the ring full"),
            (LossKind::MapFull, map_full, "tasks found the table of tasks full"),
            (
                LossKind::StringFault,
                string_fault,
                "a call's path, or the filter it met, could not be read",
            ),
            (LossKind::StringCut, string_cut, "a path was too deep to be read whole"),
            (LossKind::LeftCgroup, left, "a process left the recorded cgroup"),
            (LossKind::MountsUnknown, mounts, "a mount namespace has too many mounts to be told"),
            (
                LossKind::ProgramMissed,
                missed + self.blind,
                "a BPF program was left out: it ran already, or could not be started",
            ),
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
