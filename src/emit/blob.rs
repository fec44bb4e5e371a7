//! A layer of the result on its way to the disk: hashed, compressed, hashed again.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use flate2::{Compression, GzBuilder};
use sha2::{Digest as _, Sha256};

use crate::model::{DiffId, Digest};

const CHUNK: usize = 256 << 10;
const AHEAD: usize = 16;

/// A written layer.
#[derive(Debug, Clone)]
pub(super) struct Written {
    pub diff_id: DiffId,
    pub digest: Digest,
    /// Bytes, compressed.
    pub size: u64,
}

/// Takes a layer's tar; a thread of its own compresses it, so that reading the original goes on.
pub(super) struct BlobWriter {
    buffer: Vec<u8>,
    sender: Option<SyncSender<Vec<u8>>>,
    thread: Option<JoinHandle<io::Result<Written>>>,
    temporary: PathBuf,
}

impl BlobWriter {
    /// Writes into `folder`, under a name that [`BlobWriter::finish`] changes into the digest.
    pub fn new(folder: &Path) -> io::Result<Self> {
        let temporary = folder.join("layer.part");
        let file = File::create(&temporary)?;
        let (sender, receiver) = sync_channel(AHEAD);
        let thread = std::thread::spawn(move || compress(file, &receiver));
        let buffer = Vec::with_capacity(CHUNK);
        Ok(Self { buffer, sender: Some(sender), thread: Some(thread), temporary })
    }

    /// Ends the tar and names the blob by its digest.
    pub fn finish(mut self) -> io::Result<Written> {
        self.write_all(&[0; 1024])?;
        self.send()?;
        let written = self.join()?;
        std::fs::rename(&self.temporary, self.temporary.with_file_name(written.digest.hex()))?;
        Ok(written)
    }

    fn send(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let full = std::mem::replace(&mut self.buffer, Vec::with_capacity(CHUNK));
        let sent = self.sender.as_ref().is_some_and(|sender| sender.send(full).is_ok());
        if sent { Ok(()) } else { self.join().and(Err(io::ErrorKind::BrokenPipe.into())) }
    }

    fn join(&mut self) -> io::Result<Written> {
        self.sender = None;
        let thread = self.thread.take().ok_or(io::ErrorKind::BrokenPipe)?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the compressor died")))
    }
}

impl Write for BlobWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = bytes.len().min(CHUNK - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..n]);
        if self.buffer.len() == CHUNK {
            self.send()?;
        }
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The gzip header says nothing of time or place, so equal layers are equal blobs.
fn compress(file: File, chunks: &Receiver<Vec<u8>>) -> io::Result<Written> {
    let out = Hashed { inner: BufWriter::new(file), hash: Sha256::new(), size: 0 };
    let mut gzip = GzBuilder::new().mtime(0).operating_system(255).write(out, Compression::new(6));
    let mut plain = Sha256::new();
    for chunk in chunks {
        plain.update(&chunk);
        gzip.write_all(&chunk)?;
    }
    let mut out = gzip.finish()?;
    out.inner.flush()?;
    Ok(Written {
        diff_id: DiffId(Digest::from_raw(plain.finalize().into())),
        digest: Digest::from_raw(out.hash.finalize().into()),
        size: out.size,
    })
}

struct Hashed {
    inner: BufWriter<File>,
    hash: Sha256,
    size: u64,
}

impl Write for Hashed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(bytes)?;
        self.hash.update(&bytes[..n]);
        self.size += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
