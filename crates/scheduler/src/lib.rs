//! Places pods on nodes: filter and score over a snapshot.
