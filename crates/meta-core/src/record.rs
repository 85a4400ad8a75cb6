//! Typed access to the state: decodes what it reads, and calls what it cannot read by its place.

use bytes::Bytes;
use cairn_proto::meta::{SnapshotRecord, VolumeRecord};
use cairn_types::{SnapId, VolumeId};
use prost::Message;

use crate::keys;
use crate::refusal::Corrupt;
use crate::state::{Overlay, StateRead};

/// How a key is named in messages.
pub(crate) fn name_of(key: &[u8]) -> String {
    format!("`{}`", key.escape_ascii())
}

pub(crate) fn decode<M: Message + Default>(key: &[u8], value: &[u8]) -> Result<M, Corrupt> {
    M::decode(value).map_err(|error| Corrupt::new(name_of(key), "a readable record", error))
}

/// The record under a key.
pub(crate) fn load<M: Message + Default>(state: &dyn StateRead, key: &[u8]) -> Result<Option<M>, Corrupt> {
    state.get(key).map(|value| decode(key, &value)).transpose()
}

pub(crate) fn store<M: Message>(overlay: &mut Overlay<'_>, key: Vec<u8>, record: &M) {
    overlay.put(key, Bytes::from(record.encode_to_vec()));
}

/// Takes a record; answers whether to go on.
pub(crate) type Visit<'v, M> = &'v mut dyn FnMut(&[u8], M) -> Result<bool, Corrupt>;

/// Visits every record whose key starts with `prefix` and lies at or after `from`, until `visit` answers `false`.
pub(crate) fn each<M: Message + Default>(
    state: &dyn StateRead,
    prefix: &[u8],
    from: &[u8],
    visit: Visit<'_, M>,
) -> Result<(), Corrupt> {
    let mut result = Ok(());
    state.scan(from, false, &mut |key, value| {
        if !key.starts_with(prefix) {
            return false;
        }
        match decode(key, value).and_then(|record| visit(key, record)) {
            Ok(more) => more,
            Err(corrupt) => {
                result = Err(corrupt);
                false
            }
        }
    });
    result
}

/// All keys that start with a prefix.
pub(crate) fn keys_under(state: &dyn StateRead, prefix: &[u8]) -> Vec<Bytes> {
    let mut found = Vec::new();
    state.scan(prefix, false, &mut |key, _| {
        let ours = key.starts_with(prefix);
        if ours {
            found.push(Bytes::copy_from_slice(key));
        }
        ours
    });
    found
}

/// The record of a volume, deleted ones that are being purged too.
pub(crate) fn volume(state: &dyn StateRead, id: VolumeId) -> Result<Option<VolumeRecord>, Corrupt> {
    load(state, &keys::volume(id))
}

/// The id behind a volume's name.
pub(crate) fn volume_named(state: &dyn StateRead, name: &str) -> Result<Option<VolumeId>, Corrupt> {
    Ok(number_at(state, &keys::volume_name(name))?.map(VolumeId))
}

/// The record of a snapshot, whatever becomes of it.
pub(crate) fn snapshot(state: &dyn StateRead, id: SnapId) -> Result<Option<SnapshotRecord>, Corrupt> {
    load(state, &keys::snapshot(id))
}

/// The id behind a snapshot's name.
pub(crate) fn snapshot_named(state: &dyn StateRead, name: &str) -> Result<Option<SnapId>, Corrupt> {
    Ok(number_at(state, &keys::snapshot_name(name))?.map(SnapId))
}

fn number_at(state: &dyn StateRead, key: &[u8]) -> Result<Option<u64>, Corrupt> {
    let Some(value) = state.get(key) else { return Ok(None) };
    let number: [u8; 8] = value.as_ref().try_into().map_err(|_| Corrupt::new(name_of(key), "8 bytes", value.len()))?;
    Ok(Some(u64::from_be_bytes(number)))
}
