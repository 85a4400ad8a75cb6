//! The part of stories about data on the move: its commands and their answers.

use std::fmt::Write;

use cairn_meta_core::{Failure, moves};
use cairn_proto::meta::change_placement_request::Change;
use cairn_proto::meta::command::Payload;
use cairn_proto::meta::{
    BalancePgs, ChangePlacementReply, ChangePlacementRequest, ChangeSettingsRequest, DropOsd, OutSilentOsds, PlaceOsd,
    ReplaceOsd, SetPgs,
};
use cairn_types::{OsdId, PgId};

use crate::cluster::Cluster;
use crate::cluster::primaries::{round, settle};
use crate::{Line, number};

/// A command that changes placement or settings.
pub(crate) fn payload(cluster: &Cluster, line: &Line<'_>) -> Option<Payload> {
    if line.word(0) == "set" {
        return Some(Payload::ChangeSettings(settings(line)));
    }
    Some(Payload::ChangePlacement(request(cluster, line)?))
}

fn settings(line: &Line<'_>) -> ChangeSettingsRequest {
    let flag = |name: &str| line.values.get(name).map(|value| *value == "1");
    let value = |name: &str| line.values.get(name).map(|value| number(value) as u32);
    ChangeSettingsRequest {
        mutation: None,
        noout: flag("noout"),
        norebalance: flag("norebalance"),
        noin: flag("noin"),
        nobalance: flag("nobalance"),
        noautoscale: flag("noautoscale"),
        down_out_s: value("down_out_s"),
        backfills: value("backfills"),
        client_latency_ms: value("client_latency_ms"),
    }
}

fn request(cluster: &Cluster, line: &Line<'_>) -> Option<ChangePlacementRequest> {
    let name = line.word(1);
    let weight = || line.values.get("weight").map(|weight| number(weight) as u32);
    let change = match line.word(0) {
        "out" | "in" => {
            let placed = Some(line.word(0) == "in");
            Change::Place(PlaceOsd { id: cluster.osd(name), placed, weight: weight() })
        }
        "reweight" => Change::Place(PlaceOsd { id: cluster.osd(name), placed: None, weight: weight() }),
        "replace" => Change::Replace(ReplaceOsd { old: cluster.osd(name), with: cluster.osd(line.word(2)) }),
        "drop" => Change::Remove(DropOsd { id: cluster.osd(name) }),
        "balance" => Change::Balance(BalancePgs { most: line.number("most") as u32, automatic: line.has("auto") }),
        "setpgs" => Change::SetPgs(SetPgs { pool: name.to_owned(), pgs: line.number("pgs") as u32 }),
        "outsilent" => Change::OutSilent(OutSilentOsds {}),
        _ => return None,
    };
    let force = line.has("force");
    Some(ChangePlacementRequest { change: Some(change), force, ..ChangePlacementRequest::default() })
}

/// Commands that only look, or that stand for what primaries do.
pub(crate) fn look(cluster: &mut Cluster, line: &Line<'_>) -> Option<String> {
    Some(match line.word(0) {
        "dry" => {
            let rest = Line { words: line.words[1..].to_vec(), values: line.values.clone() };
            let request = request(cluster, &rest).unwrap_or_default();
            match moves::dry_run(&cluster.machine, &cluster.state, &request) {
                Ok(reply) => told(cluster, &reply),
                Err(Failure::Refused(refusal)) => crate::refusal(&refusal.into()),
                Err(Failure::Corrupt(corrupt)) => corrupt.to_string(),
            }
        }
        "due" => match moves::due(&cluster.machine, cluster.now_s, true) {
            Some(request) => format!("{:?}", request.change.unwrap()),
            None => "nothing".to_owned(),
        },
        "settle" => format!("{} changes", settle(cluster)),
        "step" => format!("{} changes", round(cluster)),
        "count" => counted(cluster),
        _ => return None,
    })
}

/// What an answer says, in short.
pub(crate) fn told(cluster: &Cluster, reply: &ChangePlacementReply) -> String {
    let names = |osds: &[u32]| osds.iter().map(|osd| cluster.name_of(OsdId(*osd))).collect::<Vec<_>>().join(",");
    let mut text = format!("{} bytes to copy, {} before, {} s", reply.bytes, reply.bytes_before, reply.eta_s);
    for one in &reply.moves {
        let id: PgId = one.pg.unwrap().into();
        let (to, from) = (names(&one.to), names(&one.from));
        write!(text, "\n{id} {from} -> {to}: {} bytes, {} of {} copies", one.bytes, one.copies, one.wanted).unwrap();
    }
    reply.notes.iter().for_each(|note| write!(text, "\n({note})").unwrap());
    text
}

fn counted(cluster: &Cluster) -> String {
    let map = cluster.machine.map();
    let count = |osd: OsdId| map.pgs.values().filter(|pg| pg.up.contains(&osd)).count();
    map.osds.keys().map(|osd| format!("{} {}\n", cluster.name_of(*osd), count(*osd))).collect()
}
