//! The backend for root without BPF: perf's tracepoints tell of calls and processes, seccomp
//! notification (`super::notify`) of paths.
//!
//! A tracepoint that tells of every call would cost as much as tracing each. So after the first
//! sighting of a call its number goes into the tracepoint's filter (`tighten`), and steady work is not
//! told of at all; a new phase opens the filter again.

mod calls;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use super::gather::{MAIN, now, phase_number};
use super::notify::{self, Hub};
use super::source::{Control, Ends, Lost, Source, Start};
use super::{RecordError, event::Event, lock};
use crate::model::{LossKind, Phase};
use crate::seccomp::Watch;
use crate::sys::perf::{PerfEvent, PerfRing, Record, Tracefs, What};
use calls::{Calls, Told};

/// Bytes of each processor's ring. What finds it full is counted (`perf_lost`).
const RING_BYTES: usize = 4 << 20;

/// The events of one processor, which share its ring.
struct Cpu {
    number: u32,
    tasks: PerfEvent,
    calls: Tracepoints,
    /// Records that found the ring full, told by events that are closed.
    lost: u64,
}

/// The beginnings and ends of calls, as far as a filter lets them be told of.
struct Tracepoints {
    enter: PerfEvent,
    exit: PerfEvent,
}

/// Whose calls are told of.
struct Watched {
    told: Told,
    cgroup: OwnedFd,
}

impl Watched {
    fn tracepoints(
        &self,
        number: u32,
        tasks: &PerfEvent,
        filters: Option<&(String, String)>,
    ) -> io::Result<Tracepoints> {
        let open = |id, filter: Option<&String>| {
            let event = PerfEvent::open(What::Tracepoint(id), self.cgroup.as_fd(), number)?;
            event.send_to(tasks)?;
            filter.map_or(Ok(()), |filter| event.set_filter(filter))?;
            Ok::<_, io::Error>(event)
        };
        let enter = open(self.told.enter, filters.map(|(enter, _)| enter))?;
        let exit = open(self.told.exit, filters.map(|(_, exit)| exit))?;
        // ends of calls before their beginnings: none is to look like a refused one's
        exit.enable()?;
        enter.enable()?;
        Ok(Tracepoints { enter, exit })
    }
}

impl Cpu {
    /// Puts other filters in force. The kernel takes one for an event once and for all
    /// (kernel/trace/trace_events_filter.c, `ftrace_profile_set_filter`: EEXIST), so others take the
    /// events' place; for a moment both tell.
    fn replace(&mut self, watched: &Watched, filters: &(String, String)) -> io::Result<()> {
        let new = watched.tracepoints(self.number, &self.tasks, Some(filters))?;
        let Tracepoints { enter, exit } = std::mem::replace(&mut self.calls, new);
        exit.disable()?;
        enter.disable()?;
        self.lost += [enter, exit].iter().filter_map(PerfEvent::lost).sum::<u64>();
        Ok(())
    }
}

/// What source and control share.
struct Shared {
    watched: Watched,
    cpus: Mutex<Vec<Cpu>>,
    calls: Mutex<Calls>,
    hub: Arc<Hub>,
    lost: Mutex<u64>,
}

impl Shared {
    /// Puts the filters in force that `calls` has come to.
    fn tighten(&self, calls: &mut Calls) {
        let Some(filters) = calls.new_filters() else { return };
        for cpu in lock(&self.cpus).iter_mut() {
            if let Err(error) = cpu.replace(&self.watched, &filters) {
                // every call is told of as before: dearer, and nothing is missed
                tracing::debug!(%error, ?filters, "a tracepoint's filter was refused");
            }
        }
    }
}

/// Opens and enables the events for the run's cgroup on every processor.
pub(super) fn start(start: &Start<'_>) -> Result<Ends, RecordError> {
    notify::check()?;
    let hub = Hub::new(None)?;
    let (cpus, rings, watched) = open_all(start)?;
    let calls = Mutex::new(Calls::new(watched.told));
    let (cpus, lost) = (Mutex::new(cpus), Mutex::new(0));
    let shared = Arc::new(Shared { watched, cpus, calls, hub, lost });
    let source = Box::new(Events { shared: Arc::clone(&shared), rings, early: Vec::new() });
    Ok(Ends { source, control: Box::new(Steer(shared)) })
}

type Opened = (Vec<Cpu>, Vec<PerfRing>, Watched);

fn open_all(start: &Start<'_>) -> Result<Opened, RecordError> {
    let refused = |why: &str, source: io::Error| RecordError::Host {
        what: "perf",
        why: why.to_owned(),
        way_out: "run slim as root, with CAP_PERFMON or CAP_SYS_ADMIN and CAP_IPC_LOCK, on a kernel with CONFIG_FTRACE_SYSCALLS and CONFIG_CGROUP_PERF; --recorder notify needs neither",
        source: Some(Box::new(source)),
    };
    let tracefs = Tracefs::open().map_err(|e| refused("tracefs cannot be mounted", e))?;
    let id = |name: &str| {
        tracefs
            .tracepoint(name)
            .map_err(|e| refused("the kernel has no raw_syscalls tracepoints", e))
    };
    let told = Told { enter: id("raw_syscalls/sys_enter")?, exit: id("raw_syscalls/sys_exit")? };
    let no_group = |e| refused("the cgroup of perf_event", e);
    let cgroup = match legacy_cgroup(start.path).map_err(no_group)? {
        Some(legacy) => legacy.into(),
        None => start.cgroup()?.as_fd().try_clone_to_owned().map_err(no_group)?,
    };
    let watched = Watched { told, cgroup };
    let (mut cpus, mut rings) = (Vec::new(), Vec::new());
    for number in online().map_err(|e| refused("the processors cannot be counted", e))? {
        let (cpu, ring) = open_cpu(&watched, number)
            .map_err(|e| refused("perf_event_open for the run's cgroup", e))?;
        cpus.push(cpu);
        rings.push(ring);
    }
    Ok((cpus, rings, watched))
}

fn open_cpu(watched: &Watched, number: u32) -> io::Result<(Cpu, PerfRing)> {
    let tasks = PerfEvent::open(What::Tasks, watched.cgroup.as_fd(), number)?;
    let ring = PerfRing::map(&tasks, RING_BYTES)?;
    // forks before calls: no process is to look like one that was moved here
    tasks.enable()?;
    let calls = watched.tracepoints(number, &tasks, None)?;
    Ok((Cpu { number, tasks, calls, lost: 0 }, ring))
}

/// The run's cgroup in the hierarchy of version 1 that has `perf_event`, where there is one: made
/// here, joined by containers when their runtime makes their cgroups below it.
fn legacy_cgroup(run: &Path) -> io::Result<Option<File>> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    let Some(root) = legacy_root(&mounts) else { return Ok(None) };
    let dir = run.file_name().map_or_else(|| root.clone(), |name| root.join(name));
    std::fs::create_dir_all(&dir)?;
    File::open(dir).map(Some)
}

/// The root of the hierarchy that perf takes its cgroups from: the one of version 1 that has
/// `perf_event`, or else that of version 2.
pub(super) fn hierarchy() -> io::Result<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    let unified = || {
        let line = mounts.lines().find(|line| line.contains(" - cgroup2 "))?;
        line.split(' ').nth(4).map(PathBuf::from)
    };
    legacy_root(&mounts).or_else(unified).ok_or_else(|| io::Error::other("no cgroup hierarchy"))
}

/// Mount point of the version-1 hierarchy with `perf_event` (proc_pid_mountinfo(5): the point is field
/// 5, super options come last).
fn legacy_root(mountinfo: &str) -> Option<PathBuf> {
    let found = mountinfo.lines().find_map(|line| {
        let (head, tail) = line.split_once(" - ")?;
        let mut tail = tail.split(' ');
        let (kind, options) = (tail.next()?, tail.nth(1)?);
        let perf = kind == "cgroup" && options.split(',').any(|o| o == "perf_event");
        perf.then(|| head.split(' ').nth(4)).flatten()
    });
    found.map(PathBuf::from)
}

/// The numbers of the processors at work: `0-3,8`.
fn online() -> io::Result<Vec<u32>> {
    Ok(numbers(std::fs::read_to_string("/sys/devices/system/cpu/online")?.trim()))
}

fn numbers(list: &str) -> Vec<u32> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.parse::<u32>().ok()?..=last.parse().ok()?)
    };
    list.split(',').filter_map(range).flatten().collect()
}

struct Events {
    shared: Arc<Shared>,
    rings: Vec<PerfRing>,
    /// Records that came while the rings were read: what they follow from may be in one that was read
    /// before, as the vfork of a child that returns on another processor.
    early: Vec<Record>,
}

impl Source for Events {
    fn descriptors(&self) -> io::Result<Vec<OwnedFd>> {
        let rings = self.rings.iter().map(|ring| ring.as_fd().try_clone_to_owned());
        rings.chain([self.shared.hub.descriptor()]).collect()
    }

    fn drain(&mut self, sink: &mut dyn FnMut(Event)) -> u64 {
        // The hub first: what its events were caused by is in a ring already.
        let asked = self.shared.hub.take();
        let begun = now();
        let (mut records, mut nonsense, mut lost) = (std::mem::take(&mut self.early), 0, 0);
        for ring in &mut self.rings {
            nonsense += ring.drain(|record| match record {
                Record::Lost(number) => lost += number,
                record => records.push(record),
            });
        }
        if lost > 0 {
            *lock(&self.shared.lost) += lost;
        }
        self.early = records.extract_if(.., |record| record.time() > begun).collect();
        if records.is_empty() && asked.is_empty() {
            return nonsense;
        }
        let mut merged: Vec<Mixed> = records.into_iter().map(Mixed::Record).collect();
        merged.extend(asked.into_iter().map(Mixed::Event));
        merged.sort_by_key(Mixed::time);
        let calls = &mut *lock(&self.shared.calls);
        for one in merged {
            match one {
                Mixed::Event(event) => calls.event(event, sink),
                Mixed::Record(record) => calls.record(record, &self.shared.hub, sink),
            }
        }
        self.shared.tighten(calls);
        nonsense
    }

    fn identify(&mut self, pid: u32) -> Vec<Event> {
        self.shared.hub.identify(pid)
    }
}

/// From either side, to be put in order.
enum Mixed {
    Record(Record),
    Event(Event),
}

impl Mixed {
    fn time(&self) -> u64 {
        match self {
            Self::Record(record) => record.time(),
            Self::Event(event) => event.time,
        }
    }
}

struct Steer(Arc<Shared>);

impl Steer {
    /// Lets every call be told of again.
    fn reopen(&self) {
        let calls = &mut *lock(&self.0.calls);
        calls.reopen();
        self.0.tighten(calls);
    }
}

impl Control for Steer {
    fn set_phase(&mut self, phase: Phase) -> Result<(), RecordError> {
        self.0.hub.set_phase(phase);
        lock(&self.0.calls).set_phase(phase_number(phase));
        self.reopen();
        Ok(())
    }

    fn set_role(&mut self, leaf: &Path, role: u8) -> Result<(), RecordError> {
        self.0.hub.set_role(leaf, role);
        if role != MAIN {
            // what the main container did before is told of once more in the name of this work
            self.reopen();
        }
        Ok(())
    }

    fn add_overlay(&mut self, device: u32) -> Result<(), RecordError> {
        self.0.hub.add_overlay(device);
        Ok(())
    }

    fn watch(&self) -> Watch {
        Watch::Paths
    }

    fn add_listener(
        &mut self,
        role: Option<u8>,
        leaf: Option<&Path>,
        listener: OwnedFd,
    ) -> Result<(), RecordError> {
        self.0.hub.add_listener(role, leaf, listener)
    }

    fn lost_listener(&mut self) {
        self.0.hub.lost_listener();
    }

    fn stop(&mut self) {
        self.0.hub.stop();
    }

    fn losses(&mut self) -> Result<Vec<Lost>, RecordError> {
        let cpus = lock(&self.0.cpus);
        let events = |cpu| {
            let Cpu { tasks, calls: Tracepoints { enter, exit }, lost, .. }: &Cpu = cpu;
            [enter, exit, tasks]
                .map(PerfEvent::lost)
                .into_iter()
                .sum::<Option<u64>>()
                .map(|n| n + lost)
        };
        // a record of losses comes with the next record only: the kernel's own count is surer
        let counted: Option<u64> = cpus.iter().map(events).sum();
        let lost = counted.unwrap_or(0).max(*lock(&self.0.lost));
        let mut losses = self.0.hub.losses();
        losses.push((LossKind::PerfLost, lost, "records found perf's ring full"));
        Ok(losses)
    }
}

/// Whether this host lets the backend work, found by trying.
///
/// # Errors
/// Why not, with the way out.
pub(super) fn check() -> Result<(), RecordError> {
    notify::check()?;
    let no_cgroup = |source| RecordError::NoCgroup { path: "/".into(), source };
    let opened = hierarchy().and_then(File::open);
    let cgroup = opened.map_err(|e| no_cgroup(Some(e)))?;
    // the root of a hierarchy stands in for a run's cgroup: the same rights, and nothing is left
    open_all(&Start { cgroup: Some(&cgroup), path: Path::new(""), family: &[], filter: None })
        .map(drop)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn the_hierarchy_of_perf_event_is_found_by_its_options() {
        let text = "25 24 0:21 / /sys/fs/cgroup/memory rw shared:3 - cgroup cgroup rw,memory\n\
                    26 24 0:23 / /sys/fs/cgroup/perf_event rw - cgroup cgroup rw,perf_event\n";
        assert_eq!(legacy_root(text), Some("/sys/fs/cgroup/perf_event".into()));
        assert_eq!(legacy_root("26 24 0:22 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"), None);
    }

    /// A process that signals itself and asks for its mask without end, in a cgroup of its own.
    struct Busy(std::process::Child, PathBuf);

    impl Busy {
        fn start() -> Self {
            let group = hierarchy().unwrap().join(format!("slim-test-{}", std::process::id()));
            std::fs::create_dir_all(&group).unwrap();
            let script = "echo $$ > \"$0/cgroup.procs\"; while :; do kill -0 $$; umask; done";
            let mut command = std::process::Command::new("sh");
            command.args(["-c", script]).arg(&group).stdout(std::process::Stdio::null());
            Self(command.spawn().unwrap(), group)
        }
    }

    impl Drop for Busy {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
            while std::fs::remove_dir(&self.1).is_err_and(|e| e.raw_os_error() == Some(libc::EBUSY))
            {
            }
        }
    }

    /// How often calls are told of, by number, once what was told before is read.
    fn told(rings: &mut [PerfRing]) -> HashMap<u64, u32> {
        let mut told = HashMap::new();
        for keep in [false, true] {
            std::thread::sleep(std::time::Duration::from_millis(50));
            let mut record = |record| {
                let Record::Sample { raw, .. } = record else { return };
                let number = u64::from_ne_bytes(raw[8..16].try_into().unwrap());
                *told.entry(number).or_default() += u32::from(keep);
            };
            for ring in rings.iter_mut() {
                ring.drain(&mut record);
            }
        }
        told.retain(|_, count| *count > 0);
        told
    }

    #[test]
    fn a_filter_gives_way_to_a_tighter_one_and_to_none() {
        if !nix::unistd::geteuid().is_root() {
            return; // perf takes cgroups from root only
        }
        let busy = Busy::start();
        let group = File::open(&busy.1).unwrap();
        let start = Start { cgroup: Some(&group), path: &busy.1, family: &[], filter: None };
        let (mut cpus, mut rings, watched) = open_all(&start).unwrap();
        let (kill, umask) = (62, 95); // their numbers on x86_64
        for (filter, wanted) in
            [("id!=62", [false, true]), ("id!=62&&id!=95", [false, false]), ("id>=0", [true, true])]
        {
            let filters = (filter.to_owned(), filter.to_owned());
            cpus.iter_mut().for_each(|cpu| cpu.replace(&watched, &filters).unwrap());
            let told = told(&mut rings);
            assert_eq!([kill, umask].map(|number| told.contains_key(&number)), wanted, "{told:?}");
        }
    }

    #[test]
    fn lists_of_processors_are_read() {
        assert_eq!(numbers("0-2,5"), [0, 1, 2, 5]);
        assert_eq!(numbers("0"), [0]);
    }
}
