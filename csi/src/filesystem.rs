//! The filesystems that volumes are given, and what each wants. How they are made, checked and grown is the node half's
//! business.

/// One that works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Filesystem {
    Ext4,
    Xfs,
    Btrfs,
}

impl Filesystem {
    /// For whoever asks for none.
    pub(crate) const DEFAULT: Self = Self::Ext4;

    /// By the name that StorageClasses, volume capabilities and the kernel have for it.
    pub(crate) fn named(name: &str) -> Option<Self> {
        [Self::Ext4, Self::Xfs, Self::Btrfs].into_iter().find(|filesystem| filesystem.as_str() == name)
    }

    /// Whether it grows only while it is mounted.
    pub(crate) fn grows_only_mounted(self) -> bool {
        matches!(self, Self::Xfs | Self::Btrfs)
    }

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
        }
    }

    /// The smallest volume for it, in bytes: ext4 gets a journal from here on, mkfs.xfs refuses less, and the kernel
    /// resizes no btrfs to less.
    pub(crate) fn least(self) -> u64 {
        match self {
            Self::Ext4 => 8 << 20,
            Self::Xfs => 300 << 20,
            Self::Btrfs => 256 << 20,
        }
    }
}

impl std::fmt::Display for Filesystem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}
