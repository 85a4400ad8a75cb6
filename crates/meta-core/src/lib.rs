//! The replicated state machine: map, volumes, attachments, key-value store.
