//! Calls of `clone` that nobody was notified of, known by who came of them.
//!
//! A signal that comes before a notified call was received ends it with EINTR. No other call is hit as
//! often: a shell forks while its last child's SIGCHLD is on the way, and few programs know that a fork
//! can fail so. Where the container's filter lets every plain clone pass, it is therefore not notified
//! (`Watch::AllButClone`), and a process or thread that no other call accounts for is its evidence.

use std::collections::HashMap;

use super::super::super::event::{Event, EventKind, OTHERS};
use super::super::task::Status;
use super::Server;
use crate::model::Arch;

/// The calls that make processes and threads.
const MAKERS: [&str; 4] = ["clone", "clone3", "fork", "vfork"];

/// Who is still to come of calls that were notified, by the process that made them.
pub(super) struct Births {
    /// `None`: every call is notified.
    expected: Option<HashMap<u32, u32>>,
    /// The first one under the filter was there before it.
    begun: bool,
}

impl Births {
    /// `unseen`: plain clones are not notified.
    pub fn new(unseen: bool) -> Self {
        Self { expected: unseen.then(HashMap::new), begun: false }
    }

    /// A call is let go on; somebody may come of it.
    pub fn expect(&mut self, pid: u32, arch: Arch, number: u32) {
        let Some(expected) = &mut self.expected else { return };
        if arch.call_name(number).is_some_and(|name| MAKERS.contains(&name)) {
            *expected.entry(pid).or_default() += 1;
        }
    }

    /// True if it takes a clone to account for one that came of `parent`. A call that failed leaves
    /// one expected who hides another: that costs the clone only if there is no second.
    fn of_a_clone(&mut self, parent: u32) -> bool {
        let Some(expected) = &mut self.expected else { return false };
        if !std::mem::replace(&mut self.begun, true) {
            return false;
        }
        match expected.get_mut(&parent).filter(|number| **number > 0) {
            Some(number) => {
                *number -= 1;
                false
            }
            None => true,
        }
    }
}

impl Server<'_> {
    /// A thread is seen for the first time.
    pub(super) fn born(&mut self, tid: u32, status: &Status) {
        let parent = if status.pid == tid { status.parent } else { status.pid };
        if !self.births.of_a_clone(parent) {
            return;
        }
        let Some(number) = Arch::NATIVE.call_number("clone") else { return };
        self.count_call(parent, 0, number);
        // with which flags, nobody can say
        if self.first(&("value", number, self.phase(parent))) {
            let event = self.event(EventKind::Value, parent);
            self.hub.push(Event { number, flags: event.flags | OTHERS, ..event });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_no_other_call_accounts_for_came_of_a_clone() {
        let number = |name| Arch::NATIVE.call_number(name).unwrap();
        let mut births = Births::new(true);
        assert!(!births.of_a_clone(1), "the first was there before");
        births.expect(2, Arch::NATIVE, number("vfork"));
        births.expect(2, Arch::NATIVE, number("openat"));
        let found: Vec<bool> = [3, 2, 2, 3].map(|parent| births.of_a_clone(parent)).to_vec();
        assert_eq!(found, [true, false, true, true]);
        let mut all = Births::new(false);
        assert_eq!([1, 2].map(|parent| all.of_a_clone(parent)), [false; 2]);
    }
}
