//! What `attach` asks of the keeper. Blocking, a few microseconds each: called from blocking threads only.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use super::packet::{Reply, Request};
use super::server::{receive, send};
use super::{KeeperError, Kept};

/// The keeper behind one socket.
#[derive(Clone, Debug)]
pub struct KeeperClient {
    socket: PathBuf,
}

impl KeeperClient {
    /// Nothing is dialled yet.
    #[must_use]
    pub fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned() }
    }

    /// Leaves a duplicate of a descriptor; an entry of the same name is replaced.
    ///
    /// # Errors
    /// [`KeeperError`].
    pub fn put(&self, kept: Kept, descriptor: impl AsFd) -> Result<(), KeeperError> {
        match self.ask(&Request::Put(kept), Some(descriptor.as_fd()))? {
            (Reply::Done, _) => Ok(()),
            (Reply::Full, _) => Err(KeeperError::Full),
            _ => Err(KeeperError::Corrupt("not an answer to put")),
        }
    }

    /// A duplicate of a kept descriptor, with its metadata.
    ///
    /// # Errors
    /// [`KeeperError`].
    pub fn fetch(&self, name: &str) -> Result<Option<(Kept, OwnedFd)>, KeeperError> {
        match self.ask(&Request::Fetch(name.to_owned()), None)? {
            (Reply::Entry(kept), Some(descriptor)) => Ok(Some((kept, descriptor))),
            (Reply::Absent, _) => Ok(None),
            _ => Err(KeeperError::Corrupt("not an answer to fetch")),
        }
    }

    /// The keeper closes its duplicate. A name that it does not know is fine.
    ///
    /// # Errors
    /// [`KeeperError`].
    pub fn release(&self, name: &str) -> Result<(), KeeperError> {
        match self.ask(&Request::Release(name.to_owned()), None)? {
            (Reply::Done, _) => Ok(()),
            _ => Err(KeeperError::Corrupt("not an answer to release")),
        }
    }

    /// Everything it holds.
    ///
    /// # Errors
    /// [`KeeperError`].
    pub fn list(&self) -> Result<Vec<Kept>, KeeperError> {
        match self.ask(&Request::List, None)? {
            (Reply::Entries(entries), _) => Ok(entries),
            _ => Err(KeeperError::Corrupt("not an answer to list")),
        }
    }

    fn ask(
        &self,
        request: &Request,
        descriptor: Option<BorrowedFd<'_>>,
    ) -> Result<(Reply, Option<OwnedFd>), KeeperError> {
        let peer = self.dial()?;
        send(&peer, &request.encode()?, descriptor)?;
        let (packet, descriptor) = receive(&peer)?.ok_or(KeeperError::Corrupt("closed without an answer"))?;
        Ok((Reply::decode(&packet)?, descriptor))
    }

    fn dial(&self) -> Result<OwnedFd, KeeperError> {
        let unreachable = |error: rustix::io::Errno| KeeperError::Unreachable {
            socket: self.socket.display().to_string(),
            source: error.into(),
        };
        let peer =
            socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).map_err(unreachable)?;
        let patience = Some(Duration::from_secs(5));
        set_socket_timeout(&peer, Timeout::Recv, patience).map_err(unreachable)?;
        set_socket_timeout(&peer, Timeout::Send, patience).map_err(unreachable)?;
        let address = SocketAddrUnix::new(&self.socket).map_err(unreachable)?;
        connect(&peer, &address).map_err(unreachable)?;
        Ok(peer)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::super::{KeeperConfig, MAX_METADATA, run_keeper};
    use super::*;

    #[test]
    fn a_descriptor_outlives_the_one_who_left_it() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("keeper.sock");
        let (stop, stopped) = std::io::pipe().unwrap();
        let config = KeeperConfig { socket: socket.clone(), stop: Some(stop.into()) };
        let keeper = std::thread::spawn(move || run_keeper(config));
        let client = KeeperClient::new(&socket);
        while client.list().is_err() {
            std::thread::yield_now();
        }

        let (mut reader, writer) = std::io::pipe().unwrap();
        let kept = Kept { name: "fuse-loop/7".into(), metadata: b"v1".to_vec() };
        client.put(kept.clone(), &writer).unwrap();
        drop(writer);
        assert_eq!(client.list().unwrap(), std::slice::from_ref(&kept));
        let (found, fetched) = client.fetch("fuse-loop/7").unwrap().unwrap();
        assert_eq!(found, kept);
        std::io::PipeWriter::from(fetched).write_all(b"alive").unwrap();
        client.release("fuse-loop/7").unwrap();
        assert!(client.fetch("fuse-loop/7").unwrap().is_none());
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "alive", "the end of the stream came only when the last duplicate was closed");

        let long = Kept { name: "x".into(), metadata: vec![0; MAX_METADATA + 1] };
        assert!(matches!(client.put(long, &stopped), Err(KeeperError::TooLong)));
        drop(stopped);
        keeper.join().unwrap().unwrap();
        assert!(!socket.exists());
    }
}
