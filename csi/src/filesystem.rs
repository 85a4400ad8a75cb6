//! The filesystems that volumes are given, and what each wants. How they are made, checked and grown is the node half's
//! business.

/// One that works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Filesystem {
    Ext4,
    Xfs,
}

impl Filesystem {
    /// For whoever asks for none.
    pub(crate) const DEFAULT: Self = Self::Ext4;

    /// By the name that StorageClasses, volume capabilities and the kernel have for it.
    pub(crate) fn named(name: &str) -> Option<Self> {
        [Self::Ext4, Self::Xfs].into_iter().find(|filesystem| filesystem.as_str() == name)
    }

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
        }
    }

    /// The smallest volume for it, in bytes: ext4 gets a journal from here on, mkfs.xfs refuses less.
    pub(crate) fn least(self) -> u64 {
        match self {
            Self::Ext4 => 8 << 20,
            Self::Xfs => 300 << 20,
        }
    }
}

impl std::fmt::Display for Filesystem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}
