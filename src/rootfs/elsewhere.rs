//! Layers that an engine holds unpacked: indexed by the store, used where they lie.
//!
//! An engine unpacks by its own rules: Docker 20.10 gives folders that no layer names the mode 0600,
//! takes names through symlinks for folders, and sets the overlay's own attributes if a layer says so.
//! Therefore every path is compared with what slim makes of the layer, and what differs, or means
//! something only on the layers below, slim unpacks itself.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, Stat};

use crate::model::{Node, NodeKind, RootPath};
use crate::oci::apply::{Applied, Stack};
use crate::oci::layer::{Entry, EntryKind, LayerStream};
use crate::oci::{Image, layer};

use super::lines::Lines;
use super::{RootfsError, content};

/// Reads layer `at`, applies it to `stack` and writes its entries to `list`; returns their number.
/// `Err(Ok(why))` if `folder` cannot stand for the layer: `stack` is of no use then.
pub(super) fn index(
    folder: &Path,
    image: &Image,
    at: usize,
    stack: &mut Stack,
    list: &Path,
    progress: &dyn Fn(u64),
) -> Result<u64, Result<String, RootfsError>> {
    let root = Root::open(folder).map_err(Ok)?;
    let unwritten = |e| Err(RootfsError::io("write", list, e));
    stack.begin_layer(image.layers[at].diff_id);
    let mut stream = layer::open(image, at).map_err(|e| Err(e.into()))?;
    let mut lines = Lines::create(list).map_err(unwritten)?;
    let mut above = BTreeSet::new();
    let mut entries = 0;
    while let Some(mut entry) = stream.next_entry().map_err(|e| Err(e.into()))? {
        root.check(stack, &mut entry, &mut stream, &mut above)?;
        lines.put(&entry).map_err(unwritten)?;
        entries += 1;
        progress(stream.bytes_read());
        if crate::sys::signals::interrupted() {
            return Err(Err(RootfsError::Interrupted));
        }
    }
    stream.finish().map_err(|e| Err(e.into()))?;
    lines.finish().map_err(unwritten)?;
    if stack.depends() {
        return Err(Ok("it means something on the layers below only".into()));
    }
    for path in &above {
        root.compare(path, stack).map_err(Ok)?;
    }
    Ok(entries)
}

/// The engine's folder of the layer.
struct Root(OwnedFd);

impl Root {
    fn open(folder: &Path) -> Result<Self, String> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(folder, flags, Mode::empty());
        root.map(Self).map_err(|errno| format!("{}: {errno}", folder.display()))
    }

    /// Applies an entry and compares what it made; notes the folders above it.
    fn check(
        &self,
        stack: &mut Stack,
        entry: &mut Entry,
        stream: &mut LayerStream,
        above: &mut BTreeSet<RootPath>,
    ) -> Result<(), Result<String, RootfsError>> {
        let is_order = |name: &String| {
            name.starts_with("trusted.overlay.") || name.starts_with("user.overlay.")
        };
        if entry.meta.xattrs.keys().any(is_order)
            || matches!(entry.kind, EntryKind::Char { major: 0, minor: 0 })
        {
            return Err(Ok(format!("{} has a mark of the overlay's own", entry.path)));
        }
        let applied = stack.apply(entry).map_err(|e| Err(e.into()))?;
        content::read(stream, entry, |_| ()).map_err(Err)?;
        let path = match &applied {
            // Of a lower directory's own root nothing shows: above it lies the upper directory's.
            Applied::Root => return Ok(()),
            Applied::Cut => return self.cut(entry).map_err(Ok),
            Applied::Dir(path) | Applied::New { path, .. } | Applied::Link { path, .. } => path,
        };
        if matches!(applied, Applied::New { .. }) {
            stack.set_content(path, entry);
        }
        let parents = path.ancestors().filter(|parent| !parent.is_root() && parent != path);
        // Once one was noted, so were those above it.
        for parent in parents {
            if !above.insert(parent) {
                break;
            }
        }
        self.compare(path, stack).map_err(Ok)
    }

    /// A whiteout or an opaque mark has to be there as the overlay has it.
    fn cut(&self, entry: &Entry) -> Result<(), String> {
        let found = match entry.kind {
            EntryKind::Opaque => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY;
                let mut value = [0; 8];
                self.reach(&entry.path, flags).and_then(|dir| {
                    let n = rustix::fs::fgetxattr(&dir, "trusted.overlay.opaque", &mut value)?;
                    Ok(value[..n] == *b"y")
                })
            }
            _ => self.stat(&entry.path).map(|stat| {
                FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
                    && stat.st_rdev == 0
            }),
        };
        match found {
            Ok(true) => Ok(()),
            _ => Err(format!("{} is not marked as removed", entry.path)),
        }
    }

    fn compare(&self, path: &RootPath, stack: &Stack) -> Result<(), String> {
        let node = stack.tree().get(path).ok_or_else(|| format!("{path} is gone again"))?;
        let stat = self.stat(path).map_err(|errno| format!("{path}: {errno}"))?;
        if same(node, &stat) { Ok(()) } else { Err(format!("{path} is another one")) }
    }

    fn stat(&self, path: &RootPath) -> rustix::io::Result<Stat> {
        rustix::fs::fstat(self.reach(path, OFlags::PATH | OFlags::NOFOLLOW)?)
    }

    /// Never through a symlink: a path of the tree has none above its last part.
    fn reach(&self, path: &RootPath, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let below = if path.is_root() { b"." } else { path.relative() };
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        rustix::fs::openat2(self.0.as_fd(), below, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
    }
}

/// Kind, owner, mode, and what a file's size is or a device's number. A folder that a layer leaves
/// out has the times of its unpacking.
fn same(node: &Node, stat: &Stat) -> bool {
    let kind = FileType::from_raw_mode(stat.st_mode);
    let fits = match &node.kind {
        NodeKind::File { size, .. } => {
            kind == FileType::RegularFile && u64::try_from(stat.st_size) == Ok(*size)
        }
        NodeKind::Dir => kind == FileType::Directory,
        NodeKind::Symlink { .. } => kind == FileType::Symlink,
        NodeKind::Fifo => kind == FileType::Fifo,
        NodeKind::Char { major, minor } => {
            kind == FileType::CharacterDevice && device(stat) == (*major, *minor)
        }
        NodeKind::Block { major, minor } => {
            kind == FileType::BlockDevice && device(stat) == (*major, *minor)
        }
    };
    // A symlink's mode means nothing.
    let mode = kind == FileType::Symlink || stat.st_mode & 0o7777 == node.mode;
    fits && mode && (stat.st_uid, stat.st_gid) == (node.uid, node.gid)
}

fn device(stat: &Stat) -> (u64, u64) {
    let device = stat.st_rdev;
    (u64::from(rustix::fs::major(device)), u64::from(rustix::fs::minor(device)))
}
