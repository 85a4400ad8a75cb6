//! The members' addresses, one lazily opened channel for each, and which of them is asked next.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use cairn_proto::meta::meta_client::MetaClient as Stub;
use tonic::transport::{Channel, Endpoint};

use crate::MetaError;

/// A member that does not accept a connection within this time is passed over.
const CONNECT: Duration = Duration::from_secs(1);

/// A member that is asked for a sign of life this often must give one as soon.
const KEEP_ALIVE: Duration = Duration::from_secs(1);

/// The largest answer taken: a full map of a large cluster.
const LARGEST_ANSWER: usize = 64 << 20;

#[derive(Clone)]
pub(crate) struct Endpoints {
    /// As configured: asked last, when all whom the cluster names are gone.
    seeds: Arc<Vec<String>>,
    members: Arc<RwLock<Arc<Vec<Member>>>>,
    current: Arc<AtomicUsize>,
}

#[derive(Clone)]
struct Member {
    address: String,
    channel: Channel,
}

impl Endpoints {
    /// `host:port` each; nothing is dialled yet.
    pub(crate) fn new<S: AsRef<str>>(addresses: &[S]) -> Result<Self, MetaError> {
        let members: Result<Vec<Member>, MetaError> =
            addresses.iter().map(|address| Member::new(address.as_ref())).collect();
        let members = members?;
        if members.is_empty() {
            return Err(MetaError::BadEndpoint(String::new()));
        }
        // Different processes start at different members.
        let start = std::process::id() as usize % members.len();
        let seeds = Arc::new(members.iter().map(|member| member.address.clone()).collect());
        let members = Arc::new(RwLock::new(Arc::new(members)));
        Ok(Self { seeds, members, current: Arc::new(AtomicUsize::new(start)) })
    }

    fn members(&self) -> Arc<Vec<Member>> {
        Arc::clone(&self.members.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The member to ask now, with its number for [`Self::pass_over`].
    pub(crate) fn current(&self) -> (usize, Stub<Channel>) {
        let members = self.members();
        let at = self.current.load(Ordering::Relaxed) % members.len();
        let stub = Stub::new(members[at].channel.clone()).max_decoding_message_size(LARGEST_ANSWER);
        (at, stub)
    }

    /// This member failed; the next one is asked from now on, unless somebody moved on already.
    pub(crate) fn pass_over(&self, at: usize) {
        let next = (at + 1) % self.members().len();
        let _ = self.current.compare_exchange(at, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// The cluster's members are these now. Whoever is being asked goes on being asked, if it is one of them.
    pub(crate) fn learn(&self, named: Vec<String>) {
        let before = self.members();
        let mut addresses = named;
        for seed in self.seeds.iter() {
            if !addresses.contains(seed) {
                addresses.push(seed.clone());
            }
        }
        if before.iter().map(|member| &member.address).eq(addresses.iter()) {
            return;
        }
        let known = |address: &String| before.iter().find(|member| member.address == *address).cloned();
        let members: Vec<Member> =
            addresses.iter().filter_map(|address| known(address).or_else(|| Member::new(address).ok())).collect();
        let asked = &before[self.current.load(Ordering::Relaxed) % before.len()].address;
        let at = members.iter().position(|member| member.address == *asked).unwrap_or(0);
        *self.members.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(members);
        self.current.store(at, Ordering::Relaxed);
    }

    /// All of them, for messages.
    pub(crate) fn names(&self) -> String {
        self.members().iter().map(|member| member.address.as_str()).collect::<Vec<_>>().join(", ")
    }
}

impl Member {
    fn new(address: &str) -> Result<Self, MetaError> {
        let wrong = || MetaError::BadEndpoint(address.to_owned());
        let (host, port) = address.rsplit_once(':').ok_or_else(wrong)?;
        if host.is_empty() || port.parse::<u16>().is_err() {
            return Err(wrong());
        }
        let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|_| wrong())?;
        let channel = endpoint
            .connect_timeout(CONNECT)
            .tcp_nodelay(true)
            // A member that was paused or cut off is noticed without traffic of ours, well before the metadata service
            // gives up an OSD whose reports go through that member.
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .connect_lazy();
        Ok(Self { address: address.to_owned(), channel })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_host_and_port_is_an_endpoint() {
        assert!(Endpoints::new(&["127.0.0.1:7401"]).is_ok());
        for wrong in ["", "localhost", ":7401", "h:x", "h:99999"] {
            assert!(Endpoints::new(&[wrong]).is_err(), "{wrong}");
        }
    }

    #[tokio::test]
    async fn a_member_is_passed_over_once_however_many_saw_it_fail() {
        let endpoints = Endpoints::new(&["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"]).unwrap();
        let (at, _) = endpoints.current();
        endpoints.pass_over(at);
        endpoints.pass_over(at);
        assert_eq!(endpoints.current().0, (at + 1) % 3);
    }

    #[tokio::test]
    async fn members_are_learnt_and_the_seeds_stay() {
        let endpoints = Endpoints::new(&["127.0.0.1:1", "127.0.0.1:2"]).unwrap();
        let asked = || endpoints.members()[endpoints.current().0].address.clone();
        let before = asked();
        endpoints.learn(vec!["127.0.0.1:3".to_owned(), "127.0.0.1:2".to_owned()]);
        assert_eq!(endpoints.names(), "127.0.0.1:3, 127.0.0.1:2, 127.0.0.1:1");
        assert_eq!(asked(), before, "nobody is asked anew for it");
    }
}
