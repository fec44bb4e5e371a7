//! Which paths of a container lie on other mounts than its overlay, in the form of
//! `/proc/PID/mountinfo` (proc_pid_mountinfo(5)): read there while a process of the mount namespace
//! lives, or told by the BPF side, which needs no process.

use crate::model::RootPath;

/// A mount below the container's root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    pub id: u32,
    pub point: RootPath,
    /// The kernel's device number.
    pub device: u32,
    /// What of its file system is mounted here.
    pub root: RootPath,
}

/// The mounts of one container, in the order they were made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MountTable(pub Vec<Mount>);

/// The mounts of one mount namespace at one time after the other.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mounts(Vec<(u64, MountTable)>);

impl Mounts {
    /// From `time` (ns, `CLOCK_MONOTONIC`) on the mounts are those of this mountinfo text. Texts may come
    /// in any order: what a waiting process told may be read after what was looked up later.
    pub fn add(&mut self, time: u64, text: &[u8]) {
        let table = MountTable::parse(text);
        let at = self.0.partition_point(|(from, _)| *from <= time);
        if at > 0 && self.0[at - 1].1 == table {
            return;
        }
        match self.0.get_mut(at) {
            Some((from, next)) if *next == table => *from = time,
            _ => self.0.insert(at, (time, table)),
        }
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The mounts at a time; of a time before the first look, those of the first look.
    pub fn at(&self, time: u64) -> Option<&MountTable> {
        self.before(time).or(self.0.first().map(|(_, table)| table))
    }

    /// The mounts at a time, as far as somebody had looked by then.
    pub fn before(&self, time: u64) -> Option<&MountTable> {
        self.0.iter().rev().find(|(from, _)| *from <= time).map(|(_, table)| table)
    }

    /// What `path` through the mount `id` may be on the file system itself, the latest first. A mount that
    /// is gone from its namespace, or whose namespace is, gives paths from its own root.
    pub fn shown(&self, id: u32, path: &RootPath) -> impl Iterator<Item = RootPath> {
        let mounts = self.0.iter().rev().flat_map(|(_, table)| &table.0);
        let shown = move |mount: &Mount| {
            let inside = path.is_within(&mount.point).then(|| mount.inside(path));
            let detached = path.components().fold(mount.root.clone(), |at, name| at.join(name));
            inside.into_iter().chain([detached])
        };
        mounts.filter(move |mount| mount.id == id).flat_map(shown)
    }
}

/// Where a path lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// On the overlay, under this path of its own.
    Overlay(RootPath),
    /// On another mount.
    Elsewhere,
}

impl MountTable {
    /// Reads the text of a mountinfo file; lines that make no sense are left out.
    pub fn parse(text: &[u8]) -> Self {
        Self(text.split(|b| *b == b'\n').filter_map(parse_line).collect())
    }

    /// What containers have when nobody could ask: Docker's default mounts.
    pub fn usual() -> Self {
        let points = ["/proc", "/sys", "/dev", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf"];
        let mount = |point: &&str| {
            let point = RootPath::parse(point.as_bytes())?;
            Some(Mount { id: 0, point, device: 0, root: RootPath::root() })
        };
        Self(points.iter().filter_map(mount).collect())
    }

    /// Where the real path `path` lies, for an overlay with the device number `overlay`.
    pub fn place(&self, path: &RootPath, overlay: &[u32]) -> Place {
        let covers = |m: &&Mount| !m.point.is_root() && path.is_within(&m.point);
        // the longest point wins, of equal ones the later mount
        let found = self.0.iter().filter(covers).max_by_key(|m| m.point.as_bytes().len());
        match found {
            None => Place::Overlay(path.clone()),
            Some(mount) if overlay.contains(&mount.device) => Place::Overlay(mount.inside(path)),
            Some(_) => Place::Elsewhere,
        }
    }
}

impl Mount {
    fn inside(&self, path: &RootPath) -> RootPath {
        let below = path.components().skip(self.point.components().count());
        below.fold(self.root.clone(), |at, name| at.join(name))
    }
}

fn parse_line(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|b| *b == b' ');
    let id = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
    let device = std::str::from_utf8(fields.nth(1)?).ok()?;
    let (major, minor) = device.split_once(':')?;
    let device = major.parse::<u32>().ok()? << 20 | minor.parse::<u32>().ok()?;
    let root = RootPath::parse(&octal(fields.next()?))?;
    let point = RootPath::parse(&octal(fields.next()?))?;
    Some(Mount { id, point, device, root })
}

/// Undoes `\040` and the like.
fn octal(raw: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(raw.len());
    let mut at = 0;
    while at < raw.len() {
        let digits = raw.get(at + 1..at + 4).and_then(|d| std::str::from_utf8(d).ok());
        let byte = digits.and_then(|d| u8::from_str_radix(d, 8).ok());
        match (raw[at], byte) {
            (b'\\', Some(byte)) => {
                out.push(byte);
                at += 4;
            }
            (plain, _) => {
                out.push(plain);
                at += 1;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_those_of_their_time_in_whatever_order_they_are_told() {
        let text = |name: &str| format!("12 10 0:50 /{name} /data rw - overlay overlay rw\n");
        let at = |mounts: &Mounts, time| {
            let table = mounts.at(time).unwrap();
            table.0.first().map(|mount| mount.root.to_string())
        };
        let mut mounts = Mounts::default();
        for (time, name) in [(10, "a"), (50, "b"), (30, "b"), (40, "b"), (70, "a"), (60, "b")] {
            mounts.add(time, text(name).as_bytes());
        }
        assert_eq!(mounts.len(), 3);
        let path = |s: &str| RootPath::parse(s.as_bytes()).unwrap();
        let shown =
            |id, name| mounts.shown(id, &path(name)).map(|p| p.to_string()).collect::<Vec<_>>();
        assert_eq!(shown(12, "/data/x")[..2], ["/a/x", "/a/data/x"]);
        assert_eq!(shown(12, "/x"), ["/a/x", "/b/x", "/a/x"]);
        assert_eq!(shown(13, "/x"), [""; 0]);
        for (time, name) in [(5, "/a"), (29, "/a"), (30, "/b"), (69, "/b"), (70, "/a")] {
            assert_eq!(at(&mounts, time).as_deref(), Some(name), "{time}");
        }
    }

    #[test]
    fn a_path_is_placed_by_its_longest_mount() {
        let table = MountTable::parse(
            b"10 1 0:50 / / rw - overlay overlay rw\n\
              11 10 0:22 / /proc rw - proc proc rw\n\
              12 10 0:50 /srv/a\\040b /data rw - overlay overlay rw\n",
        );
        let path = |s: &str| RootPath::parse(s.as_bytes()).unwrap();
        let place = |s: &str| table.place(&path(s), &[50]);
        assert_eq!(place("/proc/1/maps"), Place::Elsewhere);
        assert_eq!(place("/process"), Place::Overlay(path("/process")));
        assert_eq!(place("/data/x"), Place::Overlay(path("/srv/a b/x")));
    }
}
