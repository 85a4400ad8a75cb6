//! Processes by identity: a pid alone may have been given to another process since, a pid with its start time not.

use std::path::Path;
use std::time::Duration;

use rustix::process::{Pid, Signal};
use serde::{Deserialize, Serialize};

/// One process, for as long as it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ProcessId {
    /// As the kernel numbers it.
    pub pid: u32,
    /// When it started, in clock ticks since boot (proc(5), field 22 of stat).
    pub start_ticks: u64,
}

impl ProcessId {
    /// The process with this pid now, if there is one and it is not a zombie.
    #[must_use]
    pub fn of(pid: u32) -> Option<Self> {
        let (state, start_ticks) = stat(pid)?;
        (state != 'Z').then_some(Self { pid, start_ticks })
    }

    /// This process.
    #[must_use]
    pub fn own() -> Self {
        Self::of(std::process::id()).expect("a running process has its entry in /proc")
    }

    /// Whether it still runs.
    #[must_use]
    pub fn is_alive(self) -> bool {
        Self::of(self.pid) == Some(self)
    }

    /// Sends a signal, unless the process is gone. Whether it was sent.
    pub fn signal(self, signal: Signal) -> bool {
        let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) else { return false };
        self.is_alive() && rustix::process::kill_process(pid, signal).is_ok()
    }

    /// Asks it to end, waits, and then makes it end.
    pub async fn stop(self, patience: Duration) {
        self.signal(Signal::TERM);
        if !self.gone_within(patience).await {
            tracing::warn!(pid = self.pid, "did not stop in time; killing it");
            self.signal(Signal::KILL);
            self.gone_within(Duration::from_secs(5)).await;
        }
    }

    /// Waits for it to be gone; false when it still runs at the end of `limit`.
    pub async fn gone_within(self, limit: Duration) -> bool {
        let deadline = tokio::time::Instant::now() + limit;
        while self.is_alive() {
            if tokio::time::Instant::now() >= deadline {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        true
    }
}

/// State letter and start time from /proc/PID/stat; the name in parentheses may hold anything.
fn stat(pid: u32) -> Option<(char, u64)> {
    let text = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat")).ok()?;
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    Some((fields.first()?.chars().next()?, fields.get(19)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_until_it_is_gone() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let id = ProcessId::of(child.id()).unwrap();
        assert!(id.is_alive());
        assert!(!ProcessId { start_ticks: id.start_ticks + 1, ..id }.is_alive(), "another life of the same pid");
        assert!(id.signal(Signal::KILL));
        child.wait().unwrap();
        assert!(!id.is_alive());
        assert!(!id.signal(Signal::KILL));
    }
}
