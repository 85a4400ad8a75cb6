//! The format document against the code: every field of its tables, at its offset, in real bytes.

use std::collections::BTreeMap;

use bytes::Bytes;
use cairn_types::peer::{EntryOp, LogPoint};
use cairn_types::{ConfVersion, Version};

use super::harness::{entry, object, pg};
use crate::codec::Writer;
use crate::key::{Key, Part, RowKey};
use crate::record::{Origin, Piece, PieceTo, TxnImage, encode_entry, encode_pieces, example_header};
use crate::segment::{Block, Segment};
use crate::superblock::{COPIES, REGIONS_START, example};
use crate::tree::encode_leaf;

const DOCUMENT: &str = include_str!("../../../../docs/design/disk-format.md");

/// The rows `| offset | size | field | .. |` below a heading. They must follow on one another without gaps.
fn table(heading: &str) -> BTreeMap<String, (usize, usize)> {
    let below = DOCUMENT.split(&format!("\n## {heading}\n")).nth(1).expect("the heading is there");
    let mut fields = BTreeMap::new();
    let mut next = 0;
    for line in below.lines().take_while(|line| !line.starts_with("## ")) {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let [_, offset, size, field, ..] = cells[..] else { continue };
        let (Ok(offset), Ok(size)) = (offset.parse::<usize>(), size.parse::<usize>()) else {
            if next > 0 {
                break;
            }
            continue;
        };
        assert_eq!(offset, next, "{heading}: {field} follows what is before it");
        next = offset + size;
        let name = if field == "zero" { format!("zero at {offset}") } else { field.to_owned() };
        assert!(fields.insert(name, (offset, size)).is_none(), "{field} stands twice");
    }
    fields
}

/// Every field of the table has this value in the bytes, and no field is left over on either side.
fn hold(heading: &str, bytes: &[u8], expected: &[(&str, &[u8])]) {
    let mut fields = table(heading);
    for (field, value) in expected {
        let (offset, size) = fields.remove(*field).unwrap_or_else(|| panic!("{heading} has no {field}"));
        assert_eq!(size, value.len(), "{heading}: the size of {field}");
        assert_eq!(&bytes[offset..offset + size], *value, "{heading}: {field}");
    }
    for (field, (offset, size)) in fields {
        assert!(field.starts_with("zero at"), "{heading}: the code has no {field}");
        assert!(bytes[offset..offset + size].iter().all(|byte| *byte == 0), "{heading}: {field}");
    }
}

#[test]
fn the_superblock_is_as_described() {
    let s = example();
    let bytes = s.encode();
    let le = |n: u64| n.to_le_bytes();
    let (root, shard) = (s.checkpoint.root.unwrap(), s.shard());
    let fields: [(&str, &[u8]); 25] = [
        ("magic", b"CAIRNOSD"),
        ("version", &[1, 0]),
        ("checksum", &bytes[12..16]),
        ("compat", &le(s.compat)),
        ("ro_compat", &le(0)),
        ("incompat", &le(0)),
        ("sequence", &le(s.sequence)),
        ("mount", &le(s.mount)),
        ("cluster", s.identity.cluster.as_bytes()),
        ("osd_uuid", s.identity.osd_uuid.as_bytes()),
        ("osd", &4u32.to_le_bytes()),
        ("incarnation", &le(s.identity.incarnation.0)),
        ("device_len", &le(s.device_len)),
        ("checkpoint", &le(s.checkpoint.number)),
        ("next_lsn", &le(s.checkpoint.next_lsn)),
        ("ring_pos", &le(s.checkpoint.ring_pos)),
        ("prev_crc", &s.checkpoint.prev_crc.to_le_bytes()),
        ("root_crc", &root.crc.to_le_bytes()),
        ("root_block", &le(root.block)),
        ("written_through", &le(s.checkpoint.written_through)),
        ("durable_lsn", &le(s.checkpoint.durable_lsn)),
        ("shards", &[1, 0]),
        ("ring_start", &le(shard.ring_start)),
        ("ring_len", &le(shard.ring_len)),
        ("area_start", &le(shard.area_start)),
    ];
    let last: (&str, &[u8]) = ("area_len", &le(shard.area_len));
    hold("Superblock", &bytes, &[&fields[..], &[last]].concat());
    assert_eq!((COPIES, REGIONS_START), ([0, 64 << 10], 1 << 20));
    let mut zeroed = bytes.clone();
    zeroed[12..16].fill(0);
    assert_eq!(bytes[12..16], crc32c::crc32c(&zeroed).to_le_bytes());
}

#[test]
fn the_record_header_is_as_described() {
    let h = example_header();
    let (bytes, crc) = h.seal(b"hello");
    let le = |n: u64| n.to_le_bytes();
    let fields: [(&str, &[u8]); 15] = [
        ("magic", b"CWAL"),
        ("version", &[1, 0]),
        ("kind", &[1, 0]),
        ("checksum", &crc.to_le_bytes()),
        ("shard", &[0, 0]),
        ("flags", &[0, 0]),
        ("osd_uuid", &h.osd_uuid.to_be_bytes()),
        ("lsn", &le(h.lsn)),
        ("prev_crc", &h.prev_crc.to_le_bytes()),
        ("meta_len", &h.meta_len.to_le_bytes()),
        ("blocks", &h.blocks.to_le_bytes()),
        ("transactions", &h.transactions.to_le_bytes()),
        ("mount", &le(h.mount)),
        ("incarnation", &le(h.incarnation)),
        ("durable_lsn", &le(h.durable_lsn)),
    ];
    hold("Record", &bytes, &fields);
    assert_eq!(&bytes[96..101], b"hello");
    let mut zeroed = bytes[..h.meta_len as usize].to_vec();
    zeroed[8..12].fill(0);
    assert_eq!(crc32c::crc32c(&zeroed), crc);
}

#[test]
fn the_node_header_is_as_described() {
    let row = (Bytes::from_static(b"key"), Bytes::from_static(b"value"));
    let bytes = encode_leaf(77, 12, &[row]);
    let fields: [(&str, &[u8]); 6] = [
        ("magic", b"CIDX"),
        ("version", &[1]),
        ("level", &[0]),
        ("count", &[1, 0]),
        ("checkpoint", &12u64.to_le_bytes()),
        ("block", &77u64.to_le_bytes()),
    ];
    hold("Index", &bytes, &fields);
    assert_eq!(&bytes[32..44], b"\x03\0\x05\0keyvalue");
}

/// The numbers and names of a list like "1 write, 2 zero" that follows these words in the document.
fn listed(after: &str, end: &str) -> BTreeMap<String, u64> {
    let text = DOCUMENT.split_whitespace().collect::<Vec<_>>().join(" ");
    let list = text.split(after).nth(1).expect("the words are there").split(end).next().unwrap_or_default();
    let item = |item: &str| {
        let (number, name) = item.trim().split_once(' ')?;
        Some((name.split([' ', '{']).next()?.to_owned(), number.parse().ok()?))
    };
    list.split(',').filter_map(item).collect()
}

#[test]
fn the_transaction_is_as_described() {
    let flags = listed("`flags` u16 (", ")");
    let origin = Origin { lsn: 5, index: 6 };
    let point = LogPoint { version: Version { c: ConfVersion(7), seq: 8 }, hash: 9 };
    let none = TxnImage::default;
    let cases = [
        ("PG", TxnImage { scope: Some(pg(3)), ..none() }, 8),
        ("copy", TxnImage { relog: Some(origin), ..none() }, 12),
        ("rewind", TxnImage { rewind: Some(1), ..none() }, 8),
        ("restart", TxnImage { restart: Some(point), ..none() }, 24),
        ("trim", TxnImage { trim: Some(1), ..none() }, 8),
        ("dropped", TxnImage { dropped: Some((origin, 9)), ..none() }, 20),
    ];
    assert_eq!(flags.len(), cases.len());
    for (name, image, size) in cases {
        let mut w = Writer::default();
        TxnImage { commit: 0x0102, ..image }.encode(&mut w);
        assert_eq!(u64::from(u16::from_le_bytes([w.bytes[0], w.bytes[1]])), flags[name], "{name}");
        assert_eq!(w.bytes[2..10], 0x0102u64.to_le_bytes());
        assert_eq!(w.bytes.len(), 2 + 8 + size + 3 * 4, "{name}, and three empty lists");
    }
}

#[test]
fn entries_and_pieces_are_as_described() {
    let codes = listed("operation u8: ", ";");
    let o = object(pg(0), 0);
    let ops = [
        ("write", EntryOp::Write { object: o, offset: 0, crcs: vec![1, 2] }, 28 + 4 + 4 + 8),
        ("zero", EntryOp::Zero { object: o, offset: 0, len: 4096, unmap: false }, 28 + 8),
        ("unmap", EntryOp::Zero { object: o, offset: 0, len: 4096, unmap: true }, 28 + 8),
        ("remove", EntryOp::Remove { object: o }, 28),
    ];
    assert_eq!(codes.len(), ops.len());
    for (name, op, size) in ops {
        let mut w = Writer::default();
        encode_entry(&entry(1, op), &mut w);
        assert_eq!((u64::from(w.bytes[80]), w.bytes.len()), (codes[name], 81 + size), "{name}");
    }
    let kinds = listed("blocks u32, kind u8: ", "}. The place");
    let pieces = [
        ("absent", PieceTo::Absent, 0),
        ("zero", PieceTo::Zero, 0),
        ("lost", PieceTo::Lost { at: 1 }, 8),
        ("inline", PieceTo::Inline { at: 1, record_block: 2 }, 12),
        ("placed", PieceTo::Placed { at: 1 }, 8),
    ];
    assert_eq!(kinds.len(), pieces.len());
    for (name, to, size) in pieces {
        let mut w = Writer::default();
        encode_pieces(&[Piece { block: 5, count: 6, to }], &mut w);
        assert_eq!(w.bytes[..12], [1, 0, 0, 0, 5, 0, 0, 0, 6, 0, 0, 0]);
        assert_eq!((u64::from(w.bytes[12]), w.bytes.len()), (kinds[name], 13 + size), "{name}");
    }
}

#[test]
fn segments_and_keys_are_as_described() {
    let mut segment = Segment::default();
    segment.blocks[1] = Block::Zero;
    segment.blocks[2] = Block::Lost { at: 4000 };
    segment.blocks[4] = Block::Data { at: 0x0102_0304, crc: 7 };
    segment.blocks[5] = Block::Data { at: 0x0102_0305, crc: 8 };
    let mut expected = vec![1, 0b10_01_00, 0b1111];
    expected.resize(17, 0);
    expected.extend([2, 2, 1, 0, 0, 1, 0, 0xa0, 0x0f, 0, 0, 0, 0]);
    expected.extend([4, 2, 0, 0, 2, 0, 4, 3, 2, 1, 0, 0, 7, 0, 0, 0, 8, 0, 0, 0]);
    assert_eq!(segment.encode(), expected);

    let tag = |words: &str| {
        let row = DOCUMENT.lines().find(|line| line.contains(words)).expect("the row is there");
        row.split('|').nth(1).and_then(|cell| cell.trim().parse::<u8>().ok()).expect("a tag")
    };
    let key = Key::new(object(pg(0), 0));
    let rows = [
        ("| pool u32, PG u32 |", RowKey::Pg(pg(1)), 9),
        ("name length u16, name, chunk u16", RowKey::attribute(None, Bytes::from_static(b"ab")), 1 + 1 + 2 + 2 + 2),
        ("seq u64, chunk u16", RowKey::Log(pg(1), 1), 1 + 8 + 8 + 2),
        ("| object, 0 |", RowKey::Object(key, Part::Info), 1 + 36 + 1),
        ("| object, 1, segment u16 |", RowKey::segment(key, 3), 1 + 36 + 1 + 2),
    ];
    for (words, row, size) in rows {
        let bytes = row.encode(0);
        assert_eq!((bytes[0], bytes.len()), (tag(words), size), "{words}");
    }
}
