//! A stretch of a file, read without moving the offset that others may share.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Deref;
use std::os::unix::fs::FileExt as _;

/// Reads `file` from `at` up to `end`, in bytes from its start.
pub struct Section<F> {
    pub file: F,
    pub at: u64,
    pub end: u64,
}

impl<F: Deref<Target = File>> Read for Section<F> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end.saturating_sub(self.at)).unwrap_or(usize::MAX);
        let max = buf.len().min(left);
        let n = self.file.read_at(&mut buf[..max], self.at)?;
        self.at += n as u64;
        Ok(n)
    }
}

/// Places are those of the file.
impl<F> Seek for Section<F> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
            SeekFrom::End(by) => self.end.checked_add_signed(by),
        };
        self.at = at.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}
