//! Compiles every `.proto` under `proto/` with protox (no system protoc) and generates messages, clients and
//! servers with tonic-prost-build.

use std::path::{Path, PathBuf};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?).join("../../proto");
    let mut files = Vec::new();
    collect(&root, &mut files)?;
    files.sort();
    println!("cargo:rerun-if-changed={}", root.display());
    for file in &files {
        println!("cargo:rerun-if-changed={}", file.display());
    }
    let descriptors = protox::compile(&files, [&root])?;
    let secretive = secretive_messages(&descriptors);
    write_redacted(&secretive)?;
    // Ordered maps: our messages are also Raft commands and stored records, which must encode the same everywhere.
    let config = tonic_prost_build::configure().bytes(".").btree_map(".cairn.meta.v1");
    config.skip_debug(&secretive).compile_fds(descriptors)?;
    Ok(())
}

/// The CSI messages that carry secrets: a field named `secrets`, or mount flags, which the specification calls
/// sensitive. Found by field, so that a message added later cannot be forgotten.
fn secretive_messages(descriptors: &prost_types::FileDescriptorSet) -> Vec<String> {
    let csi = descriptors.file.iter().filter(|file| file.package() == "csi.v1");
    csi.flat_map(|file| &file.message_type)
        .filter(|message| message.field.iter().any(|field| field.name() == "secrets"))
        .map(|message| format!(".csi.v1.{}", message.name()))
        .chain([".csi.v1.VolumeCapability.MountVolume".to_owned()])
        .collect()
}

/// A Debug for each of them that names the message and shows nothing of it.
fn write_redacted(messages: &[String]) -> std::io::Result<()> {
    let mut code = String::new();
    for message in messages {
        let name = message.trim_start_matches(".csi.v1.").replace("VolumeCapability.", "volume_capability::");
        code.push_str(&format!(
            "impl ::core::fmt::Debug for {name} {{\n    fn fmt(&self, f: &mut ::core::fmt::Formatter<'_>) -> \
             ::core::fmt::Result {{\n        f.write_str(\"{name} {{ redacted }}\")\n    }}\n}}\n"
        ));
    }
    let out = std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR for build scripts");
    std::fs::write(PathBuf::from(out).join("csi.v1.redacted.rs"), code)
}

fn collect(dir: &Path, files: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|e| e == "proto") {
            files.push(path);
        }
    }
    Ok(())
}
