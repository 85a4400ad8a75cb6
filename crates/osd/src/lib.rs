//! The object storage daemon: joins osd-core, store and the network.
