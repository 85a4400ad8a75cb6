//! A metadata service of one member without Raft: applies commands, and checks after each what must always hold.

#![allow(dead_code, reason = "each test binary uses a part of it")]

pub(crate) mod primaries;

use std::collections::BTreeMap;

use bytes::Bytes;
use cairn_meta_core::{Applied, Event, Machine, MemoryState};
use cairn_proto::convert::apply_update;
use cairn_proto::meta::command::Payload;
use cairn_proto::meta::command_reply::Result as Answer;
use cairn_proto::meta::{Command, CommandError, InitCluster, Location, RegisterOsdReply, RegisterOsdRequest};
use cairn_types::OsdId;
use cairn_types::map::ClusterMap;
use prost::Message;

/// The identity that lies on a disk.
#[derive(Clone, Debug)]
pub(crate) struct Disk {
    pub(crate) register: RegisterOsdRequest,
    pub(crate) incarnation: u64,
}

pub(crate) struct Cluster {
    pub(crate) state: MemoryState,
    pub(crate) machine: Machine,
    pub(crate) index: u64,
    pub(crate) now_s: u64,
    pub(crate) version: u32,
    pub(crate) disks: BTreeMap<String, Disk>,
    /// A watcher that follows the map by deltas only.
    watcher: ClusterMap,
}

impl Cluster {
    pub(crate) fn nameless() -> Self {
        let state = MemoryState::default();
        let machine = Machine::open(&state).unwrap();
        Self {
            state,
            machine,
            index: 0,
            now_s: 1000,
            version: 1,
            disks: BTreeMap::new(),
            watcher: ClusterMap::default(),
        }
    }

    pub(crate) fn new() -> Self {
        let mut cluster = Self::nameless();
        let init = InitCluster { cluster: Bytes::from_static(b"0123456789abcdef"), min_protocol: 1 };
        cluster.run(Payload::InitCluster(init)).unwrap();
        cluster
    }

    /// A command that is not deduplicated.
    pub(crate) fn run(&mut self, payload: Payload) -> Result<Answer, CommandError> {
        self.run_in("", 0, 0, payload)
    }

    /// A command of a session named by at most 16 letters.
    pub(crate) fn run_in(
        &mut self,
        session: &str,
        seq: u64,
        acked: u64,
        payload: Payload,
    ) -> Result<Answer, CommandError> {
        let session = match session {
            "" => Bytes::new(),
            name => Bytes::from(format!("{name:_<16}")),
        };
        let command = Command {
            version: self.version,
            session,
            seq,
            acked_through: acked,
            request_id: "story".into(),
            now_s: self.now_s,
            payload: Some(payload),
        };
        let applied = self.apply(&command.encode_to_vec());
        match applied.reply.result.expect("every reply has a result") {
            Answer::Error(error) => Err(error),
            answer => Ok(answer),
        }
    }

    pub(crate) fn apply(&mut self, command: &[u8]) -> Applied {
        self.index += 1;
        let before = self.machine.map().clone();
        let mut reopened = Machine::open(&self.state).expect("what was written can be read");
        let applied = self.machine.apply(&self.state, self.index, command).unwrap();
        let again = reopened.apply(&self.state, self.index, command).unwrap();
        assert_eq!(applied, again, "a reopened machine answers the same, to the byte");
        self.state.write(&applied.batch);
        self.check(&before, &applied);
        applied
    }

    fn check(&mut self, before: &ClusterMap, applied: &Applied) {
        let map = self.machine.map();
        let updates: Vec<_> =
            applied.events.iter().filter_map(|e| if let Event::Map(u) = e { Some(u.clone()) } else { None }).collect();
        let steps = map.epoch.0 - before.epoch.0;
        assert_eq!(steps, updates.len() as u64, "one epoch, one event");
        assert!(steps <= 1, "one command, one epoch");
        for update in updates {
            apply_update(&mut self.watcher, update).unwrap();
        }
        let mut shown = map.clone();
        for (id, osd) in &mut shown.osds {
            // Deltas do not carry what reports change quietly.
            let seen = &self.watcher.osds[id];
            (osd.used, osd.acked_epoch) = (seen.used, seen.acked_epoch);
        }
        assert_eq!(self.watcher, shown, "deltas lead to the same map");
        assert_eq!(Machine::open(&self.state).unwrap().map(), map, "what is in memory is what was written");
        check_pgs(before, map);
    }

    pub(crate) fn register(&mut self, name: &str) -> Result<RegisterOsdReply, CommandError> {
        let disk = self.disks.get(name).expect("the disk exists").clone();
        let request = RegisterOsdRequest { last_incarnation: disk.incarnation, ..disk.register };
        match self.run(Payload::RegisterOsd(request))? {
            Answer::RegisterOsd(reply) => {
                let disk = self.disks.get_mut(name).unwrap();
                disk.incarnation = reply.incarnation;
                disk.register.id = Some(reply.id);
                disk.register.cluster = reply.cluster.clone();
                Ok(reply)
            }
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn add_disk(&mut self, name: &str, place: Location, capacity: u64) {
        let uuid = format!("{name:=<16}");
        let register = RegisterOsdRequest {
            uuid: Bytes::from(uuid),
            addresses: vec![format!("unix:/run/{name}")],
            location: Some(place),
            device_class: "ssd".into(),
            capacity,
            protocol: 1,
            ..Default::default()
        };
        self.disks.insert(name.into(), Disk { register, incarnation: 0 });
    }

    pub(crate) fn osd(&self, name: &str) -> u32 {
        self.disks.get(name).and_then(|disk| disk.register.id).unwrap_or_else(|| panic!("{name} never registered"))
    }

    pub(crate) fn name_of(&self, id: OsdId) -> &str {
        let found = self.disks.iter().find(|(_, disk)| disk.register.id == Some(id.0));
        found.map_or("?", |(name, _)| name)
    }
}

/// What holds for every PG whatever commands came: see the invariants of the PG rules.
fn check_pgs(before: &ClusterMap, now: &ClusterMap) {
    for (id, pg) in &now.pgs {
        let pool = &now.pools[&id.pool];
        assert!(pg.isr.iter().all(|osd| pg.acting.contains(osd)), "{id}: acting contains the in-sync set: {pg:?}");
        assert!(pg.primary.is_none_or(|osd| pg.isr.contains(&osd)), "{id}: the primary is in sync: {pg:?}");
        assert!(pg.backfill.iter().all(|osd| !pg.acting.contains(osd)), "{id}: {pg:?}");
        let Some(old) = before.pgs.get(id) else { continue };
        assert!(pg.c >= old.c && pg.interval >= old.interval, "{id}: versions never go back");
        let same =
            (&old.primary, &old.isr, &old.acting, &old.backfill) == (&pg.primary, &pg.isr, &pg.acting, &pg.backfill);
        assert!(same || pg.c == old.c.next(), "{id}: a changed configuration has a new version");
        assert!(old.primary == pg.primary || pg.interval == pg.c, "{id}: a new primary begins a new interval");
        let put_out = old.isr.iter().any(|osd| !pg.isr.contains(osd) && !before.is_gone(*osd));
        assert!(
            !put_out || pg.isr.len() >= pool.min_size as usize,
            "{id}: nobody who may come back is put out below min_size: {pg:?}"
        );
        assert!(
            old.isr.is_empty() || pg.isr.iter().all(|osd| old.acting.contains(osd)),
            "{id}: joins from acting only"
        );
        assert!(old.isr.is_empty() || !pg.isr.is_empty(), "{id}: never emptied");
    }
}
