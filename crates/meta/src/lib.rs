//! The metadata daemon: raft driver, RocksDB, gRPC and the etcd v3 API.
