//! Starts a private containerd, waits until it serves, stops it; imports images into it.
//!
//! The process is a child, known by its pid; nothing is ever looked for by name here.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep};

use super::Settings;
use crate::cri::Runtime;

const START_LIMIT: Duration = Duration::from_secs(20);
const STOP_LIMIT: Duration = Duration::from_secs(10);
/// How often a starting containerd is asked whether it serves.
const ASK_EVERY: Duration = Duration::from_millis(20);

/// Why containerd could not be started, stopped or fed.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// A program is not on this machine.
    #[error("cannot run {program}: {source}; install the packages containerd, runc and containernetworking-plugins")]
    Missing {
        /// Which.
        program: &'static str,
        /// What starting it said.
        source: std::io::Error,
    },
    /// Files of ours could not be written.
    #[error("cannot prepare {path}: {source}")]
    Files {
        /// The directory of this containerd.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It ended instead of serving.
    #[error("containerd ended while starting ({status}); its last words are in {log}")]
    Ended {
        /// Its exit status.
        status: std::process::ExitStatus,
        /// Where its output is.
        log: PathBuf,
    },
    /// It runs, but its socket does not answer.
    #[error("containerd does not serve after {limit:?}; see {log}")]
    Mute {
        /// How long was waited.
        limit: Duration,
        /// Where its output is.
        log: PathBuf,
    },
    /// `ctr images import` failed.
    #[error("importing {what} failed: {message}")]
    Import {
        /// Which image.
        what: String,
        /// What ctr or containerd said.
        message: String,
    },
}

/// A running private containerd.
#[derive(Debug)]
pub struct Daemon {
    settings: Settings,
    child: Child,
}

impl Daemon {
    /// Writes the configuration, starts containerd and waits until CRI answers.
    pub async fn spawn(settings: Settings) -> Result<Daemon, DaemonError> {
        let files = |source| DaemonError::Files { path: settings.root.clone(), source };
        settings.write().map_err(files)?;
        let log = std::fs::File::create(settings.log_file()).map_err(files)?;
        let errors = log.try_clone().map_err(files)?;
        let (program, args) = settings.command();
        let mut child = Command::new(program)
            .args(args)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            // Pods outlive it anyway; a containerd without its owner would only be in the way of the next.
            .kill_on_drop(true)
            // A Ctrl-C for us is not one for the pods.
            .process_group(0)
            .spawn()
            .map_err(|source| DaemonError::Missing { program, source })?;
        let deadline = Instant::now() + START_LIMIT;
        let runtime = Runtime::new(&settings.socket());
        while runtime.version().await.is_err() {
            if let Ok(Some(status)) = child.try_wait() {
                return Err(DaemonError::Ended { status, log: settings.log_file() });
            }
            if Instant::now() > deadline {
                let _ = child.kill().await;
                return Err(DaemonError::Mute { limit: START_LIMIT, log: settings.log_file() });
            }
            sleep(ASK_EVERY).await;
        }
        Ok(Daemon { settings, child })
    }

    /// Its process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Where it lives.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Stops containerd. Pods keep running under their shims; [`super::remove_pods`] before this ends them.
    pub async fn stop(mut self) {
        if let Some(pid) = self.child.id().and_then(|pid| rustix::process::Pid::from_raw(pid.cast_signed())) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        if tokio::time::timeout(STOP_LIMIT, self.child.wait()).await.is_err() {
            let _ = self.child.kill().await;
        }
    }
}

/// Imports an archive from [`super::busybox_image`] or [`super::pause_image`] and waits until CRI shows `reference`.
pub async fn import_image(settings: &Settings, archive: Vec<u8>, reference: &str) -> Result<(), DaemonError> {
    let failed = |message: String| DaemonError::Import { what: reference.to_owned(), message };
    let mut child = Command::new("ctr")
        .arg("--address")
        .arg(settings.socket())
        .args(["--namespace", "k8s.io", "images", "import", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|source| DaemonError::Missing { program: "ctr", source })?;
    let mut stdin = child.stdin.take().expect("stdin was asked to be a pipe");
    let feed = async move {
        let result = tokio::io::AsyncWriteExt::write_all(&mut stdin, &archive).await;
        drop(stdin);
        result
    };
    let (fed, output) = tokio::join!(feed, child.wait_with_output());
    let output = output.map_err(|error| failed(error.to_string()))?;
    if !output.status.success() || fed.is_err() {
        return Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    // The CRI half learns of an imported image by an event of its own.
    let runtime = Runtime::new(&settings.socket());
    let deadline = Instant::now() + START_LIMIT;
    loop {
        match runtime.image(reference).await {
            Ok(Some(_)) => return Ok(()),
            Ok(None) if Instant::now() < deadline => sleep(ASK_EVERY).await,
            Ok(None) => return Err(failed("CRI does not show the image after its import".into())),
            Err(error) => return Err(failed(error.to_string())),
        }
    }
}
