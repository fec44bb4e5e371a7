//! The kinds of loss that a run record can carry.

/// Makes the enum with its names and the list of all, so that none can be left out of it.
macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident = $name:literal,)*) => {
        /// What can be lost between the kernel and the run record, at every hop.
        ///
        /// No loss: the BPF side forgets what it reported when its table is full, and reports it again.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum LossKind {
            $($(#[$doc])* $kind,)*
        }

        impl LossKind {
            pub const ALL: &[Self] = &[$(Self::$kind,)*];

            /// The name in run records.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$kind => $name,)*
                }
            }
        }
    };
}

kinds! {
    /// bpf: the ring was full.
    RingFull = "ring_full",
    /// bpf: more tasks at a time than room for them, or a process id above the table.
    MapFull = "map_full",
    /// A path could not be read: bpf, when it was unmapped while its call ran.
    StringFault = "string_fault",
    /// bpf: a path of more than 2,048 names or 8 KB.
    StringCut = "string_cut",
    /// bpf: a process was moved, or cloned a child, out of the cgroup.
    LeftCgroup = "left_cgroup",
    /// bpf: a mount namespace with more than 8,192 mounts.
    MountsUnknown = "mounts_unknown",
    /// bpf: a program was left out while it ran already, or did not start when it was to look at waiting calls.
    ProgramMissed = "program_missed",
    /// perf: a ring was full.
    PerfLost = "perf_lost",
    /// perf, notify: calls found nobody at their seccomp listener.
    ListenerGap = "listener_gap",
    /// perf, notify: an `io_uring` was set up, whose operations are no calls.
    IoUringUnseen = "io_uring_unseen",
    /// notify with runc or crun, which let only some calls be notified.
    CallsNotNotified = "calls_not_notified",
    /// Without fanotify: calls that may have opened any file.
    OpensUnseen = "opens_unseen",
    /// The fanotify queue was full, which an unlimited one never is.
    FanotifyOverflow = "fanotify_overflow",
    /// An fanotify event could not be read, for example for want of a descriptor.
    FanotifyRead = "fanotify_read",
    /// A record of the backend made no sense, or a name it needs was lost.
    EventUnreadable = "event_unreadable",
    /// A process was in the cgroup before anybody looked, so what it did is unknown.
    LateAttach = "late_attach",
    /// The directory of a relative path was closed while the call ran.
    DirectoryUnknown = "directory_unknown",
    /// A file of the container was opened by a process that no event named (the open is kept).
    Unattributed = "unattributed",
    /// A call number without a name, which no filter can allow.
    UnknownSyscall = "unknown_syscall",
    /// The reader's thread panicked; what it had read is kept.
    RecorderDied = "recorder_died",
    /// `--recorder none`.
    NotRecorded = "not_recorded",
}
