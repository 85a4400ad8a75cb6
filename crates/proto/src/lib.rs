//! Generated protobuf types and gRPC stubs of every protocol Cairn speaks: its own (`meta`, `attach`), and those
//! of others, written out in `proto/` as far as they are used (etcd v3, CSI v1, CRI v1, plugin registration).
//!
//! Nothing here decides anything. `bytes` fields are `Bytes`, so that payloads are sliced and not copied.

#![forbid(unsafe_code)]

macro_rules! generated {
    ($(#[$doc:meta])* $name:ident, $package:literal) => {
        $(#[$doc])*
        #[allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all)]
        pub mod $name {
            tonic::include_proto!($package);
        }
    };
}

generated!(
    /// `cairn.meta.v1`: the metadata service.
    meta, "cairn.meta.v1"
);
generated!(
    /// `cairn.attach.v1`: the node's data daemon.
    attach, "cairn.attach.v1"
);
