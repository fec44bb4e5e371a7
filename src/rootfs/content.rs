//! Reads a file's content once: for its digest, for the facts in it, and for whoever stores it.

use crate::inspect;
use crate::model::Facts;
use crate::oci::layer::{Entry, EntryKind, LayerStream};

use super::RootfsError;

/// Programs larger than this are not looked into; the largest known in images has half of it.
const MAX_FACTS: usize = 512 << 20;

/// Fills in digest and facts of `entry`, if it is a file, and hands every chunk to `store`.
pub(super) fn read(
    stream: &mut LayerStream,
    entry: &mut Entry,
    mut store: impl FnMut(&[u8]) -> Result<(), RootfsError>,
) -> Result<(), RootfsError> {
    let EntryKind::File { content, facts, .. } = &mut entry.kind else { return Ok(()) };
    let mut seen = Some(Vec::new());
    let digest = stream.content(|chunk| {
        look(&mut seen, chunk, facts);
        store(chunk)
    })?;
    *content = Some(digest);
    if let Some(whole) = seen {
        *facts = inspect::facts(&whole).map(Box::new);
    }
    Ok(())
}

/// Collects content for as long as there may be facts in it.
fn look(seen: &mut Option<Vec<u8>>, chunk: &[u8], facts: &mut Option<Box<Facts>>) {
    let Some(bytes) = seen else { return };
    let head = if bytes.is_empty() { chunk } else { bytes.as_slice() };
    // A chunk can be a byte; four tell.
    if head.len() >= 4 && !inspect::wants(head) {
        *seen = None;
        return;
    }
    bytes.extend_from_slice(chunk);
    // Of a script only the first line matters.
    let script = bytes.starts_with(b"#!");
    if bytes.len() > MAX_FACTS || (script && bytes.len() > 512) {
        *facts = if script { inspect::facts(bytes).map(Box::new) } else { None };
        *seen = None;
    }
}
