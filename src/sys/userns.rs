//! User namespaces: entering one of one's own, and what its maps say (user_namespaces(7)).
//!
//! Has no unsafe line; it lives here because it is system calls and the kernel's files for them.

use std::fs;
use std::io;

use nix::sched::{CloneFlags, unshare};

/// The largest count of a map's line: the initial namespace's.
const ALL: u64 = u32::MAX as u64;

/// One line of a map: `count` ids from `inside` on are those from `outside` on of the parent namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    pub inside: u32,
    pub outside: u32,
    pub count: u32,
}

/// The ids that exist in a user namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IdMap(Vec<Range>);

impl IdMap {
    /// The users of this process's namespace.
    pub fn users() -> Self {
        Self::parse(&fs::read_to_string("/proc/self/uid_map").unwrap_or_default())
    }

    /// Its groups.
    pub fn groups() -> Self {
        Self::parse(&fs::read_to_string("/proc/self/gid_map").unwrap_or_default())
    }

    /// Reads the text of a map; lines that are none are left out.
    pub fn parse(text: &str) -> Self {
        let line = |line: &str| {
            let mut numbers = line.split_ascii_whitespace().map(|word| word.parse().ok());
            let mut next = || numbers.next().flatten();
            Some(Range { inside: next()?, outside: next()?, count: next()? })
        };
        Self(text.lines().filter_map(line).collect())
    }

    /// True for the initial namespace's: every id is itself.
    pub fn is_everything(&self) -> bool {
        // Without /proc nothing is known, and the usual is assumed.
        self.0.is_empty()
            || matches!(self.0[..], [Range { inside: 0, outside: 0, count }] if u64::from(count) == ALL)
    }

    /// Whether `id` exists here: files can be given to it, processes can become it.
    pub fn has(&self, id: u32) -> bool {
        self.0.is_empty() || self.outside(id).is_some()
    }

    /// What `id` is in the parent namespace.
    pub fn outside(&self, id: u32) -> Option<u32> {
        let within = |range: &&Range| id >= range.inside && id - range.inside < range.count;
        self.0.iter().find(within).map(|range| range.outside + (id - range.inside))
    }

    /// How many ids there are from 0 on without a gap.
    pub fn contiguous(&self) -> u64 {
        let mut ranges = self.0.clone();
        ranges.sort_by_key(|range| range.inside);
        ranges.iter().fold(0, |end, range| match u64::from(range.inside) == end {
            true => end + u64::from(range.count),
            false => end,
        })
    }
}

impl std::fmt::Display for IdMap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (at, Range { inside, outside, count }) in self.0.iter().enumerate() {
            write!(f, "{}{inside}:{outside}:{count}", if at > 0 { "," } else { "" })?;
        }
        Ok(())
    }
}

/// True if this process is in a user namespace other than the initial one: its root has no say over
/// the host's cgroups, devices, limits and fanotify.
pub fn inside() -> bool {
    !IdMap::users().is_everything()
}

/// The user who this process is for the parent namespace if it is in one, else its effective uid.
pub fn user() -> u32 {
    let own = rustix::process::geteuid().as_raw();
    if inside() { IdMap::users().outside(own).unwrap_or(own) } else { own }
}

/// Moves this process into a new user namespace, in which it has every capability and, until the maps
/// are written, no id.
///
/// `unshare(2)` with `CLONE_NEWUSER`, Linux 3.8, no privilege; EINVAL in a process with threads, EPERM,
/// ENOSPC or EUSERS where the host forbids it.
pub fn enter() -> io::Result<()> {
    Ok(unshare(CloneFlags::CLONE_NEWUSER)?)
}

/// Maps one user and one group, `uid` and `gid` of the parent namespace, to 0 of this process's own
/// new namespace; all that the kernel allows without a privilege outside. Gives up `setgroups(2)`.
pub fn map_one(inside: u32, uid: u32, gid: u32) -> io::Result<()> {
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("{inside} {uid} 1"))?;
    fs::write("/proc/self/gid_map", format!("{inside} {gid} 1"))
}

/// True if the groups of a process cannot be changed in this namespace (proc_pid_setgroups(5)).
pub fn setgroups_denied() -> bool {
    fs::read_to_string("/proc/self/setgroups").is_ok_and(|text| text.trim() == "deny")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_tell_what_exists() {
        let all = IdMap::parse("         0          0 4294967295\n");
        assert!(all.is_everything() && all.has(70_000));
        let map = IdMap::parse("0 1000 1\n1 100000 65536\n");
        assert!(!map.is_everything() && map.has(0) && map.has(65_536) && !map.has(65_537));
        assert_eq!(
            (map.outside(0), map.outside(33), map.contiguous()),
            (Some(1000), Some(100_032), 65_537)
        );
        assert_eq!(map.to_string(), "0:1000:1,1:100000:65536");
        let one = IdMap::parse("0 1000 1\n");
        assert_eq!((one.has(1), one.contiguous()), (false, 1));
    }
}
