//! The core's words in the store's, and back. Each has its own types, because neither knows the other.

use std::collections::BTreeMap;

use bytes::Bytes;
use cairn_osd_core as core;
use cairn_store as store;
use cairn_types::io::ReadData;
use cairn_types::{Epoch, PgId};

/// The store's own attribute that holds the newest epoch this OSD has seen.
const EPOCH: &[u8] = b"epoch";

/// The epoch that the disk remembers.
pub(crate) fn epoch_note(store: &store::Store) -> Epoch {
    let bytes = store.note(EPOCH).and_then(|note| <[u8; 8]>::try_from(&note[..]).ok());
    Epoch(bytes.map_or(0, u64::from_le_bytes))
}

/// Puts it there.
pub(crate) fn put_epoch(store: &mut store::Store, epoch: Epoch) -> store::Token {
    store.put_note(EPOCH, Bytes::copy_from_slice(&epoch.0.to_le_bytes()))
}

/// What the store found, as the core takes it.
pub(crate) fn core_pgs(pgs: BTreeMap<PgId, store::LoadedPg>) -> Vec<(PgId, core::LoadedPg)> {
    let loaded = |pg: store::LoadedPg| core::LoadedPg {
        commit: pg.commit,
        log: pg.log,
        pending: pg.pending,
        attributes: pg.attributes,
    };
    pgs.into_iter().map(|(id, pg)| (id, loaded(pg))).collect()
}

/// A transaction as the store takes it.
pub(crate) fn store_transaction(transaction: core::Transaction) -> store::Transaction {
    let core::Transaction { pg, rewind, append, commit, restart, content, remove, trim, attributes } = transaction;
    store::Transaction { pg, rewind, commit, restart, append, content, remove, trim, attributes }
}

/// A read's result as the core takes it.
pub(crate) fn core_read(result: Result<store::ReadReply, store::ReadFailure>) -> Result<ReadData, core::ReadFailure> {
    match result {
        Ok(reply) => Ok(ReadData { data: reply.data, blocks: reply.blocks }),
        Err(failure) => {
            tracing::warn!(%failure, "a read failed");
            Err(core::ReadFailure::Corrupt { offsets: failure.offsets })
        }
    }
}
