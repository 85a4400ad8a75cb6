//! `fio --verify` over and over on a device, until it is stopped or finds something.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};

use crate::shell;

/// A running verification.
pub struct Verifier {
    stop: Arc<AtomicBool>,
    abandon: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<Result<u32>>>,
}

impl Verifier {
    /// Begins. fio's own files go to `folder`.
    ///
    /// # Errors
    /// When fio is missing.
    pub fn start(device: &Path, folder: &Path) -> Result<Self> {
        let fio = shell::find_program("fio").context("fio is missing; `cargo xtask test` installs it")?;
        let (stop, abandon) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let (device, folder) = (device.to_owned(), folder.to_owned());
        let (stopped, abandoned) = (Arc::clone(&stop), Arc::clone(&abandon));
        let thread = std::thread::spawn(move || {
            let mut passes = 0;
            while !stopped.load(Ordering::SeqCst) {
                pass(&fio, &device, &folder, &abandoned)?;
                passes += 1;
            }
            Ok(passes)
        });
        Ok(Self { stop, abandon, thread: Some(thread) })
    }

    /// What ended it before anybody asked it to end.
    pub fn found(&mut self) -> Option<anyhow::Error> {
        let thread = self.thread.take_if(|thread| thread.is_finished())?;
        match thread.join() {
            Ok(Err(error)) => Some(error),
            Ok(Ok(_)) => Some(anyhow!("fio ended by itself")),
            Err(_) => Some(anyhow!("the thread that ran fio panicked")),
        }
    }

    /// Lets the present pass end. How many there were.
    ///
    /// # Errors
    /// What fio found, or that it does not end within `limit`.
    pub fn finish(mut self, limit: Duration) -> Result<u32> {
        self.stop.store(true, Ordering::SeqCst);
        let Some(thread) = self.thread.take() else { bail!("fio has failed already") };
        shell::wait_for("the end of fio's last pass", limit, || Ok(thread.is_finished().then_some(())))?;
        thread.join().map_err(|_| anyhow!("the thread that ran fio panicked"))?
    }
}

impl Drop for Verifier {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // Not waited for: its fio may wait for a device that goes only when the cluster is taken away.
        self.abandon.store(true, Ordering::SeqCst);
    }
}

/// Writes 1 000 blocks all over 32 MiB and reads them back.
fn pass(fio: &PathBuf, device: &Path, folder: &Path, abandoned: &AtomicBool) -> Result<()> {
    let mut command = Command::new(fio);
    command.args(["--name=verify", "--rw=randwrite", "--bs=4k", "--size=32m", "--direct=1", "--ioengine=psync"]);
    command.arg("--number_ios=1000").process_group(0);
    command.args(["--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--rate_iops=250", "--randrepeat=0"]);
    command.arg(format!("--filename={}", device.display()));
    command.current_dir(folder).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().context("cannot start fio")?;
    loop {
        if child.try_wait().context("fio cannot be waited for")?.is_some() {
            break;
        }
        if abandoned.load(Ordering::SeqCst) {
            let _ = child.kill();
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let output = child.wait_with_output().context("fio cannot be waited for")?;
    if output.status.success() || abandoned.load(Ordering::SeqCst) {
        return Ok(());
    }
    bail!("fio ended with {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim())
}
