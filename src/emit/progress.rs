//! How far the writing of layers is.

use std::cell::Cell;
use std::io::{self, Read, Write};

use crate::oci::Image;

use super::plan::{Output, Plan};

/// Bytes between two reports.
const STEP: u64 = 1 << 20;

/// Counts the contents of files that are filtered, and the stored bytes of layers that stay whole.
pub(super) struct Progress<'a> {
    told: &'a dyn Fn(u64, u64),
    done: Cell<u64>,
    total: u64,
}

impl<'a> Progress<'a> {
    pub fn new(image: &Image, plan: &Plan<'_>, told: &'a dyn Fn(u64, u64)) -> Self {
        let total = plan.outputs.iter().map(|output| match output {
            Output::Ready(..) => 0,
            Output::Whole(layer) => image.stored_size(*layer),
            Output::Filtered(filtered) => filtered.bytes(),
        });
        Self { told, done: Cell::new(0), total: total.sum() }
    }

    pub fn add(&self, n: u64) {
        let (before, done) = (self.done.get(), self.done.get() + n);
        self.done.set(done);
        if before / STEP < done / STEP || done == self.total {
            (self.told)(done, self.total);
        }
    }

    /// A reader or writer whose bytes count.
    pub fn of<'s, T>(&'s self, inner: T) -> Counted<'s, 'a, T> {
        Counted { inner, progress: self }
    }
}

pub(super) struct Counted<'s, 'a, T> {
    inner: T,
    progress: &'s Progress<'a>,
}

impl<T: Read> Read for Counted<'_, '_, T> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.progress.add(n as u64);
        Ok(n)
    }
}

impl<T: Write> Write for Counted<'_, '_, T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(bytes)?;
        self.progress.add(n as u64);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
