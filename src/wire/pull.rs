//! Manifests whole, blobs as streams that go on where a connection broke.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use tracing::debug;
use ureq::BodyReader;
use ureq::http::{Method, StatusCode, header};

use crate::model::Digest;

use super::WireError;
use super::http::{Call, text};
use super::repository::{Repository, Scope};

/// Registries must take manifests of 4 MiB (distribution spec, "Pushing Manifests"); a few give more.
const MAX_MANIFEST: u64 = 16 << 20;
/// Broken connections in a row, without a byte between them, before a stream gives up.
const BREAKS: u32 = 5;
/// Bytes read at once, and how many such pieces are read ahead.
const CHUNK: usize = 128 << 10;
const AHEAD: usize = 16;
/// How often a waiting reader looks whether it is to stop.
const LOOK: Duration = Duration::from_millis(200);

/// A manifest or index.
#[derive(Debug, Clone)]
pub struct Fetched {
    pub media_type: String,
    pub digest: Digest,
    pub bytes: Vec<u8>,
}

impl Repository {
    /// Fetches a manifest by tag or digest; a digest is checked.
    ///
    /// # Errors
    /// The registry has none, gives another, or cannot be reached.
    pub fn manifest(&self, wanted: &str, accept: &[&str]) -> Result<Fetched, WireError> {
        let joint = if wanted.contains(':') { '@' } else { ':' };
        let what = format!("the manifest {}{joint}{wanted}", self.full_name());
        let mut call = Call::new(Method::GET, self.url(&format!("manifests/{wanted}")));
        for kind in accept {
            call = call.header(header::ACCEPT, *kind);
        }
        let mut response = self.call(&call, &Scope::Pull)?;
        if response.status() != StatusCode::OK {
            return Err(self.failure(response, &what));
        }
        let kind = text(&response, &header::CONTENT_TYPE).unwrap_or_default();
        let kind = kind.split(';').next().unwrap_or_default().trim().to_owned();
        let body = response.body_mut().with_config().limit(MAX_MANIFEST).read_to_vec();
        let bytes = body.map_err(|source| super::http::reach(&self.host, &call.url, source))?;
        let digest = Digest::of(&bytes);
        if let Ok(want) = wanted.parse::<Digest>()
            && want != digest
        {
            return Err(WireError::WrongDigest {
                host: self.host.clone(),
                what,
                want,
                got: digest,
            });
        }
        Ok(Fetched { media_type: kind, digest, bytes })
    }

    /// Fetches a manifest that need not be there.
    ///
    /// # Errors
    /// As for [`Self::manifest`], but for one that is missing.
    pub fn find_manifest(
        &self,
        wanted: &str,
        accept: &[&str],
    ) -> Result<Option<Fetched>, WireError> {
        match self.manifest(wanted, accept) {
            Ok(found) => Ok(Some(found)),
            Err(WireError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Fetches a small blob, at most `max` bytes, and checks its digest.
    ///
    /// # Errors
    /// The registry lacks it, gives another, or cannot be reached.
    pub fn small_blob(
        self: &Arc<Self>,
        digest: &Digest,
        size: u64,
        max: u64,
    ) -> Result<Vec<u8>, WireError> {
        let what = format!("the blob {}@{digest}", self.full_name());
        let answer =
            |why: String| WireError::Answer { host: self.host.clone(), what: what.clone(), why };
        if size > max {
            return Err(answer(format!("its descriptor says {size} bytes, more than {max}")));
        }
        let mut bytes = Vec::new();
        let mut reader = self.blob(digest, size)?;
        reader.read_to_end(&mut bytes).map_err(|error| answer(error.to_string()))?;
        let got = Digest::of(&bytes);
        if got != *digest {
            let (host, want) = (self.host.clone(), *digest);
            return Err(WireError::WrongDigest { host, what, want, got });
        }
        Ok(bytes)
    }

    /// A blob's bytes. Whoever reads checks the digest; no more than `size` + 1 bytes come.
    ///
    /// # Errors
    /// The registry lacks it or cannot be reached. Later failures come as errors of the reader.
    pub fn blob(self: &Arc<Self>, digest: &Digest, size: u64) -> Result<BlobReader, WireError> {
        let mut stream = Stream {
            repository: Arc::clone(self),
            digest: *digest,
            size,
            at: 0,
            body: None,
            breaks: 0,
        };
        stream.connect()?;
        let (sender, chunks) = sync_channel(AHEAD);
        std::thread::spawn(move || stream.pump(&sender));
        let (chunk, stop) = (Vec::new(), self.options.stop);
        Ok(BlobReader { chunks, chunk, at: 0, stop })
    }
}

/// A blob on its way from the registry, read ahead by a thread of its own: so a network that stands
/// still keeps nobody from stopping.
pub struct BlobReader {
    chunks: Receiver<io::Result<Vec<u8>>>,
    chunk: Vec<u8>,
    at: usize,
    stop: Option<fn() -> bool>,
}

impl Read for BlobReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.at == self.chunk.len() {
            match self.chunks.recv_timeout(LOOK) {
                Ok(chunk) => (self.chunk, self.at) = (chunk?, 0),
                Err(RecvTimeoutError::Disconnected) => return Ok(0),
                Err(RecvTimeoutError::Timeout) if self.stop.is_some_and(|stop| stop()) => {
                    return Err(io::Error::other(WireError::Stopped));
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
        let n = buf.len().min(self.chunk.len() - self.at);
        buf[..n].copy_from_slice(&self.chunk[self.at..self.at + n]);
        self.at += n;
        Ok(n)
    }
}

/// The connection behind a blob, and the next ones when it breaks.
struct Stream {
    repository: Arc<Repository>,
    digest: Digest,
    size: u64,
    at: u64,
    body: Option<BodyReader<'static>>,
    breaks: u32,
}

impl Stream {
    /// Sends all of the blob, until it ends, fails, or nobody reads any more.
    fn pump(mut self, out: &SyncSender<io::Result<Vec<u8>>>) {
        loop {
            let mut chunk = vec![0; CHUNK];
            let read = self.read(&mut chunk);
            let ended = !matches!(read, Ok(n) if n > 0);
            let sent = match read {
                Ok(0) => return,
                Ok(n) => {
                    chunk.truncate(n);
                    out.send(Ok(chunk))
                }
                Err(error) => out.send(Err(error)),
            };
            if ended || sent.is_err() {
                return;
            }
        }
    }

    /// Asks for what is still missing.
    fn connect(&mut self) -> Result<(), WireError> {
        let repository = &self.repository;
        let what = format!("the blob {}@{}", repository.full_name(), self.digest);
        let mut call = Call::new(Method::GET, repository.url(&format!("blobs/{}", self.digest)));
        if self.at > 0 {
            call = call.header(header::RANGE, format!("bytes={}-", self.at));
        }
        let response = repository.call(&call, &Scope::Pull)?;
        let skip = match response.status() {
            StatusCode::OK => self.at,
            StatusCode::PARTIAL_CONTENT if starts_at(&response, self.at) => 0,
            StatusCode::PARTIAL_CONTENT => {
                let why = "another range than was asked for".to_owned();
                return Err(WireError::Answer { host: repository.host.clone(), what, why });
            }
            _ => return Err(repository.failure(response, &what)),
        };
        let mut body = response.into_body().into_with_config().limit(u64::MAX).reader();
        // A registry that knows no ranges begins anew.
        let skipped = io::copy(&mut (&mut body).take(skip), &mut io::sink());
        let short = skipped.and_then(|n| if n == skip { Ok(()) } else { Err(early()) });
        short.map_err(|error| {
            super::http::reach(&repository.host, &call.url, ureq::Error::Io(error))
        })?;
        self.body = Some(body);
        Ok(())
    }

    /// Notes that a connection broke; an error if that happens too often.
    fn broke(&mut self, error: io::Error) -> io::Result<()> {
        self.body = None;
        self.breaks += 1;
        if self.breaks > BREAKS || self.repository.options.stopped() {
            return Err(error);
        }
        debug!(%error, at = self.at, size = self.size, digest = %self.digest, "resuming");
        std::thread::sleep(Duration::from_millis(50 << self.breaks));
        Ok(())
    }
}

fn early() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the registry ended the blob early")
}

fn starts_at(response: &ureq::http::Response<ureq::Body>, at: u64) -> bool {
    let range = text(response, &header::CONTENT_RANGE).unwrap_or_default();
    range.strip_prefix("bytes ").and_then(|r| r.split('-').next()) == Some(at.to_string().as_str())
}

impl Read for Stream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let left = (self.size + 1).saturating_sub(self.at);
        let max = buf.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        if max == 0 {
            return Ok(0);
        }
        loop {
            if self.body.is_none() {
                match self.connect() {
                    Ok(()) => {}
                    Err(error @ WireError::Reach { .. }) => {
                        self.broke(io::Error::other(error))?;
                        continue;
                    }
                    Err(error) => return Err(io::Error::other(error)),
                }
            }
            let Some(body) = self.body.as_mut() else { return Ok(0) };
            match body.read(&mut buf[..max]) {
                Ok(0) if self.at < self.size => {
                    self.broke(early())?;
                }
                Ok(n) => {
                    self.at += n as u64;
                    if n > 0 {
                        self.breaks = 0;
                    }
                    return Ok(n);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => self.broke(error)?,
            }
        }
    }
}
