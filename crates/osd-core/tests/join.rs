//! A primary that joins the layers of a snapshot that goes, by hand: what it takes for the answer it asked for. The window is
//! too short for chance to meet it often.

mod maps;

use std::collections::VecDeque;
use std::sync::Arc;

use cairn_osd_core::{Config, ListToken, OsdCore, Output, Time};
use cairn_types::map::{ClusterMap, PgConfig, SnapPhase, VolumeFence};
use cairn_types::{ConfVersion, Epoch, Generation, Incarnation, OsdId, PgId, PoolId, SnapId, VolumeId};

const PG: PgId = PgId { pool: PoolId(1), index: 0 };
const ME: OsdId = OsdId(1);
const VOLUME: VolumeId = VolumeId(1);
const GOING: SnapId = SnapId(5);

/// One OSD, one group of one copy, one volume whose only snapshot goes.
fn map() -> Arc<ClusterMap> {
    let pool = maps::pool(1, 1, 1);
    let members = vec![ME];
    let config = PgConfig {
        c: ConfVersion(1),
        interval: ConfVersion(1),
        primary: Some(ME),
        isr: members.clone(),
        acting: members.clone(),
        up: members,
        ..PgConfig::default()
    };
    let fence = VolumeFence {
        pool: PoolId(1),
        generations: [Generation(1)].into(),
        snapshots: [(GOING, SnapPhase::Going)].into(),
        ..VolumeFence::default()
    };
    Arc::new(ClusterMap {
        epoch: Epoch(1),
        pools: [(pool.id, pool)].into(),
        osds: [(ME, maps::osd(ME))].into(),
        pgs: [(PG, config)].into(),
        volumes: [(VOLUME, fence)].into(),
        ..ClusterMap::default()
    })
}

struct Primary {
    core: OsdCore,
    now: Time,
    lists: VecDeque<ListToken>,
    reports: usize,
}

impl Primary {
    /// Serves, and waits for the first answer of its walk.
    fn new() -> Self {
        let core = OsdCore::new(Config::new(ME, Incarnation(1), Epoch(1)), 1, Time(0));
        let mut primary = Self { core, now: Time(0), lists: VecDeque::new(), reports: 0 };
        primary.core.handle_map(primary.now, map());
        primary.settle();
        while primary.lists.is_empty() {
            assert!(primary.now < Time(0).plus_ms(60_000), "no walk has begun in a minute");
            primary.tick();
        }
        primary
    }

    /// Until it next looks at its clock.
    fn tick(&mut self) {
        let next = self.core.poll_timeout().expect("a group has a clock");
        self.now = self.now.max(next);
        self.core.handle_timeout(self.now);
        self.settle();
    }

    fn settle(&mut self) {
        while let Some(output) = self.core.poll_output() {
            match output {
                Output::Persist { token, .. } | Output::PersistEpoch { token, .. } => {
                    self.core.handle_persisted(self.now, token);
                }
                Output::List { token, .. } => self.lists.push_back(token),
                Output::ReportPurged { .. } => self.reports += 1,
                _ => {}
            }
        }
        self.core.invariants();
    }

    fn full(&mut self, full: bool) {
        self.core.handle_space(self.now, full);
        self.tick();
    }

    /// Answers the oldest question of a walk: there is nothing.
    fn list(&mut self) {
        let token = self.lists.pop_front().expect("a walk asks");
        self.core.handle_list(self.now, token, Vec::new());
        self.settle();
    }
}

#[test]
fn the_answer_to_an_earlier_walk_is_not_taken_for_this_ones() {
    let mut primary = Primary::new();
    // A full disk ends the walk; with room there is another.
    primary.full(true);
    primary.full(false);
    assert_eq!((primary.lists.len(), primary.reports), (2, 0));
    // What the first one was to find is not what the second one asked for.
    primary.list();
    assert_eq!(primary.reports, 0, "nothing is known of the layers yet");
    primary.list();
    assert_eq!(primary.reports, 1);
}
