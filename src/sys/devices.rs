//! The device cgroup of version 2: a small BPF program, made from the rules, that answers each open and
//! mknod of a device. Version 1 has a controller for it, which the runtime drives itself.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

/// One rule of `linux.resources.devices` (OCI runtime specification, config-linux.md). The last one that
/// matches decides; without one the answer is no.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceRule {
    pub allow: bool,
    /// `None` is any kind.
    pub kind: Option<DeviceKind>,
    pub major: Option<u32>,
    pub minor: Option<u32>,
    /// Of [`MKNOD`], [`READ`], [`WRITE`].
    pub access: u32,
}

/// As in `struct bpf_cgroup_dev_ctx` (linux/bpf.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceKind {
    Block = 1,
    Char = 2,
}

pub const MKNOD: u32 = 1;
pub const READ: u32 = 2;
pub const WRITE: u32 = 4;
const ALL: u32 = MKNOD | READ | WRITE;

/// Lets the processes of the cgroup v2 directory `dir` use devices as `rules` say, until it is removed.
///
/// `BPF_PROG_TYPE_CGROUP_DEVICE`: Linux 4.15, `CAP_BPF` and `CAP_NET_ADMIN`, or `CAP_SYS_ADMIN`; not to
/// be had in a user namespace. Programs of the cgroups above are asked as well.
///
/// Before Linux 5.11 a program is memory that the user locks, as are the buffers of perf: if the limit
/// of that is reached, this process's is raised.
pub fn confine(dir: &Path, rules: &[DeviceRule]) -> io::Result<()> {
    let dir = File::open(dir)?;
    let program = compile(rules);
    let loaded = match load(&program) {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
            let all = rustix::process::Rlimit { current: None, maximum: None };
            rustix::process::setrlimit(rustix::process::Resource::Memlock, all)?;
            load(&program)?
        }
        loaded => loaded?,
    };
    attach(&dir, &loaded)
}

/// The registers of the program.
const ANSWER: u8 = 0;
const SCRATCH: u8 = 1; // the context at first
const KIND: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

/// Instructions used: load a word, and, shift right, move (immediate, register), jump if equal or not.
const LOAD: u8 = 0x61;
const AND: u8 = 0x57;
const SHIFT: u8 = 0x77;
const SET: u8 = 0xb7;
const COPY: u8 = 0xbf;
const IF_EQUAL: u8 = 0x15;
const UNLESS_EQUAL: u8 = 0x55;
const EXIT: u8 = 0x95;

/// `struct bpf_insn`: code, registers, offset, immediate.
fn step(code: u8, to: u8, from: u8, offset: i16, value: u32) -> u64 {
    let registers = u64::from(to) | u64::from(from) << 4;
    let offset = u64::from(offset.cast_unsigned());
    u64::from(code) | registers << 8 | offset << 16 | u64::from(value) << 32
}

fn compile(rules: &[DeviceRule]) -> Vec<u64> {
    let mut program = vec![
        step(LOAD, KIND, SCRATCH, 0, 0), // access_type: the access above, the kind in the lower half
        step(LOAD, MAJOR, SCRATCH, 4, 0),
        step(LOAD, MINOR, SCRATCH, 8, 0),
        step(COPY, ACCESS, KIND, 0, 0),
        step(SHIFT, ACCESS, 0, 0, 16),
        step(AND, KIND, 0, 0, 0xffff),
    ];
    // the last rule first, so that the first match decides
    rules.iter().rev().for_each(|rule| program.extend(one(rule)));
    program.extend([step(SET, ANSWER, 0, 0, 0), step(EXIT, 0, 0, 0, 0)]);
    program
}

/// Answers if the rule matches; otherwise goes on after its last instruction.
fn one(rule: &DeviceRule) -> Vec<u64> {
    // an allowing rule must cover all that is asked for, a forbidding one some of it
    let (mask, otherwise) =
        if rule.allow { (!rule.access & ALL, UNLESS_EQUAL) } else { (rule.access, IF_EQUAL) };
    let unless = |register, value| (UNLESS_EQUAL, register, value);
    let tests = [
        rule.kind.map(|kind| unless(KIND, kind as u32)),
        rule.major.map(|major| unless(MAJOR, major)),
        rule.minor.map(|minor| unless(MINOR, minor)),
        Some((otherwise, SCRATCH, 0)),
    ];
    let tests: Vec<_> = tests.into_iter().flatten().collect();
    let mut steps = vec![step(COPY, SCRATCH, ACCESS, 0, 0), step(AND, SCRATCH, 0, 0, mask)];
    for (at, (code, register, value)) in tests.iter().enumerate() {
        let over = i16::try_from(tests.len() - at - 1 + 2).expect("four tests at most");
        steps.push(step(*code, *register, 0, over, *value));
    }
    steps.extend([step(SET, ANSWER, 0, 0, rule.allow.into()), step(EXIT, 0, 0, 0, 0)]);
    steps
}

fn load(program: &[u64]) -> io::Result<OwnedFd> {
    const LOAD_PROGRAM: libc::c_int = 5;
    const CGROUP_DEVICE: u64 = 15;
    let license = c"GPL";
    // the head of union bpf_attr for BPF_PROG_LOAD: type and length, program, licence
    let attr = [
        CGROUP_DEVICE | (program.len() as u64) << 32,
        program.as_ptr() as u64,
        license.as_ptr() as u64,
    ];
    // SAFETY: the kernel reads `attr`, whose size is given, and through it the program, whose length is
    // given, and the licence, which is NUL-terminated; all of them outlive the call.
    let fd =
        unsafe { libc::syscall(libc::SYS_bpf, LOAD_PROGRAM, attr.as_ptr(), size_of_val(&attr)) };
    let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0).ok_or_else(io::Error::last_os_error)?;
    // SAFETY: `bpf` has just made this descriptor for us, and nobody else holds it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn attach(dir: &File, program: &OwnedFd) -> io::Result<()> {
    const ATTACH: libc::c_int = 8;
    const DEVICE: u32 = 6;
    const ALLOW_MULTI: u32 = 2;
    let number = |fd: i32| u32::try_from(fd).expect("an open descriptor");
    let attr = [number(dir.as_raw_fd()), number(program.as_raw_fd()), DEVICE, ALLOW_MULTI];
    // SAFETY: the kernel only reads `attr`, whose size is given and which outlives the call.
    let rc = unsafe { libc::syscall(libc::SYS_bpf, ATTACH, attr.as_ptr(), size_of_val(&attr)) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs `sh -c text` in the cgroup and returns what it printed.
    fn in_cgroup(dir: &Path, text: &str) -> String {
        let text = format!("echo $$ >{}/cgroup.procs && {text}", dir.display());
        let output = std::process::Command::new("sh").args(["-c", &text]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    #[test]
    fn devices_are_used_as_the_rules_say() {
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let root = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2"));
        let Some(root) = root.and_then(|line| line.split(' ').nth(1)) else { return };
        if !nix::unistd::geteuid().is_root() {
            return; // cgroups and programs are for root
        }
        let dir = Path::new(root).join(format!("it-slim-devices-{}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        let rule =
            |allow, kind, major, minor, access| DeviceRule { allow, kind, major, minor, access };
        let char = Some(DeviceKind::Char);
        let confined = confine(
            &dir,
            &[
                rule(false, None, None, None, ALL),
                rule(true, char, None, None, MKNOD),
                rule(true, char, Some(1), Some(3), ALL), // /dev/null
                rule(true, char, Some(1), Some(5), READ), // /dev/zero
            ],
        );
        let ask = "t() { (eval \"$1\") 2>/dev/null && echo -n y || echo -n n; }; \
                   t ': <>/dev/null'; t ': </dev/zero'; t ': >/dev/zero'; t ': </dev/urandom'; \
                   t 'mknod /tmp/slim-it-$$ c 1 8 && rm /tmp/slim-it-$$'; \
                   t 'mknod /tmp/slim-it-$$ b 7 0 && rm /tmp/slim-it-$$'";
        let answers = in_cgroup(&dir, ask);
        std::fs::remove_dir(&dir).unwrap();
        confined.unwrap();
        assert_eq!(answers, "yynnyn");
    }
}
