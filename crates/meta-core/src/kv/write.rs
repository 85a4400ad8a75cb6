//! Puts and deletes: each is one step of the revision at hand.

use bytes::Bytes;
use cairn_proto::etcdserverpb::{DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse};
use cairn_proto::meta::{KvRecord, RevisionRecord};
use cairn_proto::mvccpb::{self, KeyValue, event::EventType};

use super::{empty_key, header, lease};
use crate::keys::{self, Step};
use crate::machine::Event;
use crate::record;
use crate::refusal::{Outcome, Refusal};
use crate::state::{Batch, Overlay};

/// Writes steps under the next revision, which begins with the first of them.
pub(super) struct Writer<'a> {
    pub(super) state: Overlay<'a>,
    pub(super) kv: KvRecord,
    steps: Vec<mvccpb::Event>,
    pub(super) events: Vec<Event>,
}

/// What can be said against a put without looking at the store.
///
/// # Errors
/// When the key is missing, or something is both given and to be kept.
pub fn check_put(request: &PutRequest) -> Result<(), Refusal> {
    if request.key.is_empty() {
        Err(empty_key())
    } else if request.ignore_value && !request.value.is_empty() {
        Err(Refusal::invalid("etcdserver: value is provided"))
    } else if request.ignore_lease && request.lease != 0 {
        Err(Refusal::invalid("etcdserver: lease is provided"))
    } else {
        Ok(())
    }
}

/// What can be said against a deletion without looking at the store.
///
/// # Errors
/// When the key is missing.
pub fn check_delete_range(request: &DeleteRangeRequest) -> Result<(), Refusal> {
    if request.key.is_empty() { Err(empty_key()) } else { Ok(()) }
}

impl<'a> Writer<'a> {
    pub(super) fn new(state: Overlay<'a>, kv: KvRecord) -> Self {
        Self { state, kv, steps: Vec::new(), events: Vec::new() }
    }

    /// The revision that reads see now.
    pub(super) fn revision(&self) -> i64 {
        if self.steps.is_empty() { self.kv.revision } else { self.kv.revision + 1 }
    }

    pub(super) fn put(&mut self, request: PutRequest) -> Outcome<PutResponse> {
        check_put(&request)?;
        let before: Option<KeyValue> = record::load(&self.state, &keys::current(&request.key))?;
        let missing = || Refusal::invalid("etcdserver: key not found");
        if before.is_none() && (request.ignore_value || request.ignore_lease) {
            return Err(missing().into());
        }
        let old = before.clone().unwrap_or_default();
        let lease = if request.ignore_lease { old.lease } else { request.lease };
        if lease != 0 && lease::lease(&self.state, lease)?.is_none() {
            return Err(lease::not_found().into());
        }
        let step = self.next_step();
        let kv = KeyValue {
            key: request.key,
            value: if request.ignore_value { old.value } else { request.value },
            create_revision: if before.is_some() { old.create_revision } else { step.revision },
            mod_revision: step.revision,
            version: old.version + 1,
            lease,
        };
        self.move_lease(&kv.key, old.lease, lease);
        self.record(step, &kv, false);
        record::store(&mut self.state, keys::current(&kv.key), &kv);
        self.steps.push(mvccpb::Event { r#type: EventType::Put.into(), kv: Some(kv), prev_kv: before.clone() });
        Ok(PutResponse { header: header(step.revision), prev_kv: before.filter(|_| request.prev_kv) })
    }

    pub(super) fn delete_range(&mut self, request: &DeleteRangeRequest) -> Outcome<DeleteRangeResponse> {
        check_delete_range(request)?;
        let mut gone = Vec::new();
        super::range::each_current(&self.state, &request.key, &request.range_end, &mut |kv| {
            gone.push(kv.decode()?);
            Ok(true)
        })?;
        for kv in &gone {
            self.delete(kv.clone());
        }
        Ok(DeleteRangeResponse {
            header: header(self.revision()),
            deleted: gone.len() as i64,
            prev_kvs: if request.prev_kv { gone } else { Vec::new() },
        })
    }

    pub(super) fn delete(&mut self, old: KeyValue) {
        let step = self.next_step();
        self.move_lease(&old.key, old.lease, 0);
        let kv = KeyValue { key: old.key.clone(), mod_revision: step.revision, ..KeyValue::default() };
        self.record(step, &kv, true);
        self.state.delete(keys::current(&kv.key));
        self.steps.push(mvccpb::Event { r#type: EventType::Delete.into(), kv: Some(kv), prev_kv: Some(old) });
    }

    fn next_step(&self) -> Step {
        Step { revision: self.kv.revision + 1, sub: self.steps.len() as u32 }
    }

    fn record(&mut self, step: Step, kv: &KeyValue, deleted: bool) {
        let revision = RevisionRecord {
            key: kv.key.clone(),
            value: kv.value.clone(),
            create_revision: kv.create_revision,
            version: kv.version,
            lease: kv.lease,
            deleted,
        };
        record::store(&mut self.state, keys::revision(step), &revision);
        self.state.put(keys::version(&kv.key, step), Bytes::new());
    }

    fn move_lease(&mut self, key: &[u8], from: i64, to: i64) {
        if from != 0 && from != to {
            self.state.delete(keys::attached(from, key));
        }
        if to != 0 {
            self.state.put(keys::attached(to, key), Bytes::new());
        }
    }

    /// Ends the revision at hand, if anything was written under it.
    pub(super) fn seal(&mut self) {
        if !self.steps.is_empty() {
            self.kv.revision += 1;
            let events = std::mem::take(&mut self.steps);
            self.events.push(Event::Kv { revision: self.kv.revision, events });
        }
    }

    pub(super) fn finish(mut self) -> (KvRecord, Vec<Event>, Batch) {
        self.seal();
        (self.kv, self.events, self.state.into_batch())
    }
}
