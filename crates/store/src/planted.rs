//! Bugs planted on purpose, so that crash enumeration and simulation can show that they would find them. Only with the
//! feature `planted`, which nothing that ships turns on, can one be chosen, at run time; without it every question here
//! is answered "no" when the program is compiled.

macro_rules! bugs {
    ($($(#[doc = $doc:literal])* $name:ident, $text:literal;)*) => {
        /// One planted bug.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Bug {
            $($(#[doc = $doc])* $name,)*
        }

        impl Bug {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The name it is asked for by.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }
        }
    };
}

bugs! {
    /// Entries take effect when they are durable, committed or not.
    ApplyBeforeCommit, "apply-before-commit";
    /// A short write is copied over committed bytes before it is committed.
    CopyBeforeCommit, "copy-before-commit";
    /// A long write goes where committed bytes lie.
    WriteInPlace, "write-in-place";
    /// A transaction is acknowledged when it is written, flushed or not.
    AckUnflushed, "ack-unflushed";
    /// The flush does not wait for long writes to their extents.
    FlushBeforeWrites, "flush-before-writes";
    /// A freed block is used again at once.
    ReuseBeforeCheckpoint, "reuse-before-checkpoint";
    /// The old index's nodes are used again before the new one is durable.
    ReuseTreeNodes, "reuse-tree-nodes";
    /// The superblock is written before what it leads to is durable.
    IndexBeforeData, "index-before-data";
    /// A checkpoint does not wait until short writes are copied to their places.
    ForgetDeferred, "forget-deferred";
    /// A checkpoint does not log pending entries again.
    ForgetPending, "forget-pending";
    /// There is one superblock, written over itself.
    OneSuperblock, "one-superblock";
    /// Replay drops a long write that a later short one lies over.
    DropOverlaid, "drop-overlaid";
    /// Replay believes the data of a record that may not have been flushed.
    TrustUnflushed, "trust-unflushed";
    /// Replay does not write down what it dropped.
    ForgetDropped, "forget-dropped";
    /// Replay takes the first record that does not follow for the end, whatever lies behind it.
    CutAtRot, "cut-at-rot";
}

#[cfg(all(feature = "planted", not(test)))]
static CHOSEN: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(u32::MAX);

/// Chooses the bug of this process, or none.
#[cfg(all(feature = "planted", not(test)))]
pub fn plant(bug: Option<Bug>) {
    CHOSEN.store(bug.map_or(u32::MAX, |bug| bug as u32), std::sync::atomic::Ordering::Relaxed);
}

#[cfg(all(feature = "planted", not(test)))]
pub(crate) fn planted(bug: Bug) -> bool {
    CHOSEN.load(std::sync::atomic::Ordering::Relaxed) == bug as u32
}

// The tests of this crate run beside one another: each has its own choice.
#[cfg(all(feature = "planted", test))]
thread_local! {
    static CHOSEN: std::cell::Cell<Option<Bug>> = const { std::cell::Cell::new(None) };
}

/// Chooses the bug of this thread, or none.
#[cfg(all(feature = "planted", test))]
pub fn plant(bug: Option<Bug>) {
    CHOSEN.set(bug);
}

#[cfg(all(feature = "planted", test))]
pub(crate) fn planted(bug: Bug) -> bool {
    CHOSEN.get() == Some(bug)
}

#[cfg(not(feature = "planted"))]
pub(crate) const fn planted(_: Bug) -> bool {
    false
}
