//! Images made on this machine, for clusters without a registry: `busybox` from Debian's static busybox, and the
//! pause image that holds a pod's namespaces. An image is an OCI layout in one tar, as `ctr images import` reads it.
//!
//! Nothing is downloaded and nothing is run from the image while it is built, but `busybox --list-full` for the names
//! of its applets.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::archive::Archive;

/// Debian's busybox-static.
pub const BUSYBOX: &str = "/bin/busybox";

/// Why an image could not be built.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The static busybox is not there.
    #[error("cannot read {path}: {source}; install the package busybox-static")]
    Busybox {
        /// Where it was looked for.
        path: PathBuf,
        /// What reading it said.
        source: std::io::Error,
    },
    /// It is there, but needs libraries that an image of one file does not have.
    #[error("{0} is linked dynamically and cannot be an image by itself; install the package busybox-static")]
    Dynamic(PathBuf),
}

/// An image: one layer, how to run it, the full references it is known by.
struct Recipe<'a> {
    references: &'a [&'a str],
    layer: Vec<u8>,
    entrypoint: &'a [&'a str],
    command: &'a [&'a str],
}

/// A busybox image with all applets, as an archive to import. `references` are full (`docker.io/library/busybox:1.36`).
pub fn busybox_image(busybox: &Path, references: &[&str]) -> Result<Vec<u8>, ImageError> {
    let binary = static_binary(busybox)?;
    let mut layer = Archive::default();
    for dir in ["bin", "sbin", "usr", "usr/bin", "usr/sbin", "etc", "var", "root", "home", "dev", "proc", "sys"] {
        layer.directory(dir, 0o755);
    }
    layer.directory("tmp", 0o1777);
    layer.file("bin/busybox", 0o755, &binary);
    layer.file("etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n");
    layer.file("etc/group", 0o644, b"root:x:0:\nnobody:x:65534:\n");
    for applet in applets(busybox)?.iter().filter(|name| name.as_str() != "bin/busybox") {
        layer.symlink(applet, "/bin/busybox");
    }
    Ok(layout(&Recipe { references, layer: layer.finish(), entrypoint: &[], command: &["sh"] }))
}

/// The pause image: a shell that waits for ever, ends at once on SIGTERM and reaps what is left to it.
pub fn pause_image(busybox: &Path, references: &[&str]) -> Result<Vec<u8>, ImageError> {
    let mut layer = Archive::default();
    layer.directory("bin", 0o755);
    layer.file("bin/busybox", 0o755, &static_binary(busybox)?);
    let script = "trap 'exit 0' TERM INT; while :; do /bin/busybox sleep 2147483 & wait $!; done";
    let entrypoint = ["/bin/busybox", "sh", "-c", script];
    Ok(layout(&Recipe { references, layer: layer.finish(), entrypoint: &entrypoint, command: &[] }))
}

fn static_binary(path: &Path) -> Result<Vec<u8>, ImageError> {
    let bytes = std::fs::read(path).map_err(|source| ImageError::Busybox { path: path.to_owned(), source })?;
    // A dynamic executable names its loader.
    if bytes.windows(7).any(|window| window == b"ld-linu") && bytes.len() < 1 << 20 {
        return Err(ImageError::Dynamic(path.to_owned()));
    }
    Ok(bytes)
}

fn applets(busybox: &Path) -> Result<Vec<String>, ImageError> {
    let output = Command::new(busybox)
        .arg("--list-full")
        .output()
        .map_err(|source| ImageError::Busybox { path: busybox.to_owned(), source })?;
    let mut names: Vec<String> = String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect();
    names.sort();
    names.dedup();
    Ok(names)
}

fn layout(recipe: &Recipe<'_>) -> Vec<u8> {
    let layer_digest = digest(&recipe.layer);
    let config = json!({
        "architecture": architecture(),
        "os": "linux",
        "config": {
            "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            "Entrypoint": recipe.entrypoint,
            "Cmd": recipe.command,
        },
        "rootfs": {"type": "layers", "diff_ids": [layer_digest]},
    })
    .to_string();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json", config.as_bytes()),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", &recipe.layer)],
    })
    .to_string();
    let manifests: Vec<_> = recipe
        .references
        .iter()
        .map(|reference| {
            let mut entry = descriptor("application/vnd.oci.image.manifest.v1+json", manifest.as_bytes());
            entry["platform"] = json!({"architecture": architecture(), "os": "linux"});
            entry["annotations"] = json!({"io.containerd.image.name": reference});
            entry
        })
        .collect();
    let index = json!({"schemaVersion": 2, "manifests": manifests}).to_string();

    let mut archive = Archive::default();
    archive.file("oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#);
    archive.file("index.json", 0o644, index.as_bytes());
    archive.directory("blobs", 0o755);
    archive.directory("blobs/sha256", 0o755);
    for blob in [manifest.as_bytes(), config.as_bytes(), &recipe.layer] {
        archive.file(&format!("blobs/sha256/{}", hex(blob)), 0o644, blob);
    }
    archive.finish()
}

fn descriptor(media_type: &str, bytes: &[u8]) -> serde_json::Value {
    json!({"mediaType": media_type, "digest": digest(bytes), "size": bytes.len()})
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(bytes))
}

fn hex(bytes: &[u8]) -> String {
    crate::names::hex(&Sha256::digest(bytes))
}

/// This machine in the words of image manifests and of node labels.
pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::{Recipe, layout};

    #[test]
    fn equal_contents_give_equal_archives() {
        let recipe = |layer: &[u8]| {
            layout(&Recipe { references: &["a.local/b:1"], layer: layer.to_vec(), entrypoint: &[], command: &["sh"] })
        };
        assert_eq!(recipe(b"x"), recipe(b"x"));
        assert_ne!(recipe(b"x"), recipe(b"y"));
    }
}
