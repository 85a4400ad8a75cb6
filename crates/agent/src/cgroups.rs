//! The cgroup directories that pods leave behind: empty once their processes are gone, in every hierarchy of version
//! 1 and in the one of version 2. Only empty directories can be removed, so nothing that runs is touched.

use std::path::Path;

const ROOT: &str = "/sys/fs/cgroup";

/// Removes a cgroup and those beneath it. `name` is relative to each hierarchy's root.
pub(crate) fn remove(name: &str) {
    let name = name.trim_matches('/');
    if name.is_empty() {
        return;
    }
    remove_empty(&Path::new(ROOT).join(name));
    for hierarchy in std::fs::read_dir(ROOT).into_iter().flatten().flatten() {
        remove_empty(&hierarchy.path().join(name));
    }
}

fn remove_empty(dir: &Path) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_empty(&entry.path());
        }
    }
    let _ = std::fs::remove_dir(dir);
}
