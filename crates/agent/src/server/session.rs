//! A session with the runtime's streaming server: the URL that CRI's Exec or Attach gave, upgraded to SPDY, with one
//! stream for each of error, stdin, stdout, stderr and resize.
//!
//! Knows nothing of WebSockets or of who is at the other end.

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use super::spdy::{self, Encoder, Frame};

/// The version in which the end of a command comes as a JSON Status on the error stream.
const PROTOCOL: &str = "v4.channel.k8s.io";
const RESPONSE_MAX: usize = 16 << 10;

/// Which streams a session has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Streams {
    pub(crate) stdin: bool,
    pub(crate) stdout: bool,
    pub(crate) stderr: bool,
    pub(crate) tty: bool,
}

/// Why a session could not be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SessionError {
    #[error("the runtime's streaming address {0} cannot be used: only http is spoken to it")]
    Address(String),
    #[error("the runtime's streaming server does not answer: {0}")]
    Io(#[from] std::io::Error),
    #[error("the runtime's streaming server refused the session: {0}")]
    Refused(String),
    #[error(transparent)]
    Corrupt(#[from] spdy::Corrupt),
}

/// What comes out of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Output {
    Stdout(Bytes),
    Stderr(Bytes),
    /// The Status that ends it, as JSON.
    Ended(Bytes),
    /// The server wants to know whether we are there: [`Input::pong`].
    Ping(u32),
}

/// The writing half.
#[derive(Debug)]
pub(crate) struct Input {
    socket: OwnedWriteHalf,
    encoder: Encoder,
    stdin: Option<u32>,
    resize: Option<u32>,
}

/// The reading half.
#[derive(Debug)]
pub(crate) struct Reader {
    socket: OwnedReadHalf,
    buffer: BytesMut,
    stdout: Option<u32>,
    stderr: Option<u32>,
    error: u32,
    status: BytesMut,
}

/// Dials the URL and opens the streams.
pub(crate) async fn open(url: &str, streams: Streams) -> Result<(Input, Reader), SessionError> {
    let bad = || SessionError::Address(url.to_owned());
    let (authority, path) = url.strip_prefix("http://").and_then(|rest| rest.split_once('/')).ok_or_else(bad)?;
    let mut socket = TcpStream::connect(authority).await?;
    socket.set_nodelay(true)?;
    let request = format!(
        "POST /{path} HTTP/1.1\r\nHost: {authority}\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\
         X-Stream-Protocol-Version: {PROTOCOL}\r\nContent-Length: 0\r\n\r\n"
    );
    socket.write_all(request.as_bytes()).await?;
    let buffer = upgraded(&mut socket).await?;
    let (mut encoder, mut out) = (Encoder::default(), Vec::new());
    let mut stream = |wanted: bool, kind| wanted.then(|| encoder.open(&[("streamtype", kind)], &mut out));
    let error = stream(true, "error").expect("always wanted");
    let stdin = stream(streams.stdin, "stdin");
    let stdout = stream(streams.stdout, "stdout");
    let stderr = stream(streams.stderr && !streams.tty, "stderr");
    let resize = stream(streams.tty, "resize");
    socket.write_all(&out).await?;
    let (read, write) = socket.into_split();
    let input = Input { socket: write, encoder, stdin, resize };
    Ok((input, Reader { socket: read, buffer, stdout, stderr, error, status: BytesMut::new() }))
}

/// Reads the answer to the upgrade; what already came after it is returned.
async fn upgraded(socket: &mut TcpStream) -> Result<BytesMut, SessionError> {
    let mut buffer = BytesMut::with_capacity(4096);
    let end = loop {
        if let Some(at) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            break at + 4;
        }
        if buffer.len() > RESPONSE_MAX || socket.read_buf(&mut buffer).await? == 0 {
            return Err(SessionError::Refused("no complete HTTP answer".into()));
        }
    };
    let head = buffer.split_to(end);
    if head.starts_with(b"HTTP/1.1 101") {
        return Ok(buffer);
    }
    let _ = tokio::time::timeout(std::time::Duration::from_millis(200), socket.read_buf(&mut buffer)).await;
    let first = String::from_utf8_lossy(&head).lines().next().unwrap_or_default().to_owned();
    Err(SessionError::Refused(format!("{first}: {}", String::from_utf8_lossy(&buffer).trim())))
}

impl Input {
    /// Bytes for stdin. Ignored when the session has none.
    pub(crate) async fn stdin(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.send(self.stdin, bytes, false).await
    }

    /// End of file on stdin.
    pub(crate) async fn close_stdin(&mut self) -> std::io::Result<()> {
        let stream = self.stdin.take();
        self.send(stream, &[], true).await
    }

    /// The terminal's new size, as the JSON that both sides use.
    pub(crate) async fn resize(&mut self, json: &[u8]) -> std::io::Result<()> {
        self.send(self.resize, json, false).await
    }

    pub(crate) async fn pong(&mut self, id: u32) -> std::io::Result<()> {
        let mut out = Vec::new();
        self.encoder.pong(id, &mut out);
        self.socket.write_all(&out).await
    }

    async fn send(&mut self, stream: Option<u32>, bytes: &[u8], last: bool) -> std::io::Result<()> {
        let Some(stream) = stream else { return Ok(()) };
        let mut out = Vec::with_capacity(bytes.len() + 16);
        self.encoder.data(stream, bytes, last, &mut out);
        self.socket.write_all(&out).await
    }
}

impl Reader {
    /// The next output; None when the server is gone. Safe to cancel: what was read stays in the buffer.
    pub(crate) async fn next(&mut self) -> Result<Option<Output>, SessionError> {
        loop {
            while let Some(frame) = spdy::decode(&mut self.buffer)? {
                if let Some(output) = self.sort(frame) {
                    return Ok(Some(output));
                }
            }
            if self.socket.read_buf(&mut self.buffer).await? == 0 {
                let status = self.status.split().freeze();
                return Ok((!status.is_empty()).then_some(Output::Ended(status)));
            }
        }
    }

    fn sort(&mut self, frame: Frame) -> Option<Output> {
        match frame {
            Frame::Data { stream, bytes, last } if stream == self.error => {
                self.status.extend_from_slice(&bytes);
                (last && !self.status.is_empty()).then(|| Output::Ended(self.status.split().freeze()))
            }
            Frame::Data { bytes, .. } if bytes.is_empty() => None,
            Frame::Data { stream, bytes, .. } if Some(stream) == self.stdout => Some(Output::Stdout(bytes)),
            Frame::Data { stream, bytes, .. } if Some(stream) == self.stderr => Some(Output::Stderr(bytes)),
            // Even numbers are the server's own pings; odd ones would answer ours, and we send none.
            Frame::Ping { id } => (id % 2 == 0).then_some(Output::Ping(id)),
            Frame::Data { .. } | Frame::Reset { .. } | Frame::GoAway => None,
        }
    }
}
