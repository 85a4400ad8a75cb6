//! Running other programs: one place that prints what is run, and turns a failure into one sentence.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::interrupt;

/// The checkout this program was built from.
#[must_use]
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the harness lies in the workspace root").to_path_buf()
}

/// A cargo command in the checkout.
#[must_use]
pub fn cargo(args: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root()).args(args);
    // Set by `cargo run` for us; a cargo below must look for itself.
    command.env_remove("CARGO_MANIFEST_DIR").env_remove("CARGO_MANIFEST_PATH");
    command
}

/// Runs to the end with our own terminal; an exit code other than 0 is an error.
///
/// # Errors
/// When it cannot, with what it ran or waited for in the sentence.
pub fn run(command: &mut Command) -> Result<()> {
    let shown = show(command);
    println!("$ {shown}");
    let status = command.status().with_context(|| format!("cannot start `{shown}`"))?;
    if !status.success() {
        bail!("`{shown}` ended with {status}");
    }
    Ok(())
}

/// Runs to the end and returns what it printed; an exit code other than 0 is an error that quotes stderr.
///
/// # Errors
/// When it cannot, with what it ran or waited for in the sentence.
pub fn capture(command: &mut Command) -> Result<String> {
    let shown = show(command);
    let output = output(command)?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("`{shown}` ended with {}: {}", output.status, stderr.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs to the end, whatever its exit code.
///
/// # Errors
/// When it cannot, with what it ran or waited for in the sentence.
pub fn output(command: &mut Command) -> Result<Output> {
    let shown = show(command);
    command.stdin(Stdio::null()).output().with_context(|| format!("cannot start `{shown}`"))
}

/// Whether a program stands on the PATH (or in the system's sbin folders).
#[must_use]
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    folders.extend(["/usr/sbin", "/sbin", "/usr/local/bin"].map(PathBuf::from));
    folders.into_iter().map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// Asks again every 20 ms until the answer is there, for at most `limit`. What was seen last is in the error.
///
/// # Errors
/// When it cannot, with what it ran or waited for in the sentence.
pub fn wait_for<T>(what: &str, limit: Duration, mut ask: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let start = Instant::now();
    let mut last = None;
    loop {
        interrupt::check()?;
        match ask() {
            Ok(Some(answer)) => return Ok(answer),
            Ok(None) => {}
            Err(error) => last = Some(error),
        }
        if start.elapsed() > limit {
            let seen = last.map_or_else(String::new, |error| format!("; last seen: {error:#}"));
            bail!("{what} did not happen within {} s{seen}", limit.as_secs());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Bytes of an open device or file.
///
/// # Errors
/// When it has no end.
pub fn device_len(mut device: &std::fs::File) -> Result<u64> {
    use std::io::Seek;
    device.seek(std::io::SeekFrom::End(0)).context("the device has no end")
}

fn show(command: &Command) -> String {
    let mut words =
        vec![Path::new(command.get_program()).file_name().unwrap_or_default().to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|arg| arg.to_string_lossy().into_owned()));
    words.join(" ")
}

/// Asks every 20 ms for at most this many seconds; long waits of tests and of the demo all go through here.
///
/// # Errors
/// When it did not happen, with what was seen last.
pub fn until<T>(what: &str, seconds: u64, ask: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    wait_for(what, Duration::from_secs(seconds), ask)
}
