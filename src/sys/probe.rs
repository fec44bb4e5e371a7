//! Features of the kernel, found by using each once and undoing it.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use aya::programs::{ProgramError, ProgramType};
use aya::sys::BpfHelper;
use nix::sched::CloneFlags;

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

/// True if the kernel has `mount_setattr(2)` (Linux 5.12): asked for nothing, it refuses as such.
pub fn mount_setattr() -> bool {
    let no_attributes = std::ptr::null::<u8>();
    // SAFETY: the path is a C string, and attributes of no bytes are refused before they are read.
    let result = unsafe {
        libc::syscall(libc::SYS_mount_setattr, -1, c"".as_ptr(), 0, no_attributes, 0usize)
    };
    result == 0 || io::Error::last_os_error().raw_os_error() != Some(libc::ENOSYS)
}

/// True if the kernel makes mounts by descriptors (`fsopen(2)` and its like, Linux 5.2).
pub fn fsopen() -> bool {
    let opened = rustix::mount::fsopen("tmpfs", rustix::mount::FsOpenFlags::FSOPEN_CLOEXEC);
    opened.err() != Some(rustix::io::Errno::NOSYS)
}

/// Makes and removes a cgroup of version 2 below `parent`.
pub fn cgroup(parent: &Path) -> io::Result<()> {
    let dir = parent.join(format!("slim-doctor-{}", std::process::id()));
    std::fs::create_dir(&dir)?;
    std::fs::remove_dir(&dir)
}

/// True if the kernel keeps the programs of seccomp filters as they were loaded: both that and the
/// length of what is asked for here are there for checkpoints only (`CONFIG_CHECKPOINT_RESTORE`).
pub fn filters_kept() -> bool {
    let mut length = 0u32;
    let (what, at) = (libc::PR_SET_MM_MAP_SIZE as libc::c_ulong, std::ptr::from_mut(&mut length));
    // SAFETY: PR_SET_MM_MAP_SIZE writes four bytes to `length`, which outlives the call, and does no more.
    let rc = unsafe { libc::prctl(libc::PR_SET_MM, what, at, 0, 0) };
    rc == 0 && length > 0
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
