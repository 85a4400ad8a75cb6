//! `cairn snapshot create|ls|info|rm`.

use cairn_meta_client::MetaClient;
use cairn_proto::meta;
use clap::Subcommand;
use serde_json::{Value, json};

use super::{Target, volume};
use crate::failure::{Code, Failure, Outcome};
use crate::output::{self, Format};
use crate::size;

/// What can be asked of snapshots.
#[derive(Subcommand)]
pub(crate) enum SnapshotVerb {
    /// Take a snapshot: everything acknowledged before, and nothing written after. Its volume may be in use.
    Create {
        /// Its name, unique among snapshots.
        name: String,
        /// The volume, by name or `id:NUMBER`.
        #[arg(long)]
        volume: String,
    },
    /// All snapshots, or those of one volume.
    Ls {
        /// The volume, by name or `id:NUMBER`.
        #[arg(long)]
        volume: Option<String>,
    },
    /// One snapshot.
    Info {
        /// Its name, or `id:NUMBER`.
        snapshot: String,
    },
    /// Delete a snapshot. Clones that were made of it stay as they are.
    Rm {
        /// Its name, or `id:NUMBER`.
        snapshot: String,
        /// Say what would be deleted; delete nothing.
        #[arg(long)]
        dry_run: bool,
    },
}

pub(crate) async fn run(verb: SnapshotVerb, target: &Target) -> Outcome {
    let client = target.connect()?.0;
    match verb {
        SnapshotVerb::Create { name, volume } => {
            let volume = Some(volume::reference(&volume)?);
            let request = meta::CreateSnapshotRequest { mutation: None, name, volume, labels: Default::default() };
            let reply = client.create_snapshot(request).await?;
            let verb = if reply.existed { "exists already" } else { "taken" };
            let snapshot = reply.snapshot.ok_or_else(|| Failure::new(Code::Failed, "the answer holds no snapshot"))?;
            if target.output == Format::Json {
                output::json(&to_json(&snapshot));
            } else {
                println!(
                    "snapshot {} {verb}: of volume {}, {}",
                    snapshot.name,
                    snapshot.volume_name,
                    size::show(snapshot.size)
                );
            }
            Ok(())
        }
        SnapshotVerb::Ls { volume } => list(&all(&client, volume.as_deref()).await?, target.output),
        SnapshotVerb::Info { snapshot } => info(&find(&client, &snapshot).await?, target.output),
        SnapshotVerb::Rm { snapshot, dry_run } => remove(&client, &snapshot, dry_run).await,
    }
}

/// A snapshot by name or `id:NUMBER`.
pub(super) fn reference(text: &str) -> Result<meta::SnapshotRef, Failure> {
    let by = match text.strip_prefix("id:") {
        Some(number) => {
            let wrong = |_| Failure::new(Code::Failed, format!("`{text}` is not a snapshot id; write id:NUMBER"));
            meta::snapshot_ref::By::Id(number.parse().map_err(wrong)?)
        }
        None => meta::snapshot_ref::By::Name(text.to_owned()),
    };
    Ok(meta::SnapshotRef { by: Some(by) })
}

async fn find(client: &MetaClient, name: &str) -> Result<meta::Snapshot, Failure> {
    let request = meta::GetSnapshotRequest { snapshot: Some(reference(name)?) };
    let snapshot = client.get_snapshot(request).await?.snapshot;
    snapshot.ok_or_else(|| Failure::new(Code::NotFound, format!("there is no snapshot {name}")))
}

pub(super) async fn all(client: &MetaClient, volume: Option<&str>) -> Result<Vec<meta::Snapshot>, Failure> {
    let volume = volume.map(volume::reference).transpose()?;
    let mut snapshots = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = meta::ListSnapshotsRequest { page_size: 500, page_token, volume: volume.clone() };
        let page = client.list_snapshots(request).await?;
        snapshots.extend(page.snapshots);
        if page.next_page_token.is_empty() {
            return Ok(snapshots);
        }
        page_token = page.next_page_token;
    }
}

async fn remove(client: &MetaClient, name: &str, dry_run: bool) -> Outcome {
    let snapshot = find(client, name).await?;
    if dry_run {
        println!("would delete snapshot {} of volume {}", snapshot.name, snapshot.volume_name);
        if snapshot.children > 0 {
            println!("its data would stay for {} clones and snapshots of clones", snapshot.children);
        }
        return Ok(());
    }
    let by = Some(meta::snapshot_ref::By::Id(snapshot.id));
    let request = meta::DeleteSnapshotRequest { mutation: None, snapshot: Some(meta::SnapshotRef { by }) };
    client.delete_snapshot(request).await?;
    println!("snapshot {} deleted", snapshot.name);
    Ok(())
}

fn word(snapshot: &meta::Snapshot) -> &'static str {
    match snapshot.phase() {
        meta::SnapshotPhase::Ready => "ready",
        meta::SnapshotPhase::Going => "going",
        meta::SnapshotPhase::Taking | meta::SnapshotPhase::Unspecified => "being taken",
    }
}

fn to_json(snapshot: &meta::Snapshot) -> Value {
    json!({
        "id": snapshot.id, "name": snapshot.name, "volume": snapshot.volume, "volume_name": snapshot.volume_name,
        "pool": snapshot.pool_name, "size": snapshot.size, "created_at_s": snapshot.created_at_s,
        "state": word(snapshot), "labels": snapshot.labels, "children": snapshot.children,
    })
}

fn list(snapshots: &[meta::Snapshot], format: Format) -> Outcome {
    if format == Format::Json {
        output::json(&snapshots.iter().map(to_json).collect::<Vec<_>>());
        return Ok(());
    }
    let rows = snapshots.iter().map(|snapshot| {
        vec![
            snapshot.name.clone(),
            snapshot.id.to_string(),
            snapshot.volume_name.clone(),
            size::show(snapshot.size),
            word(snapshot).to_owned(),
            snapshot.children.to_string(),
        ]
    });
    output::table(&["SNAPSHOT", "ID", "VOLUME", "SIZE", "STATE", "CHILDREN"], rows);
    Ok(())
}

fn info(snapshot: &meta::Snapshot, format: Format) -> Outcome {
    if format == Format::Json {
        output::json(&to_json(snapshot));
        return Ok(());
    }
    println!("name        {}", snapshot.name);
    println!("id          {}", snapshot.id);
    println!("volume      {} (id:{})", snapshot.volume_name, snapshot.volume);
    println!("size        {} ({} bytes)", size::show(snapshot.size), snapshot.size);
    println!("pool        {}", snapshot.pool_name);
    println!("state       {}", word(snapshot));
    println!("children    {}", snapshot.children);
    for (key, value) in &snapshot.labels {
        println!("label       {key}={value}");
    }
    Ok(())
}
