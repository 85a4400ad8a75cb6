//! One `Ready` of raft, in the order that makes it safe: the leader's messages leave, what is committed is applied, the
//! rest is persisted in one batch, then everybody else's messages leave, and what became committed by that is applied.

use cairn_meta_core::{Batch, Event};
use cairn_proto::meta_raft::{PeerMessage, peer_message::Body};
use protobuf::Message as _;
use raft::eraftpb::{ConfChangeV2, ConfState, Entry, EntryType, Message};
use raft::{Ready, StateRole};

use super::{Node, NodeError, Output, Role, Stage};
use crate::membership;
use crate::store::{Position, Store};

impl<S: Store> Node<S> {
    pub(super) fn begin_ready(&mut self) {
        let mut ready = self.raw.ready();
        for state in ready.take_read_states() {
            self.reads.confirm(&state.request_ctx, state.index);
        }
        self.send(ready.take_messages());
        let entries = ready.take_committed_entries().into();
        self.stage = Stage::Begun { ready: Box::new(ready), entries };
    }

    pub(super) fn persist(&mut self, mut ready: Ready) -> Result<(), NodeError> {
        if !ready.snapshot().is_empty() {
            self.switch_to_snapshot(&ready)?;
        }
        if !ready.entries().is_empty() || ready.hs().is_some() {
            let sync = ready.must_sync();
            self.raw.mut_store().store_mut().append(ready.entries(), ready.hs(), sync)?;
        }
        let messages = ready.take_persisted_messages();
        self.send(messages);
        let mut light = self.raw.advance_append(ready);
        self.send(light.take_messages());
        self.stage = Stage::Persisted { entries: light.take_committed_entries().into() };
        Ok(())
    }

    pub(super) fn finish_ready(&mut self) -> Result<(), NodeError> {
        self.raw.advance_apply();
        self.settle_timeout();
        self.notice_role();
        self.release_reads();
        self.consider_checkpoint()
    }

    pub(super) fn apply(&mut self, entry: &Entry) -> Result<(), NodeError> {
        let at = Position { term: entry.term, index: entry.index };
        match entry.get_entry_type() {
            EntryType::EntryNormal => {}
            EntryType::EntryConfChangeV2 => return self.apply_change(entry, at),
            EntryType::EntryConfChange => return Err(NodeError::UnknownEntry { index: entry.index }),
        }
        self.bytes_since_checkpoint += entry.data.len() as u64;
        let store = self.raw.mut_store().store_mut();
        if entry.data.is_empty() {
            store.apply(at, &Batch::default())?;
        } else {
            let applied = self.machine.apply(store.state(), at.index, &entry.data)?;
            store.apply(at, &applied.batch)?;
            let ticket = self.ticket_of(entry);
            self.outputs.push_back(Output::Applied { at, ticket, applied: Box::new(applied) });
        }
        self.release_reads();
        Ok(())
    }

    /// An entry that changes who is a member. The command in it decides whether it counts; a change without a command
    /// ends a joint configuration.
    fn apply_change(&mut self, entry: &Entry, at: Position) -> Result<(), NodeError> {
        let unknown = |_| NodeError::UnknownEntry { index: entry.index };
        let change = ConfChangeV2::parse_from_bytes(&entry.data).map_err(unknown)?;
        let joint = membership::is_joint(&self.store().conf_state());
        let applied = match change.context.is_empty() {
            true => None,
            false => {
                let state = self.raw.store().store().state();
                Some(self.machine.apply(state, at.index, &change.context)?)
            }
        };
        let counts = match &applied {
            Some(applied) => applied.events.iter().any(|event| matches!(event, Event::Members(_))),
            None => joint && change.changes.is_empty(),
        };
        let nothing = Batch::default();
        let batch = applied.as_ref().map_or(&nothing, |applied| &applied.batch);
        if counts {
            let conf_state = self.raw.apply_conf_change(&change).map_err(|e| NodeError::Raft(e.to_string()))?;
            let conf_state = membership::ordered(conf_state);
            self.check_members(at, &conf_state)?;
            slog::info!(self.logger, "the members changed"; "index" => at.index, "now" => ?conf_state);
            self.raw.mut_store().store_mut().apply_change(at, batch, &conf_state)?;
            self.notice_members();
        } else {
            self.raw.mut_store().store_mut().apply(at, batch)?;
        }
        if let Some(applied) = applied {
            let ticket = self.ticket_of(entry);
            self.outputs.push_back(Output::Applied { at, ticket, applied: Box::new(applied) });
        }
        self.release_reads();
        Ok(())
    }

    /// raft's configuration and the written members are one decision: they never differ, not even between two steps.
    fn check_members(&self, at: Position, conf_state: &ConfState) -> Result<(), NodeError> {
        let members = &self.machine.members().members;
        let of = |learner: bool| members.iter().filter(|m| m.learner == learner).map(|m| m.id).collect::<Vec<_>>();
        if (&conf_state.voters, &conf_state.learners) == (&of(false), &of(true)) {
            return Ok(());
        }
        Err(NodeError::Members {
            index: at.index,
            raft: format!("{:?} and learners {:?}", conf_state.voters, conf_state.learners),
            written: format!("{:?} and learners {:?}", of(false), of(true)),
        })
    }

    pub(super) fn release_reads(&mut self) {
        let applied = self.applied().index;
        let ready = self.reads.ready(applied);
        self.outputs.extend(ready.into_iter().map(|ticket| Output::ReadReady { ticket }));
    }

    pub(super) fn notice_role(&mut self) {
        let raft = &self.raw.raft;
        let role = Role { leader: raft.leader_id, term: raft.term, leading: raft.state == StateRole::Leader };
        if role != self.role {
            if role.leader != self.role.leader || role.term != self.role.term {
                self.reads.ask_all_again();
            }
            self.role = role;
            self.outputs.push_back(Output::Role(role));
        }
    }

    pub(super) fn send(&mut self, messages: Vec<Message>) {
        for message in messages {
            let to = message.to;
            let bytes = message.write_to_bytes().expect("a raft message always encodes");
            self.emit(to, Body::Raft(bytes.into()));
        }
    }

    pub(super) fn emit(&mut self, to: u64, body: Body) {
        self.outputs.push_back(Output::Send { to, message: PeerMessage { body: Some(body) } });
    }
}
