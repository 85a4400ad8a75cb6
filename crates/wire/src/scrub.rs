//! The operations of a scrub into fields and back. Blocks in the same state travel as one run.

use bytes::{BufMut, BytesMut};
use cairn_types::io::BlockState;
use cairn_types::peer::ObjectKey;
use cairn_types::scrub::{BlockCopy, MAX_SCRUB_OBJECTS, Mend, ScrubAsk, ScrubFound};

use crate::WireError;
use crate::body::{Fields, PutFields};

/// Blocks of the largest object.
const MAX_BLOCKS: usize = 4096;

pub(crate) fn put_ask(ask: &ScrubAsk, out: &mut BytesMut) {
    out.put_u64_le(ask.id);
    out.put_u8(u8::from(ask.deep));
    out.put_u8(u8::from(ask.after.is_some()));
    if let Some(after) = ask.after {
        out.put_object(after.object());
    }
    out.put_u32_le(ask.limit);
}

pub(crate) fn take_ask(fields: &mut Fields<'_>) -> Result<ScrubAsk, WireError> {
    Ok(ScrubAsk {
        id: fields.u64()?,
        deep: fields.bool()?,
        after: if fields.bool()? { Some(ObjectKey::new(fields.object()?)) } else { None },
        limit: fields.u32()?,
    })
}

pub(crate) fn put_found(found: &ScrubFound, out: &mut BytesMut) {
    assert!(found.objects.len() <= MAX_SCRUB_OBJECTS, "no more than {MAX_SCRUB_OBJECTS} objects are compared at once");
    out.put_u64_le(found.id);
    out.put_u64_le(found.at);
    out.put_u8(u8::from(found.end));
    out.put_u32_le(found.objects.len() as u32);
    for (object, blocks) in &found.objects {
        assert!(blocks.len() <= MAX_BLOCKS, "no object has more than {MAX_BLOCKS} blocks");
        out.put_object(*object);
        let runs = blocks.chunk_by(|one, next| tag(*one) == tag(*next)).collect::<Vec<_>>();
        out.put_u32_le(runs.len() as u32);
        for run in runs {
            out.put_u8(tag(run[0]));
            out.put_u32_le(run.len() as u32);
            run.iter().filter_map(|block| crc(*block)).for_each(|crc| out.put_u32_le(crc));
        }
    }
}

fn tag(block: BlockCopy) -> u8 {
    match block {
        BlockCopy::Absent => 0,
        BlockCopy::Zero => 1,
        BlockCopy::Data { .. } => 2,
        BlockCopy::Rotten { .. } => 3,
        BlockCopy::Lost => 4,
    }
}

fn crc(block: BlockCopy) -> Option<u32> {
    match block {
        BlockCopy::Data { crc } | BlockCopy::Rotten { crc } => Some(crc),
        BlockCopy::Absent | BlockCopy::Zero | BlockCopy::Lost => None,
    }
}

pub(crate) fn take_found(fields: &mut Fields<'_>) -> Result<ScrubFound, WireError> {
    let (id, at, end) = (fields.u64()?, fields.u64()?, fields.bool()?);
    let count = fields.count(32)?;
    if count > MAX_SCRUB_OBJECTS {
        return Err(WireError::TooLong { what: "objects of a scrub", len: count, limit: MAX_SCRUB_OBJECTS });
    }
    let mut objects = Vec::with_capacity(count);
    for _ in 0..count {
        let object = fields.object()?;
        let mut blocks = Vec::new();
        for _ in 0..fields.count(5)? {
            take_run(fields, &mut blocks)?;
        }
        objects.push((object, blocks));
    }
    Ok(ScrubFound { id, at, objects, end })
}

fn take_run(fields: &mut Fields<'_>, blocks: &mut Vec<BlockCopy>) -> Result<(), WireError> {
    let (tag, len) = (fields.u8()?, fields.u32()? as usize);
    if blocks.len().saturating_add(len) > MAX_BLOCKS {
        return Err(WireError::TooLong { what: "blocks of an object", len, limit: MAX_BLOCKS });
    }
    let same = |block| std::iter::repeat_n(block, len);
    match tag {
        0 => blocks.extend(same(BlockCopy::Absent)),
        1 => blocks.extend(same(BlockCopy::Zero)),
        2 => blocks.extend(fields.u32s(len)?.into_iter().map(|crc| BlockCopy::Data { crc })),
        3 => blocks.extend(fields.u32s(len)?.into_iter().map(|crc| BlockCopy::Rotten { crc })),
        4 => blocks.extend(same(BlockCopy::Lost)),
        _ => return Err(fields.malformed()),
    }
    Ok(())
}

pub(crate) fn put_mend(mend: &Mend, out: &mut BytesMut) {
    out.put_object(mend.object);
    out.put_u32_le(mend.blocks.len() as u32);
    for (offset, state) in &mend.blocks {
        out.put_u32_le(*offset);
        match state {
            BlockState::Absent => out.put_u8(0),
            BlockState::Zero => out.put_u8(1),
            BlockState::Data { crc } => {
                out.put_u8(2);
                out.put_u32_le(*crc);
            }
        }
    }
}

pub(crate) fn take_mend(fields: &mut Fields<'_>) -> Result<Mend, WireError> {
    let object = fields.object()?;
    let count = fields.count(5)?;
    if count > MAX_BLOCKS {
        return Err(WireError::TooLong { what: "blocks of an object", len: count, limit: MAX_BLOCKS });
    }
    let mut blocks = Vec::with_capacity(count);
    for _ in 0..count {
        let offset = fields.u32()?;
        let state = match fields.u8()? {
            0 => BlockState::Absent,
            1 => BlockState::Zero,
            2 => BlockState::Data { crc: fields.u32()? },
            _ => return Err(fields.malformed()),
        };
        blocks.push((offset, state));
    }
    Ok(Mend { object, blocks })
}
