//! The backends by name: which there are, what each sees, and which one a host can have.

use std::fmt;

use super::{RecordError, bpf, notify, perf};
use crate::model::chain;

/// What tells a recorder of calls and paths beside fanotify.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Backend {
    /// BPF on the call and process tracepoints (root, BTF): everything a call can tell, with its
    /// result.
    Bpf,
    /// perf for calls and processes, seccomp notification for paths (root). Results of paths are looked
    /// up, not seen.
    Perf,
    /// One seccomp filter that notifies every call (no privilege beyond a user namespace). Results are
    /// looked up, and calls that a filter refuses are not seen.
    Notify,
}

/// How well an access is seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sight {
    /// With its result.
    Seen,
    /// That it was tried; what came of it is looked up in the container at that moment.
    Asked,
    /// Not by this backend, for this reason.
    Blind(&'static str),
}

/// The kinds of access that the backends are compared by.
pub const ACCESSES: [&str; 14] = [
    "open, create",
    "lookup that fails",
    "execve, execveat",
    "interpreter of a script",
    "ELF interpreter",
    "directory listed",
    "O_PATH, open_tree",
    "open by io_uring",
    "stat, access, readlink, chdir, statfs, getxattr, inotify",
    "change, rename, remove",
    "unix socket",
    "symlink walked through",
    "in a chroot or a mount namespace of its own",
    "through a bind mount made inside",
];

const BY_CLOSURE: Sight = Sight::Blind(
    "the kernel opens it on behalf of execve: fanotify sees it, else the keep-set's closure adds it",
);
const RING: Sight = Sight::Blind(
    "io_uring opens files without a system call: fanotify sees those, and the run is marked as incomplete",
);

impl Backend {
    pub const ALL: [Self; 3] = [Self::Bpf, Self::Perf, Self::Notify];

    /// The name on the command line and in profiles.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bpf => "bpf",
            Self::Perf => "perf",
            Self::Notify => "notify",
        }
    }

    /// What the backend itself sees, in the order of [`ACCESSES`]. `docs/matrix.md` has it call by call.
    pub fn sees(self) -> [Sight; 14] {
        use Sight::{Asked, Seen};
        match self {
            Self::Bpf => {
                let elf = BY_CLOSURE;
                [Seen, Seen, Seen, Seen, elf, Seen, Seen, Seen, Seen, Seen, Seen, Seen, Seen, Seen]
            }
            Self::Perf | Self::Notify => [
                Asked, Asked, Asked, Seen, BY_CLOSURE, Asked, Asked, RING, Asked, Asked, Asked,
                Asked, Asked, Asked,
            ],
        }
    }

    /// What a run's record cannot hold where fanotify may not stand beside the backend.
    pub fn blind_alone(self) -> Vec<String> {
        let blind = |(access, sight): (&&str, Sight)| match sight {
            Sight::Blind(_) => Some((*access).to_owned()),
            Sight::Seen | Sight::Asked => None,
        };
        let mut all: Vec<String> = ACCESSES.iter().zip(self.sees()).filter_map(blind).collect();
        if self != Self::Bpf {
            all.push("calls that a filter refuses".to_owned());
        }
        all
    }

    /// What fanotify sees beside any of them where its marks are allowed, in the same order.
    pub fn fanotify_sees() -> [Sight; 14] {
        use Sight::Seen;
        const NEVER: Sight = Sight::Blind("fanotify reports opens that succeed, nothing else");
        [Seen, NEVER, Seen, Seen, Seen, Seen, NEVER, Seen, NEVER, NEVER, NEVER, NEVER, Seen, Seen]
    }

    /// Whether this host lets the backend work, found by trying.
    ///
    /// # Errors
    /// Why not, with the way out.
    pub fn check(self) -> Result<(), RecordError> {
        match self {
            Self::Bpf => bpf::probe(),
            Self::Perf => perf::check(),
            Self::Notify => notify::check(),
        }
    }

    /// The best backend that `attempt` lets work: bpf, else perf, else notify; what came of it, and why
    /// not a better one.
    ///
    /// # Errors
    /// Why bpf cannot be had, where none can.
    pub(super) fn best<T>(
        mut attempt: impl FnMut(Self) -> Result<T, RecordError>,
    ) -> Result<(Self, T, Option<String>), RecordError> {
        let (mut first, mut why) = (None, None::<String>);
        for backend in Self::ALL {
            let error = match attempt(backend) {
                Ok(found) => return Ok((backend, found, why)),
                Err(error) => error,
            };
            let told = chain(&error);
            why = Some(why.map_or_else(|| told.clone(), |why| format!("{why}; {told}")));
            first.get_or_insert(error);
        }
        tracing::debug!(why, "no backend works");
        Err(first.expect("there are backends"))
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
