//! `cairn node ls`.

use cairn_proto::meta;
use clap::Subcommand;
use serde_json::{Value, json};

use super::Target;
use crate::failure::Outcome;
use crate::output::{self, Format};

/// What can be asked of nodes.
#[derive(Subcommand)]
pub(crate) enum NodeVerb {
    /// All nodes that can attach volumes.
    Ls,
}

pub(crate) async fn run(verb: NodeVerb, target: &Target) -> Outcome {
    let NodeVerb::Ls = verb;
    let nodes = target.connect()?.0.list_nodes(meta::ListNodesRequest {}).await?.nodes;
    if target.output == Format::Json {
        let nodes: Vec<Value> = nodes
            .iter()
            .map(|node| {
                json!({
                    "name": node.name, "attached_volumes": node.attached_volumes, "max_volumes": node.max_volumes,
                    "osds": node.osds,
                })
            })
            .collect();
        output::json(&nodes);
        return Ok(());
    }
    let rows = nodes.iter().map(|node| {
        let osds: Vec<String> = node.osds.iter().map(|id| format!("osd-{id}")).collect();
        vec![node.name.clone(), format!("{} of {}", node.attached_volumes, node.max_volumes), osds.join(" ")]
    });
    output::table(&["NODE", "ATTACHED VOLUMES", "OSDS"], rows);
    Ok(())
}
