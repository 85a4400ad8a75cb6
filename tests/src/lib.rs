//! The harness of everything that runs real processes: the end-to-end tests beside it, and the demo.
//!
//! It drives a cluster from outside, the way a person does, and links nothing of the product. What it starts it
//! takes away again, whatever became of the test.

#![forbid(unsafe_code)]

mod cluster;
mod fio;
mod fsx;
pub mod history;
mod hosts;
pub mod interrupt;
mod leftovers;
mod nbd;
mod netns;
mod rng;
mod shell;

pub use cluster::{Cluster, UpOptions};
pub use fio::Verifier;
pub use fsx::Fsx;
pub use hosts::{Hosts, SMALL_DISK, Signal};
pub use nbd::{Copying, nbd, nbdcopy, noise, tool};
pub use netns::{Cut, Network, address};
pub use rng::Rng;
pub use shell::{capture, cargo, device_len, find_program, output, root, run, until, wait_for};
