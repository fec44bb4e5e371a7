//! Mounts of the cell: overlays of any number of layers, bind mounts, a private tree.
//!
//! All of it needs `CAP_SYS_ADMIN` and is meant for a mount namespace of one's own. Has no unsafe
//! line; it lives here because it is system calls with their kernel versions and nothing else.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags,
    UnmountFlags,
};

use super::userns;

/// A mount call that failed, as strace would print it.
#[derive(Debug, thiserror::Error)]
#[error("{call}")]
pub struct MountError {
    /// The call with the arguments that matter.
    pub call: String,
    pub source: std::io::Error,
}

type Result<T> = std::result::Result<T, MountError>;

pub(super) fn failed<T>(
    result: std::result::Result<T, Errno>,
    call: impl FnOnce() -> String,
) -> Result<T> {
    result.map_err(|errno| MountError { call: call(), source: errno.into() })
}

/// Makes every mount of this namespace private, so that nothing made here shows elsewhere.
pub fn make_all_private() -> Result<()> {
    let flags = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    failed(rustix::mount::mount_change("/", flags), || "mount(\"/\", MS_REC|MS_PRIVATE)".into())
}

/// Runs `work` on a thread in a mount namespace of its own, whose mounts show nowhere else and end
/// with it.
///
/// `unshare(2)` with `CLONE_NEWNS`: `CAP_SYS_ADMIN`.
pub fn in_private<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).map_err(|errno| {
                MountError { call: "unshare(CLONE_NEWNS)".into(), source: errno.into() }
            })?;
            make_all_private()?;
            Ok(work())
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// The mount namespace that this process was started in, once it has left it.
static HOST: OnceLock<OwnedFd> = OnceLock::new();

/// Moves the calling thread (and what it starts from now on) into a mount namespace of its own, whose
/// mounts are gone with the process; once, later calls do nothing.
///
/// `unshare(2)` with `CLONE_NEWNS`: the other threads stay where they are, so this belongs on the main
/// thread before it starts others that matter. Mounts made on the host still arrive here.
pub fn leave_host_namespace() -> Result<()> {
    if HOST.get().is_some() {
        return Ok(());
    }
    let path = "/proc/thread-self/ns/mnt";
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let host = failed(rustix::fs::open(path, flags, Mode::empty()), || format!("open({path:?})"))?;
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).map_err(|errno| MountError {
        call: "unshare(CLONE_NEWNS)".into(),
        source: errno.into(),
    })?;
    let slave = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    failed(rustix::mount::mount_change("/", slave), || "mount(\"/\", MS_REC|MS_SLAVE)".into())?;
    let _ = HOST.set(host);
    Ok(())
}

/// The mount namespace that this process left; `None` if it is still there.
pub fn host_namespace() -> Option<BorrowedFd<'static>> {
    HOST.get().map(AsFd::as_fd)
}

/// Mounts the cgroup v2 hierarchy at `target`.
pub fn cgroup2(target: &Path) -> Result<()> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    failed(rustix::mount::mount("none", target, "cgroup2", flags, None), || {
        format!("mount(\"none\", {target:?}, \"cgroup2\")")
    })
}

/// Mounts a fresh procfs, of the caller's pid namespace, at `target`.
pub fn proc(target: &Path) -> Result<()> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let result = rustix::mount::mount("proc", target, "proc", flags, None);
    failed(result, || format!("mount(\"proc\", {target:?}, \"proc\")"))
}

/// Mounts an empty tmpfs at `target`.
pub fn tmpfs(target: &Path) -> Result<()> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    failed(rustix::mount::mount("slim", target, "tmpfs", flags, Some(c"mode=0755")), || {
        format!("mount(\"slim\", {target:?}, \"tmpfs\")")
    })
}

/// Binds what `source` is open on (a namespace, a file, a directory) at `target`.
pub fn bind_fd(source: BorrowedFd<'_>, target: &Path) -> Result<()> {
    let path = fd_path(source);
    failed(rustix::mount::mount_bind(path.as_path(), target), || {
        format!("mount({path:?}, {target:?}, MS_BIND)")
    })
}

/// Detaches the mount at `target`, at once for new lookups, for users when the last one is gone.
pub fn detach(target: &Path) -> Result<()> {
    failed(rustix::mount::unmount(target, UnmountFlags::DETACH), || {
        format!("umount2({target:?}, MNT_DETACH)")
    })
}

/// Mounts `lowers` (lowest first) with `upper` and `work` at `target`.
///
/// Layers are named one by one (`lowerdir+`, Linux 6.5) through descriptors, because the option
/// string of older kernels ends at a page and one value at 255 bytes. Before 6.5 the descriptors'
/// numbers, relative to `/proc/self/fd`, keep that string short: some 600 layers.
///
/// `index`, `redirect_dir` and `metacopy` are off: a second hard-link name must raise its own
/// fanotify event, and the upper directory must name every change plainly. In a user namespace the
/// overlay's own marks are `user.overlay.` attributes (`userxattr`, Linux 5.11): the others are the
/// host's root's.
pub fn overlay(lowers: &[PathBuf], upper: &Path, work: &Path, target: &Path) -> Result<()> {
    let open = |path: &Path| {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        failed(rustix::fs::open(path, flags, Mode::empty()), || format!("open({path:?})"))
    };
    let lowers = lowers.iter().map(|path| open(path)).collect::<Result<Vec<_>>>()?;
    let (upper, work) = (open(upper)?, open(work)?);
    if OLD_WAY.load(Ordering::Relaxed) {
        return overlay_by_mount(&lowers, &upper, &work, target);
    }
    match overlay_by_fsconfig(&lowers, &upper, &work, target) {
        Err(error) if is_too_old(&error) => {
            let mounted = overlay_by_mount(&lowers, &upper, &work, target);
            OLD_WAY.store(mounted.is_ok(), Ordering::Relaxed);
            mounted
        }
        result => result,
    }
}

/// The old way worked where the new one did not: asking the new one again would only write another
/// line about it to the kernel's log.
static OLD_WAY: AtomicBool = AtomicBool::new(false);

/// `redirect_dir=off` still follows redirects that are there, which `userxattr` refuses.
fn common_options() -> [(&'static str, &'static str); 3] {
    let redirect = if userns::inside() { "nofollow" } else { "off" };
    [("index", "off"), ("redirect_dir", redirect), ("metacopy", "off")]
}

const USER_XATTR: &str = "userxattr";

/// True if the kernel may only not know the way: one before 5.2 has no fsopen, and one before 6.5 no
/// `lowerdir+`. That one takes any option, and refuses the whole (EINVAL) when the mount is created; as
/// a layer that cannot be does, on any kernel, so the other way is to be asked then.
fn is_too_old(error: &MountError) -> bool {
    let refused = error.source.raw_os_error() == Some(libc::EINVAL);
    error.call.starts_with("fsconfig") && refused
        || error.call.starts_with("fsopen") && error.source.raw_os_error() == Some(libc::ENOSYS)
}

fn overlay_by_fsconfig(
    lowers: &[OwnedFd],
    upper: &OwnedFd,
    work: &OwnedFd,
    target: &Path,
) -> Result<()> {
    let fs = failed(rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC), || {
        "fsopen(\"overlay\")".into()
    })?;
    let set = |key: &str, value: &OsStr| {
        failed(rustix::mount::fsconfig_set_string(fs.as_fd(), key, value), || {
            format!("fsconfig(\"{key}\", {value:?})")
        })
    };
    for (key, value) in common_options() {
        set(key, value.as_ref())?;
    }
    if userns::inside() {
        failed(rustix::mount::fsconfig_set_flag(fs.as_fd(), USER_XATTR), || {
            format!("fsconfig(\"{USER_XATTR}\")")
        })?;
    }
    // The kernel wants the topmost layer first.
    for lower in lowers.iter().rev() {
        set("lowerdir+", fd_path(lower.as_fd()).as_os_str())?;
    }
    set("upperdir", fd_path(upper.as_fd()).as_os_str())?;
    set("workdir", fd_path(work.as_fd()).as_os_str())?;
    failed(rustix::mount::fsconfig_create(fs.as_fd()), || {
        format!("fsconfig(overlay of {} layers, FSCONFIG_CMD_CREATE)", lowers.len())
    })?;
    let flags = FsMountFlags::FSMOUNT_CLOEXEC;
    let mount = failed(rustix::mount::fsmount(fs.as_fd(), flags, MountAttrFlags::empty()), || {
        "fsmount(overlay)".into()
    })?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    failed(rustix::mount::move_mount(mount.as_fd(), "", CWD, target, flags), || {
        format!("move_mount(overlay, {target:?})")
    })
}

fn overlay_by_mount(
    lowers: &[OwnedFd],
    upper: &OwnedFd,
    work: &OwnedFd,
    target: &Path,
) -> Result<()> {
    let numbers: Vec<String> = lowers.iter().rev().map(|fd| fd.as_raw_fd().to_string()).collect();
    let mut options = format!(
        "lowerdir={},upperdir={},workdir={}",
        numbers.join(":"),
        upper.as_raw_fd(),
        work.as_raw_fd()
    );
    for (key, value) in common_options() {
        write!(options, ",{key}={value}").expect("a string takes all");
    }
    if userns::inside() {
        write!(options, ",{USER_XATTR}").expect("a string takes all");
    }
    let before = std::env::current_dir().ok();
    let target = std::path::absolute(target).unwrap_or_else(|_| target.to_path_buf());
    failed(rustix::process::chdir("/proc/self/fd"), || "chdir(\"/proc/self/fd\")".into())?;
    let data = std::ffi::CString::new(options).expect("digits and words");
    let result =
        rustix::mount::mount("overlay", &target, "overlay", MountFlags::empty(), data.as_c_str());
    if let Some(before) = before {
        let _ = rustix::process::chdir(before);
    }
    failed(result, || format!("mount(overlay of {} layers, {target:?})", lowers.len()))
}

/// The path by which this process reaches what `fd` is open on.
pub fn fd_path(fd: BorrowedFd<'_>) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The way of kernels before 6.5, which this machine's kernel takes as well.
    #[test]
    fn the_older_way_mounts_an_overlay_too() {
        if !nix::unistd::geteuid().is_root() {
            return; // mounting is for root
        }
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let mounted = in_private(|| {
            tmpfs(dir.path())?;
            for name in ["one", "two", "upper", "work", "root"] {
                std::fs::create_dir(at(name)).unwrap();
            }
            for (file, text) in [("one/a", "one"), ("two/a", "two"), ("one/b", "one")] {
                std::fs::write(at(file), text).unwrap();
            }
            let open = |name: &str| -> OwnedFd { std::fs::File::open(at(name)).unwrap().into() };
            let lowers = [open("one"), open("two")];
            overlay_by_mount(&lowers, &open("upper"), &open("work"), &at("root"))?;
            let read = |name: &str| std::fs::read_to_string(at("root").join(name)).unwrap();
            Ok::<_, MountError>((read("a"), read("b")))
        });
        let mounted = mounted.unwrap().map_err(|error| format!("{error}: {}", error.source));
        assert_eq!(mounted.unwrap(), ("two".to_owned(), "one".to_owned()));
    }
}
