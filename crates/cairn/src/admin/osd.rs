//! `cairn osd ls`, `cairn osd tree`, and the way to `cairn osd verify`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use cairn_types::map::{ClusterMap, Osd, WEIGHT_ONE};
use clap::Subcommand;
use serde_json::{Value, json};

use super::{Target, verify};
use crate::failure::Outcome;
use crate::output::{self, Format};
use crate::size;

/// What can be asked of OSDs.
#[derive(Subcommand)]
pub(crate) enum OsdVerb {
    /// All OSDs.
    Ls(Target),
    /// All OSDs where they stand: zone, rack, host.
    Tree(Target),
    /// Check a device that no OSD uses: superblocks, log, index, every block's checksum. Writes nothing.
    Verify {
        /// A block device or a file.
        path: PathBuf,
        /// table or json.
        #[arg(short, long, default_value = "table")]
        output: Format,
    },
}

pub(crate) async fn run(verb: OsdVerb) -> Outcome {
    let (target, as_tree) = match &verb {
        OsdVerb::Ls(target) => (target, false),
        OsdVerb::Tree(target) => (target, true),
        OsdVerb::Verify { path, output } => return verify::run(path, *output),
    };
    let map = target.connect()?.map().await?;
    match (as_tree, target.output) {
        (false, Format::Json) => output::json(&map.osds.values().map(to_json).collect::<Vec<_>>()),
        (false, Format::Table) => list(&map),
        (true, Format::Json) => output::json(&tree_json(&map)),
        (true, Format::Table) => tree(&map),
    }
    Ok(())
}

fn to_json(osd: &Osd) -> Value {
    json!({
        "id": osd.id.0, "uuid": osd.uuid, "incarnation": osd.incarnation.0, "up": osd.up, "placed": osd.placed,
        "weight": weight(osd), "zone": osd.location.zone, "rack": osd.location.rack, "host": osd.location.host,
        "device_class": osd.device_class, "capacity": osd.capacity, "used": osd.used, "addresses": osd.addresses,
    })
}

fn weight(osd: &Osd) -> f64 {
    f64::from(osd.weight) / f64::from(WEIGHT_ONE)
}

fn state(osd: &Osd) -> String {
    format!("{}, {}", if osd.up { "up" } else { "down" }, if osd.placed { "in" } else { "out" })
}

fn list(map: &ClusterMap) {
    let rows = map.osds.values().map(|osd| {
        vec![
            osd.id.to_string(),
            state(osd),
            osd.location.host.clone(),
            osd.device_class.clone(),
            format!("{:.4}", weight(osd)),
            format!("{} of {}", size::show(osd.used), size::show(osd.capacity)),
            osd.addresses.join(" "),
        ]
    });
    output::table(&["OSD", "STATE", "HOST", "CLASS", "WEIGHT", "USED", "ADDRESS"], rows);
}

type Hosts<'a> = BTreeMap<(&'a str, &'a str, &'a str), Vec<&'a Osd>>;

fn by_host(map: &ClusterMap) -> Hosts<'_> {
    let mut hosts = Hosts::new();
    for osd in map.osds.values() {
        let place = (osd.location.zone.as_str(), osd.location.rack.as_str(), osd.location.host.as_str());
        hosts.entry(place).or_default().push(osd);
    }
    hosts
}

fn tree(map: &ClusterMap) {
    let (mut zone, mut rack) = (None, None);
    println!("root");
    for ((z, r, host), osds) in by_host(map) {
        if zone != Some(z) {
            println!("  zone {z}");
            (zone, rack) = (Some(z), None);
        }
        if rack != Some(r) {
            println!("    rack {r}");
            rack = Some(r);
        }
        println!("      host {host}");
        for osd in osds {
            println!(
                "        {:<8} {:<10} weight {:.4}  {}",
                osd.id.to_string(),
                state(osd),
                weight(osd),
                osd.device_class
            );
        }
    }
}

fn tree_json(map: &ClusterMap) -> Value {
    let hosts: Vec<Value> = by_host(map)
        .into_iter()
        .map(|((zone, rack, host), osds)| {
            json!({"zone": zone, "rack": rack, "host": host, "osds": osds.into_iter().map(to_json).collect::<Vec<_>>()})
        })
        .collect();
    json!({ "hosts": hosts })
}
