//! A unix socket that nobody but its owner can ever have dialled.

use std::io;
use std::path::Path;

use rustix::fs::{Mode, chmod};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with};
use tokio::net::UnixListener;

/// Listens with mode 0600. The mode is set between binding and listening: before that nobody can connect. A socket
/// file that a dead process left is replaced.
///
/// # Errors
/// What the machine said.
pub(crate) fn listen_private(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    bind(&socket, &SocketAddrUnix::new(path)?)?;
    chmod(path, Mode::RUSR | Mode::WUSR)?;
    listen(&socket, 128)?;
    UnixListener::from_std(socket.into())
}
