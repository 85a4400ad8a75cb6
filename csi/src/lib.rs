//! The CSI driver: Identity, Controller and Node services.
