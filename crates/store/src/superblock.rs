//! The superblock: who the disk is, where its regions lie, and the one pointer that moves: the checkpoint.
//!
//! Two copies, A and B, each one block, written in turn and synced before anything relies on them. The valid one
//! with the higher sequence counts; the other one is the state before it. `docs/design/disk-format.md` has the
//! offsets, and a test holds this file against it.

use cairn_types::{Incarnation, OsdId};
use uuid::Uuid;

use crate::codec::{Malformed, Reader, Writer};
use crate::tree::NodeRef;

/// "CAIRNOSD".
pub const MAGIC: u64 = u64::from_le_bytes(*b"CAIRNOSD");
/// The format this program reads and writes.
pub const VERSION: u16 = 1;
/// Byte offsets of the copies.
pub const COPIES: [u64; 2] = [0, 64 << 10];
/// Where the regions begin.
pub const REGIONS_START: u64 = 1 << 20;

/// Who the disk is (I16). All zero but `osd_uuid` until the OSD is registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The cluster it belongs to; nil on a disk that never joined one.
    pub cluster: Uuid,
    /// Made at format, never changed.
    pub osd_uuid: Uuid,
    /// Its number; `None` on a disk that never joined.
    pub osd: Option<OsdId>,
    /// The newest life that used it.
    pub incarnation: Incarnation,
}

/// Where one shard's regions lie, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShardLayout {
    /// First byte of the WAL ring.
    pub ring_start: u64,
    /// Bytes of the ring.
    pub ring_len: u64,
    /// First byte of the area that holds data extents and index nodes.
    pub area_start: u64,
    /// Bytes of the area.
    pub area_len: u64,
}

/// The state that a checkpoint made durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// The record from which replay starts: its lsn.
    pub next_lsn: u64,
    /// Its position in the ring, in bytes from the ring's start.
    pub ring_pos: u64,
    /// The checksum of the record before it, which it names.
    pub prev_crc: u32,
    /// The root of the index; `None` when it is empty.
    pub root: Option<NodeRef>,
    /// Rises with each checkpoint.
    pub number: u64,
    /// Blocks of the device below this one were written at least once.
    pub written_through: u64,
    /// The highest lsn whose flush had completed when this was written.
    pub durable_lsn: u64,
}

/// Everything in the superblock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Rises with each write of a copy.
    pub sequence: u64,
    /// Rises with each opening for writing, and never falls.
    pub mount: u64,
    /// Who.
    pub identity: Identity,
    /// Size of the device at format.
    pub device_len: u64,
    /// Feature bits that older programs may ignore; none is known yet, unknown ones are kept.
    pub compat: u64,
    /// One shard today.
    pub shards: Vec<ShardLayout>,
    /// Where replay starts.
    pub checkpoint: Checkpoint,
}

/// Feature bits of this program: none yet. An unknown `incompat` bit refuses the disk, an unknown `ro_compat` bit
/// refuses it too because opening writes, an unknown `compat` bit is kept and ignored.
const KNOWN_INCOMPAT: u64 = 0;
const KNOWN_RO_COMPAT: u64 = 0;

impl Superblock {
    /// One block, checksum included.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::default();
        w.u64(MAGIC).u16(VERSION).u16(0).u32(0); // checksum at 12, filled in below
        w.u64(self.compat).u64(KNOWN_RO_COMPAT).u64(KNOWN_INCOMPAT);
        w.u64(self.sequence).u64(self.mount);
        w.raw(self.identity.cluster.as_bytes()).raw(self.identity.osd_uuid.as_bytes());
        w.u32(self.identity.osd.map_or(u32::MAX, |osd| osd.0)).u32(0).u64(self.identity.incarnation.0);
        w.u64(self.device_len);
        let c = &self.checkpoint;
        w.u64(c.number).u64(c.next_lsn).u64(c.ring_pos).u32(c.prev_crc);
        let root = c.root.unwrap_or(NodeRef { block: 0, crc: 0 });
        w.u32(root.crc).u64(root.block).u64(c.written_through).u64(c.durable_lsn);
        w.u16(self.shards.len() as u16).u16(0).u32(0);
        for shard in &self.shards {
            w.u64(shard.ring_start).u64(shard.ring_len).u64(shard.area_start).u64(shard.area_len);
        }
        w.bytes.resize(4096, 0);
        let crc = checksum(&w.bytes);
        w.bytes[12..16].copy_from_slice(&crc.to_le_bytes());
        w.bytes
    }

    /// `None` where the block is no valid superblock at all (blank, torn, rotten).
    ///
    /// # Errors
    /// When it is a valid superblock that this program must not use, or its fields contradict each other.
    pub fn decode(block: &[u8]) -> Result<Option<Self>, Malformed> {
        let mut r = Reader::new(block);
        if r.u64("magic")? != MAGIC {
            return Ok(None);
        }
        let version = r.u16("version")?;
        r.u16("padding")?;
        if r.u32("checksum")? != checksum(block) {
            return Ok(None);
        }
        if version != VERSION {
            return Err(Malformed::Version { what: "superblock", found: version.into(), known: VERSION.into() });
        }
        let (compat, ro_compat, incompat) = (r.u64("compat")?, r.u64("ro_compat")?, r.u64("incompat")?);
        for (field, bits) in [("incompat", incompat & !KNOWN_INCOMPAT), ("ro_compat", ro_compat & !KNOWN_RO_COMPAT)] {
            if bits != 0 {
                return Err(Malformed::Value { field, value: bits });
            }
        }
        let (sequence, mount) = (r.u64("sequence")?, r.u64("mount")?);
        let identity = decode_identity(&mut r)?;
        let device_len = r.u64("device length")?;
        let (number, next_lsn, ring_pos) = (r.u64("number")?, r.u64("next lsn")?, r.u64("ring position")?);
        let (prev_crc, root_crc, root_block) = (r.u32("prev crc")?, r.u32("root crc")?, r.u64("root block")?);
        let (written_through, durable_lsn) = (r.u64("written through")?, r.u64("durable lsn")?);
        let root = (root_block != 0).then_some(NodeRef { block: root_block, crc: root_crc });
        let count = r.u16("shards")?;
        r.raw(6, "padding")?;
        if count != 1 {
            return Err(Malformed::Value { field: "shards", value: count.into() });
        }
        let shards = (0..count).map(|_| decode_shard(&mut r, device_len)).collect::<Result<Vec<_>, _>>()?;
        let checkpoint = Checkpoint { next_lsn, ring_pos, prev_crc, root, number, written_through, durable_lsn };
        if ring_pos >= shards[0].ring_len || !ring_pos.is_multiple_of(4096) {
            return Err(Malformed::Value { field: "ring position", value: ring_pos });
        }
        Ok(Some(Self { sequence, mount, identity, device_len, compat, shards, checkpoint }))
    }

    /// Where the next write of this superblock goes.
    #[must_use]
    pub fn slot(&self) -> u64 {
        COPIES[(self.sequence % 2) as usize]
    }

    /// The one shard.
    #[must_use]
    pub fn shard(&self) -> ShardLayout {
        self.shards[0]
    }
}

fn decode_identity(r: &mut Reader<'_>) -> Result<Identity, Malformed> {
    let cluster = Uuid::from_u128(r.u128("cluster")?.swap_bytes());
    let osd_uuid = Uuid::from_u128(r.u128("osd uuid")?.swap_bytes());
    let osd = r.u32("osd")?;
    r.u32("padding")?;
    let incarnation = Incarnation(r.u64("incarnation")?);
    Ok(Identity { cluster, osd_uuid, osd: (osd != u32::MAX).then_some(OsdId(osd)), incarnation })
}

fn decode_shard(r: &mut Reader<'_>, device_len: u64) -> Result<ShardLayout, Malformed> {
    let shard = ShardLayout {
        ring_start: r.u64("ring start")?,
        ring_len: r.u64("ring length")?,
        area_start: r.u64("area start")?,
        area_len: r.u64("area length")?,
    };
    let ring_end = shard.ring_start.saturating_add(shard.ring_len);
    let area_end = shard.area_start.saturating_add(shard.area_len);
    let aligned = [shard.ring_start, shard.ring_len, shard.area_start, shard.area_len];
    let fits = shard.ring_start >= REGIONS_START && ring_end <= shard.area_start && area_end <= device_len;
    if !fits || shard.ring_len == 0 || shard.area_len == 0 || aligned.iter().any(|n| !n.is_multiple_of(4096)) {
        return Err(Malformed::Value { field: "shard layout", value: shard.ring_start });
    }
    Ok(shard)
}

/// crc32c of the block with its own field as zero.
fn checksum(block: &[u8]) -> u32 {
    let crc = crc32c::crc32c(&block[..12]);
    let crc = crc32c::crc32c_append(crc, &[0; 4]);
    crc32c::crc32c_append(crc, &block[16..])
}

#[cfg(test)]
pub(crate) fn example() -> Superblock {
    Superblock {
        sequence: 5,
        mount: 3,
        identity: Identity {
            cluster: Uuid::from_u128(1),
            osd_uuid: Uuid::from_u128(2),
            osd: Some(OsdId(4)),
            incarnation: Incarnation(9),
        },
        device_len: 1 << 30,
        compat: 4,
        shards: vec![ShardLayout {
            ring_start: REGIONS_START,
            ring_len: 16 << 20,
            area_start: 17 << 20,
            area_len: (1 << 30) - (17 << 20),
        }],
        checkpoint: Checkpoint {
            next_lsn: 77,
            ring_pos: 8192,
            prev_crc: 0xdead_beef,
            root: Some(NodeRef { block: 5000, crc: 7 }),
            number: 12,
            written_through: 1 << 22,
            durable_lsn: 76,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encoded_is_decoded() {
        let block = example().encode();
        assert_eq!(block.len(), 4096);
        assert_eq!(Superblock::decode(&block).unwrap().unwrap(), example());
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let good = example().encode();
        for byte in 0..400 {
            let mut bad = good.clone();
            bad[byte] ^= 1;
            assert!(!matches!(Superblock::decode(&bad), Ok(Some(_))), "byte {byte}");
        }
    }

    #[test]
    fn another_version_is_refused_in_words() {
        let mut block = example().encode();
        block[8] = 9;
        let crc = checksum(&block);
        block[12..16].copy_from_slice(&crc.to_le_bytes());
        let refused = Superblock::decode(&block).unwrap_err();
        assert_eq!(refused.to_string(), "superblock has format version 9; this program reads 1");
    }
}
