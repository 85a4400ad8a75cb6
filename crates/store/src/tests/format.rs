//! The format document against the code: every field of its tables, at its offset, in real bytes.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::record::example_header;
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
