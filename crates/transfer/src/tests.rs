//! Over a volume in memory with layers as the cluster's have them: what goes out comes in again, and nothing else.

use std::collections::BTreeMap;
use std::sync::Mutex;

use async_trait::async_trait;
use bytes::Bytes;
use cairn_client::{ABSENT, DATA, VolumeError, ZERO};
use cairn_types::SnapId;
use proptest::prelude::{ProptestConfig, Strategy, any, prop_assert_eq, proptest};

use crate::diff::{DiffReader, Header, MAGIC};
use crate::import::Content;
use crate::{
    Blocks, Since, Sink, TransferError, apply_diff, export_diff, export_raw, flatten, import_raw, is_as, restore, start,
};

const BLOCK: u64 = 4096;
/// Some pieces, and a last block that is cut short is not possible: volumes are whole blocks.
const SIZE: u64 = 5 * (1 << 20) + 3 * BLOCK;

/// Blocks of each layer; `None` is an explicit zero.
type Layers = BTreeMap<(u64, u64), Option<Vec<u8>>>;

#[derive(Default)]
struct Memory {
    size: u64,
    /// What is written goes to this layer; a view sees those below it.
    layer: u64,
    layers: Mutex<Layers>,
    parent: Option<Box<Memory>>,
}

impl Memory {
    fn new() -> Self {
        Self { size: SIZE, ..Self::default() }
    }

    /// As it was before this layer.
    fn view(&self, snapshot: u64, size: u64) -> Self {
        let mut layers = self.layers.lock().unwrap().clone();
        layers.retain(|(layer, _), _| *layer < snapshot);
        Self { size, layer: snapshot, layers: Mutex::new(layers), parent: None }
    }

    fn own(&self, block: u64, since: u64) -> Option<Option<Vec<u8>>> {
        let layers = self.layers.lock().unwrap();
        (since..=self.layer).rev().find_map(|layer| layers.get(&(layer, block)).cloned())
    }

    fn block(&self, block: u64) -> Vec<u8> {
        match (self.own(block, 0), &self.parent) {
            (Some(own), _) => own.unwrap_or_else(|| vec![0; BLOCK as usize]),
            (None, Some(parent)) if block * BLOCK < parent.size => parent.block(block),
            (None, _) => vec![0; BLOCK as usize],
        }
    }

    fn bytes(&self) -> Vec<u8> {
        (0..self.size / BLOCK).flat_map(|block| self.block(block)).collect()
    }

    fn put(&self, block: u64, fill: u8) {
        let content = (fill != 0).then(|| vec![fill; BLOCK as usize]);
        self.layers.lock().unwrap().insert((self.layer, block), content);
    }
}

#[async_trait]
impl Blocks for Memory {
    fn size(&self) -> u64 {
        self.size
    }

    async fn read(&self, offset: u64, len: u64) -> Result<Bytes, VolumeError> {
        assert!(offset + len <= self.size, "{offset}+{len}");
        let (first, end) = (offset / BLOCK, (offset + len).div_ceil(BLOCK));
        let blocks = (first..end).flat_map(|block| self.block(block)).collect::<Vec<_>>();
        let skip = (offset - first * BLOCK) as usize;
        Ok(Bytes::copy_from_slice(&blocks[skip..skip + len as usize]))
    }

    async fn write(&self, offset: u64, data: Bytes) -> Result<(), VolumeError> {
        assert!(
            offset.is_multiple_of(BLOCK) && (data.len() as u64).is_multiple_of(BLOCK),
            "whole blocks in these tests"
        );
        for (index, block) in data.chunks(BLOCK as usize).enumerate() {
            let key = (self.layer, offset / BLOCK + index as u64);
            self.layers.lock().unwrap().insert(key, Some(block.to_vec()));
        }
        Ok(())
    }

    async fn discard(&self, offset: u64, len: u64) -> Result<(), VolumeError> {
        assert!(offset.is_multiple_of(BLOCK) && len.is_multiple_of(BLOCK) && len > 0);
        (offset / BLOCK..(offset + len) / BLOCK).for_each(|block| self.put(block, 0));
        Ok(())
    }

    async fn status(&self, offset: u64, len: u64, since: SnapId, parents: bool) -> Result<Bytes, VolumeError> {
        let state = |block| match (self.own(block, since.0), &self.parent) {
            (Some(Some(_)), _) => DATA,
            (Some(None), _) => ZERO,
            (None, Some(parent)) if parents && block * BLOCK < parent.size && parent.own(block, 0).is_some() => DATA,
            (None, _) => ABSENT,
        };
        Ok((offset / BLOCK..(offset + len).div_ceil(BLOCK)).map(state).collect())
    }

    async fn copy_up(&self, offset: u64, len: u64) -> Result<(), VolumeError> {
        for block in offset / BLOCK..(offset + len).div_ceil(BLOCK) {
            if self.own(block, 0).is_none() {
                let content = self.block(block);
                self.layers.lock().unwrap().insert((self.layer, block), Some(content));
            }
        }
        Ok(())
    }
}

#[derive(Default)]
struct Buffer(Vec<u8>);

#[async_trait]
impl Sink for Buffer {
    async fn write(&mut self, data: Bytes) -> std::io::Result<()> {
        self.0.extend_from_slice(&data);
        Ok(())
    }

    async fn zeros(&mut self, len: u64) -> std::io::Result<()> {
        self.0.resize(self.0.len() + len as usize, 0);
        Ok(())
    }
}

fn wait<T>(future: impl Future<Output = T>) -> T {
    futures::executor::block_on(future)
}

fn raw(volume: &Memory) -> Vec<u8> {
    let mut out = Buffer::default();
    wait(export_raw(volume, &mut out, &mut |_| {})).unwrap();
    out.0
}

fn diff(volume: &Memory, since: Since, header: &Header) -> Vec<u8> {
    let mut out = Buffer::default();
    wait(export_diff(volume, since, header, &mut out, &mut |_| {})).unwrap();
    out.0
}

/// The header, and what came of its content.
fn apply(volume: &Memory, diff: &[u8]) -> Result<Header, TransferError> {
    let mut input = diff;
    wait(async {
        assert_eq!(start(&mut input).await.unwrap().content, Content::Diff);
        let mut reader = DiffReader::new(input);
        let header = reader.header().await?;
        apply_diff(volume, &mut reader, &mut |_| {}).await.map(|()| header)
    })
}

fn writes() -> impl Strategy<Value = Vec<(u64, u8)>> {
    proptest::collection::vec((0..SIZE / BLOCK, 0..4_u8), 0..40)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_goes_out_comes_in_again(first in writes(), later in writes(), grown in any::<bool>()) {
        let mut volume = Memory::new();
        first.iter().for_each(|(block, fill)| volume.put(*block, *fill));
        let before = volume.bytes();
        prop_assert_eq!(&raw(&volume), &before);

        let copy = Memory::new();
        let mut input = &before[..];
        let bytes = wait(async {
            let start = start(&mut input).await.unwrap();
            import_raw(&copy, start.bytes, &mut input, &mut |_| {}).await
        });
        prop_assert_eq!((bytes.unwrap(), copy.bytes()), (SIZE, before.clone()));

        volume.layer = 1;
        if grown {
            volume.size += 8 * BLOCK;
            volume.put(SIZE / BLOCK + 2, 7);
        }
        later.iter().for_each(|(block, fill)| volume.put(*block, *fill));
        let after = volume.bytes();
        let after_is_before = after[..SIZE as usize] == before[..] && !grown;
        let header = Header { from: Some("one".into()), to: Some("two".into()), size: volume.size };
        let stream = diff(&volume, Since::Snapshot(SnapId(1)), &header);
        let target = Memory { size: volume.size, ..volume.view(1, SIZE) };
        prop_assert_eq!(apply(&target, &stream).unwrap(), header);
        prop_assert_eq!(target.bytes(), after.clone());

        let whole = Header { from: None, to: None, size: volume.size };
        let fresh = Memory { size: volume.size, ..Memory::new() };
        apply(&fresh, &diff(&volume, Since::Ever { parents: true }, &whole)).unwrap();
        prop_assert_eq!(fresh.bytes(), after);

        // Back to where it was, and again from half way.
        let view = volume.view(1, SIZE);
        prop_assert_eq!(wait(is_as(&volume, &view, SnapId(1))).unwrap(), after_is_before);
        for _ in 0..2 {
            wait(restore(&volume, &view, SnapId(1), &mut |_| {})).unwrap();
            prop_assert_eq!(&volume.bytes()[..SIZE as usize], &before[..]);
            prop_assert_eq!(volume.bytes()[SIZE as usize..].iter().all(|byte| *byte == 0), true);
            prop_assert_eq!(wait(is_as(&volume, &view, SnapId(1))).unwrap(), true);
        }
    }

    #[test]
    fn a_flattened_clone_reads_as_before_and_needs_nobody(theirs in writes(), own in writes()) {
        let parent = Memory { size: SIZE - (1 << 20), ..Memory::new() };
        theirs.iter().for_each(|(block, fill)| parent.put(*block, *fill));
        let mut clone = Memory { parent: Some(Box::new(parent)), ..Memory::new() };
        own.iter().for_each(|(block, fill)| clone.put(*block, *fill));
        let before = clone.bytes();
        prop_assert_eq!(&raw(&clone), &before);
        wait(flatten(&clone, &mut |_| {})).unwrap();
        clone.parent = None;
        prop_assert_eq!(clone.bytes(), before);
    }

    #[test]
    fn a_diff_that_was_cut_off_says_so(writes in writes(), at in any::<proptest::sample::Index>()) {
        let volume = Memory::new();
        writes.iter().for_each(|(block, fill)| volume.put(*block, *fill));
        let stream = diff(&volume, Since::Ever { parents: true }, &Header { from: None, to: None, size: SIZE });
        let cut = MAGIC.len() + at.index(stream.len() - MAGIC.len());
        let error = apply(&Memory::new(), &stream[..cut]).unwrap_err().to_string();
        prop_assert_eq!(error.contains("cut off"), true, "{}", error);
    }
}

#[test]
fn the_format_is_the_one_of_rbd() {
    let volume = Memory { size: 3 * BLOCK, layer: 1, ..Memory::default() };
    volume.put(1, 5);
    volume.put(2, 0);
    let header = Header { from: Some("a".into()), to: Some("bc".into()), size: volume.size };
    let mut expected =
        b"rbd diff v1\nf\x01\0\0\0at\x02\0\0\0bcs\0\x30\0\0\0\0\0\0w\0\x10\0\0\0\0\0\0\0\x10\0\0\0\0\0\0".to_vec();
    expected.extend([5; BLOCK as usize]);
    expected.extend(b"z\0\x20\0\0\0\0\0\0\0\x10\0\0\0\0\0\0e");
    assert_eq!(diff(&volume, Since::Snapshot(SnapId(1)), &header), expected);
}

#[test]
fn what_cannot_be_imported_is_refused_in_words() {
    let record = |tag: u8, offset: u64, len: u64| {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(b"s\0\0\x01\0\0\0\0\0");
        bytes.push(tag);
        bytes.extend(offset.to_le_bytes());
        bytes.extend(len.to_le_bytes());
        bytes
    };
    let words = |bytes: &[u8]| apply(&Memory::new(), bytes).unwrap_err().to_string();
    assert!(words(&record(b'x', 0, 0)).contains("no record of kind 'x'"));
    assert!(words(&record(b'z', u64::MAX, 2)).contains("damaged"));
    assert!(words(&record(b'z', SIZE, BLOCK)).contains("make the volume larger first"));
    assert!(words(&[MAGIC, b"w"].concat()).contains("names the volume's size before its content"));
    assert!(words(&[MAGIC, b"f\xff\xff\xff\xff"].concat()).contains("a name of 4294967295 bytes"));
    let image = wait(start(&mut &b"QFI\xfb and so on"[..])).unwrap_err().to_string();
    assert!(image.contains("qemu-img convert -O raw"), "{image}");
    let long = vec![1; SIZE as usize + 1];
    let error = wait(import_raw(&Memory::new(), Bytes::new(), &mut &long[..], &mut |_| {})).unwrap_err();
    assert!(error.to_string().contains("beyond the volume's end"), "{error}");
}
