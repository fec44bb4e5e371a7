//! System-call numbers and names, by architecture as the kernel's audit interface tells them apart.

use std::fmt;
use std::str::FromStr;

/// An architecture whose calls a container here can make: the native ones and their 32-bit twins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Arch {
    X86_64,
    X86,
    Aarch64,
    Arm,
}

impl Arch {
    /// The architecture slim was built for.
    #[cfg(target_arch = "x86_64")]
    pub const NATIVE: Self = Self::X86_64;
    #[cfg(target_arch = "aarch64")]
    pub const NATIVE: Self = Self::Aarch64;

    /// The key in profiles.
    pub fn name(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::X86 => "x86",
            Self::Aarch64 => "aarch64",
            Self::Arm => "arm",
        }
    }

    /// The name in seccomp JSON (`SCMP_ARCH_…`).
    pub fn scmp(self) -> &'static str {
        match self {
            Self::X86_64 => "SCMP_ARCH_X86_64",
            Self::X86 => "SCMP_ARCH_X86",
            Self::Aarch64 => "SCMP_ARCH_AARCH64",
            Self::Arm => "SCMP_ARCH_ARM",
        }
    }

    /// The kernel's number for it (`AUDIT_ARCH_…`, linux/audit.h), as seccomp hands it out.
    pub fn audit(self) -> u32 {
        match self {
            Self::X86_64 => 0xc000_003e,
            Self::X86 => 0x4000_0003,
            Self::Aarch64 => 0xc000_00b7,
            Self::Arm => 0x4000_0028,
        }
    }

    /// The table that 32-bit compat calls use on this architecture.
    pub fn compat(self) -> Option<Self> {
        match self {
            Self::X86_64 => Some(Self::X86),
            Self::Aarch64 => Some(Self::Arm),
            Self::X86 | Self::Arm => None,
        }
    }

    /// The name of call `number`; `None` for one that slim's table does not know.
    pub fn call_name(self, number: u32) -> Option<&'static str> {
        let number = usize::try_from(number).ok()?;
        match self {
            Self::X86_64 => syscalls::x86_64::Sysno::new(number).map(|call| call.name()),
            Self::X86 => syscalls::x86::Sysno::new(number).map(|call| call.name()),
            Self::Aarch64 => syscalls::aarch64::Sysno::new(number).map(|call| call.name()),
            Self::Arm => syscalls::arm::Sysno::new(number).map(|call| call.name()),
        }
    }

    /// The number of the call `name`; `None` where this architecture has none.
    pub fn call_number(self, name: &str) -> Option<u32> {
        let number = match self {
            Self::X86_64 => syscalls::x86_64::Sysno::from_str(name).ok()?.id(),
            Self::X86 => syscalls::x86::Sysno::from_str(name).ok()?.id(),
            Self::Aarch64 => syscalls::aarch64::Sysno::from_str(name).ok()?.id(),
            Self::Arm => syscalls::arm::Sysno::from_str(name).ok()?.id(),
        };
        u32::try_from(number).ok()
    }

    /// Every call of this architecture: numbers and names, by number.
    pub fn calls(self) -> Vec<(u32, &'static str)> {
        (0..1024).filter_map(|number| Some((number, self.call_name(number)?))).collect()
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_names_agree() {
        assert_eq!(Arch::X86_64.call_number("openat2"), Some(437));
        assert_eq!(Arch::X86_64.call_name(0), Some("read"));
        assert_eq!(Arch::X86.call_name(1), Some("exit"));
        assert_eq!(Arch::X86_64.call_number("no_such"), None);
        for arch in [Arch::X86_64, Arch::X86, Arch::Aarch64, Arch::Arm] {
            assert!(arch.calls().len() > 300);
            for (number, name) in arch.calls() {
                assert_eq!(arch.call_number(name), Some(number), "{arch} {name}");
            }
        }
    }
}
