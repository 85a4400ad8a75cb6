//! The member's directory: RocksDB under the [`Store`](cairn_meta_raft::Store) of `meta-raft`, the witness that tells
//! a log that lost its end from one that never had it, and the file that says whose directory this is.
//!
//! ```text
//! MEMBER                 who this is, which peers it met, and which state-N is the living one
//! JOINING                the name under which the directory asked a cluster for its number, where it joined one
//! WITNESS                the number of the last synced log batch
//! state-N/               RocksDB: log and hard state in one column family each, the applied state in another
//! checkpoint-INDEX-TERM/ a copy (hard links) of the state, read back whole before anybody relies on it
//! ```

mod checkpoints;
mod database;
mod filling;
mod member;
mod opening;
mod store;
mod witness;

pub use database::StateView;
pub(crate) use filling::Filling;
pub use member::MemberFile;
pub(crate) use member::announced;
pub use opening::{Beginning, OpenError};
pub use store::RocksStore;

use std::fs::File;
use std::path::Path;

use cairn_meta_raft::StoreError;

fn io(what: &'static str) -> impl Fn(std::io::Error) -> StoreError {
    move |error| StoreError::Io { what, cause: error.to_string() }
}

/// Makes created, renamed and removed names in a directory durable.
pub(crate) fn sync_dir(dir: &Path) -> Result<(), StoreError> {
    File::open(dir).and_then(|d| d.sync_all()).map_err(io("cannot sync a directory"))
}

/// Replaces a file as a whole: readers see the old or the new contents, after a power failure too.
fn replace_file(dir: &Path, name: &str, contents: &[u8]) -> Result<(), StoreError> {
    use std::io::Write;
    let temporary = dir.join(format!("{name}.new"));
    let mut file = File::create(&temporary).map_err(io("cannot create a file"))?;
    file.write_all(contents).map_err(io("cannot write a file"))?;
    file.sync_all().map_err(io("cannot sync a file"))?;
    std::fs::rename(&temporary, dir.join(name)).map_err(io("cannot rename a file"))?;
    sync_dir(dir)
}
