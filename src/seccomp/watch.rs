//! Filters that notify a recorder of calls (seccomp_unotify(2)), as programs and merged into JSON.
//!
//! They decide nothing: a call they name goes on as soon as it was looked at, and a filter beside
//! them that refuses it does so first (ERRNO outranks USER_NOTIF, seccomp(2)).

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::model::Arch;

/// Which calls a recorder is to be notified of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Watch {
    /// None: no filter is loaded.
    Nothing,
    /// Those that use paths, those whose arguments are worth recording, and all of the other
    /// architecture. Opens too: fanotify does not tell by which symlinks a file was reached, and a
    /// configuration that is found by one is not found without it.
    Paths,
    /// All but what [`PLAIN_CLONE`] tells of, for the same reason as [`ARGUMENTS`] leave it out.
    AllButClone,
    All,
}

/// The bits of `clone`'s flags that make namespaces (clone(2)): without them a process or a thread is
/// made and no more.
pub(super) const PLAIN_CLONE: u32 = 0x7e02_0000;

/// One line of classic BPF: code, jump if true, jump if false, constant (`struct sock_filter`).
pub type Line = (u16, u8, u8, u32);

/// Calls that use a path.
#[rustfmt::skip]
const PATHS: &[&str] = &[
    "access", "acct", "bind", "chdir", "chmod", "chown", "chown32", "chroot", "connect",
    "creat", "execve", "execveat", "faccessat", "faccessat2", "fanotify_mark", "fchmodat",
    "fchmodat2", "fchownat", "file_getattr", "file_setattr", "fspick", "fstatat64", "futimesat",
    "getxattr", "getxattrat", "inotify_add_watch", "lchown", "lchown32", "lgetxattr", "link",
    "linkat", "listxattr", "listxattrat", "llistxattr", "lremovexattr", "lsetxattr", "lstat",
    "lstat64", "mkdir", "mkdirat", "mknod", "mknodat", "mount", "mount_setattr", "move_mount",
    "name_to_handle_at", "newfstatat", "oldlstat", "oldstat", "open", "open_tree",
    "open_tree_attr", "openat", "openat2", "pivot_root", "quotactl", "readlink", "readlinkat",
    "removexattr", "removexattrat", "rename", "renameat", "renameat2", "rmdir", "setxattr",
    "setxattrat", "stat", "stat64", "statfs", "statfs64", "statx", "swapoff", "swapon",
    "symlink", "symlinkat", "truncate", "truncate64", "umount", "umount2", "unlink", "unlinkat",
    "uselib", "utime", "utimensat", "utimensat_time64", "utimes",
];
/// Rare calls with an argument worth recording, and those that change who a process is. Not `clone`: a
/// shell's SIGCHLD comes just then, and a signal that comes before a notified call was received ends
/// it with EINTR.
#[rustfmt::skip]
const ARGUMENTS: &[&str] = &[
    "arch_prctl", "bpf", "io_uring_setup", "keyctl", "personality", "prctl", "ptrace", "setns",
    "setresuid", "setresuid32", "setreuid", "setreuid32", "setuid", "setuid32", "socket",
    "socketpair", "unshare",
];
/// How most processes and threads are made.
pub(super) const CLONE: &str = "clone";
/// Calls that may name a unix socket's path in memory, which a filter cannot read. Only slim's own
/// runtime can load these: other runtimes hand the listener over by `sendmsg` under the filter.
const MESSAGES: &[&str] = &["sendmsg", "sendmmsg"];

const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
const AND: u16 = 0x54; // BPF_ALU | BPF_AND | BPF_K
const EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const AT_LEAST: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
const RETURN: u16 = 0x06; // BPF_RET | BPF_K
const NOTIFY: u32 = 0x7fc0_0000; // SECCOMP_RET_USER_NOTIF
const ALLOW: u32 = 0x7fff_0000; // SECCOMP_RET_ALLOW
const X32_BIT: u32 = 0x4000_0000;
// offsets in struct seccomp_data, little-endian
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
/// The lower half of the first argument.
const FIRST: u32 = 16;
/// The two halves of the fifth argument.
const ADDRESS: [u32; 2] = [48, 52];

impl Watch {
    /// True if all calls are notified that slim cannot know of otherwise, so that it answers for the
    /// container's filter.
    pub fn is_all(self) -> bool {
        matches!(self, Self::All | Self::AllButClone)
    }

    /// The calls by name; none where all are notified, or nothing is.
    fn names(self) -> BTreeSet<&'static str> {
        match self {
            Self::Nothing | Self::AllButClone | Self::All => BTreeSet::new(),
            Self::Paths => PATHS.iter().chain(ARGUMENTS).copied().collect(),
        }
    }

    /// True if the call `name` is notified whatever its arguments are.
    pub fn names_call(self, name: &str) -> bool {
        match self {
            Self::AllButClone => name != CLONE,
            _ => self == Self::All || self.names().contains(name),
        }
    }

    /// The filter as a program for this machine; `None` if there is nothing to notify.
    ///
    /// Calls of another architecture than the native one are notified all: whoever counts native calls
    /// by their numbers cannot tell them apart.
    pub fn program(self) -> Option<Vec<Line>> {
        let arch = Arch::NATIVE;
        match self {
            Self::Nothing => return None,
            Self::All => return Some(vec![(RETURN, 0, 0, NOTIFY)]),
            Self::AllButClone => {
                return Some(vec![
                    (LOAD, 0, 0, ARCH),
                    (EQUAL, 0, 6, arch.audit()),
                    (LOAD, 0, 0, NUMBER),
                    (EQUAL, 0, 4, arch.call_number(CLONE)?),
                    (LOAD, 0, 0, FIRST),
                    (AND, 0, 0, PLAIN_CLONE),
                    (EQUAL, 0, 1, 0),
                    (RETURN, 0, 0, ALLOW),
                    (RETURN, 0, 0, NOTIFY),
                ]);
            }
            Self::Paths => {}
        }
        let mut lines = vec![
            (LOAD, 0, 0, ARCH),
            (EQUAL, 1, 0, arch.audit()),
            (RETURN, 0, 0, NOTIFY),
            (LOAD, 0, 0, NUMBER),
        ];
        if arch == Arch::X86_64 {
            lines.extend([(AT_LEAST, 0, 1, X32_BIT), (RETURN, 0, 0, NOTIFY)]);
        }
        let names = self.names().into_iter().chain(MESSAGES.iter().copied());
        for number in names.filter_map(|name| arch.call_number(name)) {
            lines.extend([(EQUAL, 0, 1, number), (RETURN, 0, 0, NOTIFY)]);
        }
        if let Some(number) = arch.call_number("sendto") {
            // what send(3) makes has no address, and is what is sent most
            lines.extend([
                (EQUAL, 0, 5, number),
                (LOAD, 0, 0, ADDRESS[0]),
                (EQUAL, 0, 2, 0),
                (LOAD, 0, 0, ADDRESS[1]),
                (EQUAL, 1, 0, 0),
                (RETURN, 0, 0, NOTIFY),
            ]);
        }
        lines.push((RETURN, 0, 0, ALLOW));
        Some(lines)
    }

    /// `linux.seccomp` of a runtime configuration with the same notifications in it, whose listener
    /// the runtime is to hand to `socket`. `profile` is the filter to be kept; `None`: unconfined.
    ///
    /// Only what the profile allows is notified; and [`HANDING_OVER`] is allowed. runc refuses `write` as a notified call, and one that
    /// notifies everything: the narrower set stands in for the wider ones.
    pub fn merged(self, profile: Option<&Value>, socket: &str) -> Option<Value> {
        let watch = match self {
            Self::Nothing => return profile.cloned(),
            _ => Self::Paths,
        };
        let names = watch.names();
        let unconfined = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": []});
        let mut merged = profile.cloned().unwrap_or(unconfined);
        let open = merged["defaultAction"] == "SCMP_ACT_ALLOW";
        let rules = merged["syscalls"].as_array().cloned().unwrap_or_default();
        let mut out: Vec<Value> = Vec::new();
        let mut named = BTreeSet::new();
        let mut handed_over = open;
        for rule in rules {
            let mut listed: Vec<String> = strings(&rule["names"]);
            named.extend(listed.iter().cloned());
            if rule["action"] != "SCMP_ACT_ALLOW" {
                listed.retain(|name| name != HANDING_OVER);
                let action = rule["action"].as_str().unwrap_or_default();
                out.extend(with(&rule, action, listed));
                continue;
            }
            handed_over |= listed.iter().any(|name| name == HANDING_OVER);
            let (seen, rest): (Vec<_>, Vec<_>) =
                listed.into_iter().partition(|name| names.contains(name.as_str()));
            out.extend(with(&rule, "SCMP_ACT_NOTIFY", seen));
            out.extend(with(&rule, "SCMP_ACT_ALLOW", rest));
        }
        if open {
            let rest = names.iter().filter(|name| !named.contains(**name));
            let rest: Vec<String> = rest.map(|name| (*name).to_owned()).collect();
            out.extend(with(&json!({}), "SCMP_ACT_NOTIFY", rest));
        }
        if !handed_over {
            out.extend(with(&json!({}), "SCMP_ACT_ALLOW", vec![HANDING_OVER.to_owned()]));
        }
        merged["syscalls"] = out.into();
        merged["listenerPath"] = socket.into();
        Some(merged)
    }
}

/// What crun calls under the filter only where that has a listener: it waits for the process that hands it
/// over (seen with 1.8.1). Without it a program that never waits for another did not start.
const HANDING_OVER: &str = "wait4";

fn with(rule: &Value, action: &str, names: Vec<String>) -> Option<Value> {
    let mut rule = rule.clone();
    let empty = names.is_empty();
    rule["names"] = names.into();
    rule["action"] = action.into();
    (!empty).then_some(rule)
}

fn strings(list: &Value) -> Vec<String> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a program on a call, as the kernel does.
    fn run(lines: &[Line], arch: u32, number: u32, [first, fifth]: [u64; 2]) -> u32 {
        let (mut at, mut acc) = (0, 0);
        loop {
            let (code, yes, no, k) = lines[at];
            at += 1;
            let jump = |took: bool| usize::from(if took { yes } else { no });
            match code {
                LOAD => {
                    acc = match k {
                        FIRST => first as u32,
                        NUMBER => number,
                        ARCH => arch,
                        48 => fifth as u32,
                        52 => (fifth >> 32) as u32,
                        other => panic!("offset {other}"),
                    }
                }
                AND => acc &= k,
                EQUAL => at += jump(acc == k),
                AT_LEAST => at += jump(acc >= k),
                RETURN => return k,
                other => panic!("code {other}"),
            }
        }
    }

    #[test]
    fn calls_with_paths_and_foreign_calls_are_notified_and_nothing_else() {
        let paths = Watch::Paths.program().unwrap();
        let native = Arch::NATIVE.audit();
        for (name, want) in [
            ("read", ALLOW),
            ("write", ALLOW),
            ("sendto", ALLOW),
            ("sendmsg", NOTIFY),
            ("openat", NOTIFY),
            ("execve", NOTIFY),
            ("statx", NOTIFY),
            ("socket", NOTIFY),
        ] {
            let number = Arch::NATIVE.call_number(name).unwrap();
            assert_eq!(run(&paths, native, number, [0; 2]), want, "{name}");
        }
        let sendto = Arch::NATIVE.call_number("sendto").unwrap();
        for address in [1, 1 << 32, 0x7fff_0000_0000] {
            assert_eq!(run(&paths, native, sendto, [0, address]), NOTIFY, "{address:#x}");
        }
        assert_eq!(run(&paths, native ^ 1, 0, [0; 2]), NOTIFY);
        assert_eq!(Watch::Nothing.program(), None);
    }

    #[test]
    fn a_clone_is_notified_only_for_its_namespaces() {
        let lines = Watch::AllButClone.program().unwrap();
        let native = Arch::NATIVE.audit();
        let clone = Arch::NATIVE.call_number(CLONE).unwrap();
        for (arch, number, flags, want) in [
            (native, clone, 0x0120_0011, ALLOW),  // fork(3)
            (native, clone, 0x003d_0f00, ALLOW),  // pthread_create(3)
            (native, clone, 0x1000_0011, NOTIFY), // CLONE_NEWUSER
            (native, clone + 1, 0, NOTIFY),
            (native ^ 1, clone, 0, NOTIFY),
        ] {
            assert_eq!(run(&lines, arch, number, [flags, 0]), want, "{number} {flags:#x}");
        }
    }

    #[test]
    fn a_merged_profile_notifies_what_it_allowed_and_nothing_more() {
        let profile = json!({
            "defaultAction": "SCMP_ACT_ERRNO",
            "syscalls": [
                {"names": ["read", "stat"], "action": "SCMP_ACT_ALLOW"},
                {"names": ["socket"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 40}]},
                {"names": ["mount", "wait4"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
            ],
        });
        let got = Watch::Paths.merged(Some(&profile), "/s").unwrap();
        let want = json!({
            "defaultAction": "SCMP_ACT_ERRNO",
            "syscalls": [
                {"names": ["stat"], "action": "SCMP_ACT_NOTIFY"},
                {"names": ["read"], "action": "SCMP_ACT_ALLOW"},
                {"names": ["socket"], "action": "SCMP_ACT_NOTIFY", "args": [{"index": 0, "value": 40}]},
                {"names": ["mount"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
                {"names": ["wait4"], "action": "SCMP_ACT_ALLOW"},
            ],
            "listenerPath": "/s",
        });
        assert_eq!(got, want);
        let open = Watch::Paths.merged(None, "/s").unwrap();
        assert!(open["syscalls"][0]["names"].to_string().contains("\"statx\""));
    }
}
