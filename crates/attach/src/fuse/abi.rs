//! The FUSE kernel protocol, as far as one regular file needs it: bytes <-> requests and replies.
//!
//! Version 7.31 is offered (asynchronous direct I/O, 1 MiB requests); the resend notification came with 7.40 and is
//! required, because a successor could not finish what its predecessor left otherwise. All numbers are native-endian,
//! as both ends live on one machine. Source: `include/uapi/linux/fuse.h`.

/// Size of the header of every request.
pub(super) const IN_HEADER: usize = 40;
/// Size of the header of every reply.
pub(super) const OUT_HEADER: usize = 16;
/// The largest read or write that is negotiated: the kernel's default bound of 256 pages.
pub(super) const MAX_IO: usize = 1 << 20;
/// Large enough for any request: header, arguments and the largest write.
pub(super) const READ_BUFFER: usize = MAX_IO + 4096;

const MAJOR: u32 = 7;
const MINOR: u32 = 31;

const ASYNC_READ: u64 = 1 << 0;
const BIG_WRITES: u64 = 1 << 5;
const ASYNC_DIO: u64 = 1 << 15;
const PARALLEL_DIROPS: u64 = 1 << 18;
const MAX_PAGES: u64 = 1 << 22;
const INIT_EXT: u64 = 1 << 30;
const HAS_RESEND: u64 = 1 << 39;

const OPEN_DIRECT_IO: u32 = 1 << 0;
const OPEN_NOFLUSH: u32 = 1 << 5;
const OPEN_PARALLEL_DIRECT_WRITES: u32 = 1 << 6;

const NOTIFY_RESEND: i32 = 7;

/// The root directory's node.
pub(super) const ROOT: u64 = 1;
/// The one file's node.
pub(super) const FILE: u64 = 2;

/// One request of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Request<'a> {
    /// Echoed in the reply, with every bit of it: a resent request has the highest one set.
    pub(super) unique: u64,
    /// The node it is about.
    pub(super) node: u64,
    /// What it asks.
    pub(super) op: Op<'a>,
}

/// What the kernel asks; what is not needed for one file is `Other`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Op<'a> {
    Init {
        major: u32,
        minor: u32,
        flags: u64,
    },
    Lookup {
        name: &'a [u8],
    },
    Attributes,
    Open {
        directory: bool,
    },
    Read {
        offset: u64,
        len: u32,
    },
    Write {
        offset: u64,
        data: &'a [u8],
    },
    Allocate {
        offset: u64,
        len: u64,
        mode: u32,
    },
    Sync,
    Statfs,
    Release,
    /// No reply is expected.
    Silent,
    /// The filesystem is gone.
    Destroy,
    Other {
        opcode: u32,
    },
}

/// Bytes from the kernel that are not a request of this protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the kernel's request is malformed: {0}")]
pub(super) struct Malformed(&'static str);

impl<'a> Request<'a> {
    pub(super) fn decode(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let mut head = Fields(bytes);
        let (len, opcode) = (head.u32()?, head.u32()?);
        let (unique, node) = (head.u64()?, head.u64()?);
        if len as usize != bytes.len() || bytes.len() < IN_HEADER {
            return Err(Malformed("its length differs from what was read"));
        }
        Ok(Self { unique, node, op: Op::decode(opcode, Fields(&bytes[IN_HEADER..]))? })
    }
}

impl<'a> Op<'a> {
    fn decode(opcode: u32, mut args: Fields<'a>) -> Result<Self, Malformed> {
        Ok(match opcode {
            1 => Self::Lookup { name: args.0.strip_suffix(b"\0").ok_or(Malformed("a name without its end"))? },
            2 | 36 | 42 => Self::Silent, // FORGET, INTERRUPT, BATCH_FORGET
            3 => Self::Attributes,
            14 => Self::Open { directory: false },
            15 => {
                args.u64()?;
                Self::Read { offset: args.u64()?, len: args.u32()? }
            }
            16 => {
                args.u64()?;
                let (offset, len) = (args.u64()?, args.u32()?);
                args.skip(20)?;
                let data = args.0.get(..len as usize).ok_or(Malformed("a write shorter than it says"))?;
                Self::Write { offset, data }
            }
            17 => Self::Statfs,
            18 | 29 => Self::Release,
            20 => Self::Sync,
            26 => {
                let (major, minor) = (args.u32()?, args.u32()?);
                args.skip(4)?;
                let low = u64::from(args.u32()?);
                let high = if low & INIT_EXT != 0 { u64::from(args.u32()?) } else { 0 };
                Self::Init { major, minor, flags: low | high << 32 }
            }
            27 => Self::Open { directory: true },
            38 => Self::Destroy,
            43 => {
                args.u64()?;
                Self::Allocate { offset: args.u64()?, len: args.u64()?, mode: args.u32()? }
            }
            opcode => Self::Other { opcode },
        })
    }
}

struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn skip(&mut self, len: usize) -> Result<(), Malformed> {
        self.0 = self.0.get(len..).ok_or(Malformed("shorter than its arguments"))?;
        Ok(())
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        let (value, rest) = self.0.split_first_chunk().ok_or(Malformed("shorter than its arguments"))?;
        self.0 = rest;
        Ok(u32::from_ne_bytes(*value))
    }

    fn u64(&mut self) -> Result<u64, Malformed> {
        let (value, rest) = self.0.split_first_chunk().ok_or(Malformed("shorter than its arguments"))?;
        self.0 = rest;
        Ok(u64::from_ne_bytes(*value))
    }
}

/// What a node is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attributes {
    pub(super) node: u64,
    pub(super) size: u64,
    pub(super) read_only: bool,
}

/// The header of a reply whose body has `len` bytes; `errno` 0 is success.
pub(super) fn header(unique: u64, errno: i32, len: usize) -> [u8; OUT_HEADER] {
    let mut out = [0; OUT_HEADER];
    out[..4].copy_from_slice(&((OUT_HEADER + len) as u32).to_ne_bytes());
    out[4..8].copy_from_slice(&(-errno).to_ne_bytes());
    out[8..].copy_from_slice(&unique.to_ne_bytes());
    out
}

/// Tells the kernel to queue again every request that was read and not answered.
pub(super) fn resend() -> [u8; OUT_HEADER] {
    header(0, -NOTIFY_RESEND, 0)
}

/// Whether the kernel can resend: Linux 6.9 and later.
pub(super) fn can_resend(flags: u64) -> bool {
    flags & HAS_RESEND != 0
}

pub(super) fn init_reply(kernel_flags: u64, max_background: u16) -> Vec<u8> {
    let flags = kernel_flags & (ASYNC_READ | BIG_WRITES | ASYNC_DIO | PARALLEL_DIROPS | MAX_PAGES);
    let mut out = Vec::with_capacity(64);
    push32(&mut out, &[MAJOR, MINOR, 0, flags as u32]);
    push16(&mut out, &[max_background, max_background]);
    push32(&mut out, &[MAX_IO as u32, 1]);
    push16(&mut out, &[(MAX_IO / 4096) as u16, 0]);
    out.resize(64, 0);
    out
}

/// The kernel may keep the name for ever, the attributes not at all: the size can change.
pub(super) fn entry_reply(attributes: Attributes) -> Vec<u8> {
    let mut out = Vec::with_capacity(128);
    push64(&mut out, &[attributes.node, 0, u64::from(u32::MAX), 0]);
    push32(&mut out, &[0, 0]);
    push_attributes(&mut out, attributes);
    out
}

pub(super) fn attributes_reply(attributes: Attributes) -> Vec<u8> {
    let mut out = Vec::with_capacity(104);
    push64(&mut out, &[0]);
    push32(&mut out, &[0, 0]);
    push_attributes(&mut out, attributes);
    out
}

/// The file bypasses the page cache and takes writes in parallel; the handle is not used, so that it means the same
/// to every process that serves this connection.
pub(super) fn open_reply(directory: bool) -> Vec<u8> {
    let flags = if directory { 0 } else { OPEN_DIRECT_IO | OPEN_NOFLUSH | OPEN_PARALLEL_DIRECT_WRITES };
    let mut out = Vec::with_capacity(16);
    push64(&mut out, &[0]);
    push32(&mut out, &[flags, 0]);
    out
}

pub(super) fn write_reply(len: u32) -> Vec<u8> {
    let mut out = Vec::with_capacity(8);
    push32(&mut out, &[len, 0]);
    out
}

/// The loop driver takes the block size for its discard granularity.
pub(super) fn statfs_reply(size: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(80);
    push64(&mut out, &[size / 4096, 0, 0, 1, 0]);
    push32(&mut out, &[4096, 255, 4096]);
    out.resize(80, 0);
    out
}

fn push_attributes(out: &mut Vec<u8>, attributes: Attributes) {
    let directory = attributes.node == ROOT;
    let mode = match (directory, attributes.read_only) {
        (true, _) => libc::S_IFDIR | 0o500,
        (false, true) => libc::S_IFREG | 0o400,
        (false, false) => libc::S_IFREG | 0o600,
    };
    let size = if directory { 0 } else { attributes.size };
    push64(out, &[attributes.node, size, size / 512, 0, 0, 0]);
    push32(out, &[0, 0, 0, mode, if directory { 2 } else { 1 }, 0, 0, 0, 4096, 0]);
}

fn push64(out: &mut Vec<u8>, values: &[u64]) {
    values.iter().for_each(|value| out.extend_from_slice(&value.to_ne_bytes()));
}

fn push32(out: &mut Vec<u8>, values: &[u32]) {
    values.iter().for_each(|value| out.extend_from_slice(&value.to_ne_bytes()));
}

fn push16(out: &mut Vec<u8>, values: &[u16]) {
    values.iter().for_each(|value| out.extend_from_slice(&value.to_ne_bytes()));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(opcode: u32, args: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        push32(&mut out, &[(IN_HEADER + args.len()) as u32, opcode]);
        push64(&mut out, &[1 << 63 | 8, FILE, 0, 0]);
        out.extend_from_slice(args);
        out
    }

    #[test]
    fn a_write_is_its_range_and_its_data() {
        let mut args = Vec::new();
        push64(&mut args, &[0, 8192]);
        push32(&mut args, &[4, 0, 0, 0, 0, 0]);
        args.extend_from_slice(b"data");
        let bytes = request(16, &args);
        let decoded = Request::decode(&bytes).unwrap();
        assert_eq!(decoded.op, Op::Write { offset: 8192, data: b"data" });
        assert_eq!(decoded.unique, 1 << 63 | 8, "the resend bit is part of the name");
    }

    #[test]
    fn every_cut_of_a_request_is_refused_and_none_panics() {
        for opcode in 0..60 {
            let bytes = request(opcode, &[0xff; 64]);
            for len in 0..bytes.len() {
                assert!(Request::decode(&bytes[..len]).is_err(), "opcode {opcode} cut at {len}");
            }
            let _ = Request::decode(&bytes);
            let _ = Request::decode(&request(opcode, &[]));
        }
    }

    #[test]
    fn replies_have_the_sizes_the_kernel_checks() {
        let attributes = Attributes { node: FILE, size: 1 << 30, read_only: false };
        assert_eq!(init_reply(u64::MAX, 128).len(), 64);
        assert_eq!(entry_reply(attributes).len(), 128);
        assert_eq!(attributes_reply(attributes).len(), 104);
        assert_eq!(open_reply(false).len(), 16);
        assert_eq!(statfs_reply(1 << 30).len(), 80);
        assert_eq!(header(7, libc::EIO, 0)[4..8], (-libc::EIO).to_ne_bytes());
        assert_eq!(resend()[4..8], 7i32.to_ne_bytes());
    }
}
