//! The harness of everything that runs real processes: the end-to-end tests beside it, and the demo.
//!
//! It drives a cluster from outside, the way a person does, and links nothing of the product. What it starts it
//! takes away again, whatever became of the test.

#![forbid(unsafe_code)]

mod cluster;
mod shell;

pub use cluster::{Cluster, UpOptions};
pub use shell::{capture, cargo, find_program, output, root, run, until, wait_for};
