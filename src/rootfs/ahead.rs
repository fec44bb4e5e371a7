//! Reads layers on threads of their own, some ahead of the one whose turn it is.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::{Scope, ScopedJoinHandle};

use crate::oci::Image;
use crate::oci::layer::{self, Entry, LayerError};

use super::aside::{Aside, Layer, Setter, Wish};
use super::{RootfsError, content};

/// Entries that are handed over together.
const BATCH: usize = 256;
/// Batches of a layer that may wait for its turn: some 20 MB of a layer with long names.
const WAITING: usize = 64;
/// Layers read at a time: more would only wait for the disk.
const READERS: usize = 8;

/// Entries of a layer; none once it has no more and was verified.
type Batch = Result<Vec<Entry>, RootfsError>;
/// A layer to be read, and where its entries are to go.
type Job = (usize, SyncSender<Batch>);

/// A thread that reads layers, and tells in the end where contents lie.
type Thread<'scope> = ScopedJoinHandle<'scope, Vec<(usize, Layer)>>;

/// What comes of an image, in order.
pub(super) enum Turn<'a> {
    /// A layer begins.
    Begin(usize),
    /// An entry of it, with digest and facts.
    Entry(&'a Entry),
    /// The layer has no more, and was verified.
    End(usize),
}

/// Hands over all layers of an image, lowest first. Says where contents lie that are wished for.
///
/// # Errors
/// What reading the lowest bad layer meets, or what `take` returns.
pub(super) fn read(
    image: &Image,
    wish: Option<Wish<'_>>,
    mut take: impl FnMut(Turn<'_>) -> Result<(), LayerError>,
) -> Result<Aside, RootfsError> {
    let readers = std::thread::available_parallelism().map_or(1, usize::from).min(READERS);
    let (jobs, queue) = channel();
    let queue = Mutex::new(queue);
    std::thread::scope(|scope| {
        let (mut coming, threads) = Coming::start(scope, image, wish, &queue, readers, jobs);
        for at in 0..image.layers.len() {
            take(Turn::Begin(at))?;
            let mut whole = false;
            for batch in coming.next().into_iter().flatten() {
                if crate::sys::signals::interrupted() {
                    return Err(RootfsError::Interrupted);
                }
                let batch = batch?;
                whole = batch.is_empty();
                batch.iter().try_for_each(|entry| take(Turn::Entry(entry)))?;
            }
            if !whole {
                break; // its reader panicked, which is told below
            }
            take(Turn::End(at))?;
        }
        // Nothing is asked for any more.
        drop(coming);
        let join = |thread: Thread<'_>| {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        Ok(threads.into_iter().flat_map(join).collect())
    })
}

/// The layers that are being read, the one whose turn is next first.
struct Coming {
    jobs: Sender<Job>,
    waiting: VecDeque<Receiver<Batch>>,
    /// The first layer that nobody was told to read.
    next: usize,
    layers: usize,
    readers: usize,
}

impl Coming {
    fn start<'scope, 'env>(
        scope: &'scope Scope<'scope, 'env>,
        image: &'env Image,
        wish: Option<Wish<'env>>,
        queue: &'env Mutex<Receiver<Job>>,
        readers: usize,
        jobs: Sender<Job>,
    ) -> (Self, Vec<Thread<'scope>>) {
        let layers = image.layers.len();
        let start = |_| {
            scope.spawn(move || {
                let mut setter = wish.map(Setter::new);
                // When nothing is asked for any more, the sender is gone.
                while let Some((at, out)) = queue.lock().ok().and_then(|jobs| jobs.recv().ok()) {
                    if let Err(error) = read_layer(image, at, &out, setter.as_mut()) {
                        let _ = out.send(Err(error));
                    }
                }
                setter.map_or_else(Vec::new, Setter::finish)
            })
        };
        let threads = (0..readers.min(layers)).map(start).collect();
        let mut new = Self { jobs, waiting: VecDeque::new(), next: 0, layers, readers };
        new.ask();
        (new, threads)
    }

    /// Lets as many layers be read as there are readers.
    fn ask(&mut self) {
        while self.waiting.len() < self.readers && self.next < self.layers {
            let (sender, receiver) = sync_channel(WAITING);
            // The queue outlives this.
            let _ = self.jobs.send((self.next, sender));
            self.waiting.push_back(receiver);
            self.next += 1;
        }
    }

    /// The batches of the next layer, if there is one.
    fn next(&mut self) -> Option<Receiver<Batch>> {
        let first = self.waiting.pop_front();
        self.ask();
        first
    }
}

/// Sends the entries of a layer, unless nobody listens any more.
fn read_layer(
    image: &Image,
    at: usize,
    out: &SyncSender<Batch>,
    mut setter: Option<&mut Setter<'_>>,
) -> Result<(), RootfsError> {
    let mut stream = layer::open(image, at)?;
    if let Some(setter) = &mut setter {
        let whole = if stream.is_plain() { image.blobs.file(at) } else { None };
        setter.begin(at, whole);
    }
    let mut batch = Vec::with_capacity(BATCH);
    while let Some(mut entry) = stream.next_entry()? {
        let place = stream.content_at();
        let wanted = setter.as_mut().is_some_and(|setter| setter.next(&entry, place));
        content::read(&mut stream, &mut entry, |chunk| {
            if let Some(setter) = setter.as_mut().filter(|_| wanted) {
                setter.add(chunk);
            }
        })?;
        batch.push(entry);
        if batch.len() == BATCH {
            let full = std::mem::replace(&mut batch, Vec::with_capacity(BATCH));
            if out.send(Ok(full)).is_err() {
                return Ok(());
            }
        }
    }
    if !batch.is_empty() {
        let _ = out.send(Ok(batch));
    }
    if let Some(setter) = setter {
        setter.end();
    }
    stream.finish()?;
    let _ = out.send(Ok(Vec::new()));
    Ok(())
}
