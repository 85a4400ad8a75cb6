//! Bugs planted on purpose, so that the simulation can show that it would find them. Only with the feature `planted`,
//! which nothing that ships turns on, can one be chosen, at run time; without it every question here is answered "no"
//! when the program is compiled.

/// One planted bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Bug {
    /// A request says that everything before it was answered, whether it was or not.
    AckedTooFar,
    /// A snapshot is said to hold what was acknowledged while writes before it are still on their way.
    NoDrain,
}

impl Bug {
    /// All of them.
    pub const ALL: &[Self] = &[Self::AckedTooFar, Self::NoDrain];

    /// The name it is asked for by.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::AckedTooFar => "acked-too-far",
            Self::NoDrain => "no-drain",
        }
    }
}

#[cfg(feature = "planted")]
static CHOSEN: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(u32::MAX);

/// Chooses the bug of this process, or none.
#[cfg(feature = "planted")]
pub fn plant(bug: Option<Bug>) {
    CHOSEN.store(bug.map_or(u32::MAX, |bug| bug as u32), std::sync::atomic::Ordering::Relaxed);
}

#[cfg(feature = "planted")]
pub(crate) fn planted(bug: Bug) -> bool {
    CHOSEN.load(std::sync::atomic::Ordering::Relaxed) == bug as u32
}

#[cfg(not(feature = "planted"))]
pub(crate) const fn planted(_: Bug) -> bool {
    false
}
