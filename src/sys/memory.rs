//! How the allocator treats memory that slim no longer needs (mallopt(3), malloc_trim(3), glibc).

/// One arena for all threads, and large blocks mapped by themselves whatever was freed before: what the
/// recorder's thread gathered is freed by another, which is to use it again.
pub fn share_arena() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt changes parameters under the allocator's own lock and takes plain numbers.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 128 << 10);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 1 << 20);
    }
}

/// Lists of a million things are mapped by themselves, whatever was freed before: none of them leaves a
/// hole in the heap that nothing else fills.
pub fn map_lists() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt changes parameters under the allocator's own lock and takes plain numbers.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 4 << 20);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 8 << 20);
    }
}

/// Gives whole free pages back to the kernel.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim only releases pages that hold nothing allocated.
    unsafe {
        libc::malloc_trim(0);
    }
}
