//! The store: `layers/KEY/{fs,layer.json,entries,lock}`, `runs/ID/{…,lock}` and what [`super::packed`] has, and the
//! locks on them.
//!
//! A whole layer has its final name; whatever has a temporary one is being written, or was by a
//! process that died. Locks are `flock(2)`s, so they end with the process whatever happens to it.

use std::fs::File;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::thread::JoinHandle;

use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use crate::model::{ChainId, DiffId};
use crate::oci::apply::Stack;
use crate::oci::layer::Entry;
use crate::oci::{Image, layer};

use super::limits::{self, Lacking};
use super::lines::{self, Lines};
use super::writer::Writer;
use super::{Folders, Rootfs, RootfsError, elsewhere};

const DEFAULT: &str = "/var/lib/slim";
const NAME: &str = "slim";
pub(super) const TEMPORARY: &str = ".tmp-";
const INDEX: &str = "layer.json";
const ENTRIES: &str = "entries";
const SCHEMA: u32 = 2;

/// The folder with unpacked layers and the scratch space of runs.
pub struct Store {
    pub(super) path: PathBuf,
    /// Shared locks on the layers in use by this process.
    in_use: Mutex<Vec<File>>,
    warnings: Mutex<Vec<String>>,
    lacking: Mutex<Lacking>,
}

/// The scratch folder of a live run; removed on drop. Locked, so that `clean` leaves it alone.
pub struct RunDir {
    /// Twelve hexadecimal digits.
    pub id: String,
    pub path: PathBuf,
    /// What removes folders meanwhile.
    sweeps: Mutex<Vec<JoinHandle<()>>>,
    _lock: File,
}

/// What is known of a layer beside its entries, which `entries` has line by line, so that a second
/// run need not read it again.
#[derive(Serialize, Deserialize)]
struct LayerIndex {
    schema: u32,
    /// The ids of the user namespace that it was unpacked in, see [`limits::owners`].
    #[serde(default, skip_serializing_if = "String::is_empty")]
    owners: String,
    #[serde(default)]
    lacking: Lacking,
    /// How many entries there are.
    entries: u64,
    /// The folder of an engine that holds the layer; `None` for the store's own, `fs`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    elsewhere: Option<PathBuf>,
}

impl Store {
    /// Opens or creates the store at `path` (default `/var/lib/slim`, in a user namespace the user's
    /// data folder). Where it lies on overlayfs, a tmpfs takes its place once something is to be
    /// written, and a warning says so.
    pub fn open(path: Option<&Path>) -> Result<Self, RootfsError> {
        let path = &path.map_or_else(default_path, Path::to_owned);
        std::fs::create_dir_all(path).map_err(|e| RootfsError::io("make the store", path, e))?;
        let path = path.canonicalize().map_err(|e| RootfsError::io("open the store", path, e))?;
        let (warnings, lacking) = (Mutex::default(), Mutex::default());
        Ok(Self { path, in_use: Mutex::default(), warnings, lacking })
    }

    /// What the user should know about this store.
    pub fn warnings(&self) -> Vec<String> {
        let mut all = self.warnings.lock().map(|w| w.clone()).unwrap_or_default();
        all.extend(self.lacking.lock().map(|lacking| lacking.warnings()).unwrap_or_default());
        all
    }

    /// The folder of the store.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Unpacks the layers that are not there yet and indexes the whole.
    /// `progress` gets (bytes done, bytes in all).
    pub fn unpack(
        &self,
        image: &Image,
        progress: &(dyn Fn(u64, u64) + Sync),
    ) -> Result<Rootfs, RootfsError> {
        self.prepare()?;
        self.clean()?;
        let (mut stack, mut lowers) = (Stack::limited(image.blobs.limits()), Vec::new());
        let (diff_ids, all) = (image.diff_ids(), image.stored_bytes());
        let mut done = 0;
        for (at, diff_id) in diff_ids.iter().enumerate() {
            let chain = ChainId::of(&diff_ids[..=at]);
            let step = |bytes: u64| progress((done + bytes).min(all), all);
            lowers.push(self.layer(image, at, *diff_id, chain, &mut stack, &lowers, &step)?);
            done += image.blobs.size(at).unwrap_or(0);
            progress(done.min(all), all);
        }
        let folders = Folders(lowers.clone());
        Ok(Rootfs { lowers: distinct(lowers), folders, tree: stack.into_tree() })
    }

    /// Scratch space for one run.
    pub fn new_run(&self) -> Result<RunDir, RootfsError> {
        self.prepare()?;
        let _guard = self.lock_store()?;
        let runs = self.folder("runs")?;
        let (path, lock) = new_locked(&runs, "")?;
        let id = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(RunDir { id, path, sweeps: Mutex::default(), _lock: lock })
    }

    /// The folder of one layer, from the store or unpacked now. Applies it to `stack`.
    #[allow(clippy::too_many_arguments, reason = "one step of `unpack`, whose state it advances")]
    fn layer(
        &self,
        image: &Image,
        at: usize,
        diff_id: DiffId,
        chain: ChainId,
        stack: &mut Stack,
        lowers: &[PathBuf],
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<PathBuf, RootfsError> {
        let place = image.blobs.unpacked(at);
        if let Some(found) = self.find(diff_id, chain, place.as_deref(), stack)? {
            return Ok(found);
        }
        let locks = self.folder("locks")?;
        let _turn = lock(&locks.join(diff_id.0.hex()), FlockOperation::LockExclusive)?;
        // Somebody else may have unpacked it while we waited.
        if let Some(found) = self.find(diff_id, chain, place.as_deref(), stack)? {
            return Ok(found);
        }
        let (temporary, own) = {
            let _guard = self.lock_store()?;
            new_locked(&self.folder("layers")?, TEMPORARY)?
        };
        let unpacked = unpack(&temporary, image, at, stack, lowers, progress);
        let moved = unpacked.and_then(|index| {
            self.lack(&index.lacking);
            let own = self.publish(&temporary, own, diff_id, chain, stack)?;
            Ok(index.elsewhere.unwrap_or(own))
        });
        if moved.is_err() {
            let _ = super::housekeeping::remove_tree(&temporary);
        }
        moved
    }

    /// Gives a whole layer its final name, all of it on the disk before.
    fn publish(
        &self,
        temporary: &Path,
        own: File,
        diff_id: DiffId,
        chain: ChainId,
        stack: &Stack,
    ) -> Result<PathBuf, RootfsError> {
        rustix::fs::syncfs(&own).map_err(|e| RootfsError::io("write", temporary, e))?;
        let last = self.key_path(diff_id, chain, stack.depends())?;
        let _guard = self.lock_store()?;
        // What lies there under this lock could not be read: an older slim's, or damaged.
        let _ = std::fs::rename(&last, temporary.with_extension("old"));
        std::fs::rename(temporary, &last).map_err(|e| RootfsError::io("name", &last, e))?;
        rustix::fs::flock(&own, FlockOperation::LockShared)
            .map_err(|e| RootfsError::io("lock", &last, e))?;
        self.keep(own);
        Ok(last.join("fs"))
    }

    /// Looks for a layer unpacked before; applies it to `stack` if there is one.
    ///
    /// Most layers mean the same on any stack and are named by their diffID. One that reaches into
    /// the layers below (see [`Stack::depends`]) is good for this chain only, and named by it too.
    /// One that an engine holds counts while the engine says that it is there still, in `place`.
    fn find(
        &self,
        diff_id: DiffId,
        chain: ChainId,
        place: Option<&Path>,
        stack: &mut Stack,
    ) -> Result<Option<PathBuf>, RootfsError> {
        let alone = self.key_path(diff_id, chain, false)?;
        let chained = self.key_path(diff_id, chain, true)?;
        for candidate in [&alone, &chained] {
            let Some((index, used)) = self.read_index(candidate) else { continue };
            let elsewhere = index.elsewhere.as_deref();
            if elsewhere.is_some_and(|folder| place != Some(folder) || !folder.is_dir()) {
                continue;
            }
            let mut next = stack.clone();
            next.begin_layer(diff_id);
            let mut number = 0;
            let Ok(entries) = lines::read::<Entry>(&candidate.join(ENTRIES)) else { continue };
            for entry in entries.map_while(Result::ok) {
                next.apply(&entry)?;
                number += 1;
            }
            if number == index.entries && next.depends() == (candidate == &chained) {
                *stack = next;
                self.lack(&index.lacking);
                self.keep(used);
                return Ok(Some(elsewhere.map_or_else(|| candidate.join("fs"), Path::to_owned)));
            }
        }
        Ok(None)
    }

    fn read_index(&self, folder: &Path) -> Option<(LayerIndex, File)> {
        let used = File::open(folder.join("lock")).ok()?;
        rustix::fs::flock(&used, FlockOperation::LockShared).ok()?;
        let raw = std::fs::read(folder.join(INDEX)).ok()?;
        let index: LayerIndex = serde_json::from_slice(&raw).ok()?;
        (index.schema == SCHEMA && index.owners == limits::owners()).then_some((index, used))
    }

    fn key_path(
        &self,
        diff_id: DiffId,
        chain: ChainId,
        chained: bool,
    ) -> Result<PathBuf, RootfsError> {
        let diff = diff_id.0.hex();
        let name = if chained { format!("{diff}-{}", &chain.0.hex()[..16]) } else { diff };
        Ok(self.folder("layers")?.join(name))
    }

    fn lack(&self, more: &Lacking) {
        if let Ok(mut lacking) = self.lacking.lock() {
            lacking.add(more);
        }
    }

    fn keep(&self, used: File) {
        if let Ok(mut in_use) = self.in_use.lock() {
            in_use.push(used);
        }
    }

    pub(super) fn folder(&self, name: &str) -> Result<PathBuf, RootfsError> {
        let path = self.path.join(name);
        // Layers hold setuid programs: nobody else on the host is to reach them.
        match std::fs::DirBuilder::new().mode(0o700).create(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => {
                Err(RootfsError::io("make the folder", &path, e))
            }
            Ok(()) => Ok(path),
            Err(_) => {
                // An older slim left it open; where it is somebody else's, it is theirs to close.
                let _ = std::fs::set_permissions(&path, PermissionsExt::from_mode(0o700));
                Ok(path)
            }
        }
    }

    /// Held while names in the store come and go.
    pub(super) fn lock_store(&self) -> Result<File, RootfsError> {
        lock(&self.path.join("lock"), FlockOperation::LockExclusive)
    }

    /// An overlay cannot have its upper directory on another overlay (kernel documentation,
    /// filesystems/overlayfs.rst): there a tmpfs covers the store.
    fn prepare(&self) -> Result<(), RootfsError> {
        const OVERLAYFS_MAGIC: i64 = 0x794c_7630;
        let found = rustix::fs::statfs(&self.path)
            .map_err(|e| RootfsError::io("look at the store", &self.path, e))?;
        if found.f_type != OVERLAYFS_MAGIC {
            return Ok(());
        }
        // In a namespace of its own the tmpfs dies with slim.
        crate::sys::mount::leave_host_namespace().map_err(|error| RootfsError::Host {
            what: format!("the store {} lies on overlayfs", self.path.display()),
            why: format!("no overlay can be written there, and {error} failed ({})", error.source),
            way_out: "choose a folder on another file system with --store".into(),
        })?;
        // Neither nosuid nor nodev: the container needs both.
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("slim", &self.path, "tmpfs", flags, Some(c"mode=0700")).map_err(
            |errno| RootfsError::Host {
                what: format!("the store {} lies on overlayfs", self.path.display()),
                why: format!(
                    "no overlay can be written there, and no tmpfs mounted over it ({errno})"
                ),
                way_out: "choose a folder on another file system with --store".into(),
            },
        )?;
        let text = format!(
            "the store {} lies on overlayfs; a tmpfs covers it, so layers are unpacked into memory \
             (choose a folder on another file system with --store)",
            self.path.display()
        );
        self.warnings.lock().map(|mut warnings| warnings.push(text)).unwrap_or_default();
        Ok(())
    }
}

impl RunDir {
    /// Removes a folder below that nothing needs any more, while the caller goes on: a database's
    /// thousand files take as long as a good part of a small image.
    pub fn discard(&self, folder: PathBuf) {
        let sweep = std::thread::spawn(move || remove(&folder));
        self.sweeps.lock().map(|mut sweeps| sweeps.push(sweep)).unwrap_or_default();
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        for sweep in self.sweeps.get_mut().map(std::mem::take).unwrap_or_default() {
            let _ = sweep.join();
        }
        remove(&self.path);
    }
}

fn remove(folder: &Path) {
    if let Err(error) = super::housekeeping::remove_tree(folder) {
        tracing::debug!(path = %folder.display(), %error, "left for `slim clean`");
    }
}

/// Each folder once: an overlay refuses the same one twice (ELOOP), and images do repeat layers,
/// empty ones above all. The topmost stays, for it shows everything that the lower ones would.
fn distinct(lowers: Vec<PathBuf>) -> Vec<PathBuf> {
    let mut seen = std::collections::HashSet::new();
    let mut kept: Vec<PathBuf> =
        lowers.into_iter().rev().filter(|path| seen.insert(path.clone())).collect();
    kept.reverse();
    kept
}

/// Unpacks one layer into `folder`, unless an engine has done so, and writes its index beside it.
fn unpack(
    folder: &Path,
    image: &Image,
    at: usize,
    stack: &mut Stack,
    lowers: &[PathBuf],
    progress: &(dyn Fn(u64) + Sync),
) -> Result<LayerIndex, RootfsError> {
    let diff_id = image.layers[at].diff_id;
    if let Some(place) = image.blobs.unpacked(at) {
        let mut next = stack.clone();
        let list = folder.join(ENTRIES);
        match elsewhere::index(&place, image, at, &mut next, &list, progress) {
            Ok(entries) => {
                *stack = next;
                return write_index(folder, Lacking::default(), entries, Some(place));
            }
            Err(Ok(why)) => {
                tracing::info!("layer {diff_id} is unpacked and not used in place: {why}");
            }
            Err(Err(error)) => return Err(error),
        }
    }
    // Opened before: where the bytes come from may have to write elsewhere.
    let stream = layer::open(image, at)?;
    stack.begin_layer(diff_id);
    super::confine::within(folder, || fill(folder, stream, stack, lowers, progress))
}

/// Unpacks the layer just begun.
fn fill(
    folder: &Path,
    mut stream: layer::LayerStream,
    stack: &mut Stack,
    lowers: &[PathBuf],
    progress: &(dyn Fn(u64) + Sync),
) -> Result<LayerIndex, RootfsError> {
    let fs = folder.join("fs");
    std::fs::create_dir(&fs).map_err(|e| RootfsError::io("make the folder", &fs, e))?;
    let mut writer = Writer::new(&fs)?;
    let list = folder.join(ENTRIES);
    let unwritten = |e| RootfsError::io("write", &list, e);
    let mut lines = Lines::create(&list).map_err(unwritten)?;
    let mut entries = 0;
    while let Some(mut entry) = stream.next_entry()? {
        writer.place(stack, &mut entry, &mut stream, lowers)?;
        lines.put(&entry).map_err(unwritten)?;
        entries += 1;
        progress(stream.bytes_read());
        if crate::sys::signals::interrupted() {
            return Err(RootfsError::Interrupted);
        }
    }
    stream.finish()?;
    lines.finish().map_err(unwritten)?;
    let lacking = writer.finish(stack)?;
    write_index(folder, lacking, entries, None)
}

fn write_index(
    folder: &Path,
    lacking: Lacking,
    entries: u64,
    elsewhere: Option<PathBuf>,
) -> Result<LayerIndex, RootfsError> {
    let path = folder.join(INDEX);
    let owners = limits::owners();
    let index = LayerIndex { schema: SCHEMA, owners, lacking, entries, elsewhere };
    let bytes = serde_json::to_vec(&index).map_err(std::io::Error::from);
    bytes
        .and_then(|bytes| std::fs::write(&path, bytes))
        .map_err(|e| RootfsError::io("write", &path, e))?;
    Ok(index)
}

/// `/var/lib/slim`, or the user's data folder (XDG Base Directory Specification, `$XDG_DATA_HOME`).
fn default_path() -> PathBuf {
    if rustix::process::geteuid().is_root() && !crate::sys::userns::inside() {
        return DEFAULT.into();
    }
    let folder =
        |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let data = folder("XDG_DATA_HOME").or_else(|| Some(folder("HOME")?.join(".local/share")));
    data.map_or_else(|| DEFAULT.into(), |data| data.join(NAME))
}

/// A new folder with a random name and a `lock` in it, held.
pub(super) fn new_locked(parent: &Path, prefix: &str) -> Result<(PathBuf, File), RootfsError> {
    for _ in 0..100 {
        let path = parent.join(format!("{prefix}{}", random_hex()));
        match std::fs::create_dir(&path) {
            Ok(()) => {
                let lock = lock(&path.join("lock"), FlockOperation::LockExclusive)?;
                return Ok((path, lock));
            }
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(RootfsError::io("make the folder", &path, e)),
        }
    }
    let source = std::io::Error::from(std::io::ErrorKind::AlreadyExists);
    Err(RootfsError::Io { what: "find a free name in", path: parent.into(), source })
}

/// Twelve digits. The standard library seeds its hash maps from the kernel's random numbers.
pub(super) fn random_hex() -> String {
    use std::hash::{BuildHasher, Hasher};
    let mut hasher = std::collections::hash_map::RandomState::new().build_hasher();
    hasher.write_u32(std::process::id());
    format!("{:012x}", hasher.finish() & 0xffff_ffff_ffff)
}

pub(super) fn lock(path: &Path, how: FlockOperation) -> Result<File, RootfsError> {
    let file = File::options().create(true).truncate(false).write(true).read(true).open(path);
    let file = file.map_err(|e| RootfsError::io("open the lock", path, e))?;
    rustix::io::retry_on_intr(|| rustix::fs::flock(&file, how))
        .map_err(|e| RootfsError::io("lock", path, e))?;
    Ok(file)
}
