//! Files and pipes on this host. A file appears under its name when it is whole.

use std::io::SeekFrom;
use std::path::PathBuf;

use async_trait::async_trait;
use bytes::Bytes;
use cairn_transfer::Sink;
use tokio::fs::{File, OpenOptions};
use tokio::io::{AsyncRead, AsyncSeekExt as _, AsyncWriteExt as _, Stdout};

use crate::failure::{Code, Failure};

/// Zeros written to a pipe at once.
const ZEROS: &[u8] = &[0; 1 << 20];

enum Place {
    File { file: File, name: PathBuf, part: PathBuf },
    Pipe(Stdout),
}

/// Where an export goes.
pub(super) struct Output {
    place: Place,
    at: u64,
    /// Zeros that are still a hole.
    hole: u64,
    /// What was written.
    bytes: u64,
}

impl Output {
    /// Of a file beside which it is written until it is whole, or `-`.
    pub(super) async fn create(name: &str) -> Result<Self, Failure> {
        let place = if name == "-" {
            Place::Pipe(tokio::io::stdout())
        } else {
            let (part, name) = (PathBuf::from(format!("{name}.part")), PathBuf::from(name));
            if name.exists() {
                let message = format!("{} exists already; take it away, or name another file", name.display());
                return Err(Failure::new(Code::Failed, message));
            }
            let opened = OpenOptions::new().write(true).create(true).truncate(true).open(&part).await;
            let file = opened.map_err(Failure::while_(format!("cannot write {}", part.display())))?;
            Place::File { file, name, part }
        };
        Ok(Self { place, at: 0, hole: 0, bytes: 0 })
    }

    /// Everything is durable under its name; or nothing is left of it. Gives how many bytes were written.
    pub(super) async fn end(mut self, whole: bool) -> Result<u64, Failure> {
        match &mut self.place {
            Place::Pipe(out) => out.flush().await.map_err(Failure::while_("cannot write to standard output"))?,
            Place::File { file, name, part } => {
                let saved = async {
                    file.flush().await?;
                    file.set_len(self.at + self.hole).await?;
                    file.sync_all().await?;
                    tokio::fs::rename(&part, &name).await
                };
                if whole {
                    saved.await.map_err(Failure::while_(format!("cannot write {}", name.display())))?;
                } else {
                    // What is left of it nobody needs; that it cannot be removed says nothing new.
                    let _ = tokio::fs::remove_file(&part).await;
                }
            }
        }
        Ok(self.bytes)
    }
}

#[async_trait]
impl Sink for Output {
    async fn write(&mut self, data: Bytes) -> std::io::Result<()> {
        match &mut self.place {
            Place::Pipe(out) => out.write_all(&data).await?,
            Place::File { file, .. } => {
                if self.hole > 0 {
                    self.at += std::mem::take(&mut self.hole);
                    file.seek(SeekFrom::Start(self.at)).await?;
                }
                file.write_all(&data).await?;
            }
        }
        self.at += data.len() as u64;
        self.bytes += data.len() as u64;
        Ok(())
    }

    async fn zeros(&mut self, len: u64) -> std::io::Result<()> {
        let Place::Pipe(out) = &mut self.place else {
            self.hole += len;
            return Ok(());
        };
        let mut left = len;
        while left > 0 {
            let part = left.min(ZEROS.len() as u64);
            out.write_all(&ZEROS[..part as usize]).await?;
            left -= part;
        }
        self.bytes += len;
        Ok(())
    }
}

/// Where an import comes from, with its length if that is known.
pub(super) async fn open(name: &str) -> Result<(Box<dyn AsyncRead + Unpin + Send>, Option<u64>), Failure> {
    if name == "-" {
        return Ok((Box::new(tokio::io::stdin()), None));
    }
    let cannot = || Failure::while_::<std::io::Error>(format!("cannot read {name}"));
    let mut file = File::open(name).await.map_err(cannot())?;
    let kind = file.metadata().await.map_err(cannot())?.file_type();
    if kind.is_dir() {
        return Err(Failure::new(Code::Failed, format!("{name} is a directory; name a file, a device, or -")));
    }
    // Of a block device, too.
    let len = match file.seek(SeekFrom::End(0)).await {
        Ok(len) => {
            file.rewind().await.map_err(cannot())?;
            Some(len)
        }
        Err(_) => None,
    };
    Ok((Box::new(file), len))
}
