//! `cairn volume create|ls|info|resize|rename|label|rm|attach|detach`.

use std::collections::BTreeMap;

use cairn_meta_client::MetaClient;
use cairn_proto::attach::attach_daemon_client::AttachDaemonClient;
use cairn_proto::attach::{ExportRequest, Exported, UnexportRequest};
use cairn_proto::meta;
use clap::Subcommand;
use serde_json::{Value, json};
use tonic::transport::Channel;

use super::{Target, labels};
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
        /// Its size: 10Gi.
        #[arg(long, value_parser = size::parse)]
        size: u64,
        /// Its pool; may be left out when there is only one.
        #[arg(long, default_value = "")]
        pool: String,
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
    /// Delete a volume and its data.
    #[command(visible_alias = "delete")]
    Rm {
        /// Its name, or `id:NUMBER`.
        volume: String,
        /// Say what would be deleted; delete nothing.
        #[arg(long)]
        dry_run: bool,
    },
}

pub(crate) async fn run(verb: VolumeVerb, target: &Target) -> Outcome {
    let client = target.connect()?.0;
    match verb {
        VolumeVerb::Create { name, size, pool } => {
            let request = meta::CreateVolumeRequest { mutation: None, name, pool, size, labels: Default::default() };
            let reply = client.create_volume(request).await?;
            let verb = if reply.existed { "exists already" } else { "made" };
            one(reply.volume, verb, target.output)
        }
        VolumeVerb::Ls { label } => list(&all(&client, label.into_iter().collect()).await?, target.output),
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
        VolumeVerb::Rm { volume, dry_run } => remove(&client, &volume, dry_run).await,
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

async fn remove(client: &MetaClient, name: &str, dry_run: bool) -> Outcome {
    let volume = find(client, name).await?;
    if dry_run {
        println!("would delete volume {} ({}) and its data", volume.name, size::show(volume.size));
        return Ok(());
    }
    let by = Some(meta::volume_ref::By::Id(volume.id));
    client.delete_volume(meta::DeleteVolumeRequest { mutation: None, volume: Some(meta::VolumeRef { by }) }).await?;
    println!("volume {} deleted", volume.name);
    Ok(())
}

async fn find(client: &MetaClient, name: &str) -> Result<meta::Volume, Failure> {
    let request = meta::GetVolumeRequest { volume: Some(reference(name)?) };
    let volume = client.get_volume(request).await?.volume;
    volume.ok_or_else(|| Failure::new(Code::NotFound, format!("there is no volume {name}")))
}

async fn all(client: &MetaClient, labels: BTreeMap<String, String>) -> Result<Vec<meta::Volume>, Failure> {
    let mut volumes = Vec::new();
    let mut page_token = String::new();
    loop {
        let labels = labels.clone();
        let request = meta::ListVolumesRequest { page_size: 500, page_token, labels, ..Default::default() };
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

fn reference(text: &str) -> Result<meta::VolumeRef, Failure> {
    let by = match text.strip_prefix("id:") {
        Some(number) => {
            let wrong = |_| Failure::new(Code::Failed, format!("`{text}` is not a volume id; write id:NUMBER"));
            meta::volume_ref::By::Id(number.parse().map_err(wrong)?)
        }
        None => meta::volume_ref::By::Name(text.to_owned()),
    };
    Ok(meta::VolumeRef { by: Some(by) })
}

fn to_json(volume: &meta::Volume) -> Value {
    let attachments: Vec<Value> = volume
        .attachments
        .iter()
        .map(|a| json!({"generation": a.generation, "node": a.node, "mode": a.mode().as_str_name()}))
        .collect();
    json!({
        "id": volume.id, "name": volume.name, "pool": volume.pool_name, "size": volume.size,
        "labels": volume.labels, "attachments": attachments, "published_nodes": volume.published_nodes,
        "created_at_s": volume.created_at_s,
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
    for a in &volume.attachments {
        println!("attached    {} under generation {} ({})", a.node, a.generation, a.mode().as_str_name());
    }
    for (key, value) in &volume.labels {
        println!("label       {key}={value}");
    }
    Ok(())
}
