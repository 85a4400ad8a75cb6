//! What a volume is asked to be: a filesystem or a raw device, for one node or several; and whether that can be.

use cairn_proto::csi::VolumeCapability;
use cairn_proto::csi::volume_capability::AccessType;
use cairn_proto::csi::volume_capability::access_mode::Mode;
use cairn_types::volume::AttachMode;

use crate::filesystem::Filesystem;

/// A capability that was checked: this driver can honour it.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Capability {
    pub(crate) access: Access,
    pub(crate) mode: Mode,
}

/// How the volume shows itself.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Access {
    /// A device node.
    Block,
    /// A filesystem, of this kind if the request names one, mounted with these options. They may hold secrets.
    /// Its files are for this group, if one is named.
    Mount { filesystem: Option<Filesystem>, flags: Vec<String>, group: Option<u32> },
}

/// A capability that cannot be honoured.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CapabilityError {
    #[error("the request has no volume capability")]
    Missing,
    #[error("the volume capability says neither `block` nor `mount`; say one")]
    NoAccessType,
    #[error("the volume capability has no access mode; use SINGLE_NODE_WRITER (ReadWriteOnce)")]
    NoAccessMode,
    #[error("the filesystem `{}` is not supported; use ext4, xfs or btrfs", .0.escape_debug())]
    Filesystem(String),
    #[error(
        "a filesystem cannot be written from several nodes ({0}); use ReadWriteOnce, or volumeMode Block where the application coordinates its writers"
    )]
    SharedFilesystem(&'static str),
    #[error("the access mode MULTI_NODE_SINGLE_WRITER is not supported; use SINGLE_NODE_WRITER (ReadWriteOnce)")]
    OneOfManyWrites,
    #[error("the volume mount group is `{}`; write the number of a group", .0.escape_debug())]
    MountGroup(String),
}

impl Capability {
    /// Checks one.
    pub(crate) fn parse(given: Option<&VolumeCapability>) -> Result<Self, CapabilityError> {
        let given = given.ok_or(CapabilityError::Missing)?;
        let mode = given.access_mode.as_ref().map_or(Mode::Unknown, |mode| mode.mode());
        let access = match given.access_type.as_ref().ok_or(CapabilityError::NoAccessType)? {
            AccessType::Block(_) => Access::Block,
            AccessType::Mount(mount) => {
                let named = match mount.fs_type.as_str() {
                    "" => None,
                    name => Some(Filesystem::named(name).ok_or_else(|| CapabilityError::Filesystem(name.to_owned()))?),
                };
                let group = mount_group(&mount.volume_mount_group)?;
                Access::Mount { filesystem: named, flags: mount.mount_flags.clone(), group }
            }
        };
        match (&access, mode) {
            (_, Mode::Unknown) => Err(CapabilityError::NoAccessMode),
            (_, Mode::MultiNodeSingleWriter) => Err(CapabilityError::OneOfManyWrites),
            (Access::Mount { .. }, Mode::MultiNodeMultiWriter) => {
                Err(CapabilityError::SharedFilesystem("MULTI_NODE_MULTI_WRITER, ReadWriteMany"))
            }
            _ => Ok(Self { access, mode }),
        }
    }

    /// Checks a list that must not be empty.
    pub(crate) fn parse_all(given: &[VolumeCapability]) -> Result<Vec<Self>, CapabilityError> {
        if given.is_empty() {
            return Err(CapabilityError::Missing);
        }
        given.iter().map(|capability| Self::parse(Some(capability))).collect()
    }

    /// The smallest volume for it, in bytes.
    pub(crate) fn least(&self) -> u64 {
        match self.access {
            Access::Mount { filesystem, .. } => filesystem.unwrap_or(Filesystem::DEFAULT).least(),
            Access::Block => Filesystem::DEFAULT.least(),
        }
    }

    /// How the node must hold the volume.
    pub(crate) fn attach_mode(&self, read_only: bool) -> AttachMode {
        match self.mode {
            _ if read_only => AttachMode::ReadOnly,
            Mode::SingleNodeReaderOnly | Mode::MultiNodeReaderOnly => AttachMode::ReadOnly,
            Mode::MultiNodeMultiWriter => AttachMode::Shared,
            _ => AttachMode::Exclusive,
        }
    }
}

/// The number of a group; the greatest means no group to the kernel.
fn mount_group(text: &str) -> Result<Option<u32>, CapabilityError> {
    if text.is_empty() {
        return Ok(None);
    }
    let number = text.parse().ok().filter(|number| *number != u32::MAX && text.bytes().all(|b| b.is_ascii_digit()));
    number.map(Some).ok_or_else(|| CapabilityError::MountGroup(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use cairn_proto::csi::volume_capability::{AccessMode, BlockVolume, MountVolume};

    use super::*;

    fn mount(fs_type: &str, mode: Mode) -> VolumeCapability {
        let mount = MountVolume { fs_type: fs_type.into(), ..MountVolume::default() };
        VolumeCapability {
            access_type: Some(AccessType::Mount(mount)),
            access_mode: Some(AccessMode { mode: mode.into() }),
        }
    }

    fn block(mode: Mode) -> VolumeCapability {
        VolumeCapability { access_type: Some(AccessType::Block(BlockVolume {})), ..mount("", mode) }
    }

    fn refused(given: &VolumeCapability) -> Option<CapabilityError> {
        Capability::parse(Some(given)).err()
    }

    #[test]
    fn what_works_is_taken_and_what_does_not_is_refused_in_words() {
        assert!(refused(&mount("", Mode::SingleNodeWriter)).is_none());
        assert!(refused(&mount("ext4", Mode::SingleNodeSingleWriter)).is_none());
        assert!(refused(&mount("ext4", Mode::MultiNodeReaderOnly)).is_none());
        assert!(refused(&mount("xfs", Mode::SingleNodeWriter)).is_none());
        assert!(refused(&block(Mode::MultiNodeMultiWriter)).is_none());
        assert!(refused(&mount("btrfs", Mode::SingleNodeWriter)).is_none());
        assert_eq!(refused(&mount("zfs", Mode::SingleNodeWriter)), Some(CapabilityError::Filesystem("zfs".into())));
        let group = |group: &str| {
            let group = group.to_owned();
            let asked = MountVolume { volume_mount_group: group, ..MountVolume::default() };
            VolumeCapability { access_type: Some(AccessType::Mount(asked)), ..mount("", Mode::SingleNodeWriter) }
        };
        assert!(refused(&group("2000")).is_none());
        for wrong in ["staff", "-1", "4294967295", "1 "] {
            assert_eq!(refused(&group(wrong)), Some(CapabilityError::MountGroup(wrong.into())));
        }
        let shared = refused(&mount("", Mode::MultiNodeMultiWriter)).unwrap().to_string();
        assert!(shared.contains("ReadWriteMany") && shared.contains("use ReadWriteOnce"), "{shared}");
        assert_eq!(refused(&block(Mode::Unknown)), Some(CapabilityError::NoAccessMode));
        assert_eq!(refused(&VolumeCapability::default()), Some(CapabilityError::NoAccessType));
        assert_eq!(Capability::parse(None).err(), Some(CapabilityError::Missing));
        assert_eq!(Capability::parse_all(&[]).err(), Some(CapabilityError::Missing));
    }

    #[test]
    fn the_mode_decides_how_the_node_holds_it() {
        let mode = |given, read_only| Capability::parse(Some(&given)).unwrap().attach_mode(read_only);
        assert_eq!(mode(mount("", Mode::SingleNodeWriter), false), AttachMode::Exclusive);
        assert_eq!(mode(mount("", Mode::SingleNodeWriter), true), AttachMode::ReadOnly);
        assert_eq!(mode(mount("", Mode::MultiNodeReaderOnly), false), AttachMode::ReadOnly);
        assert_eq!(mode(block(Mode::MultiNodeMultiWriter), false), AttachMode::Shared);
    }
}
