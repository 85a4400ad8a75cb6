//! Ctrl-C, noticed instead of dying of it: whoever waits asks here, and unwinds through everything's teardown.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail};
use tokio::signal::unix::{SignalKind, signal};

static ASKED: AtomicBool = AtomicBool::new(false);

/// From here on SIGINT, SIGTERM and SIGHUP are only noted.
///
/// # Errors
/// When the handlers cannot be installed.
pub fn install() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("no runtime")?;
    let mut signals = {
        let _inside = runtime.enter();
        [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()].map(signal)
    };
    for installed in &signals {
        if let Err(error) = installed {
            bail!("cannot listen for signals: {error}");
        }
    }
    std::thread::spawn(move || {
        runtime.block_on(async {
            let [a, b, c] = &mut signals;
            let (Ok(a), Ok(b), Ok(c)) = (a, b, c) else { return };
            loop {
                tokio::select! { _ = a.recv() => {} _ = b.recv() => {} _ = c.recv() => {} }
                ASKED.store(true, Ordering::Relaxed);
            }
        });
    });
    Ok(())
}

/// An error once somebody asked to stop.
///
/// # Errors
/// As it says.
pub fn check() -> Result<()> {
    if ASKED.load(Ordering::Relaxed) {
        bail!("interrupted");
    }
    Ok(())
}
