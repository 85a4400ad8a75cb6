//! Reconcilers: provisioning and binding, attach and detach.
