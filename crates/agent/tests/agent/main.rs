//! The agent on real parts: containerd, runc, CNI and this machine's kernel, with an API server in memory. Needs root.

mod pods;
mod support;
mod volumes;
