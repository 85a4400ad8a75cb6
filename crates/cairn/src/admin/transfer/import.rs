//! `cairn volume import`: bytes become a volume, and a diff makes a volume what it was made of.
//!
//! A new volume gets its name when everything is in it. A diff is applied to a volume that is closed to everybody else
//! until it is whole; it begins with a return to the snapshot that the diff begins at.

use cairn_client::Holding;
use cairn_proto::meta;
use cairn_transfer::{Content, DiffReader, Header};
use cairn_types::BLOCK_SIZE;
use clap::Args;
use tokio::io::AsyncRead;

use super::hold::{Cluster, Held, bar, done, unless_interrupted};
use super::{failed, files, id_of, snapshot_of};
use crate::admin::volume::{find, reference};
use crate::admin::{Target, snapshot};
use crate::failure::{Code, Failure, Outcome};
use crate::size;

/// Of a snapshot: what it was called in the diff that brought it.
const CALLED: &str = "cairn.io/imported-as";

/// What `import` is told.
#[derive(Args)]
pub(crate) struct Import {
    /// A file or a device: raw, or a diff as `export --from` and `rbd export-diff` make it; `-`: standard input.
    file: String,
    /// The volume: a new one, or the one that the diff continues.
    volume: String,
    /// Of a new one: its size, where the input does not tell.
    #[arg(long, value_parser = size::parse)]
    size: Option<u64>,
    /// Of a new one: its pool; may be left out when there is only one.
    #[arg(long, default_value = "")]
    pool: String,
    /// What the snapshot is called that a diff ends with; otherwise as in the diff.
    #[arg(long, value_name = "SNAPSHOT")]
    snapshot: Option<String>,
    /// Of a diff: although the volume was written since the snapshot it begins at. What was written is lost.
    #[arg(long)]
    force: bool,
}

type Input = Box<dyn AsyncRead + Unpin + Send>;

/// See the file's head.
pub(crate) async fn import(options: &Import, target: &Target) -> Outcome {
    let cluster = Cluster::new(target.connect()?.0);
    let (mut input, len) = files::open(&options.file).await?;
    let start = cairn_transfer::start(&mut *input).await.map_err(failed)?;
    let (volume, words) = match start.content {
        Content::Raw => {
            let unknown = "how long standard input is nobody knows; say so with --size";
            let size = options.size.or(len).ok_or_else(|| Failure::new(Code::Failed, unknown))?;
            let made = Made::begin(&cluster, options, size).await?;
            let progress = bar(len.unwrap_or(size), "imported");
            let mut tell = |at| progress.set_position(at);
            let work = cairn_transfer::import_raw(&made.held.volume, start.bytes, &mut *input, &mut tell);
            let outcome = unless_interrupted(work).await.and_then(|bytes| bytes.map_err(failed));
            progress.finish_and_clear();
            (made.end(&cluster, options, outcome.map(drop)).await?, "imported".to_owned())
        }
        Content::Diff => {
            let mut diff = DiffReader::new(input);
            let header = diff.header().await.map_err(failed)?;
            match &header.from {
                None => whole(&cluster, options, &header, &mut diff).await?,
                Some(from) => onto(&cluster, options, &header, from, &mut diff).await?,
            }
        }
    };
    done(&volume, &words, target.output);
    Ok(())
}

/// A volume on its way in, under another name.
struct Made {
    volume: meta::Volume,
    held: Held,
}

impl Made {
    async fn begin(cluster: &Cluster, options: &Import, size: u64) -> Result<Self, Failure> {
        let name = &options.volume;
        let request = meta::GetVolumeRequest { volume: Some(reference(name)?) };
        if cluster.client.get_volume(request).await.is_ok() {
            let message = format!("there is a volume {name} already; name another, or delete that one first");
            return Err(Failure::new(Code::Failed, message));
        }
        let size = size.max(1).next_multiple_of(u64::from(BLOCK_SIZE));
        let (part, pool) = (format!("{name}.importing"), options.pool.clone());
        let request = meta::CreateVolumeRequest { name: part.clone(), pool, size, ..Default::default() };
        let reply = cluster.client.create_volume(request).await?;
        if reply.existed {
            let message = format!(
                "there is a volume {part} of another import; where that has ended: cairn volume rm {part} --now"
            );
            return Err(Failure::new(Code::Failed, message));
        }
        let volume = reply.volume.unwrap_or_default();
        let held = cluster.hold(&volume, None).await?;
        Ok(Self { volume, held })
    }

    /// It gets its name; or it goes.
    async fn end(self, cluster: &Cluster, options: &Import, outcome: Outcome) -> Result<meta::Volume, Failure> {
        let by = || Some(meta::VolumeRef { by: Some(meta::volume_ref::By::Id(self.volume.id)) });
        let ended = self.held.end(meta::Completed::Nothing).await;
        if let Err(failure) = outcome.and(ended) {
            let request = meta::DeleteVolumeRequest { mutation: None, volume: by(), now: true };
            cluster.client.delete_volume(request).await?;
            return Err(failure);
        }
        let name = options.volume.clone();
        let request = meta::ChangeVolumeRequest { volume: by(), name, ..Default::default() };
        Ok(cluster.client.change_volume(request).await?.volume.unwrap_or_default())
    }
}

/// A diff of everything: a new volume.
async fn whole(
    cluster: &Cluster,
    options: &Import,
    header: &Header,
    diff: &mut DiffReader<Input>,
) -> Result<(meta::Volume, String), Failure> {
    let made = Made::begin(cluster, options, options.size.unwrap_or(header.size).max(header.size)).await?;
    let progress = bar(header.size, "imported");
    let mut tell = |at| progress.set_position(at);
    let work = cairn_transfer::apply_diff(&made.held.volume, diff, &mut tell);
    let outcome = unless_interrupted(work).await.and_then(|done| done.map_err(failed));
    progress.finish_and_clear();
    let volume = made.end(cluster, options, outcome).await?;
    let words = take(cluster, options, header, &volume).await?;
    Ok((volume, words))
}

/// A diff from one snapshot to the next: onto a volume that has the first.
async fn onto(
    cluster: &Cluster,
    options: &Import,
    header: &Header,
    from: &str,
    diff: &mut DiffReader<Input>,
) -> Result<(meta::Volume, String), Failure> {
    let mut volume = find(&cluster.client, &options.volume).await?;
    let snapshots = snapshot::all(&cluster.client, Some(&format!("id:{}", volume.id))).await?;
    let fits =
        |taken: &&meta::Snapshot| taken.name == from || taken.labels.get(CALLED).is_some_and(|name| name == from);
    let Some(base) = snapshots.iter().find(fits) else {
        let message = format!(
            "the diff continues snapshot `{from}`, which volume {} does not have; import what comes before it first",
            volume.name
        );
        return Err(Failure::new(Code::NotFound, message));
    };
    let base = snapshot_of(&cluster.client, &volume, &format!("id:{}", base.id)).await?;
    let size = header.size.next_multiple_of(u64::from(BLOCK_SIZE));
    if size > volume.size {
        let request = meta::ResizeVolumeRequest { mutation: None, volume: Some(reference(&options.volume)?), size };
        volume = cluster.client.resize_volume(request).await?.volume.unwrap_or(volume);
    }
    let interrupted = volume.restoring != 0;
    let held = cluster.hold(&volume, Some(id_of(&base))).await?;
    let view = cluster.open(&Holding::of_snapshot(&base)?);
    let same = match cairn_transfer::is_as(&held.volume, &view, id_of(&base)).await {
        Ok(same) => same,
        Err(error) => {
            held.end(if interrupted { meta::Completed::Nothing } else { meta::Completed::Restore }).await?;
            return Err(failed(error));
        }
    };
    if !same && !interrupted && !options.force {
        // Nothing was done to it.
        held.end(meta::Completed::Restore).await?;
        let message = format!(
            "volume {} was written since snapshot `{from}`, which the diff continues; --force: what was written is lost",
            volume.name
        );
        return Err(Failure::new(Code::Failed, message));
    }
    let progress = bar(volume.size, "imported");
    let mut tell = |at| progress.set_position(at);
    let work = async {
        if !same {
            let mut back = |at| progress.set_position(at);
            cairn_transfer::restore(&held.volume, &view, id_of(&base), &mut back).await.map_err(failed)?;
        }
        cairn_transfer::apply_diff(&held.volume, diff, &mut tell).await.map_err(failed)
    };
    let outcome = unless_interrupted(work).await.and_then(|done| done);
    progress.finish_and_clear();
    let completed = if outcome.is_ok() { meta::Completed::Restore } else { meta::Completed::Nothing };
    let ended = held.end(completed).await;
    outcome.map_err(|failure| {
        let message = format!(
            "{failure}; volume {} stays closed until a whole diff is imported, or: cairn volume rollback {} --to id:{}",
            volume.name,
            volume.name,
            id_of(&base).0
        );
        Failure::new(failure.code, message)
    })?;
    ended?;
    let words = take(cluster, options, header, &volume).await?;
    Ok((volume, words))
}

/// The snapshot that a diff ends with.
async fn take(cluster: &Cluster, options: &Import, header: &Header, volume: &meta::Volume) -> Result<String, Failure> {
    let Some(name) = options.snapshot.as_ref().or(header.to.as_ref()) else { return Ok("imported".to_owned()) };
    let by = Some(meta::volume_ref::By::Id(volume.id));
    let labels = header.to.iter().map(|called| (CALLED.to_owned(), called.clone())).collect();
    let (name, of) = (name.clone(), Some(meta::VolumeRef { by }));
    let request = meta::CreateSnapshotRequest { mutation: None, name: name.clone(), volume: of, labels };
    cluster.client.create_snapshot(request).await.map_err(|error| {
        let failure = Failure::from(error);
        let message = format!("volume {} is imported, but not its snapshot: {failure}", volume.name);
        Failure::new(failure.code, message)
    })?;
    Ok(format!("imported, up to snapshot {name}"))
}
