//! Faults on purpose: for tests with real processes, a file says what the disk does wrong, and may change at any time.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cairn_disk::{Disk, FaultyDisk, parse_faults};
use tokio_util::sync::{CancellationToken, DropGuard};

/// How soon a changed file counts.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Puts the faults of the file in front of the disk. They are looked at anew until the guard is dropped.
pub(crate) fn inject(disk: Arc<dyn Disk>, file: PathBuf) -> (Arc<dyn Disk>, DropGuard) {
    tracing::warn!(
        file = %file.display(),
        "THIS OSD'S DISK FAILS ON PURPOSE, as this file says: it is for tests, and data on it may be lost"
    );
    let faulty = Arc::new(FaultyDisk::new(disk, u64::from(std::process::id())));
    let mut known = String::new();
    take(&file, &faulty, &mut known);
    let tally = file.with_extension("happened");
    let mut told = 0;
    let stop = CancellationToken::new();
    let (stopped, watched) = (stop.clone(), Arc::clone(&faulty));
    tokio::spawn(async move {
        let mut clock = tokio::time::interval(LOOK_EVERY);
        while !stopped.is_cancelled() {
            tokio::select! {
                _ = clock.tick() => {
                    take(&file, &watched, &mut known);
                    tell(&tally, watched.happened(), &mut told);
                }
                () = stopped.cancelled() => {}
            }
        }
    });
    (faulty, stop.drop_guard())
}

/// Takes over what the file says, if it changed. A missing file says nothing; nonsense changes nothing.
fn take(file: &Path, disk: &FaultyDisk, known: &mut String) {
    let text = match std::fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return tracing::warn!(file = %file.display(), %error, "cannot read the faults"),
    };
    if text == *known {
        return;
    }
    match parse_faults(&text) {
        Ok(faults) => {
            tracing::warn!(?faults, happened = disk.happened(), "the disk fails on purpose like this from now on");
            disk.set_faults(faults);
        }
        Err(error) => tracing::warn!(file = %file.display(), %error, "the faults stay as they were"),
    }
    *known = text;
}

/// Leaves the number of faults that happened, for whoever must know that they did.
fn tell(tally: &Path, happened: u64, told: &mut u64) {
    if happened == *told {
        return;
    }
    match std::fs::write(tally, happened.to_string()) {
        Ok(()) => *told = happened,
        Err(error) => tracing::warn!(file = %tally.display(), %error, "cannot leave the number of faults"),
    }
}

#[cfg(test)]
mod tests {
    use cairn_disk::SimDisk;

    use super::*;

    #[test]
    fn a_changed_file_counts_and_nonsense_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("faults");
        let disk = FaultyDisk::new(Arc::new(SimDisk::new(1 << 20, 1)), 1);
        let mut known = String::new();
        for (text, fails) in [("sync-error", true), ("explode", true), ("# none", false), ("sync-error", true)] {
            std::fs::write(&file, text).unwrap();
            take(&file, &disk, &mut known);
            assert_eq!(disk.sync().is_err(), fails, "{text}");
        }
        let (tally, mut told) = (file.with_extension("happened"), 0);
        tell(&tally, disk.happened(), &mut told);
        assert_eq!((std::fs::read_to_string(&tally).unwrap(), told), (disk.happened().to_string(), disk.happened()));
        std::fs::remove_file(&file).unwrap();
        take(&file, &disk, &mut known);
        assert!(disk.sync().is_ok());
    }
}
