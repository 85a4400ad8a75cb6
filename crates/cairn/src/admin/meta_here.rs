//! `cairn meta add` and `replace` where the new member is to run on this host: announced, described, started and waited
//! for by the one command. Elsewhere the member is only announced; its host starts it.

use std::fs::File;
use std::net::{IpAddr, SocketAddr, TcpListener};

use cairn_host::cluster::{ClusterError, Network};
use cairn_host::process::ProcessId;
use cairn_host::supervisor::State;
use cairn_host::{Cluster, Layout};
use cairn_proto::meta::{AddMember, StatusReply, StatusRequest};
use rustix::process::Signal;

use super::{Metadata, Target};
use crate::failure::{Code, Failure, Outcome};
use crate::up;

/// This host's part of a cluster that runs.
pub(crate) struct Here {
    layout: Layout,
    cluster: Cluster,
    supervisor: ProcessId,
    /// Nobody else changes the description meanwhile.
    alone: File,
}

impl From<ClusterError> for Failure {
    fn from(error: ClusterError) -> Self {
        Self::new(Code::Failed, error.to_string())
    }
}

impl Here {
    /// `None`: the target is no cluster of this host, or does not run here.
    pub(crate) fn at(target: &Target) -> Result<Option<Self>, Failure> {
        if !target.meta.is_empty() || !target.dir.join("cluster.json").exists() {
            return Ok(None);
        }
        let layout = up::existing(&target.dir)?;
        let Some(supervisor) = State::load(&layout).and_then(|state| state.live_supervisor()) else {
            return Ok(None);
        };
        let alone = Cluster::lock(&layout)?;
        let cluster = up::described(&layout)?;
        Ok(Some(Self { layout, cluster, supervisor, alone }))
    }

    /// Where the new member is to listen, if nothing was said.
    pub(crate) fn address(&self, replaces: u64, status: &StatusReply) -> Result<String, Failure> {
        let old = status.members.iter().find(|m| m.id == replaces);
        if let Some(old) = old.filter(|old| !old.healthy && self.is_here(&old.address)) {
            return Ok(old.address.clone());
        }
        match &self.cluster.network {
            None => free_port(),
            Some(network) => own_port(network, status),
        }
    }

    /// Whether the members that listen there run on this host.
    pub(crate) fn is_here(&self, address: &str) -> bool {
        let Ok(address) = address.parse::<SocketAddr>() else { return false };
        match &self.cluster.network {
            None => address.ip().is_loopback(),
            Some(Network { address: own, .. }) => address.ip() == *own,
        }
    }

    /// The old one makes room where the new one takes its very address. Whether it had to.
    pub(crate) async fn make_room(&mut self, add: &AddMember) -> Result<bool, Failure> {
        let old = self.cluster.members.iter().find(|m| m.id == add.replaces && m.address == add.address);
        let Some(old) = old.map(|m| m.id).filter(|old| self.cluster.own_members.contains(old)) else {
            return Ok(false);
        };
        self.cluster.own_members.retain(|own| *own != old);
        self.tell()?;
        let role = format!("meta-{old}");
        up::wait(&format!("{role} to stop"), async || {
            let state = State::load(&self.layout)?;
            (!state.processes.contains_key(&role)).then_some(())
        })
        .await?;
        Ok(true)
    }

    /// It was not to be: the old one runs again.
    pub(crate) fn take_back(&mut self, add: &AddMember) -> Outcome {
        self.cluster.own_members.push(add.replaces);
        self.tell()
    }

    /// The member starts, and the description is open to others again.
    pub(crate) fn start(mut self, id: u64, address: String) -> Outcome {
        self.cluster.add_own_member(id, address);
        self.tell()?;
        drop(self.alone);
        Ok(())
    }

    fn tell(&self) -> Outcome {
        self.cluster.save(&self.layout)?;
        self.supervisor.signal(Signal::HUP);
        Ok(())
    }
}

/// This host hears at once of what was changed, and not only when it looks the next time: whoever stops or restores it now
/// goes by what its description says.
pub(crate) async fn follow(target: &Target) -> Outcome {
    let Some(mut here) = Here::at(target)? else { return Ok(()) };
    let status = Metadata::of_cluster(&here.cluster)?.0.status(StatusRequest { confirmed: true }).await?;
    here.cluster.follow_members(&here.layout, &status);
    here.tell()
}

fn free_port() -> Result<String, Failure> {
    let listener = TcpListener::bind((IpAddr::from([127, 0, 0, 1]), 0));
    let address = listener.and_then(|listener| listener.local_addr());
    address.map(|address| address.to_string()).map_err(Failure::while_("cannot find a free port"))
}

fn own_port(network: &Network, status: &StatusReply) -> Result<String, Failure> {
    let address = network.meta_address().to_string();
    match status.members.iter().find(|m| m.address == address) {
        None => Ok(address),
        Some(there) => {
            let message = format!("member {} runs on this host already, at {address}; name another address", there.id);
            Err(Failure::new(Code::Failed, message))
        }
    }
}

/// Until it votes, or has begun to learn where it is to stay a learner.
pub(crate) async fn wait_for(metadata: &Metadata, id: u64, learner: bool) -> Outcome {
    let what = if learner { "to begin" } else { "to catch up and vote; it goes on by itself: cairn meta ls" };
    up::wait(&format!("member {id} {what}"), async || {
        let status = metadata.at_leader().await.ok()?;
        let member = status.members.iter().find(|m| m.id == id)?;
        let done = if learner { member.healthy } else { !member.learner };
        let replaced = learner || status.members.iter().all(|m| m.id != member.replaces);
        (done && replaced && status.settled).then_some(())
    })
    .await
}

/// Until a majority of the members acts on the latest change: from then on one more of them may be lost.
pub(crate) async fn wait_until_settled(metadata: &Metadata) -> Outcome {
    up::wait("the members to know of the change", async || {
        metadata.at_leader().await.ok().filter(|status| status.settled).map(|_| ())
    })
    .await
}
