//! Last words: what a container left in its termination message file, or at the end of its log.

use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

/// As much as the API takes of one container.
const WORDS_MAX: u64 = 4096;
/// As much of a log as stands in for a message, in bytes and lines.
const LOG_MAX: u64 = 2048;
const LOG_LINES: usize = 80;

/// The file behind `terminationMessagePath` of one life of a container.
pub(crate) fn file(pod_dir: &Path, name: &str, attempt: u32) -> PathBuf {
    pod_dir.join("containers").join(name).join(attempt.to_string())
}

/// The message; where there is none and `log` is given, the end of the log.
pub(crate) fn read(file: &Path, log: Option<&Path>) -> Option<String> {
    let said = tail(file, WORDS_MAX).filter(|said| !said.is_empty());
    said.or_else(|| {
        let text = tail(log?, LOG_MAX)?;
        // The first line may be cut; the runtime's framing goes.
        let lines: Vec<&str> = text.lines().skip(1).filter_map(|line| line.splitn(4, ' ').nth(3)).collect();
        let from = lines.len().saturating_sub(LOG_LINES);
        Some(lines[from..].join("\n")).filter(|text| !text.is_empty())
    })
}

fn tail(path: &Path, max: u64) -> Option<String> {
    let mut file = std::fs::File::open(path).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(max))).ok()?;
    let mut bytes = Vec::new();
    file.take(max).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::read;

    #[test]
    fn a_message_goes_before_the_log() {
        let dir = tempfile::tempdir().expect("a directory");
        let (message, log) = (dir.path().join("m"), dir.path().join("l"));
        std::fs::write(&log, "cut off\n2026-01-01T00:00:00Z stderr F it broke\n").expect("written");
        assert_eq!(read(&message, None), None);
        assert_eq!(read(&message, Some(&log)).as_deref(), Some("it broke"));
        std::fs::write(&message, "because").expect("written");
        assert_eq!(read(&message, Some(&log)).as_deref(), Some("because"));
    }
}
