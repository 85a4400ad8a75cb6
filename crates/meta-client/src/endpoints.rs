//! The members' addresses, one lazily opened channel for each, and which of them is asked next.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use cairn_proto::meta::meta_client::MetaClient as Stub;
use tonic::transport::{Channel, Endpoint};

use crate::MetaError;

/// A member that does not accept a connection within this time is passed over.
const CONNECT: Duration = Duration::from_secs(1);

/// The largest answer taken: a full map of a large cluster.
const LARGEST_ANSWER: usize = 64 << 20;

#[derive(Clone)]
pub(crate) struct Endpoints {
    members: Arc<Vec<Member>>,
    current: Arc<AtomicUsize>,
}

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
        Ok(Self { members: Arc::new(members), current: Arc::new(AtomicUsize::new(start)) })
    }

    /// The member to ask now, with its number for [`Self::pass_over`].
    pub(crate) fn current(&self) -> (usize, Stub<Channel>) {
        let at = self.current.load(Ordering::Relaxed) % self.members.len();
        let stub = Stub::new(self.members[at].channel.clone()).max_decoding_message_size(LARGEST_ANSWER);
        (at, stub)
    }

    /// This member failed; the next one is asked from now on, unless somebody moved on already.
    pub(crate) fn pass_over(&self, at: usize) {
        let next = (at + 1) % self.members.len();
        let _ = self.current.compare_exchange(at, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// All of them, for messages.
    pub(crate) fn names(&self) -> String {
        self.members.iter().map(|member| member.address.as_str()).collect::<Vec<_>>().join(", ")
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
            // A member that was paused or cut off is noticed without traffic of ours.
            .http2_keep_alive_interval(Duration::from_secs(5))
            .keep_alive_timeout(Duration::from_secs(2))
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
}
