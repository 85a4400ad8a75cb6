//! The file that says whose directory this is: member, cluster, the directory's own random name, the peers' such
//! names as they were met first, and which `state-N` is the living one. Small, text, replaced as a whole.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use cairn_meta_raft::StoreError;
use uuid::Uuid;

use super::{io, replace_file, sync_dir};

const NAME: &str = "MEMBER";
const JOINING: &str = "JOINING";
const TITLE: &str = "cairn metadata member, format";
/// The version of the whole directory.
const FORMAT: u32 = 2;

/// Whose directory it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberFile {
    path: PathBuf,
    /// The member's number.
    pub member: u64,
    /// Made with the directory. A member that comes back with another one has lost what it promised.
    pub directory: Uuid,
    /// Nil until the cluster has a name.
    pub cluster: Uuid,
    /// The living `state-N`.
    pub state: u64,
    /// The directories of the other members, as met first.
    pub peers: BTreeMap<u64, Uuid>,
    /// Who voted when the log began, ascending.
    pub genesis: Vec<u64>,
    /// Where the members are reached, as last heard: to find them again before the state is read.
    pub addresses: BTreeMap<u64, String>,
    /// It was removed, and knows it.
    pub removed: bool,
    /// Its number is another directory's, and it knows it.
    pub lost_memory: bool,
}

impl MemberFile {
    /// Reads the file; `None`: the directory is new.
    ///
    /// # Errors
    /// When it cannot be read, was damaged, or was written by a newer program.
    pub fn load(dir: &Path) -> Result<Option<Self>, StoreError> {
        let path = dir.join(NAME);
        match std::fs::read_to_string(&path) {
            Ok(text) => Self::parse(path, &text).map(Some),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(io("cannot read the member file")(error)),
        }
    }

    /// The file of a new directory.
    #[must_use]
    pub fn new(dir: &Path, member: u64) -> Self {
        Self {
            path: dir.join(NAME),
            member,
            directory: Uuid::new_v4(),
            cluster: Uuid::nil(),
            state: 1,
            peers: BTreeMap::new(),
            genesis: Vec::new(),
            addresses: BTreeMap::new(),
            removed: false,
            lost_memory: false,
        }
    }

    /// Writes it down, durably.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn save(&self) -> Result<(), StoreError> {
        let dir = self.path.parent().expect("the file lies in a directory");
        replace_file(dir, NAME, self.text().as_bytes())
    }

    fn text(&self) -> String {
        let mut text = format!(
            "{TITLE} {FORMAT}\nmember {}\ndirectory {}\ncluster {}\nstate {}\n",
            self.member, self.directory, self.cluster, self.state
        );
        for (peer, directory) in &self.peers {
            let _ = writeln!(text, "peer {peer} {directory}");
        }
        for voter in &self.genesis {
            let _ = writeln!(text, "genesis {voter}");
        }
        for (member, address) in &self.addresses {
            let _ = writeln!(text, "address {member} {address}");
        }
        if self.removed {
            let _ = writeln!(text, "removed true");
        }
        if self.lost_memory {
            let _ = writeln!(text, "lost-memory true");
        }
        let crc = crc32c::crc32c(text.as_bytes());
        let _ = writeln!(text, "crc {crc:08x}");
        text
    }

    fn parse(path: PathBuf, text: &str) -> Result<Self, StoreError> {
        let place = path.display().to_string();
        let corrupt = |expected: &str, found: &str| StoreError::Corrupt {
            place: place.clone(),
            expected: expected.to_owned(),
            found: format!("`{}`", found.escape_default()),
        };
        let title = text.lines().next().unwrap_or_default();
        let format = title.strip_prefix(TITLE).and_then(|f| f.trim().parse::<u32>().ok());
        match format {
            Some(FORMAT) => {}
            Some(found) => return Err(StoreError::NewerFormat { place, found, known: FORMAT }),
            None => return Err(corrupt("a member file", title)),
        }
        let (body, crc) = text.rsplit_once("crc ").ok_or_else(|| corrupt("a line `crc`", "none"))?;
        let expected = format!("{:08x}", crc32c::crc32c(body.as_bytes()));
        if crc.trim_end() != expected {
            return Err(corrupt(&format!("crc {expected}"), crc.trim_end()));
        }
        let mut file = Self { path: path.clone(), ..Self::new(Path::new(""), 0) };
        for line in body.lines().skip(1) {
            file.read_line(line).ok_or_else(|| corrupt("a field with its value", line))?;
        }
        Ok(file)
    }

    fn read_line(&mut self, line: &str) -> Option<()> {
        let (field, value) = line.split_once(' ')?;
        match field {
            "member" => self.member = value.parse().ok()?,
            "directory" => self.directory = value.parse().ok()?,
            "cluster" => self.cluster = value.parse().ok()?,
            "state" => self.state = value.parse().ok()?,
            "peer" => {
                let (peer, directory) = value.split_once(' ')?;
                self.peers.insert(peer.parse().ok()?, directory.parse().ok()?);
            }
            "genesis" => self.genesis.push(value.parse().ok()?),
            "address" => {
                let (member, address) = value.split_once(' ')?;
                self.addresses.insert(member.parse().ok()?, address.to_owned());
            }
            "removed" => self.removed = value.parse().ok()?,
            "lost-memory" => self.lost_memory = value.parse().ok()?,
            _ => return None,
        }
        Some(())
    }
}

/// The name under which a directory is announced to a cluster before it is made: written down, and found again.
pub(crate) fn announced(dir: &Path) -> Result<Uuid, StoreError> {
    std::fs::create_dir_all(dir).map_err(io("cannot make the directory"))?;
    match std::fs::read_to_string(dir.join(JOINING)) {
        Ok(text) => text.trim().parse().map_err(|_| StoreError::Corrupt {
            place: dir.join(JOINING).display().to_string(),
            expected: "a uuid".to_owned(),
            found: format!("`{}`", text.trim().escape_default()),
        }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let directory = Uuid::new_v4();
            replace_file(dir, JOINING, directory.to_string().as_bytes())?;
            Ok(directory)
        }
        Err(error) => Err(io("cannot read the directory")(error)),
    }
}

/// The member is made, and the name has done its service. Were it left, a directory that lost its contents would be
/// taken for the one that has them.
pub(super) fn forget_announced(dir: &Path) -> Result<(), StoreError> {
    match std::fs::remove_file(dir.join(JOINING)) {
        Ok(()) => sync_dir(dir),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(io("cannot remove the name of a directory")(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_saved_is_loaded() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(MemberFile::load(dir.path()).unwrap(), None);
        let mut file = MemberFile::new(dir.path(), 2);
        file.cluster = Uuid::new_v4();
        file.state = 7;
        file.peers.insert(3, Uuid::new_v4());
        file.genesis = vec![1, 2, 3];
        file.addresses.insert(4, "127.0.0.1:7404".into());
        (file.removed, file.lost_memory) = (true, true);
        file.save().unwrap();
        assert_eq!(MemberFile::load(dir.path()).unwrap(), Some(file));
    }

    #[test]
    fn damage_and_newer_formats_are_told_in_words() {
        let dir = tempfile::tempdir().unwrap();
        let file = MemberFile::new(dir.path(), 2);
        let text = file.text().replace("member 2", "member 3");
        std::fs::write(dir.path().join(NAME), text).unwrap();
        let error = MemberFile::load(dir.path()).unwrap_err().to_string();
        assert!(error.contains("MEMBER is damaged"), "{error}");
        std::fs::write(dir.path().join(NAME), file.text().replace("format 2", "format 3")).unwrap();
        let error = MemberFile::load(dir.path()).unwrap_err().to_string();
        assert!(error.contains("has format 3") && error.contains("newer version"), "{error}");
    }
}
