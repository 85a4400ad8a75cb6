//! `cairn meta ls`, `add`, `remove`, `replace`, `promote`, `update`, `backup`, `restore`: the metadata members themselves.

use std::path::PathBuf;

use cairn_proto::meta;
use cairn_proto::meta::change_member_request::Change;
use clap::Subcommand;
use serde_json::{Value, json};

use super::meta_here::{self, Here};
use super::{Metadata, Target};
use crate::failure::{Code, Failure, Outcome};
use crate::output::{self, Format};

/// A member that is asked for a backup gives the next piece within this time.
const SILENCE: std::time::Duration = std::time::Duration::from_secs(30);

/// What can be asked of the metadata members.
#[derive(Subcommand)]
pub(crate) enum MetaVerb {
    /// The members: who votes, who leads, how far each is.
    Ls(Target),
    /// Add a member: a learner that votes by itself once it has caught up. One of this host's cluster is started and
    /// waited for; elsewhere it is started with `cairn meta --dir DIR --listen ADDRESS --join MEMBERS`, before or after.
    Add {
        /// host:port that the others will reach it at. Without it: one of this host.
        address: Option<String>,
        /// Leave it a learner, until `cairn meta promote`.
        #[arg(long)]
        learner: bool,
        /// Say what would be done; do nothing.
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        target: Target,
    },
    /// Remove a member. Refused where no majority would be left.
    Remove {
        /// Its number.
        id: u64,
        /// Say what would be done; do nothing.
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        target: Target,
    },
    /// Replace a member, a dead one or one whose disk is lost: a new one catches up, and takes its vote in the step in
    /// which the old one goes. One of this host's cluster is started and waited for, in a directory of its own.
    Replace {
        /// The number of the one that goes.
        id: u64,
        /// host:port of the new one. Without it: the old one's, where that does not answer, or another one of this host.
        address: Option<String>,
        /// Say what would be done; do nothing.
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        target: Target,
    },
    /// Give a learner its vote.
    Promote {
        /// Its number.
        id: u64,
        /// Say what would be done; do nothing.
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        target: Target,
    },
    /// Tell the others that a member is reached at another address.
    Update {
        /// Its number.
        id: u64,
        /// host:port.
        address: String,
        /// Say what would be done; do nothing.
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        target: Target,
    },
    /// Write the whole metadata, as of now, into a file.
    Backup {
        /// The file; must not be there.
        file: PathBuf,
        #[command(flatten)]
        target: Target,
    },
    /// Make the directory of a new member from a backup, when all members are lost. The cluster goes on from there under
    /// a new raft identity; refused while a member of the old one answers.
    Restore {
        /// The backup.
        file: PathBuf,
        /// The new member's directory; must be empty. Without it: those of all members of the cluster in --dir.
        #[arg(long)]
        data: Option<PathBuf>,
        /// The new member's number.
        #[arg(long, default_value_t = 1)]
        id: u64,
        /// All members that the restored cluster begins with: 1=host:port,...
        #[arg(long, value_delimiter = ',', value_parser = crate::roles::member)]
        members: Vec<(u64, String)>,
        /// An OSD that is lost for ever; the others are waited for, because they may know more than the backup.
        #[arg(long)]
        lost_osd: Vec<u32>,
        /// Check the backup and say what would be made; make nothing.
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        target: Target,
    },
}

pub(crate) async fn run(verb: MetaVerb) -> Outcome {
    match verb {
        MetaVerb::Ls(target) => list(&target).await,
        MetaVerb::Add { address, learner, dry_run, target } => {
            let add = meta::AddMember { stay_learner: learner, ..Default::default() };
            begin(&target, address, add, dry_run).await
        }
        MetaVerb::Replace { id, address, dry_run, target } => {
            let add = meta::AddMember { replaces: id, ..Default::default() };
            begin(&target, address, add, dry_run).await
        }
        MetaVerb::Remove { id, dry_run, target } => {
            change(&target, Change::Remove(id), dry_run).await?;
            if dry_run {
                return Ok(());
            }
            meta_here::wait_until_settled(&target.connect()?).await?;
            meta_here::follow(&target).await
        }
        MetaVerb::Promote { id, dry_run, target } => {
            let promote = meta::PromoteMember { id, instead_of: 0 };
            change(&target, Change::Promote(promote), dry_run).await?;
            if dry_run { Ok(()) } else { meta_here::wait_until_settled(&target.connect()?).await }
        }
        MetaVerb::Update { id, address, dry_run, target } => {
            let update = meta::UpdateMember { id, address };
            change(&target, Change::Update(update), dry_run).await.map(|_| ())
        }
        MetaVerb::Backup { file, target } => backup(&file, &target).await,
        MetaVerb::Restore { file, data, id, members, lost_osd, dry_run, target } => {
            super::restore::run(super::restore::Options { file, data, id, members, lost_osd, dry_run }, &target).await
        }
    }
}

async fn list(target: &Target) -> Outcome {
    let status = target.connect()?.at_leader().await?;
    if target.output == Format::Json {
        output::json(&status.members.iter().map(|m| to_json(m, status.leader_id)).collect::<Vec<_>>());
        return Ok(());
    }
    let rows = status.members.iter().map(|m| {
        let role = match (m.id == status.leader_id, m.learner) {
            (true, _) => "leads".to_owned(),
            (_, true) => "learns".to_owned(),
            _ => "votes".to_owned(),
        };
        let becomes = match (m.replaces, m.learner, m.stay_learner) {
            (0, true, false) => "votes once it has caught up".to_owned(),
            (0, _, _) => String::new(),
            (old, _, _) => format!("takes the place of member {old}"),
        };
        let reachable = if m.healthy { "yes" } else { "no" };
        let log = if m.matched == 0 { "-".to_owned() } else { m.matched.to_string() };
        vec![m.id.to_string(), m.address.clone(), role, reachable.to_owned(), log, becomes]
    });
    output::table(&["MEMBER", "ADDRESS", "ROLE", "REACHABLE", "LOG", "NEXT"], rows);
    if status.leader_id == status.member_id && !status.settled {
        println!("the latest change is not known to a majority yet: until it is, no other member may be lost for good");
    }
    Ok(())
}

fn to_json(m: &meta::Member, leader: u64) -> Value {
    json!({
        "id": m.id, "address": m.address, "leader": m.id == leader, "learner": m.learner, "reachable": m.healthy,
        "matched": m.matched, "replaces": m.replaces,
    })
}

/// A new member: announced, and where it is one of this host started and waited for.
async fn begin(target: &Target, address: Option<String>, mut add: meta::AddMember, dry_run: bool) -> Outcome {
    let metadata = target.connect()?;
    let here = Here::at(target)?;
    add.address = match (&here, address) {
        (_, Some(address)) => address,
        (Some(here), None) => here.address(add.replaces, &metadata.status().await?)?,
        (None, None) => {
            let message = "say where it is to be: no cluster runs here from --dir, so the address is not known";
            return Err(Failure::new(Code::Failed, message));
        }
    };
    let Some(mut here) = here.filter(|here| !dry_run && here.is_here(&add.address)) else {
        let reply = change(target, Change::Add(add), dry_run).await?;
        next_step(&reply, dry_run, target);
        return Ok(());
    };
    // What would be refused is refused before anything stops.
    let request = meta::ChangeMemberRequest { dry_run: true, change: Some(Change::Add(add.clone())), mutation: None };
    metadata.0.change_member(request).await?;
    let made_room = here.make_room(&add).await?;
    let reply = match change(target, Change::Add(add.clone()), false).await {
        Err(failure) if made_room => {
            here.take_back(&add)?;
            return Err(failure);
        }
        reply => reply?,
    };
    let id = reply.member.map_or(0, |member| member.id);
    here.start(id, add.address)?;
    meta_here::wait_for(&metadata, id, add.stay_learner).await?;
    meta_here::follow(target).await?;
    if target.output == Format::Table {
        println!("member {id} {}", if add.stay_learner { "learns" } else { "votes" });
    }
    Ok(())
}

async fn change(target: &Target, change: Change, dry_run: bool) -> Result<meta::ChangeMemberReply, Failure> {
    let metadata = target.connect()?;
    let request = meta::ChangeMemberRequest { mutation: None, dry_run, change: Some(change) };
    let reply = metadata.0.change_member(request).await?;
    if target.output == Format::Json {
        let members: Vec<Value> = reply.members.iter().map(|m| to_json(m, 0)).collect();
        let id = reply.member.as_ref().map_or(0, |m| m.id);
        output::json(&json!({"dry_run": dry_run, "member": id, "did": reply.words, "members": members}));
    } else {
        println!("{}{}", if dry_run { "would do: " } else { "" }, reply.words);
    }
    Ok(reply)
}

fn next_step(reply: &meta::ChangeMemberReply, dry_run: bool, target: &Target) {
    let Some(member) = reply.member.as_ref().filter(|_| !dry_run && target.output == Format::Table) else { return };
    let others: Vec<&str> =
        reply.members.iter().filter(|m| !m.learner && m.id != member.replaces).map(|m| m.address.as_str()).collect();
    println!("start it there: cairn meta --dir DIR --listen {} --join {}", member.address, others.join(","));
}

async fn backup(file: &std::path::Path, target: &Target) -> Outcome {
    let failed = |error: cairn_meta::backup::BackupError| Failure::new(Code::Failed, error.to_string());
    let mut writer = cairn_meta::backup::Writer::create(file).map_err(failed)?;
    let metadata = target.connect()?;
    let mut pieces = metadata.0.backup().await?;
    let (mut index, mut last) = (0, false);
    loop {
        let next = tokio::time::timeout(SILENCE, pieces.message()).await;
        let next = next.map_err(|_| Failure::new(Code::Failed, "the backup broke off: the member fell silent"))?;
        let Some(piece) = next.map_err(Failure::while_("the backup broke off"))? else { break };
        index = piece.head.as_ref().map_or(index, |head| head.index);
        last = writer.take(piece).map_err(failed)?;
    }
    if !last {
        return Err(Failure::new(Code::Failed, "the backup broke off; nothing was written; try again"));
    }
    let (bytes, records) = writer.finish().map_err(failed)?;
    if target.output == Format::Json {
        output::json(&json!({"file": file, "bytes": bytes, "records": records, "index": index}));
    } else {
        let shown = crate::size::show(bytes);
        println!("{}: {records} records in {shown}, everything through log entry {index}", file.display());
    }
    Ok(())
}

impl Metadata {
    /// The leader's own words, if it can be asked: it alone knows how far the others are.
    pub(super) async fn at_leader(&self) -> Result<meta::StatusReply, Failure> {
        let status = self.status().await?;
        let leader = status.members.iter().find(|m| m.id == status.leader_id && m.id != status.member_id);
        let Some(leader) = leader else { return Ok(status) };
        let there = Self::at(std::slice::from_ref(&leader.address))?;
        Ok(tokio::time::timeout(std::time::Duration::from_secs(2), there.status())
            .await
            .ok()
            .and_then(Result::ok)
            .unwrap_or(status))
    }
}
