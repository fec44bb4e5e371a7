//! The recorders as wholes: which can run with what the host offers, and what each would not see.

use crate::model::{Lack, Offer};

/// A recorder on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backend {
    /// As in `--recorder`; the row of `slim doctor` that tries its main part has the same name.
    pub name: &'static str,
    /// Everything it stands on is there.
    pub usable: bool,
    /// Kinds of use that it would miss here.
    pub blind: Vec<String>,
}

/// Recorders that slim has, best first, with the offers that each stands on.
const RECORDERS: [(&str, &[&str]); 3] = [
    ("bpf", &["fanotify", "bpf", "cgroup2"]),
    ("perf", &["fanotify", "perf", "notify", "pidfd_getfd", "cgroup2"]),
    ("notify", &["notify", "pidfd_getfd"]),
];
/// Those of [`RECORDERS`] that `--recorder` takes.
const BUILT: [&str; 1] = ["bpf"];

/// What a recorder does not see on any kernel (its own means, fanotify included where it uses that).
fn always_blind(name: &str) -> &'static [&'static str] {
    match name {
        "perf" => &[
            "calls that the container's own seccomp filter refuses",
            "whether a call failed, and how",
            "what is done through io_uring, but for the files it opens",
            "which of a process's calls were 32-bit ones",
        ],
        "notify" => &[
            "files opened by the kernel: `#!` and ELF interpreters (they are found in the image instead)",
            "files opened through io_uring",
            "whether a call failed, and how",
        ],
        _ => &[],
    }
}

/// What a missing part takes from a recorder that can do without it.
const PARTS: [(&str, &str, &str); 2] = [
    ("bpf", "io_uring", "what is done through io_uring, but for the files it opens"),
    ("bpf", "cap_capable", "which capabilities are used, where it happens"),
];

/// Every recorder, best first.
pub fn backends(offers: &[Offer]) -> Vec<Backend> {
    let there = |name: &str| offers.iter().any(|offer| offer.name == name && offer.ok());
    let backend = |(name, parts): (&'static str, &[&str])| {
        let lost = PARTS.iter().filter(|(of, part, _)| *of == name && !there(part));
        let blind = always_blind(name).iter().copied().chain(lost.map(|(.., what)| *what));
        let usable = parts.iter().all(|part| there(part));
        Backend { name, usable, blind: blind.map(str::to_owned).collect() }
    };
    RECORDERS.into_iter().map(backend).collect()
}

/// What `--recorder auto` picks: the offer `recorder`.
pub fn auto(backends: &[Backend]) -> Offer {
    let pick = backends.iter().find(|b| b.usable && BUILT.contains(&b.name));
    let found = match pick {
        Some(backend) => Ok(backend.name.to_owned()),
        None => Err(Lack::new(
            "no recorder can run here",
            "images can be run and measured with --recorder none only",
            "see the rows of what they stand on",
        )),
    };
    Offer::new("recorder", found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(offers: &[&'static str]) -> Vec<Backend> {
        let offers: Vec<Offer> =
            offers.iter().map(|name| Offer::new(name, Ok(String::new()))).collect();
        backends(&offers)
    }

    #[test]
    fn a_recorder_is_usable_with_all_its_parts_and_tells_what_it_misses() {
        let full = host(&["fanotify", "bpf", "cgroup2", "io_uring", "cap_capable"]);
        assert_eq!((full[0].usable, full[0].blind.as_slice()), (true, &[][..]));
        assert_eq!(auto(&full).found.unwrap(), "bpf");
        let old = host(&["fanotify", "bpf", "cgroup2"]);
        assert_eq!((old[0].usable, old[0].blind.len()), (true, 2));
        let bare = host(&["bpf", "cgroup2"]);
        assert!(bare.iter().all(|backend| !backend.usable));
        assert!(auto(&bare).found.is_err());
    }
}
