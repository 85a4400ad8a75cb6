//! The object store engine: WAL, extents, checksums, index.
