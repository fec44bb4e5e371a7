//! Where contents lie once an image is indexed: whoever writes them into a result need not decode their
//! layers once more.
//!
//! In a layer that is stored as it is, that is the layer itself. Of others, what is likely to be wanted
//! is set aside in temporary files without a name. What has no room there is read again, so nothing here
//! is an error.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::keep::{Foresight, Looker};
use crate::oci::layer::{Entry, EntryKind};
use crate::oci::{KnownPlaces, Place};
use crate::sys::temporary;

const BUFFER: usize = 256 << 10;
/// All that is set aside with one [`Room`] takes no more than this, nor than a quarter of what is free.
const MOST: u64 = 4 << 30;
/// What tar fills contents up to.
const BLOCK: u64 = 512;

/// How many bytes may be set aside.
pub struct Room(AtomicU64);

impl Room {
    /// As much as temporary files may have now.
    pub fn now() -> Self {
        let free = temporary::room(&temporary::folder()).ok().flatten();
        Self(AtomicU64::new(free.map_or(0, |free| MOST.min(free / 4))))
    }
}

/// Which contents are wanted.
#[derive(Clone, Copy)]
pub struct Wish<'a> {
    pub foresight: &'a Foresight,
    /// Of this layer and those above it; 0 is the lowest.
    pub from: usize,
    pub room: &'a Room,
}

/// Where contents of an image lie.
#[derive(Default)]
pub struct Aside(BTreeMap<usize, Layer>);

/// Where those of one layer lie.
pub(super) struct Layer {
    file: Arc<File>,
    starts: Starts,
}

/// Where contents begin, by the number of the entry: the lower half of an inode
/// ([`crate::model::Node::inode`]).
enum Starts {
    /// In a tar that begins at `tar`: in which of its blocks, 0 for what is no content in one piece.
    Every { tar: u64, blocks: Vec<u32> },
    /// Those of `entries`, in order.
    Picked { entries: Vec<u32>, offsets: Vec<u64> },
}

impl KnownPlaces for Aside {
    fn find(&self, inode: u64) -> Option<Place<'_>> {
        let layer = self.0.get(&usize::try_from(inode >> 32).ok()?)?;
        let entry = u32::try_from(inode & 0xffff_ffff).ok()?;
        let (at, copy) = match &layer.starts {
            Starts::Every { tar, blocks } => {
                let block = *blocks.get(usize::try_from(entry).ok()?)?;
                ((block > 0).then(|| tar + u64::from(block) * BLOCK)?, false)
            }
            Starts::Picked { entries, offsets } => {
                (offsets[entries.binary_search(&entry).ok()?], true)
            }
        };
        Some(Place { file: &layer.file, at, copy })
    }
}

impl FromIterator<(usize, Layer)> for Aside {
    fn from_iter<T: IntoIterator<Item = (usize, Layer)>>(layers: T) -> Self {
        Self(layers.into_iter().collect())
    }
}

/// One thread's work on this.
pub(super) struct Setter<'a> {
    wish: Wish<'a>,
    /// Says what is likely to be wanted; nothing once there is no room.
    looker: Option<Looker<'a>>,
    out: Option<BufWriter<File>>,
    /// Bytes in it.
    len: u64,
    layer: usize,
    /// Entries of the layer so far, the one at hand included: `oci::apply` counts alike.
    entry: u32,
    /// The file that the layer lies in as it is.
    file: Option<Arc<File>>,
    starts: Starts,
    /// Layers that lie in files as they are.
    whole: Vec<(usize, Layer)>,
    /// What lies in `out`.
    spooled: Vec<(usize, Starts)>,
}

impl<'a> Setter<'a> {
    pub fn new(wish: Wish<'a>) -> Self {
        Self {
            wish,
            looker: Some(wish.foresight.looker()),
            out: None,
            len: 0,
            layer: 0,
            entry: 0,
            file: None,
            starts: nothing(),
            whole: Vec::new(),
            spooled: Vec::new(),
        }
    }

    /// A layer begins. If its tar lies in a file as it is: in which one, and from where on.
    pub fn begin(&mut self, layer: usize, tar: Option<(Arc<File>, u64)>) {
        (self.layer, self.entry) = (layer, 0);
        (self.file, self.starts) = match tar {
            Some((file, tar)) => (Some(file), Starts::Every { tar, blocks: vec![0] }),
            None => (None, nothing()),
        };
    }

    /// The next entry of the layer, whose content begins at byte `at` of its tar, if it lies there in one
    /// piece. True if the content is to be given to [`Setter::add`].
    pub fn next(&mut self, entry: &Entry, at: Option<u64>) -> bool {
        self.entry += 1;
        let size = match entry.kind {
            EntryKind::File { size: size @ 1.., .. } => Some(size),
            _ => None,
        };
        match &mut self.starts {
            Starts::Every { blocks, .. } => {
                let block = at.filter(|at| size.is_some() && at % BLOCK == 0).map(|at| at / BLOCK);
                blocks.push(block.and_then(|block| u32::try_from(block).ok()).unwrap_or(0));
                false
            }
            // A hole costs nothing to read, and written would be as large as it says.
            Starts::Picked { .. } => {
                at.is_some() && size.is_some_and(|size| self.set_aside(entry, size))
            }
        }
    }

    fn set_aside(&mut self, entry: &Entry, size: u64) -> bool {
        let wants = |looker: &mut Looker<'_>| looker.wants(&entry.path);
        if self.layer < self.wish.from || !self.looker.as_mut().is_some_and(wants) {
            return false;
        }
        let take = |left: u64| left.checked_sub(size);
        if self.wish.room.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_err() {
            return false;
        }
        if self.out.is_none() {
            match tempfile::tempfile_in(temporary::folder()) {
                Ok(file) => self.out = Some(BufWriter::with_capacity(BUFFER, file)),
                Err(error) => {
                    self.give_up(&error);
                    return false;
                }
            }
        }
        if let Starts::Picked { entries, offsets } = &mut self.starts {
            entries.push(self.entry);
            offsets.push(self.len);
        }
        true
    }

    /// The next bytes of the content.
    pub fn add(&mut self, chunk: &[u8]) {
        self.len += chunk.len() as u64;
        if let Some(Err(error)) = self.out.as_mut().map(|out| out.write_all(chunk)) {
            self.give_up(&error);
        }
    }

    /// The layer has no more.
    pub fn end(&mut self) {
        let starts = std::mem::replace(&mut self.starts, nothing());
        match self.file.take() {
            Some(file) => self.whole.push((self.layer, Layer { file, starts })),
            None => self.spooled.push((self.layer, starts)),
        }
    }

    /// What there is to be had.
    pub fn finish(mut self) -> Vec<(usize, Layer)> {
        match self.out.take().map(BufWriter::into_inner) {
            Some(Ok(file)) => {
                let file = Arc::new(file);
                let spooled = self.spooled.into_iter();
                let spooled =
                    spooled.map(|(at, starts)| (at, Layer { file: Arc::clone(&file), starts }));
                self.whole.extend(spooled);
            }
            Some(Err(error)) => self.give_up(error.error()),
            None => {}
        }
        self.whole
    }

    /// Forgets what this thread set aside, and has no more.
    fn give_up(&mut self, error: &std::io::Error) {
        tracing::info!(%error, "contents are not set aside but read again");
        (self.out, self.looker) = (None, None);
        self.spooled.clear();
        if self.file.is_none() {
            self.starts = nothing();
        }
    }
}

fn nothing() -> Starts {
    Starts::Picked { entries: Vec::new(), offsets: Vec::new() }
}
