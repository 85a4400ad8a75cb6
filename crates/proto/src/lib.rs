//! Generated protobuf types and gRPC stubs of every protocol Cairn speaks: its own (`meta`, `attach`), and those
//! of others, written out in `proto/` as far as they are used (etcd v3, CSI v1, CRI v1, plugin registration).
//!
//! Nothing here decides anything. `bytes` fields are `Bytes`, so that payloads are sliced and not copied.

#![forbid(unsafe_code)]

pub mod convert;

macro_rules! generated {
    ($(#[$doc:meta])* $name:ident, $package:literal) => {
        $(#[$doc])*
        #[allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all)]
        pub mod $name {
            tonic::include_proto!($package);
        }
    };
}

/// The generator writes paths between packages relative to the packages' own depth, so those that speak of each
/// other's messages stand at their full depth.
mod cairn {
    pub(crate) mod meta {
        generated!(
            /// `cairn.meta.v1`: the metadata service.
            v1, "cairn.meta.v1"
        );
        pub(crate) mod raft {
            generated!(
                /// `cairn.meta.raft.v1`: metadata members among themselves.
                v1, "cairn.meta.raft.v1"
            );
        }
    }
}
pub use cairn::meta::raft::v1 as meta_raft;
pub use cairn::meta::v1 as meta;

generated!(
    /// `cairn.attach.v1`: the node's data daemon.
    attach, "cairn.attach.v1"
);
generated!(
    /// etcd v3: the records of the key-value space.
    mvccpb, "mvccpb"
);
generated!(
    /// etcd v3: the calls.
    etcdserverpb, "etcdserverpb"
);
generated!(
    /// `runtime.v1`: the Container Runtime Interface.
    cri, "runtime.v1"
);
generated!(
    /// `pluginregistration`: how the agent (or a kubelet) finds plugins.
    registration, "pluginregistration"
);

/// `csi.v1`: the Container Storage Interface. Messages that carry secrets have a Debug that shows nothing.
#[allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all)]
pub mod csi {
    tonic::include_proto!("csi.v1");
    include!(concat!(env!("OUT_DIR"), "/csi.v1.redacted.rs"));
}

#[cfg(test)]
mod tests {
    use crate::csi;

    #[test]
    fn secrets_are_not_printed() {
        let mut request = csi::NodeStageVolumeRequest { volume_id: "7".into(), ..Default::default() };
        request.secrets.insert("key".into(), "hunter2".into());
        assert!(!format!("{request:?}").contains("hunter2"));
        let mount =
            csi::volume_capability::MountVolume { mount_flags: vec!["password=x".into()], ..Default::default() };
        assert!(!format!("{:?}", Some(mount)).contains("password"));
    }
}
