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
/// over. `openat2` keeps its flags in memory: a backend that does not read them says 0.
#[rustfmt::skip]
pub const PATH_CALLS: &[PathCall] = &[
    one("open", -1, 0, 1, Unless(O_NOFOLLOW), Open),
    one("openat", 0, 1, 2, Unless(O_NOFOLLOW), Open),
    one("openat2", 0, 1, -1, Unless(O_NOFOLLOW), Open),
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
    one("sendmsg", -1, -1, -1, Always, Connect),
    one("sendmmsg", -1, -1, -1, Always, Connect),
    one("socketcall", -1, -1, -1, Always, Connect),
];

/// Index in [`VALUES`] for values made of several arguments, and for those that count only at times;
/// `enum args` of the BPF source has them one higher.
const SOCKET: u8 = 6;
const SOCKET_OPTION: u8 = 7;
const EXECUTABLE: u8 = 8;
/// The first word of what the first argument points to, which only the BPF side reads, afterwards.
const POINTED: u8 = 9;

/// Calls with arguments worth recording: (name, index of the argument or a way to make a value of
/// several, its name in profiles).
pub const VALUES: &[(&str, u8, &str)] = &[
    ("socket", SOCKET, "domain"),
    ("socketpair", SOCKET, "domain"),
    ("clone", 0, "flags"),
    ("clone3", POINTED, "flags"),
    ("unshare", 0, "flags"),
    ("prctl", 0, "option"),
    ("arch_prctl", 0, "code"),
    ("personality", 0, "persona"),
    ("ioctl", 1, "request"),
    ("fcntl", 1, "cmd"),
    ("fcntl64", 1, "cmd"),
    ("mmap", EXECUTABLE, "prot"),
    ("mmap2", EXECUTABLE, "prot"),
    ("mprotect", EXECUTABLE, "prot"),
    ("pkey_mprotect", EXECUTABLE, "prot"),
    ("setsockopt", SOCKET_OPTION, "level"),
    ("socketcall", 0, "call"),
    ("ptrace", 0, "request"),
    ("keyctl", 0, "operation"),
    ("bpf", 0, "cmd"),
];

/// The key that stands for all values of a call beyond the bound.
pub const OTHERS: &str = "...";

/// The value of a call by its index in [`VALUES`]; `None` where these arguments are not worth one.
pub fn argument(index: u8, args: &[u64; 6]) -> Option<u64> {
    const PROT_EXEC: u64 = 4;
    match index {
        SOCKET => Some(args[0] & 0xffff | (args[1] & 0xf) << 16 | args[2] << 32),
        SOCKET_OPTION => Some(args[1] & 0xffff_ffff | args[2] << 32),
        EXECUTABLE => (args[2] & PROT_EXEC != 0).then_some(args[2] & 0xffff_ffff),
        POINTED => None,
        plain => args.get(usize::from(plain)).map(|value| value & 0xffff_ffff),
    }
}

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
            Unless(O_NOFOLLOW) if flags & (O_CREAT | O_EXCL) == O_CREAT | O_EXCL => false,
            Unless(bit) => flags & bit == 0,
            If(bit) => flags & bit != 0,
        }
    }

    /// Whether the call's path `which` is one: what mount(2) mounts is often but a word.
    pub fn is_path(&self, which: u32, flags: u64) -> bool {
        self.name != "mount" || which == 0 || flags & (MS_BIND | MS_MOVE) != 0
    }

    /// The part of the BPF source's `struct call` that is about paths.
    fn descriptor(&self) -> [u8; 8] {
        let up = |index: i8| u8::try_from(index + 1).unwrap_or(0);
        let [(dir0, path0), (dir1, path1)] = self.paths;
        let flags = if self.name == "openat2" { 0x80 | 3 } else { up(self.flags) };
        [up(path0), up(path1), up(dir0), up(dir1), flags, 0, 0, 0]
    }

    /// The traits in it: a folder that such a call starts from is the next one's too, if the descriptor
    /// is the same.
    fn traits(&self) -> u8 {
        match self.op {
            Rename => RENAMES,
            Open | Stat | Change | Create | Remove if self.paths[0].0 >= 0 => KEEPS,
            _ => 0,
        }
    }
}

/// Traits of a call, as the BPF source has them: it leaves every descriptor and every folder's name as
/// it is; it gives folders other names.
const KEEPS: u8 = 1;
const RENAMES: u8 = 2;

/// Further ones: it moves its task or gives it another place to stand in; it does not return; it may load
/// a seccomp filter; it executes a program.
const STANDS: u8 = 4;
const ENDS: u8 = 8;
const FILTERS: u8 = 16;
const EXECUTES: u8 = 32;

/// Which of the further ones a call has.
fn fate(name: &str) -> u8 {
    match name {
        "chdir" | "fchdir" | "chroot" | "pivot_root" | "unshare" | "setns" => STANDS,
        "exit" | "exit_group" | "reboot" => ENDS,
        "seccomp" | "prctl" => FILTERS,
        "execve" | "execveat" => EXECUTES,
        _ => 0,
    }
}

/// Calls that have no path and keep descriptors, too: what a program does between looks at a folder's
/// files.
const KEEPING: [&str; 5] = ["fstat", "fstat64", "getdents", "getdents64", "read"];

/// The architecture behind an event's number for it.
pub fn arch_of(number: u8) -> Option<Arch> {
    if number == 0 { Some(Arch::NATIVE) } else { Arch::NATIVE.compat() }
}

/// The name of an event's call.
pub fn name_of(arch: u8, number: u32) -> Option<&'static str> {
    arch_of(arch)?.call_name(number)
}

/// Whether the call `name` changes what is mounted where.
pub fn changes_mounts(name: &str) -> bool {
    matches!(name, "mount" | "umount" | "umount2" | "move_mount" | "pivot_root")
}

/// Whether `number` is one of the native calls that execute a program.
pub fn is_exec(number: u32) -> bool {
    matches!(Arch::NATIVE.call_name(number), Some("execve" | "execveat"))
}

/// `enum what` of the BPF source: what else there is to see when a call ends.
fn what(name: &str) -> u8 {
    match name {
        "connect" | "bind" => 1,
        "sendto" => 2,
        "sendmsg" => 3,
        "sendmmsg" => 4,
        "listen" => 5,
        "socketcall" => 6,
        "mmap" | "mmap2" => 7,
        "clone3" => 8,
        "chdir" | "chroot" => 10,
        "pivot_root" => 11,
        name if changes_mounts(name) => 9,
        _ => 0,
    }
}

/// The table for the BPF side: index (compat after native) and descriptor.
pub fn descriptors() -> Vec<(u32, [u8; 8])> {
    let mut all = Vec::new();
    for (offset, arch) in [(0, Some(Arch::NATIVE)), (1024, Arch::NATIVE.compat())] {
        let Some(arch) = arch else { continue };
        for (number, name) in arch.calls() {
            let mut descriptor = path_call(name).map_or([0; 8], PathCall::descriptor);
            if let Some((_, index, _)) = VALUES.iter().find(|(call, ..)| *call == name)
                && *index != POINTED
            {
                descriptor[5] = index + 1;
            }
            descriptor[6] = what(name);
            descriptor[7] = path_call(name).map_or(0, PathCall::traits) | fate(name);
            if KEEPING.contains(&name) {
                descriptor[7] = KEEPS;
            }
            if name == "mmap" && arch == Arch::X86 {
                descriptor[5..7].fill(0); // old_mmap: its arguments are in memory, and nothing uses it
            }
            if descriptor != [0; 8] {
                all.push((offset + number, descriptor));
            }
        }
    }
    all
}

/// A value as profiles have it: `domain=AF_INET,type=SOCK_STREAM,protocol=6`, `option=38`,
/// `request=0x5401`.
pub fn value_text(name: &str, value: u64) -> String {
    let (low, high) = (value & 0xffff_ffff, value >> 32);
    let key = VALUES.iter().find(|(call, ..)| *call == name).map_or("value", |v| v.2);
    match name {
        "io_uring_enter" => format!("opcode={value}"),
        "socket" | "socketpair" => {
            let (domain, kind) = (low & 0xffff, low >> 16);
            let domain = family(domain).map_or_else(|| domain.to_string(), str::to_owned);
            let kind = match kind {
                1 => "SOCK_STREAM".to_owned(),
                2 => "SOCK_DGRAM".to_owned(),
                3 => "SOCK_RAW".to_owned(),
                5 => "SOCK_SEQPACKET".to_owned(),
                other => other.to_string(),
            };
            format!("domain={domain},type={kind},protocol={high}")
        }
        "setsockopt" => format!("level={low},name={high}"),
        // the low byte is the signal at the child's end
        "clone" => format!("flags={:#x}", low & !0xff),
        "clone3" => format!("flags={value:#x}"),
        _ if key == "prot" => {
            let bits = [(1, "PROT_READ"), (2, "PROT_WRITE"), (4, "PROT_EXEC")];
            let named = bits.iter().filter(|(bit, _)| low & bit != 0).map(|(_, name)| *name);
            let rest = (low & !7 != 0).then(|| format!("{:#x}", low & !7));
            let all: Vec<String> = named.map(str::to_owned).chain(rest).collect();
            format!("prot={}", all.join("|"))
        }
        _ => match key {
            "option" | "operation" | "cmd" | "call" => format!("{key}={low}"),
            _ => format!("{key}={low:#x}"),
        },
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
    fn what_takes_a_path_is_notified_beside_perf() {
        use crate::seccomp::Watch;
        // those that send are notified by what they send to, or by filters of slim's own alone; all of
        // the other architecture is notified
        let otherwise = ["sendto", "sendmsg", "sendmmsg", "socketcall"];
        let odd: Vec<_> = PATH_CALLS
            .iter()
            .map(|call| call.name)
            .filter(|name| !otherwise.contains(name) && !Watch::Paths.names_call(name))
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
        let socket = argument(SOCKET, &[2, 0o2_000_001, 6, 0, 0, 0]).unwrap();
        assert_eq!(value_text("socket", socket), "domain=AF_INET,type=SOCK_STREAM,protocol=6");
        let option = argument(SOCKET_OPTION, &[3, 1, 2, 0, 0, 0]).unwrap();
        assert_eq!(value_text("setsockopt", option), "level=1,name=2");
        assert_eq!(argument(EXECUTABLE, &[0, 0, 3, 0, 0, 0]), None);
        assert_eq!(value_text("mmap", 5), "prot=PROT_READ|PROT_EXEC");
        assert_eq!(value_text("fcntl", 4), "cmd=4");
        assert_eq!(value_text("clone", 0x0120_0011), "flags=0x1200000");
        assert_eq!(value_text("ioctl", 0x5401), "request=0x5401");
    }
}
