//! The operations between a client and the primary of a PG, as fields and payload.

use bytes::{BufMut, Bytes, BytesMut};
use cairn_types::io::{BlockState, ClientOp, ClientReply, ClientRequest, ReadData, Refusal, ReplyBody};
use cairn_types::{BLOCK_SIZE, ConfVersion, Epoch, Generation, RequestId, SessionId, SnapId, TraceId, VolumeId};

use crate::body::{Fields, PutFields, check_block, check_blocks, whole_blocks};
use crate::encode::Head;
use crate::{PayloadCheck, WireError, zeros};

pub(crate) const READ: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const ZERO: u16 = 3;
pub(crate) const STATUS: u16 = 4;
pub(crate) const REPLY_DONE: u16 = 16;
pub(crate) const REPLY_DATA: u16 = 17;
pub(crate) const REPLY_REFUSED: u16 = 18;
pub(crate) const REPLY_STATUS: u16 = 19;

const BLOCK_ABSENT: u8 = 0;
const BLOCK_ZERO: u8 = 1;
const BLOCK_DATA: u8 = 2;

pub(crate) fn put_request(request: &ClientRequest, out: &mut BytesMut, payload: &mut Vec<Bytes>) -> Head {
    out.put_u128_le(request.id.session.0);
    out.put_u64_le(request.acked_through);
    out.put_u64_le(request.trace.0);
    out.put_pg(request.pg);
    out.put_u64_le(request.epoch.0);
    out.put_u64_le(request.volume.0);
    out.put_u64_le(request.snap_context.0);
    out.put_object(request.op.object());
    let kind = match &request.op {
        ClientOp::Read { offset, len, .. } => {
            out.put_u32_le(*offset);
            out.put_u32_le(*len);
            READ
        }
        ClientOp::Write { offset, data, crcs, .. } => {
            assert_eq!(crcs.len() * BLOCK_SIZE as usize, data.len(), "a write has one checksum for each block");
            out.put_u32_le(*offset);
            out.put_u32s(crcs);
            payload.push(data.clone());
            WRITE
        }
        ClientOp::Zero { offset, len, unmap, .. } => {
            out.put_u32_le(*offset);
            out.put_u32_le(*len);
            out.put_u8(u8::from(*unmap));
            ZERO
        }
        ClientOp::Status { offset, len, since, .. } => {
            out.put_u32_le(*offset);
            out.put_u32_le(*len);
            out.put_u64_le(since.0);
            STATUS
        }
    };
    Head { kind, c: request.c.0, g: request.generation.0, v: request.id.seq }
}

pub(crate) fn take_request(
    head: Head,
    body: &[u8],
    payload: Bytes,
    check: PayloadCheck,
) -> Result<ClientRequest, WireError> {
    let mut fields = Fields::new(body, "request");
    let id = RequestId { session: SessionId(fields.u128()?), seq: head.v };
    let (acked_through, trace) = (fields.u64()?, TraceId(fields.u64()?));
    let pg = fields.pg()?;
    let (epoch, volume) = (Epoch(fields.u64()?), VolumeId(fields.u64()?));
    let snap_context = SnapId(fields.u64()?);
    let object = fields.object()?;
    let offset = fields.u32()?;
    if head.kind != WRITE && !payload.is_empty() {
        return Err(fields.malformed());
    }
    let op = match head.kind {
        READ => ClientOp::Read { object, offset, len: fields.u32()? },
        WRITE => {
            let crcs = fields.u32s(whole_blocks(payload.len(), "write")?)?;
            if check == PayloadCheck::AtDecode {
                check_blocks(&payload, &crcs)?;
            }
            ClientOp::Write { object, offset, data: payload, crcs }
        }
        ZERO => ClientOp::Zero { object, offset, len: fields.u32()?, unmap: fields.bool()? },
        STATUS => ClientOp::Status { object, offset, len: fields.u32()?, since: SnapId(fields.u64()?) },
        kind => return Err(WireError::UnknownOperation { kind }),
    };
    fields.end()?;
    let (c, generation) = (ConfVersion(head.c), Generation(head.g));
    Ok(ClientRequest { id, acked_through, trace, pg, c, epoch, volume, generation, snap_context, op })
}

pub(crate) fn put_reply(reply: &ClientReply, out: &mut BytesMut, payload: &mut Vec<Bytes>) -> Head {
    out.put_u128_le(reply.id.session.0);
    let kind = match &reply.result {
        Ok(ReplyBody::Done) => REPLY_DONE,
        Ok(ReplyBody::Data(read)) => {
            payload.extend(put_read_data(read, out));
            REPLY_DATA
        }
        Ok(ReplyBody::Status(blocks)) => {
            put_states(blocks, out);
            REPLY_STATUS
        }
        Err(refusal) => {
            put_refusal(*refusal, out);
            REPLY_REFUSED
        }
    };
    Head { kind, c: 0, g: 0, v: reply.id.seq }
}

pub(crate) fn take_reply(
    head: Head,
    body: &[u8],
    payload: Bytes,
    check: PayloadCheck,
) -> Result<ClientReply, WireError> {
    let mut fields = Fields::new(body, "reply");
    if (head.c, head.g) != (0, 0) || (head.kind != REPLY_DATA && !payload.is_empty()) {
        return Err(fields.malformed());
    }
    let id = RequestId { session: SessionId(fields.u128()?), seq: head.v };
    let result = match head.kind {
        REPLY_DONE => Ok(ReplyBody::Done),
        REPLY_DATA => Ok(ReplyBody::Data(take_read_data(&mut fields, payload, check)?)),
        REPLY_STATUS => Ok(ReplyBody::Status(take_states(&mut fields)?)),
        REPLY_REFUSED => Err(take_refusal(&mut fields)?),
        kind => return Err(WireError::UnknownOperation { kind }),
    };
    fields.end()?;
    Ok(ClientReply { id, result })
}

/// Block states as a byte each, then the checksums of the data blocks.
fn put_states(blocks: &[BlockState], out: &mut BytesMut) {
    out.put_u32_le(blocks.len() as u32);
    for block in blocks {
        out.put_u8(match block {
            BlockState::Absent => BLOCK_ABSENT,
            BlockState::Zero => BLOCK_ZERO,
            BlockState::Data { .. } => BLOCK_DATA,
        });
    }
    for block in blocks {
        if let BlockState::Data { crc } = block {
            out.put_u32_le(*crc);
        }
    }
}

/// Not of more blocks than a frame can carry the data of.
fn take_states(fields: &mut Fields<'_>) -> Result<Vec<BlockState>, WireError> {
    let count = fields.count(1)?;
    let (len, limit) = (count * BLOCK_SIZE as usize, crate::MAX_FRAME_PAYLOAD);
    if len > limit {
        return Err(WireError::TooLong { what: "read data", len, limit });
    }
    let tags = fields.bytes(count)?;
    let mut blocks = Vec::with_capacity(count);
    for tag in tags {
        blocks.push(match *tag {
            BLOCK_ABSENT => BlockState::Absent,
            BLOCK_ZERO => BlockState::Zero,
            BLOCK_DATA => BlockState::Data { crc: fields.u32()? },
            _ => return Err(fields.malformed()),
        });
    }
    Ok(blocks)
}

fn has_data(blocks: &[BlockState]) -> bool {
    blocks.iter().any(|block| matches!(block, BlockState::Data { .. }))
}

/// The states, and the data; blocks that are all absent or zero need no payload.
fn put_read_data(read: &ReadData, out: &mut BytesMut) -> Option<Bytes> {
    assert_eq!(read.blocks.len() * BLOCK_SIZE as usize, read.data.len(), "a read has one state for each block");
    put_states(&read.blocks, out);
    has_data(&read.blocks).then(|| read.data.clone())
}

fn take_read_data(fields: &mut Fields<'_>, payload: Bytes, check: PayloadCheck) -> Result<ReadData, WireError> {
    let blocks = take_states(fields)?;
    let (len, has_data) = (blocks.len() * BLOCK_SIZE as usize, has_data(&blocks));
    if payload.len() != if has_data { len } else { 0 } {
        return Err(fields.malformed());
    }
    if !has_data {
        return Ok(ReadData { data: zeros(len), blocks });
    }
    if check == PayloadCheck::AtDecode {
        check_read(&payload, &blocks)?;
    }
    Ok(ReadData { data: payload, blocks })
}

fn check_read(data: &Bytes, blocks: &[BlockState]) -> Result<(), WireError> {
    for (bytes, state) in data.chunks(BLOCK_SIZE as usize).zip(blocks) {
        match state {
            BlockState::Data { crc } => check_block(bytes, *crc)?,
            BlockState::Absent | BlockState::Zero if bytes.iter().all(|byte| *byte == 0) => {}
            BlockState::Absent | BlockState::Zero => return Err(WireError::Malformed { what: "zero block" }),
        }
    }
    Ok(())
}

fn put_refusal(refusal: Refusal, out: &mut BytesMut) {
    let (code, epoch) = match refusal {
        Refusal::NotPrimary { epoch } => (1, epoch.0),
        Refusal::StaleMap { epoch } => (2, epoch.0),
        Refusal::Busy => (3, 0),
        Refusal::Fenced => (4, 0),
        Refusal::ReadOnly => (5, 0),
        Refusal::StaleSnapContext => (6, 0),
        Refusal::Corrupt => (7, 0),
        Refusal::NoSpace => (8, 0),
        Refusal::AlreadyAcked => (9, 0),
        Refusal::Malformed => (10, 0),
        Refusal::NoSnapshot => (11, 0),
    };
    out.put_u16_le(code);
    out.put_u64_le(epoch);
}

fn take_refusal(fields: &mut Fields<'_>) -> Result<Refusal, WireError> {
    let (code, epoch) = (fields.u16()?, Epoch(fields.u64()?));
    Ok(match (code, epoch) {
        (1, epoch) => Refusal::NotPrimary { epoch },
        (2, epoch) => Refusal::StaleMap { epoch },
        (3, Epoch(0)) => Refusal::Busy,
        (4, Epoch(0)) => Refusal::Fenced,
        (5, Epoch(0)) => Refusal::ReadOnly,
        (6, Epoch(0)) => Refusal::StaleSnapContext,
        (7, Epoch(0)) => Refusal::Corrupt,
        (8, Epoch(0)) => Refusal::NoSpace,
        (9, Epoch(0)) => Refusal::AlreadyAcked,
        (10, Epoch(0)) => Refusal::Malformed,
        (11, Epoch(0)) => Refusal::NoSnapshot,
        _ => return Err(fields.malformed()),
    })
}
