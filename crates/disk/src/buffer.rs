//! Memory that O_DIRECT accepts: aligned to 4 KiB, handed back to a bounded pool when the last slice of it is gone.
//!
//! The payload of a write is copied once, into one of these, and only sliced after that (`Bytes::from_owner`).

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, Weak};

use bytes::Bytes;

use crate::BLOCK;

/// Whole blocks of memory, aligned to a block.
pub struct AlignedBuf {
    start: NonNull<u8>,
    capacity: usize,
    len: usize,
    home: Weak<Shelf>,
}

// SAFETY: the buffer owns its memory alone, as a `Vec<u8>` does; the pool is behind a mutex.
unsafe impl Send for AlignedBuf {}
// SAFETY: shared access only reads.
unsafe impl Sync for AlignedBuf {}

impl AlignedBuf {
    /// `len` zero bytes, rounded up to whole blocks, outside any pool.
    #[must_use]
    pub fn zeroed(len: usize) -> Self {
        Self::allocate(len, Weak::new())
    }

    fn allocate(len: usize, home: Weak<Shelf>) -> Self {
        let len = len.max(1).next_multiple_of(BLOCK as usize);
        let layout = layout(len);
        // SAFETY: the layout's size is not zero.
        let raw = unsafe { alloc_zeroed(layout) };
        let Some(start) = NonNull::new(raw) else { handle_alloc_error(layout) };
        Self { start, capacity: len, len, home }
    }

    /// Freezes the contents: slices share the memory, which goes back to its pool with the last of them.
    #[must_use]
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

fn layout(len: usize) -> Layout {
    Layout::from_size_align(len, BLOCK as usize).expect("a buffer is far smaller than the address space")
}

impl Deref for AlignedBuf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: `start` points to `capacity >= len` initialised bytes owned by `self`.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl AsRef<[u8]> for AlignedBuf {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        let memory = Memory { start: self.start, capacity: self.capacity };
        match self.home.upgrade() {
            Some(shelf) => shelf.put(memory),
            None => drop(memory),
        }
    }
}

impl std::fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AlignedBuf({} bytes)", self.len)
    }
}

/// Owned memory without a view on it; frees itself.
struct Memory {
    start: NonNull<u8>,
    capacity: usize,
}

// SAFETY: it owns its memory alone.
unsafe impl Send for Memory {}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated by `AlignedBuf::allocate` with this very layout, and not freed before.
        unsafe { dealloc(self.start.as_ptr(), layout(self.capacity)) }
    }
}

struct Shelf {
    limit: usize,
    free: Mutex<Free>,
}

#[derive(Default)]
struct Free {
    bytes: usize,
    by_size: std::collections::BTreeMap<usize, Vec<Memory>>,
}

impl Shelf {
    fn put(&self, memory: Memory) {
        let mut free = self.free.lock().expect("no panic happens under this lock");
        if free.bytes + memory.capacity <= self.limit {
            free.bytes += memory.capacity;
            free.by_size.entry(memory.capacity).or_default().push(memory);
        }
    }

    fn take(&self, capacity: usize) -> Option<Memory> {
        let mut free = self.free.lock().expect("no panic happens under this lock");
        let memory = free.by_size.get_mut(&capacity)?.pop()?;
        free.bytes -= capacity;
        Some(memory)
    }
}

/// A bounded shelf of buffers of power-of-two sizes. Beyond the bound memory goes back to the allocator.
#[derive(Clone)]
pub struct BufferPool {
    shelf: Arc<Shelf>,
}

impl BufferPool {
    /// Keeps at most `limit` idle bytes.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self { shelf: Arc::new(Shelf { limit, free: Mutex::default() }) }
    }

    /// A buffer of `len` bytes rounded up to whole blocks, with unspecified (old, but initialised) contents.
    #[must_use]
    pub fn take(&self, len: usize) -> AlignedBuf {
        let len = len.max(1).next_multiple_of(BLOCK as usize);
        let capacity = len.next_power_of_two();
        let home = Arc::downgrade(&self.shelf);
        match self.shelf.take(capacity) {
            Some(memory) => {
                let buffer = AlignedBuf { start: memory.start, capacity, len, home };
                std::mem::forget(memory);
                buffer
            }
            None => {
                let mut buffer = AlignedBuf::allocate(capacity, home);
                buffer.len = len;
                buffer
            }
        }
    }
}

impl std::fmt::Debug for BufferPool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "BufferPool({} bytes at most)", self.shelf.limit)
    }
}

/// Whether the kernel takes this memory for O_DIRECT as it is.
pub(crate) fn is_aligned(data: &[u8]) -> bool {
    (data.as_ptr() as usize).is_multiple_of(BLOCK as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_comes_back_when_the_last_slice_is_gone() {
        let pool = BufferPool::new(1 << 20);
        let buffer = pool.take(5000);
        assert_eq!(buffer.len(), 8192);
        assert!(is_aligned(&buffer));
        let address = buffer.as_ptr();
        let bytes = buffer.freeze();
        let slice = bytes.slice(4096..);
        drop(bytes);
        assert_ne!(pool.take(8192).as_ptr(), address, "a slice still holds it");
        drop(slice);
        let again = pool.take(8192);
        let other = pool.take(8192);
        assert!(again.as_ptr() == address || other.as_ptr() == address);
    }

    #[test]
    fn the_shelf_is_bounded() {
        let pool = BufferPool::new(8192);
        let many: Vec<_> = (0..4).map(|_| pool.take(4096)).collect();
        drop(many);
        assert_eq!(pool.shelf.free.lock().unwrap().bytes, 8192);
    }
}
