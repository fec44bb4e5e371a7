//! The BPF recorder's object: loading, attaching, its maps. The kernel side is
//! `src/record/bpf/slim.bpf.c`; `scripts/build-bpf` compiles it.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use aya::maps::{Array, CgroupArray, HashMap, MapData, MapError, RingBuf};
use aya::programs::{BtfTracePoint, ProgramError};
use aya::{Btf, Ebpf, EbpfError, EbpfLoader};

static OBJECT: &[u8] = aya::include_bytes_aligned!("../record/bpf/slim.bpf.o");

/// Program, tracepoint, and whether slim can do without it.
const PROGRAMS: [(&str, &str, bool); 6] = [
    // exits and forks first: once calls are seen, no task may be missed
    ("slim_gone", "sched_process_exit", false),
    ("slim_fork", "sched_process_fork", false),
    ("slim_exec", "sched_process_exec", false),
    ("slim_exit", "sys_exit", false),
    ("slim_enter", "sys_enter", false),
    ("slim_uring", "io_uring_submit_req", true), // named io_uring_submit_sqe before Linux 6.1
];

/// Why the object could not be loaded or a map not be used.
#[derive(Debug, thiserror::Error)]
pub enum BpfError {
    #[error("no kernel type information (/sys/kernel/btf/vmlinux)")]
    NoBtf(#[source] aya::BtfError),
    #[error("the BPF object was refused")]
    Load(#[from] EbpfError),
    #[error("BPF program {name} was refused")]
    Program { name: &'static str, source: ProgramError },
    #[error("BPF program {name} was refused: {said}")]
    Verifier { name: &'static str, said: String, source: std::io::Error },
    #[error("slim records by BPF on x86_64 only; {} is not there yet", std::env::consts::ARCH)]
    Architecture,
    #[error("BPF map {name}")]
    Map { name: &'static str, source: MapError },
    #[error("the BPF object has no {0}")]
    Absent(&'static str),
}

/// The loaded object. Dropping it detaches everything.
pub struct Bpf {
    ebpf: Ebpf,
}

impl Bpf {
    /// Loads the object with `ring_bytes` (a power of two) for events and room for `tasks` tasks.
    ///
    /// Needs `CAP_BPF` and `CAP_PERFMON` (Linux 5.8), or `CAP_SYS_ADMIN`, and BTF.
    pub fn load(ring_bytes: u32, tasks: u32) -> Result<Self, BpfError> {
        // the object reads arguments from x86's registers
        if !cfg!(target_arch = "x86_64") {
            return Err(BpfError::Architecture);
        }
        let btf = Btf::from_sys_fs().map_err(BpfError::NoBtf)?;
        let mut loader = EbpfLoader::new();
        loader.map_max_entries("ring", ring_bytes).map_max_entries("threads", tasks);
        let mut ebpf = loader.btf(Some(&btf)).load(OBJECT)?;
        for (name, tracepoint, optional) in PROGRAMS {
            let program = ebpf.program_mut(name).ok_or(BpfError::Absent(name))?;
            let program: &mut BtfTracePoint =
                program.try_into().map_err(|source| BpfError::Program { name, source })?;
            match program.load(tracepoint, &btf) {
                Err(error) if optional => tracing::debug!(%error, name, "not loaded"),
                other => other.map_err(|error| refused(name, error))?,
            }
        }
        Ok(Self { ebpf })
    }

    /// Attaches every program: from here on the cgroup is seen.
    pub fn attach(&mut self) -> Result<(), BpfError> {
        for (name, _, optional) in PROGRAMS {
            let program = self.ebpf.program_mut(name).ok_or(BpfError::Absent(name))?;
            let program: &mut BtfTracePoint =
                program.try_into().map_err(|source| BpfError::Program { name, source })?;
            match program.attach() {
                Err(error) if optional => tracing::debug!(%error, name, "not attached"),
                Err(source) => return Err(BpfError::Program { name, source }),
                Ok(_) => {}
            }
        }
        Ok(())
    }

    /// The ring of events; once.
    pub fn ring(&mut self) -> Result<Ring, BpfError> {
        let map = self.ebpf.take_map("ring").ok_or(BpfError::Absent("ring"))?;
        let ring = RingBuf::try_from(map);
        Ok(Ring(ring.map_err(|source| BpfError::Map { name: "ring", source })?))
    }

    /// Says whose subtree is recorded: a cgroup v2 directory.
    pub fn set_cgroup(&mut self, cgroup: BorrowedFd<'_>) -> Result<(), BpfError> {
        let name = "run";
        let map = self.ebpf.map_mut(name).ok_or(BpfError::Absent(name))?;
        let mut array =
            CgroupArray::try_from(map).map_err(|source| BpfError::Map { name, source })?;
        array.set(0, cgroup.as_raw_fd(), 0).map_err(|source| BpfError::Map { name, source })
    }

    /// The main container's phase and the reader's pid namespace (its inode number).
    pub fn set_config(&mut self, phase: u32, pid_ns: u32) -> Result<(), BpfError> {
        self.set_array("config", 0, [phase, pid_ns])
    }

    /// What the programs are to know about a call, see `struct call` in the C source.
    pub fn set_call(&mut self, index: u32, call: [u8; 8]) -> Result<(), BpfError> {
        self.set_array("table", index, call)
    }

    pub fn set_role(&mut self, cgroup: u64, role: u32) -> Result<(), BpfError> {
        self.set_hash("roles", cgroup, role)
    }

    /// A super block whose files are the container's, by the kernel's device number.
    pub fn set_overlay(&mut self, device: u32) -> Result<(), BpfError> {
        self.set_hash("overlays", device, 1)
    }

    /// A helper of slim outside the cgroup; its children become helpers too.
    pub fn set_host(&mut self, pid: u32) -> Result<(), BpfError> {
        self.set_hash("hosts", pid, 1)
    }

    /// The losses counted in the kernel: ring full, map full, string fault, string cut.
    pub fn losses(&self) -> Result<[u64; 4], BpfError> {
        let name = "losses";
        let map = self.ebpf.map(name).ok_or(BpfError::Absent(name))?;
        let read = || -> Result<[u64; 4], MapError> {
            let array: Array<_, u64> = Array::try_from(map)?;
            Ok([array.get(&0, 0)?, array.get(&1, 0)?, array.get(&2, 0)?, array.get(&3, 0)?])
        };
        read().map_err(|source| BpfError::Map { name, source })
    }

    fn set_array<V: aya::Pod>(
        &mut self,
        name: &'static str,
        index: u32,
        value: V,
    ) -> Result<(), BpfError> {
        let map = self.ebpf.map_mut(name).ok_or(BpfError::Absent(name))?;
        Array::try_from(map)
            .and_then(|mut array| array.set(index, value, 0))
            .map_err(|source| BpfError::Map { name, source })
    }

    fn set_hash<K: aya::Pod>(
        &mut self,
        name: &'static str,
        key: K,
        value: u32,
    ) -> Result<(), BpfError> {
        let map = self.ebpf.map_mut(name).ok_or(BpfError::Absent(name))?;
        HashMap::try_from(map)
            .and_then(|mut hash| hash.insert(key, value, 0))
            .map_err(|source| BpfError::Map { name, source })
    }
}

/// A verifier's log has megabytes; its last lines say what it did not like.
fn refused(name: &'static str, error: ProgramError) -> BpfError {
    let ProgramError::LoadError { io_error, verifier_log } = error else {
        return BpfError::Program { name, source: error };
    };
    let log = verifier_log.to_string();
    tracing::debug!(name, log, "the verifier's whole log");
    BpfError::Verifier { name, said: end_of(&log), source: io_error }
}

/// The last lines of a log, at most three and 500 bytes, as one.
fn end_of(log: &str) -> String {
    let lines: Vec<&str> = log.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let text = lines[lines.len().saturating_sub(3)..].join(" | ");
    let cut = (text.len().saturating_sub(500)..).find(|at| text.is_char_boundary(*at));
    text[cut.unwrap_or(0)..].to_owned()
}

/// The ring of events.
pub struct Ring(RingBuf<MapData>);

impl Ring {
    /// Hands out the events that are there, in order.
    pub fn drain(&mut self, mut sink: impl FnMut(&[u8])) {
        while let Some(item) = self.0.next() {
            sink(&item);
        }
    }
}

impl AsFd for Ring {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verifiers_refusal_is_told_in_short() {
        if !nix::unistd::geteuid().is_root() {
            return; // the kernel would not look at the program
        }
        let btf = Btf::from_sys_fs().unwrap();
        let mut ebpf = EbpfLoader::new().btf(Some(&btf)).load(OBJECT).unwrap();
        let program: &mut BtfTracePoint =
            ebpf.program_mut("slim_fork").unwrap().try_into().unwrap();
        // a tracepoint with fewer arguments than the program reads
        let error = program.load("sched_process_free", &btf).unwrap_err();
        let BpfError::Verifier { name, said, .. } = refused("slim_fork", error) else {
            panic!("another error")
        };
        let text = format!("{name} {said}");
        assert!(text.contains("slim_fork") && text.contains("processed"), "{text}");
        assert!(text.len() < 600, "{text}");
    }

    #[test]
    fn of_a_long_log_the_end_is_told() {
        let log =
            "0: (b7) r0 = 0\n".repeat(200_000) + "R1 invalid mem access\nprocessed 9 insns\n\n";
        assert_eq!(end_of(&log), "0: (b7) r0 = 0 | R1 invalid mem access | processed 9 insns");
        assert_eq!(end_of(&"é".repeat(1000)).len(), 500);
        assert_eq!(end_of(""), "");
    }
}
