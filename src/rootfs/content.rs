//! Reads a file's content once: for its digest, for the facts in it, and for whoever stores it.

use std::fs::File;
use std::io::{Seek as _, Write as _};

use crate::inspect;
use crate::model::Facts;
use crate::oci::layer::{Entry, EntryKind, LayerStream};
use crate::sys::temporary;

use super::RootfsError;

/// Programs up to this size are looked into in memory, larger ones on the disk: machine learning has
/// libraries of more than a gigabyte.
const SMALL: usize = 16 << 20;
/// As much of a script as the kernel looks at, and more.
const SCRIPT: usize = 512;

/// Fills in digest and facts of `entry`, if it is a file, and hands every chunk to `store`.
///
/// True if the facts are yet to be had, by [`look_again`] at what was stored.
pub(super) fn store(
    stream: &mut LayerStream,
    entry: &mut Entry,
    mut store: impl FnMut(&[u8]) -> Result<(), RootfsError>,
) -> Result<bool, RootfsError> {
    let EntryKind::File { content, facts, .. } = &mut entry.kind else { return Ok(false) };
    let mut look = Look::Small(Vec::new());
    *content = Some(stream.content(|chunk| {
        look.take(chunk);
        store(chunk)
    })?);
    let large = matches!(look, Look::Large);
    *facts = look.facts();
    Ok(large)
}

/// The same where nobody stores it; `also` is handed every chunk.
pub(super) fn read(
    stream: &mut LayerStream,
    entry: &mut Entry,
    mut also: impl FnMut(&[u8]),
) -> Result<(), RootfsError> {
    let EntryKind::File { content, facts, .. } = &mut entry.kind else { return Ok(()) };
    let (mut look, mut spool) = (Look::Small(Vec::new()), None::<File>);
    let error = |what| move |e| RootfsError::io(what, &temporary::folder(), e);
    *content = Some(stream.content(|chunk| {
        also(chunk);
        let written = match (look.take(chunk), &mut spool) {
            (Some(so_far), none) => tempfile::tempfile_in(temporary::folder())
                .and_then(|file| none.insert(file).write_all(&so_far)),
            (None, Some(file)) => file.write_all(chunk),
            (None, None) => Ok(()),
        };
        written.map_err(error("keep a large program in"))
    })?);
    *facts = match spool {
        Some(mut file) => {
            file.rewind().map_err(error("read a large program in"))?;
            inspect::facts_of_program(file).map(Box::new)
        }
        None => look.facts(),
    };
    Ok(())
}

/// Fills in the facts in a large program that was stored.
pub(super) fn look_again(entry: &mut Entry, file: &File) {
    if let EntryKind::File { facts, .. } = &mut entry.kind {
        *facts = inspect::facts_of_program(file).map(Box::new);
    }
}

/// What is known of a file so far.
enum Look {
    /// All of it, as long as there may be facts in it.
    Small(Vec<u8>),
    /// What there is to know.
    Done(Option<Box<Facts>>),
    /// A program that is not kept in memory.
    Large,
}

impl Look {
    /// What there was of a program that becomes large by this chunk, the chunk included.
    fn take(&mut self, chunk: &[u8]) -> Option<Vec<u8>> {
        let Self::Small(bytes) = self else { return None };
        let head = if bytes.is_empty() { chunk } else { bytes.as_slice() };
        // A chunk can be a byte; four tell.
        if head.len() >= 4 && !inspect::wants(head) {
            *self = Self::Done(None);
            return None;
        }
        bytes.extend_from_slice(chunk);
        if bytes.starts_with(b"#!") && bytes.len() > SCRIPT {
            *self = Self::Done(inspect::facts(bytes).map(Box::new));
        } else if bytes.len() > SMALL {
            let so_far = std::mem::take(bytes);
            *self = Self::Large;
            return Some(so_far);
        }
        None
    }

    fn facts(self) -> Option<Box<Facts>> {
        match self {
            Self::Small(whole) => inspect::facts(&whole).map(Box::new),
            Self::Done(facts) => facts,
            Self::Large => None,
        }
    }
}
