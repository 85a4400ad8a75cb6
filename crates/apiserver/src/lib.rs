//! The Kubernetes-shaped API server over the etcd v3 API.
