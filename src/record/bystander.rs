//! What recording costs those who are not recorded.
//!
//! A tracepoint on the system calls is taken by every task on the machine; the recorder's program
//! leaves at once for those outside the run's cgroup, but they still come by. slim is such a bystander
//! itself, so it can tell what the others pay.

use std::time::{Duration, Instant};

/// Calls of a batch: some 100 µs, short enough that most batches are not interrupted.
const CALLS: u32 = 500;
const BATCHES: u32 = 40;

/// ns that a system call which does nothing (`getppid(2)`) takes this thread: that of the quickest
/// batch, because others can only make it slower. Takes a few ms.
pub fn ns_per_call() -> u64 {
    let batch = || -> Duration {
        let began = Instant::now();
        for _ in 0..CALLS {
            std::hint::black_box(std::os::unix::process::parent_id());
        }
        began.elapsed()
    };
    let best = (0..BATCHES).map(|_| batch()).min().unwrap_or_default();
    u64::try_from(best.as_nanos()).unwrap_or(u64::MAX) / u64::from(CALLS)
}
