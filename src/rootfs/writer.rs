//! Writes one layer as a lower directory of overlayfs.
//!
//! Every name is reached with `openat2(2)` (Linux 5.6) below the folder's own descriptor and never
//! through a symlink, so no entry can leave it whatever the layer says.

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;

use crate::model::{Node, NodeKind, RootPath, Tree};
use crate::oci::apply::{Applied, Stack};
use crate::oci::layer::{Entry, LayerStream, Meta};

use super::limits::{Lacking, Limits};
use super::{RootfsError, content};

/// A layer's folder under construction.
pub(super) struct Writer {
    root: OwnedFd,
    /// For messages.
    path: PathBuf,
    /// Folders made so far.
    dirs: BTreeSet<RootPath>,
    /// Everything else made so far, with its inode in the tree.
    files: HashMap<RootPath, u64>,
    /// The folder used last: entries come folder by folder.
    last: Option<(RootPath, OwnedFd)>,
    root_meta: Option<Meta>,
    /// What a user namespace takes away.
    limits: Limits,
}

impl Writer {
    /// Writes into the empty folder `path`.
    pub fn new(path: &Path) -> Result<Self, RootfsError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(path, flags, Mode::empty())
            .map_err(|e| RootfsError::io("open", path, e))?;
        Ok(Self {
            root,
            path: path.to_owned(),
            dirs: BTreeSet::new(),
            files: HashMap::new(),
            last: None,
            root_meta: None,
            limits: Limits::here(),
        })
    }

    /// Applies `entry` to `stack` and writes what that makes; `lowers` are the folders of the layers
    /// below. Digest and facts of a file are filled in.
    pub fn place(
        &mut self,
        stack: &mut Stack,
        entry: &mut Entry,
        stream: &mut LayerStream,
        lowers: &[PathBuf],
    ) -> Result<(), RootfsError> {
        let applied = stack.apply(entry)?;
        match &applied {
            Applied::Root => self.root_meta = Some(entry.meta.clone()),
            Applied::Dir(path) => self.ensure_dir(path)?,
            Applied::New { path, inode } => {
                self.make_room(path)?;
                let node = stack.tree().get(path).cloned();
                let node = node.expect("just applied");
                if self.limits.lacks(path, &node) {
                    return Ok(());
                }
                self.create(path, &node, entry, stream)?;
                self.files.insert(path.clone(), *inode);
                stack.set_content(path, entry);
            }
            Applied::Link { path, .. } if self.limits.lacks_at(path, stack.tree()) => {
                self.make_room(path)?;
            }
            Applied::Link { path, inode, from } => self.link(stack, path, *inode, from, lowers)?,
            Applied::Cut => {}
        }
        Ok(())
    }

    /// Writes whiteouts and opaque marks, then the folders' metadata: what is made inside a folder
    /// changes its times. Returns what could not be made as the layer has it.
    pub fn finish(mut self, stack: &Stack) -> Result<Lacking, RootfsError> {
        let tree = stack.tree();
        self.prune(tree)?;
        for path in stack.cut() {
            let parent = path.parent().unwrap_or_else(RootPath::root);
            let parent_is_dir = parent.is_root()
                || tree.get(&parent).is_some_and(|node| node.kind == NodeKind::Dir);
            match tree.get(path).map(|node| &node.kind) {
                Some(NodeKind::Dir) => {
                    self.ensure_dir(path)?;
                    let dir = self.open_dir(path)?;
                    rustix::fs::fsetxattr(&dir, self.limits.opaque(), b"y", XattrFlags::empty())
                        .map_err(|e| self.error("mark as opaque", path, e))?;
                }
                // A whiteout below something that is gone altogether would bring it back, and in an
                // opaque folder the kernel would list it.
                None if parent_is_dir && !path.ancestors().any(|p| stack.cut().contains(&p)) => {
                    self.whiteout(path)?;
                }
                _ => {}
            }
        }
        self.last = None;
        for path in self.dirs.iter().rev() {
            let node = tree.get(path).expect("folders of a layer are in the tree");
            let dir = self.open_dir(path)?;
            self.set_meta(dir.as_fd(), path, &Meta::of(node))?;
        }
        let meta = self.root_meta.clone().unwrap_or_else(Meta::implied);
        self.set_meta(self.root.as_fd(), &RootPath::root(), &meta)?;
        Ok(self.limits.lacking.into_inner())
    }

    /// Removes names that were copied up for a link and that a whiteout of this layer then removed.
    fn prune(&mut self, tree: &Tree) -> Result<(), RootfsError> {
        let gone = |path: &RootPath, inode: u64| tree.get(path).is_none_or(|n| n.inode != inode);
        let files = self.files.iter().filter(|(path, inode)| gone(path, **inode));
        for path in files.map(|(path, _)| path.clone()).collect::<Vec<_>>() {
            self.remove_file(&path)?;
        }
        let gone = |path: &&RootPath| tree.get(path).is_none_or(|n| n.kind != NodeKind::Dir);
        for path in self.dirs.iter().filter(gone).cloned().collect::<Vec<_>>() {
            self.make_room(&path)?;
        }
        Ok(())
    }

    fn error(&self, what: &'static str, path: &RootPath, errno: Errno) -> RootfsError {
        RootfsError::io(what, &self.host(path), errno)
    }

    fn host(&self, path: &RootPath) -> PathBuf {
        self.path.join(OsStr::from_bytes(path.relative()))
    }

    fn whiteout(&mut self, path: &RootPath) -> Result<(), RootfsError> {
        let (dir, name) = self.at(path)?;
        rustix::fs::mknodat(&dir, name, FileType::CharacterDevice, Mode::empty(), 0)
            .map_err(|errno| self.device_error(path, errno))
    }

    fn device_error(&self, path: &RootPath, errno: Errno) -> RootfsError {
        if matches!(errno, Errno::PERM | Errno::ACCESS) {
            return RootfsError::Host {
                what: format!("cannot make the device {}", self.host(path).display()),
                why: format!("mknod(2) is refused here ({errno})"),
                way_out:
                    "run slim as root with CAP_MKNOD (in a container: --privileged), or choose \
                          a --store on a file system that takes devices"
                        .into(),
            };
        }
        self.error("make the device", path, errno)
    }

    /// Makes `path` a folder, and those above it: in a loop, for a layer says how deep they are.
    fn ensure_dir(&mut self, path: &RootPath) -> Result<(), RootfsError> {
        let up = std::iter::successors(Some(path.clone()), RootPath::parent);
        let missing: Vec<RootPath> =
            up.take_while(|p| !p.is_root() && !self.dirs.contains(p)).collect();
        for folder in missing.iter().rev() {
            if self.files.contains_key(folder) {
                self.remove_file(folder)?;
            }
            let (dir, name) = self.at(folder)?;
            rustix::fs::mkdirat(&dir, name, Mode::RWXU)
                .map_err(|e| self.error("make the folder", folder, e))?;
            self.dirs.insert(folder.clone());
        }
        Ok(())
    }

    /// The folder that holds `path`, made if need be, and the name in it.
    fn at<'a>(&mut self, path: &'a RootPath) -> Result<(OwnedFd, &'a OsStr), RootfsError> {
        let parent = path.parent().unwrap_or_else(RootPath::root);
        self.ensure_dir(&parent)?;
        let name = OsStr::from_bytes(path.file_name());
        let copy = |fd: &OwnedFd| fd.try_clone();
        let again = match &self.last {
            Some((last, fd)) if *last == parent => Some(copy(fd)),
            _ => None,
        };
        let fd = match again {
            Some(fd) => fd.map_err(|e| RootfsError::io("open", &self.host(&parent), e))?,
            None => {
                let fd = self.open_dir(&parent)?;
                let kept =
                    copy(&fd).map_err(|e| RootfsError::io("open", &self.host(&parent), e))?;
                self.last = Some((parent, kept));
                fd
            }
        };
        Ok((fd, name))
    }

    fn open_dir(&self, path: &RootPath) -> Result<OwnedFd, RootfsError> {
        let relative = if path.is_root() { b"." } else { path.relative() };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        rustix::fs::openat2(&self.root, relative, flags, Mode::empty(), resolve)
            .map_err(|e| self.error("open the folder", path, e))
    }

    fn remove_file(&mut self, path: &RootPath) -> Result<(), RootfsError> {
        self.files.remove(path);
        let (dir, name) = self.at(path)?;
        rustix::fs::unlinkat(&dir, name, AtFlags::empty())
            .map_err(|e| self.error("replace", path, e))
    }

    /// Removes what this layer itself put at `path` before.
    fn make_room(&mut self, path: &RootPath) -> Result<(), RootfsError> {
        if self.files.contains_key(path) {
            return self.remove_file(path);
        }
        if !self.dirs.contains(path) {
            return Ok(());
        }
        let (dir, name) = self.at(path)?;
        let inside = Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string()).join(name);
        std::fs::remove_dir_all(inside)
            .map_err(|e| RootfsError::io("replace", &self.host(path), e))?;
        self.last = None;
        self.dirs.retain(|known| !known.is_within(path));
        self.files.retain(|known, _| !known.is_within(path));
        Ok(())
    }

    fn create(
        &mut self,
        path: &RootPath,
        node: &Node,
        entry: &mut Entry,
        stream: &mut LayerStream,
    ) -> Result<(), RootfsError> {
        let (dir, name) = self.at(path)?;
        let meta = Meta::of(node);
        let made = match &node.kind {
            NodeKind::File { size, .. } => {
                let file = self.new_file(&dir, path)?;
                let mut sparse = Sparse::new(file);
                let host = self.host(path);
                let more = content::store(stream, entry, |chunk| {
                    sparse.write(chunk).map_err(|e| RootfsError::io("write", &host, e))
                })?;
                let file = sparse.finish(*size).map_err(|e| RootfsError::io("write", &host, e))?;
                if more {
                    content::look_again(entry, &file);
                }
                return self.set_meta(file.as_fd(), path, &meta);
            }
            other => make_node(&dir, name, other),
        };
        made.map_err(|errno| self.device_error(path, errno))?;
        self.set_meta_at(&dir, path, node, &meta)
    }

    fn new_file(&self, dir: &OwnedFd, path: &RootPath) -> Result<File, RootfsError> {
        let flags =
            OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let name = OsStr::from_bytes(path.file_name());
        rustix::fs::openat(dir, name, flags, Mode::RUSR | Mode::WUSR)
            .map(File::from)
            .map_err(|e| self.error("write", path, e))
    }

    /// Another name for an inode of this layer; or of one below, which is copied up with all its
    /// names first, as the kernel would.
    fn link(
        &mut self,
        stack: &Stack,
        path: &RootPath,
        inode: u64,
        from: &(RootPath, usize),
        lowers: &[PathBuf],
    ) -> Result<(), RootfsError> {
        let is_here = |files: &HashMap<RootPath, u64>, name| files.get(name) == Some(&inode);
        if is_here(&self.files, path) {
            return Ok(());
        }
        let (name, layer) = from;
        // What the link names is here most often, and asking for all names of it takes long.
        let others = match is_here(&self.files, name) {
            true => BTreeSet::from([name.clone()]),
            false => stack.others(inode, path),
        };
        let here = others.iter().find(|name| is_here(&self.files, *name));
        self.make_room(path)?;
        if let Some(source) = here {
            self.link_here(source, path)?;
        } else {
            if let Some(lower) = lowers.get(*layer) {
                self.copy_up(stack.tree(), path, (lower, name))?;
            }
            for other in &others {
                self.link_here(path, other)?;
                self.files.insert(other.clone(), inode);
            }
        }
        self.files.insert(path.clone(), inode);
        Ok(())
    }

    fn link_here(&mut self, from: &RootPath, to: &RootPath) -> Result<(), RootfsError> {
        let (from_dir, from_name) = self.at(from)?;
        let (to_dir, to_name) = self.at(to)?;
        rustix::fs::linkat(&from_dir, from_name, &to_dir, to_name, AtFlags::empty())
            .map_err(|e| self.error("link", to, e))
    }

    /// Makes `path`, a name of an inode of a layer below, where that layer has it at `from`.
    fn copy_up(
        &mut self,
        tree: &Tree,
        path: &RootPath,
        from: (&Path, &RootPath),
    ) -> Result<(), RootfsError> {
        let node = tree.get(path).expect("a link just applied is in the tree").clone();
        let (dir, name) = self.at(path)?;
        let meta = Meta::of(&node);
        let made = match &node.kind {
            NodeKind::File { .. } => {
                let mut to = self.new_file(&dir, path)?;
                let mut from_file = open_lower(from)?;
                std::io::copy(&mut from_file, &mut to)
                    .map_err(|e| RootfsError::io("write", &self.host(path), e))?;
                return self.set_meta(to.as_fd(), path, &meta);
            }
            other => make_node(&dir, name, other),
        };
        made.map_err(|errno| self.device_error(path, errno))?;
        self.set_meta_at(&dir, path, &node, &meta)
    }

    /// Owner first: `chown(2)` clears setuid and capabilities.
    fn set_meta(
        &self,
        fd: BorrowedFd<'_>,
        path: &RootPath,
        meta: &Meta,
    ) -> Result<(), RootfsError> {
        let (uid, gid) = self.limits.owner(meta.uid, meta.gid);
        rustix::fs::fchown(fd, Some(uid), Some(gid)).map_err(|e| self.error("chown", path, e))?;
        rustix::fs::fchmod(fd, Mode::from_raw_mode(meta.mode))
            .map_err(|e| self.error("chmod", path, e))?;
        for (name, value) in settable(meta) {
            let set = rustix::fs::fsetxattr(fd, name.as_str(), value, XattrFlags::empty());
            self.attribute(path, name, set)?;
        }
        rustix::fs::futimens(fd, &times(meta)).map_err(|e| self.error("set the times of", path, e))
    }

    /// For what cannot be opened without side effects: symlinks, FIFOs, devices.
    fn set_meta_at(
        &self,
        dir: &OwnedFd,
        path: &RootPath,
        node: &Node,
        meta: &Meta,
    ) -> Result<(), RootfsError> {
        let name = OsStr::from_bytes(path.file_name());
        let (uid, gid) = self.limits.owner(meta.uid, meta.gid);
        rustix::fs::chownat(dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|e| self.error("chown", path, e))?;
        let by_fd = Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string()).join(name);
        if !matches!(node.kind, NodeKind::Symlink { .. }) {
            rustix::fs::chmodat(dir, name, Mode::from_raw_mode(meta.mode), AtFlags::empty())
                .map_err(|e| self.error("chmod", path, e))?;
        }
        for (attribute, value) in settable(meta) {
            let set = rustix::fs::lsetxattr(&by_fd, attribute.as_str(), value, XattrFlags::empty());
            self.attribute(path, attribute, set)?;
        }
        rustix::fs::utimensat(dir, name, &times(meta), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|e| self.error("set the times of", path, e))
    }

    /// An attribute that the store's file system does not take is missed in the run only; the image
    /// that is written keeps it.
    fn attribute(
        &self,
        path: &RootPath,
        name: &str,
        set: Result<(), Errno>,
    ) -> Result<(), RootfsError> {
        match set {
            Ok(()) => Ok(()),
            Err(Errno::PERM | Errno::INVAL) if self.limits.rootless => {
                self.limits.lacking.borrow_mut().attributes += 1;
                Ok(())
            }
            // ext4 says that the disk is full of a value that its inode's block cannot hold, and no
            // file system takes names or values beyond the kernel's bounds (xattr(7)).
            Err(
                errno @ (Errno::OPNOTSUPP
                | Errno::PERM
                | Errno::INVAL
                | Errno::NOSPC
                | Errno::TOOBIG
                | Errno::RANGE),
            ) => {
                tracing::warn!(%path, name, %errno, "the store's file system refuses an extended attribute");
                Ok(())
            }
            Err(errno) => Err(self.error("set an extended attribute of", path, errno)),
        }
    }
}

/// A file of a layer below, reached as that layer has it: no symlink on the way, none at its end.
fn open_lower((folder, path): (&Path, &RootPath)) -> Result<File, RootfsError> {
    let failed =
        |e: Errno| RootfsError::io("copy", &folder.join(OsStr::from_bytes(path.relative())), e);
    open_in(folder, path).map(File::from).map_err(failed)
}

/// Opens what a layer's folder has at `path`.
pub(super) fn open_in(folder: &Path, path: &RootPath) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(folder, flags, Mode::empty())?;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    // A FIFO must not be waited for.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    rustix::fs::openat2(&root, path.relative(), flags, Mode::empty(), resolve)
}

/// Attributes but overlayfs's own: in a lower directory those would be orders to the kernel, and
/// `redirect` could name any folder.
fn settable(meta: &Meta) -> impl Iterator<Item = (&String, &Vec<u8>)> {
    let own =
        |name: &str| name.starts_with("trusted.overlay.") || name.starts_with("user.overlay.");
    meta.xattrs.iter().filter(move |(name, _)| !own(name))
}

/// Makes what has no content of its own: a link, a FIFO, a device. Files and directories are made by
/// those who fill them.
fn make_node(dir: &OwnedFd, name: &OsStr, kind: &NodeKind) -> Result<(), Errno> {
    match kind {
        NodeKind::Symlink { target } => rustix::fs::symlinkat(OsStr::from_bytes(target), dir, name),
        NodeKind::Fifo => rustix::fs::mknodat(dir, name, FileType::Fifo, Mode::empty(), 0),
        NodeKind::Char { major, minor } => {
            device(dir, name, FileType::CharacterDevice, *major, *minor)
        }
        NodeKind::Block { major, minor } => {
            device(dir, name, FileType::BlockDevice, *major, *minor)
        }
        NodeKind::File { .. } | NodeKind::Dir => Ok(()),
    }
}

fn device(
    dir: &OwnedFd,
    name: &OsStr,
    kind: FileType,
    major: u64,
    minor: u64,
) -> Result<(), Errno> {
    let (Ok(major), Ok(minor)) = (u32::try_from(major), u32::try_from(minor)) else {
        return Err(Errno::INVAL);
    };
    rustix::fs::mknodat(dir, name, kind, Mode::empty(), rustix::fs::makedev(major, minor))
}

fn times(meta: &Meta) -> Timestamps {
    let time = Timespec { tv_sec: meta.mtime.0, tv_nsec: meta.mtime.1.into() };
    Timestamps { last_access: time, last_modification: time }
}

/// Writes a file, leaving holes where whole blocks are zeros.
struct Sparse {
    file: File,
    hole: bool,
}

impl Sparse {
    fn new(file: File) -> Self {
        Self { file, hole: false }
    }

    fn write(&mut self, chunk: &[u8]) -> std::io::Result<()> {
        for block in chunk.chunks(64 << 10) {
            if block.iter().any(|b| *b != 0) {
                self.file.write_all(block)?;
            } else {
                let len = i64::try_from(block.len()).unwrap_or(0);
                self.file.seek(SeekFrom::Current(len))?;
                self.hole = true;
            }
        }
        Ok(())
    }

    fn finish(self, size: u64) -> std::io::Result<File> {
        if self.hole {
            self.file.set_len(size)?;
        }
        Ok(self.file)
    }
}
