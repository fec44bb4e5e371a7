//! A layer of the result on its way to the disk: hashed, compressed, hashed again.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::Receiver;
use std::thread::JoinHandle;

use sha2::{Digest as _, Sha256};

use crate::model::{DiffId, Digest};

use super::pack::{BLOCK, Blocks, Packed, Packing, Stream};

const PART: &str = "layer.part";

/// A written layer.
#[derive(Debug, Clone)]
pub struct Written {
    pub diff_id: DiffId,
    pub digest: Digest,
    /// Bytes as stored.
    pub size: u64,
    pub media_type: &'static str,
    /// True if it is a layer of the original, its tar byte for byte.
    pub whole: bool,
}

/// Takes a layer's tar; other threads compress it, so that reading the original goes on.
pub(super) struct BlobWriter {
    buffer: Vec<u8>,
    blocks: Blocks,
    thread: Option<JoinHandle<io::Result<Written>>>,
    temporary: PathBuf,
}

impl BlobWriter {
    /// Writes into `folder`, under a name that [`BlobWriter::finish`] changes into the digest.
    pub fn new(folder: &Path, packing: &Packing) -> io::Result<Self> {
        let temporary = folder.join(PART);
        let file = File::create(&temporary)?;
        let (blocks, ordered) = Blocks::new(packing);
        let packing = *packing;
        let thread = std::thread::spawn(move || store(file, &packing, &ordered));
        let buffer = Vec::with_capacity(BLOCK);
        Ok(Self { buffer, blocks, thread: Some(thread), temporary })
    }

    /// Ends the tar and names the blob by its digest.
    pub fn finish(mut self) -> io::Result<Written> {
        self.write_all(&[0; 1024])?;
        self.finish_as_it_is()
    }

    /// Names the blob of a tar that has its end already.
    pub fn finish_as_it_is(mut self) -> io::Result<Written> {
        self.send()?;
        let written = self.join()?;
        std::fs::rename(&self.temporary, self.temporary.with_file_name(written.digest.hex()))?;
        Ok(written)
    }

    fn send(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let full = std::mem::replace(&mut self.buffer, Vec::with_capacity(BLOCK));
        let sent = self.blocks.add(full);
        if sent { Ok(()) } else { self.join().and(Err(io::ErrorKind::BrokenPipe.into())) }
    }

    fn join(&mut self) -> io::Result<Written> {
        self.blocks.end();
        let thread = self.thread.take().ok_or(io::ErrorKind::BrokenPipe)?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the compressor died")))
    }
}

impl Drop for BlobWriter {
    fn drop(&mut self) {
        self.blocks.end();
    }
}

impl Write for BlobWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = bytes.len().min(BLOCK - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..n]);
        if self.buffer.len() == BLOCK {
            self.send()?;
        }
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn store(
    file: File,
    packing: &Packing,
    ordered: &Receiver<Receiver<io::Result<Packed>>>,
) -> io::Result<Written> {
    let mut out = Stream::new(hashed(file), packing)?;
    let mut plain = Sha256::new();
    for block in ordered {
        let packed = block.recv().map_err(|_| io::Error::other("the compressor died"))??;
        plain.update(&packed.plain);
        out.add(&packed)?;
    }
    let mut out = out.finish()?;
    out.inner.flush()?;
    Ok(Written {
        diff_id: DiffId(Digest::from_raw(plain.finalize().into())),
        size: out.size,
        digest: out.digest(),
        media_type: packing.compression.media_type(),
        whole: false,
    })
}

/// Copies a blob as it is into `folder`; returns its digest, which is its name there unless another one
/// was wanted, and its size.
pub(super) fn copy(
    from: &mut impl io::Read,
    want: Option<Digest>,
    folder: &Path,
) -> io::Result<(Digest, u64)> {
    let temporary = folder.join(PART);
    let mut out = hashed(File::create(&temporary)?);
    io::copy(&mut io::BufReader::with_capacity(BLOCK, from), &mut out)?;
    out.inner.flush()?;
    let (size, digest) = (out.size, out.digest());
    if want.is_none_or(|want| want == digest) {
        std::fs::rename(&temporary, folder.join(digest.hex()))?;
    }
    Ok((digest, size))
}

fn hashed(file: File) -> Hashed<BufWriter<File>> {
    Hashed::new(BufWriter::with_capacity(BLOCK, file))
}

/// Hashes what it passes on.
pub(super) struct Hashed<W> {
    inner: W,
    hash: Sha256,
    size: u64,
}

impl<W: Write> Hashed<W> {
    pub fn new(inner: W) -> Self {
        Self { inner, hash: Sha256::new(), size: 0 }
    }

    /// The digest of all of it.
    pub fn digest(self) -> Digest {
        Digest::from_raw(self.hash.finalize().into())
    }
}

impl<W: Write> Write for Hashed<W> {
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
