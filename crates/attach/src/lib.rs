//! The node data daemon: exports volumes as block devices.
