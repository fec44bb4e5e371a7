//! Files of one JSON value a line: long lists are written and read without being in memory as a whole.

use std::fs::File;
use std::io::{BufRead as _, BufReader, BufWriter, Write as _};
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Writes values, each on its line.
pub(super) struct Lines(BufWriter<File>);

impl Lines {
    /// A new file, in place of one that is there.
    pub fn create(path: &Path) -> std::io::Result<Self> {
        Ok(Self(BufWriter::new(File::create(path)?)))
    }

    pub fn put(&mut self, value: &impl Serialize) -> std::io::Result<()> {
        serde_json::to_writer(&mut self.0, value)?;
        self.0.write_all(b"\n")
    }

    /// What is left in the buffer goes to the file.
    pub fn finish(mut self) -> std::io::Result<()> {
        self.0.flush()
    }
}

/// Hands out the values of such a file, in order.
pub(super) fn read<T: DeserializeOwned>(
    path: &Path,
) -> std::io::Result<impl Iterator<Item = std::io::Result<T>> + use<T>> {
    let mut file = BufReader::new(File::open(path)?);
    let mut line = Vec::new();
    Ok(std::iter::from_fn(move || {
        line.clear();
        match file.read_until(b'\n', &mut line) {
            Ok(0) => None,
            Ok(_) => Some(serde_json::from_slice(&line).map_err(std::io::Error::from)),
            Err(error) => Some(Err(error)),
        }
    }))
}
