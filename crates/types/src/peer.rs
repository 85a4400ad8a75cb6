//! What OSDs say to each other: replication, leases, activation and recovery.
