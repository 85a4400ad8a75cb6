//! Data-path frames to bytes and back, without I/O.
