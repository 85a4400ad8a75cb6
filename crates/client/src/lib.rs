//! The volume client library: client-core over real connections.
