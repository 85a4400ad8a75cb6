//! A disk with a store on it, which outlives the process that uses it: the real engine on a simulated disk, or the
//! model of it in memory. Jobs take time and end when the run says so.

use std::collections::BTreeMap;

use cairn_osd_core::{LoadedPg, ReadFailure, Transaction};
use cairn_types::io::ReadData;
use cairn_types::peer::ObjectKey;
use cairn_types::{Epoch, ObjectId, PgId};

use crate::engine::Engine;
use crate::model::Model;
use crate::rng::Rng;

/// What is done, by the number its asker gave it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Done {
    Persisted(u64),
    Read(u64, Result<ReadData, ReadFailure>),
    Listed(u64, Vec<ObjectId>),
    /// The store has failed: the process must end.
    Failed(String),
}

/// See the file's head.
pub(crate) enum Medium {
    Model(Model),
    Engine(Box<Engine>),
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
            Self::Model(model) => model.read(tag, pg, object, offset, len),
            Self::Engine(engine) => engine.read(tag, pg, object, offset, len),
        }
    }

    pub(crate) fn list(&mut self, tag: u64, pg: PgId, pg_count: u32, after: Option<ObjectKey>, limit: usize) {
        match self {
            Self::Model(model) => model.list(tag, pg, after, limit),
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

    /// Every block of a PG and its checksum (0: explicit zeros), pending entries included, for the checker.
    pub(crate) fn content(&mut self, pg: PgId, pg_count: u32) -> BTreeMap<(ObjectId, u32), u32> {
        match self {
            Self::Model(model) => model.content(pg),
            Self::Engine(engine) => engine.content(pg, pg_count),
        }
    }
}
