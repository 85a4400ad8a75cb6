//! The engine against a model that could not be simpler, over a disk that loses what it may.

mod basic;
mod costs;
mod crash;
mod format;
mod harness;
mod inspect;
mod model;
#[cfg(feature = "planted")]
mod planted;
mod random;
mod rot;
mod space;
mod words;
mod world;
