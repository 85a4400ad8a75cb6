//! A tokio socket of either kind, seen from a poll function as a non-blocking reader and writer.

use std::io::{self, IoSlice, Read, Write};
use std::os::fd::AsFd;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use crate::Address;

/// What was sent and is not acknowledged after this long ends a TCP connection. Longer than the silence after which an
/// OSD is held to be gone; without it, a cut of some seconds would last as long again after its end, until TCP, whose
/// pauses double, tries its luck once more.
const UNACKNOWLEDGED_MS: u32 = 3000;

/// What every TCP socket of the data path is set to.
///
/// # Errors
/// What the system says.
pub fn tune(socket: &impl AsFd) -> io::Result<()> {
    rustix::net::sockopt::set_tcp_nodelay(socket, true)?;
    rustix::net::sockopt::set_tcp_user_timeout(socket, UNACKNOWLEDGED_MS)?;
    Ok(())
}

/// A connected socket.
#[derive(Debug)]
pub enum Stream {
    /// Unix.
    Unix(UnixStream),
    /// TCP, without delay.
    Tcp(TcpStream),
}

impl Stream {
    /// Connects.
    ///
    /// # Errors
    /// What the system says.
    pub async fn connect(address: &Address) -> io::Result<Self> {
        Ok(match address {
            Address::Unix(path) => Self::Unix(UnixStream::connect(path).await?),
            Address::Tcp { host, port } => {
                let stream = TcpStream::connect((host.as_str(), *port)).await?;
                tune(&stream)?;
                Self::Tcp(stream)
            }
        })
    }

    /// This stream as a reader and writer that would block where the task must wait, and then is woken.
    pub(crate) fn polled<'s, 'c, 'w>(&'s mut self, cx: &'c mut Context<'w>) -> Polled<'s, 'c, 'w> {
        Polled { stream: self, cx }
    }
}

pub(crate) struct Polled<'s, 'c, 'w> {
    stream: &'s mut Stream,
    cx: &'c mut Context<'w>,
}

fn or_block<T>(poll: Poll<io::Result<T>>) -> io::Result<T> {
    match poll {
        Poll::Ready(result) => result,
        Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
    }
}

impl Read for Polled<'_, '_, '_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let mut buffer = ReadBuf::new(into);
        or_block(match self.stream {
            Stream::Unix(stream) => Pin::new(stream).poll_read(self.cx, &mut buffer),
            Stream::Tcp(stream) => Pin::new(stream).poll_read(self.cx, &mut buffer),
        })?;
        Ok(buffer.filled().len())
    }
}

impl Write for Polled<'_, '_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        or_block(match self.stream {
            Stream::Unix(stream) => Pin::new(stream).poll_write_vectored(self.cx, slices),
            Stream::Tcp(stream) => Pin::new(stream).poll_write_vectored(self.cx, slices),
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_connection_to_nowhere_does_not_outlive_its_patience() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("tcp:{}", listener.local_addr().unwrap()).parse().unwrap();
        let Stream::Tcp(stream) = Stream::connect(&address).await.unwrap() else { panic!("not TCP") };
        assert_eq!(rustix::net::sockopt::tcp_user_timeout(&stream).unwrap(), UNACKNOWLEDGED_MS);
        assert!(stream.nodelay().unwrap());
    }
}
