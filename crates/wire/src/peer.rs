//! The operations between OSDs into fields and payload. The data of a log entry or of a run of blocks is payload;
//! its checksums stand in the fields. `peer_take` is the way back.

use bytes::{BufMut, Bytes, BytesMut};
use cairn_types::peer::{
    BackfillCursor, BlockSet, EntryOp, Heartbeat, HeartbeatReply, LogEntry, LogPoint, Logged, MAX_DIRTY_OBJECTS,
    MAX_ENTRIES, Missing, PeerMessage, PgMessage, Push, Run, RunContent, StartRecovery,
};
use cairn_types::{BLOCK_SIZE, ObjectId};

use crate::body::PutFields;
use crate::encode::Head;
use crate::scrub;

pub(crate) const HEARTBEAT: u16 = 32;
pub(crate) const HEARTBEAT_REPLY: u16 = 33;
pub(crate) const REPLICATE: u16 = 40;
pub(crate) const ACK: u16 = 41;
pub(crate) const FENCED: u16 = 42;
pub(crate) const QUERY_LOG: u16 = 43;
pub(crate) const LOG_REPORT: u16 = 44;
pub(crate) const FETCH_LOG: u16 = 45;
pub(crate) const LOG_ENTRIES: u16 = 46;
pub(crate) const ALIGN: u16 = 47;
pub(crate) const START_RECOVERY: u16 = 48;
pub(crate) const PUSH: u16 = 49;
pub(crate) const PUSH_ACK: u16 = 50;
pub(crate) const PULL: u16 = 51;
pub(crate) const PULL_REPLY: u16 = 52;
pub(crate) const SCRUB_ASK: u16 = 53;
pub(crate) const SCRUB_FOUND: u16 = 54;
pub(crate) const MEND: u16 = 55;
/// Operations about one PG: `c` is its configuration, `v` the primary's activation.
pub(crate) const FIRST_PG: u16 = REPLICATE;
pub(crate) const LAST_PG: u16 = MEND;

pub(crate) fn put_peer(message: &PeerMessage, out: &mut BytesMut, payload: &mut Vec<Bytes>) -> Head {
    match message {
        PeerMessage::Heartbeat(heartbeat) => {
            put_heartbeat(heartbeat, out);
            Head { kind: HEARTBEAT, c: 0, g: 0, v: 0 }
        }
        PeerMessage::HeartbeatReply(reply) => {
            put_heartbeat_reply(reply, out);
            Head { kind: HEARTBEAT_REPLY, c: 0, g: 0, v: 0 }
        }
        PeerMessage::Pg { pg, c, attempt, body } => {
            out.put_pg(*pg);
            Head { kind: put_pg_message(body, out, payload), c: c.0, g: 0, v: *attempt }
        }
    }
}

fn put_heartbeat(heartbeat: &Heartbeat, out: &mut BytesMut) {
    out.put_u64_le(heartbeat.sent_at);
    out.put_u64_le(heartbeat.epoch.0);
    out.put_u8(u8::from(heartbeat.want_lease));
    out.put_u32_le(heartbeat.oldest_io_ms);
    out.put_u8(u8::from(heartbeat.full));
    out.put_u32_le(heartbeat.commits.len() as u32);
    for commit in &heartbeat.commits {
        out.put_pg(commit.pg);
        out.put_u64_le(commit.c.0);
        out.put_u64_le(commit.attempt);
        out.put_u64_le(commit.commit);
    }
}

fn put_heartbeat_reply(reply: &HeartbeatReply, out: &mut BytesMut) {
    out.put_u64_le(reply.echo);
    out.put_u64_le(reply.echo_incarnation.0);
    out.put_u64_le(reply.epoch.0);
    out.put_u8(u8::from(reply.lease));
    out.put_u32_le(reply.oldest_io_ms);
    out.put_u8(u8::from(reply.full));
}

fn put_pg_message(message: &PgMessage, out: &mut BytesMut, payload: &mut Vec<Bytes>) -> u16 {
    match message {
        PgMessage::Replicate { commit, entries } => {
            out.put_u64_le(*commit);
            put_entries(entries, out, payload);
            REPLICATE
        }
        PgMessage::Ack { persisted, gap } => {
            put_point(*persisted, out);
            out.put_u8(u8::from(*gap));
            ACK
        }
        PgMessage::Fenced { seq, epoch } => {
            out.put_u64_le(*seq);
            out.put_u64_le(epoch.0);
            FENCED
        }
        PgMessage::QueryLog => QUERY_LOG,
        PgMessage::LogReport(report) => {
            put_point(report.commit, out);
            put_points(&report.tail, out);
            out.put_u8(u8::from(report.usable));
            out.put_u8(u8::from(report.missing));
            LOG_REPORT
        }
        PgMessage::FetchLog { after, through } => {
            out.put_u64_le(*after);
            out.put_u64_le(*through);
            FETCH_LOG
        }
        PgMessage::LogEntries { entries } => {
            put_entries(entries, out, payload);
            LOG_ENTRIES
        }
        PgMessage::Align { at } => {
            put_point(*at, out);
            ALIGN
        }
        PgMessage::StartRecovery(start) => {
            put_start_recovery(start, out);
            START_RECOVERY
        }
        PgMessage::Push(push) => {
            put_push(push, out, payload);
            PUSH
        }
        PgMessage::PushAck { id } => {
            out.put_u64_le(*id);
            PUSH_ACK
        }
        PgMessage::Pull { id, object, offset, len } => {
            out.put_u64_le(*id);
            out.put_object(*object);
            out.put_u32_le(*offset);
            out.put_u32_le(*len);
            PULL
        }
        PgMessage::PullReply { id, runs } => {
            out.put_u64_le(*id);
            out.put_u8(u8::from(runs.is_some()));
            put_runs(runs.as_deref().unwrap_or_default(), out, payload);
            PULL_REPLY
        }
        PgMessage::ScrubAsk(ask) => {
            scrub::put_ask(ask, out);
            SCRUB_ASK
        }
        PgMessage::ScrubFound(found) => {
            scrub::put_found(found, out);
            SCRUB_FOUND
        }
        PgMessage::Mend(mend) => {
            scrub::put_mend(mend, out);
            MEND
        }
    }
}

fn put_point(point: LogPoint, out: &mut BytesMut) {
    out.put_u64_le(point.version.c.0);
    out.put_u64_le(point.version.seq);
    out.put_u64_le(point.hash);
}

fn put_points(points: &[LogPoint], out: &mut BytesMut) {
    out.put_u32_le(points.len() as u32);
    points.iter().for_each(|point| put_point(*point, out));
}

fn put_entries(entries: &[Logged], out: &mut BytesMut, payload: &mut Vec<Bytes>) {
    assert!(entries.len() <= MAX_ENTRIES, "no message has more than {MAX_ENTRIES} entries");
    out.put_u32_le(entries.len() as u32);
    for Logged { entry, data } in entries {
        put_entry(entry, out);
        let blocks = if let EntryOp::Write { crcs, .. } = &entry.op { crcs.len() } else { 0 };
        assert_eq!(data.len(), blocks * BLOCK_SIZE as usize, "an entry has one checksum for each block");
        payload.push(data.clone());
    }
}

fn put_entry(entry: &LogEntry, out: &mut BytesMut) {
    out.put_u64_le(entry.version.c.0);
    out.put_u64_le(entry.version.seq);
    out.put_u64_le(entry.prev);
    out.put_u64_le(entry.epoch.0);
    out.put_u128_le(entry.request.session.0);
    out.put_u64_le(entry.request.seq);
    out.put_u64_le(entry.acked_through);
    out.put_u64_le(entry.generation.0);
    out.put_u64_le(entry.snap_context.0);
    match &entry.op {
        EntryOp::Write { object, offset, crcs } => {
            out.put_u8(1);
            out.put_object(*object);
            out.put_u32_le(*offset);
            out.put_u32_le(crcs.len() as u32);
            out.put_u32s(crcs);
        }
        EntryOp::Zero { object, offset, len, unmap } => {
            out.put_u8(if *unmap { 3 } else { 2 });
            out.put_object(*object);
            out.put_u32_le(*offset);
            out.put_u32_le(*len);
        }
        EntryOp::Remove { object } => {
            out.put_u8(4);
            out.put_object(*object);
        }
    }
}

fn put_runs(runs: &[Run], out: &mut BytesMut, payload: &mut Vec<Bytes>) {
    out.put_u32_le(runs.len() as u32);
    for run in runs {
        out.put_u32_le(run.offset);
        out.put_u32_le(run.len);
        match &run.content {
            RunContent::Absent => out.put_u8(0),
            RunContent::Zero => out.put_u8(1),
            RunContent::Data { data, crcs } => {
                assert_eq!(data.len(), run.len as usize, "a run has as much data as it is long");
                assert_eq!(crcs.len() * BLOCK_SIZE as usize, data.len(), "a run has one checksum for each block");
                out.put_u8(2);
                out.put_u32s(crcs);
                payload.push(data.clone());
            }
        }
    }
}

fn put_push(push: &Push, out: &mut BytesMut, payload: &mut Vec<Bytes>) {
    out.put_u64_le(push.id);
    out.put_object(push.object);
    put_runs(&push.runs, out, payload);
    match push.cursor {
        None => out.put_u8(0),
        Some(BackfillCursor::Through(key)) => {
            out.put_u8(1);
            out.put_object(key.object());
        }
        Some(BackfillCursor::End) => out.put_u8(2),
    }
}

fn put_start_recovery(start: &StartRecovery, out: &mut BytesMut) {
    put_point(start.rewind_to, out);
    put_point(start.base, out);
    match &start.missing {
        Missing::Everything => out.put_u8(0),
        Missing::Blocks(objects) => {
            out.put_u8(1);
            put_dirty(objects, out);
        }
    }
    out.put_u32_le(start.dups.len() as u32);
    for dups in &start.dups {
        out.put_u128_le(dups.session.0);
        out.put_u64_le(dups.volume.0);
        out.put_u64_le(dups.generation.0);
        out.put_u64_le(dups.acked_through);
        out.put_u32_le(dups.executed.len() as u32);
        for (request, position) in &dups.executed {
            out.put_u64_le(*request);
            out.put_u64_le(*position);
        }
    }
    out.put_u32_le(start.absent.len() as u32);
    for absent in &start.absent {
        out.put_u32_le(absent.osd.0);
        put_points(&absent.anchor, out);
        put_dirty(&absent.dirty, out);
    }
}

fn put_dirty(objects: &[(ObjectId, BlockSet)], out: &mut BytesMut) {
    assert!(objects.len() <= MAX_DIRTY_OBJECTS, "no dirty map names more than {MAX_DIRTY_OBJECTS} objects");
    out.put_u32_le(objects.len() as u32);
    for (object, blocks) in objects {
        out.put_object(*object);
        out.put_u32_le(blocks.words().len() as u32);
        blocks.words().iter().for_each(|word| out.put_u64_le(*word));
    }
}
