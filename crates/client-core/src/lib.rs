//! Striping, in-flight ordering and resend as seen by a writer, without I/O.
