//! perf events: tracepoints of a cgroup's tasks and their forks and ends, read from rings
//! (perf_event_open(2)).

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{Mode, OFlags};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

/// `struct perf_event_attr` as of `PERF_ATTR_SIZE_VER5` (Linux 4.1).
#[repr(C)]
#[derive(Default)]
struct Attr {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup_events: u32,
    bp_type: u32,
    config1: u64,
    config2: u64,
    branch_sample_type: u64,
    sample_regs_user: u64,
    sample_stack_user: u32,
    clockid: i32,
    sample_regs_intr: u64,
    aux_watermark: u32,
    sample_max_stack: u16,
    reserved: u16,
}

const TYPE_SOFTWARE: u32 = 1;
const TYPE_TRACEPOINT: u32 = 2;
const COUNT_SW_DUMMY: u64 = 9;
const SAMPLE_TID: u64 = 1 << 1;
const SAMPLE_TIME: u64 = 1 << 2;
const SAMPLE_RAW: u64 = 1 << 10;
const SAMPLE_REGS_USER: u64 = 1 << 12;
/// `PERF_FORMAT_LOST`: Linux 6.0.
const FORMAT_LOST: u64 = 1 << 4;
// bits of the attribute's bit field
const DISABLED: u64 = 1;
const COMM: u64 = 1 << 9;
const TASK: u64 = 1 << 13;
const SAMPLE_ID_ALL: u64 = 1 << 18;
/// Execs are marked among the changes of a task's name: Linux 3.16.
const COMM_EXEC: u64 = 1 << 24;
const USE_CLOCKID: u64 = 1 << 25;

const FLAG_PID_CGROUP: libc::c_ulong = 4;
const FLAG_FD_CLOEXEC: libc::c_ulong = 8;
const IOC_ENABLE: libc::c_ulong = 0x2400;
const IOC_DISABLE: libc::c_ulong = 0x2401;
const IOC_SET_OUTPUT: libc::c_ulong = 0x2405;
const IOC_SET_FILTER: libc::c_ulong = 0x4008_2406;

const RECORD_LOST: u32 = 2;
const RECORD_COMM: u32 = 3;
const RECORD_EXIT: u32 = 4;
const RECORD_FORK: u32 = 7;
const RECORD_SAMPLE: u32 = 9;
const MISC_COMM_EXEC: u16 = 1 << 13;

/// What is told of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// A tracepoint, by the number in its `id` file.
    Tracepoint(u32),
    /// Forks, execs and ends of tasks.
    Tasks,
}

/// One record. Process ids are those of the pid namespace in which the event was opened; times are
/// nanoseconds of `CLOCK_MONOTONIC`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    Sample {
        pid: u32,
        tid: u32,
        time: u64,
        raw: Vec<u8>,
        abi32: bool,
    },
    /// A new task; a thread if `pid` is `parent`.
    Fork {
        pid: u32,
        parent: u32,
        tid: u32,
        time: u64,
    },
    /// The other threads are gone, the new program is about to run.
    Exec {
        pid: u32,
        time: u64,
    },
    Exit {
        pid: u32,
        tid: u32,
        time: u64,
    },
    Lost(u64),
}

impl Record {
    pub fn time(&self) -> u64 {
        match self {
            Self::Sample { time, .. }
            | Self::Fork { time, .. }
            | Self::Exec { time, .. }
            | Self::Exit { time, .. } => *time,
            Self::Lost(_) => 0,
        }
    }
}

/// An event of one cgroup on one processor.
pub struct PerfEvent {
    fd: OwnedFd,
    counts_losses: bool,
}

impl PerfEvent {
    /// Opens it for the tasks below `cgroup`, not counting yet.
    ///
    /// `PERF_FLAG_PID_CGROUP`: Linux 2.6.39, `CAP_PERFMON` (5.8) or `CAP_SYS_ADMIN`. The cgroup is of
    /// whichever hierarchy has `perf_event`.
    pub fn open(what: What, cgroup: BorrowedFd<'_>, cpu: u32) -> io::Result<Self> {
        let (kind, config) = match what {
            What::Tracepoint(id) => (TYPE_TRACEPOINT, u64::from(id)),
            What::Tasks => (TYPE_SOFTWARE, COUNT_SW_DUMMY),
        };
        let mut attr = Attr {
            kind,
            config,
            size: u32::try_from(size_of::<Attr>()).unwrap_or(112),
            sample_type: SAMPLE_TID | SAMPLE_TIME,
            read_format: FORMAT_LOST,
            flags: DISABLED | SAMPLE_ID_ALL | USE_CLOCKID,
            wakeup_events: 1,
            clockid: libc::CLOCK_MONOTONIC,
            ..Attr::default()
        };
        match what {
            What::Tasks => attr.flags |= TASK | COMM | COMM_EXEC,
            What::Tracepoint(_) => {
                attr.sample_period = 1;
                attr.sample_type |= SAMPLE_RAW | SAMPLE_REGS_USER;
                attr.sample_regs_user = 1; // any one: with it comes the task's ABI
            }
        }
        match open(&attr, cgroup, cpu) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                attr.read_format = 0;
                Ok(Self { fd: open(&attr, cgroup, cpu)?, counts_losses: false })
            }
            other => Ok(Self { fd: other?, counts_losses: true }),
        }
    }

    pub fn enable(&self) -> io::Result<()> {
        self.ioctl(IOC_ENABLE, 0)
    }

    /// Tells of nothing from here on.
    pub fn disable(&self) -> io::Result<()> {
        self.ioctl(IOC_DISABLE, 0)
    }

    /// Lets a tracepoint tell only of what matches; once, for the kernel refuses to replace a filter
    /// (EEXIST).
    pub fn set_filter(&self, filter: &str) -> io::Result<()> {
        let text = CString::new(filter).map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: the kernel copies the NUL-terminated string, which outlives the call.
        let rc = unsafe { libc::ioctl(self.fd.as_raw_fd(), IOC_SET_FILTER, text.as_ptr()) };
        if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Sends this event's records to the ring of `other`, of the same processor.
    pub fn send_to(&self, other: &Self) -> io::Result<()> {
        self.ioctl(IOC_SET_OUTPUT, other.fd.as_raw_fd())
    }

    fn ioctl(&self, request: libc::c_ulong, value: i32) -> io::Result<()> {
        // SAFETY: both requests take their argument by value.
        let rc = unsafe { libc::ioctl(self.fd.as_raw_fd(), request, value) };
        if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Records that found the ring full, where the kernel counts them per event.
    pub fn lost(&self) -> Option<u64> {
        let mut words = [0u8; 16];
        let count = rustix::io::read(&self.fd, &mut words).ok()?;
        let lost = u64::from_ne_bytes(words[8..].try_into().ok()?);
        (self.counts_losses && count == 16).then_some(lost)
    }
}

fn open(attr: &Attr, cgroup: BorrowedFd<'_>, cpu: u32) -> io::Result<OwnedFd> {
    let flags = FLAG_PID_CGROUP | FLAG_FD_CLOEXEC;
    // SAFETY: the kernel reads `attr.size` bytes from `attr`, which has as many; the other arguments
    // are numbers.
    let rc = unsafe {
        let (attr, none) = (std::ptr::from_ref(attr), -1);
        libc::syscall(libc::SYS_perf_event_open, attr, cgroup.as_raw_fd(), cpu, none, flags)
    };
    match i32::try_from(rc) {
        // SAFETY: the kernel has just made this descriptor for us, and nobody else owns it.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The ring of an event and of those sent to it.
pub struct PerfRing {
    fd: OwnedFd,
    base: *mut u8,
    /// Bytes of data, a power of two.
    size: usize,
}

// SAFETY: the mapping belongs to this value alone; it may be used by one thread at a time, whichever.
unsafe impl Send for PerfRing {}

const PAGE: usize = 4096;
// offsets in struct perf_event_mmap_page
const HEAD: usize = 1024;
const TAIL: usize = 1032;

impl PerfRing {
    /// Maps a ring of `size` bytes (a power of two of pages); half of it if the kernel does not give
    /// so much, down to 16 pages.
    pub fn map(event: &PerfEvent, size: usize) -> io::Result<Self> {
        let fd = event.fd.try_clone()?;
        let mut size = size;
        loop {
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            // SAFETY: a new shared mapping of a perf event's pages at an address of the kernel's
            // choice touches no memory of ours.
            let base = unsafe {
                let null = std::ptr::null_mut();
                libc::mmap(null, size + PAGE, protection, libc::MAP_SHARED, fd.as_raw_fd(), 0)
            };
            if base != libc::MAP_FAILED {
                return Ok(Self { fd, base: base.cast(), size });
            }
            let error = io::Error::last_os_error();
            if size <= 16 * PAGE {
                return Err(error);
            }
            size /= 2;
        }
    }

    /// Hands out the records that are there; the count is that of records that made no sense.
    pub fn drain(&mut self, mut sink: impl FnMut(Record)) -> u64 {
        let head = self.word(HEAD).load(Ordering::Acquire);
        let mut tail = self.word(TAIL).load(Ordering::Relaxed);
        let mut nonsense = 0;
        while tail < head {
            let header: [u8; 8] = self.bytes(tail, 8).try_into().unwrap_or_default();
            let kind = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]);
            let misc = u16::from_ne_bytes([header[4], header[5]]);
            let size = u16::from_ne_bytes([header[6], header[7]]);
            if size < 8 {
                nonsense += 1;
                tail = head;
                break;
            }
            let body = self.bytes(tail + 8, usize::from(size) - 8);
            match parse(kind, misc, &body) {
                Some(Some(record)) => sink(record),
                Some(None) => {}
                None => nonsense += 1,
            }
            tail += u64::from(size);
        }
        self.word(TAIL).store(tail, Ordering::Release);
        nonsense
    }

    fn word(&self, offset: usize) -> &AtomicU64 {
        // SAFETY: the first page of the mapping holds aligned 64-bit words at both offsets; it lives as
        // long as `self`, and the kernel shares them by atomic accesses.
        unsafe { &*self.base.add(offset).cast::<AtomicU64>() }
    }

    fn bytes(&self, from: u64, count: usize) -> Vec<u8> {
        let at = usize::try_from(from).unwrap_or(0) & (self.size - 1);
        let first = count.min(self.size - at);
        let mut out = vec![0; count];
        // SAFETY: `at + first` and `count - first` end within the `size` bytes of data behind the first
        // page, and the kernel does not write between tail and head, where they lie.
        unsafe {
            let data = self.base.add(PAGE);
            std::ptr::copy_nonoverlapping(data.add(at), out.as_mut_ptr(), first);
            std::ptr::copy_nonoverlapping(data, out.as_mut_ptr().add(first), count - first);
        }
        out
    }
}

impl Drop for PerfRing {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own, of this length, and no reference into it is left.
        unsafe { libc::munmap(self.base.cast(), self.size + PAGE) };
    }
}

impl AsFd for PerfRing {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A record by its body; `Some(None)` for kinds of no interest.
fn parse(kind: u32, misc: u16, body: &[u8]) -> Option<Option<Record>> {
    let u32_at = |at: usize| Some(u32::from_ne_bytes(body.get(at..at + 4)?.try_into().ok()?));
    let u64_at = |at: usize| Some(u64::from_ne_bytes(body.get(at..at + 8)?.try_into().ok()?));
    Some(Some(match kind {
        RECORD_LOST => Record::Lost(u64_at(8)?),
        RECORD_FORK => {
            Record::Fork { pid: u32_at(0)?, parent: u32_at(4)?, tid: u32_at(8)?, time: u64_at(16)? }
        }
        // what follows the name is the time and who, by SAMPLE_ID_ALL
        RECORD_COMM if misc & MISC_COMM_EXEC != 0 => {
            Record::Exec { pid: u32_at(0)?, time: u64_at(body.len().checked_sub(8)?)? }
        }
        RECORD_EXIT => Record::Exit { pid: u32_at(0)?, tid: u32_at(8)?, time: u64_at(16)? },
        RECORD_SAMPLE => {
            let size = usize::try_from(u32_at(16)?).ok()?;
            let raw = body.get(20..20 + size)?.to_vec();
            let abi = u64_at(20 + size)?;
            Record::Sample {
                pid: u32_at(0)?,
                tid: u32_at(4)?,
                time: u64_at(8)?,
                raw,
                abi32: abi == 1,
            }
        }
        _ => return Some(None),
    }))
}

/// Files of tracefs, whether it is mounted or not.
pub struct Tracefs(OwnedFd);

impl Tracefs {
    /// Where it is mounted, else a mount that only this descriptor holds (`fsmount(2)`, Linux 5.2,
    /// `CAP_SYS_ADMIN`).
    pub fn open() -> io::Result<Self> {
        for at in ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"] {
            if Path::new(at).join("events").is_dir() {
                return Ok(Self(fs::File::open(at)?.into()));
            }
        }
        let context = rustix::mount::fsopen("tracefs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        rustix::mount::fsconfig_create(context.as_fd())?;
        let attributes = MountAttrFlags::empty();
        let flags = FsMountFlags::FSMOUNT_CLOEXEC;
        Ok(Self(rustix::mount::fsmount(context.as_fd(), flags, attributes)?))
    }

    pub fn read(&self, path: &str) -> io::Result<String> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.0, path, flags, Mode::empty())?;
        io::read_to_string(fs::File::from(file))
    }

    /// The number of a tracepoint (`raw_syscalls/sys_enter`).
    pub fn tracepoint(&self, name: &str) -> io::Result<u32> {
        let text = self.read(&format!("events/{name}/id"))?;
        text.trim().parse().map_err(|_| io::ErrorKind::InvalidData.into())
    }
}
