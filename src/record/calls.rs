//! Which calls take paths, where their arguments are, and what each call does with its path.

use crate::model::Arch;

/// What a call does with a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    Open,
    Stat,
    Change,
    Create,
    Remove,
    /// Removes the first path, creates or replaces the second.
    Rename,
    /// Looks at the first path, creates the second.
    Link,
    Exec,
    Connect,
    Bind,
}

/// When a symlink in the last place is followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Follow {
    Always,
    Never,
    /// Unless this bit is in the flags.
    Unless(u64),
    /// Only if this bit is in the flags.
    If(u64),
}

/// A path-taking call. Arguments count from 0; `-1`: none (for a directory: the working directory).
#[derive(Debug, Clone, Copy)]
pub struct PathCall {
    pub name: &'static str,
    /// (directory descriptor, path), first and second path.
    pub paths: [(i8, i8); 2],
    pub flags: i8,
    pub follow: Follow,
    pub op: Op,
}

const NONE: (i8, i8) = (-1, -1);
const AT_NOFOLLOW: u64 = 0x100;
const AT_FOLLOW: u64 = 0x400;
pub const O_CREAT: u64 = 0o100;
pub const O_EXCL: u64 = 0o200;
pub const O_TRUNC: u64 = 0o1000;
pub const O_PATH: u64 = 0o10_000_000;
const O_NOFOLLOW: u64 = 0o400_000;
const MS_BIND: u64 = 0x1000;
const MS_MOVE: u64 = 0x2000;

const fn one(name: &'static str, dir: i8, path: i8, flags: i8, follow: Follow, op: Op) -> PathCall {
    PathCall { name, paths: [(dir, path), NONE], flags, follow, op }
}

const fn two(
    name: &'static str,
    paths: [(i8, i8); 2],
    flags: i8,
    follow: Follow,
    op: Op,
) -> PathCall {
    PathCall { name, paths, flags, follow, op }
}

use Follow::{Always, If, Never, Unless};
use Op::{Bind, Change, Connect, Create, Exec, Link, Open, Remove, Rename, Stat};

/// Every call that takes a path, 32-bit twins included; names that an architecture lacks are passed
/// over. `openat2` keeps its flags in memory: it counts as a plain open.
#[rustfmt::skip]
pub const PATH_CALLS: &[PathCall] = &[
    one("open", -1, 0, 1, Unless(O_NOFOLLOW), Open),
    one("openat", 0, 1, 2, Unless(O_NOFOLLOW), Open),
    one("openat2", 0, 1, -1, Always, Open),
    one("creat", -1, 0, -1, Always, Create),
    one("open_tree", 0, 1, 2, Unless(AT_NOFOLLOW), Stat),
    one("open_tree_attr", 0, 1, 2, Unless(AT_NOFOLLOW), Stat),
    one("stat", -1, 0, -1, Always, Stat),
    one("stat64", -1, 0, -1, Always, Stat),
    one("oldstat", -1, 0, -1, Always, Stat),
    one("lstat", -1, 0, -1, Never, Stat),
    one("lstat64", -1, 0, -1, Never, Stat),
    one("oldlstat", -1, 0, -1, Never, Stat),
    one("newfstatat", 0, 1, 3, Unless(AT_NOFOLLOW), Stat),
    one("fstatat64", 0, 1, 3, Unless(AT_NOFOLLOW), Stat),
    one("statx", 0, 1, 2, Unless(AT_NOFOLLOW), Stat),
    one("access", -1, 0, -1, Always, Stat),
    one("faccessat", 0, 1, -1, Always, Stat),
    one("faccessat2", 0, 1, 3, Unless(AT_NOFOLLOW), Stat),
    one("readlink", -1, 0, -1, Never, Stat),
    one("readlinkat", 0, 1, -1, Never, Stat),
    one("chdir", -1, 0, -1, Always, Stat),
    one("chroot", -1, 0, -1, Always, Stat),
    one("statfs", -1, 0, -1, Always, Stat),
    one("statfs64", -1, 0, -1, Always, Stat),
    one("getxattr", -1, 0, -1, Always, Stat),
    one("lgetxattr", -1, 0, -1, Never, Stat),
    one("listxattr", -1, 0, -1, Always, Stat),
    one("llistxattr", -1, 0, -1, Never, Stat),
    one("getxattrat", 0, 1, 2, Unless(AT_NOFOLLOW), Stat),
    one("listxattrat", 0, 1, 2, Unless(AT_NOFOLLOW), Stat),
    one("file_getattr", 0, 1, 4, Unless(AT_NOFOLLOW), Stat),
    one("inotify_add_watch", -1, 1, 2, Unless(0x0200_0000), Stat),
    one("fanotify_mark", 3, 4, -1, Always, Stat),
    one("name_to_handle_at", 0, 1, 4, If(AT_FOLLOW), Stat),
    one("uselib", -1, 0, -1, Always, Open),
    one("acct", -1, 0, -1, Always, Open),
    one("swapon", -1, 0, -1, Always, Open),
    one("swapoff", -1, 0, -1, Always, Open),
    one("quotactl", -1, 1, -1, Always, Stat),
    two("mount", [(-1, 1), (-1, 0)], 3, Always, Stat),
    one("umount", -1, 0, -1, Always, Stat),
    one("umount2", -1, 0, -1, Always, Stat),
    one("mount_setattr", 0, 1, 2, Unless(AT_NOFOLLOW), Stat),
    one("fspick", 0, 1, 2, Unless(0x2), Stat),
    two("pivot_root", [(-1, 0), (-1, 1)], -1, Always, Stat),
    two("move_mount", [(0, 1), (2, 3)], -1, Always, Stat),
    one("execve", -1, 0, -1, Always, Exec),
    one("execveat", 0, 1, 4, Unless(AT_NOFOLLOW), Exec),
    one("setxattr", -1, 0, -1, Always, Change),
    one("lsetxattr", -1, 0, -1, Never, Change),
    one("removexattr", -1, 0, -1, Always, Change),
    one("lremovexattr", -1, 0, -1, Never, Change),
    one("setxattrat", 0, 1, 2, Unless(AT_NOFOLLOW), Change),
    one("removexattrat", 0, 1, 2, Unless(AT_NOFOLLOW), Change),
    one("file_setattr", 0, 1, 4, Unless(AT_NOFOLLOW), Change),
    one("truncate", -1, 0, -1, Always, Change),
    one("truncate64", -1, 0, -1, Always, Change),
    one("chmod", -1, 0, -1, Always, Change),
    one("fchmodat", 0, 1, -1, Always, Change),
    one("fchmodat2", 0, 1, 3, Unless(AT_NOFOLLOW), Change),
    one("chown", -1, 0, -1, Always, Change),
    one("chown32", -1, 0, -1, Always, Change),
    one("lchown", -1, 0, -1, Never, Change),
    one("lchown32", -1, 0, -1, Never, Change),
    one("fchownat", 0, 1, 4, Unless(AT_NOFOLLOW), Change),
    one("utime", -1, 0, -1, Always, Change),
    one("utimes", -1, 0, -1, Always, Change),
    one("futimesat", 0, 1, -1, Always, Change),
    one("utimensat", 0, 1, 3, Unless(AT_NOFOLLOW), Change),
    one("utimensat_time64", 0, 1, 3, Unless(AT_NOFOLLOW), Change),
    one("mkdir", -1, 0, -1, Never, Create),
    one("mkdirat", 0, 1, -1, Never, Create),
    one("mknod", -1, 0, -1, Never, Create),
    one("mknodat", 0, 1, -1, Never, Create),
    one("symlink", -1, 1, -1, Never, Create),
    one("symlinkat", 1, 2, -1, Never, Create),
    one("rmdir", -1, 0, -1, Never, Remove),
    one("unlink", -1, 0, -1, Never, Remove),
    one("unlinkat", 0, 1, -1, Never, Remove),
    two("rename", [(-1, 0), (-1, 1)], -1, Never, Rename),
    two("renameat", [(0, 1), (2, 3)], -1, Never, Rename),
    two("renameat2", [(0, 1), (2, 3)], -1, Never, Rename),
    two("link", [(-1, 0), (-1, 1)], -1, Never, Link),
    two("linkat", [(0, 1), (2, 3)], 4, If(AT_FOLLOW), Link),
    one("connect", -1, -1, -1, Always, Connect),
    one("bind", -1, -1, -1, Never, Bind),
    one("sendto", -1, -1, -1, Always, Connect),
];

/// Calls with an argument worth recording: (name, its index, its name in profiles).
pub const VALUES: &[(&str, u8, &str)] = &[
    ("socket", 0, "domain"),
    ("socketpair", 0, "domain"),
    ("clone", 0, "flags"),
    ("unshare", 0, "flags"),
    ("prctl", 0, "option"),
    ("arch_prctl", 0, "code"),
    ("personality", 0, "persona"),
    ("ioctl", 1, "request"),
    ("ptrace", 0, "request"),
    ("keyctl", 0, "operation"),
    ("bpf", 0, "cmd"),
];

/// The call `name`, if it takes a path.
pub fn path_call(name: &str) -> Option<&'static PathCall> {
    PATH_CALLS.iter().find(|call| call.name == name)
}

impl PathCall {
    /// Whether a symlink in the last place was followed, by the call's flags.
    pub fn follows(&self, flags: u64) -> bool {
        match self.follow {
            Always => true,
            Never => false,
            Unless(bit) if self.op == Open && flags & (O_CREAT | O_EXCL) == O_CREAT | O_EXCL => {
                debug_assert_eq!(bit, O_NOFOLLOW);
                false
            }
            Unless(bit) => flags & bit == 0,
            If(bit) => flags & bit != 0,
        }
    }

    /// Whether the call's path `which` is one: what mount(2) mounts is often but a word.
    pub fn is_path(&self, which: u32, flags: u64) -> bool {
        self.name != "mount" || which == 0 || flags & (MS_BIND | MS_MOVE) != 0
    }

    /// `struct call` of the BPF source.
    fn descriptor(&self) -> [u8; 8] {
        let up = |index: i8| u8::try_from(index + 1).unwrap_or(0);
        let [(dir0, path0), (dir1, path1)] = self.paths;
        let sockaddr = match self.name {
            "connect" | "bind" => 2,
            "sendto" => 5,
            _ => 0,
        };
        [up(path0), up(path1), up(dir0), up(dir1), up(self.flags), 0, sockaddr, 0]
    }
}

/// The table for the BPF side: index (compat after native) and descriptor.
pub fn descriptors() -> Vec<(u32, [u8; 8])> {
    let mut all = Vec::new();
    for (offset, arch) in [(0, Some(Arch::NATIVE)), (1024, Arch::NATIVE.compat())] {
        let Some(arch) = arch else { continue };
        for (number, name) in arch.calls() {
            let mut descriptor = path_call(name).map_or([0; 8], PathCall::descriptor);
            if let Some((_, index, _)) = VALUES.iter().find(|(call, ..)| *call == name) {
                descriptor[5] = index + 1;
            }
            if descriptor != [0; 8] {
                all.push((offset + number, descriptor));
            }
        }
    }
    all
}

/// An argument as profiles have it: `domain=AF_INET`, `option=38`, `request=0x5401`.
pub fn value_text(name: &str, value: u64) -> String {
    match name {
        "io_uring_enter" => format!("opcode={value}"),
        "socket" | "socketpair" => match family(value) {
            Some(family) => format!("domain={family}"),
            None => format!("domain={value}"),
        },
        // the low byte is the signal at the child's end
        "clone" => format!("flags={:#x}", value & !0xff),
        _ => {
            let key = VALUES.iter().find(|(call, ..)| *call == name).map_or("value", |v| v.2);
            match key {
                "option" | "operation" | "cmd" => format!("{key}={}", value & 0xffff_ffff),
                _ => format!("{key}={:#x}", value & 0xffff_ffff),
            }
        }
    }
}

fn family(value: u64) -> Option<&'static str> {
    Some(match value {
        0 => "AF_UNSPEC",
        1 => "AF_UNIX",
        2 => "AF_INET",
        10 => "AF_INET6",
        16 => "AF_NETLINK",
        17 => "AF_PACKET",
        38 => "AF_ALG",
        40 => "AF_VSOCK",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_a_call_of_some_architecture() {
        let known = |name| [Arch::X86_64, Arch::X86].iter().any(|a| a.call_number(name).is_some());
        let odd: Vec<_> = PATH_CALLS
            .iter()
            .map(|c| c.name)
            .chain(VALUES.iter().map(|v| v.0))
            .filter(|n| !known(n))
            .collect();
        assert_eq!(odd, [""; 0]);
    }

    #[test]
    fn flags_decide_about_the_last_symlink() {
        for (name, flags, want) in [
            ("stat", 0, true),
            ("lstat", 0, false),
            ("newfstatat", 0x100, false),
            ("openat", 0, true),
            ("openat", O_CREAT | O_EXCL, false),
            ("openat", O_CREAT, true),
            ("linkat", 0, false),
            ("linkat", 0x400, true),
            ("fspick", 2, false),
        ] {
            assert_eq!(path_call(name).unwrap().follows(flags), want, "{name} {flags:#x}");
        }
    }

    #[test]
    fn values_read_as_people_write_them() {
        assert_eq!(value_text("socket", 2), "domain=AF_INET");
        assert_eq!(value_text("clone", 0x0120_0011), "flags=0x1200000");
        assert_eq!(value_text("ioctl", 0x5401), "request=0x5401");
    }
}
