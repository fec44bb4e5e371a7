//! The BPF ring buffer, read (`BPF_MAP_TYPE_RINGBUF`, Linux 5.8; kernel/bpf/ringbuf.c).
//!
//! Its data is mapped once. Libraries map it twice in a row, so that no record is split at the end,
//! and the kernel counts each mapping as memory of the process; here a split record is put together.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

/// The record is being written (`BPF_RINGBUF_BUSY_BIT`).
const BUSY: u32 = 1 << 31;
/// The record was given up (`BPF_RINGBUF_DISCARD_BIT`).
const DISCARD: u32 = 1 << 30;
/// Length and page offset, before each record.
const HEADER: usize = 8;

/// The reading end of a BPF ring.
pub struct BpfRing {
    fd: OwnedFd,
    /// One page, ours to write: how far we have read.
    consumer: Mapping,
    /// One page with how far the kernel has written, then the data.
    producer: Mapping,
    /// Bytes of data, a power of two of pages.
    size: usize,
    page: usize,
    /// A record that was split.
    whole: Vec<u8>,
}

impl BpfRing {
    /// Maps the ring of `size` bytes.
    ///
    /// # Errors
    /// mmap(2)'s.
    pub fn map(fd: OwnedFd, size: usize) -> io::Result<Self> {
        let page = rustix::param::page_size();
        let write = libc::PROT_READ | libc::PROT_WRITE;
        let consumer = Mapping::new(fd.as_fd(), write, 0, page)?;
        let producer = Mapping::new(fd.as_fd(), libc::PROT_READ, page, page + size)?;
        Ok(Self { fd, consumer, producer, size, page, whole: Vec::new() })
    }

    /// Hands out the records that are there, in order, and gives their room back one by one.
    pub fn drain(&mut self, mut sink: impl FnMut(&[u8])) {
        let mut at = self.consumer.word(0).load(Ordering::Relaxed);
        // The positions only grow, and wrap with the word.
        while at != self.producer.word(0).load(Ordering::Acquire) {
            let header = self.header(at).load(Ordering::Acquire);
            if header & BUSY != 0 {
                return; // the one who writes it wakes us when it is done
            }
            let length = (header & !DISCARD) as usize;
            if header & DISCARD == 0 {
                self.record(at.wrapping_add(HEADER), length, &mut sink);
            }
            at = at.wrapping_add((HEADER + length).next_multiple_of(HEADER));
            // Not to be reordered with the next look at the producer: the kernel wakes us only if it
            // sees that we have read all.
            self.consumer.word(0).store(at, Ordering::SeqCst);
        }
    }

    fn record(&mut self, at: usize, length: usize, sink: &mut impl FnMut(&[u8])) {
        let from = at & (self.size - 1);
        let first = length.min(self.size - from);
        let start = self.producer.bytes(self.page + from, first);
        if first == length {
            return sink(start);
        }
        self.whole.clear();
        self.whole.extend_from_slice(start);
        self.whole.extend_from_slice(self.producer.bytes(self.page, length - first));
        sink(&self.whole);
    }

    /// Headers are aligned, so none is split.
    fn header(&self, at: usize) -> &AtomicU32 {
        self.producer.half_word(self.page + (at & (self.size - 1)))
    }
}

impl AsFd for BpfRing {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Shared pages of a ring.
struct Mapping {
    base: *mut u8,
    length: usize,
}

// SAFETY: the pages are the process's, whichever thread reads them; `Mapping` has no other state.
unsafe impl Send for Mapping {}

impl Mapping {
    fn new(fd: BorrowedFd<'_>, protection: i32, from: usize, length: usize) -> io::Result<Self> {
        let from = libc::off_t::try_from(from).map_err(io::Error::other)?;
        // SAFETY: a new shared mapping of a map's pages at an address of the kernel's choice touches no
        // memory of ours.
        let base = unsafe {
            let null = std::ptr::null_mut();
            libc::mmap(null, length, protection, libc::MAP_SHARED, fd.as_raw_fd(), from)
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { base: base.cast(), length })
    }

    /// A position (`unsigned long`).
    fn word(&self, at: usize) -> &AtomicUsize {
        assert!(at + size_of::<usize>() <= self.length && at.is_multiple_of(align_of::<usize>()));
        // SAFETY: within the mapping and aligned, by the check above; it lives as long as `self`, and
        // the kernel shares positions by atomic accesses.
        unsafe { &*self.base.add(at).cast::<AtomicUsize>() }
    }

    /// The length in a record's header.
    fn half_word(&self, at: usize) -> &AtomicU32 {
        assert!(at + size_of::<u32>() <= self.length && at.is_multiple_of(align_of::<u32>()));
        // SAFETY: as above; headers are shared by atomic accesses too.
        unsafe { &*self.base.add(at).cast::<AtomicU32>() }
    }

    /// A part that nobody writes: of a record that is complete and not yet given back.
    fn bytes(&self, at: usize, count: usize) -> &[u8] {
        assert!(at + count <= self.length);
        // SAFETY: within the mapping, by the check above; `record` alone calls this, for bytes between
        // the two positions, where the kernel does not write until the consumer's is moved.
        unsafe { std::slice::from_raw_parts(self.base.add(at), count) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own, of this length, and no reference into it is left.
        unsafe { libc::munmap(self.base.cast(), self.length) };
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt as _;

    use super::*;

    /// Pages as the kernel lays them out, written as it writes them.
    struct Writer {
        file: File,
        page: usize,
        at: usize,
    }

    impl Writer {
        fn new() -> Self {
            let flags = rustix::fs::MemfdFlags::CLOEXEC;
            let file = File::from(rustix::fs::memfd_create("ring", flags).unwrap());
            let page = rustix::param::page_size();
            file.set_len(3 * page as u64).unwrap();
            Self { file, page, at: 0 }
        }

        fn put(&mut self, bits: u32, data: &[u8]) {
            let head = u32::try_from(data.len()).unwrap() | bits;
            let record = [&head.to_ne_bytes()[..], &[0; 4], data].concat();
            for (at, byte) in record.iter().enumerate() {
                let to = 2 * self.page + (self.at + at) % self.page;
                self.file.write_all_at(&[*byte], to as u64).unwrap();
            }
            self.at += record.len().next_multiple_of(8);
            self.file.write_all_at(&self.at.to_ne_bytes(), self.page as u64).unwrap();
        }
    }

    fn drained(ring: &mut BpfRing) -> Vec<Vec<u8>> {
        let mut all = Vec::new();
        ring.drain(|record| all.push(record.to_vec()));
        all
    }

    #[test]
    fn records_come_whole_and_in_order_round_and_round() {
        let mut writer = Writer::new();
        let fd = writer.file.try_clone().unwrap().into();
        let mut ring = BpfRing::map(fd, writer.page).unwrap();
        assert!(drained(&mut ring).is_empty());
        // 13 bytes and a header in 24: of a page they fill all but 16 the first time round
        for round in 0..1000_u32 {
            let data = |n: u32| [&round.to_ne_bytes()[..], &[7; 5], &n.to_ne_bytes()].concat();
            for number in 0..100 {
                writer.put(if number == 50 { DISCARD } else { 0 }, &data(number));
            }
            let want: Vec<_> = (0..100).filter(|n| *n != 50).map(data).collect();
            assert_eq!(drained(&mut ring), want, "round {round}");
        }
    }

    #[test]
    fn a_record_that_is_being_written_ends_the_reading() {
        let mut writer = Writer::new();
        let fd = writer.file.try_clone().unwrap().into();
        let mut ring = BpfRing::map(fd, writer.page).unwrap();
        writer.put(0, b"done");
        writer.put(BUSY, b"not yet");
        writer.put(0, b"done too");
        assert_eq!(drained(&mut ring), [b"done"]);
        assert!(drained(&mut ring).is_empty());
    }
}
