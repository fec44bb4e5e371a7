//! Mounts made out of sight and put in place whole, by the calls that every kernel since 5.2 has.
//!
//! `mount_setattr(2)`, which gives such a mount its attributes, is younger (Linux 5.12). `fsmount(2)`
//! takes those of a new file system; those of a bind are changed once it is in place. Has no unsafe
//! line; it lives here for the same reason as [`super::mount`].

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, StatVfsMountFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, OpenTreeFlags, fsopen,
};

use super::mount::{MountError, failed, fd_path};

/// A file system to be mounted. Of `attributes` those of a mount count.
#[derive(Debug, Clone)]
pub struct Fresh<'a> {
    /// `tmpfs`, `proc`, …
    pub kind: &'a str,
    pub source: &'a str,
    /// `key` or `key=value`, of the file system itself.
    pub options: Vec<&'a str>,
    pub attributes: MountFlags,
}

/// Mounts a file system at `target`, whose last component may not be a symlink.
///
/// `fsopen(2)`, `fsmount(2)`, `move_mount(2)`: Linux 5.2, `CAP_SYS_ADMIN`.
pub fn fresh(what: &Fresh<'_>, target: &Path) -> Result<(), MountError> {
    let kind = what.kind;
    let opened = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC);
    let fs = failed(opened, || format!("fsopen({kind:?})"))?;
    let source = rustix::mount::fsconfig_set_string(fs.as_fd(), "source", what.source);
    failed(source, || format!("fsconfig({kind}, \"source\", {:?})", what.source))?;
    for option in &what.options {
        let set = match option.split_once('=') {
            Some((key, value)) => rustix::mount::fsconfig_set_string(fs.as_fd(), key, value),
            None => rustix::mount::fsconfig_set_flag(fs.as_fd(), *option),
        };
        failed(set, || format!("fsconfig({kind}, {option:?})"))?;
    }
    let created = rustix::mount::fsconfig_create(fs.as_fd());
    failed(created, || format!("fsconfig({kind}, FSCONFIG_CMD_CREATE)"))?;
    let attributes = of_fsmount(what.attributes);
    let mount = rustix::mount::fsmount(fs.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes);
    let mount = failed(mount, || format!("fsmount({kind}, {attributes:?})"))?;
    attach(&mount, target)
}

/// Binds `source` at `target`, with the mounts below it if `recursive`; the topmost one gets
/// `attributes` beside its own. Symlinks as for [`fresh`].
///
/// `open_tree(2)`, `move_mount(2)`: Linux 5.2, `CAP_SYS_ADMIN`.
pub fn bound(
    source: &Path,
    recursive: bool,
    attributes: MountFlags,
    target: &Path,
) -> Result<(), MountError> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
    let tree = rustix::mount::open_tree(CWD, source, flags);
    let tree = failed(tree, || format!("open_tree({source:?}, {flags:?})"))?;
    attach(&tree, target)?;
    if attributes.is_empty() {
        return Ok(());
    }
    let has = failed(rustix::fs::fstatvfs(&tree), || format!("fstatvfs({target:?})"))?.f_flag;
    let all = MountFlags::BIND | attributes | as_mount_flags(has);
    // By the descriptor, which is the new mount itself whatever lies over it.
    let changed = rustix::mount::mount_remount(fd_path(tree.as_fd()), all, c"");
    failed(changed, || format!("mount({target:?}, MS_REMOUNT|{all:?})"))
}

fn attach(mount: &OwnedFd, target: &Path) -> Result<(), MountError> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    failed(rustix::mount::move_mount(mount.as_fd(), "", CWD, target, flags), || {
        format!("move_mount(…, {target:?})")
    })
}

fn of_fsmount(flags: MountFlags) -> MountAttrFlags {
    const SAME: [(MountFlags, MountAttrFlags); 6] = [
        (MountFlags::RDONLY, MountAttrFlags::MOUNT_ATTR_RDONLY),
        (MountFlags::NOSUID, MountAttrFlags::MOUNT_ATTR_NOSUID),
        (MountFlags::NODEV, MountAttrFlags::MOUNT_ATTR_NODEV),
        (MountFlags::NOEXEC, MountAttrFlags::MOUNT_ATTR_NOEXEC),
        (MountFlags::NODIRATIME, MountAttrFlags::MOUNT_ATTR_NODIRATIME),
        (MountFlags::STRICTATIME, MountAttrFlags::MOUNT_ATTR_STRICTATIME),
    ];
    let all = SAME.into_iter().filter(|(flag, _)| flags.contains(*flag));
    let all: MountAttrFlags = all.map(|(_, attribute)| attribute).collect();
    // Access times are one value there, not flags.
    let noatime = flags.contains(MountFlags::NOATIME) && !flags.contains(MountFlags::STRICTATIME);
    if noatime { all | MountAttrFlags::MOUNT_ATTR_NOATIME } else { all }
}

/// What a remount has to repeat, or it takes it away.
fn as_mount_flags(has: StatVfsMountFlags) -> MountFlags {
    const SAME: [(StatVfsMountFlags, MountFlags); 7] = [
        (StatVfsMountFlags::RDONLY, MountFlags::RDONLY),
        (StatVfsMountFlags::NOSUID, MountFlags::NOSUID),
        (StatVfsMountFlags::NODEV, MountFlags::NODEV),
        (StatVfsMountFlags::NOEXEC, MountFlags::NOEXEC),
        (StatVfsMountFlags::NOATIME, MountFlags::NOATIME),
        (StatVfsMountFlags::NODIRATIME, MountFlags::NODIRATIME),
        (StatVfsMountFlags::RELATIME, MountFlags::RELATIME),
    ];
    SAME.into_iter().filter(|(flag, _)| has.contains(*flag)).map(|(_, flag)| flag).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::mount::in_private;

    /// The options and flags of a mount point, as mountinfo has them (proc_pid_mountinfo(5)).
    fn told(point: &Path) -> (String, String) {
        let text = std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        let is = |line: &&str| line.split(' ').nth(4).map(Path::new) == Some(point);
        let line = text.lines().rfind(is).expect("it is mounted").to_owned();
        let (head, tail) = line.split_once(" - ").unwrap();
        (head.split(' ').nth(5).unwrap().into(), tail.split(' ').nth(2).unwrap().into())
    }

    #[test]
    fn mounts_get_their_attributes_and_binds_keep_theirs() {
        if !nix::unistd::geteuid().is_root() {
            return; // mounting is for root
        }
        let dir = tempfile::tempdir().unwrap();
        let [one, two] = ["one", "two"].map(|name| dir.path().join(name));
        std::fs::create_dir(&one).unwrap();
        std::fs::create_dir(&two).unwrap();
        let attributes = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOATIME;
        let what = Fresh { kind: "tmpfs", source: "slim", options: vec!["size=64k"], attributes };
        let found = in_private(|| {
            fresh(&what, &one)?;
            std::fs::write(one.join("file"), "data").unwrap();
            bound(&one, false, MountFlags::RDONLY, &two)?;
            let refused = std::fs::write(two.join("file"), "other").unwrap_err();
            std::fs::write(one.join("file"), "new").unwrap();
            let text = std::fs::read_to_string(two.join("file")).unwrap();
            Ok::<_, MountError>((told(&one), told(&two), refused.kind(), text))
        });
        let (first, second, refused, text) = found.unwrap().unwrap();
        assert_eq!(first, ("rw,nosuid,nodev,noatime".to_owned(), "rw,size=64k".to_owned()));
        assert_eq!(second.0, "ro,nosuid,nodev,noatime");
        assert_eq!((refused, &*text), (std::io::ErrorKind::ReadOnlyFilesystem, "new"));
    }
}
