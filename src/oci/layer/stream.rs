//! A layer's bytes on their way from the blob to its entries, every one of them verified.
//!
//! A thread of its own reads, hashes and decompresses; entries are parsed where they are used, and what
//! was decompressed is hashed there. So two processors share the work.

use std::io::{self, BufRead, BufReader, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;

use sha2::{Digest as _, Sha256};

use crate::model::{DiffId, Digest};
use crate::oci::Image;
use crate::oci::limits::{Limits, Spent};

use super::reader::read_buffered;
use super::{Compression, Entry, EntryKind, LayerError, TarReader};

const CHUNK: usize = 256 << 10;
const AHEAD: usize = 16;
/// Less than a chunk: a layer that is stored as it is goes into the chunks past the buffer.
const BUFFER: usize = 64 << 10;

/// One layer, being read. [`LayerStream::finish`] must be called for its digests to be checked.
pub struct LayerStream {
    tar: TarReader<Chunks>,
    layer: usize,
    blob: Option<(Digest, u64)>,
    diff_id: DiffId,
    /// False for a layer that was verified before.
    verify: bool,
    plain: bool,
    thread: Option<JoinHandle<io::Result<Pumped>>>,
    read: Arc<AtomicU64>,
    limits: Limits,
    spent: Spent,
}

/// Opens layer `index` of `image` for reading.
pub fn open(image: &Image, index: usize) -> Result<LayerStream, LayerError> {
    start(image, index, true)
}

/// Opens a layer that was verified before, to read it once more: its digests are not checked.
pub fn open_again(image: &Image, index: usize) -> Result<LayerStream, LayerError> {
    start(image, index, false)
}

fn start(image: &Image, index: usize, verify: bool) -> Result<LayerStream, LayerError> {
    let layer = &image.layers[index];
    let (blob, diff_id) = (layer.blob, layer.diff_id);
    let source = image.blobs.open(index).map_err(|source| LayerError::Read {
        layer: index,
        blob: blob_name(blob, diff_id),
        source,
    })?;
    let unread = |source| LayerError::Read { layer: index, blob: blob_name(blob, diff_id), source };
    let read = Arc::new(AtomicU64::new(0));
    let progress = Arc::clone(&read);
    let (compression, source) = sniff(source).map_err(unread)?;
    let hash = verify.then(Sha256::new);
    let source = Counted { inner: source, hash, size: 0, progress };
    let source = BufReader::with_capacity(BUFFER, source);
    // Stored as it is, its blob's digest is its diffID.
    let hash = (verify && compression != Compression::None).then(Sha256::new);
    let (sender, receiver) = sync_channel(AHEAD);
    let (used, spare) = channel();
    let thread = std::thread::spawn(move || pump(source, compression, &sender, &spare));
    let (limits, spent) = (image.blobs.limits(), Spent::default());
    let chunks =
        Chunks { receiver, used, chunk: Vec::new(), at: 0, before: 0, hash, left: limits.bytes };
    let tar = TarReader::new(chunks, index, diff_id);
    let thread = Some(thread);
    let plain = compression == Compression::None;
    Ok(LayerStream { tar, layer: index, blob, diff_id, verify, plain, thread, read, limits, spent })
}

/// How a blob is compressed, by its first bytes; and the whole blob.
pub fn sniff(mut blob: Box<dyn Read + Send>) -> io::Result<(Compression, Box<dyn Read + Send>)> {
    let mut head = Vec::with_capacity(4);
    Read::by_ref(&mut blob).take(4).read_to_end(&mut head)?;
    Ok((Compression::of(&head), Box::new(io::Cursor::new(head).chain(blob))))
}

impl LayerStream {
    /// The next entry, content of the last one skipped.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, LayerError> {
        let entry = self.tar.next_entry().map_err(|error| self.cause(error))?;
        let size = match entry.as_ref().map(|entry| &entry.kind) {
            Some(EntryKind::File { size, .. }) => *size,
            _ => 0,
        };
        // Before the content is read: a hole of any size takes a few bytes of the layer.
        let why = self.spent.add(size, self.limits).filter(|_| entry.is_some());
        why.map_or(Ok(entry), |why| Err(LayerError::Limit { layer: self.layer, why }))
    }

    /// True if the layer is stored as it is.
    pub fn is_plain(&self) -> bool {
        self.plain
    }

    /// Where in the layer's tar the content of the entry at hand begins, if nothing of it was read and it
    /// lies there in one piece.
    pub fn content_at(&mut self) -> Option<u64> {
        let whole = self.tar.is_in_one_piece();
        let chunks = self.tar.inner_mut();
        whole.then(|| chunks.before + chunks.at as u64)
    }

    /// Passes over the next entry, see [`TarReader::skip_entry`].
    pub fn skip_entry(&mut self) -> Result<bool, LayerError> {
        self.tar.skip_entry().map_err(|error| self.cause(error))
    }

    /// Hands what is left of the content of the entry at hand to `take`, as it comes; the digest of it.
    ///
    /// # Errors
    /// What reading meets, and what `take` returns.
    pub fn content<E: From<LayerError>>(
        &mut self,
        mut take: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<Digest, E> {
        let mut hash = Sha256::new();
        loop {
            let chunk = self.chunk()?;
            if chunk.is_empty() {
                return Ok(Digest::from_raw(hash.finalize().into()));
            }
            hash.update(chunk);
            take(chunk)?;
            let n = chunk.len();
            self.tar.consume(n);
        }
    }

    /// The next bytes of the content, as many as are there; none at its end.
    fn chunk(&mut self) -> Result<&[u8], LayerError> {
        if let Err(error) = self.tar.fill_buf() {
            let error = self.tar.content_error(&error);
            return Err(self.cause(error));
        }
        let (layer, blob, diff_id) = (self.layer, self.blob, self.diff_id);
        let unread = |source| LayerError::Read { layer, blob: blob_name(blob, diff_id), source };
        self.tar.fill_buf().map_err(unread)
    }

    /// Reads the bytes of the tar itself, uncompressed; 0 at its end. Not together with
    /// [`LayerStream::next_entry`].
    pub fn read_tar(&mut self, buf: &mut [u8]) -> Result<usize, LayerError> {
        let n = self.tar.inner_mut().read(buf);
        n.map_err(|source| self.bounded().err().unwrap_or_else(|| self.read_error(source)))
    }

    /// The layer goes on beyond what the whole image may have.
    fn bounded(&mut self) -> Result<(), LayerError> {
        let bytes = if self.tar.inner_mut().left == 0 { self.limits.bytes } else { 0 };
        let why = self.limits.too_large(bytes.saturating_add(1));
        why.map_or(Ok(()), |why| Err(LayerError::Limit { layer: self.layer, why }))
    }

    /// Stored bytes read so far.
    pub fn bytes_read(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }

    /// Reads to the end and checks blob digest, size and diffID.
    pub fn finish(mut self) -> Result<(), LayerError> {
        let drained = io::copy(self.tar.inner_mut(), &mut io::sink());
        self.bounded()?;
        let blob = self.check_blob()?;
        drained.map_err(|source| self.read_error(source))?;
        let plain = self.tar.inner_mut().hash.take();
        let plain = plain.map(|hash| Digest::from_raw(hash.finalize().into())).or(blob);
        match plain.map(DiffId).filter(|got| *got != self.diff_id) {
            Some(got) => Err(LayerError::DiffId { layer: self.layer, want: self.diff_id, got }),
            None => Ok(()),
        }
    }

    /// Waits for the reading thread; checks size and digest of the blob, then what else it met. The
    /// digest is that of the stored bytes.
    fn check_blob(&mut self) -> Result<Option<Digest>, LayerError> {
        let layer = self.layer;
        let thread = self.thread.take().expect("joined once");
        let ended = thread.join().unwrap_or_else(|_| Err(io::Error::other("its reader died")));
        let got = ended.map_err(|source| self.read_error(source))?;
        if let Some((want, size)) = self.blob.filter(|_| self.verify) {
            if got.size != size {
                return Err(LayerError::BlobSize { layer, blob: want, want: size, got: got.size });
            }
            if let Some(got) = got.digest.filter(|got| *got != want) {
                return Err(LayerError::BlobDigest { layer, want, got });
            }
        }
        got.error.map_or(Ok(got.digest), |source| Err(self.read_error(source)))
    }

    fn read_error(&self, source: io::Error) -> LayerError {
        LayerError::Read { layer: self.layer, blob: blob_name(self.blob, self.diff_id), source }
    }

    /// A tar that cannot be parsed is most often a damaged blob: the digest then says so better.
    /// A refused entry stays the reason.
    fn cause(&mut self, error: LayerError) -> LayerError {
        if matches!(error, LayerError::Entry { .. }) || self.thread.is_none() {
            return error;
        }
        // Its digest would take all of it to be read.
        if let Err(error) = self.bounded() {
            return error;
        }
        let _ = io::copy(self.tar.inner_mut(), &mut io::sink());
        self.bounded().and_then(|()| self.check_blob().map(drop)).err().unwrap_or(error)
    }
}

fn blob_name(blob: Option<(Digest, u64)>, diff_id: DiffId) -> String {
    blob.map_or_else(|| format!("with diffID {diff_id}"), |(digest, _)| digest.to_string())
}

/// How reading a blob ended.
struct Pumped {
    /// Of the stored bytes, if they were to be verified.
    digest: Option<Digest>,
    size: u64,
    /// What the decoder met; a wrong digest explains it better where there is one.
    error: Option<io::Error>,
}

/// Reads the blob to its end, whatever the decoder makes of it, so that its digest is known.
fn pump(
    mut source: BufReader<Counted>,
    compression: Compression,
    out: &SyncSender<Vec<u8>>,
    spare: &Receiver<Vec<u8>>,
) -> io::Result<Pumped> {
    let mut error = decode(&mut source, compression, out, spare).err();
    if error.as_ref().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe) {
        error = None; // whoever read the entries went away and has a reason of its own
    } else {
        io::copy(&mut source, &mut io::sink())?;
    }
    let Counted { hash, size, .. } = source.into_inner();
    let digest = hash.map(|hash| Digest::from_raw(hash.finalize().into()));
    Ok(Pumped { digest, size, error })
}

fn decode(
    blob: &mut BufReader<Counted>,
    compression: Compression,
    out: &SyncSender<Vec<u8>>,
    spare: &Receiver<Vec<u8>>,
) -> io::Result<()> {
    match compression {
        Compression::Gzip => send(flate2::bufread::MultiGzDecoder::new(blob), out, spare),
        Compression::Zstd => send(zstd::stream::read::Decoder::with_buffer(blob)?, out, spare),
        Compression::None => send(blob, out, spare),
    }
}

fn send(
    mut from: impl Read,
    out: &SyncSender<Vec<u8>>,
    spare: &Receiver<Vec<u8>>,
) -> io::Result<()> {
    loop {
        let mut chunk = spare.try_recv().unwrap_or_default();
        chunk.resize(CHUNK, 0);
        let mut filled = 0;
        while filled < CHUNK {
            match from.read(&mut chunk[filled..]) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        chunk.truncate(filled);
        if filled == 0 {
            return Ok(());
        }
        out.send(chunk).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
    }
}

struct Counted {
    inner: Box<dyn Read + Send>,
    hash: Option<Sha256>,
    size: u64,
    progress: Arc<AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        if let Some(hash) = &mut self.hash {
            hash.update(&buf[..n]);
        }
        self.size += n as u64;
        self.progress.store(self.size, Ordering::Relaxed);
        Ok(n)
    }
}

/// The uncompressed bytes, hashed as they are read.
struct Chunks {
    receiver: Receiver<Vec<u8>>,
    /// Takes chunks back, to be filled again.
    used: Sender<Vec<u8>>,
    chunk: Vec<u8>,
    at: usize,
    /// Bytes of the chunks before this one.
    before: u64,
    hash: Option<Sha256>,
    /// Bytes that may follow.
    left: u64,
}

impl BufRead for Chunks {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.at == self.chunk.len() {
            // A closed channel is the end; why it ended is told by the thread's result.
            let Ok(chunk) = self.receiver.recv() else { return Ok(&[]) };
            self.left = self.left.saturating_sub(chunk.len() as u64);
            if self.left == 0 {
                return Err(io::Error::other("it goes on beyond the limit"));
            }
            if let Some(hash) = &mut self.hash {
                hash.update(&chunk);
            }
            let used = std::mem::replace(&mut self.chunk, chunk);
            (self.at, self.before) = (0, self.before + used.len() as u64);
            // At its end the thread takes none any more.
            let _ = self.used.send(used);
        }
        Ok(&self.chunk[self.at..])
    }

    fn consume(&mut self, n: usize) {
        self.at += n;
    }
}

impl Read for Chunks {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        read_buffered(self, buf)
    }
}
