//! Clones: where what they do not know is read, what they have of their own, and how they come to do without parents.

use super::*;
use crate::{ABSENT, DATA, ZERO};

/// A clone of a snapshot of two blocks, which is of a clone of a snapshot of one.
fn of_two_parents() -> Story {
    let parent = |volume, snapshot, blocks: u64| Parent {
        volume: VolumeId(volume),
        pool: PoolId(1),
        snapshot: SnapId(snapshot),
        size: blocks * 4096,
    };
    let parents = vec![parent(7, 3, 2), parent(8, 1, 1)];
    let mut story = Story::new(Config { parents, ..config() });
    story.map(map(2));
    story
}

fn states(blocks: &[BlockState]) -> Result<ReplyBody, Refusal> {
    Ok(ReplyBody::Status(blocks.to_vec()))
}

#[test]
fn what_a_clone_does_not_know_its_parents_do() {
    let mut story = of_two_parents();
    let read = story.op(Op::Read { offset: 0, len: u64::from(OBJECT) });
    let absent = |blocks: usize| {
        let data = vec![0; blocks * 4096].into();
        Ok(ReplyBody::Data(ReadData { data, blocks: vec![BlockState::Absent; blocks] }))
    };
    let (osd, own) = story.one_sent();
    story.reply(osd, &own, absent(2));
    let (osd, first) = story.one_sent();
    assert_ne!(first.id, own.id, "a request of its own");
    let asked = first.op.object();
    assert_eq!(
        (asked.volume, asked.snapshot, first.volume, first.op.range()),
        (VolumeId(7), SnapId(3), VolumeId(7), (0, 8192))
    );
    // The second block is there; the first is asked of the parent's parent, which ends before the second.
    let crc = crc32c::crc32c(&[4; 4096]);
    let mut bytes = vec![0; 8192];
    bytes[4096..].fill(4);
    let blocks = vec![BlockState::Absent, BlockState::Data { crc }];
    story.reply(osd, &first, Ok(ReplyBody::Data(ReadData { data: bytes.into(), blocks })));
    let (osd, second) = story.one_sent();
    assert_eq!((second.op.object().volume, second.op.range()), (VolumeId(8), (0, 4096)));
    story.reply(osd, &second, data(6, 1));
    let expected = [vec![6; 4096], vec![4; 4096]].concat();
    assert_eq!(story.done(), vec![(read, Ok(Bytes::from(expected)))]);
    // What it discards must not be seen in the parent again.
    story.op(Op::Zero { offset: 0, len: 4096, unmap: true });
    let (_, zero) = story.one_sent();
    assert!(matches!(zero.op, ClientOp::Zero { unmap: false, .. }), "{zero:?}");
}

#[test]
fn states_are_the_clones_own_or_with_those_of_its_parents() {
    let (absent, zero, there) = (BlockState::Absent, BlockState::Zero, BlockState::Data { crc: 1 });
    let status = |parents| Op::Status { offset: 100, len: 4096, since: SnapId(0), parents };
    let mut story = of_two_parents();
    let own = story.op(status(false));
    let (osd, request) = story.one_sent();
    assert_eq!(request.op.range(), (0, 8192), "whole blocks");
    story.reply(osd, &request, states(&[absent, there]));
    assert_eq!(story.done(), vec![(own, Ok(Bytes::from_static(&[ABSENT, DATA])))]);

    let all = story.op(status(true));
    let (osd, request) = story.one_sent();
    story.reply(osd, &request, states(&[absent, zero]));
    let (osd, above) = story.one_sent();
    assert!(matches!(above.op, ClientOp::Status { offset: 0, len: 4096, since: SnapId(0), .. }), "{above:?}");
    assert_eq!(above.op.object().volume, VolumeId(7));
    story.reply(osd, &above, states(&[there]));
    assert_eq!(story.done(), vec![(all, Ok(Bytes::from_static(&[DATA, ZERO])))]);

    let wrong = story.op(status(false));
    let (osd, request) = story.one_sent();
    story.reply(osd, &request, states(&[absent]));
    assert_eq!(story.done(), vec![(wrong, Err(IoError::BadAnswer(BadAnswer::Shape)))]);
}

#[test]
fn a_copy_up_writes_what_only_the_parents_have_and_nobody_comes_between() {
    let mut story = of_two_parents();
    let copy = story.op(Op::CopyUp { offset: 0, len: 8192 });
    let late = story.write(0, 9, 4096);
    let (osd, own) = story.one_sent();
    assert!(matches!(own.op, ClientOp::Status { offset: 0, len: 8192, .. }), "{own:?}");
    story.reply(osd, &own, states(&[BlockState::Absent, BlockState::Data { crc: 1 }]));
    let (osd, read) = story.one_sent();
    assert!(matches!(read.op, ClientOp::Read { offset: 0, len: 8192, .. }), "{read:?}");
    let crc = crc32c::crc32c(&[2; 4096]);
    let mut bytes = vec![0; 8192];
    bytes[4096..].fill(2);
    let blocks = vec![BlockState::Absent, BlockState::Data { crc }];
    story.reply(osd, &read, Ok(ReplyBody::Data(ReadData { data: bytes.into(), blocks })));
    let (osd, above) = story.one_sent();
    assert_eq!((above.op.object().volume, above.op.range()), (VolumeId(7), (0, 4096)));
    story.reply(osd, &above, data(6, 1));
    let (osd, write) = story.one_sent();
    let ClientOp::Write { object, offset: 0, data: written, .. } = &write.op else { panic!("{write:?}") };
    assert_eq!((object.volume, written), (VolumeId(1), &Bytes::from(vec![6; 4096])), "its own block is left alone");
    story.reply(osd, &write, DONE);
    let outputs = story.outputs();
    assert!(outputs.contains(&Output::Done { op: copy, result: Ok(Bytes::new()) }), "{outputs:?}");
    let Some(Output::Send { to, request: last }) = outputs.iter().find(|one| matches!(one, Output::Send { .. })) else {
        panic!("nothing follows: {outputs:?}")
    };
    assert!(matches!(&last.op, ClientOp::Write { data, .. } if data[0] == 9), "whoever came later comes later");
    story.reply(*to, last, DONE);
    assert_eq!(story.done(), vec![(late, Ok(Bytes::new()))]);
}

#[test]
fn a_copy_up_of_what_is_its_own_reads_nothing_and_of_zeros_writes_nothing() {
    let mut story = of_two_parents();
    let own = story.op(Op::CopyUp { offset: 0, len: 4096 });
    let (osd, request) = story.one_sent();
    story.reply(osd, &request, states(&[BlockState::Zero]));
    assert_eq!(story.done(), vec![(own, Ok(Bytes::new()))]);
    let zeros = story.op(Op::CopyUp { offset: 4096, len: 4096 });
    let (osd, request) = story.one_sent();
    story.reply(osd, &request, states(&[BlockState::Absent]));
    let (osd, read) = story.one_sent();
    let absent = ReadData { data: vec![0; 4096].into(), blocks: vec![BlockState::Absent] };
    story.reply(osd, &read, Ok(ReplyBody::Data(absent)));
    let (osd, above) = story.one_sent();
    story.reply(osd, &above, data(0, 1));
    assert_eq!(story.done(), vec![(zeros, Ok(Bytes::new()))]);
}
