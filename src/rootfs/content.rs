//! Reads a file's content once: for its digest, for the facts in it, and for whoever stores it.

use sha2::{Digest as _, Sha256};

use crate::inspect;
use crate::model::Digest;
use crate::oci::layer::{Entry, EntryKind, LayerStream};

use super::RootfsError;

const CHUNK: usize = 128 << 10;
/// Programs larger than this are not looked into; the largest known in images has half of it.
const MAX_FACTS: usize = 512 << 20;

/// Fills in digest and facts of `entry`, if it is a file, and hands every chunk to `store`.
pub(super) fn read(
    stream: &mut LayerStream,
    entry: &mut Entry,
    mut store: impl FnMut(&[u8]) -> Result<(), RootfsError>,
) -> Result<(), RootfsError> {
    let EntryKind::File { size, content, facts } = &mut entry.kind else { return Ok(()) };
    let mut hash = Sha256::new();
    let mut whole: Option<Vec<u8>> = None;
    let mut first = true;
    let mut buf = vec![0; CHUNK.min(usize::try_from(*size).unwrap_or(CHUNK)).max(1)];
    loop {
        let n = fill(stream, &mut buf)?;
        let chunk = &buf[..n];
        if std::mem::take(&mut first) && inspect::wants(chunk) {
            whole = Some(Vec::new());
        }
        if let Some(bytes) = &mut whole {
            bytes.extend_from_slice(chunk);
            // Of a script only the first line matters.
            if bytes.len() > MAX_FACTS || (bytes.starts_with(b"#!") && bytes.len() > 512) {
                *facts = if bytes.starts_with(b"#!") {
                    inspect::facts(bytes).map(Box::new)
                } else {
                    None
                };
                whole = None;
            }
        }
        if n == 0 {
            break;
        }
        hash.update(chunk);
        store(chunk)?;
    }
    *content = Some(Digest::from_raw(hash.finalize().into()));
    if let Some(bytes) = whole {
        *facts = inspect::facts(&bytes).map(Box::new);
    }
    Ok(())
}

/// Fills `buf` as far as the content goes.
fn fill(stream: &mut LayerStream, buf: &mut [u8]) -> Result<usize, RootfsError> {
    let mut filled = 0;
    while filled < buf.len() {
        match stream.read(&mut buf[filled..])? {
            0 => break,
            n => filled += n,
        }
    }
    Ok(filled)
}
