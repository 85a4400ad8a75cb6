//! `cairn volume create|ls|info|resize|rename|label|set|attach|detach|rm|undelete`; the rest is in `transfer`.

use cairn_meta_client::MetaClient;
use cairn_proto::attach::attach_daemon_client::AttachDaemonClient;
use cairn_proto::attach::{ExportRequest, Exported, UnexportRequest};
use cairn_proto::meta;
use clap::Subcommand;
use serde_json::{Value, json};
use tonic::transport::Channel;

use super::limits::{self, Limits};
use super::{Target, labels, manifest, moving, transfer, trash};
use crate::failure::{Code, Failure, Outcome};
use crate::output::{self, Format};
use crate::size;

/// What can be asked of volumes.
#[derive(Subcommand)]
pub(crate) enum VolumeVerb {
    /// Make a volume.
    Create {
        /// Its name.
        name: String,
        /// Its size: 10Gi. Of a clone it may be left out.
        #[arg(long, value_parser = size::parse, required_unless_present = "from", default_value = "0", hide_default_value = true)]
        size: u64,
        /// A clone of this snapshot: there at once, and independent of what becomes of the snapshot's volume.
        #[arg(long, value_name = "SNAPSHOT")]
        from: Option<String>,
        /// Its pool; may be left out when there is only one, or for a clone beside its source.
        #[arg(long, default_value = "")]
        pool: String,
        /// A label; may be given several times.
        #[arg(short, long, value_name = "KEY=VALUE", value_parser = labels::pair)]
        label: Vec<(String, String)>,
        #[command(flatten)]
        limits: Limits,
    },
    /// All volumes.
    #[command(alias = "list")]
    Ls {
        /// Only those with this label; given several times, with all of them.
        #[arg(short, long, value_name = "KEY=VALUE", value_parser = labels::pair)]
        label: Vec<(String, String)>,
    },
    /// One volume: who holds it, under which generation.
    Info {
        /// Its name, or `id:NUMBER`.
        volume: String,
    },
    /// Make a volume larger.
    Resize {
        /// Its name, or `id:NUMBER`.
        volume: String,
        /// The new size.
        #[arg(long, value_parser = size::parse)]
        size: u64,
    },
    /// Give a volume another name. Whoever has it attached goes on.
    Rename {
        /// Its name, or `id:NUMBER`.
        volume: String,
        /// The new one.
        new: String,
    },
    /// Set labels of a volume (`KEY=VALUE`), and take some away (`KEY-`).
    Label {
        /// Its name, or `id:NUMBER`.
        volume: String,
        /// At most 64, with keys and values of at most 256 bytes.
        #[arg(required = true, value_name = "KEY=VALUE|KEY-", value_parser = labels::change)]
        changes: Vec<labels::Change>,
    },
    /// Change the limits of a volume, also while it is attached; or how long it is kept once it is deleted.
    Set {
        /// Its name, or `id:NUMBER`.
        volume: String,
        #[command(flatten)]
        limits: Limits,
    },
    /// Make a volume a block device (or an NBD socket) on this host, and print its path.
    Attach {
        /// Its name, or `id:NUMBER`.
        volume: String,
        /// A unix socket that speaks NBD instead of a block device.
        #[arg(long)]
        nbd: bool,
        /// Only for reading.
        #[arg(long)]
        read_only: bool,
        /// Beside other nodes that attach it shared too: for programs that agree among themselves who writes where.
        #[arg(long, conflicts_with = "read_only")]
        shared: bool,
        /// Take it from whoever holds it: their writes are refused from then on, late ones too.
        #[arg(long)]
        steal: bool,
    },
    /// Take the device away again.
    Detach {
        /// Its name, or `id:NUMBER`.
        volume: String,
    },
    /// Delete a volume and its data; where it, or its pool, has a retention, it is kept in the trash for so long.
    #[command(visible_alias = "delete")]
    Rm {
        /// Its name, or `id:NUMBER`.
        volume: String,
        /// Past the trash: its data is gone at once.
        #[arg(long)]
        now: bool,
        /// Say what would be deleted; delete nothing.
        #[arg(long)]
        dry_run: bool,
    },
    /// How much space volumes and their snapshots use: of each what was written since the one before.
    Du {
        /// Their names, or `id:NUMBER`; none: all volumes.
        volumes: Vec<String>,
    },
    /// Which parts of a volume have content, or have changed since a snapshot.
    Diff(transfer::Diff),
    /// Write a volume, or what has changed since a snapshot, into a file or a pipe. It may be in use.
    Export(transfer::Export),
    /// Make a volume of a file or a pipe, or bring one up to date with a diff.
    Import(transfer::Import),
    /// Make a volume as it was in a snapshot. It must not be in use; what was written since is lost.
    Rollback(transfer::Rollback),
    /// Make a clone independent of what it was made of. It must not be in use.
    Flatten(transfer::Flatten),
    /// Take a volume out of the trash again.
    Undelete {
        /// The name it had, or `id:NUMBER`.
        volume: String,
        /// Another name, where its own is taken by now.
        #[arg(long, default_value = "")]
        name: String,
        /// Print the PersistentVolume and the claim that bind it in Kubernetes: `... --pvc NS/NAME | kubectl apply -f -`.
        #[arg(long, value_name = "NAMESPACE/NAME", value_parser = manifest::claim)]
        pvc: Option<manifest::Claim>,
        /// With --pvc: as a raw device, and not as a filesystem.
        #[arg(long, requires = "pvc")]
        block: bool,
    },
}

pub(crate) async fn run(verb: VolumeVerb, target: &Target) -> Outcome {
    let client = target.connect()?.0;
    match verb {
        VolumeVerb::Create { name, size, from, pool, label, limits } => {
            let labels = label.into_iter().collect();
            let source = from.as_deref().map(super::snapshot::reference).transpose()?;
            let mut request = meta::CreateVolumeRequest { name, pool, size, labels, source, ..Default::default() };
            limits.begin(&mut request);
            let reply = client.create_volume(request).await?;
            let verb = if reply.existed { "exists already" } else { "made" };
            one(reply.volume, verb, target.output)
        }
        VolumeVerb::Ls { label } => {
            let request = meta::ListVolumesRequest { labels: label.into_iter().collect(), ..Default::default() };
            list(&all(&client, request).await?, target.output)
        }
        VolumeVerb::Info { volume } => info(&find(&client, &volume).await?, target.output),
        VolumeVerb::Resize { volume, size } => {
            let request = meta::ResizeVolumeRequest { mutation: None, volume: Some(reference(&volume)?), size };
            one(client.resize_volume(request).await?.volume, "resized", target.output)
        }
        VolumeVerb::Rename { volume, new } => {
            let request = meta::ChangeVolumeRequest { name: new, ..changing(&volume)? };
            let words = format!("is what {volume} is called now");
            one(client.change_volume(request).await?.volume, &words, target.output)
        }
        VolumeVerb::Label { volume, changes } => {
            let mut request = changing(&volume)?;
            for change in changes {
                match change {
                    labels::Change::Set(key, value) => drop(request.labels.insert(key, value)),
                    labels::Change::Remove(key) => request.remove_labels.push(key),
                }
            }
            let volume = client.change_volume(request).await?.volume.unwrap_or_default();
            let words = format!("is labelled {}", labels::shown(&volume.labels));
            one(Some(volume), &words, target.output)
        }
        VolumeVerb::Set { limits, .. } if limits.is_empty() => {
            let words = "nothing is to be set; give --iops, --bandwidth, --burst or --retention";
            Err(Failure::new(Code::Failed, words))
        }
        VolumeVerb::Set { volume, limits } => {
            let mut request = changing(&volume)?;
            limits.change(&mut request);
            let volume = client.change_volume(request).await?.volume.unwrap_or_default();
            let limits = limits::shown(volume.limits.as_ref());
            let words = if limits.is_empty() { "has no limits".to_owned() } else { format!("may do {limits}") };
            one(Some(volume), &words, target.output)
        }
        VolumeVerb::Undelete { volume, name, pvc, block } => {
            let request = meta::UndeleteVolumeRequest { mutation: None, volume: Some(reference(&volume)?), name };
            let volume = client.undelete_volume(request).await?.volume;
            let Some(pvc) = pvc else { return one(volume, "is back", target.output) };
            let volume = volume.ok_or_else(|| Failure::new(Code::Failed, "the answer holds no volume"))?;
            print!("{}", manifest::bound(&volume, &pvc, block));
            Ok(())
        }
        VolumeVerb::Attach { volume, nbd, read_only, shared, steal } => {
            let volume = find(&client, &volume).await?;
            let exporter = if nbd { "nbd-socket" } else { "" };
            let request = ExportRequest {
                volume: volume.id,
                exporter: exporter.into(),
                read_only,
                shared,
                request_id: request_id(),
                steal,
            };
            let reply = attach_daemon(target).await?.export(request).await.map_err(refused)?.into_inner();
            exported(reply.exported, target.output)
        }
        VolumeVerb::Detach { volume } => {
            let volume = find(&client, &volume).await?;
            let request = UnexportRequest { volume: volume.id, request_id: request_id(), force: false };
            attach_daemon(target).await?.unexport(request).await.map_err(refused)?;
            println!("volume {} detached", volume.name);
            Ok(())
        }
        VolumeVerb::Du { volumes } => transfer::du(&volumes, target).await,
        VolumeVerb::Diff(options) => transfer::diff(&options, target).await,
        VolumeVerb::Export(options) => transfer::export(&options, target).await,
        VolumeVerb::Import(options) => transfer::import(&options, target).await,
        VolumeVerb::Rollback(options) => transfer::rollback(&options, target).await,
        VolumeVerb::Flatten(options) => transfer::flatten(&options, target).await,
        VolumeVerb::Rm { volume, now, dry_run } => remove(&client, &volume, now, dry_run, target.output).await,
    }
}

fn request_id() -> String {
    format!("cli-{}", std::process::id())
}

async fn attach_daemon(target: &Target) -> Result<AttachDaemonClient<Channel>, Failure> {
    let socket = target.dir.join("run/attach.sock");
    AttachDaemonClient::connect(format!("unix://{}", socket.display())).await.map_err(|error| {
        let message = format!("the attach daemon does not answer on {}: {error}", socket.display());
        Failure::new(Code::Unreachable, message)
    })
}

fn refused(status: tonic::Status) -> Failure {
    Failure::new(Code::Failed, status.message())
}

fn exported(exported: Option<Exported>, format: Format) -> Outcome {
    let exported = exported.ok_or_else(|| Failure::new(Code::Failed, "the answer names no device"))?;
    if format == Format::Json {
        output::json(&json!({
            "volume": exported.volume, "name": exported.name, "exporter": exported.exporter,
            "device": exported.device, "socket": exported.socket, "size": exported.size,
            "generation": exported.generation, "read_only": exported.read_only, "state": exported.state,
        }));
    } else {
        println!("{}", if exported.device.is_empty() { exported.socket } else { exported.device });
    }
    Ok(())
}

async fn remove(client: &MetaClient, name: &str, now: bool, dry_run: bool, format: Format) -> Outcome {
    let volume = find(client, name).await?;
    if dry_run {
        let retention_s = if now { 0 } else { retention_of(client, &volume).await? };
        let (name, size) = (&volume.name, size::show(volume.size));
        match retention_s {
            0 => println!("would delete volume {name} ({size}) and its data"),
            seconds => println!("would move volume {name} ({size}) to the trash, for {}", moving::lasting(seconds)),
        }
        if volume.snapshots > 0 {
            println!("its {} snapshots would stay until they are deleted themselves", volume.snapshots);
        }
        return Ok(());
    }
    let by = Some(meta::volume_ref::By::Id(volume.id));
    let request = meta::DeleteVolumeRequest { mutation: None, volume: Some(meta::VolumeRef { by }), now };
    let deleted = client.delete_volume(request).await?;
    match (deleted.trashed, format) {
        (trashed, Format::Json) => output::json(&to_json(&trashed.unwrap_or(volume))),
        (None, Format::Table) => println!("volume {} deleted", volume.name),
        (Some(trashed), Format::Table) => {
            println!("volume {} is in the trash, and deleted in {}", volume.name, trash::left(&trashed));
            println!("to have it back: cairn volume undelete id:{}", volume.id);
        }
    }
    Ok(())
}

/// How long a volume would be kept: by its own word, or by its pool's.
async fn retention_of(client: &MetaClient, volume: &meta::Volume) -> Result<u64, Failure> {
    if let Some(own) = volume.retention_s {
        return Ok(own);
    }
    let pools = client.list_pools(meta::ListPoolsRequest {}).await?.pools;
    let of_pool = |status: &&meta::PoolStatus| status.pool.as_ref().is_some_and(|pool| pool.id == volume.pool);
    Ok(pools.iter().find(of_pool).and_then(|status| status.rules).map_or(0, |rules| rules.retention_s))
}

pub(super) async fn find(client: &MetaClient, name: &str) -> Result<meta::Volume, Failure> {
    let request = meta::GetVolumeRequest { volume: Some(reference(name)?) };
    let volume = client.get_volume(request).await?.volume;
    volume.ok_or_else(|| Failure::new(Code::NotFound, format!("there is no volume {name}")))
}

/// Every volume that a request asks for, page by page.
pub(super) async fn all(client: &MetaClient, wanted: meta::ListVolumesRequest) -> Result<Vec<meta::Volume>, Failure> {
    let mut volumes = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = meta::ListVolumesRequest { page_size: 500, page_token, ..wanted.clone() };
        let page = client.list_volumes(request).await?;
        volumes.extend(page.volumes);
        if page.next_page_token.is_empty() {
            return Ok(volumes);
        }
        page_token = page.next_page_token;
    }
}

fn changing(volume: &str) -> Result<meta::ChangeVolumeRequest, Failure> {
    Ok(meta::ChangeVolumeRequest { volume: Some(reference(volume)?), ..Default::default() })
}

pub(super) fn reference(text: &str) -> Result<meta::VolumeRef, Failure> {
    let by = match text.strip_prefix("id:") {
        Some(number) => {
            let wrong = |_| Failure::new(Code::Failed, format!("`{text}` is not a volume id; write id:NUMBER"));
            meta::volume_ref::By::Id(number.parse().map_err(wrong)?)
        }
        None => meta::volume_ref::By::Name(text.to_owned()),
    };
    Ok(meta::VolumeRef { by: Some(by) })
}

pub(super) fn to_json(volume: &meta::Volume) -> Value {
    let attachments: Vec<Value> = volume
        .attachments
        .iter()
        .map(|a| json!({"generation": a.generation, "node": a.node, "mode": a.mode().as_str_name()}))
        .collect();
    json!({
        "id": volume.id, "name": volume.name, "pool": volume.pool_name, "size": volume.size,
        "labels": volume.labels, "attachments": attachments, "published_nodes": volume.published_nodes,
        "created_at_s": volume.created_at_s, "snapshots": volume.snapshots,
        "parent_snapshot": volume.parents.first().map(|parent| parent.snapshot),
        "created_at_s": volume.created_at_s, "limits": limits::to_json(volume.limits.as_ref()),
        "retention_s": volume.retention_s, "restoring": (volume.restoring != 0).then_some(volume.restoring),
        "deleted_at_s": volume.trashed.map(|trashed| trashed.deleted_at_s),
        "expires_at_s": volume.trashed.map(|trashed| trashed.expires_at_s),
    })
}

fn one(volume: Option<meta::Volume>, verb: &str, format: Format) -> Outcome {
    let volume = volume.ok_or_else(|| Failure::new(Code::Failed, "the answer holds no volume"))?;
    if format == Format::Json {
        output::json(&to_json(&volume));
    } else {
        println!("volume {} {verb}: {} in pool {}", volume.name, size::show(volume.size), volume.pool_name);
    }
    Ok(())
}

fn list(volumes: &[meta::Volume], format: Format) -> Outcome {
    if format == Format::Json {
        output::json(&volumes.iter().map(to_json).collect::<Vec<_>>());
        return Ok(());
    }
    let rows = volumes.iter().map(|volume| {
        let nodes: Vec<&str> = volume.attachments.iter().map(|attachment| attachment.node.as_str()).collect();
        vec![
            volume.name.clone(),
            volume.id.to_string(),
            size::show(volume.size),
            volume.pool_name.clone(),
            nodes.join(" "),
            labels::shown(&volume.labels),
        ]
    });
    output::table(&["VOLUME", "ID", "SIZE", "POOL", "ATTACHED TO", "LABELS"], rows);
    Ok(())
}

fn info(volume: &meta::Volume, format: Format) -> Outcome {
    if format == Format::Json {
        output::json(&to_json(volume));
        return Ok(());
    }
    println!("name        {}", volume.name);
    println!("id          {}", volume.id);
    println!("size        {} ({} bytes)", size::show(volume.size), volume.size);
    println!("pool        {}", volume.pool_name);
    println!(
        "published   {}",
        if volume.published_nodes.is_empty() { "-".into() } else { volume.published_nodes.join(" ") }
    );
    println!("snapshots   {}", volume.snapshots);
    if let Some(parent) = volume.parents.first() {
        println!("clone of    snapshot id:{} of volume id:{}", parent.snapshot, parent.volume);
    }
    if volume.restoring != 0 {
        println!("closed      while it is rolled back to snapshot id:{}", volume.restoring);
    }
    for a in &volume.attachments {
        println!("attached    {} under generation {} ({})", a.node, a.generation, a.mode().as_str_name());
    }
    let limits = limits::shown(volume.limits.as_ref());
    if !limits.is_empty() {
        println!("limits      {limits}");
    }
    if let Some(seconds) = volume.retention_s {
        println!("retention   {} in the trash once it is deleted", moving::lasting(seconds));
    }
    for (key, value) in &volume.labels {
        println!("label       {key}={value}");
    }
    Ok(())
}
