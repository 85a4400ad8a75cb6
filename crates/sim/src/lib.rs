//! Deterministic simulation: virtual clock, network and disks.
