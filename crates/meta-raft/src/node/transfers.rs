//! Checkpoints and what follows from them: the log is truncated, and a member that lags behind the log is sent the state
//! instead. The receiver pulls; see `snapshots` for the rules of both ends.

use cairn_proto::meta_raft::{Chunk, FetchChunk, SnapshotManifest, peer_message::Body};
use prost::Message as _;
use raft::eraftpb::{HardState, Message};
use raft::{Ready, SnapshotStatus, StateRole};

use super::{Node, NodeError, Output, PATIENCE_WITH_RECEIVERS};
use crate::membership;
use crate::snapshots::{Incoming, Quiet, SNAPSHOT_FORMAT, digest_of};
use crate::store::{Position, Store, StoreError};
use cairn_meta_core::Machine;

impl<S: Store> Node<S> {
    // ---- checkpoints and truncation

    pub(super) fn consider_checkpoint(&mut self) -> Result<(), NodeError> {
        let newest = self.store().checkpoint().map_or(0, |m| m.index);
        let (entries, bytes) = (self.applied().index - newest, self.bytes_since_checkpoint);
        // Who is being sent a snapshot needs it to the end, and the log after it: a new checkpoint waits, within bounds.
        let patience = if self.outgoing.is_active() { PATIENCE_WITH_RECEIVERS } else { 1 };
        let due = entries >= self.config.checkpoint_entries.saturating_mul(patience)
            || bytes >= self.config.checkpoint_bytes.saturating_mul(patience)
            || self.checkpoint_lacks_members;
        if due && !self.store().checkpoint_running() {
            self.bytes_since_checkpoint = 0;
            self.raw.mut_store().store_mut().start_checkpoint()?;
            self.collect_checkpoint()?;
        }
        Ok(())
    }

    pub(super) fn collect_checkpoint(&mut self) -> Result<(), NodeError> {
        if let Some(manifest) = self.raw.mut_store().store_mut().poll_checkpoint()? {
            self.notice_members();
            let keep_from = self.applied().index.saturating_sub(self.config.keep_entries);
            let through = manifest.index.min(keep_from);
            if through > self.store().truncated().index {
                self.raw.mut_store().store_mut().truncate(through)?;
            }
            slog::info!(self.logger, "checkpoint"; "index" => manifest.index, "truncated" => through);
        }
        Ok(())
    }

    // ---- snapshots

    pub(super) fn tick_transfers(&mut self) {
        match self.incoming.as_mut().map(Incoming::tick) {
            Some(Quiet::AskAgain) => self.fetch_next(),
            Some(Quiet::GiveUp) => self.incoming = None,
            Some(Quiet::Wait) | None => {}
        }
        let raft = &self.raw.raft;
        let receiving: Vec<u64> = match raft.state {
            StateRole::Leader => {
                raft.prs().iter().filter(|(_, p)| p.state == raft::ProgressState::Snapshot).map(|(id, _)| *id).collect()
            }
            _ => Vec::new(),
        };
        for member in self.outgoing.tick(receiving) {
            self.raw.report_snapshot(member, SnapshotStatus::Failure);
        }
    }

    /// A leader offers its state: fetch it, unless raft itself sees that it is not needed.
    pub(super) fn handle_offer(&mut self, message: Message) -> Result<(), NodeError> {
        let metadata = message.get_snapshot().get_metadata();
        let known = self.raw.raft.raft_log.match_term(metadata.index, metadata.term);
        if message.term < self.raw.raft.term || metadata.index <= self.committed() || known {
            self.step(message);
            return Ok(());
        }
        let Ok(manifest) = SnapshotManifest::decode(&message.get_snapshot().data[..]) else {
            slog::warn!(self.logger, "a snapshot offer cannot be read"; "from" => message.from);
            return Ok(());
        };
        if manifest.format != SNAPSHOT_FORMAT {
            return Err(StoreError::NewerFormat {
                place: format!("the snapshot that member {} offers", message.from),
                found: manifest.format,
                known: SNAPSHOT_FORMAT,
            }
            .into());
        }
        if let Some(incoming) = &mut self.incoming
            && incoming.manifest == manifest
            && incoming.message.from == message.from
        {
            incoming.message = message;
            return Ok(());
        }
        let cursor = self.raw.mut_store().store_mut().begin_install(&manifest)?;
        slog::info!(self.logger, "fetching a snapshot"; "from" => message.from, "index" => manifest.index,
            "records" => manifest.records, "resumed" => cursor.is_some());
        self.incoming = Some(Incoming::new(message, manifest, cursor));
        self.fetch_next();
        Ok(())
    }

    pub(super) fn fetch_next(&mut self) {
        if let Some(incoming) = &self.incoming {
            let (to, request) = (incoming.message.from, incoming.request());
            self.emit(to, Body::Fetch(request));
        }
    }

    pub(super) fn handle_fetch(&mut self, from: u64, fetch: &FetchChunk) -> Result<(), NodeError> {
        self.outgoing.heard_from(from);
        let at = Position { term: fetch.term, index: fetch.index };
        let max_bytes = self.config.chunk_bytes;
        let piece = self.raw.mut_store().store_mut().read_piece(at, fetch.after.as_deref(), max_bytes)?;
        let mut chunk = Chunk { index: fetch.index, term: fetch.term, after: fetch.after.clone(), ..Chunk::default() };
        match piece {
            Some(piece) => {
                chunk.crc = digest_of(&piece.records);
                chunk.records = piece.records;
                chunk.last = piece.last;
            }
            None => {
                chunk.gone = true;
                self.raw.report_snapshot(from, SnapshotStatus::Failure);
            }
        }
        self.emit(from, Body::Chunk(chunk));
        Ok(())
    }

    pub(super) fn handle_chunk(&mut self, from: u64, chunk: &Chunk) -> Result<(), NodeError> {
        let Some(incoming) = self.incoming.as_mut().filter(|i| i.accepts(from, chunk)) else { return Ok(()) };
        if chunk.gone {
            self.incoming = None;
            return Ok(());
        }
        self.raw.mut_store().store_mut().install_piece(&chunk.records)?;
        incoming.advance(chunk);
        if chunk.last {
            self.complete_transfer()?
        } else {
            self.fetch_next()
        }
        Ok(())
    }

    pub(super) fn complete_transfer(&mut self) -> Result<(), NodeError> {
        let Some(incoming) = self.incoming.take() else { return Ok(()) };
        if self.raw.mut_store().store_mut().verify_install()? {
            self.step(incoming.message);
        } else {
            slog::warn!(self.logger, "a received snapshot does not match its digest, and is fetched again";
                "from" => incoming.message.from);
        }
        Ok(())
    }

    pub(super) fn switch_to_snapshot(&mut self, ready: &Ready) -> Result<(), NodeError> {
        let metadata = ready.snapshot().get_metadata();
        let hard_state: HardState = ready.hs().cloned().unwrap_or_else(|| self.raw.raft.hard_state());
        let store = self.raw.mut_store().store_mut();
        store.finish_install(&hard_state, &membership::ordered(metadata.get_conf_state().clone()))?;
        self.machine = Machine::open(store.state())?;
        self.bytes_since_checkpoint = 0;
        let at = Position { term: metadata.term, index: metadata.index };
        assert_eq!(store.applied(), at, "the installed state is the one that raft was told of");
        self.notice_members();
        self.outputs.push_back(Output::StateReplaced { at });
        Ok(())
    }
}
