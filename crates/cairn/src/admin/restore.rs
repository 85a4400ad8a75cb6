//! `cairn meta restore`: refused while anybody of the old cluster answers; then one directory, or those of all members of
//! a cluster that `cairn up` made.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use cairn_host::supervisor::State;
use cairn_host::{Cluster, Layout};
use cairn_meta::restore::{Options as One, RestoreError, rehearse, restore};
use cairn_proto::meta;
use serde_json::json;
use uuid::Uuid;

use super::{Metadata, Target};
use crate::failure::{Code, Failure, Outcome};
use crate::output::{self, Format};

/// How long a member is given to say that it lives.
const PATIENCE: Duration = Duration::from_secs(2);

/// As asked for.
pub(crate) struct Options {
    pub(crate) file: PathBuf,
    pub(crate) data: Option<PathBuf>,
    pub(crate) id: u64,
    pub(crate) members: Vec<(u64, String)>,
    pub(crate) lost_osd: Vec<u32>,
    pub(crate) dry_run: bool,
}

pub(crate) async fn run(options: Options, target: &Target) -> Outcome {
    let all = plan(&options, target)?;
    let failed = |error: RestoreError| Failure::new(Code::Failed, error.to_string());
    let first = all.first().ok_or_else(|| Failure::new(Code::Failed, "there is no member to restore"))?;
    let head = rehearse(first).map_err(failed)?;
    if options.data.is_some() {
        first.refuse_if_used().map_err(failed)?;
    }
    let old = head.members.iter().map(|m| m.address.clone());
    let mut asked: BTreeSet<String> = old.chain(first.members.iter().map(|(_, address)| address.clone())).collect();
    asked.extend(target.endpoints());
    for address in &asked {
        refuse_if_alive(address, &head).await?;
    }
    if !options.dry_run {
        make(&all, options.data.is_none()).map_err(failed)?;
    }
    tell(&options, &all, &head, target);
    Ok(())
}

/// All directories, or none. What the members of this host's cluster had is put aside, and never deleted.
fn make(all: &[One], put_aside: bool) -> Result<(), RestoreError> {
    let mut made: Vec<(&One, Option<PathBuf>)> = Vec::new();
    for one in all {
        let aside = if put_aside { aside(one)? } else { None };
        made.push((one, aside));
        if let Err(error) = restore(one) {
            for (one, aside) in made {
                let _ = std::fs::remove_dir_all(&one.dir);
                if let Some(aside) = aside {
                    let _ = std::fs::rename(aside, &one.dir);
                }
            }
            return Err(error);
        }
    }
    Ok(())
}

/// Where the old contents went; `None`: there were none.
fn aside(one: &One) -> Result<Option<PathBuf>, RestoreError> {
    if one.refuse_if_used().is_ok() {
        return Ok(None);
    }
    let name = one.dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let free = (1..).map(|n| one.dir.with_file_name(format!("{name}.before-restore-{n}"))).find(|path| !path.exists());
    let path = free.expect("some number is free");
    match std::fs::rename(&one.dir, &path) {
        Ok(()) => Ok(Some(path)),
        Err(_) => Err(RestoreError::NotEmpty(one.dir.clone())),
    }
}

/// One directory as told, or those of the cluster on this host.
fn plan(options: &Options, target: &Target) -> Result<Vec<One>, Failure> {
    let one =
        |id, dir, members| One { file: options.file.clone(), dir, id, members, lost_osds: options.lost_osd.clone() };
    if let Some(dir) = &options.data {
        if options.members.is_empty() {
            let message = "say who the members of the restored cluster are: --members 1=host:port,...";
            return Err(Failure::new(Code::Failed, message));
        }
        return Ok(vec![one(options.id, dir.clone(), options.members.clone())]);
    }
    let failed = |error: String| Failure::new(Code::Failed, error);
    if !target.dir.join("cluster.json").exists() {
        let message = format!("there is no cluster in {}; say --data DIR and --members", target.dir.display());
        return Err(Failure::new(Code::NotFound, message));
    }
    let layout = Layout::at(&target.dir).map_err(|error| failed(error.to_string()))?;
    if let Some(supervisor) = State::load(&layout).and_then(|state| state.live_supervisor()) {
        let message = format!("this cluster is running (supervisor pid {}); stop it first: cairn down", supervisor.pid);
        return Err(failed(message));
    }
    let cluster = Cluster::load(&layout).map_err(|error| failed(error.to_string()))?;
    let cluster = cluster.ok_or_else(|| failed("there is no cluster here".to_owned()))?;
    if cluster.own_members.is_empty() {
        let message = "no metadata member runs on this host; restore on the hosts of the members (cairn meta ls)";
        return Err(failed(message.to_owned()));
    }
    let members: Vec<(u64, String)> = cluster.members.into_iter().map(|member| (member.id, member.address)).collect();
    Ok(cluster.own_members.iter().map(|id| one(*id, layout.meta(*id), members.clone())).collect())
}

/// Two clusters of one name would each take writes that the other does not know.
async fn refuse_if_alive(address: &str, head: &meta::BackupHead) -> Outcome {
    let Ok(metadata) = Metadata::at(&[address.to_owned()]) else { return Ok(()) };
    let answer = tokio::time::timeout(PATIENCE, metadata.status()).await;
    let Ok(Ok(status)) = answer else { return Ok(()) };
    let ours = Uuid::from_slice(&head.cluster).is_ok_and(|cluster| cluster.to_string() == status.cluster_id);
    if !ours {
        return Ok(());
    }
    let message = format!(
        "member {} of this very cluster answers at {address}: a restored cluster beside it would fork it; replace single \
         members with `cairn meta replace`, or stop this one for good first",
        status.member_id
    );
    Err(Failure::new(Code::Failed, message))
}

fn tell(options: &Options, all: &[One], head: &meta::BackupHead, target: &Target) {
    let dirs: Vec<String> = all.iter().map(|one| one.dir.display().to_string()).collect();
    if target.output == Format::Json {
        output::json(&json!({
            "dry_run": options.dry_run, "directories": dirs, "index": head.index, "epoch": head.epoch,
            "made_at_s": head.made_at_s,
        }));
        return;
    }
    let would = if options.dry_run { "would make" } else { "made" };
    println!("{would} {} from the state of log entry {}, map epoch {}", dirs.join(", "), head.index, head.epoch);
    if options.data.is_none() {
        println!(
            "what these directories held before lies beside them (*.before-restore-*); delete it when all is well"
        );
    }
    let named: Vec<u64> = all.iter().map(|one| one.id).collect();
    let elsewhere = all.first().into_iter().flat_map(|one| &one.members).filter(|(id, _)| !named.contains(id));
    let elsewhere: Vec<String> = elsewhere.map(|(id, address)| format!("member {id} at {address}")).collect();
    if !elsewhere.is_empty() {
        println!("do the same, with the same file and the same --lost-osd, where these run: {}", elsewhere.join(", "));
    }
    println!(
        "what was decided after that backup is not known; start the members, then the OSDs: no placement group is"
    );
    println!("served before every OSD has said what its disk knows (cairn health shows who is awaited)");
}
