//! `cairn volume du|diff|export|import|rollback|flatten`: what goes through whole volumes.
//!
//! What writes attaches the volume to this program, alone, and detaches it when it is done; a volume that is in use is
//! refused. What only reads does so from a snapshot.

mod files;
mod hold;
mod import;

use std::pin::pin;

use cairn_client::Holding;
use cairn_meta_client::MetaClient;
use cairn_proto::meta;
use cairn_transfer::{Blocks, Extent, Header, Since, TransferError};
use cairn_types::SnapId;
use clap::Args;
use futures::TryStreamExt as _;
use serde_json::json;

use self::files::Output;
use self::hold::{Cluster, bar, unless_interrupted};
use super::volume::{all, find};
use super::{Target, snapshot};
use crate::failure::{Code, Failure, Outcome};
use crate::output::{self, Format};
use crate::size;

pub(crate) use import::{Import, import};

/// What `export` is told.
#[derive(Args)]
pub(crate) struct Export {
    /// Its name, or `id:NUMBER`.
    volume: String,
    /// A file, which must not exist; `-`: standard output.
    file: String,
    /// As it was in this snapshot; otherwise as it is now, in use or not: a snapshot is taken for as long as it lasts.
    #[arg(long, value_name = "SNAPSHOT")]
    snapshot: Option<String>,
    /// Only what was written after this older snapshot, as a diff.
    #[arg(long, value_name = "SNAPSHOT")]
    from: Option<String>,
    /// Everything, but as a diff: without zeros, and with the name of the snapshot.
    #[arg(long)]
    diff: bool,
}

/// What `diff` is told.
#[derive(Args)]
pub(crate) struct Diff {
    /// Its name, or `id:NUMBER`.
    volume: String,
    /// Since this snapshot; otherwise everything that has content.
    #[arg(long, value_name = "SNAPSHOT")]
    from: Option<String>,
    /// Until this snapshot; otherwise until now.
    #[arg(long, value_name = "SNAPSHOT")]
    to: Option<String>,
}

/// What `rollback` is told.
#[derive(Args)]
pub(crate) struct Rollback {
    /// Its name, or `id:NUMBER`.
    volume: String,
    /// The snapshot, which stays.
    #[arg(long, value_name = "SNAPSHOT")]
    to: String,
    /// Say how much would be written; write nothing.
    #[arg(long)]
    dry_run: bool,
}

/// What `flatten` is told.
#[derive(Args)]
pub(crate) struct Flatten {
    /// Its name, or `id:NUMBER`.
    volume: String,
    /// Say how much would be copied; copy nothing.
    #[arg(long)]
    dry_run: bool,
}

fn failed(error: TransferError) -> Failure {
    Failure::new(Code::Failed, error.to_string())
}

/// A snapshot of this volume that can be read.
async fn snapshot_of(
    client: &MetaClient,
    volume: &meta::Volume,
    name: &str,
) -> Result<meta::GetSnapshotReply, Failure> {
    let request = meta::GetSnapshotRequest { snapshot: Some(snapshot::reference(name)?) };
    let reply = client.get_snapshot(request).await?;
    let shown = reply.snapshot.clone().unwrap_or_default();
    if shown.volume != volume.id {
        let message = format!("`{name}` is a snapshot of volume {}, not of {}", shown.volume_name, volume.name);
        return Err(Failure::new(Code::Failed, message));
    }
    if shown.phase() != meta::SnapshotPhase::Ready {
        return Err(Failure::new(Code::Failed, format!("snapshot `{name}` is not complete; try again in a moment")));
    }
    Ok(reply)
}

fn id_of(reply: &meta::GetSnapshotReply) -> SnapId {
    SnapId(reply.snapshot.as_ref().map_or(0, |snapshot| snapshot.id))
}

/// A diff begins at an older snapshot.
fn in_order(from: Option<&meta::GetSnapshotReply>, to: Option<&meta::GetSnapshotReply>) -> Outcome {
    match (from, to) {
        (Some(from), Some(to)) if id_of(from) >= id_of(to) => {
            let name = |reply: &meta::GetSnapshotReply| reply.snapshot.clone().unwrap_or_default().name;
            let message = format!("snapshot `{}` is not older than `{}`", name(from), name(to));
            Err(Failure::new(Code::Failed, message))
        }
        _ => Ok(()),
    }
}

fn since(from: Option<&meta::GetSnapshotReply>, parents: bool) -> Since {
    from.map_or(Since::Ever { parents }, |reply| Since::Snapshot(id_of(reply)))
}

async fn collect(volume: &dyn Blocks, since: Since) -> Result<Vec<Extent>, Failure> {
    let mut extents: Vec<Extent> = Vec::new();
    let mut all = pin!(cairn_transfer::extents(volume, since));
    while let Some(extent) = all.try_next().await.map_err(failed)? {
        match extents.last_mut().filter(|last| last.data == extent.data && last.offset + last.len == extent.offset) {
            Some(last) => last.len += extent.len,
            None => extents.push(extent),
        }
    }
    Ok(extents)
}

fn bytes_of(extents: &[Extent]) -> u64 {
    extents.iter().filter(|extent| extent.data).map(|extent| extent.len).sum()
}

// ------------------------------------------------------------------------------------------------------------------- du

/// What one volume, or one snapshot of it, takes.
struct Use {
    volume: String,
    snapshot: Option<String>,
    size: u64,
    used: u64,
}

impl Use {
    fn to_json(&self) -> serde_json::Value {
        json!({ "volume": self.volume, "snapshot": self.snapshot, "size": self.size, "used": self.used })
    }
}

/// How much of volumes, and of their snapshots, has content of their own.
pub(crate) async fn du(names: &[String], target: &Target) -> Outcome {
    let cluster = Cluster::new(target.connect()?.0);
    let volumes = match names {
        [] => all(&cluster.client, meta::ListVolumesRequest::default()).await?,
        names => {
            let mut volumes = Vec::new();
            for name in names {
                volumes.push(find(&cluster.client, name).await?);
            }
            volumes
        }
    };
    let mut rows = Vec::new();
    for volume in &volumes {
        let mut before = None;
        for taken in snapshot::all(&cluster.client, Some(&format!("id:{}", volume.id))).await? {
            if taken.phase() != meta::SnapshotPhase::Ready {
                continue;
            }
            let reply = snapshot_of(&cluster.client, volume, &format!("id:{}", taken.id)).await?;
            let view = cluster.open(&Holding::of_snapshot(&reply)?);
            let used = bytes_of(&collect(&view, since(before.as_ref(), false)).await?);
            rows.push(Use { volume: volume.name.clone(), snapshot: Some(taken.name), size: taken.size, used });
            before = Some(reply);
        }
        let used = match cluster.look_at(volume).await? {
            Some(view) => bytes_of(&collect(&view, since(before.as_ref(), false)).await?),
            None => 0,
        };
        rows.push(Use { volume: volume.name.clone(), snapshot: None, size: volume.size, used });
    }
    if target.output == Format::Json {
        output::json(&rows.iter().map(Use::to_json).collect::<Vec<_>>());
        return Ok(());
    }
    let total = rows.iter().map(|row| row.used).sum::<u64>();
    let row = |row: Use| vec![row.volume, row.snapshot.unwrap_or_default(), size::show(row.size), size::show(row.used)];
    let lines = rows.into_iter().map(row);
    let last = vec!["(total)".to_owned(), String::new(), String::new(), size::show(total)];
    output::table(&["VOLUME", "SNAPSHOT", "SIZE", "USED"], lines.chain([last]));
    Ok(())
}

// ----------------------------------------------------------------------------------------------------------------- diff

/// What has changed between two snapshots, or until now.
pub(crate) async fn diff(options: &Diff, target: &Target) -> Outcome {
    let cluster = Cluster::new(target.connect()?.0);
    let volume = find(&cluster.client, &options.volume).await?;
    let from = cluster.snapshot(&volume, options.from.as_deref()).await?;
    let to = cluster.snapshot(&volume, options.to.as_deref()).await?;
    in_order(from.as_ref(), to.as_ref())?;
    let view = match &to {
        Some(reply) => Some(cluster.open(&Holding::of_snapshot(reply)?)),
        None => match cluster.look_at(&volume).await? {
            // A clone that nobody attached yet is what it was made of.
            None if from.is_none() => cluster.parent_of(&volume).await?,
            view => view,
        },
    };
    let extents = match &view {
        Some(view) => collect(view, since(from.as_ref(), true)).await?,
        None => Vec::new(),
    };
    let word = |extent: &Extent| if extent.data { "data" } else { "zero" };
    if target.output == Format::Json {
        let row = |extent: &Extent| json!({"offset": extent.offset, "length": extent.len, "type": word(extent)});
        output::json(&extents.iter().map(row).collect::<Vec<_>>());
        return Ok(());
    }
    let rows =
        extents.iter().map(|extent| vec![extent.offset.to_string(), extent.len.to_string(), word(extent).into()]);
    output::table(&["OFFSET", "LENGTH", "TYPE"], rows);
    Ok(())
}

// --------------------------------------------------------------------------------------------------------------- export

/// A volume, or a snapshot of it, out into a file.
pub(crate) async fn export(options: &Export, target: &Target) -> Outcome {
    let cluster = Cluster::new(target.connect()?.0);
    let volume = find(&cluster.client, &options.volume).await?;
    let from = cluster.snapshot(&volume, options.from.as_deref()).await?;
    let mut out = Output::create(&options.file).await?;
    let (view, temporary) = match &options.snapshot {
        Some(name) => (snapshot_of(&cluster.client, &volume, name).await?, None),
        None => {
            let taken = cluster.take_temporary(&volume).await?;
            (snapshot_of(&cluster.client, &volume, &format!("id:{taken}")).await?, Some(taken))
        }
    };
    let written = async {
        in_order(from.as_ref(), Some(&view))?;
        let source = cluster.open(&Holding::of_snapshot(&view)?);
        let progress = bar(Blocks::size(&source), "exported");
        let mut tell = |at| progress.set_position(at);
        let shown = view.snapshot.clone().unwrap_or_default();
        if from.is_some() || options.diff {
            let name = |reply: &meta::GetSnapshotReply| reply.snapshot.clone().map(|snapshot| snapshot.name);
            let (from_name, to) = (from.as_ref().and_then(name), Some(shown.name).filter(|_| temporary.is_none()));
            let header = Header { from: from_name, to, size: shown.size };
            let since = since(from.as_ref(), true);
            let whole = cairn_transfer::export_diff(&source, since, &header, &mut out, &mut tell);
            unless_interrupted(whole).await?.map_err(failed)?;
        } else {
            unless_interrupted(cairn_transfer::export_raw(&source, &mut out, &mut tell)).await?.map_err(failed)?;
        }
        progress.finish_and_clear();
        Ok(shown.size)
    };
    let written: Result<u64, Failure> = written.await;
    if let Some(id) = temporary {
        cluster.drop_temporary(id).await?;
    }
    let (file, bytes) = (options.file.as_str(), out.end(written.is_ok()).await?);
    let size = written?;
    if file != "-" && target.output == Format::Json {
        output::json(&json!({ "volume": volume.name, "file": file, "size": size, "bytes": bytes }));
    } else if file != "-" {
        println!("volume {} exported to {file}: {} of {}", volume.name, size::show(bytes), size::show(size));
    }
    Ok(())
}

// --------------------------------------------------------------------------------------------- rollback, flatten

/// A volume as it was in a snapshot.
pub(crate) async fn rollback(options: &Rollback, target: &Target) -> Outcome {
    let cluster = Cluster::new(target.connect()?.0);
    let volume = find(&cluster.client, &options.volume).await?;
    let taken = snapshot_of(&cluster.client, &volume, &options.to).await?;
    let name = taken.snapshot.clone().unwrap_or_default().name;
    if options.dry_run {
        let changed = match cluster.look_at(&volume).await? {
            Some(view) => collect(&view, Since::Snapshot(id_of(&taken))).await?,
            None => Vec::new(),
        };
        let bytes = changed.iter().map(|extent| extent.len).sum();
        println!(
            "would make volume {} as it was in snapshot {name}: {} differ at most",
            volume.name,
            size::show(bytes)
        );
        return Ok(());
    }
    let held = cluster.hold(&volume, Some(id_of(&taken))).await?;
    let view = cluster.open(&Holding::of_snapshot(&taken)?);
    let progress = bar(volume.size, "rolled back");
    let mut tell = |at| progress.set_position(at);
    let done = cairn_transfer::restore(&held.volume, &view, id_of(&taken), &mut tell);
    let done = unless_interrupted(done).await.and_then(|done| done.map_err(failed));
    progress.finish_and_clear();
    let unfinished = |failure: Failure| {
        let message = format!(
            "{failure}; volume {} stays closed until it is done: cairn volume rollback {} --to {name}",
            volume.name, volume.name
        );
        Failure::new(failure.code, message)
    };
    let completed = if done.is_ok() { meta::Completed::Restore } else { meta::Completed::Nothing };
    let ended = held.end(completed).await;
    done.map_err(unfinished)?;
    ended?;
    hold::done(&volume, &format!("is as it was in snapshot {name}"), target.output);
    Ok(())
}

/// A clone that needs its parents no more.
pub(crate) async fn flatten(options: &Flatten, target: &Target) -> Outcome {
    let cluster = Cluster::new(target.connect()?.0);
    let volume = find(&cluster.client, &options.volume).await?;
    if volume.parents.is_empty() {
        hold::done(&volume, "has no parents", target.output);
        return Ok(());
    }
    if options.dry_run {
        let own = match cluster.look_at(&volume).await? {
            Some(view) => bytes_of(&collect(&view, Since::Ever { parents: false }).await?),
            None => 0,
        };
        let theirs = match cluster.parent_of(&volume).await? {
            Some(view) => bytes_of(&collect(&view, Since::Ever { parents: true }).await?),
            None => 0,
        };
        let (name, theirs, own) = (&volume.name, size::show(theirs), size::show(own));
        println!("would copy up to {theirs} from the parents of volume {name}, which has {own} of its own");
        return Ok(());
    }
    let held = cluster.hold(&volume, None).await?;
    let progress = bar(volume.size, "flattened");
    let mut tell = |at| progress.set_position(at);
    let done = unless_interrupted(cairn_transfer::flatten(&held.volume, &mut tell)).await;
    let done = done.and_then(|done| done.map_err(failed));
    progress.finish_and_clear();
    let completed = if done.is_ok() { meta::Completed::Flatten } else { meta::Completed::Nothing };
    let ended = held.end(completed).await;
    done?;
    ended?;
    hold::done(&volume, "has everything of its own", target.output);
    Ok(())
}
