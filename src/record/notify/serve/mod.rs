//! One listener's thread: takes a waiting call, looks at it, lets it go on.
//!
//! What was seen before costs a look into a table; only what is new is read from the process and
//! looked up.

mod births;
mod paths;

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::LazyLock;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::super::calls::{self, PathCall, is_exec};
use super::super::event::{ENTERED, EXE_ON_OVERLAY, Event, EventKind, leaf_first};
use super::super::gather::{HOOK, HOST_HOOK, MAIN, UNRECORDED, libc_errno as errno, phase_number};
use super::super::kernel_device;
use super::super::lock;
use super::Hub;
use super::task;
use crate::model::{Arch, Phase};
use crate::seccomp::Answer;
use crate::sys::seccomp::{Listener, Notice, be_prompt};
use crate::sys::signals;

const SIGSYS: i32 = 31;
/// How long a change of mounts may take until what it made is read by way of another thread.
const MOUNTING: Duration = Duration::from_millis(20);

/// Answers calls until the last process under the filter is gone, or the hub stops. With `births`
/// plain clones are not among the calls.
pub(super) fn run(hub: &Hub, listener: &Listener, mut known: Option<u8>, births: bool) {
    be_prompt();
    let role = known.unwrap_or(MAIN);
    let (entered, hooking) = (role == HOST_HOOK, false);
    let (tasks, births) = (HashMap::new(), births::Births::new(births));
    let mut server = Server { hub, role, entered, hooking, tasks, births, mounts: None };
    loop {
        let mut fds = [
            PollFd::new(listener.as_fd(), PollFlags::POLLIN),
            PollFd::new(hub.stop.as_fd(), PollFlags::POLLIN),
        ];
        if poll(&mut fds, PollTimeout::NONE).is_err() {
            continue; // EINTR
        }
        let said = fds[0].revents().unwrap_or(PollFlags::empty());
        if said.contains(PollFlags::POLLIN) {
            match listener.receive() {
                Ok(None) => {
                    hub.taken_back.fetch_add(1, Ordering::AcqRel);
                }
                Ok(Some(notice)) => {
                    if known.is_none() {
                        server.role = hub.role_by_cgroup(notice.tid).unwrap_or(MAIN);
                        known = Some(server.role);
                    }
                    server.serve(listener, &notice);
                }
                Err(error) => return server.gap("receive", &error),
            }
        } else if !said.is_empty() {
            return; // nobody is left under the filter
        } else if fds[1].any().unwrap_or(false) {
            // whoever lives on has its calls fail from here
            hub.gap.fetch_add(1, Ordering::AcqRel);
            return;
        }
    }
}

/// A thread under the filter.
#[derive(Debug, Clone)]
struct Task {
    pid: u32,
    uid: u32,
    /// The container's first process.
    init: bool,
    mnt_ns: u32,
    /// Path of its root directory, and whether that is on a watched overlay.
    root: Vec<u8>,
    on_overlay: bool,
    /// The last call may have changed user, namespace or root.
    stale: bool,
    /// The executable that an exec is taken to have led to.
    expected: Option<Vec<u8>>,
}

struct Server<'a> {
    hub: &'a Hub,
    role: u8,
    /// The target was executed: whatever is under the filter runs what the image holds. Or that is a
    /// hook outside.
    entered: bool,
    /// The runtime executed a hook before: whoever is not the container's first process is one.
    hooking: bool,
    tasks: HashMap<u32, Task>,
    births: births::Births,
    /// Who changed the mounts of which namespace, and when.
    mounts: Option<(u32, u32, Instant)>,
}

/// What is to be done with a call beside counting it.
#[derive(Debug, Clone, Copy, Default)]
struct Plan {
    path: Option<&'static PathCall>,
    value: Option<u8>,
    special: Special,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Special {
    #[default]
    None,
    /// It changes who the thread is or where.
    Changes,
    /// It changes mounts.
    Mounts,
    /// It makes a ring whose operations are no calls.
    Ring,
    Exit,
    ExitGroup,
}

static PLANS: LazyLock<[Vec<Plan>; 2]> = LazyLock::new(|| {
    [Some(Arch::NATIVE), Arch::NATIVE.compat()].map(|arch| {
        let mut plans = vec![Plan::default(); 1024];
        for (number, name) in arch.map(Arch::calls).unwrap_or_default() {
            plans[number as usize] = plan(name);
        }
        plans
    })
});

fn plan(name: &str) -> Plan {
    let special = match name {
        "exit" => Special::Exit,
        "exit_group" => Special::ExitGroup,
        name if calls::changes_mounts(name) => Special::Mounts,
        "io_uring_setup" => Special::Ring,
        "unshare" | "setns" | "chroot" => Special::Changes,
        name if name.starts_with("setuid") || name.starts_with("setre") => Special::Changes,
        _ => Special::None,
    };
    let value = calls::VALUES.iter().find(|(call, ..)| *call == name).map(|(_, index, _)| *index);
    Plan { path: calls::path_call(name), value, special }
}

impl Server<'_> {
    fn gap(&self, what: &str, error: &std::io::Error) {
        tracing::debug!(%error, what, "a seccomp listener broke");
        self.hub.gap.fetch_add(1, Ordering::AcqRel);
    }

    /// Looks at a call and lets it go on, also if the looking fails.
    fn serve(&mut self, listener: &Listener, notice: &Notice) {
        let looked = catch_unwind(AssertUnwindSafe(|| self.look(listener, notice)));
        let answered = match looked.unwrap_or_else(|_| {
            self.hub.gap.fetch_add(1, Ordering::AcqRel);
            Answer::Allow
        }) {
            Answer::Allow => listener.go_on(notice.id),
            Answer::Fail(errno) => listener.refuse(notice.id, errno),
            Answer::Kill => {
                let pid = self.tasks.get(&notice.tid).map_or(notice.tid, |task| task.pid);
                // SIGSYS, as the kernel sends; the call itself fails should it be caught
                signals::send(pid.cast_signed(), SIGSYS)
                    .and_then(|()| listener.refuse(notice.id, errno::ENOSYS.cast_unsigned()))
            }
        };
        if let Err(error) = answered {
            self.gap("answer", &error);
        }
    }

    /// Notes what is new about a call; the answer to it.
    fn look(&mut self, listener: &Listener, notice: &Notice) -> Answer {
        let compat = Arch::NATIVE.compat().filter(|arch| arch.audit() == notice.arch);
        // what the runtime does under the filter before the exec is its own, and no filter is for hooks
        // outside
        let bound = self.role != HOST_HOOK && self.standing(notice.tid).1;
        let judge = self.hub.judge.as_ref().filter(|_| bound);
        let table = compat.unwrap_or(Arch::NATIVE);
        let answer =
            judge.map_or(Answer::Allow, |judge| judge.answer(table, notice.number, &notice.args));
        if self.role == UNRECORDED {
            self.entered |= compat.is_none() && is_exec(notice.number);
            return answer;
        }
        let arch = u8::from(compat.is_some());
        let number = notice.number;
        if !self.know(notice.tid) {
            return answer;
        }
        self.catch_up(notice.tid);
        if answer != Answer::Allow {
            self.refused(notice, arch, answer);
            return answer;
        }
        if let Some(task) = self.tasks.get(&notice.tid) {
            self.births.expect(task.pid, table, number);
        }
        let foreign = arch == 1 || number >= 1024;
        if self.hub.judge.is_some() || foreign {
            self.count(notice, arch);
        }
        let plans = &PLANS[usize::from(arch)];
        let plan = plans.get(number as usize).copied().unwrap_or_default();
        if let Some(index) = plan.value {
            self.value(notice, arch, index);
        }
        if let Some(call) = plan.path {
            self.paths(listener, notice, arch, call);
        }
        self.special(notice, plan.special);
        answer
    }

    fn refused(&self, notice: &Notice, arch: u8, answer: Answer) {
        let errno = if let Answer::Fail(errno) = answer { errno } else { 0 };
        let number = notice.number;
        let phase = self.phase(notice.tid);
        if lock(&self.hub.calls).insert((arch, phase, number, errno + 1)) {
            let event = self.event(EventKind::Refused, notice.tid);
            self.hub.push(Event { arch, number, result: -errno.cast_signed(), ..event });
        }
    }

    /// A thread's role, and whether it runs what the image holds.
    fn standing(&self, tid: u32) -> (u8, bool) {
        let init = || self.tasks.get(&tid).is_some_and(|task| task.init);
        match (self.entered, self.hooking) {
            (false, true) if !init() => (HOOK, true),
            (entered, _) => (self.role, entered),
        }
    }

    fn phase(&self, tid: u32) -> u8 {
        let (role, entered) = self.standing(tid);
        if entered { self.hub.phase_of(role) } else { 0 }
    }

    fn event(&self, kind: EventKind, tid: u32) -> Event {
        let (pid, uid, mnt_ns) =
            self.tasks.get(&tid).map_or((tid, 0, 0), |task| (task.pid, task.uid, task.mnt_ns));
        let (role, entered) = self.standing(tid);
        let flags = if entered { ENTERED } else { 0 };
        let phase = self.phase(tid);
        Event { phase, role, flags, pid, uid, mnt_ns, ..Event::of(kind) }
    }

    /// False if the thread is gone already.
    fn know(&mut self, tid: u32) -> bool {
        if self.tasks.contains_key(&tid) {
            return true;
        }
        let Some(status) = task::status(tid) else { return false };
        let first = !self.tasks.values().any(|task| task.pid == status.pid);
        let task::Status { pid, uid, init, .. } = status;
        let (root, on_overlay, stale) = (Vec::new(), false, false);
        let task = Task { pid, uid, init, mnt_ns: 0, root, on_overlay, stale, expected: None };
        self.tasks.insert(tid, task);
        self.refresh(tid);
        self.born(tid, &status);
        // beside perf, which sees forks, names come with them
        if first && (self.hub.judge.is_some() || self.role == HOST_HOOK) {
            let sight = self.event(EventKind::Sight, tid);
            self.hub.push(sight);
            if self.standing(tid).1 {
                self.name(tid);
            }
        }
        true
    }

    /// Says what a process runs, found by looking.
    fn name(&self, tid: u32) {
        let mut event = self.event(EventKind::Name, tid);
        event.data[3] = leaf_first(&task::link(tid, "exe").unwrap_or_default());
        event.data[5] = task::command(tid);
        event.flags |= EXE_ON_OVERLAY;
        self.hub.push(event);
    }

    /// Brings up to date what the thread's calls before may have changed.
    fn catch_up(&mut self, tid: u32) {
        let Some(task) = self.tasks.get_mut(&tid) else { return };
        if let Some(expected) = task.expected.take()
            && task::link(tid, "exe").is_some_and(|exe| exe != expected)
        {
            self.name(tid);
        }
        let Some(task) = self.tasks.get_mut(&tid) else { return };
        if std::mem::take(&mut task.stale) {
            task.uid = task::status(tid).map_or(task.uid, |status| status.uid);
            self.refresh(tid);
        }
        let mnt_ns = self.tasks.get(&tid).map_or(0, |task| task.mnt_ns);
        if let Some((who, namespace, since)) = self.mounts
            && (who == tid || (namespace == mnt_ns && since.elapsed() > MOUNTING))
        {
            self.mounts = None;
            self.read_mounts(tid);
        }
    }

    /// Looks again where the thread is.
    fn refresh(&mut self, tid: u32) {
        let Some(task) = self.tasks.get_mut(&tid) else { return };
        task.mnt_ns = task::mount_namespace(tid);
        task.root = task::link(tid, "root").unwrap_or_default();
        let overlays = lock(&self.hub.overlays);
        let device = task::root_device(tid).map(kernel_device);
        task.on_overlay = device.is_some_and(|device| overlays.contains(&device));
    }

    fn read_mounts(&self, tid: u32) {
        if let Ok(text) = std::fs::read(format!("/proc/{tid}/mountinfo")) {
            let mut event = self.event(EventKind::Mounts, tid);
            event.data[0] = text;
            self.hub.push(event);
        }
    }

    fn special(&mut self, notice: &Notice, special: Special) {
        let tid = notice.tid;
        match special {
            Special::None => {}
            Special::Changes => self.doubt(tid),
            Special::Ring => {
                if self.entered {
                    self.hub.rings.fetch_add(1, Ordering::AcqRel);
                }
            }
            Special::Mounts => {
                let namespace = self.tasks.get(&tid).map_or(0, |task| task.mnt_ns);
                self.mounts = Some((tid, namespace, Instant::now()));
                self.doubt(tid);
            }
            Special::Exit | Special::ExitGroup => self.exit(tid, special == Special::ExitGroup),
        }
    }

    /// The thread and those it may share its root with are to be looked at again.
    fn doubt(&mut self, tid: u32) {
        let Some(pid) = self.tasks.get(&tid).map(|task| task.pid) else { return };
        self.tasks.values_mut().filter(|task| task.pid == pid).for_each(|task| task.stale = true);
    }

    fn exit(&mut self, tid: u32, group: bool) {
        let event = self.event(EventKind::Exit, tid);
        self.tasks.remove(&tid);
        if group {
            self.tasks.retain(|_, task| task.pid != event.pid);
        }
        if self.hub.judge.is_some() && !self.tasks.values().any(|task| task.pid == event.pid) {
            self.hub.push(event);
        }
    }

    fn count(&self, notice: &Notice, arch: u8) {
        self.count_call(notice.tid, arch, notice.number);
    }

    fn count_call(&self, tid: u32, arch: u8, number: u32) {
        let key = (arch, self.phase(tid), number, 0);
        if lock(&self.hub.calls).insert(key) {
            let event = self.event(EventKind::Call, tid);
            self.hub.push(Event { arch, number, ..event });
        }
    }

    fn value(&self, notice: &Notice, arch: u8, index: u8) {
        let Some(value) = calls::argument(index, &notice.args) else { return };
        if self.first(&("value", arch, notice.number, value, self.phase(notice.tid))) {
            let event = self.event(EventKind::Value, notice.tid);
            self.hub.push(Event { arch, number: notice.number, value, ..event });
        }
    }

    /// True for the exec of a hook by the runtime, in the container: the target's is its first process's.
    fn starts_hook(&self, tid: u32) -> bool {
        let fresh = self.role == MAIN || self.role == phase_number(Phase::Run);
        let init = self.tasks.get(&tid).is_none_or(|task| task.init);
        fresh && !self.entered && !init
    }

    fn first(&self, key: &impl Hash) -> bool {
        lock(&self.hub.reported).insert(hash(key))
    }
}

fn hash(key: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    hasher.finish()
}
