//! What the leader remembers of the OSDs' reports, and what of it is worth a command. Reports come all the time; the
//! replicated state changes only when something did that others depend on: a new life, a newer acknowledged epoch (the
//! fences wait for it), a disk that began or ceased to hang, space that moved noticeably.

use std::collections::BTreeMap;
use std::time::Duration;

use cairn_proto::meta::ReportOsdRequest;
use tokio::time::Instant;

/// A disk operation older than this is worth telling.
const SLOW_IO_MS: u64 = 1000;
/// Used space that moved by this part of the capacity is told at once, by any less after [`DRIFT`].
const NOTICEABLE_PART: u64 = 256;
const DRIFT: Duration = Duration::from_secs(10);

/// What the map says of the OSD that reports.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts {
    pub(crate) up: bool,
    pub(crate) capacity: u64,
}

struct Known {
    heard: Instant,
    incarnation: u64,
    latest: ReportOsdRequest,
    /// What was last proposed, and when.
    told: Option<(ReportOsdRequest, Instant)>,
    dirty: bool,
}

/// The reports since this member leads.
#[derive(Default)]
pub(crate) struct Liveness {
    since: Option<Instant>,
    osds: BTreeMap<u32, Known>,
}

impl Liveness {
    /// This member begins to lead: nothing is known, and nobody is late yet.
    pub(crate) fn begin(&mut self, now: Instant) {
        *self = Self { since: Some(now), osds: BTreeMap::new() };
    }

    /// Takes in a report of a living incarnation. `true`: something is to be told.
    pub(crate) fn hear(&mut self, report: ReportOsdRequest, facts: Facts, now: Instant) -> bool {
        let id = report.id;
        let known = self.osds.entry(id).or_insert_with(|| Known {
            heard: now,
            incarnation: report.incarnation,
            latest: report,
            told: None,
            dirty: false,
        });
        if report.incarnation < known.incarnation {
            return false;
        }
        known.heard = now;
        known.incarnation = report.incarnation;
        known.latest = report;
        known.dirty |=
            !facts.up || known.told.as_ref().is_none_or(|told| is_news(&told.0, told.1, &report, facts, now));
        known.dirty
    }

    /// What is to be told, once.
    pub(crate) fn take_news(&mut self, now: Instant) -> Vec<ReportOsdRequest> {
        let mut news = Vec::new();
        for known in self.osds.values_mut().filter(|known| known.dirty) {
            known.dirty = false;
            known.told = Some((known.latest, now));
            news.push(known.latest);
        }
        news
    }

    /// The command that told them failed: tell again.
    pub(crate) fn untold(&mut self, reports: &[ReportOsdRequest]) {
        for report in reports {
            if let Some(known) = self.osds.get_mut(&report.id) {
                known.told = None;
                known.dirty = true;
            }
        }
    }

    /// Whether an OSD that should be reporting has not for this long.
    pub(crate) fn is_silent(&self, id: u32, incarnation: u64, limit: Duration, now: Instant) -> bool {
        let Some(since) = self.since else { return false };
        let heard = self.osds.get(&id).filter(|known| known.incarnation >= incarnation).map_or(since, |k| k.heard);
        now.saturating_duration_since(heard.max(since)) >= limit
    }
}

fn is_news(told: &ReportOsdRequest, told_at: Instant, report: &ReportOsdRequest, facts: Facts, now: Instant) -> bool {
    let moved = told.used.abs_diff(report.used);
    told.incarnation != report.incarnation
        || report.acked_epoch > told.acked_epoch
        || (told.oldest_io_ms >= SLOW_IO_MS) != (report.oldest_io_ms >= SLOW_IO_MS)
        || moved > facts.capacity / NOTICEABLE_PART
        || (moved > 0 && now.saturating_duration_since(told_at) >= DRIFT)
}

#[cfg(test)]
mod tests {
    use super::*;

    const UP: Facts = Facts { up: true, capacity: 1 << 30 };

    fn report(acked_epoch: u64) -> ReportOsdRequest {
        ReportOsdRequest { id: 4, incarnation: 2, acked_epoch, used: 100, oldest_io_ms: 3 }
    }

    #[test]
    fn only_news_is_told() {
        let (mut liveness, start) = (Liveness::default(), Instant::now());
        liveness.begin(start);
        assert!(liveness.hear(report(7), UP, start), "the first sign of life");
        assert_eq!(liveness.take_news(start), [report(7)]);
        let mut now = start;
        for _ in 0..100 {
            now += Duration::from_millis(500);
            assert!(!liveness.hear(ReportOsdRequest { oldest_io_ms: 9, ..report(7) }, UP, now));
        }
        assert!(liveness.take_news(now).is_empty(), "an idle OSD costs no command");
        assert!(liveness.hear(report(8), UP, now), "a newer epoch");
        assert_eq!(liveness.take_news(now).len(), 1);
        assert!(liveness.hear(ReportOsdRequest { oldest_io_ms: 5000, ..report(8) }, UP, now), "a hanging disk");
        liveness.take_news(now);
        assert!(liveness.hear(report(8), Facts { up: false, ..UP }, now), "the map thinks that it is down");
    }

    #[test]
    fn space_is_told_when_it_moved_much_or_long_ago() {
        let (mut liveness, start) = (Liveness::default(), Instant::now());
        liveness.begin(start);
        liveness.hear(report(7), UP, start);
        liveness.take_news(start);
        let used = |used| ReportOsdRequest { used, ..report(7) };
        assert!(!liveness.hear(used(4096), UP, start));
        assert!(liveness.hear(used(16 << 20), UP, start));
        liveness.take_news(start);
        assert!(liveness.hear(used(17 << 20), UP, start + DRIFT));
    }

    #[test]
    fn silence_counts_from_the_last_report_or_the_beginning_of_leadership() {
        let (mut liveness, start) = (Liveness::default(), Instant::now());
        let limit = Duration::from_secs(5);
        assert!(!liveness.is_silent(4, 2, limit, start + limit), "who does not lead knows nothing");
        liveness.begin(start);
        assert!(!liveness.is_silent(4, 2, limit, start + limit / 2));
        assert!(liveness.is_silent(4, 2, limit, start + limit), "never heard of");
        liveness.hear(report(7), UP, start + limit);
        assert!(!liveness.is_silent(4, 2, limit, start + limit));
        assert!(liveness.is_silent(4, 2, limit, start + limit * 2));
    }
}
