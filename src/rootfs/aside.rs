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
use crate::sys::temporary;

const BUFFER: usize = 256 << 10;
/// All that is set aside takes no more than this, nor than a quarter of what is free.
const MOST: u64 = 4 << 30;
/// What tar fills contents up to.
const BLOCK: u64 = 512;

/// Where contents of an image lie.
#[derive(Default)]
pub struct Aside(BTreeMap<usize, Layer>);

/// Those of one layer.
pub(super) struct Layer {
    file: Arc<File>,
    places: Places,
}

/// Where contents begin, by the number of the entry: the lower half of an inode
/// ([`crate::model::Node::inode`]).
enum Places {
    /// In a tar that begins at `start`: in which of its blocks, 0 for what is no content in one piece.
    Tar { start: u64, blocks: Vec<u32> },
    /// Those of `entries`, in order.
    Some { entries: Vec<u32>, offsets: Vec<u64> },
}

impl Aside {
    /// The file that has the content of the inode, and where in it that begins.
    pub fn find(&self, inode: u64) -> Option<(&File, u64)> {
        let layer = self.0.get(&usize::try_from(inode >> 32).ok()?)?;
        let entry = u32::try_from(inode & 0xffff_ffff).ok()?;
        let at = match &layer.places {
            Places::Tar { start, blocks } => {
                let block = *blocks.get(usize::try_from(entry).ok()?)?;
                (block > 0).then(|| start + u64::from(block) * BLOCK)?
            }
            Places::Some { entries, offsets } => offsets[entries.binary_search(&entry).ok()?],
        };
        Some((&layer.file, at))
    }
}

impl FromIterator<(usize, Layer)> for Aside {
    fn from_iter<T: IntoIterator<Item = (usize, Layer)>>(layers: T) -> Self {
        Self(layers.into_iter().collect())
    }
}

/// How many bytes may be set aside.
pub(super) fn room() -> AtomicU64 {
    let free = temporary::room(&temporary::folder()).ok().flatten();
    AtomicU64::new(free.map_or(0, |free| MOST.min(free / 4)))
}

/// One thread's work on this.
pub(super) struct Setter<'a> {
    /// What is likely to be wanted; nothing once there is no room.
    looker: Option<Looker<'a>>,
    /// What all threads may still set aside.
    room: &'a AtomicU64,
    out: Option<BufWriter<File>>,
    /// Bytes in it.
    len: u64,
    layer: usize,
    /// Entries of the layer so far, the one at hand included: `oci::apply` counts alike.
    entry: u32,
    /// The file that the layer lies in as it is.
    file: Option<Arc<File>>,
    places: Places,
    /// Layers that lie in files as they are.
    whole: Vec<(usize, Layer)>,
    /// Places in `out`.
    spooled: Vec<(usize, Places)>,
}

impl<'a> Setter<'a> {
    pub fn new(foresight: &'a Foresight, room: &'a AtomicU64) -> Self {
        let (looker, places) = (Some(foresight.looker()), nothing());
        let (whole, spooled) = (Vec::new(), Vec::new());
        Self {
            looker,
            room,
            out: None,
            len: 0,
            layer: 0,
            entry: 0,
            file: None,
            places,
            whole,
            spooled,
        }
    }

    /// A layer begins. If its tar lies in a file as it is: in which one, and from where on.
    pub fn begin(&mut self, layer: usize, tar: Option<(Arc<File>, u64)>) {
        (self.layer, self.entry) = (layer, 0);
        (self.file, self.places) = match tar {
            Some((file, start)) => (Some(file), Places::Tar { start, blocks: vec![0] }),
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
        match &mut self.places {
            Places::Tar { blocks, .. } => {
                let block = at.filter(|at| size.is_some() && at % BLOCK == 0).map(|at| at / BLOCK);
                blocks.push(block.and_then(|block| u32::try_from(block).ok()).unwrap_or(0));
                false
            }
            // A hole is read for nothing, and written would be as large as it says.
            Places::Some { .. } => {
                at.is_some() && size.is_some_and(|size| self.set_aside(entry, size))
            }
        }
    }

    fn set_aside(&mut self, entry: &Entry, size: u64) -> bool {
        if !self.looker.as_mut().is_some_and(|look| look.wants(self.layer, &entry.path)) {
            return false;
        }
        let take = |left: u64| left.checked_sub(size);
        if self.room.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_err() {
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
        if let Places::Some { entries, offsets } = &mut self.places {
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
        let places = std::mem::replace(&mut self.places, nothing());
        match self.file.take() {
            Some(file) => self.whole.push((self.layer, Layer { file, places })),
            None => self.spooled.push((self.layer, places)),
        }
    }

    /// What there is to be had.
    pub fn finish(mut self) -> Vec<(usize, Layer)> {
        match self.out.take().map(BufWriter::into_inner) {
            Some(Ok(file)) => {
                let file = Arc::new(file);
                let spooled = self.spooled.into_iter();
                let spooled =
                    spooled.map(|(at, places)| (at, Layer { file: Arc::clone(&file), places }));
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
            self.places = nothing();
        }
    }
}

fn nothing() -> Places {
    Places::Some { entries: Vec::new(), offsets: Vec::new() }
}
