//! Container logs: the files that the runtime writes (one line per entry: time, stream, tag, text), read from where
//! the client wants to start and followed while it listens.
//!
//! Files are polled a few times a second while somebody follows, and never otherwise. What goes out is what the
//! container wrote; the runtime's framing is taken off.

use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::body::Bytes;
use jiff::Timestamp;
use tokio::sync::mpsc;

use crate::cri::Runtime;

const POLL: Duration = Duration::from_millis(100);
/// Every so many polls without news the runtime is asked whether the container still runs.
const ASK_EVERY: u32 = 5;
const CHUNK: usize = 64 << 10;

/// What the client asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LogOptions {
    pub(crate) follow: bool,
    pub(crate) previous: bool,
    pub(crate) timestamps: bool,
    pub(crate) tail_lines: Option<u64>,
    pub(crate) since: Option<Timestamp>,
    pub(crate) limit_bytes: Option<u64>,
}

/// Where the log of one container is.
#[derive(Clone, Debug)]
pub(crate) struct LogSource {
    pub(crate) path: PathBuf,
    pub(crate) container: String,
    pub(crate) runtime: Runtime,
}

/// Sends the log until its end, or for as long as the container runs when it is followed.
pub(crate) async fn stream(source: LogSource, options: LogOptions, out: mpsc::Sender<Result<Bytes, std::io::Error>>) {
    if let Err(error) = pour(&source, &options, &out).await {
        let _ = out.send(Err(error)).await;
    }
}

async fn pour(
    source: &LogSource,
    options: &LogOptions,
    out: &mpsc::Sender<Result<Bytes, std::io::Error>>,
) -> std::io::Result<()> {
    let mut tail = Tail::open(&source.path, options.tail_lines)?;
    let mut form = Form::new(options);
    let (mut quiet, mut last_look) = (0u32, false);
    loop {
        let news = tail.read()?;
        if !news.is_empty() {
            quiet = 0;
            let text = form.render(&news);
            if !text.is_empty() && out.send(Ok(text.into())).await.is_err() {
                return Ok(());
            }
            if form.is_full() {
                return Ok(());
            }
            continue;
        }
        if tail.was_rotated(&source.path) {
            tail = Tail::open(&source.path, None)?;
            continue;
        }
        if !options.follow || last_look {
            return Ok(());
        }
        tokio::select! {
            () = out.closed() => return Ok(()),
            () = tokio::time::sleep(POLL) => {}
        }
        quiet += 1;
        if quiet.is_multiple_of(ASK_EVERY) {
            // What it wrote just before its end is read once more.
            last_look = !still_runs(source).await;
        }
    }
}

async fn still_runs(source: &LogSource) -> bool {
    use cairn_proto::cri::ContainerState;
    match source.runtime.container_status(&source.container).await {
        Ok(status) => matches!(status.state(), ContainerState::ContainerRunning | ContainerState::ContainerCreated),
        // A runtime that is being restarted says nothing about the container.
        Err(error) => !error.is_absent(),
    }
}

/// An open log file and how far it was read.
struct Tail {
    file: std::fs::File,
    inode: u64,
}

impl Tail {
    fn open(path: &Path, lines: Option<u64>) -> std::io::Result<Tail> {
        let mut file = std::fs::File::open(path)?;
        if let Some(lines) = lines {
            let start = last_lines(&mut file, lines)?;
            file.seek(SeekFrom::Start(start))?;
        }
        let inode = file.metadata()?.ino();
        Ok(Tail { file, inode })
    }

    fn read(&mut self) -> std::io::Result<Vec<u8>> {
        let mut chunk = vec![0; CHUNK];
        let length = self.file.read(&mut chunk)?;
        chunk.truncate(length);
        Ok(chunk)
    }

    fn was_rotated(&self, path: &Path) -> bool {
        std::fs::metadata(path).is_ok_and(|now| now.ino() != self.inode)
    }
}

/// The offset at which the last `lines` lines begin.
fn last_lines(file: &mut std::fs::File, lines: u64) -> std::io::Result<u64> {
    let end = file.metadata()?.len();
    let (mut at, mut missing) = (end, lines + 1);
    let mut chunk = vec![0; CHUNK];
    // The newline that ends the last line does not count as the start of another.
    let mut skip_last = true;
    if lines == 0 {
        return Ok(end);
    }
    while at > 0 {
        let size = usize::try_from(at.min(CHUNK as u64)).expect("at most a chunk");
        at -= size as u64;
        file.seek(SeekFrom::Start(at))?;
        file.read_exact(&mut chunk[..size])?;
        for index in (0..size).rev().filter(|&index| chunk[index] == b'\n').collect::<Vec<_>>() {
            let position = at + index as u64 + 1;
            if std::mem::take(&mut skip_last) && position != end {
                missing -= 1;
            }
            missing -= 1;
            if missing == 0 {
                return Ok(position);
            }
        }
    }
    Ok(0)
}

/// Turns the runtime's lines into what the client reads.
struct Form {
    timestamps: bool,
    since: Option<Timestamp>,
    left: Option<u64>,
    /// An incomplete line at the end of what was read.
    rest: Vec<u8>,
    /// The last entry was a part of a longer line, so the next continues it.
    inside: bool,
}

impl Form {
    fn new(options: &LogOptions) -> Form {
        let LogOptions { timestamps, since, limit_bytes, .. } = *options;
        Form { timestamps, since, left: limit_bytes, rest: Vec::new(), inside: false }
    }

    fn is_full(&self) -> bool {
        self.left == Some(0)
    }

    fn render(&mut self, news: &[u8]) -> Vec<u8> {
        self.rest.extend_from_slice(news);
        let bytes = std::mem::take(&mut self.rest);
        let mut out = Vec::with_capacity(bytes.len());
        let mut rest = bytes.as_slice();
        while let Some(end) = rest.iter().position(|&byte| byte == b'\n') {
            self.entry(&rest[..end], &mut out);
            rest = &rest[end + 1..];
        }
        self.rest = rest.to_vec();
        if let Some(left) = &mut self.left {
            out.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
            *left -= out.len() as u64;
        }
        out
    }

    /// `2026-11-23T01:02:03.004005006Z stdout F text`; `P` instead of `F` marks a part of a line.
    fn entry(&mut self, line: &[u8], out: &mut Vec<u8>) {
        let mut fields = line.splitn(4, |&byte| byte == b' ');
        let (Some(time), Some(_stream), Some(tag)) = (fields.next(), fields.next(), fields.next()) else { return };
        let text = fields.next().unwrap_or_default();
        let partial = tag.first() == Some(&b'P');
        if self.since.is_some_and(|since| stamp(time).is_some_and(|at| at < since)) {
            return;
        }
        if self.timestamps && !self.inside {
            out.extend_from_slice(time);
            out.push(b' ');
        }
        out.extend_from_slice(text);
        if !partial {
            out.push(b'\n');
        }
        self.inside = partial;
    }
}

fn stamp(field: &[u8]) -> Option<Timestamp> {
    std::str::from_utf8(field).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::{Form, LogOptions, last_lines};
    use std::io::{Seek as _, SeekFrom, Write as _};

    const LOG: &[u8] = b"2026-11-23T01:00:00.5Z stdout F one\n2026-11-23T01:00:01Z stderr P tw\n\
2026-11-23T01:00:01Z stderr F o\n2026-11-23T01:00:02Z stdout F \n";

    fn render(options: &LogOptions, cut: usize) -> String {
        let mut form = Form::new(options);
        let bytes: Vec<u8> = LOG.chunks(cut).flat_map(|piece| form.render(piece)).collect();
        String::from_utf8(bytes).expect("text")
    }

    #[test]
    fn framing_is_taken_off_however_it_is_read() {
        for cut in [1, 3, 50, 1000] {
            assert_eq!(render(&LogOptions::default(), cut), "one\ntwo\n\n", "cut {cut}");
        }
    }

    #[test]
    fn options_are_honoured() {
        let stamped = render(&LogOptions { timestamps: true, ..Default::default() }, 1000);
        assert!(stamped.starts_with("2026-11-23T01:00:00.5Z one\n2026-11-23T01:00:01Z two\n"), "{stamped}");
        let since = "2026-11-23T01:00:01Z".parse().ok();
        assert_eq!(render(&LogOptions { since, ..Default::default() }, 1000), "two\n\n");
        assert_eq!(render(&LogOptions { limit_bytes: Some(5), ..Default::default() }, 7), "one\nt");
    }

    #[test]
    fn the_last_lines_are_found_across_chunks() {
        let mut file = tempfile::tempfile().expect("a file");
        let long = "x".repeat(super::CHUNK);
        write!(file, "a\n{long}\nb\nc\n").expect("written");
        let length = file.metadata().expect("there").len();
        let offset = |file: &mut std::fs::File, lines| last_lines(file, lines).expect("readable");
        assert_eq!(offset(&mut file, 0), length);
        assert_eq!(offset(&mut file, 1), length - 2);
        assert_eq!(offset(&mut file, 2), length - 4);
        assert_eq!(offset(&mut file, 3), 2);
        assert_eq!(offset(&mut file, 4), 0);
        assert_eq!(offset(&mut file, 99), 0);
        file.seek(SeekFrom::End(0)).expect("sought");
        write!(file, "unfinished").expect("written");
        assert_eq!(offset(&mut file, 1), length, "a line without its end counts");
    }
}
