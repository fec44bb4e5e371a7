//! The accesses, what has to be seen of each, and the holes with their reasons.
//!
//! Words are those of `access.c`. A capital stands for a thing with a random name: F, G data files; U
//! one whose name is not UTF-8; P one with a path of 4,095 bytes; L a symlink to F, K one to D; H a second name of
//! F; D a folder and I the data file in it; C one more with such a file; M an empty folder; N, O names that do not exist; X the
//! program; S a script for the interpreter Y; E a program for the ELF interpreter Z; W a 32-bit program.

/// Bytes of the longest path: `PATH_MAX` counts the NUL.
pub const DEEP: usize = 4095;

/// Recorders that run here, with the backends each is made of.
pub const RECORDERS: &[(&str, &[&str])] =
    &[("bpf", &["bpf", "fanotify"]), ("perf", &["perf", "fanotify"]), ("notify", &["notify"])];

/// Why a backend cannot see an access.
pub type Hole = &'static str;

/// What a hole's reason begins with that is slim's and not the kernel's: to be closed, and until then
/// neither demanded nor forbidden.
pub const OPEN: &str = "Not yet: ";

/// The one reason for which a root's recorder may have a hole that nobody fills: the run says so.
pub const RING: Hole = "io_uring works without system calls, so no seccomp filter is asked, and perf's tracepoint of it names the \
opcode but no path. A run that sets one up is marked as incomplete (loss `io_uring_unseen`). (Docker's default filter refuses io_uring.)";

/// One kind of access.
pub struct Case {
    pub access: &'static str,
    pub words: &'static str,
    /// The things that must be in the profile.
    pub wants: &'static str,
    pub holes: &'static [(&'static str, Hole)],
    /// Not in every kernel that slim runs on.
    pub young: bool,
    /// Not in kernels before this one, and in every one from it on.
    pub since: (u32, u32),
    /// fanotify sees it since Linux 6.5 only, see [`QUIET`].
    pub quiet: bool,
    /// Renames a folder of the image, which overlayfs does with `redirect_dir` only.
    pub needs_redirect: bool,
    /// Made while the recorder does not read.
    pub while_stopped: bool,
}

/// Since this version the hook is where a file is opened, whoever opens it.
pub const LOUD: (u32, u32) = (6, 5);
pub const QUIET: Hole = "Before Linux 6.5 the kernel raises no fanotify event for a file that it opens by itself, as swapon \
does, nor for an exec by a descriptor alone.";

const LOOKUP: Hole =
    "The kernel raises no fanotify event for a lookup: only a file that is opened has one.";
const CHANGE: Hole =
    "The kernel raises no fanotify open event when a name or an inode is changed by its path.";
const WALK: Hole = "fanotify names the file that a path led to, not the symlinks on the way.";
const SOCKET: Hole = "Looking for a socket by its path opens nothing.";
const EXEC: Hole = "The kernel opens an ELF interpreter by itself inside execve; no call and no tracepoint names it. The closure \
over PT_INTERP keeps it as well.";

const fn case(
    access: &'static str,
    words: &'static str,
    wants: &'static str,
    holes: &'static [(&'static str, Hole)],
) -> Case {
    Case {
        access,
        words,
        wants,
        holes,
        young: false,
        since: (0, 0),
        quiet: false,
        needs_redirect: false,
        while_stopped: false,
    }
}

const fn opens(access: &'static str, words: &'static str, wants: &'static str) -> Case {
    case(access, words, wants, &[])
}

const fn looks(access: &'static str, words: &'static str) -> Case {
    case(access, words, "F", &[("fanotify", LOOKUP)])
}

const fn changes(access: &'static str, words: &'static str) -> Case {
    case(access, words, "F", &[("fanotify", CHANGE)])
}

const fn makes(access: &'static str, words: &'static str) -> Case {
    case(access, words, "N", &[("fanotify", CHANGE)])
}

const fn young(case: Case) -> Case {
    Case { young: true, ..case }
}

const fn since(since: (u32, u32), case: Case) -> Case {
    Case { since, ..case }
}

const fn quiet(case: Case) -> Case {
    Case { quiet: true, ..case }
}

const fn stopped(case: Case) -> Case {
    Case { while_stopped: true, ..case }
}

#[rustfmt::skip]
pub const CASES: &[Case] = &[
    opens("open", "open F", "F"),
    opens("openat", "openat F", "F"),
    opens("openat, relative to a folder's descriptor", "at D in", "I"),
    opens("openat2", "openat2 F", "F"),
    opens("creat", "creat F", "F"),
    opens("open for writing", "write F", "F"),
    opens("execve", "exec-plain X", "X"),
    opens("execveat, relative to a folder's descriptor", "exec-below X", "X"),
    opens("execveat of a descriptor (fexecve)", "exec-fd X", "X"),
    quiet(opens("execveat of an O_PATH descriptor", "exec-opath X", "X")),
    opens("execve of /proc/self/fd/N", "exec-proc X", "X"),
    opens("execve of a script", "exec-plain S", "S"),
    case("a script's `#!` interpreter", "exec-plain S", "Y", &[]),
    case("a program's ELF interpreter", "exec-plain E", "Z", &[("notify", EXEC), ("perf", EXEC)]),
    opens("a library, opened and mapped executable", "library F", "F"),
    case("open with O_PATH", "opath F", "F", &[("fanotify", LOOKUP)]),
    case("open_tree", "open_tree F", "F", &[("fanotify", LOOKUP)]),
    young(case("open_tree_attr", "open_tree_attr F", "F", &[("fanotify", LOOKUP)])),
    opens("a folder opened and listed", "list D", "D"),
    case("io_uring: openat", "uring-open F", "F", &[("notify", RING), ("perf", RING)]),
    case("io_uring: openat by a kernel worker", "uring-openlater F", "F", &[("notify", RING), ("perf", RING)]),
    case("io_uring: openat2", "uring-openat2 F", "F", &[("notify", RING), ("perf", RING)]),
    case("io_uring: statx", "uring-statx F", "F", &[("notify", RING), ("perf", RING), ("fanotify", LOOKUP)]),
    since((5, 19), case("io_uring: getxattr", "uring-getxattr F", "F", &[("notify", RING), ("perf", RING), ("fanotify", LOOKUP)])),
    case("io_uring: unlinkat", "uring-unlink F", "F", &[("notify", RING), ("perf", RING), ("fanotify", CHANGE)]),
    case("io_uring: renameat", "uring-rename F N", "F", &[("notify", RING), ("perf", RING), ("fanotify", CHANGE)]),
    since((5, 15), case("io_uring: linkat", "uring-link F N", "F", &[("notify", RING), ("perf", RING), ("fanotify", CHANGE)])),
    since((5, 15), case("io_uring: mkdirat", "uring-mkdir N", "N", &[("notify", RING), ("perf", RING), ("fanotify", CHANGE)])),
    since((5, 15), case("io_uring: symlinkat", "uring-symlink N", "N", &[("notify", RING), ("perf", RING), ("fanotify", CHANGE)])),
    since((5, 19), case("io_uring: setxattr", "uring-setxattr F", "F", &[("notify", RING), ("perf", RING), ("fanotify", CHANGE)])),
    case("io_uring: connect to a path", "uring-connect F", "F", &[("notify", RING), ("perf", RING), ("fanotify", SOCKET)]),
    young(case("io_uring: bind to a path", "uring-bind N", "N", &[("notify", RING), ("perf", RING), ("fanotify", SOCKET)])),
    since((6, 0), case("io_uring: send to a path", "uring-send F", "F", &[("notify", RING), ("perf", RING), ("fanotify", SOCKET)])),
    case("io_uring: sendmsg to a path", "uring-sendmsg F", "F", &[("notify", RING), ("perf", RING), ("fanotify", SOCKET)]),
    looks("stat", "stat F"),
    looks("lstat", "lstat F"),
    looks("newfstatat", "newfstatat F"),
    looks("statx", "statx F"),
    looks("access", "access F"),
    looks("faccessat", "faccessat F"),
    looks("faccessat2", "faccessat2 F"),
    case("readlink", "readlink L", "L", &[("fanotify", LOOKUP)]),
    case("readlinkat", "readlinkat L", "L", &[("fanotify", LOOKUP)]),
    case("chdir", "chdir D", "D", &[("fanotify", LOOKUP)]),
    case("chdir by a relative name", "chdir-relative D", "D", &[("fanotify", LOOKUP)]),
    case("a symlink walked through by a relative chdir", "chdir-relative K", "K", &[("fanotify", WALK)]),
    case("chroot", "chroot D", "D", &[("fanotify", LOOKUP)]),
    looks("statfs", "statfs F"),
    looks("getxattr", "getxattr F"),
    looks("lgetxattr", "lgetxattr F"),
    looks("listxattr", "listxattr F"),
    looks("llistxattr", "llistxattr F"),
    young(looks("getxattrat", "getxattrat F")),
    young(looks("listxattrat", "listxattrat F")),
    young(looks("file_getattr", "file_getattr F")),
    looks("inotify_add_watch", "inotify_add_watch F"),
    looks("name_to_handle_at", "name_to_handle_at F"),
    looks("fanotify_mark", "fanotify_mark F"),
    looks("fspick", "fspick F"),
    since((5, 12), looks("mount_setattr", "mount_setattr F")),
    looks("umount2", "umount F"),
    looks("quotactl", "quotactl F"),
    quiet(opens("swapoff", "swapoff F", "F")),
    quiet(opens("swapon", "swapon F", "F")),
    case("a symlink walked through", "open L", "L", &[("fanotify", WALK)]),
    opens("what the symlink leads to", "open L", "F"),
    changes("chmod", "chmod F"),
    changes("fchmodat", "fchmodat F"),
    young(changes("fchmodat2", "fchmodat2 F")),
    changes("chown", "chown F"),
    changes("lchown", "lchown F"),
    changes("fchownat", "fchownat F"),
    changes("utime", "utime F"),
    changes("utimes", "utimes F"),
    changes("futimesat", "futimesat F"),
    changes("utimensat", "utimensat F"),
    changes("truncate", "truncate F"),
    changes("rename", "rename F N"),
    changes("renameat", "renameat F N"),
    changes("renameat2", "renameat2 F N"),
    changes("rename onto a file of the image", "rename G F"),
    changes("unlink", "unlink F"),
    changes("unlinkat", "unlinkat F"),
    case("rmdir", "rmdir D", "D", &[("fanotify", CHANGE)]),
    makes("mkdir", "mkdir N"),
    makes("mkdirat", "mkdirat N"),
    makes("mknod", "mknod N"),
    makes("mknodat", "mknodat N"),
    changes("link", "link F N"),
    changes("linkat", "linkat F N"),
    makes("symlink", "symlink N"),
    makes("symlinkat", "symlinkat N"),
    changes("setxattr", "setxattr F"),
    changes("lsetxattr", "lsetxattr F"),
    changes("removexattr", "removexattr F"),
    changes("lremovexattr", "lremovexattr F"),
    young(changes("setxattrat", "setxattrat F")),
    young(changes("removexattrat", "removexattrat F")),
    young(changes("file_setattr", "file_setattr F")),
    case("unix socket: connect", "socket-connect F", "F", &[("fanotify", SOCKET)]),
    case("unix socket: bind", "socket-bind N", "N", &[("fanotify", SOCKET)]),
    case("unix socket: sendto", "socket-sendto F", "F", &[("fanotify", SOCKET)]),
    case("unix socket: sendmsg", "socket-sendmsg F", "F", &[("fanotify", SOCKET)]),
    case("unix socket: sendmmsg", "socket-sendmmsg F", "F", &[("fanotify", SOCKET)]),
    opens("open after unshare -m", "unshare F", "F"),
    opens("open in a chroot", "chrooted D /in", "I"),
    case("stat in a chroot", "chrooted-stat D /in", "I", &[("fanotify", LOOKUP)]),
    case("open through a bind mount made inside", "bind-open D M", "I", &[]),
    case("stat through a bind mount made inside", "bind-stat D M", "I", &[("fanotify", LOOKUP)]),
    case("stat through a mount made by open_tree and move_mount", "move_mount D M", "I", &[("fanotify", LOOKUP)]),
    case("the source of a bind mount", "bind-only D M", "D", &[("fanotify", LOOKUP)]),
    case("stat by a descriptor that was another folder's, closed since", "other-closed C D", "I", &[("fanotify", LOOKUP)]),
    case("stat by a descriptor that was another folder's, replaced by dup2", "other-dup2 C D", "I", &[("fanotify", LOOKUP)]),
    case("stat by a descriptor that was another folder's, replaced by another process", "other-shared C D", "I", &[("fanotify", LOOKUP)]),
    opens("the first name of a hard link", "open H -- open F", "F"),
    opens("the second name of a hard link", "open F -- open H", "H"),
    opens("open by int 0x80 in a 64-bit program", "compat-open F", "F"),
    looks("stat64 by int 0x80 in a 64-bit program", "compat-stat F"),
    changes("chmod by int 0x80 in a 64-bit program", "compat-chmod F"),
    opens("open by a 32-bit program", "exec-args W F G", "F"),
    case("stat by a 32-bit program", "exec-args W F G", "G", &[("fanotify", LOOKUP)]),
    stopped(opens("open by a process that is dead when its event is read", "dead F", "F")),
    stopped(case("stat by a process that is dead when its event is read", "dead-stat F", "F", &[("fanotify", LOOKUP)])),
    stopped(opens("exec by a process that is dead when its event is read", "exec-plain X", "X")),
    stopped(case("stat through a bind mount of a process that is dead when it is read", "bind-stat D M", "I", &[("fanotify", LOOKUP)])),
    opens("open of a path of 4,095 bytes", "open P", "P"),
    case("stat of a path of 4,095 bytes", "stat P", "P", &[("fanotify", LOOKUP)]),
    case("open of such a path, folder by folder", "walk-down P", "P", &[]),
    opens("open of a name that is not UTF-8", "open U", "U"),
    case("stat of a name that is not UTF-8", "stat U", "U", &[("fanotify", LOOKUP)]),
    opens("open of a file by its new name, after a rename", "renamed F N", "F"),
    Case { needs_redirect: true, ..opens("open by a relative path after its folder was renamed", "folder-renamed D N", "I") },
];
