//! raft-rs logs through slog; its lines go to `tracing` with the member's other logs.

use slog::{Drain, Level, Logger, Never, OwnedKVList, Record, Serializer, o};

struct ToTracing;

/// A logger whose lines `tracing` receives under the target `raft`.
pub(crate) fn logger() -> Logger {
    Logger::root(ToTracing, o!())
}

impl Drain for ToTracing {
    type Ok = ();
    type Err = Never;

    fn log(&self, record: &Record<'_>, _values: &OwnedKVList) -> Result<(), Never> {
        match record.level() {
            Level::Critical | Level::Error => tracing::error!(target: "raft", "{}", line(record)),
            Level::Warning => tracing::warn!(target: "raft", "{}", line(record)),
            // Once per election or connection: what an operator reads to understand a fail-over.
            Level::Info => tracing::debug!(target: "raft", "{}", line(record)),
            // Several per message: formatted only if somebody listens.
            Level::Debug | Level::Trace => tracing::trace!(target: "raft", "{}", line(record)),
        }
        Ok(())
    }

    fn is_enabled(&self, level: Level) -> bool {
        match level {
            Level::Debug | Level::Trace => tracing::enabled!(target: "raft", tracing::Level::TRACE),
            Level::Info => tracing::enabled!(target: "raft", tracing::Level::DEBUG),
            _ => true,
        }
    }
}

fn line(record: &Record<'_>) -> String {
    let mut fields = Fields(record.msg().to_string());
    let _ = slog::KV::serialize(&record.kv(), record, &mut fields);
    fields.0
}

struct Fields(String);

impl Serializer for Fields {
    fn emit_arguments(&mut self, key: slog::Key, value: &std::fmt::Arguments<'_>) -> slog::Result {
        use std::fmt::Write;
        write!(self.0, " {key}={value}").map_err(|_| slog::Error::Other)
    }
}
