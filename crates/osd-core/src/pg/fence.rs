//! Whom a PG lets in: a request or an entry passes only when its generation is in the volume's valid set at this
//! OSD's epoch (I8). One that is not known yet waits for the map; one that left the set is refused, by the primary
//! and by every replica.
//!
//! A replica's refusal leaves the primary with an entry that can never be committed. Once the primary's own map
//! fences it, the primary stops below it, asks for a new configuration, and cuts its log there.

use cairn_types::io::{ClientOp, ClientRequest, Refusal};
use cairn_types::map::{ClusterMap, SnapPhase};
use cairn_types::peer::{EntryOp, LogEntry, Logged};
use cairn_types::{Epoch, OsdId, SnapId};

use super::log::Kept;
use super::record;
use super::{Ctx, Pg};
use crate::output::Output;
use crate::planted::{Bug, planted};

/// Whether a request's generation is valid at this map.
pub(super) fn admit(map: &ClusterMap, request: &ClientRequest) -> Result<(), Refusal> {
    if planted(Bug::NoFence) {
        return Ok(());
    }
    let Some(fence) = map.volumes.get(&request.volume) else { return Err(Refusal::Fenced) };
    if fence.purging || fence.pool != request.pg.pool {
        return Err(Refusal::Fenced);
    }
    // A snapshot never changes: whoever reads it holds nothing.
    let view = request.op.object().snapshot;
    let is_known = |snapshot| fence.snapshots.get(&snapshot) == Some(&SnapPhase::Ready);
    if let ClientOp::Status { since, .. } = request.op
        && since != SnapId(0)
        && !is_known(since)
    {
        return Err(Refusal::NoSnapshot);
    }
    // What has content is nobody's secret: whoever asks need not hold the volume.
    if matches!(request.op, ClientOp::Status { .. }) && view == SnapId::HEAD {
        return Ok(());
    }
    if !request.op.is_write() && view != SnapId::HEAD {
        return if is_known(view) { Ok(()) } else { Err(Refusal::NoSnapshot) };
    }
    if !fence.generations.contains(&request.generation) {
        return Err(Refusal::Fenced);
    }
    if !request.op.is_write() {
        return Ok(());
    }
    if fence.read_only.contains(&request.generation) {
        return Err(Refusal::ReadOnly);
    }
    // Whoever writes with an older context has not heard of a snapshot that is complete: it would change it (I15).
    if request.snap_context < fence.oldest_context() {
        return Err(Refusal::StaleSnapContext);
    }
    Ok(())
}

/// Whether an entry's generation left the valid set at this map. What a primary does of its own accord has none.
pub(super) fn is_fenced(map: &ClusterMap, entry: &LogEntry) -> bool {
    entry.generation.0 != 0
        && !planted(Bug::NoFence)
        && !map.volumes.get(&entry.volume()).is_some_and(|fence| fence.generations.contains(&entry.generation))
}

impl Pg {
    /// A newer map may have changed the valid sets.
    pub(super) fn follow_fences(&mut self, ctx: &mut Ctx<'_>) {
        for session in self.dups.drop_fenced(ctx.map) {
            self.dropped.push(record::session(session, None));
        }
        let commit = self.log.commit();
        let fenced = self.log.after(commit).find(|kept| is_fenced(ctx.map, &kept.entry));
        let fenced = fenced.map(|kept| kept.entry.version.seq);
        if let (Some(primary), Some(seq)) = (&mut self.primary, fenced)
            && primary.is_active()
            && primary.knows_commit
        {
            primary.cut_above = Some(primary.cut_above.map_or(seq - 1, |at| at.min(seq - 1)));
        }
    }

    /// A member refuses an entry for good.
    pub(super) fn handle_fenced(&mut self, ctx: &mut Ctx<'_>, from: OsdId, attempt: u64, seq: u64, epoch: Epoch) {
        let known = self.primary.as_ref().and_then(|primary| primary.members.get(&from));
        if known.is_none_or(|member| member.attempt != attempt || !member.is_streaming()) || seq <= self.log.commit() {
            return;
        }
        if epoch > ctx.map.epoch {
            ctx.out.push(Output::NeedMap { epoch });
        } else if !self.primary.as_ref().is_some_and(|primary| primary.is_active()) {
            // Inherited entries that this map fences: choose the log again, without them.
            self.activate_again(ctx);
        }
    }

    /// Cuts the log above `floor` before its first fenced entry. Whoever waits for a cut entry of a valid
    /// generation goes back into the queue.
    pub(super) fn cut_fenced(&mut self, ctx: &mut Ctx<'_>, floor: u64) {
        let fenced = self.log.after(floor).find(|kept| is_fenced(ctx.map, &kept.entry));
        if let Some(seq) = fenced.map(|kept| kept.entry.version.seq) {
            self.cut_back(ctx, seq - 1);
        }
    }

    /// Cuts this primary's own log, with whoever waits for what is cut.
    pub(super) fn cut_back(&mut self, ctx: &mut Ctx<'_>, to: u64) {
        let cut = self.rewind(ctx, to);
        let Some(primary) = &mut self.primary else { return };
        primary.join = primary.join.carry_over();
        primary.release_bytes_above(ctx.out, to);
        let mut waiting = primary.waiting.split_off(&(to + 1));
        for kept in cut {
            for (conn, id) in waiting.remove(&kept.entry.version.seq).unwrap_or_default() {
                match as_request(&kept, self.id, self.config.c, ctx.map.epoch) {
                    Some(request) if !is_fenced(ctx.map, &kept.entry) => primary.queue.push_back((conn, request)),
                    _ => ctx.out.reply(conn, id, Err(Refusal::Fenced)),
                }
            }
        }
    }
}

/// The request that an entry was made from.
fn as_request(kept: &Kept, pg: cairn_types::PgId, c: cairn_types::ConfVersion, epoch: Epoch) -> Option<ClientRequest> {
    let Logged { entry, data } = kept.logged()?;
    let volume = entry.volume();
    let op = match entry.op {
        // What the primary did of its own accord nobody asked for.
        _ if entry.generation.0 == 0 => return None,
        EntryOp::Write { object, offset, crcs } => {
            ClientOp::Write { object: object.at(SnapId::HEAD), offset, data, crcs }
        }
        EntryOp::Zero { object, offset, len, unmap } => {
            ClientOp::Zero { object: object.at(SnapId::HEAD), offset, len, unmap }
        }
        EntryOp::Remove { .. } => return None,
    };
    Some(ClientRequest {
        id: entry.request,
        acked_through: entry.acked_through,
        trace: cairn_types::TraceId(0),
        pg,
        c,
        epoch,
        volume,
        generation: entry.generation,
        snap_context: entry.snap_context,
        op,
    })
}
