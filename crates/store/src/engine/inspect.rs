//! Inspection for a scrub: what the index says of an object's blocks and, if asked, whether their bytes match it. A bad
//! block is no failure here but part of the answer. Reading for it goes behind everything else.

use cairn_types::scrub::BlockCopy;
use cairn_types::{BLOCK_SIZE, ObjectId, PgId};

use super::view::Wait;
use super::{Item, Store};
use crate::segment::Block;
use crate::transaction::{Output, Token};

impl Store {
    /// Describes whole blocks; what was submitted before counts, committed or not. `deep`: their bytes are read, too.
    /// [`Output::Inspected`] answers it.
    pub fn inspect(&mut self, pg: PgId, object: ObjectId, offset: u32, len: u32, deep: bool) -> Token {
        let token = self.number().1;
        self.pgs.entry(pg).or_default().queue.push_back(Item::Inspect { token, object, offset, len, deep });
        self.runnable.insert(pg);
        token
    }

    pub(super) fn start_inspection(
        &mut self,
        token: Token,
        object: ObjectId,
        offset: u32,
        len: u32,
        deep: bool,
    ) -> Result<(), Wait> {
        let seen = self.look(object, offset, len)?;
        if deep {
            self.read_from_medium(seen.run(token, object, true));
        } else {
            self.inspected(token, offset / BLOCK_SIZE, &seen.blocks, &[]);
        }
        Ok(())
    }

    /// `bad`: byte offsets within the object, rising.
    pub(super) fn inspected(&mut self, token: Token, first: u32, blocks: &[Block], bad: &[u32]) {
        let copy = |(i, block): (usize, &Block)| match *block {
            Block::Absent => BlockCopy::Absent,
            Block::Zero => BlockCopy::Zero,
            Block::Lost { .. } => BlockCopy::Lost,
            Block::Data { crc, .. } if bad.binary_search(&((first + i as u32) * BLOCK_SIZE)).is_ok() => {
                BlockCopy::Rotten { crc }
            }
            Block::Data { crc, .. } => BlockCopy::Data { crc },
        };
        let blocks = blocks.iter().enumerate().map(copy).collect();
        self.outputs.push_back(Output::Inspected { token, blocks });
    }
}
