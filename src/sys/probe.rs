//! Features of the kernel, found by using each once and undoing it.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use aya::programs::{ProgramError, ProgramType};
use aya::sys::BpfHelper;
use nix::sched::CloneFlags;

/// Opens the tracepoint `id` as a perf event of the cgroup `cgroup` on processor 0 and sets `filter`.
///
/// `perf_event_open(2)` with `PERF_FLAG_PID_CGROUP` (Linux 2.6.39; of cgroup v2 where no v1 hierarchy
/// has `perf_event`) and `PERF_EVENT_IOC_SET_FILTER`. Needs `CAP_PERFMON` or `CAP_SYS_ADMIN`.
pub fn perf_tracepoint(id: u64, cgroup: BorrowedFd<'_>, filter: &std::ffi::CStr) -> io::Result<()> {
    const TYPE_TRACEPOINT: u32 = 2;
    const FLAGS: libc::c_ulong = 1 << 2 | 1 << 3; // PERF_FLAG_PID_CGROUP, PERF_FLAG_FD_CLOEXEC
    const SET_FILTER: libc::c_ulong = 0x4008_2406; // _IOW('$', 6, char *)
    // struct perf_event_attr of its first size: type, size, config, sample_period, sample_type,
    // read_format, flags (bit 0: disabled), wakeup_events and bp_type, bp_addr
    let mut attr = [0u64; 8];
    attr[0] = u64::from(TYPE_TRACEPOINT) | (size_of_val(&attr) as u64) << 32;
    attr[1] = id;
    attr[2] = 1;
    attr[5] = 1;
    // SAFETY: the kernel reads as many bytes of `attr` as its size field says, which is its size.
    let fd = unsafe {
        let cgroup = libc::c_long::from(cgroup.as_raw_fd());
        libc::syscall(libc::SYS_perf_event_open, attr.as_ptr(), cgroup, 0, -1, FLAGS)
    };
    let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0).ok_or_else(io::Error::last_os_error)?;
    // SAFETY: `perf_event_open` has just made this descriptor for us, and nobody else holds it.
    let event = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: the kernel only reads the filter, which is NUL-terminated and outlives the call.
    let rc = unsafe { libc::ioctl(event.as_raw_fd(), SET_FILTER as _, filter.as_ptr()) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Has a thread under a filter make a call that notifies, and answers it with "go on".
///
/// `SECCOMP_RET_USER_NOTIF`: Linux 5.0; `SECCOMP_USER_NOTIF_FLAG_CONTINUE`: 5.5. No privilege.
pub fn seccomp_notification() -> io::Result<()> {
    let (say, hear) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            let listener = listen_for_getppid();
            let failed = listener.is_err();
            let _ = say.send(listener);
            if failed {
                return 0;
            }
            // SAFETY: the call takes nothing and cannot fail.
            i64::from(unsafe { libc::getppid() })
        });
        let listener = hear.recv().map_err(|_| io::ErrorKind::BrokenPipe)??;
        let answered = let_one_call_go_on(&listener);
        drop(listener); // an unanswered call would wait for ever
        let got = thread.join().unwrap_or(-1);
        answered?;
        let want = i64::from(std::os::unix::process::parent_id());
        if got == want { Ok(()) } else { Err(io::Error::other("the call was not let through")) }
    })
}

/// Loads a filter into the calling thread, which it keeps until its end.
fn listen_for_getppid() -> io::Result<OwnedFd> {
    let number = u32::try_from(libc::SYS_getppid).expect("a call's number is small");
    let step = |code: u32, jf: u8, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf, k };
    let mut program = [
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0), // the number of the call
        step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, number),
        step(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_USER_NOTIF),
        step(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: prctl takes plain numbers here; it binds this thread alone, as the filter does. The
    // filter and its program outlive the call, which copies them.
    let fd = unsafe {
        if libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 {
            return Err(io::Error::last_os_error());
        }
        let flags = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const filter)
    };
    let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0).ok_or_else(io::Error::last_os_error)?;
    // SAFETY: `seccomp` has just made this descriptor for us, and nobody else holds it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn let_one_call_go_on(listener: &OwnedFd) -> io::Result<()> {
    // SAFETY: both structures are plain numbers, for which zero is a value.
    let (mut call, mut answer): (libc::seccomp_notif, libc::seccomp_notif_resp) =
        unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
    // SAFETY: the structures are the kernel's, of its first and so smallest size, and outlive the
    // calls; the kernel wants the first one zeroed.
    unsafe {
        if libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV as _, &raw mut call)
            != 0
        {
            return Err(io::Error::last_os_error());
        }
        answer.id = call.id;
        answer.flags = libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32;
        if libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND as _, &raw mut answer)
            != 0
        {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Takes a descriptor out of a process, as is done with a listener.
///
/// `pidfd_open(2)`: Linux 5.3; `pidfd_getfd(2)`: 5.6, with the right to ptrace the process.
pub fn pidfd_getfd() -> io::Result<()> {
    let file = File::open("/dev/null")?;
    let flags = rustix::process::PidfdFlags::empty();
    let pidfd = rustix::process::pidfd_open(rustix::process::getpid(), flags)?;
    let flags = rustix::process::PidfdGetfdFlags::empty();
    rustix::process::pidfd_getfd(pidfd, file.as_raw_fd(), flags)?;
    Ok(())
}

/// Makes the namespaces in `flags` for a child that ends at once.
pub fn namespaces(flags: CloneFlags) -> io::Result<()> {
    let mut command = Command::new("/proc/self/exe");
    command.arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let unshare = move || {
        // SAFETY: unshare and its errno are async-signal-safe.
        if unsafe { libc::unshare(flags.bits()) } == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    };
    // SAFETY: the closure runs in the forked child and only makes async-signal-safe calls, see above;
    // an error is returned as a number, without allocation.
    unsafe { command.pre_exec(unshare) };
    command.spawn()?.wait()?;
    Ok(())
}

/// Makes and removes a cgroup of version 2 below `parent`.
pub fn cgroup(parent: &Path) -> io::Result<()> {
    let dir = parent.join(format!("slim-doctor-{}", std::process::id()));
    std::fs::create_dir(&dir)?;
    std::fs::remove_dir(&dir)
}

/// True if tracing programs may call `bpf_loop` (Linux 5.17): a program that does is loaded.
pub fn bpf_loop() -> Result<bool, ProgramError> {
    aya::sys::is_helper_supported(ProgramType::RawTracePoint, BpfHelper::BPF_FUNC_loop)
}

/// Which of `names` are tracepoints that BPF programs with type information can be attached to.
///
/// The kernel finds one by its typedef `btf_trace_NAME`; a name in the strings of the kernel's own BTF
/// is there for that typedef alone.
pub fn tracepoints<'a>(names: &[&'a str]) -> io::Result<Vec<&'a str>> {
    let btf = std::fs::read("/sys/kernel/btf/vmlinux")?;
    let strings: std::collections::HashSet<&[u8]> =
        btf.split(|byte| *byte == 0).filter(|text| text.starts_with(b"btf_trace_")).collect();
    let known = |name: &&&str| strings.contains(format!("btf_trace_{name}").as_bytes());
    Ok(names.iter().filter(known).copied().collect())
}
