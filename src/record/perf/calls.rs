//! What perf's records mean: whose a call is, which are new, and the filters that follow from it.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::super::calls::{VALUES, argument, is_exec};
use super::super::event::{ENTERED, Event, EventKind};
use super::super::gather::{HOST_HOOK, MAIN, PHASES, UNRECORDED, phase_number};
use super::super::notify::Hub;
use crate::model::{Arch, Phase};
use crate::seccomp::Watch;
use crate::sys::perf::Record;

/// Numbers of the tracepoints.
#[derive(Debug, Clone, Copy)]
pub(super) struct Told {
    pub enter: u32,
    pub exit: u32,
}

/// The record of one tracepoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Call {
    Enter { number: u32, args: [u64; 6] },
    Exit { number: u32, result: i64 },
}

/// A process of the cgroup.
#[derive(Debug, Clone, Copy)]
struct Process {
    role: u8,
    /// It runs what the image holds.
    entered: bool,
    /// It is in the exec by which it comes to; what its threads do is still the runtime's.
    entering: bool,
    threads: u32,
    uid: u32,
}

/// The state of the calls.
pub(super) struct Calls {
    told: Told,
    processes: HashMap<u32, Process>,
    /// Numbers that go untold until the filter is opened again: at the beginning, at the end.
    silent: [BTreeSet<u32>; 2],
    changed: bool,
    /// Every number that the container was seen to enter.
    entered: HashSet<u32>,
    /// (phase, number, result) of what was reported; no result for a call that was entered.
    reported: HashSet<(u8, u32, Option<i64>)>,
    /// Phases of the main container, each from its time on.
    phases: Vec<(u64, u8)>,
}

impl Process {
    /// Whether its calls are the container's. A hook's outside are not: what it makes silent would be so
    /// inside.
    fn counts(&self) -> bool {
        let uncounted = self.role == UNRECORDED || self.role == HOST_HOOK;
        self.entered && !self.entering && !uncounted
    }
}

impl Calls {
    pub fn new(told: Told) -> Self {
        Self {
            told,
            processes: HashMap::new(),
            silent: Default::default(),
            changed: false,
            entered: HashSet::new(),
            reported: HashSet::new(),
            phases: vec![(0, phase_number(Phase::Start))],
        }
    }

    pub fn set_phase(&mut self, phase: u8) {
        self.phases.push((Event::of(EventKind::Call).time, phase));
    }

    /// Lets every call be told of again.
    pub fn reopen(&mut self) {
        self.silent = Default::default();
        self.changed = true;
    }

    /// The filters for beginnings and ends of calls, if they are others than the last time.
    pub fn new_filters(&mut self) -> Option<(String, String)> {
        std::mem::take(&mut self.changed)
            .then(|| (filter(&self.silent[0]), filter(&self.silent[1])))
    }

    /// An event of the notified calls: it may say that a process entered the image.
    pub fn event(&mut self, event: Event, sink: &mut dyn FnMut(Event)) {
        let outside = event.kind == EventKind::Name && event.role == HOST_HOOK;
        if (event.kind == EventKind::Exec || outside) && event.flags & ENTERED != 0 {
            let known = self.processes.entry(event.pid).or_insert(Process {
                role: event.role,
                entered: false,
                entering: false,
                threads: 1,
                uid: event.uid,
            });
            known.entering = !known.entered && !outside;
            (known.entered, known.role) = (true, event.role);
        }
        if let Some(process) = self.processes.get_mut(&event.pid) {
            process.uid = event.uid;
        }
        sink(event);
    }

    /// A record of perf's.
    pub fn record(&mut self, record: Record, hub: &Hub, sink: &mut dyn FnMut(Event)) {
        match record {
            Record::Fork { pid, parent, time, .. } if pid == parent => {
                self.process(pid, time, hub, sink).threads += 1;
            }
            Record::Fork { pid, parent, time, .. } => {
                let parent_is = *self.process(parent, time, hub, sink);
                self.processes.insert(pid, Process { threads: 1, entering: false, ..parent_is });
                let event = self.about(EventKind::Fork, parent, &parent_is, time);
                sink(Event { other: pid, ..event });
            }
            Record::Exec { pid, .. } => {
                if let Some(process) = self.processes.get_mut(&pid) {
                    process.entering = false;
                }
            }
            Record::Exit { pid, time, .. } => self.exit(pid, time, sink),
            Record::Sample { abi32: true, .. } | Record::Lost(_) => {} // notified instead
            Record::Sample { pid, time, raw, .. } => {
                let process = *self.process(pid, time, hub, sink);
                match self.call(&raw) {
                    Some(Call::Enter { number, args }) => {
                        self.enter(pid, process, (number, args), time, sink);
                    }
                    Some(Call::Exit { number, result }) => {
                        self.refused(pid, process, (number, result), time, sink);
                    }
                    None => {}
                }
            }
        }
    }

    /// The process, looked up in /proc if nothing announced it: somebody moved it into the cgroup.
    fn process(
        &mut self,
        pid: u32,
        time: u64,
        hub: &Hub,
        sink: &mut dyn FnMut(Event),
    ) -> &mut Process {
        self.processes.entry(pid).or_insert_with(|| {
            let found = hub.identify(pid).into_iter().next();
            let (role, uid) = found.map_or((MAIN, 0), |event| (event.role, event.uid));
            sink(Event { role, pid, uid, time, ..Event::of(EventKind::Sight) });
            Process { role, entered: false, entering: false, threads: 1, uid }
        })
    }

    fn about(&self, kind: EventKind, pid: u32, process: &Process, time: u64) -> Event {
        let phase = if process.entered { self.phase(process.role, time) } else { 0 };
        let flags = if process.entered { ENTERED } else { 0 };
        let (role, uid) = (process.role, process.uid);
        Event { phase, role, flags, pid, uid, time, ..Event::of(kind) }
    }

    fn phase(&self, role: u8, time: u64) -> u8 {
        if usize::from(role) < PHASES.len() {
            return role;
        }
        let begun = self.phases.iter().rev().find(|(from, _)| *from <= time);
        begun.map_or(0, |(_, phase)| *phase)
    }

    fn exit(&mut self, pid: u32, time: u64, sink: &mut dyn FnMut(Event)) {
        let Some(process) = self.processes.get_mut(&pid) else { return };
        process.threads = process.threads.saturating_sub(1);
        if process.threads == 0 {
            let process = *process;
            self.processes.remove(&pid);
            sink(self.about(EventKind::Exit, pid, &process, time));
        }
    }

    /// By the layout of `raw_syscalls`: a common head of eight bytes, the number, arguments or result.
    fn call(&self, raw: &[u8]) -> Option<Call> {
        let word = |at: usize| Some(u64::from_ne_bytes(raw.get(at..at + 8)?.try_into().ok()?));
        let kind = u32::from(u16::from_ne_bytes(raw.get(..2)?.try_into().ok()?));
        let number = u32::try_from(word(8)?.cast_signed()).ok()?; // a negative one is no call
        if kind == self.told.exit {
            return Some(Call::Exit { number, result: word(16)?.cast_signed() });
        }
        let mut args = [0; 6];
        for (index, arg) in args.iter_mut().enumerate() {
            *arg = word(16 + 8 * index)?;
        }
        (kind == self.told.enter).then_some(Call::Enter { number, args })
    }

    fn enter(
        &mut self,
        pid: u32,
        process: Process,
        (number, args): (u32, [u64; 6]),
        time: u64,
        sink: &mut dyn FnMut(Event),
    ) {
        if process.role == UNRECORDED {
            return;
        }
        let process = Process { entered: process.counts(), ..process };
        let event = self.about(EventKind::Call, pid, &process, time);
        if process.entered {
            self.entered.insert(number);
            for silent in &mut self.silent {
                self.changed |= silent.insert(number);
            }
        }
        if self.reported.insert((event.phase, number, None)) {
            if let Some(value) = value(number, &args) {
                sink(Event { kind: EventKind::Value, number, value, ..event.clone() });
            }
            sink(Event { number, ..event });
        }
    }

    /// The end of a call that nobody was seen to enter: a filter refused it.
    fn refused(
        &mut self,
        pid: u32,
        process: Process,
        (number, result): (u32, i64),
        time: u64,
        sink: &mut dyn FnMut(Event),
    ) {
        let entry = result == 0 && is_exec(number); // begun as the runtime's
        if !process.counts() || entry || self.entered.contains(&number) {
            return;
        }
        let event = self.about(EventKind::Refused, pid, &process, time);
        self.changed |= self.silent[1].insert(number);
        if self.reported.insert((event.phase, number, Some(result))) {
            let result = i32::try_from(result).unwrap_or(0);
            sink(Event { number, result, ..event });
        }
    }
}

/// The argument worth recording of a call that is not notified with it.
fn value(number: u32, args: &[u64; 6]) -> Option<u64> {
    let name = Arch::NATIVE.call_name(number)?;
    let (_, index, _) = VALUES.iter().find(|(call, ..)| *call == name)?;
    if Watch::Paths.names_call(name) {
        return None;
    }
    argument(*index, args)
}

/// A tracepoint's filter that leaves these numbers out.
fn filter(silent: &BTreeSet<u32>) -> String {
    if silent.is_empty() {
        return "id>=0".to_owned();
    }
    silent.iter().map(|number| format!("id!={number}")).collect::<Vec<_>>().join("&&")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_names_what_is_silent() {
        assert_eq!(filter(&BTreeSet::new()), "id>=0");
        assert_eq!(filter(&BTreeSet::from([0, 257])), "id!=0&&id!=257");
    }
}
