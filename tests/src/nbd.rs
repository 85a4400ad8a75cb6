//! A volume over its NBD socket, and what is copied through it.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::cluster::Cluster;
use crate::rng::Rng;
use crate::shell::{capture, find_program, run};

/// Attaches a volume, and returns the URI of its socket.
///
/// # Errors
/// What the cluster says.
pub fn nbd(cluster: &Cluster, volume: &str) -> Result<String> {
    let socket = capture(&mut cluster.cairn(&["volume", "attach", volume, "--nbd"]))?;
    Ok(format!("nbd+unix:///?socket={}", socket.trim()))
}

/// A program that the README's test command installs.
///
/// # Errors
/// When it is missing, with what to do.
pub fn tool(name: &str) -> Result<Command> {
    let found = find_program(name).with_context(|| format!("{name} is missing; `cargo xtask test` installs it"))?;
    Ok(Command::new(found))
}

/// Copies between files and URIs, to the end.
///
/// # Errors
/// When nbdcopy cannot, or ends with another code than 0.
pub fn nbdcopy(from: &str, to: &str) -> Result<()> {
    run(tool("nbdcopy")?.args([from, to]).stdin(Stdio::null()).stdout(Stdio::null()))
}

/// A copy that goes on while something else happens.
pub struct Copying(Child);

impl Copying {
    /// Starts it.
    ///
    /// # Errors
    /// When nbdcopy cannot be started.
    pub fn start(from: &str, to: &str) -> Result<Self> {
        let mut command = tool("nbdcopy")?;
        command.args([from, to]).stdin(Stdio::null()).stdout(Stdio::null());
        Ok(Self(command.spawn().context("cannot start nbdcopy")?))
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it ended with another code than 0.
    pub fn finish(mut self) -> Result<()> {
        let status = self.0.wait().context("nbdcopy cannot be waited for")?;
        if status.success() { Ok(()) } else { bail!("nbdcopy ended with {status}") }
    }
}

impl Drop for Copying {
    fn drop(&mut self) {
        // An end that was waited for stays as it is.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Fills a file with bytes that cannot be compressed, the same for the same seed.
///
/// # Errors
/// When the file cannot be written.
pub fn noise(file: &Path, mib: usize, seed: u64) -> Result<()> {
    let mut out = BufWriter::new(File::create(file).context("cannot make the noise")?);
    let mut rng = Rng::new(seed);
    for _ in 0..mib << 17 {
        out.write_all(&rng.word().to_le_bytes())?;
    }
    out.flush().context("cannot write the noise")
}
