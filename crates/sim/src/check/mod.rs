//! What must hold of every run, each question in a file of its own.

pub(crate) mod flush;
pub(crate) mod linear;
pub(crate) mod prefix;
pub(crate) mod replicas;
