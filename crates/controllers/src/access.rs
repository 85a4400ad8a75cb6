//! Access modes and volume modes, and what they are called in CSI.

use cairn_proto::csi::VolumeCapability;
use cairn_proto::csi::volume_capability::access_mode::Mode;
use cairn_proto::csi::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume};

/// Whether a claim or volume is a raw block device; the other mode, and the default, is a filesystem.
pub(crate) fn is_block(volume_mode: Option<&str>) -> bool {
    volume_mode == Some("Block")
}

/// Whether volumes with these modes may be attached to several nodes at once.
pub(crate) fn is_shared(modes: &[String]) -> bool {
    modes.iter().any(|mode| mode == "ReadWriteMany" || mode == "ReadOnlyMany")
}

/// What a driver must be asked for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shape {
    pub(crate) modes: Vec<String>,
    pub(crate) block: bool,
    pub(crate) fs_type: String,
    pub(crate) mount_flags: Vec<String>,
}

impl Shape {
    fn capability(&self, mode: Mode) -> VolumeCapability {
        let access_type = if self.block {
            AccessType::Block(BlockVolume {})
        } else {
            AccessType::Mount(MountVolume {
                fs_type: self.fs_type.clone(),
                mount_flags: self.mount_flags.clone(),
                ..MountVolume::default()
            })
        };
        VolumeCapability { access_type: Some(access_type), access_mode: Some(AccessMode { mode: mode.into() }) }
    }

    /// One capability for each access mode: what a new volume must be able to do.
    pub(crate) fn all(&self, fine: bool) -> Vec<VolumeCapability> {
        self.modes.iter().filter_map(|mode| csi_mode(mode, fine)).map(|mode| self.capability(mode)).collect()
    }

    /// The capability under which the volume is published: the widest of its modes.
    pub(crate) fn widest(&self, fine: bool) -> VolumeCapability {
        let order = ["ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod", "ReadOnlyMany"];
        let widest = order.into_iter().find(|mode| self.modes.iter().any(|own| own == mode));
        let mode = widest.and_then(|mode| csi_mode(mode, fine)).unwrap_or(Mode::SingleNodeWriter);
        self.capability(mode)
    }
}

/// `fine`: the driver tells one writer on a node from several (SINGLE_NODE_MULTI_WRITER).
fn csi_mode(mode: &str, fine: bool) -> Option<Mode> {
    match (mode, fine) {
        ("ReadWriteOnce", true) => Some(Mode::SingleNodeMultiWriter),
        ("ReadWriteOncePod", true) => Some(Mode::SingleNodeSingleWriter),
        ("ReadWriteOnce" | "ReadWriteOncePod", false) => Some(Mode::SingleNodeWriter),
        ("ReadOnlyMany", _) => Some(Mode::MultiNodeReaderOnly),
        ("ReadWriteMany", _) => Some(Mode::MultiNodeMultiWriter),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_become_those_of_csi() {
        let shape = Shape { modes: vec!["ReadOnlyMany".into(), "ReadWriteOnce".into()], ..Shape::default() };
        let modes = |all: Vec<VolumeCapability>| -> Vec<Mode> {
            all.into_iter().map(|one| one.access_mode.expect("a mode").mode()).collect()
        };
        assert_eq!(modes(shape.all(false)), [Mode::MultiNodeReaderOnly, Mode::SingleNodeWriter]);
        assert_eq!(modes(vec![shape.widest(true)]), [Mode::SingleNodeMultiWriter]);
        assert!(is_shared(&shape.modes) && !is_shared(&["ReadWriteOncePod".to_owned()]));
    }
}
