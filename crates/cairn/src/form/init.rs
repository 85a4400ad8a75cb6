//! `cairn init` and `cairn token`: the first host, and the token that lets others join it.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use cairn_host::cluster::{Member, Network};
use cairn_host::join::{Invitations, Newcomer, Token};
use cairn_host::{Cluster, Layout, pki};
use clap::{Args, Subcommand};

use super::{HostArgs, address_towards, check_ports, roles_line, settle};
use crate::admin::Metadata;
use crate::failure::{Code, Failure, Outcome};
use crate::up;

/// A documentation address (RFC 5737): any that is not ours shows which way the default route goes.
const ELSEWHERE: (std::net::Ipv4Addr, u16) = (std::net::Ipv4Addr::new(198, 51, 100, 1), 9);

/// How long a token counts when nothing else is said.
const VALID_HOURS: u64 = 24;

/// The first host of a cluster.
#[derive(Args)]
pub(crate) struct Init {
    #[command(flatten)]
    host: HostArgs,
    /// The addresses of all metadata members, this host's among them: 1, 3 or 5, each IP or IP:PORT. By default this
    /// host alone.
    #[arg(long, value_delimiter = ',')]
    members: Vec<String>,
}

/// What can be asked of join tokens.
#[derive(Subcommand)]
pub(crate) enum TokenVerb {
    /// Print a new join token; on the first host.
    Create {
        /// The cluster's directory.
        #[arg(long, env = "CAIRN_DIR", default_value = crate::DEFAULT_DIR)]
        dir: PathBuf,
        /// For how many hours it counts.
        #[arg(long, default_value_t = VALID_HOURS, value_parser = clap::value_parser!(u64).range(1..=24 * 365))]
        valid_hours: u64,
    },
    /// Forget a host that is gone for good, so that its name and address can join again; on the first host.
    Forget {
        /// Its name.
        host: String,
        /// The cluster's directory.
        #[arg(long, env = "CAIRN_DIR", default_value = crate::DEFAULT_DIR)]
        dir: PathBuf,
    },
}

/// Makes a cluster on this host, for others to join.
pub(crate) async fn init(options: Init) -> Outcome {
    let host = &options.host;
    let address = host.address.or_else(|| address_towards(ELSEWHERE.into())).ok_or_else(|| {
        let message = "this host has no way out, so its address is not known: say --address (127.0.0.1 for a cluster of \
                       this host alone)";
        Failure::new(Code::Failed, message)
    })?;
    host.check_fresh()?;
    host.check_exposure(address)?;
    let network = Network { address, base_port: host.base_port, insecure_listen: host.insecure_listen, door: true };
    let members = members(&options.members, &network)?;
    Newcomer { node: host.node(), address }.check().map_err(|error| failed(&error))?;
    check_ports(&network, &members)?;
    let layout = host.layout()?;
    host.warn(address);
    pki::found(&layout).map_err(|error| failed(&error))?;
    let place = (host.zone.clone(), host.rack.clone());
    let mut cluster = Cluster::of_host(host.node(), place, members, network);
    cluster.restart_delay_ms = host.restart_delay_ms;
    let mut list = Invitations::default();
    list.founded_by(&cluster.node, address);
    list.save(&layout).map_err(|error| failed(&error))?;
    cluster.save(&layout).map_err(|error| failed(&error))?;
    let token = invite(&layout, &cluster, VALID_HOURS)?;
    settle(&layout, &cluster).await.map_err(|failure| up::with_log(failure, &layout))?;
    println!("host `{}` runs: {}", cluster.node, roles_line(&cluster));
    let flag = if address.is_loopback() { "" } else { " --insecure-listen" };
    println!("\nOn each other host, within {VALID_HOURS} hours:\n  cairn join {token}{flag}");
    println!(
        "\n`cairn token create` makes another token; `cairn osd create PATH|DEVICE` makes a disk of a host an OSD."
    );
    Ok(())
}

/// `cairn token ...`.
pub(crate) async fn token(verb: TokenVerb) -> Outcome {
    match verb {
        TokenVerb::Create { dir, valid_hours } => {
            let layout = up::existing(&dir)?;
            let cluster = up::described(&layout)?;
            println!("{}", invite(&layout, &cluster, valid_hours)?);
            Ok(())
        }
        TokenVerb::Forget { host, dir } => forget(&up::existing(&dir)?, &host).await,
    }
}

/// A host that still serves is not forgotten: a second one of its name would be the same failure domain.
async fn forget(layout: &Layout, host: &str) -> Outcome {
    let cluster = up::described(layout)?;
    let map = Metadata::of_cluster(&cluster)?.map().await?;
    let serving = map.osds.values().filter(|osd| osd.up && osd.location.host == host);
    let serving: Vec<String> = serving.map(|osd| osd.id.to_string()).collect();
    if !serving.is_empty() || host == cluster.node {
        let what = if serving.is_empty() { "this command".to_owned() } else { serving.join(", ") };
        let message = format!("host `{host}` is there: it runs {what}; `cairn reset` on it first");
        return Err(Failure::new(Code::Failed, message));
    }
    let known = Invitations::change(layout, |list| Ok(list.forget(host))).map_err(|error| failed(&error))?;
    if !known {
        return Err(Failure::new(Code::NotFound, format!("no host named `{host}` has joined")));
    }
    println!("host `{host}` is forgotten: its name and its address can join again");
    Ok(())
}

fn failed(error: &dyn std::fmt::Display) -> Failure {
    Failure::new(Code::Failed, error.to_string())
}

fn invite(layout: &Layout, cluster: &Cluster, valid_hours: u64) -> Result<Token, Failure> {
    let Some(network) = cluster.network.as_ref().filter(|network| network.door) else {
        let message = "tokens are made on the first host, where `cairn init` ran: it keeps the authority's key";
        return Err(Failure::new(Code::Failed, message));
    };
    let token = Token {
        door: network.door_address(),
        authority: pki::authority_hash(layout).map_err(|error| failed(&error))?,
        secret: uuid::Uuid::new_v4().into_bytes(),
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let until = now.saturating_add(valid_hours.saturating_mul(3600));
    let invite = |list: &mut Invitations| {
        list.invite(&token.secret, until, now);
        Ok(())
    };
    Invitations::change(layout, invite).map_err(|error| failed(&error))?;
    Ok(token)
}

/// The members in the order they are named, numbered from 1.
fn members(named: &[String], network: &Network) -> Result<Vec<Member>, Failure> {
    let refuse = |message: String| Err(Failure::new(Code::Failed, message));
    let own = network.meta_address();
    if named.is_empty() {
        return Ok(vec![Member { id: 1, address: own.to_string() }]);
    }
    let mut addresses: Vec<SocketAddr> = Vec::new();
    for text in named {
        let parsed = text.parse().or_else(|_| text.parse().map(|ip: IpAddr| SocketAddr::new(ip, network.base_port)));
        match parsed {
            Ok(address) if addresses.contains(&address) => return refuse(format!("--members names {address} twice")),
            Ok(address) => addresses.push(address),
            Err(_) => return refuse(format!("`{text}` is no member's address; write IP or IP:PORT")),
        }
    }
    if ![1, 3, 5].contains(&addresses.len()) {
        return refuse(format!("{} metadata members cannot agree well; name 1, 3 or 5", addresses.len()));
    }
    if !addresses.contains(&own) {
        return refuse(format!("this host is {own}, which is not among --members; add it, or say --address"));
    }
    Ok(addresses.into_iter().zip(1..).map(|(address, id)| Member { id, address: address.to_string() }).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_numbered_in_their_order_and_mistakes_named() {
        let network = Network { address: [10, 0, 0, 1].into(), base_port: 7400, insecure_listen: true, door: true };
        let of = |text: &str| {
            let named: Vec<String> = text.split(',').filter(|part| !part.is_empty()).map(str::to_owned).collect();
            members(&named, &network).map_err(|failure| failure.to_string())
        };
        assert_eq!(of("").unwrap(), vec![Member { id: 1, address: "10.0.0.1:7400".into() }]);
        let three = of("10.0.0.2,10.0.0.1,10.0.0.3:9").unwrap();
        assert_eq!(three[1], Member { id: 2, address: "10.0.0.1:7400".into() });
        assert_eq!(three[2].address, "10.0.0.3:9");
        assert!(of("10.0.0.1,10.0.0.2").unwrap_err().contains("name 1, 3 or 5"));
        assert!(of("10.0.0.4,10.0.0.2,10.0.0.3").unwrap_err().contains("not among --members"));
        assert!(of("10.0.0.1,10.0.0.1,10.0.0.3").unwrap_err().contains("twice"));
        assert!(of("a.example").unwrap_err().contains("IP or IP:PORT"));
    }
}
