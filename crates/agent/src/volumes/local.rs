//! Volumes that are nothing but this node's disk and memory: emptyDir, hostPath, and who owns the files of a volume.

use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{EmptyDirVolumeSource, HostPathVolumeSource, Pod};

use super::error::VolumeError;
use crate::mounts;
use crate::quantity;

/// A directory of the pod's own at `path`, or a filesystem in memory. Made once.
pub(super) fn empty_dir(
    path: &Path,
    name: &str,
    source: &EmptyDirVolumeSource,
    group: Option<u32>,
) -> Result<(), VolumeError> {
    let in_memory = match source.medium.as_deref() {
        None | Some("") => false,
        Some("Memory") => true,
        Some(_) => {
            let what = "an emptyDir on huge pages";
            return Err(VolumeError::Unsupported { volume: name.to_owned(), what, remedy: "; use medium Memory" });
        }
    };
    let doing = || VolumeError::io(format!("making emptyDir \"{name}\""));
    if path.exists() && (!in_memory || mounts::is_mounted(path).map_err(doing())?) {
        return Ok(());
    }
    std::fs::create_dir_all(path).map_err(doing())?;
    if in_memory {
        let size = source.size_limit.as_ref().and_then(quantity::units).and_then(|size| u64::try_from(size).ok());
        mounts::mount_tmpfs(path, size, 0o777).map_err(doing())?;
    }
    std::os::unix::fs::chown(path, None, group).map_err(doing())?;
    let mode = if group.is_some() { 0o2777 } else { 0o777 };
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).map_err(doing())?;
    Ok(())
}

/// The group that owns the files of a pod's volumes.
pub(super) fn fs_group(pod: &Pod) -> Option<u32> {
    let context = pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref());
    context.and_then(|context| context.fs_group).and_then(|group| u32::try_from(group).ok())
}

/// Gives a tree to a group, readable and writable for it, unless its top shows that this was done before.
pub(super) fn give_to(tree: &Path, group: u32) -> std::io::Result<()> {
    const SET_GID: u32 = 0o2000;
    let top = std::fs::metadata(tree)?;
    if top.gid() == group && top.permissions().mode() & SET_GID != 0 {
        return Ok(());
    }
    let mut todo = vec![tree.to_owned()];
    let mut dirs = Vec::new();
    while let Some(path) = todo.pop() {
        let meta = std::fs::symlink_metadata(&path)?;
        std::os::unix::fs::lchown(&path, None, Some(group))?;
        if meta.is_dir() {
            todo.extend(std::fs::read_dir(&path)?.flatten().map(|entry| entry.path()));
            dirs.push(path);
        } else if meta.is_file() {
            let mode = meta.permissions().mode() | 0o660;
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode))?;
        }
    }
    // The top comes last: it is the sign that all is done.
    for dir in dirs.iter().rev() {
        let mode = std::fs::metadata(dir)?.permissions().mode() | 0o770 | SET_GID;
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(mode))?;
    }
    Ok(())
}

/// A path of the node, checked or made as its type says.
pub(super) fn host_path(name: &str, source: &HostPathVolumeSource) -> Result<PathBuf, VolumeError> {
    let path = PathBuf::from(&source.path);
    let kind = source.type_.as_deref().unwrap_or_default();
    let doing = || VolumeError::io(format!("making {} for volume \"{name}\"", path.display()));
    match kind {
        "DirectoryOrCreate" => std::fs::create_dir_all(&path).map_err(doing())?,
        "FileOrCreate" if !path.exists() => drop(std::fs::File::create(&path).map_err(doing())?),
        _ => {}
    }
    let problem = |problem| VolumeError::HostPath { volume: name.to_owned(), path: path.clone(), problem };
    let meta = match std::fs::metadata(&path) {
        // Without a type nothing is checked: the runtime makes a directory where nothing is.
        Err(_) if kind.is_empty() => return Ok(path),
        Err(_) => return Err(problem("does not exist on this node")),
        Ok(meta) => meta.file_type(),
    };
    let fits = match kind {
        "Directory" | "DirectoryOrCreate" => meta.is_dir(),
        "File" | "FileOrCreate" => meta.is_file(),
        "Socket" => meta.is_socket(),
        "CharDevice" => meta.is_char_device(),
        "BlockDevice" => meta.is_block_device(),
        _ => true,
    };
    if fits { Ok(path) } else { Err(problem("is not what the volume's type says it is")) }
}

#[cfg(test)]
mod tests {
    use super::{give_to, host_path};
    use std::os::unix::fs::MetadataExt as _;

    #[test]
    fn host_paths_are_what_they_claim() {
        let dir = tempfile::tempdir().expect("a directory");
        let check = |name: &str, kind: &str| {
            let source = serde_json::json!({"path": dir.path().join(name), "type": kind});
            host_path("v", &serde_json::from_value(source).expect("a source"))
        };
        assert!(check("missing", "").is_ok());
        let error = check("missing", "Directory").expect_err("not there");
        assert!(error.to_string().contains("does not exist on this node"), "{error}");
        assert!(check("made", "DirectoryOrCreate").is_ok());
        assert!(check("made", "Directory").is_ok());
        assert!(check("made", "File").is_err());
        assert!(check("file", "FileOrCreate").is_ok());
        assert!(check("file", "Socket").is_err());
    }

    #[test]
    fn a_group_gets_the_whole_tree_once() {
        let dir = tempfile::tempdir().expect("a directory");
        let inner = dir.path().join("v/sub");
        std::fs::create_dir_all(&inner).expect("made");
        std::fs::write(inner.join("f"), "x").expect("written");
        std::os::unix::fs::symlink("/etc/passwd", inner.join("link")).expect("linked");
        let passwd = std::fs::metadata("/etc/passwd").expect("there").gid();
        give_to(&dir.path().join("v"), 2000).expect("given (this test needs root)");
        let meta = |name: &str| std::fs::symlink_metadata(dir.path().join(name)).expect("there");
        for name in ["v", "v/sub", "v/sub/f", "v/sub/link"] {
            assert_eq!(meta(name).gid(), 2000, "{name}");
        }
        assert_eq!(meta("v/sub").mode() & 0o7777, 0o2775);
        assert_eq!(std::fs::metadata("/etc/passwd").expect("there").gid(), passwd, "links are not followed");
        std::fs::write(inner.join("later"), "x").expect("written");
        std::os::unix::fs::lchown(inner.join("later"), None, Some(7)).expect("changed");
        give_to(&dir.path().join("v"), 2000).expect("given");
        assert_eq!(meta("v/sub/later").gid(), 7, "done before, so it is not walked again");
    }
}
