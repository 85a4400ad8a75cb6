//! One operation on its way: which pieces it needs next, and what they add up to.
//!
//! An operation runs in one or two passes. A write that covers only a part of a block first reads the blocks at its
//! edges, and then writes whole blocks; nobody can come between, because the operation holds its range. So does a
//! copy-up, which asks first what the clone has of its own, then reads, and writes what is only its parents'.

use bytes::{Bytes, BytesMut};
use cairn_types::io::ClientOp;
use cairn_types::{BLOCK_SIZE, Bytes4k, ObjectId, SnapId, TraceId};

use crate::op::{ABSENT, Config, IoError, Op};
use crate::stripe::{Piece, cover, cut, edges};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pass {
    Waiting,
    /// What the clone has of its own.
    Own,
    Edges,
    Main,
}

/// What an operation needs next.
#[derive(Debug)]
pub(crate) enum Step {
    /// These, in any order.
    Pieces(Vec<ClientOp>),
    /// Nothing: it has ended.
    End(Result<Bytes, IoError>),
}

/// An operation that has come and not ended.
#[derive(Debug)]
pub(crate) struct Running {
    op: Op,
    trace: TraceId,
    pass: Pass,
    /// Pieces of this pass without an answer.
    left: usize,
    /// What the pieces of this pass read.
    parts: Vec<Bytes>,
    /// A byte for each block: what the clone has of its own.
    own: Vec<Bytes>,
    failed: Option<IoError>,
}

impl Running {
    pub(crate) fn new(op: Op, trace: TraceId) -> Self {
        Self { op, trace, pass: Pass::Waiting, left: 0, parts: Vec::new(), own: Vec::new(), failed: None }
    }

    pub(crate) fn op(&self) -> &Op {
        &self.op
    }

    pub(crate) fn trace(&self) -> TraceId {
        self.trace
    }

    /// Whether what its pieces read now is the parents' where the clone knows nothing.
    pub(crate) fn looks_above(&self) -> bool {
        !matches!((&self.op, self.pass), (Op::Status { parents: false, .. }, _) | (Op::CopyUp { .. }, Pass::Own))
    }

    /// Its first failure: what has not been sent need not be.
    pub(crate) fn failed(&self) -> Option<IoError> {
        self.failed
    }

    /// Nothing holds it up any more.
    pub(crate) fn begin(&mut self, config: &Config) -> Step {
        assert_eq!(self.pass, Pass::Waiting, "an operation begins once");
        let (offset, len) = self.op.range();
        if let Op::CopyUp { .. } = self.op {
            self.pass = Pass::Own;
            return self.pieces(states(self.op.blocks(), SnapId(0), config));
        }
        let partial = if self.op.is_write() { edges(offset, len) } else { Vec::new() };
        if partial.is_empty() {
            return self.main(config);
        }
        self.pass = Pass::Edges;
        self.pieces(partial.into_iter().flat_map(|edge| reads(edge, config)).collect())
    }

    /// One piece has its final answer.
    pub(crate) fn end_piece(&mut self, slot: usize, result: Result<Bytes, IoError>, config: &Config) -> Option<Step> {
        self.left -= 1;
        match result {
            Ok(data) => self.parts[slot] = data,
            Err(error) => self.failed = self.failed.or(Some(error)),
        }
        if self.left > 0 {
            return None;
        }
        Some(match (self.failed, self.pass) {
            (Some(error), _) => Step::End(Err(error)),
            (None, Pass::Own) => {
                self.own = std::mem::take(&mut self.parts);
                self.pass = Pass::Edges;
                // What is all its own is not read.
                let wanted = self.own.iter().any(|part| part.contains(&ABSENT));
                let pieces = if wanted { reads(self.op.blocks(), config) } else { Vec::new() };
                self.pieces(pieces)
            }
            (None, Pass::Edges) => self.main(config),
            (None, Pass::Main | Pass::Waiting) => Step::End(Ok(self.assemble())),
        })
    }

    fn pieces(&mut self, pieces: Vec<ClientOp>) -> Step {
        self.left = pieces.len();
        self.parts = vec![Bytes::new(); pieces.len()];
        if pieces.is_empty() { Step::End(Ok(Bytes::new())) } else { Step::Pieces(pieces) }
    }

    fn main(&mut self, config: &Config) -> Step {
        let edges = std::mem::take(&mut self.parts);
        self.pass = Pass::Main;
        let whole = self.op.blocks();
        let pieces = match &self.op {
            Op::Read { .. } => reads(whole, config),
            Op::Write { offset, data } => writes(whole, merge(*offset, data, &edges), config),
            Op::Zero { offset, len, unmap } => zeroes(*offset, *len, *unmap, &edges, config),
            Op::Status { since, .. } => states(whole, *since, config),
            Op::CopyUp { .. } => copies(whole, &self.own, &edges, config),
            Op::Flush => Vec::new(),
        };
        self.pieces(pieces)
    }

    /// What a read has read: the bytes asked for, out of the blocks.
    fn assemble(&mut self) -> Bytes {
        let (skip, len) = match self.op {
            Op::Read { offset, len } => ((offset % u64::from(BLOCK_SIZE)) as usize, len as usize),
            Op::Status { .. } => (0, (self.op.blocks().len() / u64::from(BLOCK_SIZE)) as usize),
            _ => return Bytes::new(),
        };
        let parts = std::mem::take(&mut self.parts);
        let whole = match <[Bytes; 1]>::try_from(parts) {
            Ok([single]) => single,
            Err(parts) => {
                let mut joined = BytesMut::with_capacity(parts.iter().map(Bytes::len).sum());
                parts.iter().for_each(|part| joined.extend_from_slice(part));
                joined.freeze()
            }
        };
        whole.slice(skip..skip + len)
    }
}

fn object(piece: &Piece, config: &Config) -> ObjectId {
    ObjectId { pool: config.pool, volume: config.volume, index: piece.index, snapshot: config.view }
}

fn reads(range: Bytes4k, config: &Config) -> Vec<ClientOp> {
    let read = |p: Piece| ClientOp::Read { object: object(&p, config), offset: p.offset, len: p.len };
    cut(range, config.object_size).map(read).collect()
}

fn states(range: Bytes4k, since: SnapId, config: &Config) -> Vec<ClientOp> {
    let status = |p: Piece| ClientOp::Status { object: object(&p, config), offset: p.offset, len: p.len, since };
    cut(range, config.object_size).map(status).collect()
}

/// What was read of blocks that the clone did not have, as writes; zeros need not be had.
fn copies(range: Bytes4k, own: &[Bytes], read: &[Bytes], config: &Config) -> Vec<ClientOp> {
    let block = BLOCK_SIZE as usize;
    let mut pieces = Vec::new();
    for ((piece, own), read) in cut(range, config.object_size).zip(own).zip(read) {
        let wanted = |at: usize| own[at] == ABSENT && read[at * block..(at + 1) * block].iter().any(|byte| *byte != 0);
        let mut at = 0;
        while at < own.len() {
            let end = (at..own.len()).find(|at| !wanted(*at)).unwrap_or(own.len());
            if end > at {
                let data = read.slice(at * block..end * block);
                let crcs = data.chunks(block).map(crc32c::crc32c).collect();
                let offset = piece.offset + at as u32 * BLOCK_SIZE;
                pieces.push(ClientOp::Write { object: object(&piece, config), offset, data, crcs });
            }
            at = end + 1;
        }
    }
    pieces
}

fn writes(range: Bytes4k, data: Bytes, config: &Config) -> Vec<ClientOp> {
    let write = |p: Piece| {
        let data = data.slice(p.at as usize..p.at as usize + p.len as usize);
        let crcs = data.chunks(BLOCK_SIZE as usize).map(crc32c::crc32c).collect();
        ClientOp::Write { object: object(&p, config), offset: p.offset, data, crcs }
    };
    cut(range, config.object_size).map(write).collect()
}

/// A zeroed range: whole blocks are zeroed, the edges are written with their outer bytes kept.
fn zeroes(offset: u64, len: u64, unmap: bool, edges: &[Bytes], config: &Config) -> Vec<ClientOp> {
    let block = u64::from(BLOCK_SIZE);
    let end = offset + len;
    let mut pieces = Vec::new();
    let mut edges = edges.iter();
    let mut edge = |from: u64, to: u64| {
        let kept = edges.next().expect("each edge was read");
        let zeros = vec![0; (to - from) as usize];
        writes(cover(from, to - from), merge(from, &zeros.into(), std::slice::from_ref(kept)), config)
    };
    let mut middle = cover(offset, len);
    if !offset.is_multiple_of(block) {
        let stop = middle.offset() + block;
        pieces.extend(edge(offset, end.min(stop)));
        middle = Bytes4k::new(stop, middle.end() - stop).expect("whole blocks");
    }
    if !middle.is_empty() && !end.is_multiple_of(block) {
        let start = middle.end() - block;
        pieces.extend(edge(start, end));
        middle = Bytes4k::new(middle.offset(), start - middle.offset()).expect("whole blocks");
    }
    // What a clone discards must not let its parent be seen again.
    let unmap = unmap && config.parents.is_empty();
    let zero = |p: Piece| ClientOp::Zero { object: object(&p, config), offset: p.offset, len: p.len, unmap };
    pieces.extend(cut(middle, config.object_size).map(zero));
    pieces
}

/// Whole blocks out of `data` at `offset` and the blocks at its edges: the first, the last, or one that is both.
fn merge(offset: u64, data: &Bytes, edges: &[Bytes]) -> Bytes {
    if edges.is_empty() {
        return data.clone();
    }
    let whole = cover(offset, data.len() as u64);
    let head = (offset - whole.offset()) as usize;
    let tail = whole.len() as usize - head - data.len();
    let mut merged = BytesMut::with_capacity(whole.len() as usize);
    merged.extend_from_slice(&edges[0][..head]);
    merged.extend_from_slice(data);
    let last = &edges[edges.len() - 1];
    merged.extend_from_slice(&last[last.len() - tail..]);
    merged.freeze()
}
