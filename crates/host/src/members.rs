//! The metadata members come and go while hosts run. The description of this host follows those that a majority names:
//! a member that was removed is not started again, one that was added for this host's address is, and every process
//! that starts is told of the present ones.

use std::sync::Arc;
use std::time::Duration;

use cairn_meta_client::MetaClient;
use cairn_proto::meta::{StatusReply, StatusRequest};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::cluster::Member;
use crate::{Cluster, Layout};

/// Between two looks.
const LOOK: Duration = Duration::from_secs(2);
/// How long the members may take to answer.
const PATIENCE: Duration = Duration::from_secs(3);

/// Follows them until `shutdown`; says so when the description has changed.
pub(crate) async fn follow(layout: Layout, changed: Arc<Notify>, shutdown: CancellationToken) {
    let work = async {
        loop {
            tokio::time::sleep(LOOK).await;
            if look(&layout).await == Some(true) {
                changed.notify_one();
            }
        }
    };
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = work => {}
    }
}

/// Whether the description changed; `None`: it could not be known, or somebody else is changing it.
async fn look(layout: &Layout) -> Option<bool> {
    let _alone = Cluster::try_lock(layout)?;
    let mut cluster = Cluster::load(layout).ok()??;
    let client = MetaClient::new(&cluster.meta_endpoints()).ok()?;
    // Confirmed by a majority: one that lags might still name whom the others removed.
    let asked = client.status(StatusRequest { confirmed: true });
    let status = tokio::time::timeout(PATIENCE, asked).await.ok()?.ok()?;
    let before = cluster.clone();
    cluster.follow_members(layout, &status);
    if cluster == before {
        return Some(false);
    }
    match cluster.save(layout) {
        Ok(()) => {
            tracing::info!(members = ?cluster.meta_endpoints(), own = ?cluster.own_members, "the metadata members")
        }
        Err(error) => tracing::error!(%error, "the description is out of date"),
    }
    Some(true)
}

impl Cluster {
    /// Takes over who the members are. Nothing is believed of another cluster, and nothing before there is one.
    pub fn follow_members(&mut self, layout: &Layout, status: &StatusReply) {
        let known = self.formed.as_ref().is_none_or(|name| *name == status.cluster_id);
        if status.cluster_id.is_empty() || status.members.is_empty() || !known {
            return;
        }
        self.formed = Some(status.cluster_id.clone());
        self.members = status.members.iter().map(|m| Member { id: m.id, address: m.address.clone() }).collect();
        let here = self.network.as_ref().map(|network| network.meta_address().to_string());
        for member in status.members.iter().filter(|m| m.learner && Some(&m.address) == here.as_ref()) {
            // Announced somewhere else for this host, whose directory is still to be made.
            if !layout.meta(member.id).join("MEMBER").exists() && !self.joining.contains(&member.id) {
                // The address may be that of the one whose place it takes.
                self.own_members.retain(|own| *own != member.replaces && *own != member.id);
                self.own_members.push(member.id);
                self.joining.push(member.id);
            }
        }
        let is_member = |id: &u64| status.members.iter().any(|m| m.id == *id);
        self.own_members.retain(is_member);
        self.joining.retain(|id| status.members.iter().any(|m| m.id == *id && m.learner));
    }

    /// A member was announced for this host, under this number.
    pub fn add_own_member(&mut self, id: u64, address: String) {
        self.members.retain(|member| member.id != id);
        self.members.push(Member { id, address });
        self.own_members.push(id);
        self.joining.push(id);
    }
}

#[cfg(test)]
mod tests {
    use cairn_proto::meta;

    use super::*;
    use crate::cluster::Network;
    use crate::roles;

    fn status(members: &[(u64, &str, bool, u64)]) -> StatusReply {
        let member = |(id, address, learner, replaces): &(u64, &str, bool, u64)| meta::Member {
            id: *id,
            address: (*address).to_owned(),
            learner: *learner,
            replaces: *replaces,
            ..meta::Member::default()
        };
        StatusReply { cluster_id: "c".into(), members: members.iter().map(member).collect(), ..StatusReply::default() }
    }

    fn host(layout: &Layout) -> Cluster {
        let network = Network { address: [10, 0, 0, 2].into(), base_port: 7400, insecure_listen: true, door: false };
        let members = [1, 2, 3].map(|id| Member { id, address: format!("10.0.0.{id}:7400") }).to_vec();
        let cluster = Cluster::of_host("b".into(), ("z".into(), "r".into()), members, network);
        cluster.save(layout).unwrap();
        cluster
    }

    fn arguments(layout: &Layout, cluster: &Cluster) -> Vec<String> {
        let metas = roles::all(layout, cluster).into_iter().filter(|role| role.kind == roles::RoleKind::Meta);
        metas.map(|role| format!("{} {}", role.name, role.args.join(" "))).collect()
    }

    #[test]
    fn only_a_cluster_that_begins_is_told_with_whom() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::at(&folder.path().join("c")).unwrap();
        let mut cluster = host(&layout);
        let args = arguments(&layout, &cluster);
        assert!(args[0].contains("--id 2") && args[0].contains("--members 1=10.0.0.1:7400,2="), "{args:?}");
        let three = [(1, "10.0.0.1:7400", false, 0), (2, "10.0.0.2:7400", false, 0), (3, "10.0.0.3:7400", false, 0)];
        cluster.follow_members(&layout, &StatusReply { cluster_id: String::new(), ..status(&three) });
        assert_eq!(cluster.formed, None);
        cluster.follow_members(&layout, &status(&three));
        let args = arguments(&layout, &cluster);
        assert!(
            args[0].starts_with("meta-2") && !args[0].contains("--members") && !args[0].contains("--id"),
            "{args:?}"
        );
        let formed = cluster.clone();
        cluster.follow_members(&layout, &StatusReply { cluster_id: "other".into(), ..status(&[]) });
        assert_eq!(cluster, formed);
    }

    #[test]
    fn who_was_removed_is_not_started_again_and_who_was_announced_for_this_host_is() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::at(&folder.path().join("c")).unwrap();
        let mut cluster = host(&layout);
        let one = (1, "10.0.0.1:7400", false, 0);
        let replacing = [one, (2, "10.0.0.2:7400", false, 0), (4, "10.0.0.2:7400", true, 2)];
        cluster.follow_members(&layout, &status(&replacing));
        assert_eq!((cluster.own_members.clone(), cluster.joining.clone()), (vec![4], vec![4]), "at its own address");
        let args = arguments(&layout, &cluster);
        assert!(args[0].starts_with("meta-4") && args[0].contains("--join 10.0.0.1:7400"), "{args:?}");
        cluster.follow_members(&layout, &status(&[one, (4, "10.0.0.2:7400", false, 0)]));
        assert!(cluster.joining.is_empty() && cluster.meta_endpoints().len() == 2);
        cluster.follow_members(&layout, &status(&[one]));
        assert!(arguments(&layout, &cluster).is_empty());
    }
}
