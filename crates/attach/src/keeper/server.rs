//! The keeper's process: a loop of accept, one packet, one answer.

use std::collections::BTreeMap;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, listen, recvmsg, sendmsg, socket_with,
};

use super::packet::{MAX_PACKET, Reply, Request};
use super::{KeeperError, Kept, MAX_ENTRIES};

/// Where the keeper listens and when it ends.
#[derive(Debug)]
pub struct KeeperConfig {
    /// Path of its unix socket; its directory exists.
    pub socket: PathBuf,
    /// Becomes readable (or its other end closes) when the keeper shall end; without one it runs until it is killed.
    pub stop: Option<OwnedFd>,
}

struct Entry {
    metadata: Vec<u8>,
    descriptor: OwnedFd,
}

/// Holds descriptors until it is told to stop. Whatever it holds is closed when it returns, which ends the
/// connections that nobody else has open.
///
/// # Errors
/// When the socket cannot be made.
pub fn run_keeper(config: KeeperConfig) -> Result<(), KeeperError> {
    crate::process::protect("keeper");
    let listener = listen_on(&config)?;
    tracing::info!(socket = %config.socket.display(), "keeper ready");
    let mut entries = BTreeMap::new();
    while wait(&listener, config.stop.as_ref())? {
        match accept_with(&listener, SocketFlags::CLOEXEC) {
            Ok(peer) => {
                if let Err(error) = serve(&peer, &mut entries) {
                    tracing::warn!(%error, "keeper: a request failed");
                }
            }
            Err(error) => tracing::warn!(%error, "keeper: accept failed"),
        }
    }
    drop(std::fs::remove_file(&config.socket));
    Ok(())
}

fn listen_on(config: &KeeperConfig) -> Result<OwnedFd, KeeperError> {
    let system = |step| move |error: rustix::io::Errno| KeeperError::System { step, source: error.into() };
    match std::fs::remove_file(&config.socket) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(KeeperError::System { step: "removing the old socket", source: error });
        }
        _ => {}
    }
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
        .map_err(system("making a socket"))?;
    let address = SocketAddrUnix::new(&config.socket).map_err(system("the socket's path"))?;
    // The mode is set before anybody can connect: connecting needs a listener.
    bind(&socket, &address).map_err(system("binding the socket"))?;
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::chmod(&config.socket, mode).map_err(system("restricting the socket"))?;
    listen(&socket, 64).map_err(system("listening"))?;
    Ok(socket)
}

/// Waits for a connection; false when told to stop.
fn wait(listener: &OwnedFd, stop: Option<&OwnedFd>) -> Result<bool, KeeperError> {
    let mut fds = vec![PollFd::new(listener, PollFlags::IN)];
    fds.extend(stop.map(|stop| PollFd::new(stop, PollFlags::IN)));
    loop {
        match poll(&mut fds, None) {
            Ok(_) => return Ok(fds.get(1).is_none_or(|stop| stop.revents().is_empty())),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(KeeperError::System { step: "waiting", source: error.into() }),
        }
    }
}

fn serve(peer: &OwnedFd, entries: &mut BTreeMap<String, Entry>) -> Result<(), KeeperError> {
    // A peer that connects and says nothing must not hold up the others.
    let patience = Some(std::time::Duration::from_secs(2));
    for side in [rustix::net::sockopt::Timeout::Recv, rustix::net::sockopt::Timeout::Send] {
        rustix::net::sockopt::set_socket_timeout(peer, side, patience)
            .map_err(|error| KeeperError::System { step: "a socket timeout", source: error.into() })?;
    }
    let Some((packet, descriptor)) = receive(peer)? else { return Ok(()) };
    let (reply, descriptor) = match Request::decode(&packet) {
        Ok(request) => answer(request, descriptor, entries),
        Err(error) => {
            tracing::warn!(%error, "keeper: refused a packet");
            (Reply::Refused, None)
        }
    };
    send(peer, &reply.encode()?, descriptor)
}

fn answer(
    request: Request,
    descriptor: Option<OwnedFd>,
    entries: &mut BTreeMap<String, Entry>,
) -> (Reply, Option<BorrowedFd<'_>>) {
    match (request, descriptor) {
        (Request::Put(Kept { name, metadata }), Some(descriptor)) => {
            if entries.len() >= MAX_ENTRIES && !entries.contains_key(&name) {
                return (Reply::Full, None);
            }
            entries.insert(name, Entry { metadata, descriptor });
            (Reply::Done, None)
        }
        (Request::Put(_), None) => (Reply::Refused, None),
        (Request::Fetch(name), _) => match entries.get(&name) {
            Some(entry) => {
                let kept = Kept { name, metadata: entry.metadata.clone() };
                (Reply::Entry(kept), Some(entry.descriptor.as_fd()))
            }
            None => (Reply::Absent, None),
        },
        (Request::Release(name), _) => {
            entries.remove(&name);
            (Reply::Done, None)
        }
        (Request::List, _) => {
            let kept = |(name, entry): (&String, &Entry)| Kept { name: name.clone(), metadata: entry.metadata.clone() };
            (Reply::Entries(entries.iter().map(kept).collect()), None)
        }
    }
}

/// A packet and the descriptor that came with it.
pub(super) type Received = (Vec<u8>, Option<OwnedFd>);

/// Waits for one packet. `None`: the peer closed without a word.
pub(super) fn receive(peer: &OwnedFd) -> Result<Option<Received>, KeeperError> {
    let mut packet = vec![0; MAX_PACKET];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        let parts = &mut [IoSliceMut::new(&mut packet)];
        match recvmsg(peer, parts, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => {}
            other => break other,
        }
    };
    let received = received.map_err(|error| KeeperError::System { step: "receiving", source: error.into() })?;
    let mut descriptor = None;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptor = rights.into_iter().last().or(descriptor);
        }
    }
    if received.bytes == 0 {
        return Ok(None);
    }
    packet.truncate(received.bytes);
    Ok(Some((packet, descriptor)))
}

/// One packet, with a descriptor beside it or not.
pub(super) fn send(peer: &OwnedFd, packet: &[u8], descriptor: Option<BorrowedFd<'_>>) -> Result<(), KeeperError> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let rights: Vec<BorrowedFd<'_>> = descriptor.into_iter().collect();
    if !rights.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(&rights)), "there is room for one descriptor");
    }
    loop {
        match sendmsg(peer, &[IoSlice::new(packet)], &mut control, SendFlags::NOSIGNAL) {
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(KeeperError::System { step: "sending", source: error.into() }),
        }
    }
}
