//! A disk with a store on it, which outlives the process that uses it: the real engine on a simulated disk, or the
//! model of it in memory. Jobs take time and end when the run says so.

use std::collections::{BTreeMap, BTreeSet};

use cairn_osd_core::{LoadedPg, ReadFailure, Transaction};
use cairn_types::io::{BlockState, ReadData};
use cairn_types::peer::ObjectKey;
use cairn_types::scrub::BlockCopy;
use cairn_types::{Epoch, ObjectId, PgId};

use crate::engine::{Astray, Engine};
use crate::faults::Ill;
use crate::model::Model;
use crate::rng::Rng;

/// What is done, by the number its asker gave it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Done {
    Persisted(u64),
    Read(u64, Result<ReadData, ReadFailure>),
    Listed(u64, Vec<ObjectId>),
    Inspected(u64, Vec<BlockCopy>),
    /// The store has failed: the process must end.
    Failed(String),
}

/// Every block of a PG, for the checker.
#[derive(Clone, Debug, Default)]
pub(crate) struct Content {
    /// The checksum of each; 0: explicit zeros.
    pub(crate) blocks: BTreeMap<(ObjectId, u32), u32>,
    /// Known to be bad: nobody would be given them.
    pub(crate) bad: BTreeSet<(ObjectId, u32)>,
}

impl Content {
    pub(crate) fn note(&mut self, object: ObjectId, at: u32, state: BlockState) {
        match state {
            BlockState::Absent => None,
            BlockState::Zero => self.blocks.insert((object, at), 0),
            BlockState::Data { crc } => self.blocks.insert((object, at), crc),
        };
    }
}

/// See the file's head.
pub(crate) enum Medium {
    Model(Box<Model>),
    Engine(Box<Engine>),
}

/// What a disk was like at some time.
#[derive(Clone, Debug)]
pub(crate) enum Image {
    Model(Box<Model>),
    Engine(cairn_disk::SimDisk),
}

impl Medium {
    pub(crate) fn submit(&mut self, tag: u64, transaction: Transaction) {
        match self {
            Self::Model(model) => model.submit(tag, transaction),
            Self::Engine(engine) => engine.submit(tag, transaction),
        }
    }

    pub(crate) fn submit_epoch(&mut self, tag: u64, epoch: Epoch) {
        match self {
            Self::Model(model) => model.submit_epoch(tag, epoch),
            Self::Engine(engine) => engine.submit_epoch(tag, epoch),
        }
    }

    pub(crate) fn read(&mut self, tag: u64, pg: PgId, object: ObjectId, offset: u32, len: u32) {
        match self {
            Self::Model(model) => model.read(tag, object, offset, len),
            Self::Engine(engine) => engine.read(tag, pg, object, offset, len),
        }
    }

    pub(crate) fn inspect(&mut self, tag: u64, pg: PgId, object: ObjectId, (offset, len): (u32, u32), deep: bool) {
        match self {
            Self::Model(model) => model.inspect(tag, object, (offset, len)),
            Self::Engine(engine) => engine.inspect(tag, pg, object, (offset, len), deep),
        }
    }

    pub(crate) fn list(&mut self, tag: u64, pg: PgId, pg_count: u32, after: Option<ObjectKey>, limit: usize) {
        match self {
            Self::Model(model) => model.list(tag, pg, pg_count, after, limit),
            Self::Engine(engine) => engine.list(tag, pg, pg_count, after, limit),
        }
    }

    /// Jobs that were not handed to the disk yet; true for those that take as long as a flush.
    pub(crate) fn take_jobs(&mut self) -> Vec<(u64, bool)> {
        match self {
            Self::Model(model) => model.take_jobs(),
            Self::Engine(engine) => engine.take_jobs(),
        }
    }

    /// The disk has finished a job.
    pub(crate) fn finish(&mut self, job: u64) {
        match self {
            Self::Model(model) => model.finish(job),
            Self::Engine(engine) => engine.finish(job),
        }
    }

    pub(crate) fn take_done(&mut self) -> Option<Done> {
        match self {
            Self::Model(model) => model.take_done(),
            Self::Engine(engine) => engine.take_done(),
        }
    }

    /// The process dies. A power cut takes what was not flushed; a kill takes nothing that reached the disk.
    pub(crate) fn crash(&mut self, power: bool, rng: &mut Rng) {
        match self {
            Self::Model(model) => model.crash(power, rng),
            Self::Engine(engine) => engine.crash(power, rng),
        }
    }

    /// What a new life finds.
    pub(crate) fn load(&mut self) -> Result<(Epoch, Vec<(PgId, LoadedPg)>), String> {
        match self {
            Self::Model(model) => Ok(model.load()),
            Self::Engine(engine) => engine.load(),
        }
    }

    /// It breaks a promise. The model of the store keeps them all.
    pub(crate) fn sicken(&mut self, what: Ill, rng: &mut Rng) {
        let Self::Engine(engine) = self else { return };
        match what {
            Ill::Rot(blocks) => engine.rot(rng, blocks),
            Ill::Unreadable(blocks) => engine.make_unreadable(rng, blocks),
            Ill::Misdirected => engine.lead_next_astray(Astray::Elsewhere),
            Ill::Dropped => engine.lead_next_astray(Astray::Nowhere),
            Ill::WriteError => engine.fail_next_write(),
            Ill::SyncError => engine.fail_next_sync(),
            Ill::Full(_) => engine.set_full(true),
            Ill::RottenLog => engine.rot_log(rng),
            Ill::RolledBack(_) => {}
        }
    }

    /// What an OSD does now and then while it is full: only a checkpoint finds out that there is room again.
    pub(crate) fn look_for_room(&mut self) {
        if let Self::Engine(engine) = self {
            engine.look_for_room();
        }
    }

    /// There is room again.
    pub(crate) fn make_room(&mut self) {
        if let Self::Engine(engine) = self {
            engine.set_full(false);
        }
    }

    /// Whether there is no room for new data.
    pub(crate) fn is_full(&self) -> bool {
        match self {
            Self::Model(_) => false,
            Self::Engine(engine) => engine.is_full(),
        }
    }

    /// As it is now.
    pub(crate) fn image(&self) -> Image {
        match self {
            Self::Model(model) => Image::Model(model.clone()),
            Self::Engine(engine) => Image::Engine(engine.image()),
        }
    }

    /// It is what it was then.
    pub(crate) fn restore(&mut self, image: &Image) {
        match (self, image) {
            (Self::Model(model), Image::Model(image)) => model.clone_from(image),
            (Self::Engine(engine), Image::Engine(image)) => engine.restore(image),
            _ => {}
        }
    }

    /// Every block of a PG, pending entries included, for the checker.
    pub(crate) fn content(&mut self, pg: PgId, pg_count: u32) -> Content {
        match self {
            Self::Model(model) => Content { blocks: model.content(pg, pg_count), bad: BTreeSet::new() },
            Self::Engine(engine) => engine.content(pg, pg_count),
        }
    }
}
