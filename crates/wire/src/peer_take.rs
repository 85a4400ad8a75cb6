//! The operations between OSDs out of fields and payload: the way back of `peer`.

use bytes::{Buf, Bytes};
use cairn_types::peer::{
    AbsentMember, BackfillCursor, BlockSet, EntryOp, Heartbeat, HeartbeatReply, LogEntry, LogPoint, LogReport, Logged,
    MAX_DIRTY_OBJECTS, MAX_ENTRIES, Missing, ObjectKey, PeerMessage, PgCommit, PgMessage, Push, Run, RunContent,
    SessionDups, StartRecovery,
};
use cairn_types::{
    BLOCK_SIZE, ConfVersion, Epoch, Generation, Incarnation, ObjectId, OsdId, RequestId, SessionId, SnapId, Version,
    VolumeId,
};

use crate::body::{Fields, check_blocks};
use crate::encode::Head;
use crate::peer::{
    ACK, ALIGN, FENCED, FETCH_LOG, HEARTBEAT, HEARTBEAT_REPLY, LOG_ENTRIES, LOG_REPORT, MEND, PULL, PULL_REPLY, PUSH,
    PUSH_ACK, QUERY_LOG, REPLICATE, SCRUB_ASK, SCRUB_FOUND, START_RECOVERY,
};
use crate::{PayloadCheck, WireError, scrub};

/// Bytes of the smallest log entry: a removal.
const MIN_ENTRY: usize = 109;

pub(crate) fn take_peer(
    head: Head,
    body: &[u8],
    payload: Bytes,
    check: PayloadCheck,
) -> Result<PeerMessage, WireError> {
    let mut take = Take { fields: Fields::new(body, "peer message"), payload, check };
    let message = match head.kind {
        HEARTBEAT | HEARTBEAT_REPLY if (head.c, head.g, head.v) != (0, 0, 0) => return Err(take.fields.malformed()),
        HEARTBEAT => PeerMessage::Heartbeat(take.heartbeat()?),
        HEARTBEAT_REPLY => PeerMessage::HeartbeatReply(take.heartbeat_reply()?),
        _ if head.g != 0 => return Err(take.fields.malformed()),
        kind => {
            let pg = take.fields.pg()?;
            PeerMessage::Pg { pg, c: ConfVersion(head.c), attempt: head.v, body: take.pg_message(kind)? }
        }
    };
    take.end()?;
    Ok(message)
}

/// What is left to take of one message.
struct Take<'a> {
    fields: Fields<'a>,
    payload: Bytes,
    check: PayloadCheck,
}

impl Take<'_> {
    fn end(self) -> Result<(), WireError> {
        if self.payload.has_remaining() {
            return Err(self.fields.malformed());
        }
        self.fields.end()
    }

    /// A list whose elements take at least `min` bytes each.
    fn list<T>(
        &mut self,
        min: usize,
        limit: usize,
        element: impl Fn(&mut Self) -> Result<T, WireError>,
    ) -> Result<Vec<T>, WireError> {
        let len = self.fields.count(min)?;
        if len > limit {
            return Err(WireError::TooLong { what: "list", len, limit });
        }
        let mut list = Vec::with_capacity(len);
        for _ in 0..len {
            list.push(element(self)?);
        }
        Ok(list)
    }

    fn heartbeat(&mut self) -> Result<Heartbeat, WireError> {
        Ok(Heartbeat {
            sent_at: self.fields.u64()?,
            epoch: Epoch(self.fields.u64()?),
            want_lease: self.fields.bool()?,
            oldest_io_ms: self.fields.u32()?,
            full: self.fields.bool()?,
            commits: self.list(32, usize::MAX, Self::commit)?,
        })
    }

    fn commit(&mut self) -> Result<PgCommit, WireError> {
        let fields = &mut self.fields;
        Ok(PgCommit { pg: fields.pg()?, c: ConfVersion(fields.u64()?), attempt: fields.u64()?, commit: fields.u64()? })
    }

    fn heartbeat_reply(&mut self) -> Result<HeartbeatReply, WireError> {
        let fields = &mut self.fields;
        Ok(HeartbeatReply {
            echo: fields.u64()?,
            echo_incarnation: Incarnation(fields.u64()?),
            epoch: Epoch(fields.u64()?),
            lease: fields.bool()?,
            oldest_io_ms: fields.u32()?,
            full: fields.bool()?,
        })
    }

    fn pg_message(&mut self, kind: u16) -> Result<PgMessage, WireError> {
        Ok(match kind {
            REPLICATE => PgMessage::Replicate { commit: self.fields.u64()?, entries: self.entries()? },
            ACK => PgMessage::Ack { persisted: self.point()?, gap: self.fields.bool()? },
            FENCED => PgMessage::Fenced { seq: self.fields.u64()?, epoch: Epoch(self.fields.u64()?) },
            QUERY_LOG => PgMessage::QueryLog,
            LOG_REPORT => PgMessage::LogReport(LogReport {
                commit: self.point()?,
                tail: self.points()?,
                usable: self.fields.bool()?,
                missing: self.fields.bool()?,
            }),
            FETCH_LOG => PgMessage::FetchLog { after: self.fields.u64()?, through: self.fields.u64()? },
            LOG_ENTRIES => PgMessage::LogEntries { entries: self.entries()? },
            ALIGN => PgMessage::Align { at: self.point()? },
            START_RECOVERY => PgMessage::StartRecovery(Box::new(self.start_recovery()?)),
            PUSH => PgMessage::Push(self.push()?),
            PUSH_ACK => PgMessage::PushAck { id: self.fields.u64()? },
            PULL => PgMessage::Pull {
                id: self.fields.u64()?,
                object: self.fields.object()?,
                offset: self.fields.u32()?,
                len: self.fields.u32()?,
            },
            PULL_REPLY => PgMessage::PullReply { id: self.fields.u64()?, runs: self.pulled()? },
            SCRUB_ASK => PgMessage::ScrubAsk(scrub::take_ask(&mut self.fields)?),
            SCRUB_FOUND => PgMessage::ScrubFound(scrub::take_found(&mut self.fields)?),
            MEND => PgMessage::Mend(scrub::take_mend(&mut self.fields)?),
            kind => return Err(WireError::UnknownOperation { kind }),
        })
    }

    fn point(&mut self) -> Result<LogPoint, WireError> {
        Ok(LogPoint { version: self.version()?, hash: self.fields.u64()? })
    }

    fn points(&mut self) -> Result<Vec<LogPoint>, WireError> {
        self.list(24, usize::MAX, Self::point)
    }

    fn version(&mut self) -> Result<Version, WireError> {
        Ok(Version { c: ConfVersion(self.fields.u64()?), seq: self.fields.u64()? })
    }

    fn entries(&mut self) -> Result<Vec<Logged>, WireError> {
        self.list(MIN_ENTRY, MAX_ENTRIES, Self::logged)
    }

    fn logged(&mut self) -> Result<Logged, WireError> {
        let entry = LogEntry {
            version: self.version()?,
            prev: self.fields.u64()?,
            epoch: Epoch(self.fields.u64()?),
            request: RequestId { session: SessionId(self.fields.u128()?), seq: self.fields.u64()? },
            acked_through: self.fields.u64()?,
            generation: Generation(self.fields.u64()?),
            snap_context: SnapId(self.fields.u64()?),
            op: self.entry_op()?,
        };
        let data = match &entry.op {
            EntryOp::Write { crcs, .. } => self.data(crcs)?,
            EntryOp::Zero { .. } | EntryOp::Remove { .. } => Bytes::new(),
        };
        Ok(Logged { entry, data })
    }

    fn entry_op(&mut self) -> Result<EntryOp, WireError> {
        let fields = &mut self.fields;
        let tag = fields.u8()?;
        let object = fields.object()?;
        Ok(match tag {
            1 => {
                let offset = fields.u32()?;
                let blocks = fields.count(4)?;
                EntryOp::Write { object, offset, crcs: fields.u32s(blocks)? }
            }
            2 | 3 => EntryOp::Zero { object, offset: fields.u32()?, len: fields.u32()?, unmap: tag == 3 },
            4 => EntryOp::Remove { object },
            _ => return Err(fields.malformed()),
        })
    }

    /// The next piece of payload, one block for each checksum.
    fn data(&mut self, crcs: &[u32]) -> Result<Bytes, WireError> {
        let len = crcs.len() * BLOCK_SIZE as usize;
        if len > self.payload.len() {
            return Err(self.fields.malformed());
        }
        let data = self.payload.split_to(len);
        if self.check == PayloadCheck::AtDecode {
            check_blocks(&data, crcs)?;
        }
        Ok(data)
    }

    fn run(&mut self) -> Result<Run, WireError> {
        let (offset, len) = (self.fields.u32()?, self.fields.u32()?);
        let content = match self.fields.u8()? {
            0 => RunContent::Absent,
            1 => RunContent::Zero,
            2 if len.is_multiple_of(BLOCK_SIZE) => {
                let crcs = self.fields.u32s((len / BLOCK_SIZE) as usize)?;
                RunContent::Data { data: self.data(&crcs)?, crcs }
            }
            _ => return Err(self.fields.malformed()),
        };
        Ok(Run { offset, len, content })
    }

    fn runs(&mut self) -> Result<Vec<Run>, WireError> {
        self.list(9, usize::MAX, Self::run)
    }

    fn pulled(&mut self) -> Result<Option<Vec<Run>>, WireError> {
        let found = self.fields.bool()?;
        let runs = self.runs()?;
        if found || runs.is_empty() { Ok(found.then_some(runs)) } else { Err(self.fields.malformed()) }
    }

    fn push(&mut self) -> Result<Push, WireError> {
        Ok(Push {
            id: self.fields.u64()?,
            object: self.fields.object()?,
            runs: self.runs()?,
            cursor: match self.fields.u8()? {
                0 => None,
                1 => Some(BackfillCursor::Through(ObjectKey::new(self.fields.object()?))),
                2 => Some(BackfillCursor::End),
                _ => return Err(self.fields.malformed()),
            },
        })
    }

    fn start_recovery(&mut self) -> Result<StartRecovery, WireError> {
        Ok(StartRecovery {
            rewind_to: self.point()?,
            base: self.point()?,
            missing: match self.fields.bool()? {
                false => Missing::Everything,
                true => Missing::Blocks(self.dirty()?),
            },
            dups: self.list(44, usize::MAX, Self::session_dups)?,
            absent: self.list(12, usize::MAX, Self::absent)?,
        })
    }

    fn dirty(&mut self) -> Result<Vec<(ObjectId, BlockSet)>, WireError> {
        self.list(32, MAX_DIRTY_OBJECTS, |take| {
            let object = take.fields.object()?;
            let words = take.list(8, usize::MAX, |take| take.fields.u64())?;
            Ok((object, BlockSet::from_words(words)))
        })
    }

    fn session_dups(&mut self) -> Result<SessionDups, WireError> {
        Ok(SessionDups {
            session: SessionId(self.fields.u128()?),
            volume: VolumeId(self.fields.u64()?),
            generation: Generation(self.fields.u64()?),
            acked_through: self.fields.u64()?,
            executed: self.list(16, usize::MAX, |take| Ok((take.fields.u64()?, take.fields.u64()?)))?,
        })
    }

    fn absent(&mut self) -> Result<AbsentMember, WireError> {
        Ok(AbsentMember { osd: OsdId(self.fields.u32()?), anchor: self.points()?, dirty: self.dirty()? })
    }
}
