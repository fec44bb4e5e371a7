//! Blobs that come over the network once, however often they are read.
//!
//! A verb reads layers to unpack them and again to filter them. The first reader draws the bytes
//! and leaves them in an unnamed file; later ones, and others at the same time, read that.

use std::fs::File;
use std::io::{self, Read, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use crate::sys::signals;
use crate::sys::temporary::folder;

use super::SourceError;

/// All that `from` gives, in an unnamed file; `shown` is what messages call it.
///
/// # Errors
/// It breaks off, there is no room, or slim is interrupted.
pub(super) fn whole(shown: &str, from: &mut dyn Read) -> Result<File, SourceError> {
    let folder = folder();
    let error =
        |source| SourceError::Spool { from: shown.to_owned(), folder: folder.clone(), source };
    let mut file = tempfile::tempfile_in(&folder).map_err(error)?;
    let mut buf = vec![0; 1 << 18];
    loop {
        if signals::interrupted() {
            return Err(SourceError::Interrupted);
        }
        match from.read(&mut buf) {
            Ok(0) => return Ok(file),
            Ok(n) => file.write_all(&buf[..n]).map_err(error)?,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(source) => {
                let (path, what) = (PathBuf::from(shown), "what comes from it".to_owned());
                return Err(SourceError::Read { path, what, source });
            }
        }
    }
}

/// A blob, as much of it as has come.
pub(super) struct Spool {
    file: File,
    state: Mutex<State>,
}

struct State {
    source: Option<Box<dyn Read + Send>>,
    /// Bytes in the file.
    have: u64,
}

impl Spool {
    /// For the bytes of `source`, none of which is read yet.
    pub fn new(source: Box<dyn Read + Send>) -> io::Result<Self> {
        let file = tempfile::tempfile_in(folder())?;
        Ok(Self { file, state: Mutex::new(State { source: Some(source), have: 0 }) })
    }

    /// A reader of its own, from the start.
    pub fn reader(self: &Arc<Self>) -> SpoolReader {
        SpoolReader { spool: Arc::clone(self), at: 0 }
    }

    /// Reads at `at`, from the file or, at its end, from the source.
    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if at < state.have {
            let max = buf.len().min(usize::try_from(state.have - at).unwrap_or(usize::MAX));
            drop(state);
            return self.file.read_at(&mut buf[..max], at);
        }
        let Some(source) = state.source.as_mut() else { return Ok(0) };
        let n = source.read(buf)?;
        if n == 0 {
            state.source = None;
        } else {
            self.file.write_all_at(&buf[..n], at)?;
            state.have += n as u64;
        }
        Ok(n)
    }
}

/// Reads a spooled blob.
pub(super) struct SpoolReader {
    spool: Arc<Spool>,
    at: u64,
}

impl Read for SpoolReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.spool.read_at(buf, self.at)?;
        self.at += n as u64;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_share_what_came_once() {
        let bytes: Vec<u8> = (0..200_000u32).map(|n| u8::try_from(n % 251).unwrap()).collect();
        let spool = Arc::new(Spool::new(Box::new(io::Cursor::new(bytes.clone()))).unwrap());
        let mut start = [0; 1000];
        spool.reader().read_exact(&mut start).unwrap(); // one that goes away early
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let mut reader = spool.reader();
                std::thread::spawn(move || {
                    let mut all = Vec::new();
                    reader.read_to_end(&mut all).map(|_| all)
                })
            })
            .collect();
        for thread in threads {
            assert!(thread.join().unwrap().unwrap() == bytes);
        }
    }
}
