//! Short stories of one core, told event by event.

mod clones;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cairn_types::io::{BlockState, ClientOp, ClientReply, ClientRequest, ReadData, Refusal, ReplyBody};
use cairn_types::map::{ClusterMap, SnapPhase};
use cairn_types::{ConfVersion, Epoch, Generation, Incarnation, OsdId, PoolId, SessionId, SnapId, TraceId, VolumeId};

use crate::model::{OBJECT, SIZE, config, map};
use crate::{BadAnswer, Config, Core, IoError, MAX_DATA, Op, OpId, Output, Parent};

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// A core with a clock, and everything it said so far that was not looked at.
struct Story {
    core: Core,
    now: Duration,
}

impl Story {
    fn new(config: Config) -> Self {
        Self { core: Core::new(config, 1), now: ms(0) }
    }

    /// With a map, and connections to every OSD it asks for.
    fn begun() -> Self {
        let mut story = Self::new(config());
        story.map(map(2));
        story
    }

    fn map(&mut self, map: ClusterMap) {
        self.core.handle_map(self.now, Arc::new(map));
    }

    fn op(&mut self, op: Op) -> OpId {
        self.core.handle_op(self.now, op, TraceId(9))
    }

    fn write(&mut self, offset: u64, fill: u8, len: usize) -> OpId {
        self.op(Op::Write { offset, data: vec![fill; len].into() })
    }

    fn outputs(&mut self) -> Vec<Output> {
        self.core.invariants();
        std::iter::from_fn(|| self.core.poll_output()).collect()
    }

    /// What was sent since, with links made where asked for.
    fn sent(&mut self) -> Vec<(OsdId, ClientRequest)> {
        let mut sent = Vec::new();
        loop {
            let outputs = self.outputs();
            if outputs.is_empty() {
                return sent;
            }
            for output in outputs {
                match output {
                    Output::Connect { osd, .. } => self.core.handle_link_up(self.now, osd),
                    Output::Send { to, request } => sent.push((to, request)),
                    other => panic!("not expected now: {other:?}"),
                }
            }
        }
    }

    fn one_sent(&mut self) -> (OsdId, ClientRequest) {
        let sent = self.sent();
        assert_eq!(sent.len(), 1, "{sent:?}");
        sent.into_iter().next().expect("one")
    }

    fn reply(&mut self, from: OsdId, request: &ClientRequest, result: Result<ReplyBody, Refusal>) {
        self.core.handle_reply(self.now, from, ClientReply { id: request.id, result });
    }

    fn done(&mut self) -> Vec<(OpId, Result<Bytes, IoError>)> {
        let done = |output| if let Output::Done { op, result } = output { Some((op, result)) } else { None };
        self.outputs().into_iter().filter_map(done).collect()
    }

    fn wait(&mut self, until: Duration) {
        self.now = until;
        self.core.handle_timeout(until);
    }
}

fn data(fill: u8, blocks: usize) -> Result<ReplyBody, Refusal> {
    let crc = crc32c::crc32c(&[fill; 4096]);
    let data = vec![fill; blocks * 4096].into();
    Ok(ReplyBody::Data(ReadData { data, blocks: vec![BlockState::Data { crc }; blocks] }))
}

const DONE: Result<ReplyBody, Refusal> = Ok(ReplyBody::Done);

/// The map with the primary of both PGs moved.
fn moved(epoch: u64, primary: u32) -> ClusterMap {
    let mut map = map(epoch);
    for config in map.pgs.values_mut() {
        config.primary = Some(OsdId(primary));
        config.c = ConfVersion(epoch);
        config.interval = ConfVersion(epoch);
    }
    map
}

#[test]
fn a_write_finds_its_primary_and_carries_all_it_must() {
    let mut story = Story::begun();
    let op = story.write(4096, 5, 4096);
    let (to, request) = story.one_sent();
    assert_eq!((request.id.seq, request.acked_through, request.trace), (1, 0, TraceId(9)));
    assert_eq!((request.generation, request.epoch, request.volume), (Generation(3), Epoch(2), VolumeId(1)));
    let map = map(2);
    let object = request.op.object();
    let (pg, pg_config) = map.pg_of(object.pool, object.hash()).unwrap();
    assert_eq!((request.pg, request.c, Some(to)), (pg, pg_config.c, pg_config.primary));
    let ClientOp::Write { offset, data, crcs, .. } = &request.op else { panic!("a write") };
    assert_eq!((*offset, data.len(), crcs[..].to_vec()), (4096, 4096, vec![crc32c::crc32c(&[5; 4096])]));
    story.reply(to, &request, DONE);
    assert_eq!(story.done(), [(op, Ok(Bytes::new()))]);
    assert!(story.core.is_idle() && story.core.poll_timeout().is_none());
}

#[test]
fn nothing_leaves_before_a_map_that_knows_the_fence() {
    let mut story = Story::new(config());
    story.write(0, 1, 4096);
    assert_eq!(story.sent(), []);
    let mut old = map(1);
    old.volumes.clear();
    story.map(old);
    assert_eq!(story.sent(), [], "at that epoch the fence may not let us through yet");
    story.map(map(2));
    assert_eq!(story.sent().len(), 1);
}

#[test]
fn an_operation_is_cut_at_objects_and_joined_again() {
    let mut story = Story::begun();
    let op = story.op(Op::Read { offset: u64::from(OBJECT) - 10, len: 20 });
    let sent = story.sent();
    assert_eq!(sent.len(), 2);
    for (fill, (to, request)) in sent.iter().enumerate().rev() {
        assert_eq!(request.op.object().index, fill as u64);
        story.reply(*to, request, data(1 + fill as u8, 1));
    }
    assert_eq!(story.done(), [(op, Ok([[1; 10], [2; 10]].concat().into()))]);
}

#[test]
fn acked_through_follows_the_oldest_request_without_an_answer() {
    let mut story = Story::begun();
    for block in 0..3 {
        story.write(block * 4096, 1, 4096);
    }
    let sent = story.sent();
    story.reply(sent[1].0, &sent[1].1, DONE);
    story.write(5 * 4096, 1, 4096);
    assert_eq!(story.core.poll_output().map(|o| matches!(o, Output::Done { .. })), Some(true));
    let (_, fourth) = story.one_sent();
    assert_eq!((fourth.id.seq, fourth.acked_through), (4, 0));
    story.reply(sent[0].0, &sent[0].1, DONE);
    story.done();
    story.write(6 * 4096, 1, 4096);
    assert_eq!(story.one_sent().1.acked_through, 2);
}

#[test]
fn overlapping_writes_go_one_after_the_other_and_reads_follow_them() {
    let mut story = Story::begun();
    story.write(0, 1, 4096);
    story.write(100, 2, 10);
    story.op(Op::Read { offset: 0, len: 4096 });
    story.write(2 * 4096, 3, 4096);
    let sent = story.sent();
    assert_eq!(sent.len(), 2, "the first, and the one that overlaps nothing");
    story.reply(sent[0].0, &sent[0].1, DONE);
    story.core.poll_output();
    let (to, edge) = story.one_sent();
    assert!(matches!(edge.op, ClientOp::Read { offset: 0, len: 4096, .. }), "the second reads what it will keep");
    story.reply(to, &edge, data(1, 1));
    let (to, merged) = story.one_sent();
    let ClientOp::Write { data: block, .. } = &merged.op else { panic!("a write") };
    assert_eq!((block[99], &block[100..110], block[110]), (1, &[2; 10][..], 1));
    story.reply(to, &merged, DONE);
    story.core.poll_output();
    assert!(matches!(story.one_sent().1.op, ClientOp::Read { .. }), "the read, at last");
}

#[test]
fn a_flush_waits_for_writes_that_came_before_it() {
    let mut story = Story::begun();
    let write = story.write(0, 1, 4096);
    let flush = story.op(Op::Flush);
    let (to, request) = story.one_sent();
    story.reply(to, &request, DONE);
    assert_eq!(story.done(), [(write, Ok(Bytes::new())), (flush, Ok(Bytes::new()))]);
    let idle = story.op(Op::Flush);
    assert_eq!(story.done(), [(idle, Ok(Bytes::new()))]);
}

#[test]
fn zeroing_keeps_what_lies_outside_the_range() {
    let mut story = Story::begun();
    story.op(Op::Zero { offset: 4000, len: 4096 + 96 + 4, unmap: true });
    let edges = story.sent();
    assert_eq!(edges.len(), 2, "the first and the last block are read: {edges:?}");
    for (to, request) in &edges {
        story.reply(*to, request, data(7, 1));
    }
    let sent = story.sent();
    let mut wrote = sent.iter().map(|(_, request)| match &request.op {
        ClientOp::Write { data, .. } => (data.iter().filter(|byte| **byte == 7).count(), 'w'),
        ClientOp::Zero { len, unmap: true, .. } => (*len as usize, 'z'),
        other => panic!("{other:?}"),
    });
    assert_eq!(wrote.next(), Some((4000, 'w')));
    assert_eq!(wrote.next(), Some((4092, 'w')));
    assert_eq!(wrote.next(), Some((4096, 'z')));
}

#[test]
fn a_newer_map_is_waited_for_when_the_osd_has_one() {
    let mut story = Story::begun();
    story.write(0, 1, 4096);
    let (to, request) = story.one_sent();
    story.reply(to, &request, Err(Refusal::NotPrimary { epoch: Epoch(4) }));
    assert_eq!(story.sent(), []);
    story.map(moved(3, 2));
    assert_eq!(story.sent(), [], "not new enough");
    story.map(moved(4, 2));
    let (to, again) = story.one_sent();
    assert_eq!((to, again.id, again.epoch, again.c), (OsdId(2), request.id, Epoch(4), ConfVersion(4)));
}

#[test]
fn a_moved_primary_gets_the_same_request_again_and_the_first_answer_counts() {
    let mut story = Story::begun();
    let op = story.write(0, 1, 4096);
    let (first, request) = story.one_sent();
    story.map(map(3));
    assert_eq!(story.sent(), [], "nothing that matters to it changed");
    story.map(moved(4, 2));
    let (second, again) = story.one_sent();
    assert_eq!((second, again.id), (OsdId(2), request.id));
    story.reply(first, &request, Err(Refusal::NotPrimary { epoch: Epoch(9) }));
    assert_eq!(story.sent(), [], "a refusal of the earlier sending says nothing of this one");
    story.reply(first, &request, DONE);
    assert_eq!(story.done(), [(op, Ok(Bytes::new()))]);
    story.reply(second, &again, DONE);
    assert_eq!(story.done(), [], "late");
}

#[test]
fn a_new_interval_of_the_same_primary_knows_nothing_of_the_request() {
    let mut story = Story::begun();
    story.write(0, 1, 4096);
    let (to, request) = story.one_sent();
    story.map(moved(3, to.0));
    let (same, again) = story.one_sent();
    assert_eq!((same, again.id, again.c), (to, request.id, ConfVersion(3)));
}

#[test]
fn a_pg_without_primary_is_waited_for() {
    let mut story = Story::begun();
    let mut none = map(3);
    none.pgs.values_mut().for_each(|config| config.primary = None);
    story.map(none);
    story.write(0, 1, 4096);
    assert_eq!((story.sent(), story.core.poll_timeout()), (vec![], None));
    story.map(moved(4, 1));
    assert_eq!(story.one_sent().0, OsdId(1));
}

#[test]
fn a_lost_connection_means_the_same_request_on_the_next() {
    let mut story = Story::begun();
    story.write(0, 1, 4096);
    let (to, request) = story.one_sent();
    story.core.handle_link_down(story.now, to);
    assert_eq!(story.outputs(), [], "the driver goes on dialling by itself");
    story.core.handle_link_up(story.now, to);
    assert_eq!(story.one_sent(), (to, request));
}

#[test]
fn silence_is_met_by_a_fresh_connection_and_slowness_by_a_resend() {
    let mut story = Story::begun();
    story.write(0, 1, 4096);
    let (to, request) = story.one_sent();
    story.now = ms(1000);
    story.write(4096, 1, 4096);
    let (_, second) = story.one_sent();
    assert_eq!(story.core.poll_timeout(), Some(ms(5000)));
    story.wait(ms(5000));
    let outputs = story.outputs();
    assert!(matches!(&outputs[..], [Output::Connect { osd, .. }] if *osd == to), "{outputs:?}");
    story.core.handle_link_up(ms(5000), to);
    let again: Vec<_> = story.sent().into_iter().map(|(_, request)| request.id).collect();
    assert_eq!(again, [request.id, second.id]);
    story.now = ms(7000);
    story.reply(to, &second, DONE);
    story.done();
    story.wait(ms(10_000));
    let (to_again, third) = story.one_sent();
    assert_eq!((to_again, third.id), (to, request.id), "the OSD lives, only this request waits there");
}

#[test]
fn an_osd_that_moved_or_began_a_new_life_is_dialled_afresh() {
    let mut story = Story::begun();
    story.write(0, 1, 4096);
    let (to, request) = story.one_sent();
    let mut restarted = map(3);
    let osd = restarted.osds.get_mut(&to).unwrap();
    osd.incarnation = Incarnation(2);
    osd.addresses = vec!["unix:/elsewhere".into()];
    story.map(restarted);
    let outputs = story.outputs();
    assert_eq!(outputs, [Output::Connect { osd: to, addresses: vec!["unix:/elsewhere".into()] }]);
    story.core.handle_link_up(story.now, to);
    assert_eq!(story.one_sent().1.id, request.id);
    let mut gone = moved(4, 2);
    gone.osds.remove(&to);
    story.map(gone);
    assert_eq!(story.core.poll_output(), Some(Output::Disconnect { osd: to }));
    assert_eq!(story.one_sent().0, OsdId(2));
}

#[test]
fn transient_refusals_are_met_with_growing_pauses() {
    let mut story = Story::begun();
    story.write(0, 1, 4096);
    let mut pauses = Vec::new();
    for _ in 0..9 {
        let (to, request) = story.one_sent();
        story.reply(to, &request, Err([Refusal::Busy, Refusal::NoSpace][pauses.len() % 2]));
        let until = story.core.poll_timeout().expect("a pause");
        pauses.push((until - story.now).as_millis());
        story.wait(until);
    }
    assert!((5..=10).contains(&pauses[0]) && (500..=1000).contains(&pauses[8]), "{pauses:?}");
}

#[test]
fn a_fenced_session_is_finished_for_good() {
    let mut story = Story::begun();
    let writes = [story.write(0, 1, 4096), story.write(4096, 1, 4096), story.write(0, 2, 4096)];
    let sent = story.sent();
    story.reply(sent[0].0, &sent[0].1, Err(Refusal::Fenced));
    assert_eq!(story.done(), writes.map(|op| (op, Err(IoError::Fenced))));
    assert_eq!(story.core.fatal(), Some(IoError::Fenced));
    story.reply(sent[1].0, &sent[1].1, DONE);
    let late = story.op(Op::Read { offset: 0, len: 1 });
    assert_eq!(story.outputs(), [Output::Done { op: late, result: Err(IoError::Fenced) }]);
}

#[test]
fn a_map_without_our_generation_fences_too() {
    let mut story = Story::begun();
    let op = story.write(0, 1, 4096);
    story.sent();
    let mut taken = map(3);
    taken.volumes.get_mut(&VolumeId(1)).unwrap().generations = [Generation(4)].into();
    story.map(taken);
    assert_eq!(story.done(), [(op, Err(IoError::Fenced))]);
}

#[test]
fn rotten_data_is_asked_for_again_and_then_an_error() {
    let mut story = Story::begun();
    let op = story.op(Op::Read { offset: 0, len: 4096 });
    for attempt in 0..4 {
        let (to, request) = story.one_sent();
        let Ok(ReplyBody::Data(mut read)) = data(1, 1) else { panic!("data") };
        read.data = vec![2; 4096].into();
        story.reply(to, &request, Ok(ReplyBody::Data(read)));
        if attempt < 3 {
            let until = story.core.poll_timeout().expect("a pause");
            story.wait(until);
        }
    }
    assert_eq!(story.done(), [(op, Err(IoError::Corrupt))]);
}

#[test]
fn what_must_not_be_is_an_error_of_that_operation_alone() {
    let cases = [
        (Err(Refusal::Corrupt), IoError::Corrupt),
        (Err(Refusal::ReadOnly), IoError::ReadOnly),
        (Err(Refusal::Malformed), IoError::BadAnswer(BadAnswer::Refusal(Refusal::Malformed))),
        (Err(Refusal::AlreadyAcked), IoError::BadAnswer(BadAnswer::Refusal(Refusal::AlreadyAcked))),
        (data(1, 1), IoError::BadAnswer(BadAnswer::Shape)),
    ];
    for (answer, expected) in cases {
        let mut story = Story::begun();
        let op = story.write(0, 1, 4096);
        let waiting = story.write(0, 2, 4096);
        let (to, request) = story.one_sent();
        story.reply(to, &request, answer);
        let outputs = story.outputs();
        assert!(outputs.contains(&Output::Done { op, result: Err(expected) }), "{outputs:?}");
        assert!(matches!(&outputs[..], [_, Output::Send { .. }]), "{waiting:?} goes on: {outputs:?}");
    }
}

#[test]
fn an_answer_of_another_session_is_none() {
    let mut story = Story::begun();
    story.write(0, 1, 4096);
    let (to, mut request) = story.one_sent();
    request.id.session = SessionId(1);
    story.reply(to, &request, Err(Refusal::Fenced));
    assert_eq!(story.outputs(), []);
}

#[test]
fn what_can_never_succeed_is_refused_at_once() {
    let mut read_only = Story::new(Config { read_only: true, ..config() });
    let cases = [
        (Op::Read { offset: SIZE, len: 1 }, IoError::OutOfRange { offset: SIZE, len: 1, size: SIZE }),
        (Op::Read { offset: u64::MAX, len: 2 }, IoError::OutOfRange { offset: u64::MAX, len: 2, size: SIZE }),
        (Op::Read { offset: 0, len: MAX_DATA + 1 }, IoError::TooLong { len: MAX_DATA + 1, limit: MAX_DATA }),
        (Op::Zero { offset: 0, len: 512, unmap: false }, IoError::ReadOnly),
    ];
    for (op, error) in cases {
        let id = read_only.op(op);
        assert_eq!(read_only.outputs(), [Output::Done { op: id, result: Err(error) }]);
    }
    let mut story = Story::begun();
    let nothing = story.op(Op::Read { offset: SIZE, len: 0 });
    assert_eq!(story.done(), [(nothing, Ok(Bytes::new()))]);
    story.core.handle_size(SIZE + 4096);
    story.op(Op::Read { offset: SIZE, len: 1 });
    assert_eq!(story.sent().len(), 1, "the volume has grown");
}

#[test]
fn what_is_taken_and_what_is_in_flight_is_bounded() {
    let mut story = Story::begun();
    let mut taken = 0;
    while story.core.has_room() {
        story.write(taken % 8 * 4096, 1, 4096);
        taken += 1;
    }
    assert_eq!(taken, 10, "40 000 bytes, and one more whole operation");
    assert_eq!(story.sent().len(), 6, "requests at once");
    let mut small = Story::begun();
    (0..16).for_each(|_| assert!(small.core.has_room() && small.op(Op::Read { offset: 0, len: 1 }).0 > 0));
    assert!(!small.core.has_room(), "sixteen operations");
}

/// A map in which the volume has this snapshot.
fn with_snapshot(epoch: u64, id: u64, phase: SnapPhase) -> ClusterMap {
    let mut map = map(epoch);
    map.volumes.get_mut(&VolumeId(1)).expect("it is there").snapshots.insert(SnapId(id), phase);
    map
}

#[test]
fn a_snapshot_stands_between_what_was_acknowledged_and_what_comes() {
    let mut story = Story::begun();
    story.write(0, 1, 4096);
    let (osd, before) = story.one_sent();
    assert_eq!(before.snap_context, SnapId(0));
    story.map(with_snapshot(3, 5, SnapPhase::Taking));
    story.write(4096, 2, 4096);
    let read = story.op(Op::Read { offset: 8192, len: 4096 });
    let (other, asked) = story.one_sent();
    assert!(!asked.op.is_write(), "what reads goes on, what writes waits");
    story.reply(other, &asked, data(7, 1));
    assert_eq!(story.done(), vec![(read, Ok(Bytes::from(vec![7; 4096])))]);
    story.reply(osd, &before, DONE);
    let outputs = story.outputs();
    let drained = outputs.iter().position(|output| *output == Output::Drained { snapshot: SnapId(5) });
    let sent = outputs.iter().position(|output| matches!(output, Output::Send { .. }));
    assert!(drained.is_some() && drained < sent, "{outputs:?}");
    let Some(Output::Send { request, .. }) = sent.map(|at| &outputs[at]) else { panic!("it was found") };
    assert_eq!((request.snap_context, request.epoch), (SnapId(5), Epoch(3)), "whoever gets it knows the snapshot");
}

#[test]
fn a_snapshot_that_would_hold_writes_back_for_too_long_is_not_taken() {
    let mut story = Story::begun();
    story.write(0, 1, 4096);
    let (osd, before) = story.one_sent();
    story.map(with_snapshot(3, 5, SnapPhase::Taking));
    story.write(4096, 2, 4096);
    assert!(story.sent().is_empty());
    assert_eq!(story.core.poll_timeout(), Some(ms(5000)));
    story.wait(ms(5000));
    let sent = story.sent();
    let fresh = sent.iter().find(|(_, request)| request.id != before.id);
    assert_eq!(fresh.map(|(_, request)| request.snap_context), Some(SnapId(0)), "it goes on as before: {sent:?}");
    story.reply(osd, &before, DONE);
    assert!(!story.outputs().contains(&Output::Drained { snapshot: SnapId(5) }), "nobody is told that it was taken");
    story.map(with_snapshot(4, 5, SnapPhase::Going));
    story.map(with_snapshot(5, 6, SnapPhase::Taking));
    assert!(story.sent().is_empty(), "the next one is another matter");
}

#[test]
fn a_snapshot_is_read_without_holding_anything_until_it_goes() {
    let mut story = Story::new(Config { view: SnapId(5), generation: Generation(0), ..config() });
    story.map(with_snapshot(2, 5, SnapPhase::Ready));
    let write = story.write(0, 1, 4096);
    assert_eq!(story.done(), vec![(write, Err(IoError::ReadOnly))]);
    let read = story.op(Op::Read { offset: 0, len: 4096 });
    let (_, request) = story.one_sent();
    assert_eq!(request.op.object().snapshot, SnapId(5));
    story.map(with_snapshot(3, 5, SnapPhase::Going));
    assert_eq!(story.done(), vec![(read, Err(IoError::NoSnapshot))]);
}
