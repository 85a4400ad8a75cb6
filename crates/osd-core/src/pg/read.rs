//! Reads at the primary: the data is read first and the lease checked after it, just before the answer; a read
//! that overlaps an entry above the commit point waits until that entry is committed.
//!
//! What a client reads is a view: the newest layer below it that knows a block says what is there. Layers are read one after
//! the other, newest first, as far as blocks are still unknown. Content only ever moves to a lower layer, and is there
//! before it leaves the upper one, so that no order of reading misses it.
//!
//! Who asks for the states of blocks only is answered in the same way, from the index alone. Of layers above a snapshot
//! it learns what has changed since.

use cairn_types::io::{BlockState, ClientOp, ClientRequest, ReadData, Refusal, ReplyBody};
use cairn_types::peer::{Run, RunContent};
use cairn_types::scrub::BlockCopy;
use cairn_types::{BLOCK_SIZE, ObjectId, RequestId, SnapId};

use super::{Ctx, InspectFor, Pg, ReadFor, fence};
use crate::output::{ConnId, ReadFailure};
use crate::planted::{Bug, planted};

/// One client's read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ClientRead {
    pub(super) conn: ConnId,
    pub(super) request: ReadRequest,
}

/// What it asks for, with what it needs to be let in again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ReadRequest {
    pub(super) id: RequestId,
    /// The layer that is read now.
    pub(super) object: ObjectId,
    pub(super) offset: u32,
    pub(super) len: u32,
    /// Layers that may be read after it, lowest first.
    below: Vec<SnapId>,
    /// What the layers above it said of the whole range.
    above: Option<ReadData>,
    /// The request without its body, for the fence.
    pub(super) envelope: Box<ClientRequest>,
}

/// A read that has its data and waits for the commit point or the lease.
#[derive(Debug)]
pub(super) struct ReadyRead {
    pub(super) conn: ConnId,
    pub(super) id: RequestId,
    /// The answer counts once this position is committed.
    after: u64,
    data: ReadData,
    envelope: Box<ClientRequest>,
}

impl Pg {
    /// Asks the store, or first a peer where this copy lacks the blocks.
    pub(super) fn start_read(&mut self, ctx: &mut Ctx<'_>, conn: ConnId, request: &ClientRequest) {
        let (offset, len) = request.op.range();
        let view = request.op.object();
        let fence = ctx.map.volumes.get(&request.volume);
        // Most volumes have no snapshots: one layer, and nothing to remember of others.
        let fence = fence.filter(|fence| !fence.snapshots.is_empty());
        let mut below: Vec<SnapId> = fence.map_or_else(Vec::new, |fence| fence.layers_below(view.snapshot).collect());
        if let ClientOp::Status { since, .. } = request.op {
            let skips = planted(Bug::SinceSkips);
            below.retain(|layer| *layer >= since && !(skips && *layer == since && since != SnapId(0)));
        }
        let object = view.at(below.pop().unwrap_or_default());
        let envelope = Box::new(request.clone());
        let request = ReadRequest { id: request.id, object, offset, len, below, above: None, envelope };
        self.read_again(ctx, ClientRead { conn, request });
    }

    /// See [`Pg::start_read`].
    pub(super) fn read_again(&mut self, ctx: &mut Ctx<'_>, read: ClientRead) {
        let (object, offset, len) = (read.request.object, read.request.offset, read.request.len);
        if matches!(read.request.envelope.op, ClientOp::Status { .. }) {
            let Some(primary) = &mut self.primary else { return };
            primary.reading += 1;
            let what = InspectFor::Client { serial: primary.serial, read: Box::new(read) };
            ctx.out.inspect(self.id, object, (offset, len), false, what);
            return;
        }
        let lacking = self.missing.lacking(object, offset, len);
        if !lacking.is_empty() {
            self.repair.wait_for(object, &lacking, Some(read));
            return;
        }
        let Some(primary) = &mut self.primary else { return };
        primary.reading += 1;
        let what = ReadFor::Client { serial: primary.serial, read };
        ctx.out.read(ctx.now, self.id, object, (offset, len), what);
    }

    /// The store's answer.
    pub(super) fn client_read_done(
        &mut self,
        ctx: &mut Ctx<'_>,
        serial: u64,
        read: ClientRead,
        result: Result<ReadData, ReadFailure>,
    ) {
        let ClientRead { conn, request } = &read;
        let Some(primary) = self.primary.as_mut().filter(|primary| primary.serial == serial) else {
            let refusal = Refusal::NotPrimary { epoch: ctx.map.epoch };
            ctx.out.reply(*conn, request.id, Err(refusal));
            return;
        };
        primary.reading -= 1;
        match result {
            Ok(data) => self.layer_read(ctx, read, data),
            Err(ReadFailure::Corrupt { .. }) if planted(Bug::ServeZeros) => {
                let ReadRequest { id, envelope, .. } = read.request;
                let len = envelope.op.range().1;
                let blocks = vec![BlockState::Absent; (len / BLOCK_SIZE) as usize];
                let data = ReadData { data: vec![0; len as usize].into(), blocks };
                primary.ready.push(ReadyRead { conn: read.conn, id, after: 0, data, envelope });
            }
            Err(ReadFailure::Corrupt { offsets }) => {
                self.miss_unreadable(request.object, &offsets);
                self.read_again(ctx, read);
            }
        }
    }

    /// The index's answer to who wants states only. What is missing here is being repaired: it is there.
    pub(super) fn client_inspected(&mut self, ctx: &mut Ctx<'_>, serial: u64, read: ClientRead, copies: &[BlockCopy]) {
        let (object, offset, len) = (read.request.object, read.request.offset, read.request.len);
        let lacking = self.missing.lacking(object, offset, len);
        let state = |at: u32| {
            let copy = copies.get(((at - offset) / BLOCK_SIZE) as usize).copied().unwrap_or_default();
            copy.state().filter(|_| !lacking.contains(at)).unwrap_or(BlockState::Data { crc: 0 })
        };
        let blocks = (offset..offset + len).step_by(BLOCK_SIZE as usize).map(state).collect();
        self.client_read_done(ctx, serial, read, Ok(ReadData { data: bytes::Bytes::new(), blocks }));
    }

    /// One layer is read: the next one, or the answer.
    fn layer_read(&mut self, ctx: &mut Ctx<'_>, mut read: ClientRead, data: ReadData) {
        let request = &mut read.request;
        let (offset, len) = request.envelope.op.range();
        let data = match request.above.take() {
            None => data,
            Some(above) => above.over(&data, (request.offset - offset) / BLOCK_SIZE),
        };
        let mut unknown = data.blocks.iter().enumerate().filter(|(_, state)| **state == BlockState::Absent);
        let first = unknown.next().map(|(index, _)| index as u32);
        if let (Some(first), Some(layer)) = (first, request.below.pop().filter(|_| !planted(Bug::ShallowView))) {
            let last = unknown.next_back().map_or(first, |(index, _)| index as u32);
            request.object = request.object.at(layer);
            request.offset = offset + first * BLOCK_SIZE;
            request.len = (last + 1 - first) * BLOCK_SIZE;
            request.above = Some(data);
            self.read_again(ctx, read);
            return;
        }
        let open = self.log.touched_beside(request.object, offset, len);
        let after = open.filter(|_| !planted(Bug::ReadAboveCommit)).unwrap_or(0);
        let Some(primary) = &mut self.primary else { return };
        let ReadRequest { id, envelope, .. } = read.request;
        primary.ready.push(ReadyRead { conn: read.conn, id, after, data, envelope });
    }

    /// Answers the reads whose entries are committed, if the leases hold at this instant.
    pub(super) fn finish_reads(&mut self, ctx: &mut Ctx<'_>) {
        let commit = self.log.commit();
        let idle = self.primary.as_ref().is_none_or(|primary| primary.ready.is_empty() || !primary.is_active());
        if idle || self.is_held() || !self.holds_leases(ctx) {
            return;
        }
        let Some(primary) = &mut self.primary else { return };
        let (done, wait): (Vec<_>, Vec<_>) =
            std::mem::take(&mut primary.ready).into_iter().partition(|read| read.after <= commit);
        primary.ready = wait;
        for read in done {
            let body = match read.envelope.op {
                ClientOp::Status { .. } => ReplyBody::Status(read.data.blocks),
                _ => ReplyBody::Data(read.data),
            };
            let result = fence::admit(ctx.map, &read.envelope).map(|()| body);
            ctx.out.reply(read.conn, read.id, result);
        }
    }

    /// Every member of every configuration that may be in force has granted its lease.
    fn holds_leases(&self, ctx: &Ctx<'_>) -> bool {
        if planted(Bug::ReadWithoutLease) {
            return true;
        }
        let all = self.must_persist();
        all.into_iter().all(|osd| ctx.peers.holds_lease(ctx.now, osd))
    }
}

/// What was read, as runs of blocks in the same state. `offset` is where it begins in the object.
pub(super) fn as_runs(read: &ReadData, offset: u32) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for (index, state) in read.blocks.iter().enumerate() {
        let at = index * BLOCK_SIZE as usize;
        let block = || read.data.slice(at..at + BLOCK_SIZE as usize);
        match (runs.last_mut(), state) {
            (Some(Run { len, content: RunContent::Absent, .. }), BlockState::Absent)
            | (Some(Run { len, content: RunContent::Zero, .. }), BlockState::Zero) => *len += BLOCK_SIZE,
            (Some(Run { len, offset: from, content: RunContent::Data { data, crcs } }), BlockState::Data { crc }) => {
                let start = (*from - offset) as usize;
                *len += BLOCK_SIZE;
                *data = read.data.slice(start..start + *len as usize);
                crcs.push(*crc);
            }
            _ => {
                let content = match state {
                    BlockState::Absent => RunContent::Absent,
                    BlockState::Zero => RunContent::Zero,
                    BlockState::Data { crc } => RunContent::Data { data: block(), crcs: vec![*crc] },
                };
                runs.push(Run { offset: offset + at as u32, len: BLOCK_SIZE, content });
            }
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn runs_join_equal_neighbours_and_share_the_data() {
        let blocks = vec![
            BlockState::Absent,
            BlockState::Data { crc: 1 },
            BlockState::Data { crc: 2 },
            BlockState::Zero,
            BlockState::Zero,
        ];
        let data = (0..5u8).flat_map(|value| vec![value; 4096]).collect::<Vec<_>>();
        let runs = as_runs(&ReadData { data: Bytes::from(data), blocks }, 8192);
        let shape = runs.iter().map(|run| (run.offset / 4096, run.len / 4096)).collect::<Vec<_>>();
        assert_eq!(shape, vec![(2, 1), (3, 2), (5, 2)]);
        let RunContent::Data { data, crcs } = &runs[1].content else { panic!("data") };
        assert_eq!((data[0], data[4096], crcs.as_slice()), (1, 2, &[1, 2][..]));
    }
}
