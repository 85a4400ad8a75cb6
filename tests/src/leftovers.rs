//! What a cluster may leave on a machine, and how to see it.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

/// Nothing below this directory, nothing that names it, and no device over a volume of these attach daemons.
pub(crate) fn check(dir: &Path, attach: &[PathBuf]) -> Result<()> {
    let shown = dir.to_string_lossy().into_owned();
    if dir.exists() {
        bail!("{shown} is still there");
    }
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    if let Some(line) = mounts.lines().find(|line| line.contains(&shown)) {
        bail!("a mount is left: {line}");
    }
    if let Some(left) = attach.iter().find_map(|attach| volume_loop(attach)) {
        bail!("a loop device is left: {left}");
    }
    if let Some(left) = processes_naming(&shown) {
        bail!("a process is left: {left}");
    }
    Ok(())
}

/// A loop device over a volume of one attach daemon, by its folder in `/sys/block`. Its backing file lies in no
/// directory; its name begins with FNV-1a of the daemon's, so that other clusters of this machine are not taken for
/// ours.
pub(crate) fn volume_loop(attach: &Path) -> Option<String> {
    let bytes = attach.as_os_str().as_encoded_bytes();
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    let prefix = format!("/cairn-{:012x}-", bytes.iter().fold(0xcbf2_9ce4_8422_2325, step) >> 16);
    std::fs::read_dir("/sys/block").into_iter().flatten().flatten().find_map(|device| {
        let backing = std::fs::read_to_string(device.path().join("loop/backing_file")).unwrap_or_default();
        backing.starts_with(&prefix).then(|| device.path().display().to_string())
    })
}

/// A process other than ours whose command line names the directory.
fn processes_naming(dir: &str) -> Option<String> {
    let own = std::process::id().to_string();
    for entry in std::fs::read_dir("/proc").ok()?.flatten() {
        let pid = entry.file_name().to_string_lossy().into_owned();
        if pid == own || !pid.bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains(dir) {
            return Some(format!("{pid}: {line}"));
        }
    }
    None
}
