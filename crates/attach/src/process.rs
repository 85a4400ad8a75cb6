//! What a process on the block I/O path tells the kernel about itself, so that reclaiming memory never waits for
//! the very process that must write the memory out.
//!
//! None of it is required to work: without the privileges a warning says what is missing.

use std::sync::Once;

/// Marks the calling thread, and threads and children it makes later, as one that serves block I/O: its own
/// allocations must not wait for I/O.
pub fn mark_io_thread() {
    static TOLD: Once = Once::new();
    if let Err(error) = rustix::process::configure_io_flusher_behavior(true) {
        TOLD.call_once(|| {
            tracing::warn!(
                %error,
                "cannot become an I/O flusher (needs CAP_SYS_RESOURCE); memory pressure may stall I/O"
            );
        });
    }
}

/// Marks the calling thread, keeps the process's pages in memory once they were touched, and has the kernel's
/// out-of-memory killer choose somebody else.
pub fn protect(role: &str) {
    use rustix::mm::{MlockAllFlags, mlockall};
    mark_io_thread();
    // On fault only: reserved address space (stacks, arenas) would otherwise all become resident.
    if let Err(error) = mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT) {
        tracing::warn!(%error, role, "cannot lock memory (needs CAP_IPC_LOCK or a higher memlock limit)");
    }
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", "-999") {
        tracing::warn!(%error, role, "cannot lower the OOM score (needs CAP_SYS_RESOURCE)");
    }
}
