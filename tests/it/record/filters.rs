//! Random seccomp filters against the recorder, which asks a task's filters again to tell a call that they
//! refused from one that the kernel failed. Calls are made under drawn filters of every instruction that
//! seccomp takes; what each filter says to a call is worked out here a second time, held against what the
//! kernel made of it, and against the profile.
//!
//! `SLIM_FILTERS=N` draws N recordings instead of two; `SLIM_FILTERS_FROM` is the first seed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use nix::errno::Errno;
use slim::model::Arch;

use super::{Scene, tool};
use crate::drawn::Dice;

/// Calls that do nothing, whatever their arguments: without open descriptors, valid addresses, children or keys.
#[rustfmt::skip]
const CALLS: &[&str] = &[
    "getpid", "getppid", "getuid", "getgid", "geteuid", "getegid", "getpgrp", "getpgid", "getsid",
    "getpriority", "sched_yield", "sched_getscheduler", "sched_getparam", "sched_get_priority_max",
    "sched_get_priority_min", "sched_rr_get_interval", "sched_getaffinity", "getitimer", "getrusage", "sysinfo",
    "times", "getgroups", "getresuid", "getresgid", "capget", "gettimeofday", "clock_gettime", "clock_getres",
    "getcpu", "fstat", "fsync", "fdatasync", "ftruncate", "flock", "readahead", "inotify_rm_watch",
    "timer_gettime", "timer_getoverrun", "mq_getsetattr", "ioprio_get", "tee", "splice", "vmsplice",
    "sync_file_range", "timerfd_gettime", "timerfd_settime", "fallocate", "preadv", "pwritev", "dup", "dup3",
    "fgetxattr", "flistxattr", "fremovexattr", "fchmod", "fchown", "fstatfs", "getsockname", "getpeername",
    "getsockopt", "shutdown", "kcmp", "rt_sigpending", "pread64", "pwrite64", "syncfs", "readv", "writev",
    "epoll_ctl", "epoll_wait", "sendfile", "fadvise64", "futimesat", "getdents", "getdents64", "mq_notify",
    "mq_timedsend", "copy_file_range", "preadv2", "pwritev2", "pkey_free", "io_destroy", "get_robust_list",
    "listen", "accept", "accept4", "recvmsg", "timer_delete", "fsetxattr", "signalfd", "fchownat",
];

/// x86_64 numbers of what the program calls by itself, under filters that look at the number only: rt_sigaction to
/// rt_sigreturn, clone, exit, wait4, prctl, exit_group, set_robust_list, and close.
const OWN: [u32; 10] = [3, 13, 14, 15, 56, 60, 61, 157, 231, 273];

/// Of one recording: groups, each with calls of its own, so that each is known by its verdicts.
const PER_GROUP: usize = 5;
/// Constants, of filters and of arguments: few, so that comparisons hold at times.
const POOL: [u32; 12] = [0, 1, 2, 3, 7, 31, 32, 100, 0xffff, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff];
/// Cells of the scratch memory in use.
const CELLS: [u32; 3] = [0, 5, 15];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Instruction {
    code: u16,
    jt: u8,
    jf: u8,
    k: u32,
}

#[derive(Debug, Clone)]
struct Probe {
    name: &'static str,
    arch: Arch,
    number: u32,
    args: [u64; 6],
}

#[derive(Debug, Clone)]
struct Group {
    filters: Vec<Vec<Instruction>>,
    probes: Vec<Probe>,
}

/// What came of a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Answer {
    ip: u64,
    result: i64,
    trapped: bool,
    /// It did not come back.
    killed: bool,
}

struct Draw(Dice);

impl Draw {
    fn below(&mut self, n: usize) -> usize {
        self.0.below(n)
    }

    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }

    /// One of the few constants; at times another one.
    fn word(&mut self) -> u32 {
        if self.below(8) == 0 {
            u32::try_from(self.0.next() >> 32).unwrap()
        } else {
            self.of(&POOL)
        }
    }

    /// The upper half of an argument.
    fn high(&mut self) -> u32 {
        if self.below(3) == 0 { self.word() } else { 0 }
    }

    fn args(&mut self) -> [u64; 6] {
        std::array::from_fn(|_| u64::from(self.word()) | u64::from(self.high()) << 32)
    }

    fn group(&mut self, calls: &[(Arch, &'static str, u32)]) -> Group {
        let mut probes = Vec::new();
        for (arch, name, number) in calls {
            for _ in 0..1 + self.below(3) {
                probes.push(Probe { name, arch: *arch, number: *number, args: self.args() });
            }
        }
        let numbers: Vec<u32> = calls.iter().map(|call| call.2).collect();
        let filters = (0..1 + self.below(3)).map(|_| self.filter(&numbers)).collect();
        Group { filters, probes }
    }

    /// A filter that lets other calls than these pass.
    fn filter(&mut self, numbers: &[u32]) -> Vec<Instruction> {
        let op = |code, k| Instruction { code, jt: 0, jf: 0, k };
        let mut all = vec![op(0x20, 0)];
        for (at, number) in numbers.iter().enumerate() {
            let jt = u8::try_from(numbers.len() - at).unwrap();
            all.push(Instruction { code: 0x15, jt, jf: 0, k: *number });
        }
        all.push(op(0x06, ALLOW));
        for cell in CELLS {
            all.extend([op(0x00, self.word()), op(0x02, cell)]);
        }
        let len = 2 + self.below(40);
        let body: Vec<_> = (0..len).map(|at| self.instruction(len - at - 1)).collect();
        all.extend(body);
        all.push(self.end());
        all
    }

    /// An instruction with `left` before the last one.
    fn instruction(&mut self, left: usize) -> Instruction {
        let op = |code, k| Instruction { code, jt: 0, jf: 0, k };
        match self.below(16) {
            0..4 => op(0x20, 4 * u32::try_from(self.below(16)).unwrap()),
            4 => op(self.of(&[0x00, 0x01]), self.word()),
            5 => op(self.of(&[0x60, 0x61, 0x02, 0x03]), self.of(&CELLS)),
            6 => op(self.of(&[0x80, 0x81, 0x07, 0x87, 0x84]), 0),
            7 | 8 => self.arithmetic(),
            9 => op(0x05, u32::try_from(self.below(left.min(5) + 1)).unwrap()),
            10..15 => {
                let code = self.of(&[0x10, 0x20, 0x30, 0x40]) | 0x05 | self.of(&[0, 0, 8]);
                let mut to = || u8::try_from(self.below(left.min(9) + 1)).unwrap();
                let (jt, jf) = (to(), to());
                Instruction { code, jt, jf, k: self.word() }
            }
            _ => self.end(),
        }
    }

    fn arithmetic(&mut self) -> Instruction {
        let kind = self.of(&[0x00, 0x10, 0x20, 0x30, 0x40, 0x50, 0x60, 0x70, 0xa0]);
        let by = self.of(&[0, 8]);
        let k = match kind {
            0x30 if by == 0 => self.word().max(1),
            0x60 | 0x70 if by == 0 => self.word() & 31,
            _ => self.word(),
        };
        Instruction { code: kind | by | 0x04, jt: 0, jf: 0, k }
    }

    /// A filter's end: an action of any kind, mostly an errno, and often one that calls fail with.
    fn end(&mut self) -> Instruction {
        if self.below(12) == 0 {
            return Instruction { code: 0x16, jt: 0, jf: 0, k: 0 }; // whatever has come together
        }
        let k = match self.below(16) {
            0..5 => ALLOW,
            5 => self.of(&[LOG, TRACE, NOTIFY]),
            6 => TRAP | self.word() & 0xffff,
            7 => self.of(&[KILL_PROCESS, 0, 0x0123_0000, 0x7ffd_0000]),
            _ => ERRNO | self.of(&[9, 9, 14, 14, 22, 22, 38, 1, 2, 3, 13, 88, 95, 0]),
        };
        Instruction { code: 0x06, jt: 0, jf: 0, k }
    }
}

const ALLOW: u32 = 0x7fff_0000;
const LOG: u32 = 0x7ffc_0000;
const TRACE: u32 = 0x7ff0_0000;
const NOTIFY: u32 = 0x7fc0_0000;
const ERRNO: u32 = 0x0005_0000;
const TRAP: u32 = 0x0003_0000;
const KILL_PROCESS: u32 = 0x8000_0000;
const ACTION: u32 = 0xffff_0000;

/// What a filter says, by the words of seccomp(2) and of the kernel's networking/filter.rst; a program that
/// divides by zero ends with 0, and a shift goes by the lowest five bits (`bpf_convert_filter`,
/// net/core/filter.c).
fn says(filter: &[Instruction], data: &[u32; 16]) -> u32 {
    let (mut a, mut x, mut cells, mut at) = (0u32, 0u32, [0u32; 16], 0);
    loop {
        let Instruction { code, jt, jf, k } = filter[at];
        at += 1;
        let by = if code & 8 == 0 { k } else { x };
        let word = k as usize;
        match code {
            0x20 => a = data[word / 4],
            0x80 => a = 64,
            0x81 => x = 64,
            0x00 => a = k,
            0x01 => x = k,
            0x60 => a = cells[word],
            0x61 => x = cells[word],
            0x02 => cells[word] = a,
            0x03 => cells[word] = x,
            0x07 => x = a,
            0x87 => a = x,
            0x84 => a = a.wrapping_neg(),
            0x05 => at += word,
            0x06 => return k,
            0x16 => return a,
            _ if code & 7 == 4 => {
                a = match code & 0xf0 {
                    0x00 => a.wrapping_add(by),
                    0x10 => a.wrapping_sub(by),
                    0x20 => a.wrapping_mul(by),
                    0x30 if by == 0 => return 0,
                    0x30 => a / by,
                    0x40 => a | by,
                    0x50 => a & by,
                    0x60 => a << (by & 31),
                    0x70 => a >> (by & 31),
                    _ => a ^ by,
                }
            }
            _ => {
                let holds = match code & 0xf0 {
                    0x10 => a == by,
                    0x20 => a > by,
                    0x30 => a >= by,
                    _ => a & by != 0,
                };
                at += usize::from(if holds { jt } else { jf });
            }
        }
    }
}

impl Probe {
    fn data(&self, ip: u64) -> [u32; 16] {
        let native = self.arch == Arch::X86_64;
        let mut data = [0; 16];
        data[0] = self.number;
        data[1] = if native { 0xc000_003e } else { 0x4000_0003 };
        let halves =
            |word: u64| [word & 0xffff_ffff, word >> 32].map(|half| u32::try_from(half).unwrap());
        data[2..4].copy_from_slice(&halves(ip));
        for (at, arg) in self.args.iter().enumerate() {
            let [low, high] = halves(*arg);
            data[4 + 2 * at] = low;
            data[5 + 2 * at] = high;
        }
        if !native {
            data[14..16].fill(0); // the program has no way to set it
        }
        data
    }
}

impl Group {
    /// The strictest of what the filters say to a probe; of equally strict ones the latest's.
    fn verdict(&self, probe: &Probe, ip: u64) -> u32 {
        let data = probe.data(ip);
        let all = self.filters.iter().rev().map(|filter| says(filter, &data));
        let strict = |said: u32| (said & ACTION).cast_signed();
        all.fold(ALLOW, |least, said| if strict(said) < strict(least) { said } else { least })
    }
}

/// Whether the filter ran as this test says, and what the profile must have of the call: by `plain`, which is
/// how it ends without filters.
fn expected(verdict: u32, probe: &Probe, answer: Answer, plain: i64) -> (bool, Vec<String>) {
    let failed = |result: i64| {
        let error = (-4095..0).contains(&result);
        error.then(|| format!("error:{:?}", Errno::from_raw(i32::try_from(-result).unwrap())))
    };
    let called = |result| [Some("call".to_owned()), failed(result)].into_iter().flatten().collect();
    let back = !answer.killed && !answer.trapped;
    match verdict & ACTION {
        // what succeeds may give something else each time
        ALLOW | LOG => {
            (back && (answer.result == plain || plain >= 0 && answer.result >= 0), called(plain))
        }
        TRACE | NOTIFY => (back && answer.result == -38, called(-38)),
        ERRNO => {
            let errno = (verdict & 0xffff).min(4095);
            let kind = match errno {
                0 => "refused:SIGSYS".to_owned(),
                n => format!("refused:{:?}", Errno::from_raw(n.min(191).cast_signed())),
            };
            (back && answer.result == -i64::from(errno), vec![kind])
        }
        TRAP => {
            let number = i64::from(probe.number);
            (answer.trapped && answer.result == number, vec!["refused:SIGSYS".to_owned()])
        }
        _ => (answer.killed, vec!["refused:SIGSYS".to_owned()]),
    }
}

/// What the program reads: filters and probes, or the probes alone.
fn written(groups: &[Group], filtered: bool) -> Vec<u8> {
    let mut out = Vec::new();
    let count = |out: &mut Vec<u8>, n: usize| out.extend(u32::try_from(n).unwrap().to_le_bytes());
    for group in groups {
        let filters = if filtered { &group.filters[..] } else { &[] };
        count(&mut out, filters.len());
        for filter in filters {
            count(&mut out, filter.len());
            for Instruction { code, jt, jf, k } in filter {
                out.extend(code.to_le_bytes());
                out.extend([*jt, *jf]);
                out.extend(k.to_le_bytes());
            }
        }
        count(&mut out, group.probes.len());
        for probe in &group.probes {
            out.extend(u32::from(probe.arch != Arch::X86_64).to_le_bytes());
            out.extend(probe.number.to_le_bytes());
            probe.args.iter().for_each(|arg| out.extend(arg.to_le_bytes()));
        }
    }
    out
}

fn answers(path: &Path, groups: &[Group]) -> Vec<Vec<Answer>> {
    let text = fs::read_to_string(path).unwrap();
    let mut lines = text.lines().map(|line| {
        let words: Vec<i64> = line.split(' ').map(|word| word.parse().unwrap()).collect();
        let [ip, result, trapped, done] = words[..] else { panic!("{line}") };
        Answer { ip: ip.cast_unsigned(), result, trapped: trapped != 0, killed: done == 0 }
    });
    groups.iter().map(|group| lines.by_ref().take(group.probes.len()).collect()).collect()
}

/// Draws what one recording looks at.
fn drawn(seed: u64) -> Vec<Group> {
    let mut draw = Draw(Dice::new(seed));
    let mut calls = Vec::new();
    for arch in [Arch::X86_64, Arch::X86] {
        let of = |name: &&'static str| Some((arch, *name, arch.call_number(name)?));
        calls.extend(CALLS.iter().filter_map(of).filter(|call| !OWN.contains(&call.2)));
    }
    for at in (1..calls.len()).rev() {
        let with = draw.below(at + 1);
        calls.swap(at, with);
    }
    calls.chunks(PER_GROUP).map(|calls| draw.group(calls)).collect()
}

/// Records one lot of filters; how many verdicts of which kind, or what is wrong.
fn judge(seed: u64, tally: &mut BTreeMap<String, u32>) -> Option<Vec<String>> {
    let groups = drawn(seed);
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name);
    fs::write(at("plain"), written(&groups, false)).unwrap();
    let mut alone = Command::new(tool());
    assert!(alone.arg("filters").args([at("plain"), at("out")]).status().unwrap().success());
    let plain = answers(&at("out"), &groups);

    let scene = Scene::new("filters")?;
    let shared = scene.root().join("tmp");
    fs::write(shared.join("filtered"), written(&groups, true)).unwrap();
    scene.run("main", "", "filters /tmp/filtered /tmp/out");
    let got = answers(&shared.join("out"), &groups);
    let seen = scene.finish();

    let mut wrong = Vec::new();
    if !seen.losses.is_empty() {
        wrong.push(format!("{:?}", seen.losses));
    }
    let mut wanted: BTreeMap<(&str, &str), BTreeSet<String>> = BTreeMap::new();
    let mut told: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for ((group, got), plain) in groups.iter().zip(&got).zip(&plain) {
        for ((probe, got), plain) in group.probes.iter().zip(got).zip(plain) {
            let verdict = group.verdict(probe, got.ip);
            let (fits, kinds) = expected(verdict, probe, *got, plain.result);
            if !fits {
                wrong.push(format!(
                    "{probe:x?}: {got:?}, not {verdict:#x}; plain {plain:?}; {:x?}",
                    group.filters
                ));
            }
            let alike = verdict & ACTION == ERRNO && plain.result == -i64::from(verdict & 0xffff);
            let kind = if alike {
                "ERRNO, as the kernel's".to_owned()
            } else {
                format!("{:#x}", verdict & ACTION)
            };
            *tally.entry(kind).or_default() += 1;
            told.entry((probe.arch.name(), probe.name)).or_default().push((
                verdict,
                got,
                plain.result,
                group,
            ));
            wanted.entry((probe.arch.name(), probe.name)).or_default().extend(kinds);
        }
    }
    for ((arch, name), want) in wanted {
        let have: BTreeSet<String> = seen.call(arch, name).into_iter().collect();
        if have != want {
            wrong.push(format!(
                "{arch} {name}: recorded {have:?}, not {want:?}: {:x?}",
                told[&(arch, name)]
            ));
        }
    }
    *tally.entry("filters".to_owned()).or_default() +=
        groups.iter().map(|group| u32::try_from(group.filters.len()).unwrap()).sum::<u32>();
    Some(wrong)
}

#[test]
fn drawn_filters_are_known_by_their_answers() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let from = number("SLIM_FILTERS_FROM").unwrap_or(1);
    let mut tally = BTreeMap::new();
    for seed in from..from + number("SLIM_FILTERS").unwrap_or(2) {
        let Some(wrong) = judge(seed, &mut tally) else { return };
        assert!(wrong.is_empty(), "seed {seed}: {}", wrong.join("\n"));
    }
    println!("{tally:?}");
    assert!(tally["ERRNO, as the kernel's"] > 10, "{tally:?}");
}
