//! The BPF recorder's object: loading, attaching, its maps. The kernel side is
//! `src/record/bpf/slim.bpf.c`; `scripts/build-bpf` compiles it.

use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use aya::maps::{Array, HashMap, Map, MapError};
use aya::programs::{BtfTracePoint, Iter, Program, ProgramError};
use aya::{Btf, Ebpf, EbpfError, EbpfLoader};

use super::ring::BpfRing;

static OBJECT: &[u8] = aya::include_bytes_aligned!("../record/bpf/slim.bpf.o");

/// A program, its tracepoint, and when slim can do without it.
struct Part {
    name: &'static str,
    tracepoint: &'static str,
    need: Need,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Need {
    Always,
    /// Its absence is told.
    Optional,
    /// Wanted only where this other one was refused.
    Instead(&'static str),
    /// Wanted only where the kernel keeps no filter's program.
    Unkept,
}

impl Need {
    fn is_firm(self) -> bool {
        matches!(self, Self::Always | Self::Unkept)
    }
}

/// The program that looks at each task in turn (`bpf_iter__task`, Linux 5.8).
const INSIDE: &str = "slim_inside";

const fn part(name: &'static str, tracepoint: &'static str, need: Need) -> Part {
    Part { name, tracepoint, need }
}

const PARTS: [Part; 12] = [
    // who comes and goes first: once calls are seen, no task may be missed
    part("slim_gone", "sched_process_exit", Need::Always),
    part("slim_attach", "cgroup_attach_task", Need::Always),
    part("slim_fork", "sched_process_fork", Need::Always),
    part("slim_exec", "sched_process_exec", Need::Always),
    part("slim_rename", "task_rename", Need::Always),
    part("slim_signal", "signal_deliver", Need::Always),
    part("slim_exit", "sys_exit", Need::Always),
    part("slim_enter", "sys_enter", Need::Unkept),
    part("slim_capable", "cap_capable", Need::Optional), // Linux 6.14
    part("slim_uring", "io_uring_submit_req", Need::Optional), // Linux 6.1
    part("slim_uring_sqe", "io_uring_submit_sqe", Need::Instead("slim_uring")),
    part("slim_uring_old", "io_uring_submit_sqe", Need::Instead("slim_uring_sqe")),
];

/// What the programs are to know; `struct config` of the C source.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Config {
    /// Id (inode number) of the recorded cgroup v2 directory.
    pub cgroup: u64,
    /// The main container's phase.
    pub phase: u32,
    /// Inode number of the reader's pid namespace.
    pub pid_ns: u32,
    /// 1 where calls are seen when they begin, too: [`Bpf::load`].
    pub both: u32,
    /// Bytes of events after which the reader is woken, a power of two.
    pub wake: u32,
}

// SAFETY: a plain C struct of integers whose fields leave no gap.
unsafe impl aya::Pod for Config {}

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
    #[error("the counts of BPF program {name} cannot be read")]
    Counts { name: &'static str, source: std::io::Error },
    #[error("the calls that tasks wait in cannot be looked at")]
    Inside(#[source] std::io::Error),
    #[error("BPF map {name}")]
    Map { name: &'static str, source: MapError },
    #[error("the BPF object has no {0}")]
    Absent(&'static str),
    #[error("the ring of events cannot be mapped")]
    Ring(#[source] std::io::Error),
}

/// What the kernel said of the programs, by name.
type Loaded = std::collections::HashMap<&'static str, Result<(), ProgramError>>;

/// The loaded object. Dropping it detaches everything.
pub struct Bpf {
    ebpf: Ebpf,
    /// Parts that this kernel takes.
    parts: Vec<&'static Part>,
    ring_bytes: u32,
}

impl Bpf {
    /// Loads the object with `ring_bytes` (a power of two) for events and room for `tasks` tasks.
    ///
    /// With `both`, calls are seen when they begin, too. That tells the refused ones where the kernel
    /// keeps no filter's program, and costs every call of the machine more.
    ///
    /// Needs `CAP_BPF` and `CAP_PERFMON` (Linux 5.8), or `CAP_SYS_ADMIN`, and BTF.
    pub fn load(ring_bytes: u32, tasks: u32, both: bool) -> Result<Self, BpfError> {
        // the object reads arguments from x86's registers
        if !cfg!(target_arch = "x86_64") {
            return Err(BpfError::Architecture);
        }
        // The loader reads the kernel's types for itself as well. Not side by side: they take 15 MB
        // each, and nothing else of a small run takes as much.
        let mut loader = EbpfLoader::new();
        loader.btf(None);
        crate::sys::memory::give_back();
        let btf = Btf::from_sys_fs().map_err(BpfError::NoBtf)?;
        loader.map_max_entries("ring", ring_bytes).map_max_entries("tasks", process_ids());
        loader.map_max_entries("threads", tasks).map_max_entries("unused", tasks);
        let ebpf = loader.btf(Some(&btf)).load(OBJECT)?;
        let mut bpf = Self { ebpf, parts: Vec::new(), ring_bytes };
        bpf.set_array("state", 0, State { size: tasks, ..State::default() })?;
        let mut loaded = bpf.load_together(&btf, both);
        let inside = loaded.remove(INSIDE).ok_or(BpfError::Absent(INSIDE))?;
        inside.map_err(|error| refused(INSIDE, error))?;
        for part in &PARTS {
            let name = part.name;
            let done = match part.need {
                Need::Instead(of) if bpf.has(of) => continue,
                Need::Instead(_) => bpf.program(name)?.load(part.tracepoint, &btf),
                Need::Unkept if !both => continue,
                _ => loaded.remove(name).ok_or(BpfError::Absent(name))?,
            };
            match done {
                Ok(()) => bpf.parts.push(part),
                Err(error) if part.need.is_firm() => return Err(refused(name, error)),
                Err(error) => tracing::debug!(%error, name, "not loaded"),
            }
        }
        Ok(bpf)
    }

    /// Has the kernel check side by side all programs that stand for themselves, for that takes most
    /// of a start's time; what it said of each.
    fn load_together(&mut self, btf: &Btf, both: bool) -> Loaded {
        let wanted = |part: &&Part| match part.need {
            Need::Always | Need::Optional => true,
            Need::Unkept => both,
            Need::Instead(_) => false,
        };
        let part = |name: &str| PARTS.iter().filter(wanted).find(|part| part.name == name);
        std::thread::scope(|scope| {
            let programs = self.ebpf.programs_mut();
            let loads = programs.filter_map(|(name, program)| match (program, part(name)) {
                (Program::BtfTracePoint(program), Some(part)) => {
                    let load = move || program.load(part.tracepoint, btf);
                    Some((part.name, scope.spawn(load)))
                }
                (Program::Iter(program), None) if name == INSIDE => {
                    Some((INSIDE, scope.spawn(move || program.load("task", btf))))
                }
                _ => None,
            });
            let loads: Vec<_> = loads.collect();
            let ended =
                loads.into_iter().filter_map(|(name, load)| Some((name, load.join().ok()?)));
            ended.collect()
        })
    }

    /// Whether the program `name` was taken, or what stands in for it.
    fn has(&self, name: &'static str) -> bool {
        self.parts.iter().any(|part| part.name == name || part.need == Need::Instead(name))
    }

    /// Attaches every program: from here on the cgroup is seen.
    pub fn attach(&mut self) -> Result<(), BpfError> {
        for part in std::mem::take(&mut self.parts) {
            let name = part.name;
            match self.program(name)?.attach() {
                Ok(_) => self.parts.push(part),
                Err(source) if part.need.is_firm() => {
                    return Err(BpfError::Program { name, source });
                }
                Err(error) => tracing::debug!(%error, name, "not attached"),
            }
        }
        Ok(())
    }

    /// Reports the calls in which tasks wait, which are seen only when they end otherwise.
    pub fn look_inside(&mut self) -> Result<(), BpfError> {
        let program = self.inside()?;
        let link = program.attach().and_then(|id| program.take_link(id));
        let link = link.map_err(|source| BpfError::Program { name: INSIDE, source })?;
        let file = link.into_file().map_err(std::io::Error::other);
        // the program writes nothing there: the kernel goes on to the last task at once
        let read = file.and_then(|mut file| file.read_to_end(&mut Vec::new()));
        read.map(drop).map_err(BpfError::Inside)
    }

    fn inside(&mut self) -> Result<&mut Iter, BpfError> {
        let program = self.ebpf.program_mut(INSIDE).ok_or(BpfError::Absent(INSIDE))?;
        program.try_into().map_err(|source| BpfError::Program { name: INSIDE, source })
    }

    fn program(&mut self, name: &'static str) -> Result<&mut BtfTracePoint, BpfError> {
        let program = self.ebpf.program_mut(name).ok_or(BpfError::Absent(name))?;
        program.try_into().map_err(|source| BpfError::Program { name, source })
    }

    /// Times that a program was left out so far because it was running on that processor already.
    pub fn missed(&mut self) -> Result<u64, BpfError> {
        let names: Vec<_> = self.parts.iter().map(|part| part.name).collect();
        let read = |name| {
            let program = self.program(name)?;
            let fd = program.fd().map_err(|source| BpfError::Program { name, source })?;
            missed(fd.as_fd()).map_err(|source| BpfError::Counts { name, source })
        };
        names.into_iter().map(read).sum()
    }

    /// The ring of events; once.
    pub fn ring(&mut self) -> Result<BpfRing, BpfError> {
        let Some(Map::RingBuf(map)) = self.ebpf.take_map("ring") else {
            return Err(BpfError::Absent("ring"));
        };
        let fd = map.fd().as_fd().try_clone_to_owned();
        fd.and_then(|fd| BpfRing::map(fd, self.ring_bytes as usize)).map_err(BpfError::Ring)
    }

    /// Whose subtree is recorded, the phase, and how the reader is found.
    pub fn set_config(&mut self, config: Config) -> Result<(), BpfError> {
        self.set_array("config", 0, config)
    }

    /// What the programs are to know about a call, see `struct call` in the C source; before they are
    /// attached. The index counts compat calls after native ones.
    pub fn set_call(&mut self, index: u32, call: [u8; 8]) -> Result<(), BpfError> {
        let mut slot = [0u8; 128];
        slot[8..16].copy_from_slice(&call);
        for class in 0..CLASSES {
            let at = (index / CALLS * CLASSES + class) * CALLS + index % CALLS;
            self.set_array("slots", at, slot)?;
        }
        Ok(())
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

    /// The losses counted in the kernel, in the order of `enum loss` in the C source.
    pub fn losses(&self) -> Result<[u64; 6], BpfError> {
        let name = "losses";
        let map = self.ebpf.map(name).ok_or(BpfError::Absent(name))?;
        let read = || -> Result<[u64; 6], MapError> {
            let array: Array<_, u64> = Array::try_from(map)?;
            let mut all = [0; 6];
            for (at, number) in (0..).zip(&mut all) {
                *number = array.get(&at, 0)?;
            }
            Ok(all)
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

/// `CALLS` and `CLASSES` of the C source.
const CALLS: u32 = 1024;
const CLASSES: u32 = 4;

/// `struct state` of the C source.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
struct State {
    threads: u32,
    level: u32,
    woken: u32,
    size: u32,
    capable: [u64; 4],
    renames: u32,
    filters: u32,
    pivots: u64,
}

// SAFETY: a plain C struct of integers whose fields leave no gap.
unsafe impl aya::Pod for State {}

/// How many process ids the machine may have: `kernel.pid_max`, which only the first pid namespace
/// tells for all (since Linux 6.14 each has its own); elsewhere the kernel's limit.
fn process_ids() -> u32 {
    const LIMIT: u32 = 4 << 20;
    // PROC_PID_INIT_INO, include/linux/proc_ns.h
    let first = std::fs::metadata("/proc/self/ns/pid")
        .is_ok_and(|m| std::os::unix::fs::MetadataExt::ino(&m) == 0xEFFF_FFFC);
    let max = std::fs::read_to_string("/proc/sys/kernel/pid_max").unwrap_or_default();
    match max.trim().parse() {
        Ok(max) if first && max <= LIMIT => max,
        _ => LIMIT,
    }
}

/// `BPF_OBJ_GET_INFO_BY_FD` (bpf(2)); the count is there since Linux 5.12.
fn missed(program: BorrowedFd<'_>) -> Result<u64, std::io::Error> {
    const GET_INFO: libc::c_long = 15;
    // `struct bpf_prog_info`, whose recursion_misses lies at 208
    let mut info = [0u64; 32];
    #[repr(C)]
    struct Attr {
        fd: u32,
        len: u32,
        info: u64,
    }
    let mut attr = Attr {
        fd: program.as_raw_fd().cast_unsigned(),
        len: 256,
        info: std::ptr::from_mut(&mut info) as u64,
    };
    let (attr, size) = (std::ptr::from_mut(&mut attr), size_of::<Attr>());
    // SAFETY: the kernel reads `attr` and writes at most its `len` bytes into `info`; both outlive the
    // call, and an all-zero info asks for no arrays.
    let rc = unsafe { libc::syscall(libc::SYS_bpf, GET_INFO, attr, size) };
    if rc != 0 {
        return Err(std::io::Error::last_os_error());
    }
    Ok(info[26])
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

/// The last lines of a log, at most three and 500 bytes, as one. The verifier's figures, which follow
/// the reason, are left out.
fn end_of(log: &str) -> String {
    let figures = ["verification time ", "stack depth ", "processed "];
    let tells = |line: &&str| !line.is_empty() && !figures.iter().any(|f| line.starts_with(f));
    let lines: Vec<&str> = log.lines().map(str::trim).filter(tells).collect();
    let text = lines[lines.len().saturating_sub(3)..].join(" | ");
    let cut = (text.len().saturating_sub(500)..).find(|at| text.is_char_boundary(*at));
    text[cut.unwrap_or(0)..].to_owned()
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
        assert!(text.contains("slim_fork") && text.contains("invalid"), "{text}");
        assert!(text.len() < 600, "{text}");
    }

    /// The kernel's limit is a million; what Linux 6.18 counts, 6.1 counts about the same.
    #[test]
    fn the_verifier_looks_at_few_instructions() {
        if !nix::unistd::geteuid().is_root() {
            return; // the kernel would not look at the programs
        }
        let bpf = Bpf::load(1 << 20, 1024, true).unwrap();
        for part in &bpf.parts {
            let program: &BtfTracePoint = bpf.ebpf.program(part.name).unwrap().try_into().unwrap();
            let count = program.info().unwrap().verified_instruction_count();
            assert!(count.is_none_or(|n| n < 80_000), "{}: {count:?}", part.name);
        }
    }

    #[test]
    fn of_a_long_log_the_end_is_told() {
        let log =
            "0: (b7) r0 = 0\n".repeat(200_000) + "R1 invalid mem access\nprocessed 9 insns\n\n";
        let last = "0: (b7) r0 = 0 | 0: (b7) r0 = 0 | R1 invalid mem access";
        assert_eq!(end_of(&log), last);
        assert_eq!(end_of(&"é".repeat(1000)).len(), 500);
        assert_eq!(end_of(""), "");
    }
}
