//! `cairn osd`: where OSDs stand, and the verbs that move data off them and onto them (`moving` carries those out).

use std::collections::BTreeMap;
use std::path::PathBuf;

use cairn_proto::meta::change_placement_request::Change;
use cairn_proto::meta::{BalancePgs, ChangeSettingsRequest, DropOsd, PlaceOsd, ReplaceOsd};
use cairn_types::OsdId;
use cairn_types::map::{ClusterMap, Osd, WEIGHT_ONE};
use clap::{Subcommand, ValueEnum};
use serde_json::{Value, json};

use super::moving::{self, Deed, Way, osd_number, weight as parse_weight};
use super::{Target, verify};
use crate::failure::{Code, Failure, Outcome};
use crate::form::{OsdCreate, create_osd, forget_disk};
use crate::output::{self, Format};
use crate::size;

/// What can be asked of OSDs.
#[derive(Subcommand)]
pub(crate) enum OsdVerb {
    /// Make a disk of this host an OSD: format it, and start its process.
    Create(OsdCreate),
    /// All OSDs.
    Ls(Target),
    /// All OSDs where they stand: zone, rack, host.
    Tree(Target),
    /// Compare all copies of every placement group that an OSD has data of.
    Scrub {
        /// Which one: 3 or osd-3.
        #[arg(value_parser = osd_number)]
        id: u32,
        #[command(flatten)]
        how: super::pg::How,
        #[command(flatten)]
        target: Target,
    },
    /// Check a device that no OSD uses: superblocks, log, index, every block's checksum. Writes nothing.
    Verify {
        /// A block device or a file.
        path: PathBuf,
        /// table or json.
        #[arg(short, long, default_value = "table")]
        output: Format,
    },
    /// Move everything off an OSD; it stays in use until others have all of it.
    Drain {
        /// Which one: 3 or osd-3.
        #[arg(value_parser = osd_number)]
        id: u32,
        #[command(flatten)]
        way: Way,
    },
    /// Take an OSD out of placement: the same as drain, by the name Ceph gives it.
    Out {
        /// Which one: 3 or osd-3.
        #[arg(value_parser = osd_number)]
        id: u32,
        #[command(flatten)]
        way: Way,
    },
    /// Put an OSD into placement: data moves onto it.
    In {
        /// Which one: 3 or osd-3.
        #[arg(value_parser = osd_number)]
        id: u32,
        #[command(flatten)]
        way: Way,
    },
    /// Give an OSD a larger or smaller share of the data.
    Reweight {
        /// Which one: 3 or osd-3.
        #[arg(value_parser = osd_number)]
        id: u32,
        /// 1.0 for each TiB.
        #[arg(value_parser = parse_weight)]
        weight: u32,
        #[command(flatten)]
        way: Way,
    },
    /// Put a new OSD in the place of another: the data of one moves to the other, and nothing else.
    Replace {
        /// The one that goes.
        #[arg(value_parser = osd_number)]
        id: u32,
        /// The one that comes; it must have joined already.
        #[arg(long, value_parser = osd_number)]
        with: u32,
        #[command(flatten)]
        way: Way,
    },
    /// Forget an OSD that is drained or lost. Refused while anything needs it.
    Remove {
        /// Which one: 3 or osd-3.
        #[arg(value_parser = osd_number)]
        id: u32,
        #[command(flatten)]
        way: Way,
    },
    /// What is still to be moved.
    Moves {
        #[command(flatten)]
        way: Way,
    },
    /// Even out how placement groups are spread over OSDs, by exceptions. It is also done by itself, a few at a time.
    Balance {
        /// Copies moved at most.
        #[arg(long, default_value_t = 16)]
        most: u32,
        #[command(flatten)]
        way: Way,
    },
    /// Set a flag for maintenance, or a value. Without a name: show what is set.
    Set {
        /// Which one.
        #[arg(value_enum)]
        name: Option<Setting>,
        /// For what has a value: seconds, or milliseconds, or a number.
        value: Option<u32>,
        #[command(flatten)]
        target: Target,
    },
    /// Unset a flag.
    Unset {
        /// Which one.
        #[arg(value_enum)]
        name: Setting,
        #[command(flatten)]
        target: Target,
    },
}

/// What can be set for the whole cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Setting {
    /// An OSD that stays down is not taken out.
    Noout,
    /// Placement groups that have all their copies do not move.
    Norebalance,
    /// An OSD that joins stays out of placement.
    Noin,
    /// Placement groups are not evened out by themselves.
    Nobalance,
    /// A pool that has too few placement groups for its OSDs is not given more by itself.
    Noautoscale,
    /// Seconds after which a down OSD is taken out (600).
    DownOutAfter,
    /// Placement groups filled at once at one OSD (8).
    Backfills,
    /// Milliseconds that clients may wait before recovery gives way (20).
    ClientLatency,
}

impl Setting {
    fn request(self, on: bool, value: Option<u32>) -> Result<ChangeSettingsRequest, Failure> {
        let mut request = ChangeSettingsRequest::default();
        let (flag, number) = match self {
            Self::Noout => (Some(&mut request.noout), None),
            Self::Norebalance => (Some(&mut request.norebalance), None),
            Self::Noin => (Some(&mut request.noin), None),
            Self::Nobalance => (Some(&mut request.nobalance), None),
            Self::Noautoscale => (Some(&mut request.noautoscale), None),
            Self::DownOutAfter => (None, Some(&mut request.down_out_s)),
            Self::Backfills => (None, Some(&mut request.backfills)),
            Self::ClientLatency => (None, Some(&mut request.client_latency_ms)),
        };
        let usual = cairn_types::map::Settings::default();
        match (flag, number, value) {
            (Some(flag), _, None) => *flag = Some(on),
            (_, Some(number), Some(value)) if on => *number = Some(value),
            // Unset, a value is its default again.
            (_, Some(number), None) if !on => {
                *number = Some(match self {
                    Self::DownOutAfter => usual.down_out_s,
                    Self::Backfills => usual.backfills,
                    _ => usual.client_latency_ms,
                });
            }
            (Some(_), _, Some(_)) => {
                return Err(Failure::new(Code::Failed, "a flag has no value: set it, or unset it"));
            }
            _ => return Err(Failure::new(Code::Failed, "this wants a number: cairn osd set NAME NUMBER")),
        }
        Ok(request)
    }
}

pub(crate) async fn run(verb: OsdVerb) -> Outcome {
    match verb {
        OsdVerb::Create(options) => return create_osd(options).await,
        OsdVerb::Ls(target) => {
            let map = target.connect()?.map().await?;
            match target.output {
                Format::Json => output::json(&map.osds.values().map(to_json).collect::<Vec<_>>()),
                Format::Table => list(&map),
            }
        }
        OsdVerb::Tree(target) => {
            let map = target.connect()?.map().await?;
            match target.output {
                Format::Json => output::json(&tree_json(&map)),
                Format::Table => tree(&map),
            }
        }
        OsdVerb::Scrub { id, how, target } => return super::pg::scrub_osd(id, &how, &target).await,
        OsdVerb::Verify { path, output } => return verify::run(&path, output),
        OsdVerb::Set { name: None, target, .. } => {
            return moving::change_settings(ChangeSettingsRequest::default(), &target).await;
        }
        OsdVerb::Set { name: Some(name), value, target } => {
            return moving::change_settings(name.request(true, value)?, &target).await;
        }
        OsdVerb::Unset { name, target } => return moving::change_settings(name.request(false, None)?, &target).await,
        verb => return move_data(verb).await,
    }
    Ok(())
}

/// The verbs after which data moves.
async fn move_data(verb: OsdVerb) -> Outcome {
    let placed = |id, placed| Some(Change::Place(PlaceOsd { id, placed: Some(placed), weight: None }));
    let deed = |change, done: String, would: String, empties| Deed { change, done, would, empties };
    let (deed, way) = match verb {
        OsdVerb::Drain { id, way } | OsdVerb::Out { id, way } => {
            let (done, would) = ("is out of placement: what it has moves", "would go out of placement");
            (deed(placed(id, false), format!("osd-{id} {done}"), format!("osd-{id} {would}"), Some(id)), way)
        }
        OsdVerb::In { id, way } => {
            let (done, would) = ("is in placement: its share moves to it", "would come into placement");
            (deed(placed(id, true), format!("osd-{id} {done}"), format!("osd-{id} {would}"), None), way)
        }
        OsdVerb::Reweight { id, weight, way } => {
            let change = Some(Change::Place(PlaceOsd { id, placed: None, weight: Some(weight) }));
            let share = f64::from(weight) / f64::from(WEIGHT_ONE);
            let done = format!("osd-{id} has weight {share:.4}");
            (deed(change, done, format!("osd-{id} would have weight {share:.4}"), None), way)
        }
        OsdVerb::Replace { id, with, way } => {
            let change = Some(Change::Replace(ReplaceOsd { old: id, with }));
            let done = format!("osd-{with} has taken the place of osd-{id}");
            (deed(change, done, format!("osd-{with} would take the place of osd-{id}"), Some(id)), way)
        }
        OsdVerb::Remove { id, way } => return remove(id, way).await,
        OsdVerb::Balance { most, way } => {
            let change = Some(Change::Balance(BalancePgs { most, automatic: false }));
            (deed(change, "balanced".to_owned(), "balancing would move".to_owned(), None), way)
        }
        OsdVerb::Moves { way } => {
            let words = "what is to be moved".to_owned();
            (deed(None, words.clone(), words, None), way)
        }
        OsdVerb::Create(_)
        | OsdVerb::Ls(_)
        | OsdVerb::Tree(_)
        | OsdVerb::Scrub { .. }
        | OsdVerb::Verify { .. }
        | OsdVerb::Set { .. }
        | OsdVerb::Unset { .. } => unreachable!("done by `run`"),
    };
    moving::carry_out(deed, &way).await
}

/// The cluster forgets an OSD, and this host its disk, where it is one of this host's.
async fn remove(id: u32, way: Way) -> Outcome {
    let known = way.target.connect()?.map().await?.osds.get(&OsdId(id)).cloned();
    let change = Some(Change::Remove(DropOsd { id }));
    let (done, would) = (format!("osd-{id} is forgotten"), format!("osd-{id} would be forgotten"));
    moving::carry_out(Deed { change, done, would, empties: None }, &way).await?;
    let Some(osd) = known.filter(|_| !way.dry_run) else { return Ok(()) };
    // Beside the answer of the cluster, which may be JSON.
    match forget_disk(&way.target.dir, &osd)? {
        Some(disk) => eprintln!("its process {} ends; {} is left as it is", disk.role_name(), disk.device.display()),
        None => eprintln!(
            "its process on host {} is refused from now on; said on that host, this command ends it too",
            osd.location.host
        ),
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
