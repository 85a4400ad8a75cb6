//! `cairn trash list|purge`: deleted volumes that are still there. `cairn volume undelete` takes one out.

use std::time::{SystemTime, UNIX_EPOCH};

use cairn_meta_client::MetaClient;
use cairn_proto::meta;
use cairn_proto::meta::purge_trash_request::What;
use clap::Subcommand;
use serde_json::Value;

use super::Target;
use super::moving::lasting;
use super::volume::{all, reference, to_json};
use crate::failure::{Code, Failure, Outcome};
use crate::output::{self, Format};
use crate::size;

/// What can be asked of the trash.
#[derive(Subcommand)]
pub(crate) enum TrashVerb {
    /// What is in it, and for how long.
    #[command(alias = "ls")]
    List,
    /// Delete a volume in the trash, or all of them, with all data. There is no way back.
    Purge {
        /// The name it had, or `id:NUMBER`.
        #[arg(required_unless_present = "all", conflicts_with = "all")]
        volume: Option<String>,
        /// Everything that is in the trash.
        #[arg(long)]
        all: bool,
        /// Say what would be deleted; delete nothing.
        #[arg(long)]
        dry_run: bool,
    },
}

pub(crate) async fn run(verb: TrashVerb, target: &Target) -> Outcome {
    let client = target.connect()?.0;
    match verb {
        TrashVerb::List => list(&content(&client).await?, target.output),
        TrashVerb::Purge { volume, dry_run: true, .. } => {
            let mut volumes = content(&client).await?;
            if let Some(wanted) = &volume {
                volumes = vec![find(volumes, wanted)?];
            }
            purged(&volumes, "would delete", target.output)
        }
        TrashVerb::Purge { volume: Some(volume), .. } => {
            let what = Some(What::Volume(reference(&volume)?));
            let reply = client.purge_trash(meta::PurgeTrashRequest { mutation: None, what }).await?;
            purged(&reply.purged, "deleted", target.output)
        }
        TrashVerb::Purge { volume: None, .. } => {
            let mut volumes = Vec::new();
            loop {
                let request = meta::PurgeTrashRequest { mutation: None, what: Some(What::All(true)) };
                let reply = client.purge_trash(request).await?;
                volumes.extend(reply.purged);
                if !reply.more {
                    return purged(&volumes, "deleted", target.output);
                }
            }
        }
    }
}

async fn content(client: &MetaClient) -> Result<Vec<meta::Volume>, Failure> {
    all(client, meta::ListVolumesRequest { trash: true, ..Default::default() }).await
}

/// The one that is meant.
fn find(volumes: Vec<meta::Volume>, wanted: &str) -> Result<meta::Volume, Failure> {
    let by = reference(wanted)?.by;
    let is_meant = |volume: &meta::Volume| match &by {
        Some(meta::volume_ref::By::Id(id)) => volume.id == *id,
        Some(meta::volume_ref::By::Name(name)) => volume.name == *name,
        None => false,
    };
    let mut meant: Vec<meta::Volume> = volumes.into_iter().filter(is_meant).collect();
    match (meant.pop(), meant.is_empty()) {
        (Some(volume), true) => Ok(volume),
        (None, _) => {
            let words = format!("there is no volume {wanted} in the trash; what there is: cairn trash list");
            Err(Failure::new(Code::NotFound, words))
        }
        (Some(_), false) => {
            let words =
                format!("several volumes in the trash were called {wanted}; say which by its number: id:NUMBER");
            Err(Failure::new(Code::Failed, words))
        }
    }
}

fn purged(volumes: &[meta::Volume], verb: &str, format: Format) -> Outcome {
    if format == Format::Json {
        output::json(&volumes.iter().map(to_json).collect::<Vec<Value>>());
        return Ok(());
    }
    for volume in volumes {
        println!("{verb} volume {} (id {}, {}) and its data", volume.name, volume.id, size::show(volume.size));
    }
    if volumes.is_empty() {
        println!("the trash is empty");
    }
    Ok(())
}

/// How long a volume stays in the trash from now on.
pub(crate) fn left(volume: &meta::Volume) -> String {
    let now_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    lasting(volume.trashed.map_or(0, |trashed| trashed.expires_at_s).saturating_sub(now_s))
}

fn list(volumes: &[meta::Volume], format: Format) -> Outcome {
    if format == Format::Json {
        output::json(&volumes.iter().map(to_json).collect::<Vec<Value>>());
        return Ok(());
    }
    let row = |volume: &meta::Volume| {
        let id = volume.id.to_string();
        vec![volume.name.clone(), id, size::show(volume.size), volume.pool_name.clone(), left(volume)]
    };
    output::table(&["VOLUME", "ID", "SIZE", "POOL", "DELETED IN"], volumes.iter().map(row));
    Ok(())
}
