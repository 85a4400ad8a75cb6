//! Every message survives the trip in any pieces; nothing that was cut or flipped on the way passes.

use bytes::Bytes;
use cairn_types::io::{BlockState, ClientOp, ClientReply, ClientRequest, ReadData, Refusal, ReplyBody};
use cairn_types::peer::{
    AbsentMember, BackfillCursor, BlockSet, EntryOp, Heartbeat, HeartbeatReply, LogEntry, LogPoint, LogReport, Logged,
    Missing, ObjectKey, PeerMessage, PgCommit, PgMessage, Push, Run, RunContent, SessionDups, StartRecovery,
};
use cairn_types::scrub::{BlockCopy, Mend, ScrubAsk, ScrubFound};
use cairn_types::{
    ConfVersion, Epoch, Generation, Incarnation, ObjectId, OsdId, PgId, PoolId, RequestId, SessionId, SnapId, TraceId,
    Version, VolumeId,
};
use cairn_wire::{
    CloseReason, Decoder, EncodedFrame, Frame, FrameBuilder, Hello, Identity, Message, PROTOCOL, PayloadCheck,
    VersionRange, Welcome, WireError, encode_close, encode_hello, encode_welcome,
};
use proptest::collection::vec;
use proptest::prelude::{Just, ProptestConfig, Strategy, any, prop_oneof, proptest};

fn data(blocks: Vec<u8>) -> (Bytes, Vec<u32>) {
    let data: Vec<u8> = blocks.iter().flat_map(|fill| vec![*fill; 4096]).collect();
    let crcs = data.chunks(4096).map(crc32c::crc32c).collect();
    (Bytes::from(data), crcs)
}

fn object() -> impl Strategy<Value = ObjectId> {
    any::<(u32, u64, u64, u64)>().prop_map(|(pool, volume, index, snapshot)| ObjectId {
        pool: PoolId(pool),
        volume: VolumeId(volume),
        index,
        snapshot: SnapId(snapshot),
    })
}

fn request_id() -> impl Strategy<Value = RequestId> {
    any::<(u128, u64)>().prop_map(|(session, seq)| RequestId { session: SessionId(session), seq })
}

fn client_op() -> impl Strategy<Value = ClientOp> {
    prop_oneof![
        (object(), any::<u32>(), any::<u32>()).prop_map(|(object, offset, len)| ClientOp::Read { object, offset, len }),
        (object(), any::<u32>(), vec(any::<u8>(), 0..4)).prop_map(|(object, offset, blocks)| {
            let (data, crcs) = data(blocks);
            ClientOp::Write { object, offset, data, crcs }
        }),
        (object(), any::<u32>(), any::<u32>(), any::<bool>()).prop_map(|(object, offset, len, unmap)| ClientOp::Zero {
            object,
            offset,
            len,
            unmap
        }),
        (object(), any::<u32>(), any::<u32>(), any::<u64>()).prop_map(|(object, offset, len, since)| {
            ClientOp::Status { object, offset, len, since: SnapId(since) }
        }),
    ]
}

fn request() -> impl Strategy<Value = ClientRequest> {
    (request_id(), any::<[u64; 7]>(), any::<(u32, u32)>(), client_op()).prop_map(|(id, n, pg, op)| ClientRequest {
        id,
        acked_through: n[0],
        trace: TraceId(n[1]),
        pg: PgId { pool: PoolId(pg.0), index: pg.1 },
        c: ConfVersion(n[2]),
        epoch: Epoch(n[3]),
        volume: VolumeId(n[4]),
        generation: Generation(n[5]),
        snap_context: SnapId(n[6]),
        op,
    })
}

fn read_data() -> impl Strategy<Value = ReadData> {
    vec((0..3u8, any::<u8>()), 0..4).prop_map(|blocks| {
        let fills = blocks.iter().map(|(tag, fill)| if *tag == 2 { *fill } else { 0 }).collect();
        let (data, crcs) = data(fills);
        let blocks = blocks.iter().zip(crcs).map(|((tag, _), crc)| match tag {
            0 => BlockState::Absent,
            1 => BlockState::Zero,
            _ => BlockState::Data { crc },
        });
        ReadData { data, blocks: blocks.collect() }
    })
}

fn refusal() -> impl Strategy<Value = Refusal> {
    (0..11u8, any::<u64>()).prop_map(|(code, epoch)| match code {
        0 => Refusal::NotPrimary { epoch: Epoch(epoch) },
        1 => Refusal::StaleMap { epoch: Epoch(epoch) },
        2 => Refusal::Busy,
        3 => Refusal::Fenced,
        4 => Refusal::ReadOnly,
        5 => Refusal::StaleSnapContext,
        6 => Refusal::Corrupt,
        7 => Refusal::NoSpace,
        8 => Refusal::AlreadyAcked,
        9 => Refusal::NoSnapshot,
        _ => Refusal::Malformed,
    })
}

fn message() -> impl Strategy<Value = Message> {
    let result = prop_oneof![
        Just(Ok(ReplyBody::Done)),
        read_data().prop_map(|read| Ok(ReplyBody::Data(read))),
        vec(state(), 0..9).prop_map(|blocks| Ok(ReplyBody::Status(blocks))),
        refusal().prop_map(Err),
    ];
    prop_oneof![
        request().prop_map(Message::Request),
        (request_id(), result).prop_map(|(id, result)| Message::Reply(ClientReply { id, result })),
        peer_message().prop_map(Message::Peer),
    ]
}

fn point() -> impl Strategy<Value = LogPoint> {
    any::<[u64; 3]>().prop_map(|[c, seq, hash]| LogPoint { version: Version { c: ConfVersion(c), seq }, hash })
}

fn logged() -> impl Strategy<Value = Logged> {
    let op = prop_oneof![
        (object(), any::<u32>(), vec(any::<u8>(), 0..3)).prop_map(|(object, offset, blocks)| {
            let (data, crcs) = data(blocks);
            (EntryOp::Write { object, offset, crcs }, data)
        }),
        (object(), any::<u32>(), any::<u32>(), any::<bool>())
            .prop_map(|(object, offset, len, unmap)| (EntryOp::Zero { object, offset, len, unmap }, Bytes::new())),
        object().prop_map(|object| (EntryOp::Remove { object }, Bytes::new())),
    ];
    (point(), request_id(), any::<[u64; 4]>(), op).prop_map(|(point, request, n, (op, data))| Logged {
        entry: LogEntry {
            version: point.version,
            prev: point.hash,
            epoch: Epoch(n[0]),
            request,
            acked_through: n[1],
            generation: Generation(n[2]),
            snap_context: SnapId(n[3]),
            op,
        },
        data,
    })
}

fn run() -> impl Strategy<Value = Run> {
    prop_oneof![
        any::<(u32, u32)>().prop_map(|(offset, len)| Run { offset, len, content: RunContent::Absent }),
        any::<(u32, u32)>().prop_map(|(offset, len)| Run { offset, len, content: RunContent::Zero }),
        (any::<u32>(), vec(any::<u8>(), 0..3)).prop_map(|(offset, blocks)| {
            let (data, crcs) = data(blocks);
            Run { offset, len: data.len() as u32, content: RunContent::Data { data, crcs } }
        }),
    ]
}

fn dirty() -> impl Strategy<Value = Vec<(ObjectId, BlockSet)>> {
    vec((object(), vec(any::<u64>(), 0..4).prop_map(BlockSet::from_words)), 0..3)
}

fn start_recovery() -> impl Strategy<Value = StartRecovery> {
    let missing = prop_oneof![Just(Missing::Everything), dirty().prop_map(Missing::Blocks)];
    let dups =
        (request_id(), any::<[u64; 3]>(), vec(any::<(u64, u64)>(), 0..3)).prop_map(|(id, n, executed)| SessionDups {
            session: id.session,
            volume: VolumeId(n[0]),
            generation: Generation(n[1]),
            acked_through: n[2],
            executed,
        });
    let absent = (any::<u32>(), vec(point(), 0..3), dirty()).prop_map(|(osd, anchor, dirty)| AbsentMember {
        osd: OsdId(osd),
        anchor,
        dirty,
    });
    (point(), point(), missing, vec(dups, 0..3), vec(absent, 0..3))
        .prop_map(|(rewind_to, base, missing, dups, absent)| StartRecovery { rewind_to, base, missing, dups, absent })
}

fn copy() -> impl Strategy<Value = BlockCopy> {
    prop_oneof![
        Just(BlockCopy::Absent),
        Just(BlockCopy::Zero),
        any::<u32>().prop_map(|crc| BlockCopy::Data { crc }),
        any::<u32>().prop_map(|crc| BlockCopy::Rotten { crc }),
        Just(BlockCopy::Lost),
    ]
}

fn state() -> impl Strategy<Value = BlockState> {
    prop_oneof![Just(BlockState::Absent), Just(BlockState::Zero), any::<u32>().prop_map(|crc| BlockState::Data { crc })]
}

fn pg_message() -> impl Strategy<Value = PgMessage> {
    let cursor = prop_oneof![
        Just(None),
        Just(Some(BackfillCursor::End)),
        object().prop_map(|object| Some(BackfillCursor::Through(ObjectKey::new(object)))),
    ];
    prop_oneof![
        (any::<u64>(), vec(logged(), 0..4)).prop_map(|(commit, entries)| PgMessage::Replicate { commit, entries }),
        (point(), any::<bool>()).prop_map(|(persisted, gap)| PgMessage::Ack { persisted, gap }),
        any::<(u64, u64)>().prop_map(|(seq, epoch)| PgMessage::Fenced { seq, epoch: Epoch(epoch) }),
        Just(PgMessage::QueryLog),
        (point(), vec(point(), 0..4), any::<bool>(), any::<bool>()).prop_map(|(commit, tail, usable, missing)| {
            PgMessage::LogReport(LogReport { commit, tail, usable, missing })
        }),
        any::<(u64, u64)>().prop_map(|(after, through)| PgMessage::FetchLog { after, through }),
        vec(logged(), 0..4).prop_map(|entries| PgMessage::LogEntries { entries }),
        point().prop_map(|at| PgMessage::Align { at }),
        start_recovery().prop_map(|start| PgMessage::StartRecovery(Box::new(start))),
        (any::<u64>(), object(), vec(run(), 0..4), cursor)
            .prop_map(|(id, object, runs, cursor)| PgMessage::Push(Push { id, object, runs, cursor })),
        any::<u64>().prop_map(|id| PgMessage::PushAck { id }),
        (any::<u64>(), object(), any::<u32>(), any::<u32>()).prop_map(|(id, object, offset, len)| PgMessage::Pull {
            id,
            object,
            offset,
            len
        }),
        (any::<u64>(), proptest::option::of(vec(run(), 0..4))).prop_map(|(id, runs)| PgMessage::PullReply { id, runs }),
        (any::<u64>(), any::<bool>(), proptest::option::of(object()), any::<u32>()).prop_map(
            |(id, deep, after, limit)| {
                PgMessage::ScrubAsk(ScrubAsk { id, deep, after: after.map(ObjectKey::new), limit })
            }
        ),
        (any::<[u64; 2]>(), vec((object(), vec(copy(), 0..9)), 0..4), any::<bool>())
            .prop_map(|([id, at], objects, end)| PgMessage::ScrubFound(ScrubFound { id, at, objects, end })),
        (object(), vec((any::<u32>(), state()), 0..4))
            .prop_map(|(object, blocks)| PgMessage::Mend(Mend { object, blocks })),
    ]
}

fn peer_message() -> impl Strategy<Value = PeerMessage> {
    let pg = || any::<(u32, u32)>().prop_map(|(pool, index)| PgId { pool: PoolId(pool), index });
    let commit = (pg(), any::<[u64; 3]>()).prop_map(|(pg, [c, attempt, commit])| PgCommit {
        pg,
        c: ConfVersion(c),
        attempt,
        commit,
    });
    prop_oneof![
        1 => (any::<[u64; 2]>(), any::<u32>(), any::<[bool; 2]>(), vec(commit, 0..4)).prop_map(
            |([sent_at, epoch], oldest_io_ms, [want_lease, full], commits)| PeerMessage::Heartbeat(Heartbeat {
                sent_at,
                epoch: Epoch(epoch),
                want_lease,
                oldest_io_ms,
                full,
                commits,
            })
        ),
        1 => (any::<[u64; 3]>(), any::<u32>(), any::<[bool; 2]>()).prop_map(
            |([echo, incarnation, epoch], oldest_io_ms, [lease, full])| {
                PeerMessage::HeartbeatReply(HeartbeatReply {
                    echo,
                    echo_incarnation: Incarnation(incarnation),
                    epoch: Epoch(epoch),
                    lease,
                    oldest_io_ms,
                    full,
                })
            }
        ),
        8 => (pg(), any::<u64>(), any::<u64>(), pg_message())
            .prop_map(|(pg, c, attempt, body)| PeerMessage::Pg { pg, c: ConfVersion(c), attempt, body }),
    ]
}

fn messages() -> impl Strategy<Value = Vec<Message>> {
    vec(message(), 1..5)
}

fn encode(messages: &[Message]) -> Vec<u8> {
    let mut builder = FrameBuilder::new(PROTOCOL.max, 3);
    for message in messages {
        builder.push(message).expect("a few small messages fit");
    }
    flat(&builder.finish())
}

fn flat(frame: &EncodedFrame) -> Vec<u8> {
    let mut bytes = frame.head.to_vec();
    frame.payload.iter().for_each(|piece| bytes.extend_from_slice(piece));
    assert_eq!(bytes.len(), frame.len());
    bytes
}

fn established() -> Decoder {
    let mut decoder = Decoder::new(PayloadCheck::AtDecode);
    decoder.establish(PROTOCOL.max);
    decoder
}

fn hello() -> Hello {
    Hello {
        versions: PROTOCOL,
        features: 5,
        required: 1,
        cluster: uuid::Uuid::from_u128(77),
        identity: Identity::Client { session: SessionId(9), volume: VolumeId(8), generation: Generation(7) },
        to: OsdId(2),
        shard: 1,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn messages_survive_in_any_pieces(batch in messages(), piece in 1usize..9000) {
        let bytes = encode(&batch);
        let mut decoder = established();
        let mut frames = Vec::new();
        for mut chunk in [&bytes[..], &bytes[..]].concat().chunks(piece) {
            while let Some(frame) = decoder.decode(&mut chunk).expect("valid") {
                frames.push(frame);
            }
        }
        let whole = Frame::Operations { shard: 3, messages: batch };
        assert_eq!(frames, [whole.clone(), whole], "a frame ends where the next begins");
    }

    #[test]
    fn payload_received_in_place_is_the_same(batch in messages(), limit in 1usize..5000) {
        let bytes = encode(&batch);
        let mut decoder = established();
        let mut rest = &bytes[..];
        let mut got = None;
        while got.is_none() {
            if decoder.payload_missing() > 0 {
                let taken = decoder.payload_space(limit, |space| {
                    space.copy_from_slice(&rest[..space.len()]);
                    Ok::<usize, WireError>(space.len())
                }).expect("copies");
                rest = &rest[taken..];
                got = decoder.decode(&mut &[][..]).expect("valid");
            } else {
                let (byte, after) = rest.split_at(1);
                rest = after;
                got = decoder.decode(&mut &byte[..]).expect("valid");
            }
        }
        assert_eq!(got, Some(Frame::Operations { shard: 3, messages: batch }));
        assert!(rest.is_empty());
    }

    #[test]
    fn a_flipped_bit_never_passes(batch in messages(), at in any::<proptest::sample::Index>(), bit in 0..8u8) {
        let mut bytes = encode(&batch);
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        let decoded = established().decode(&mut &bytes[..]);
        assert!(decoded.is_err(), "byte {at} of {}: {decoded:?}", bytes.len());
    }

    #[test]
    fn a_cut_frame_is_not_a_frame(batch in messages(), at in any::<proptest::sample::Index>()) {
        let bytes = encode(&batch);
        let mut cut = &bytes[..at.index(bytes.len())];
        assert_eq!(established().decode(&mut cut), Ok(None));
    }

    #[test]
    fn noise_never_panics(noise in vec(any::<u8>(), 0..300), keep in 0usize..200, batch in messages()) {
        // Noise behind a true beginning reaches further than noise alone.
        let mut bytes = encode(&batch);
        bytes.truncate(keep);
        bytes.extend(noise);
        let mut input = &bytes[..];
        let mut decoder = established();
        while let Ok(Some(_)) = decoder.decode(&mut input) {}
    }

    #[test]
    fn noise_with_true_checksums_never_panics(noise in vec(any::<u8>(), 0..300), count in 0..4u16, kind in 0..60u16) {
        // What a hostile or newer peer could send: the checksums hold, the fields do not make sense.
        let mut fields = kind.to_le_bytes().to_vec();
        fields.extend([0; 2]);
        fields.extend((noise.len() as u32).to_le_bytes());
        fields.extend([0; 32]);
        fields.extend(noise);
        let mut decoder = established();
        let _ = decoder.decode(&mut &forged(1, 4, count, &fields, 0)[..]);
        for frame_kind in 1..4 {
            let _ = Decoder::new(PayloadCheck::AtDecode).decode(&mut &forged(0, frame_kind, 0, &fields, 0)[..]);
        }
    }
}

/// A frame whose checksums hold, whatever its fields say.
fn forged(version: u16, kind: u8, count: u16, fields: &[u8], payload_len: u32) -> Vec<u8> {
    let mut bytes = b"CRNF".to_vec();
    bytes.extend(version.to_le_bytes());
    bytes.extend([kind, 0, 0, 0]);
    bytes.extend(count.to_le_bytes());
    bytes.extend((fields.len() as u32).to_le_bytes());
    bytes.extend(payload_len.to_le_bytes());
    bytes.extend(crc32c::crc32c(fields).to_le_bytes());
    bytes.extend([0; 4]);
    bytes.extend(crc32c::crc32c(&bytes).to_le_bytes());
    bytes.extend(fields);
    bytes
}

#[test]
fn the_handshake_survives() {
    let osd = Identity::Osd { id: OsdId(4), incarnation: Incarnation(11) };
    for hello in [hello(), Hello { identity: osd, ..hello() }] {
        let mut decoder = Decoder::new(PayloadCheck::AtDecode);
        assert_eq!(decoder.decode(&mut &flat(&encode_hello(&hello))[..]), Ok(Some(Frame::Hello(hello))));
    }
    let welcome = Welcome {
        version: 1,
        features: 4,
        cluster: uuid::Uuid::from_u128(77),
        osd: OsdId(2),
        incarnation: Incarnation(6),
        shards: 1,
        epoch: Epoch(99),
    };
    let mut decoder = Decoder::new(PayloadCheck::AtDecode);
    assert_eq!(decoder.decode(&mut &flat(&encode_welcome(&welcome))[..]), Ok(Some(Frame::Welcome(welcome))));
}

#[test]
fn every_reason_to_hang_up_survives() {
    let reasons = [
        CloseReason::NoCommonVersion { min: 2, max: 700 },
        CloseReason::MissingFeatures { missing: 1 << 40 },
        CloseReason::WrongCluster,
        CloseReason::WrongOsd { found: OsdId(70_000) },
        CloseReason::DeadIncarnation,
        CloseReason::TooManyConnections,
        CloseReason::UnknownVersion { found: 9 },
        CloseReason::UnknownOperation { kind: 300 },
        CloseReason::BadFrame,
        CloseReason::Replaced,
        CloseReason::ShuttingDown,
        CloseReason::Unknown { code: 4000 },
    ];
    for reason in reasons {
        let bytes = flat(&encode_close(reason));
        assert_eq!(established().decode(&mut &bytes[..]), Ok(Some(Frame::Close(reason))));
    }
}

#[test]
fn the_format_is_fixed() {
    let zero = ClientRequest {
        id: RequestId { session: SessionId(1), seq: 2 },
        acked_through: 3,
        trace: TraceId(4),
        pg: PgId { pool: PoolId(5), index: 6 },
        c: ConfVersion(7),
        epoch: Epoch(8),
        volume: VolumeId(9),
        generation: Generation(10),
        snap_context: SnapId(11),
        op: ClientOp::Zero {
            object: ObjectId { pool: PoolId(5), volume: VolumeId(9), index: 12, snapshot: SnapId::HEAD },
            offset: 4096,
            len: 8192,
            unmap: true,
        },
    };
    let bytes = encode(&[Message::Request(zero)]);
    assert_eq!(bytes.len(), 32 + 40 + 101);
    assert_eq!(&bytes[..12], b"CRNF\x01\x00\x04\x00\x03\x00\x01\x00", "magic, version, kind, shard, count");
    assert_eq!(bytes[12..16], 141u32.to_le_bytes(), "bytes of fields");
    assert_eq!(bytes[32..34], 3u16.to_le_bytes(), "operation");
    assert_eq!(bytes[48..72], [7u64.to_le_bytes(), 10u64.to_le_bytes(), 2u64.to_le_bytes()].concat()[..], "c, g, v");
    assert_eq!(crc32c::crc32c(&bytes), 632_967_870, "the whole frame: a change here is a new protocol version");
}

#[test]
fn nothing_but_the_handshake_comes_before_it() {
    let operations = forged(1, 4, 1, &[], 0);
    let mut decoder = Decoder::new(PayloadCheck::AtDecode);
    let early = WireError::OutOfPlace { what: "an operation before the handshake" };
    assert_eq!(decoder.decode(&mut &operations[..]), Err(early));
    assert_eq!(decoder.decode(&mut &flat(&encode_hello(&hello()))[..]), Err(early), "an error is for good");
    let mut late = established();
    let again = late.decode(&mut &flat(&encode_hello(&hello()))[..]);
    assert_eq!(again, Err(WireError::OutOfPlace { what: "a second handshake" }));
}

#[test]
fn declared_lengths_are_checked_before_they_are_believed() {
    let oversized = |kind, fields_len: usize, payload_len: u32, decoder: &mut Decoder| {
        let version = u16::from(kind == 4);
        let mut header = forged(version, kind, u16::from(kind == 4), &vec![0; fields_len], payload_len);
        header.truncate(32);
        decoder.decode(&mut &header[..])
    };
    let new = || Decoder::new(PayloadCheck::AtDecode);
    assert!(matches!(oversized(1, 4065, 0, &mut new()), Err(WireError::TooLong { limit: 4096, .. })));
    assert!(matches!(oversized(1, 10, 1, &mut new()), Err(WireError::TooLong { limit: 0, .. })));
    assert!(matches!(oversized(4, (16 << 20) + 1, 0, &mut established()), Err(WireError::TooLong { .. })));
    assert!(matches!(oversized(4, 64, u32::MAX, &mut established()), Err(WireError::TooLong { .. })));
    assert_eq!(oversized(4, 64, (4 << 20) + (64 << 10), &mut established()), Ok(None));
}

#[test]
fn what_is_unknown_is_refused_by_name() {
    let version = established().decode(&mut &forged(2, 4, 1, &[0; 40], 0)[..]).unwrap_err();
    assert_eq!(version.to_string(), "frame version 2 is unknown here; version 1 was agreed on");
    let kind = established().decode(&mut &forged(1, 9, 1, &[0; 40], 0)[..]).unwrap_err();
    assert_eq!(kind, WireError::UnknownFrame { kind: 9 });
    let mut fields = [0; 40];
    fields[..2].copy_from_slice(&4242u16.to_le_bytes());
    let operation = established().decode(&mut &forged(1, 4, 1, &fields, 0)[..]).unwrap_err();
    assert_eq!(operation.to_string(), "operation 4242 is unknown here");
    assert_eq!(CloseReason::from(operation), CloseReason::UnknownOperation { kind: 4242 });
    let http = established().decode(&mut &b"GET / HTTP/1.1\r\nHost: example\r\n\r\n"[..]).unwrap_err();
    assert!(matches!(http, WireError::NotAFrame { .. }));
}

#[test]
fn a_later_hello_may_say_more() {
    let mut longer = flat(&encode_hello(&hello())).split_off(32);
    longer.extend([1, 2, 3]);
    let decoded = Decoder::new(PayloadCheck::AtDecode).decode(&mut &forged(0, 1, 0, &longer, 0)[..]);
    assert_eq!(decoded, Ok(Some(Frame::Hello(hello()))));
    assert_eq!(PROTOCOL.newest_common(VersionRange { min: 1, max: 9 }), Some(1));
}

#[test]
fn a_full_frame_says_so_and_keeps_what_it_has() {
    let (bytes, crcs) = data(vec![1; 700]);
    let request = |object| ClientRequest {
        id: RequestId::default(),
        acked_through: 0,
        trace: TraceId(0),
        pg: PgId { pool: PoolId(1), index: 0 },
        c: ConfVersion(1),
        epoch: Epoch(1),
        volume: VolumeId(1),
        generation: Generation(1),
        snap_context: SnapId(0),
        op: ClientOp::Write { object, offset: 0, data: bytes.clone(), crcs: crcs.clone() },
    };
    let object = ObjectId { pool: PoolId(1), volume: VolumeId(1), index: 0, snapshot: SnapId::HEAD };
    let message = Message::Request(request(object));
    let mut builder = FrameBuilder::new(1, 0);
    builder.push(&message).expect("the first fits");
    builder.push(&message).expect_err("4 MiB + 64 KiB is the limit");
    let bytes = flat(&builder.finish());
    let frame = established().decode(&mut &bytes[..]).expect("valid").expect("whole");
    let Frame::Operations { messages, .. } = frame else { panic!("operations were sent") };
    assert_eq!(messages, [message]);
    let Message::Request(ClientRequest { op: ClientOp::Write { data, .. }, .. }) = &messages[0] else { panic!() };
    assert_eq!(data.as_ptr().align_offset(4096), 0, "payload lies where an O_DIRECT write wants it");
}

#[test]
fn the_largest_message_of_a_primary_fits() {
    let entry = |blocks: usize| {
        let (data, crcs) = data(vec![5; blocks]);
        let object = ObjectId { pool: PoolId(1), volume: VolumeId(1), index: 0, snapshot: SnapId::HEAD };
        let entry = LogEntry {
            version: Version { c: ConfVersion(1), seq: 1 },
            prev: 0,
            epoch: Epoch(1),
            request: RequestId::default(),
            acked_through: 0,
            generation: Generation(1),
            snap_context: SnapId(0),
            op: EntryOp::Write { object, offset: 0, crcs },
        };
        Logged { entry, data }
    };
    // Just below the 64 KiB at which a message closes, and then the largest entry there is.
    let mut entries: Vec<Logged> = (0..15).map(|_| entry(1)).collect();
    entries.push(entry(1024));
    let body = PgMessage::Replicate { commit: 0, entries };
    let pg = PgId { pool: PoolId(1), index: 0 };
    let message = Message::Peer(PeerMessage::Pg { pg, c: ConfVersion(1), attempt: 1, body });
    let bytes = encode(std::slice::from_ref(&message));
    let decoded = established().decode(&mut &bytes[..]);
    assert!(decoded == Ok(Some(Frame::Operations { shard: 3, messages: vec![message] })));
}
