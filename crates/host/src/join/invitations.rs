//! Who may come in, and who came: the first host's list, in a file of mode 0600. Secrets are kept as hashes.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use base64::Engine;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::protocol::Newcomer;
use crate::{Layout, pki};

/// The list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invitations {
    /// Hash of the secret, and until when it counts (seconds since 1970).
    open: BTreeMap<String, u64>,
    /// Hosts by name, with the address they came from.
    hosts: BTreeMap<String, IpAddr>,
}

/// Why somebody is not let in, or the list not kept.
#[derive(Debug, thiserror::Error)]
pub enum InvitationError {
    /// A secret that was never given, or was forgotten since.
    #[error(
        "this cluster did not make that token, or has forgotten it; `cairn token create` on the first host makes another"
    )]
    Unknown,
    /// Too late.
    #[error("the token has expired; `cairn token create` on the first host makes another")]
    Expired,
    /// Two hosts of one name would be one failure domain, and take each other's volumes away.
    #[error(
        "a host named `{name}` has joined from {address} already; choose another name with --node, or, if that host is \
         gone for good, `cairn token forget {name}` on the first host"
    )]
    NameTaken {
        /// The name.
        name: String,
        /// Whose it is.
        address: IpAddr,
    },
    /// One address, two hosts.
    #[error(
        "the host `{name}` has joined from {address} already; choose another --address, or, if that host is gone for good, \
         `cairn token forget {name}` on the first host"
    )]
    AddressTaken {
        /// Whose it is.
        name: String,
        /// The address.
        address: IpAddr,
    },
    /// A name that nothing else could carry.
    #[error(
        "`{}` cannot be a host's name: up to 63 letters, digits, `-`, `.` and `_`; say another with --node",
        .0.escape_debug()
    )]
    BadName(String),
    /// The file.
    #[error("cannot use {0}: {1}; moved away, it is made anew by `cairn token create`, which then knows no host")]
    File(PathBuf, String),
}

impl Invitations {
    /// Reads the list; an empty one where there is none.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn load(layout: &Layout) -> Result<Self, InvitationError> {
        let file = layout.invitations();
        let text = match std::fs::read_to_string(&file) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(InvitationError::File(file, error.to_string())),
        };
        serde_json::from_str(&text).map_err(|error| InvitationError::File(file, error.to_string()))
    }

    /// Writes it: beside it, then renamed, so that a reader never sees half of it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save(&self, layout: &Layout) -> Result<(), InvitationError> {
        let file = layout.invitations();
        let text = serde_json::to_string_pretty(self).expect("the list is plain data");
        let beside = file.with_extension("new");
        pki::write_private(&beside, &text)
            .map_err(|error| error.to_string())
            .and_then(|()| std::fs::rename(&beside, &file).map_err(|error| error.to_string()))
            .map_err(|error| InvitationError::File(file, error))
    }

    /// Changes it on disk: the door and a command change it one after the other.
    ///
    /// # Errors
    /// When it cannot be read or written, or the change refuses; then it stays as it was.
    pub fn change<T>(
        layout: &Layout,
        change: impl FnOnce(&mut Self) -> Result<T, InvitationError>,
    ) -> Result<T, InvitationError> {
        let path = layout.run().join("invitations.lock");
        let locked = std::fs::File::create(&path).and_then(|lock| {
            rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive)?;
            Ok(lock)
        });
        let _alone = locked.map_err(|error| InvitationError::File(path, error.to_string()))?;
        let mut list = Self::load(layout)?;
        let outcome = change(&mut list)?;
        list.save(layout)?;
        Ok(outcome)
    }

    /// A secret counts until then. What has expired is forgotten.
    pub fn invite(&mut self, secret: &[u8], until_s: u64, now_s: u64) {
        self.open.retain(|_, until| *until > now_s);
        self.open.insert(hashed(secret), until_s);
    }

    /// Lets a newcomer in, or not. The same host may come again: its first answer may have been lost.
    ///
    /// # Errors
    /// The reason, in words for the newcomer.
    pub fn admit(&mut self, secret: &[u8], newcomer: &Newcomer, now_s: u64) -> Result<(), InvitationError> {
        newcomer.check()?;
        match self.open.get(&hashed(secret)) {
            None => return Err(InvitationError::Unknown),
            Some(until) if *until <= now_s => return Err(InvitationError::Expired),
            Some(_) => {}
        }
        let (name, address) = (newcomer.node.clone(), newcomer.address);
        if let Some(theirs) = self.hosts.get(&name).filter(|theirs| **theirs != address) {
            return Err(InvitationError::NameTaken { name, address: *theirs });
        }
        if let Some((other, _)) = self.hosts.iter().find(|(other, theirs)| **theirs == address && **other != name) {
            return Err(InvitationError::AddressTaken { name: other.clone(), address });
        }
        self.hosts.insert(name, address);
        Ok(())
    }

    /// Forgets a host that is gone for good: its name and address may come again. Whether it was known.
    pub fn forget(&mut self, node: &str) -> bool {
        self.hosts.remove(node).is_some()
    }

    /// The first host itself, which needs no invitation.
    pub fn founded_by(&mut self, node: &str, address: IpAddr) {
        self.hosts.insert(node.to_owned(), address);
    }
}

impl Newcomer {
    /// Its name becomes a failure domain, a node and a line in logs.
    ///
    /// # Errors
    /// [`InvitationError::BadName`].
    pub fn check(&self) -> Result<(), InvitationError> {
        let fits = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
        if (1..=63).contains(&self.node.len()) && self.node.chars().all(fits) {
            return Ok(());
        }
        Err(InvitationError::BadName(self.node.chars().take(63).collect()))
    }
}

fn hashed(secret: &[u8]) -> String {
    base64::engine::general_purpose::STANDARD.encode(Sha256::digest(secret))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn newcomer(node: &str, last: u8) -> Newcomer {
        Newcomer { node: node.into(), address: [10, 0, 0, last].into() }
    }

    #[test]
    fn who_was_invited_comes_in_as_often_as_it_likes_and_nobody_else() {
        let mut list = Invitations::default();
        list.founded_by("a", [10, 0, 0, 1].into());
        list.invite(b"secret", 100, 0);
        list.admit(b"secret", &newcomer("b", 2), 50).unwrap();
        list.admit(b"secret", &newcomer("b", 2), 60).unwrap();
        let refused = |list: &mut Invitations, secret: &[u8], who: Newcomer, now: u64| {
            list.admit(secret, &who, now).unwrap_err().to_string()
        };
        assert!(refused(&mut list, b"guess", newcomer("c", 3), 50).contains("did not make that token"));
        assert!(refused(&mut list, b"secret", newcomer("c", 3), 100).contains("expired"));
        assert!(refused(&mut list, b"secret", newcomer("b", 3), 50).contains("--node"));
        assert!(refused(&mut list, b"secret", newcomer("c", 1), 50).contains("the host `a` has joined"));
        assert!(refused(&mut list, b"secret", newcomer("two\nlines", 4), 50).contains("two\\nlines"));
        assert!(refused(&mut list, b"secret", newcomer("", 4), 50).contains("--node"));
        assert!(list.forget("b") && !list.forget("b"));
        list.admit(b"secret", &newcomer("b", 3), 50).unwrap();
    }

    #[test]
    fn changes_at_the_same_time_are_all_kept() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::at(&folder.path().join("c")).unwrap();
        std::thread::scope(|scope| {
            for n in 0..16u8 {
                let layout = &layout;
                scope.spawn(move || {
                    let added = |list: &mut Invitations| {
                        list.founded_by(&format!("n{n}"), [10, 0, 0, n].into());
                        Ok(())
                    };
                    Invitations::change(layout, added).unwrap();
                });
            }
        });
        assert_eq!(Invitations::load(&layout).unwrap().hosts.len(), 16);
    }

    #[test]
    fn the_list_is_private_and_holds_no_secret() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::at(&folder.path().join("c")).unwrap();
        let mut list = Invitations::default();
        list.invite(b"canary-secret", 100, 0);
        list.save(&layout).unwrap();
        assert_eq!(Invitations::load(&layout).unwrap(), list);
        assert_eq!(std::fs::metadata(layout.invitations()).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(!std::fs::read_to_string(layout.invitations()).unwrap().contains("canary"));
    }
}
