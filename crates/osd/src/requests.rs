//! The requests under way, for the log only: which trace is whose, and what took long.

use std::collections::BTreeMap;

use cairn_osd_core::{ConnId, Time};
use cairn_types::io::{ClientReply, ClientRequest};
use cairn_types::{PgId, TraceId};

use crate::figures::{Figures, Work};

/// A request that took this long is worth a line.
const SLOW_MS: u64 = 1000;

/// Requests that are followed; the core refuses before there are as many.
const MOST: usize = 1 << 16;

#[derive(Debug)]
struct Request {
    trace: TraceId,
    pg: PgId,
    since: Time,
    work: Work,
}

/// By connection and sequence; a client uses one session per connection.
#[derive(Default)]
pub(crate) struct Requests {
    under_way: BTreeMap<(ConnId, u64), Request>,
    figures: Option<Figures>,
}

impl Requests {
    pub(crate) fn counted(figures: Option<Figures>) -> Self {
        Self { figures, ..Self::default() }
    }

    pub(crate) fn figures(&self) -> Option<&Figures> {
        self.figures.as_ref()
    }

    pub(crate) fn len(&self) -> usize {
        self.under_way.len()
    }

    pub(crate) fn begin(&mut self, now: Time, conn: ConnId, request: &ClientRequest) {
        tracing::debug!(trace = %request.trace, pg = %request.pg, seq = request.id.seq, "request");
        if self.under_way.len() < MOST {
            let work = Work::of(&request.op);
            let followed = Request { trace: request.trace, pg: request.pg, since: now, work };
            self.under_way.insert((conn, request.id.seq), followed);
        }
    }

    pub(crate) fn end(&mut self, now: Time, conn: ConnId, reply: &ClientReply) {
        let Some(request) = self.under_way.remove(&(conn, reply.id.seq)) else { return };
        let Request { trace, pg, since, work } = request;
        let ms = now.ms_since(since);
        if let Some(figures) = &self.figures {
            figures.done(work, now.0.saturating_sub(since.0), reply.result.is_err());
        }
        if let Err(refusal) = &reply.result {
            tracing::debug!(%trace, %pg, ms, %refusal, "refused");
        } else if ms >= SLOW_MS {
            tracing::warn!(%trace, %pg, ms, "a slow request");
        } else {
            tracing::debug!(%trace, %pg, ms, "done");
        }
    }

    /// The connection is gone, and the replies with it.
    pub(crate) fn forget(&mut self, conn: ConnId) {
        let mut rest = self.under_way.split_off(&(conn, 0));
        self.under_way.append(&mut rest.split_off(&(ConnId(conn.0 + 1), 0)));
    }
}

#[cfg(test)]
mod tests {
    use cairn_types::io::{ClientOp, Refusal};
    use cairn_types::{ConfVersion, Epoch, Generation, ObjectId, PoolId, RequestId, SessionId, SnapId, VolumeId};

    use super::*;

    fn request(seq: u64) -> ClientRequest {
        let object = ObjectId { pool: PoolId(1), volume: VolumeId(1), index: 0, snapshot: SnapId::HEAD };
        ClientRequest {
            id: RequestId { session: SessionId(1), seq },
            acked_through: 0,
            trace: TraceId(seq),
            pg: PgId { pool: PoolId(1), index: 0 },
            c: ConfVersion(1),
            epoch: Epoch(1),
            volume: VolumeId(1),
            generation: Generation(1),
            snap_context: SnapId(0),
            op: ClientOp::Read { object, offset: 0, len: 4096 },
        }
    }

    #[test]
    fn nothing_is_followed_for_longer_than_it_lives() {
        let mut requests = Requests::default();
        for conn in 1..=3 {
            (1..=4).for_each(|seq| requests.begin(Time(0), ConnId(conn), &request(seq)));
        }
        requests.forget(ConnId(2));
        assert_eq!(requests.under_way.len(), 8);
        for conn in [1, 3] {
            for seq in 1..=4 {
                let reply = ClientReply { id: request(seq).id, result: Err(Refusal::Busy) };
                requests.end(Time(5_000_000_000), ConnId(conn), &reply);
            }
        }
        assert!(requests.under_way.is_empty());
    }
}
