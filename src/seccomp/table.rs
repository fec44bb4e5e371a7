//! Docker's default filter as data: `profiles/docker-default.json`, made by
//! `scripts/make-docker-default`.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde::Deserialize;

use crate::model::Arch;

/// Docker's default table.
#[derive(Debug, Deserialize)]
pub struct Table {
    /// Version of the engine it was taken from.
    pub version: String,
    always: Vec<String>,
    by_kernel: Vec<ByKernel>,
    by_arch: BTreeMap<String, Vec<String>>,
    by_capability: BTreeMap<String, Vec<String>>,
    by_argument: Vec<ByArgument>,
    refused_with: Vec<RefusedWith>,
    on_purpose: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct ByKernel {
    from: String,
    names: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct ByArgument {
    name: String,
    /// Unless the container has this capability.
    without: Option<String>,
    any: Vec<Comparison>,
}

#[derive(Debug, Deserialize)]
struct RefusedWith {
    name: String,
    errno: u32,
    without: String,
}

/// One argument compared with one value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
pub struct Comparison {
    pub index: u32,
    pub op: Op,
    /// The value; for [`Op::MaskedEq`] the mask.
    pub value: u64,
    /// For [`Op::MaskedEq`] the value under the mask.
    pub value_two: u64,
}

/// The comparisons of libseccomp in use here (seccomp_rule_add(3)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Op {
    Eq,
    Ne,
    MaskedEq,
}

impl Op {
    pub fn scmp(self) -> &'static str {
        match self {
            Self::Eq => "SCMP_CMP_EQ",
            Self::Ne => "SCMP_CMP_NE",
            Self::MaskedEq => "SCMP_CMP_MASKED_EQ",
        }
    }
}

/// What Docker's default does with a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Allowed,
    /// Allowed if one of these holds, else EPERM.
    AllowedIf(Vec<Comparison>),
    /// Refused. The error is what an emitted filter answers: EPERM where Docker refuses on purpose,
    /// ENOSYS where it only does not know the call, so that libc falls back.
    Refused(u32),
}

/// Not permitted: `EPERM`.
pub const EPERM: u32 = 1;
/// No such call: `ENOSYS`, the one error on which libc falls back to an older call.
pub const ENOSYS: u32 = 38;

/// What Docker grants a container that asks for nothing (moby, `oci/caps/defaults.go`).
pub const DEFAULT_CAPS: [&str; 14] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// The table that ships with slim.
pub static DOCKER: LazyLock<Table> = LazyLock::new(|| {
    let text = include_str!("../../profiles/docker-default.json");
    serde_json::from_str(text).expect("profiles/docker-default.json was checked by a test")
});

impl Table {
    /// What happens to `name` in a container with `caps` on a machine of architecture `native`, with
    /// a kernel that slim runs on (5.8 and newer: every `by_kernel` condition holds).
    pub fn verdict(&self, native: Arch, name: &str, caps: &[String]) -> Verdict {
        let has = |cap: &str| caps.iter().any(|c| c == cap);
        if let Some(rule) = self.refused_with.iter().find(|r| r.name == name && !has(&r.without)) {
            return Verdict::Refused(rule.errno);
        }
        let plain = self.always.iter().any(|n| n == name)
            || self.kernel(name).is_some()
            || self.by_arch.get(native.name()).is_some_and(|names| contains(names, name))
            || self.capabilities(name).any(has);
        if plain {
            return Verdict::Allowed;
        }
        let applies = |rule: &&ByArgument| !rule.without.as_deref().is_some_and(has);
        match self.by_argument.iter().filter(applies).find(|rule| rule.name == name) {
            Some(rule) => Verdict::AllowedIf(rule.any.clone()),
            None if self.on_purpose(name) => Verdict::Refused(EPERM),
            None => Verdict::Refused(ENOSYS),
        }
    }

    /// The capabilities each of which makes Docker allow `name`.
    pub fn capabilities(&self, name: &str) -> impl Iterator<Item = &str> {
        let names = self.by_capability.iter();
        names.filter(move |(_, names)| contains(names, name)).map(|(cap, _)| cap.as_str())
    }

    /// The kernel from which on Docker allows `name`, where it asks for one.
    pub fn kernel(&self, name: &str) -> Option<&str> {
        let rule = self.by_kernel.iter().find(|rule| contains(&rule.names, name))?;
        Some(&rule.from)
    }

    fn on_purpose(&self, name: &str) -> bool {
        contains(&self.on_purpose, name) || self.capabilities(name).next().is_some()
    }
}

fn contains(names: &[String], name: &str) -> bool {
    names.iter().any(|n| n == name)
}

/// The comparisons that hold exactly where none of `any` does; they look at the same argument.
/// Docker answers EPERM there, and a filter whose default is ENOSYS must say so itself.
///
/// libseccomp compares an argument once per rule, so "neither of these values" is written as the
/// prefixes that no value has: the lower 32 bits, since the kernel takes these arguments as `int`.
pub fn complement(any: &[Comparison]) -> Vec<Comparison> {
    let at = |op, value, value_two| Comparison { index: any[0].index, op, value, value_two };
    match any {
        [one] => match one.op {
            Op::Eq => vec![at(Op::Ne, one.value, 0)],
            Op::Ne => vec![at(Op::Eq, one.value, 0)],
            // Some bit under the mask differs.
            Op::MaskedEq => (0..64)
                .map(|bit| 1 << bit)
                .filter(|bit| one.value & bit != 0)
                .map(|bit| at(Op::MaskedEq, bit, !one.value_two & bit))
                .collect(),
        },
        values => {
            let values: Vec<u64> = values.iter().map(|c| c.value).collect();
            let mut prefixes = std::collections::BTreeSet::new();
            for value in &values {
                for bit in 0..32 {
                    let mask = u64::from(u32::MAX << bit);
                    let prefix = (value ^ (1 << bit)) & mask;
                    if !values.iter().any(|v| v & mask == prefix) {
                        prefixes.insert((mask, prefix));
                    }
                }
            }
            prefixes.into_iter().map(|(mask, prefix)| at(Op::MaskedEq, mask, prefix)).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holds(c: &Comparison, argument: u64) -> bool {
        match c.op {
            Op::Eq => argument == c.value,
            Op::Ne => argument != c.value,
            Op::MaskedEq => argument & c.value == c.value_two,
        }
    }

    fn caps(more: &[&str]) -> Vec<String> {
        DEFAULT_CAPS.iter().chain(more).map(|c| (*c).to_owned()).collect()
    }

    #[test]
    fn the_table_answers_as_docker_does() {
        let verdict = |name, more: &[&str]| DOCKER.verdict(Arch::X86_64, name, &caps(more));
        for (name, more, want) in [
            ("read", &[][..], Verdict::Allowed),
            ("ptrace", &[], Verdict::Allowed),
            ("arch_prctl", &[], Verdict::Allowed),
            ("chroot", &[], Verdict::Allowed),
            ("clone3", &[], Verdict::Refused(ENOSYS)),
            ("clone3", &["CAP_SYS_ADMIN"], Verdict::Allowed),
            ("mount", &[], Verdict::Refused(EPERM)),
            ("mount", &["CAP_SYS_ADMIN"], Verdict::Allowed),
            ("clone", &["CAP_SYS_ADMIN"], Verdict::Allowed),
            ("io_uring_setup", &["CAP_SYS_ADMIN"], Verdict::Refused(EPERM)),
            ("keyctl", &[], Verdict::Refused(EPERM)),
            ("file_setattr", &[], Verdict::Refused(ENOSYS)),
        ] {
            assert_eq!(verdict(name, more), want, "{name} with {more:?}");
        }
        assert!(matches!(verdict("clone", &[]), Verdict::AllowedIf(_)));
        assert_eq!(
            DOCKER.verdict(Arch::Aarch64, "arch_prctl", &caps(&[])),
            Verdict::Refused(ENOSYS)
        );
    }

    #[test]
    fn a_complement_is_exactly_the_rest() {
        let namespaces = 0x7e02_0000;
        for (name, arguments) in [
            ("clone", vec![0, 0x11, 0x3d_0f00, 0x1000_0000, 0x2_0011, namespaces, u64::MAX]),
            ("socket", vec![0, 1, 2, 16, 39, 40, 41, u64::MAX]),
            (
                "personality",
                (0..32)
                    .flat_map(|b| [1 << b, (1 << b) | 8, !(1 << b) & 0xffff_ffff])
                    .chain([0, 8, 0x2_0000, 0x2_0008, 0x2_0009, 0xffff_ffff])
                    .collect(),
            ),
        ] {
            let Verdict::AllowedIf(any) = DOCKER.verdict(Arch::X86_64, name, &caps(&[])) else {
                panic!("{name} has no condition");
            };
            let rest = complement(&any);
            for argument in arguments {
                let allowed = any.iter().any(|c| holds(c, argument));
                let refused = rest.iter().any(|c| holds(c, argument));
                assert!(allowed != refused, "{name}({argument:#x}): {allowed} {refused}");
            }
        }
    }
}
