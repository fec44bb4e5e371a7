//! Seccomp filters with user notification: loading one, and serving its listener (seccomp(2),
//! seccomp_unotify(2)).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

/// One line of classic BPF, as `struct sock_filter` has it.
pub type Line = (u16, u8, u8, u32);

/// `SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV`: Linux 5.19.
const WAIT_KILLABLE: libc::c_ulong = 1 << 5;
const NEW_LISTENER: libc::c_ulong = 1 << 3;
/// `SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP`: Linux 6.6.
const SYNC_WAKE_UP: libc::c_ulong = 1;

/// A call that waits for an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Notice {
    pub id: u64,
    /// The thread, in the reader's pid namespace; 0 if it has no id there.
    pub tid: u32,
    pub number: u32,
    /// `AUDIT_ARCH_…`.
    pub arch: u32,
    pub args: [u64; 6],
}

/// Loads a filter for the calling thread and hands its listener over.
///
/// `hand_over` runs in a thread of its own that the filter does not bind, so it may make any call, also
/// one that the filter notifies; this returns once it has. If it fails, this process is killed: the
/// calls of a filter without a reader fail one and all, `exit_group` too.
///
/// `SECCOMP_FILTER_FLAG_NEW_LISTENER`: Linux 5.0, `CAP_SYS_ADMIN` or no-new-privileges. A signal does
/// not interrupt a call that was noticed (`WAIT_KILLABLE_RECV`) from Linux 5.19 on.
pub fn load_and_hand_over(
    lines: &[Line],
    hand_over: impl FnOnce(BorrowedFd<'_>) -> io::Result<()> + Send,
) -> io::Result<()> {
    // -1: not loaded yet; else the descriptor's number, or -2 - errno
    let state = AtomicI64::new(-1);
    std::thread::scope(|scope| {
        let waiting = std::thread::Builder::new().spawn_scoped(scope, || {
            while state.load(Ordering::Acquire) == -1 {
                std::thread::sleep(Duration::from_micros(20));
            }
            let Ok(number) = i32::try_from(state.load(Ordering::Acquire)) else { return };
            if number < 0 {
                return;
            }
            // SAFETY: the loading thread owns this descriptor and keeps it open until it joins us.
            let listener = unsafe { BorrowedFd::borrow_raw(number) };
            if hand_over(listener).is_err() {
                // SAFETY: kill(2) touches no memory of ours.
                unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
            }
        })?;
        let loaded = load(lines);
        let told = match &loaded {
            Ok(listener) => i64::from(listener.as_raw_fd()),
            Err(error) => -2 - i64::from(error.raw_os_error().unwrap_or(libc::EINVAL)),
        };
        state.store(told, Ordering::Release);
        waiting.join().map_err(|_| io::Error::other("the thread that hands over panicked"))?;
        loaded.map(drop)
    })
}

fn load(lines: &[Line]) -> io::Result<OwnedFd> {
    let mut lines: Vec<libc::sock_filter> =
        lines.iter().map(|&(code, jt, jf, k)| libc::sock_filter { code, jt, jf, k }).collect();
    let len = u16::try_from(lines.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let program = libc::sock_fprog { len, filter: lines.as_mut_ptr() };
    let mut flags = NEW_LISTENER | WAIT_KILLABLE;
    loop {
        // SAFETY: the kernel copies `program` and the `len` lines it points at during the call; both
        // outlive it.
        let rc = unsafe {
            let mode = libc::SECCOMP_SET_MODE_FILTER;
            libc::syscall(libc::SYS_seccomp, mode, flags, &raw const program)
        };
        let error = io::Error::last_os_error();
        match i32::try_from(rc) {
            // SAFETY: the kernel has just made this descriptor for us, and nobody else owns it.
            Ok(fd) if fd >= 0 => return Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
            _ if error.raw_os_error() == Some(libc::EINVAL) && flags & WAIT_KILLABLE != 0 => {
                flags = NEW_LISTENER;
            }
            _ => return Err(error),
        }
    }
}

/// True if a call that was noticed waits for its answer whatever signals come but a deadly one.
///
/// `SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV`, Linux 5.19: known flags without a program are EFAULT,
/// unknown ones EINVAL. A signal that comes before a call was noticed ends it in any case.
pub fn outlasts_signals() -> bool {
    let nothing = std::ptr::null::<libc::sock_fprog>();
    // SAFETY: the kernel is given no program, so it loads nothing and fails with EFAULT at the latest.
    unsafe {
        let (mode, flags) = (libc::SECCOMP_SET_MODE_FILTER, NEW_LISTENER | WAIT_KILLABLE);
        libc::syscall(libc::SYS_seccomp, mode, flags, nothing);
    }
    io::Error::last_os_error().raw_os_error() == Some(libc::EFAULT)
}

/// The reading end of a filter's notifications.
pub struct Listener(OwnedFd);

impl Listener {
    pub fn new(fd: OwnedFd) -> Self {
        // SAFETY: the request takes its argument by value. Before 6.6 it fails with EINVAL, which is
        // well: it only makes the answer cheaper.
        unsafe {
            let request = libc::SECCOMP_IOCTL_NOTIF_SET_FLAGS;
            libc::ioctl(fd.as_raw_fd(), request, SYNC_WAKE_UP);
        }
        Self(fd)
    }

    /// The next call; `None` if a signal took it back meanwhile or its thread died. Waits if there is none: poll before.
    pub fn receive(&self) -> io::Result<Option<Notice>> {
        // SAFETY: all fields are integers, and the kernel demands that they be zero.
        let mut raw: libc::seccomp_notif = unsafe { std::mem::zeroed() };
        // SAFETY: the kernel writes a `struct seccomp_notif` of the size encoded in the request.
        let rc = unsafe {
            libc::ioctl(self.0.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut raw)
        };
        if rc == 0 {
            return Ok(Some(Notice {
                id: raw.id,
                tid: raw.pid,
                number: raw.data.nr.cast_unsigned(),
                arch: raw.data.arch,
                args: raw.data.args,
            }));
        }
        match io::Error::last_os_error() {
            error if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINTR)) => Ok(None),
            error => Err(error),
        }
    }

    /// True if the call still waits: what was read of its process is its own then, and no other's
    /// that took the id over.
    pub fn is_valid(&self, id: u64) -> bool {
        // SAFETY: the kernel reads eight bytes from `id`, which outlives the call.
        let rc = unsafe {
            libc::ioctl(self.0.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_ID_VALID, &raw const id)
        };
        rc == 0
    }

    /// Lets the call go on as if nothing had been (`SECCOMP_USER_NOTIF_FLAG_CONTINUE`, Linux 5.5). A
    /// call whose thread is gone is no error.
    pub fn go_on(&self, id: u64) -> io::Result<()> {
        let flags = u32::try_from(libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE).unwrap_or(1);
        self.answer(libc::seccomp_notif_resp { id, val: 0, error: 0, flags })
    }

    /// Lets the call fail with `errno`.
    pub fn refuse(&self, id: u64, errno: u32) -> io::Result<()> {
        let error = -i32::try_from(errno).unwrap_or(libc::EPERM);
        self.answer(libc::seccomp_notif_resp { id, val: 0, error, flags: 0 })
    }

    fn answer(&self, mut answer: libc::seccomp_notif_resp) -> io::Result<()> {
        // SAFETY: the kernel reads a `struct seccomp_notif_resp` of the size encoded in the request.
        let rc = unsafe {
            libc::ioctl(self.0.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, &raw mut answer)
        };
        if rc == 0 {
            return Ok(());
        }
        match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            error => Err(error),
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Lets the calling thread run before all others, or as early as this process may ask for.
///
/// A signal that comes between a call's notification and its receipt ends the call with EINTR, also
/// one that never fails so (`SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV` holds from the receipt on): the
/// sooner it is received, the better. `sched_setscheduler(2)`: `CAP_SYS_NICE`; without it the shortest
/// slice is asked for, whose owner goes before longer ones when it wakes (`sched_setattr(2)`,
/// `sched_runtime` of SCHED_OTHER: Linux 6.12).
pub fn be_prompt() {
    let priority = libc::sched_param { sched_priority: 1 };
    let policy = libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK;
    // SAFETY: the kernel reads `priority` during the call; 0 is the calling thread. setpriority takes
    // its arguments by value.
    unsafe {
        if libc::sched_setscheduler(0, policy, &raw const priority) == 0
            || libc::setpriority(libc::PRIO_PROCESS, 0, -20) == 0
        {
            return;
        }
    }
    let attributes = Attributes { size: 48, runtime: 100_000, ..Attributes::default() };
    // SAFETY: the kernel reads the `size` bytes that the structure has during the call.
    unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
}

/// `struct sched_attr` of its first version, 48 bytes; times in nanoseconds.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}

/// Reads up to `buffer.len()` bytes at `address` of the thread `tid`; fewer at the end of what is
/// mapped.
///
/// `process_vm_readv(2)`: Linux 3.2, the right to ptrace. One page at a time, so that what lies at the
/// end of a mapping is read whole; with `string`, no page after the one that holds a NUL.
pub fn read_memory(tid: u32, address: u64, buffer: &mut [u8], string: bool) -> io::Result<usize> {
    const PAGE: u64 = 4096;
    let mut done = 0;
    while done < buffer.len() {
        let at = address.wrapping_add(done as u64);
        let piece = usize::try_from(PAGE - at % PAGE).unwrap_or(1).min(buffer.len() - done);
        let local = libc::iovec { iov_base: buffer[done..].as_mut_ptr().cast(), iov_len: piece };
        let address = usize::try_from(at).map_err(|_| io::ErrorKind::InvalidInput)?;
        let remote =
            libc::iovec { iov_base: std::ptr::without_provenance_mut(address), iov_len: piece };
        // SAFETY: the kernel writes at most `piece` bytes to `local`, which has as many; `remote` is
        // an address in another process and never dereferenced here.
        let rc = unsafe {
            let tid = tid.cast_signed();
            libc::process_vm_readv(tid, &raw const local, 1, &raw const remote, 1, 0)
        };
        match usize::try_from(rc) {
            Ok(count) => done += count,
            Err(_) if done > 0 => return Ok(done),
            Err(_) => return Err(io::Error::last_os_error()),
        }
        if string && buffer[..done].contains(&0) {
            break;
        }
    }
    Ok(done)
}

/// Tries a notification on a thread of this process: whether a filter with a listener loads, a call
/// is received, its thread's memory can be read, and it goes on.
///
/// The filter and no-new-privileges stay on that thread and end with it.
pub fn try_notification() -> io::Result<()> {
    // getppid alone is notified: all else this thread does goes unseen
    let lines: [Line; 4] = [
        (0x20, 0, 0, 0),
        (0x15, 0, 1, u32::try_from(libc::SYS_getppid).unwrap_or(0)),
        (0x06, 0, 0, 0x7fc0_0000),
        (0x06, 0, 0, 0x7fff_0000),
    ];
    let word = *b"notified";
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let tried = scope.spawn(move || {
            // SAFETY: prctl(2) with these arguments only sets a flag of this thread.
            if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } != 0 {
                return Err(io::Error::last_os_error());
            }
            load_and_hand_over(&lines, |listener| {
                let listener = listener.try_clone_to_owned()?;
                sender.send(listener).map_err(|_| io::ErrorKind::BrokenPipe.into())
            })?;
            // SAFETY: getppid(2) takes nothing and touches no memory.
            match unsafe { libc::syscall(libc::SYS_getppid, word.as_ptr()) } {
                -1 => Err(io::Error::last_os_error()),
                _ => Ok(()),
            }
        });
        let Ok(listener) = receiver.recv() else {
            return tried.join().unwrap_or_else(|_| Err(io::Error::other("panicked")));
        };
        let listener = Listener::new(listener);
        let notice = listener.receive()?.ok_or(io::ErrorKind::Interrupted)?;
        let mut read = [0; 8];
        let memory = read_memory(notice.tid, notice.args[0], &mut read, false);
        listener.go_on(notice.id)?;
        tried.join().unwrap_or_else(|_| Err(io::Error::other("panicked")))?;
        memory.map(drop)
    })
}
