//! The node agent: pods through CRI, volumes through CSI.
