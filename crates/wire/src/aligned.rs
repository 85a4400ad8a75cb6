//! Memory for payloads: page-aligned, so that a slice of it goes to an O_DIRECT write without another copy.

use std::sync::LazyLock;

use bytes::{Bytes, BytesMut};

use crate::MAX_FRAME_PAYLOAD;

/// What payload memory is aligned to.
const ALIGNMENT: usize = 4096;

/// An empty buffer whose memory starts at a multiple of 4096 and has room for `capacity` bytes.
#[must_use]
pub fn aligned_buffer(capacity: usize) -> BytesMut {
    let mut raw = BytesMut::with_capacity(capacity + ALIGNMENT - 1);
    let padding = raw.as_ptr().align_offset(ALIGNMENT);
    raw.resize(padding, 0);
    raw.split_off(padding)
}

/// `len` zero bytes out of one allocation that everybody shares.
///
/// # Panics
/// When `len` is above [`MAX_FRAME_PAYLOAD`].
#[must_use]
pub fn zeros(len: usize) -> Bytes {
    static ZEROS: LazyLock<Bytes> = LazyLock::new(|| Bytes::from(vec![0; MAX_FRAME_PAYLOAD]));
    ZEROS.slice(..len)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payload_memory_is_page_aligned_and_stays_in_place() {
        for capacity in [0usize, 1, 4096, 100_000] {
            let mut buffer = aligned_buffer(capacity);
            assert_eq!(buffer.as_ptr().align_offset(ALIGNMENT), 0);
            assert!(buffer.capacity() >= capacity);
            let before = buffer.as_ptr();
            buffer.resize(capacity, 7);
            assert_eq!(buffer.as_ptr(), before, "filling it must not move it");
        }
    }
}
