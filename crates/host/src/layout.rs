//! Where one host's cluster keeps its files. Everything lies below one directory, so that taking the cluster away is
//! deleting that directory.

use std::path::{Path, PathBuf};

/// The directory of one cluster on one host.
#[derive(Clone, Debug)]
pub struct Layout {
    root: PathBuf,
}

/// Sockets lie up to this deep below the root, and a unix socket's path has at most 107 bytes.
const LONGEST_SOCKET: usize = "/run/containerd-debug.sock.ttrpc".len();

/// Why a directory cannot hold a cluster.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// A unix socket below it would have too long a name.
    #[error("the directory {0} is too deep: unix sockets below it would exceed 107 bytes; choose a shorter --dir")]
    TooDeep(PathBuf),
    /// It cannot be made or looked at.
    #[error("cannot use the directory {0}: {1}; choose another --dir or mend its permissions")]
    Unusable(PathBuf, std::io::Error),
}

impl Layout {
    /// Takes a directory for a cluster, making it (mode 0700) when it is not there.
    ///
    /// # Errors
    /// When it cannot be made, or is too deep for the sockets in it.
    pub fn at(root: &Path) -> Result<Self, LayoutError> {
        let unusable = |error| LayoutError::Unusable(root.to_path_buf(), error);
        std::fs::create_dir_all(root).map_err(unusable)?;
        let root = std::fs::canonicalize(root).map_err(unusable)?;
        if root.as_os_str().len() + LONGEST_SOCKET > 107 {
            return Err(LayoutError::TooDeep(root));
        }
        let layout = Self { root };
        for folder in [layout.run(), layout.log(), layout.pki(), layout.plugin_registry()] {
            std::fs::create_dir_all(&folder).map_err(|error| LayoutError::Unusable(folder.clone(), error))?;
        }
        private(&layout.pki()).map_err(|error| LayoutError::Unusable(layout.pki(), error))?;
        private(&layout.run()).map_err(|error| LayoutError::Unusable(layout.run(), error))?;
        Ok(layout)
    }

    /// The directory itself.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Sockets and the state file; mode 0700.
    #[must_use]
    pub fn run(&self) -> PathBuf {
        self.root.join("run")
    }

    /// One log file for each process.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.root.join("log")
    }

    /// Keys and certificates; mode 0700.
    #[must_use]
    pub fn pki(&self) -> PathBuf {
        self.root.join("pki")
    }

    /// A socket in the run directory.
    #[must_use]
    pub fn socket(&self, name: &str) -> PathBuf {
        self.run().join(format!("{name}.sock"))
    }

    /// What was decided when the cluster was made: ports, counts, sizes.
    #[must_use]
    pub fn cluster_file(&self) -> PathBuf {
        self.root.join("cluster.json")
    }

    /// Whom the first host lets in; mode 0600.
    #[must_use]
    pub fn invitations(&self) -> PathBuf {
        self.pki().join("invitations.json")
    }

    /// Which processes run now.
    #[must_use]
    pub fn state_file(&self) -> PathBuf {
        self.run().join("state.json")
    }

    /// Credentials for kubectl; mode 0600.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.root.join("kubeconfig")
    }

    /// Data of one metadata member.
    #[must_use]
    pub fn meta(&self, id: u64) -> PathBuf {
        self.root.join(format!("meta-{id}"))
    }

    /// The file that is one OSD's disk.
    #[must_use]
    pub fn osd_device(&self, number: u32) -> PathBuf {
        self.root.join(format!("osd-{number}.img"))
    }

    /// State of the attach daemon.
    #[must_use]
    pub fn attach(&self) -> PathBuf {
        self.root.join("attach")
    }

    /// Pod volumes and the agent's own state.
    #[must_use]
    pub fn agent(&self) -> PathBuf {
        self.root.join("agent")
    }

    /// Where CSI plugins announce themselves to the agent.
    #[must_use]
    pub fn plugin_registry(&self) -> PathBuf {
        self.root.join("agent").join("plugins_registry")
    }

    /// Root, state and configuration of the cluster's own containerd.
    #[must_use]
    pub fn containerd(&self) -> PathBuf {
        self.root.join("containerd")
    }
}

fn private(folder: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o700))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_too_deep_for_sockets_is_refused_in_words() {
        let base = tempfile::tempdir().unwrap();
        let deep = base.path().join("x".repeat(90));
        let error = Layout::at(&deep).unwrap_err().to_string();
        assert!(error.contains("choose a shorter --dir"), "{error}");
    }

    #[test]
    fn keys_and_sockets_lie_in_private_folders() {
        use std::os::unix::fs::PermissionsExt;
        let base = tempfile::tempdir().unwrap();
        let layout = Layout::at(&base.path().join("c")).unwrap();
        for folder in [layout.pki(), layout.run()] {
            assert_eq!(std::fs::metadata(folder).unwrap().permissions().mode() & 0o777, 0o700);
        }
    }
}
