//! Stories: each file under `stories/` is a list of commands and of what they answer. `STORIES=write` writes the answers
//! anew; read the difference before believing it.

mod cluster;
mod moving;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use bytes::Bytes;
use cairn_meta_core::{fence_pending, health, kv, query};
use cairn_proto::etcdserverpb::{
    CompactionRequest, DeleteRangeRequest, LeaseGrantRequest, LeaseRevokeRequest, PutRequest, RangeRequest,
};
use cairn_proto::meta::command::Payload;
use cairn_proto::meta::command_reply::Result as Answer;
use cairn_proto::meta::{
    AttachMode, AttachRequest, ChangePgsRequest, ChangePoolRequest, ChangeVolumeRequest, CommandError, Completed,
    CreatePoolRequest, CreateSnapshotRequest, CreateVolumeRequest, DeleteSnapshotRequest, DeleteVolumeReply,
    DeleteVolumeRequest, DetachRequest, DownEvidence, FinishSnapshot, InitCluster, LeaseExpire, ListVolumesRequest,
    Location, LogPoint, OsdReports, PgChange, PgId, Pool, PublishVolumeRequest, PurgeTrashRequest, RegisterNodeRequest,
    RemoveOsd, ReportDownRequest, ReportDrainedRequest, ReportOsdRequest, ReportPurgedRequest, ResizeVolumeRequest,
    SetOsdPlaced, SnapshotRef, UndeleteVolumeRequest, UnpublishVolumeRequest, Volume, VolumeLimits, VolumeRef,
    purge_trash_request::What, snapshot_ref, volume_ref,
};
use cairn_proto::mvccpb::{Event, KeyValue};
use cairn_types::map::PgConfig;
use cairn_types::{Epoch, OsdId, PoolId};
use cluster::Cluster;

#[test]
fn stories() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/stories");
    let mut told = 0;
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let fresh = tell(&text);
        if std::env::var("STORIES").is_ok_and(|what| what == "write") {
            std::fs::write(&path, &fresh).unwrap();
            continue;
        }
        for (line, (was, is)) in text.lines().zip(fresh.lines()).enumerate() {
            assert_eq!(was, is, "{}:{}", path.display(), line + 1);
        }
        assert_eq!(text, fresh, "{}", path.display());
        told += 1;
    }
    let writing = std::env::var_os("STORIES").is_some();
    assert!(told >= 8 || writing, "the stories are there");
}

/// Runs the commands of a story (lines that begin with `>`) and gives it back with their answers.
fn tell(text: &str) -> String {
    let mut cluster = Cluster::new();
    let mut out = String::new();
    for line in text.lines() {
        if let Some(command) = line.strip_prefix("> ") {
            writeln!(out, "{line}").unwrap();
            let answer = perform(&mut cluster, command);
            answer.lines().for_each(|line| writeln!(out, "  {line}").unwrap());
        } else if line.is_empty() || line.starts_with('#') {
            writeln!(out, "{line}").unwrap();
        }
    }
    out
}

/// `word word key=value flag`: words by position, values by key.
pub(crate) struct Line<'a> {
    pub(crate) words: Vec<&'a str>,
    pub(crate) values: BTreeMap<&'a str, &'a str>,
}

impl<'a> Line<'a> {
    fn parse(text: &'a str) -> Self {
        let (mut words, mut values) = (Vec::new(), BTreeMap::new());
        for part in text.split_whitespace() {
            match part.split_once('=') {
                Some((key, value)) => drop(values.insert(key, value)),
                None => words.push(part),
            }
        }
        Self { words, values }
    }

    pub(crate) fn word(&self, n: usize) -> &'a str {
        self.words.get(n).copied().unwrap_or("")
    }

    fn value(&self, key: &str) -> &'a str {
        self.values.get(key).copied().unwrap_or("")
    }

    pub(crate) fn number(&self, key: &str) -> u64 {
        number(self.value(key))
    }

    pub(crate) fn has(&self, flag: &str) -> bool {
        self.words.contains(&flag)
    }
}

/// With K, M, G, T in powers of 1024; nothing is 0.
pub(crate) fn number(text: &str) -> u64 {
    let (digits, power) = match text.char_indices().last() {
        Some((at, 'K')) => (&text[..at], 10),
        Some((at, 'M')) => (&text[..at], 20),
        Some((at, 'G')) => (&text[..at], 30),
        Some((at, 'T')) => (&text[..at], 40),
        _ => (text, 0),
    };
    if digits.is_empty() { 0 } else { digits.parse::<u64>().unwrap() << power }
}

/// Whatever a line sets besides these keys.
fn labels(line: &Line<'_>, others: &[&str]) -> BTreeMap<String, String> {
    let labels = line.values.iter().filter(|(key, _)| !others.contains(key));
    labels.map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn osds(cluster: &Cluster, names: &str) -> Vec<u32> {
    names.split(',').filter(|name| !name.is_empty()).map(|name| cluster.osd(name)).collect()
}

fn names(cluster: &Cluster, osds: &[OsdId]) -> String {
    osds.iter().map(|osd| cluster.name_of(*osd)).collect::<Vec<_>>().join(",")
}

fn by(name: &str) -> Option<VolumeRef> {
    let by = match name.strip_prefix('#') {
        Some(id) => volume_ref::By::Id(id.parse().unwrap()),
        None => volume_ref::By::Name(name.into()),
    };
    Some(VolumeRef { by: Some(by) })
}

fn snapshot_by(name: &str) -> SnapshotRef {
    SnapshotRef { by: Some(snapshot_ref::By::Name(name.into())) }
}

fn mode(text: &str) -> i32 {
    match text {
        "" | "alone" => AttachMode::Exclusive.into(),
        "ro" => AttachMode::ReadOnly.into(),
        "shared" => AttachMode::Shared.into(),
        other => panic!("{other}"),
    }
}

fn pg_id(text: &str) -> Option<PgId> {
    let (pool, index) = text.split_once('.').unwrap();
    Some(PgId { pool: pool.parse().unwrap(), index: u32::from_str_radix(index, 16).unwrap() })
}

fn bytes(text: &str) -> Bytes {
    match text {
        "\\0" => Bytes::from_static(b"\0"),
        text => Bytes::copy_from_slice(text.as_bytes()),
    }
}

fn perform(cluster: &mut Cluster, command: &str) -> String {
    let (session, command) = match command.strip_prefix('@') {
        Some(rest) => rest.split_once(' ').unwrap(),
        None => ("", command),
    };
    let line = Line::parse(command);
    if let Some(answer) = look(cluster, &line).or_else(|| moving::look(cluster, &line)) {
        return answer;
    }
    let Some(payload) = payload(cluster, &line).or_else(|| moving::payload(cluster, &line)) else {
        return format!("unknown command: {command}");
    };
    let result = match session.split(':').collect::<Vec<_>>().as_slice() {
        [name, seq, acked] => cluster.run_in(name, seq.parse().unwrap(), acked.parse().unwrap(), payload),
        _ => cluster.run(payload),
    };
    told(cluster, result)
}

/// Commands that only look, or change what the story itself keeps.
fn look(cluster: &mut Cluster, line: &Line<'_>) -> Option<String> {
    let map = cluster.machine.map();
    Some(match line.word(0) {
        "disk" => {
            let or = |key: &str| line.value(key).to_owned();
            let host = if line.value("host").is_empty() { "h1".to_owned() } else { or("host") };
            let capacity = if line.value("cap").is_empty() { 1 << 40 } else { line.number("cap") };
            cluster.add_disk(line.word(1), Location { zone: or("zone"), rack: or("rack"), host }, capacity);
            String::new()
        }
        "edit" => {
            let disk = cluster.disks.get_mut(line.word(1)).unwrap();
            if let Some(id) = line.values.get("id") {
                disk.register.id = id.parse().ok();
            }
            if let Some(text) = line.values.get("uuid") {
                disk.register.uuid = Bytes::from(format!("{text:=<16}"));
            }
            if let Some(text) = line.values.get("cluster") {
                disk.register.cluster =
                    if text.is_empty() { Bytes::new() } else { Bytes::from(format!("{text:=<16}")) };
            }
            if line.values.contains_key("incarnation") {
                disk.incarnation = line.number("incarnation");
            }
            String::new()
        }
        "register" => match cluster.register(line.word(1)) {
            Ok(reply) => format!("osd-{} i{} at e{}", reply.id, reply.incarnation, reply.epoch),
            Err(error) => refusal(&error),
        },
        "now" => {
            match line.word(1).strip_prefix('-') {
                Some(back) => cluster.now_s -= number(back),
                None => cluster.now_s += number(line.word(1)),
            }
            String::new()
        }
        "pgs" => {
            let pgs = map.pgs.iter().filter(|(id, _)| line.word(1).is_empty() || line.word(1) == id.to_string());
            pgs.map(|(id, pg)| format!("{id} {}\n", shown(cluster, pg))).collect()
        }
        "osds" => {
            let osd = |osd: &cairn_types::map::Osd| {
                let state = if osd.up { "up" } else { "down" };
                format!(
                    "{} {} {} dead<={} {state} weight={} acked={}\n",
                    cluster.name_of(osd.id),
                    osd.id,
                    osd.incarnation,
                    osd.dead_through.0,
                    osd.weight,
                    osd.acked_epoch
                )
            };
            map.osds.values().map(osd).collect()
        }
        "epoch" => map.epoch.to_string(),
        "marks" | "marks-of" => {
            let wanted = line.word(1);
            let all = map.volumes.iter().filter(|(id, _)| match line.word(0) {
                "marks" => query::volume(&cluster.state, &by(wanted).unwrap())
                    .is_ok_and(|found| found.is_some_and(|volume| volume.id == id.0)),
                _ => id.0 == number(wanted),
            });
            let marks = all.flat_map(|(_, fence)| &fence.snapshots).map(|(id, phase)| format!("{id} {phase:?}"));
            marks.collect::<Vec<_>>().join(", ")
        }
        "fence" => {
            let pending = fence_pending(map, PoolId(number(line.word(1)) as u32), Epoch(number(line.word(2))));
            match pending.holds() {
                true => "holds".into(),
                false => format!("pending: {:?} {:?}", pending.osds, pending.pgs),
            }
        }
        "health" => {
            let reply = health::health(&cluster.machine);
            let mut text = reply.status;
            for check in reply.checks {
                write!(text, "\n{} {}: {}\n  -> {}", check.severity, check.code, check.summary, check.remedy).unwrap();
                check.details.iter().for_each(|detail| write!(text, "\n  {detail}").unwrap());
            }
            text
        }
        "pools" => query::pools(&cluster.machine)
            .into_iter()
            .map(|status| {
                let pool = status.pool.unwrap();
                format!(
                    "{} size={}/{} {} pgs={} active={} degraded={} volumes={} provisioned={} available={}\n",
                    pool.name,
                    pool.size,
                    pool.min_size,
                    pool.failure_domain,
                    pool.pg_count,
                    status.active_pgs,
                    status.degraded_pgs,
                    status.volumes,
                    status.provisioned,
                    status.available
                )
            })
            .collect(),
        "volumes" => {
            let request = ListVolumesRequest {
                page_size: line.number("page") as u32,
                page_token: line.value("token").into(),
                pool: line.value("pool").into(),
                labels: labels(line, &["page", "token", "pool"]),
                trash: line.has("trash"),
            };
            match query::volumes(&cluster.machine, &cluster.state, &request) {
                Ok(reply) => {
                    let mut text: String = reply.volumes.iter().map(|v| volume(v) + "\n").collect();
                    if !reply.next_page_token.is_empty() {
                        writeln!(text, "next={}", reply.next_page_token).unwrap();
                    }
                    text
                }
                Err(failure) => failure.to_string(),
            }
        }
        "volume" => query::volume(&cluster.state, &by(line.word(1)).unwrap())
            .unwrap()
            .map_or("none".into(), |found| volume(&found)),
        "nodes" => query::nodes(&cluster.machine, &cluster.state)
            .unwrap()
            .iter()
            .map(|node| {
                let host = node.location.as_ref().map_or("", |place| &place.host);
                format!("{} host={host} attached={} osds={:?}\n", node.name, node.attached_volumes, node.osds)
            })
            .collect(),
        "fences" => map
            .volumes
            .iter()
            .map(|(id, fence)| {
                let purging = if fence.purging { " purging" } else { "" };
                let limited = fence.limits != cairn_types::volume::VolumeLimits::default();
                let limits = if limited { format!(" {:?}", fence.limits) } else { String::new() };
                format!("{id} {:?} read-only {:?}{purging}{limits}\n", fence.generations, fence.read_only)
            })
            .collect(),
        "get" => {
            let request = RangeRequest {
                key: bytes(line.word(1)),
                range_end: bytes(line.word(2)),
                limit: line.number("limit") as i64,
                revision: line.number("rev") as i64,
                count_only: line.has("count"),
                keys_only: line.has("keys"),
                min_mod_revision: line.number("minmod") as i64,
                max_create_revision: line.number("maxcreate") as i64,
                sort_order: line.number("order") as i32,
                sort_target: line.number("target") as i32,
                ..Default::default()
            };
            match kv::range(&cluster.machine, &cluster.state, &request) {
                Ok(reply) => {
                    let mut text: String = reply.kvs.iter().map(|kv| key_value(kv) + "\n").collect();
                    let more = if reply.more { " more" } else { "" };
                    write!(text, "count={}{more} revision={}", reply.count, reply.header.unwrap().revision).unwrap();
                    text
                }
                Err(failure) => failure.to_string(),
            }
        }
        "history" => {
            let range = (bytes(line.word(1)), bytes(line.word(2)));
            let most = if line.value("most").is_empty() { 100 } else { line.number("most") as usize };
            let from = line.number("from") as i64;
            match kv::history(&cluster.machine, &cluster.state, (&range.0, &range.1), from, most) {
                Ok(past) => {
                    let mut text = String::new();
                    for (revision, events) in past.revisions {
                        events.iter().for_each(|e| writeln!(text, "{revision}: {}", event(e)).unwrap());
                    }
                    write!(text, "through={}", past.through).unwrap();
                    text
                }
                Err(failure) => failure.to_string(),
            }
        }
        "leases" => {
            let leases = kv::leases(&cluster.state).unwrap();
            let keys = |id| kv::lease_keys(&cluster.state, id);
            leases.iter().map(|l| format!("{} ttl={} {:?}\n", l.id, l.ttl_s, keys(l.id))).collect()
        }
        "stored" => {
            let count = |kind: u8| cluster.state.records().filter(|(key, _)| key[0] == kind).count();
            format!("versions={} revisions={} current={}", count(b'h'), count(b'r'), count(b'c'))
        }
        _ => return None,
    })
}

fn payload(cluster: &Cluster, line: &Line<'_>) -> Option<Payload> {
    let incarnation = |name: &str| cluster.disks.get(name).map_or(0, |disk| disk.incarnation);
    let as_incarnation = |name: &str| match line.values.get("as") {
        Some(text) => number(text),
        None => incarnation(name),
    };
    let name = line.word(1);
    Some(match line.word(0) {
        "init" => Payload::InitCluster(InitCluster { cluster: bytes("another cluster!"), min_protocol: 1 }),
        "report" => Payload::OsdReports(OsdReports {
            reports: vec![ReportOsdRequest {
                id: cluster.osd(name),
                incarnation: as_incarnation(name),
                acked_epoch: line.number("acked"),
                used: line.number("used"),
                oldest_io_ms: line.number("io"),
            }],
        }),
        "down" => Payload::ReportDown(ReportDownRequest {
            mutation: None,
            reporter: line.values.get("by").map(|reporter| cluster.osd(reporter)),
            osd: cluster.osd(name),
            incarnation: as_incarnation(name),
            evidence: match line.word(2) {
                "silent" => DownEvidence::Silent,
                "refused" => DownEvidence::Refused,
                "exited" => DownEvidence::Exited,
                _ => DownEvidence::Unspecified,
            }
            .into(),
        }),
        "cas" => Payload::ChangePgs(ChangePgsRequest {
            mutation: None,
            reporter: cluster.osd(line.value("by")),
            incarnation: as_incarnation(line.value("by")),
            changes: vec![PgChange {
                pg: pg_id(name),
                expect_c: line.number("c"),
                primary: line.values.get("primary").map(|primary| cluster.osd(primary)),
                isr: osds(cluster, line.value("isr")),
                acting: osds(cluster, line.value("acting")),
                backfill: osds(cluster, line.value("backfill")),
                split_at: line.values.get("split").map(|seq| LogPoint { c: 1, seq: number(seq), hash: 7 }),
            }],
        }),
        "placed" => Payload::SetOsdPlaced(SetOsdPlaced {
            id: cluster.osd(name),
            placed: line.word(2) == "in",
            weight: line.values.get("weight").map(|weight| number(weight) as u32),
        }),
        "remove" => Payload::RemoveOsd(RemoveOsd { id: cluster.osd(name) }),
        "pool" => Payload::CreatePool(CreatePoolRequest {
            mutation: None,
            pool: Some(Pool {
                name: name.into(),
                size: line.number("size") as u32,
                min_size: line.number("min") as u32,
                failure_domain: line.value("domain").into(),
                device_class: line.value("class").into(),
                object_size: line.number("object") as u32,
                pg_count: line.number("pgs") as u32,
                ..Default::default()
            }),
            allow_degraded: line.has("degraded"),
            expected_osds: line.number("expect") as u32,
        }),
        "create" => Payload::CreateVolume(CreateVolumeRequest {
            mutation: None,
            name: name.into(),
            pool: line.value("pool").into(),
            size: line.number("size"),
            labels: line
                .values
                .get("label")
                .map(|value| ("label".to_owned(), (*value).to_owned()))
                .into_iter()
                .collect(),
            source: line.values.get("from").map(|name| snapshot_by(name)),
            retention_s: line.values.get("keep").map(|seconds| number(seconds)),
            limits: Some(VolumeLimits {
                iops: line.number("iops"),
                bandwidth: line.number("bandwidth"),
                burst_s: line.number("burst") as u32,
            }),
        }),
        "snap" | "snap-of-clone" => Payload::CreateSnapshot(CreateSnapshotRequest {
            mutation: None,
            name: name.into(),
            volume: by(line.word(2)),
            labels: Default::default(),
        }),
        "rm-snap" => {
            Payload::DeleteSnapshot(DeleteSnapshotRequest { mutation: None, snapshot: Some(snapshot_by(name)) })
        }
        "drained" => Payload::ReportDrained(ReportDrainedRequest {
            mutation: None,
            volume: number(name),
            generation: line.number("g"),
            snapshot: number(line.word(2)),
        }),
        "finish" => Payload::FinishSnapshot(FinishSnapshot { snapshot: number(name), taken: line.word(2) == "taken" }),
        "joined" => Payload::ReportPurged(ReportPurgedRequest {
            mutation: None,
            reporter: cluster.osd(line.value("by")),
            incarnation: incarnation(line.value("by")),
            volume: number(name),
            pg: pg_id(line.word(3)),
            snapshots: vec![number(line.word(2))],
            interval: line.number("interval"),
        }),
        "resize" => {
            Payload::ResizeVolume(ResizeVolumeRequest { mutation: None, volume: by(name), size: line.number("size") })
        }
        "delete" => {
            let request = DeleteVolumeRequest { mutation: None, volume: by(name), now: line.has("now") };
            Payload::DeleteVolume(request)
        }
        "undelete" => Payload::UndeleteVolume(UndeleteVolumeRequest {
            mutation: None,
            volume: by(name),
            name: line.value("name").into(),
        }),
        "purge" => Payload::PurgeTrash(PurgeTrashRequest {
            mutation: None,
            what: match name {
                "all" => Some(What::All(true)),
                "expired" => Some(What::Expired(true)),
                "" => None,
                _ => by(name).map(What::Volume),
            },
        }),
        "allow" => {
            let of = |key: &str| line.values.get(key).map(|text| number(text));
            let (quota, max_volumes, retention_s) = (of("quota"), of("volumes"), of("keep"));
            Payload::ChangePool(ChangePoolRequest {
                mutation: None,
                pool: name.into(),
                quota,
                max_volumes,
                retention_s,
            })
        }
        "change" => Payload::ChangeVolume(ChangeVolumeRequest {
            mutation: None,
            volume: by(name),
            name: line.value("name").into(),
            labels: labels(line, &["name", "keep", "iops", "bandwidth", "burst"]),
            iops: line.values.get("iops").map(|text| number(text)),
            bandwidth: line.values.get("bandwidth").map(|text| number(text)),
            burst_s: line.values.get("burst").map(|text| number(text) as u32),
            retention_s: line.values.get("keep").map(|seconds| number(seconds)),
            remove_labels: line.words[2..].iter().filter_map(|word| word.strip_suffix('-')).map(Into::into).collect(),
        }),
        "purged" => Payload::ReportPurged(ReportPurgedRequest {
            mutation: None,
            reporter: cluster.osd(line.value("by")),
            incarnation: incarnation(line.value("by")),
            volume: number(name),
            pg: pg_id(line.word(2)),
            snapshots: Vec::new(),
            interval: 0,
        }),
        "node" => Payload::RegisterNode(RegisterNodeRequest {
            mutation: None,
            name: name.into(),
            max_volumes: line.number("most") as u32,
            location: line.values.get("host").map(|host| Location { host: (*host).into(), ..Default::default() }),
        }),
        "publish" => Payload::PublishVolume(PublishVolumeRequest {
            mutation: None,
            volume: by(name),
            node: line.word(2).into(),
            mode: mode(line.value("mode")),
        }),
        "unpublish" => Payload::UnpublishVolume(UnpublishVolumeRequest {
            mutation: None,
            volume: by(name),
            node: line.word(2).into(),
        }),
        "attach" => Payload::Attach(AttachRequest {
            mutation: None,
            volume: by(name),
            node: line.word(2).into(),
            mode: mode(line.value("mode")),
            data_session: bytes(&format!("{:_<16}", line.value("session"))),
            steal: line.has("steal"),
            replaces: line.number("replaces"),
            restores: line.number("restores"),
        }),
        "detach" => {
            let completed = match line.value("completed") {
                "" => Completed::Nothing,
                "restore" => Completed::Restore,
                "flatten" => Completed::Flatten,
                other => panic!("`{other}` cannot be completed"),
            };
            let (volume, generation) = (by(name), line.number("generation"));
            Payload::Detach(DetachRequest { mutation: None, volume, generation, completed: completed.into() })
        }
        "put" => Payload::KvPut(PutRequest {
            key: bytes(name),
            value: bytes(line.words.get(2).filter(|word| !word.starts_with("keep-")).unwrap_or(&"")),
            lease: line.number("lease") as i64,
            prev_kv: true,
            ignore_value: line.has("keep-value"),
            ignore_lease: line.has("keep-lease"),
        }),
        "del" => Payload::KvDeleteRange(DeleteRangeRequest {
            key: bytes(name),
            range_end: bytes(line.word(2)),
            prev_kv: true,
        }),
        "compact" => Payload::KvCompact(CompactionRequest { revision: number(name) as i64, physical: false }),
        "grant" => Payload::LeaseGrant(LeaseGrantRequest { id: number(name) as i64, ttl: line.number("ttl") as i64 }),
        "revoke" => Payload::LeaseRevoke(LeaseRevokeRequest { id: number(name) as i64 }),
        "expire" => {
            Payload::LeaseExpire(LeaseExpire { ids: line.words[1..].iter().map(|id| number(id) as i64).collect() })
        }
        _ => return None,
    })
}

pub(crate) fn refusal(error: &CommandError) -> String {
    let mut text = format!("refused ({}): {}", error.code().as_str_name(), error.message);
    if !error.remedy.is_empty() {
        write!(text, "\n-> {}", error.remedy).unwrap();
    }
    text
}

fn shown(cluster: &Cluster, pg: &PgConfig) -> String {
    let primary = pg.primary.map_or("-", |osd| cluster.name_of(osd));
    let sets = [&pg.isr, &pg.acting, &pg.backfill, &pg.up].map(|set| names(cluster, set));
    let [isr, acting, backfill, up] = sets;
    let born = pg.born.map_or(String::new(), |born| format!(" born={} {} {}", born.from, born.c, born.at.seq()));
    format!("{} {} primary={primary} isr={isr} acting={acting} backfill={backfill} up={up}{born}", pg.c, pg.interval)
}

fn volume(volume: &Volume) -> String {
    let mut text = format!("{} {} pool={} size={}", volume.id, volume.name, volume.pool_name, volume.size);
    for a in &volume.attachments {
        write!(text, " g{}@{}({})", a.generation, a.node, a.mode().as_str_name()).unwrap();
    }
    if !volume.published_nodes.is_empty() {
        write!(text, " published={}", volume.published_nodes.join(",")).unwrap();
    }
    if volume.restoring != 0 {
        write!(text, " restoring={}", volume.restoring).unwrap();
    }
    if let Some(limits) = volume.limits {
        write!(text, " iops={} bandwidth={} burst={}", limits.iops, limits.bandwidth, limits.burst_s).unwrap();
    }
    if let Some(trashed) = volume.trashed {
        write!(text, " in the trash from {} to {}", trashed.deleted_at_s, trashed.expires_at_s).unwrap();
    }
    volume.labels.iter().for_each(|(key, value)| write!(text, " {key}={value}").unwrap());
    text
}

fn key_value(kv: &KeyValue) -> String {
    let (key, value) = (kv.key.escape_ascii(), kv.value.escape_ascii());
    let lease = if kv.lease == 0 { String::new() } else { format!(" lease={}", kv.lease) };
    format!("{key}={value} create={} mod={} version={}{lease}", kv.create_revision, kv.mod_revision, kv.version)
}

fn event(event: &Event) -> String {
    let kv = event.kv.as_ref().unwrap();
    let before = event.prev_kv.as_ref().map_or(String::new(), |kv| format!(" (was {})", kv.value.escape_ascii()));
    match event.r#type() {
        cairn_proto::mvccpb::event::EventType::Put => format!("put {}{before}", key_value(kv)),
        cairn_proto::mvccpb::event::EventType::Delete => format!("delete {}{before}", kv.key.escape_ascii()),
    }
}

fn told(cluster: &Cluster, result: Result<Answer, CommandError>) -> String {
    let answer = match result {
        Ok(answer) => answer,
        Err(error) => return refusal(&error),
    };
    match answer {
        Answer::InitCluster(reply) => format!("{}", reply.cluster.escape_ascii()),
        Answer::OsdReports(reply) => {
            let one = |reply: &cairn_proto::meta::ReportOsdReply| {
                format!("e{}{}", reply.epoch, if reply.dead { " dead" } else { "" })
            };
            reply.replies.iter().map(one).collect()
        }
        Answer::ReportDown(reply) => format!("e{} {}", reply.epoch, if reply.applied { "applied" } else { "noted" }),
        Answer::ChangePgs(reply) => reply
            .outcomes
            .iter()
            .map(|outcome| {
                let (_, now): (_, PgConfig) = outcome.now.clone().unwrap().try_into().unwrap();
                match outcome.applied {
                    true => shown(cluster, &now),
                    false => format!("refused: {}", outcome.refused),
                }
            })
            .collect(),
        Answer::SetOsdPlaced(reply) => format!("e{}", reply.epoch),
        Answer::RemoveOsd(reply) => format!("e{}", reply.epoch),
        Answer::ChangePlacement(reply) => format!("e{}: {}", reply.epoch, moving::told(cluster, &reply)),
        Answer::ChangeSettings(reply) => format!("e{}", reply.epoch),
        Answer::CreatePool(reply) => {
            let pool = reply.pool.unwrap();
            format!("pool {} pgs={} min_size={}", pool.id, pool.pg_count, pool.min_size)
        }
        Answer::CreateVolume(reply) => volume(&reply.volume.unwrap()) + if reply.existed { " (existed)" } else { "" },
        Answer::ChangePool(reply) => {
            let rules = reply.rules.unwrap();
            format!("quota={} volumes={} keep={}", rules.quota, rules.max_volumes, rules.retention_s)
        }
        Answer::ResizeVolume(reply) => volume(&reply.volume.unwrap()),
        Answer::ChangeVolume(reply) => volume(&reply.volume.unwrap()),
        Answer::DeleteVolume(DeleteVolumeReply { trashed: Some(trashed), .. }) => volume(&trashed),
        Answer::UndeleteVolume(reply) => volume(&reply.volume.unwrap()),
        Answer::PurgeTrash(reply) => {
            let ids: Vec<u64> = reply.purged.iter().map(|volume| volume.id).collect();
            format!("purged {ids:?}{}", if reply.more { ", and there is more" } else { "" })
        }
        Answer::DeleteVolume(reply) => if reply.existed { "deleted" } else { "there was none" }.into(),
        Answer::Attach(reply) => {
            format!("g{} at e{}: {}", reply.generation, reply.epoch, volume(&reply.volume.unwrap()))
        }
        Answer::KvPut(reply) => {
            let before = reply.prev_kv.map_or(String::new(), |kv| format!(" (was {})", key_value(&kv)));
            format!("revision={}{before}", reply.header.unwrap().revision)
        }
        Answer::KvDeleteRange(reply) => {
            let gone: Vec<String> = reply.prev_kvs.iter().map(key_value).collect();
            format!("revision={} deleted={} [{}]", reply.header.unwrap().revision, reply.deleted, gone.join("; "))
        }
        Answer::KvCompact(reply) => format!("revision={}", reply.header.unwrap().revision),
        Answer::LeaseGrant(reply) => format!("lease {} ttl={}", reply.id, reply.ttl),
        Answer::LeaseRevoke(reply) => format!("revision={}", reply.header.unwrap().revision),
        Answer::LeaseExpire(reply) => format!("revision={}", reply.revision),
        Answer::CreateSnapshot(reply) => {
            let snapshot = reply.snapshot.unwrap();
            let existed = if reply.existed { " (existed)" } else { "" };
            format!("{} {} of {} {:?}{existed}", snapshot.id, snapshot.name, snapshot.volume_name, snapshot.phase())
        }
        Answer::FinishSnapshot(reply) => format!("{:?}", reply.snapshot.unwrap().phase()),
        Answer::DeleteSnapshot(reply) => if reply.existed { "deleted" } else { "there was none" }.into(),
        Answer::ReportDrained(_)
        | Answer::ReportPurged(_)
        | Answer::RegisterNode(_)
        | Answer::PublishVolume(_)
        | Answer::UnpublishVolume(_)
        | Answer::Detach(_) => "ok".into(),
        other => format!("{other:?}"),
    }
}
