//! `cairn join TOKEN`: this host becomes part of a cluster, as a metadata member where the cluster has a place for it,
//! and as a node that carries OSDs and attaches volumes.

use cairn_host::Cluster;
use cairn_host::cluster::Network;
use cairn_host::join::{Newcomer, Token, knock};
use clap::Args;

use super::{HostArgs, address_towards, check_ports, roles_line, settle};
use crate::failure::{Code, Failure, Outcome};
use crate::up;

/// Another host of a cluster.
#[derive(Args)]
pub(crate) struct Join {
    /// As `cairn init` or `cairn token create` on the first host printed it; `-` reads it from standard input, where
    /// nobody else on this host sees it.
    token: String,
    #[command(flatten)]
    host: HostArgs,
}

/// Joins.
pub(crate) async fn join(options: Join) -> Outcome {
    let host = &options.host;
    let failed = |error: &dyn std::fmt::Display| Failure::new(Code::Failed, error.to_string());
    let token: Token = said(&options.token)?.parse().map_err(|error| failed(&error))?;
    let address = host.address.or_else(|| address_towards(token.door)).ok_or_else(|| {
        let message = format!("this host has no way to {}, where the token leads; check its network", token.door);
        Failure::new(Code::Unreachable, message)
    })?;
    host.check_fresh()?;
    host.check_exposure(address)?;
    if address.is_loopback() && !token.door.ip().is_loopback() {
        let message = format!("the other hosts cannot reach {address}; name an address that they reach with --address");
        return Err(Failure::new(Code::Failed, message));
    }
    let newcomer = Newcomer { node: host.node(), address };
    newcomer.check().map_err(|error| failed(&error))?;
    let welcome = knock(&token, &newcomer).await.map_err(|error| failed(&error))?;
    let base_port = own_port(&welcome.members, &newcomer).unwrap_or(host.base_port);
    let network = Network { address, base_port, insecure_listen: host.insecure_listen, door: false };
    check_ports(&network, &welcome.members)?;
    host.warn(address);
    let layout = host.layout()?;
    let authority = layout.pki().join("ca.crt");
    std::fs::write(&authority, &welcome.authority)
        .map_err(Failure::while_(format!("cannot write {}", authority.display())))?;
    let place = (host.zone.clone(), host.rack.clone());
    let mut cluster = Cluster::of_host(newcomer.node, place, welcome.members, network);
    cluster.restart_delay_ms = host.restart_delay_ms;
    cluster.save(&layout).map_err(|error| failed(&error))?;
    settle(&layout, &cluster).await.map_err(|failure| up::with_log(failure, &layout))?;
    println!("host `{}` has joined: {}", cluster.node, roles_line(&cluster));
    Ok(())
}

/// The token itself, or the first line of standard input.
fn said(token: &str) -> Result<String, Failure> {
    if token != "-" {
        return Ok(token.to_owned());
    }
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).map_err(Failure::while_("cannot read the token".to_owned()))?;
    Ok(line.trim().to_owned())
}

/// The port that the cluster expects the member at our address on.
fn own_port(members: &[cairn_host::cluster::Member], newcomer: &Newcomer) -> Option<u16> {
    let addresses = members.iter().filter_map(|member| member.address.parse::<std::net::SocketAddr>().ok());
    addresses.filter(|address| address.ip() == newcomer.address).map(|address| address.port()).next()
}
