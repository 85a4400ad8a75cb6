//! Finds the metadata leader, retries idempotently, watches the map.
