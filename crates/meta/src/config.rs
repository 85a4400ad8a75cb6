//! How one member is started, and what is refused before it opens anything.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::time::Duration;

/// One metadata member.
#[derive(Clone, Debug)]
pub struct Config {
    /// Its number: one of those in `members`. 0: as its directory says, or as the cluster that it joins gives it.
    pub id: u64,
    /// Its own directory; made if it is not there.
    pub dir: PathBuf,
    /// `host:port` of the one TCP listener: clients, etcd's clients and the other members.
    pub listen: String,
    /// The members that a new cluster begins with, each with the address that clients and the others reach it at,
    /// itself included. What has begun goes by what it wrote down.
    pub members: Vec<(u64, String)>,
    /// Some members of a living cluster, which a new directory joins instead of beginning one.
    pub join: Vec<String>,
    /// The member whose place this one takes when it joins; 0: nobody's.
    pub replace: u64,
    /// Where the others reach it when it joins; empty: where it listens.
    pub advertise: String,
    /// Allows to listen on an address that is not loopback: whoever reaches it can do everything.
    pub insecure_listen: bool,
    /// Between a leader's heartbeats, and the unit of all raft time.
    pub heartbeat: Duration,
    /// A follower that hears nothing for this long, up to twice this, stands for election.
    pub election: Duration,
    /// The leader itself declares an OSD down that did not report for this long.
    pub osd_silence: Duration,
    /// Log entries after which a checkpoint is made and the log truncated.
    pub checkpoint_entries: u64,
}

impl Config {
    /// The defaults for a member of a cluster.
    #[must_use]
    pub fn new(id: u64, dir: PathBuf, listen: String, members: Vec<(u64, String)>) -> Self {
        Self {
            id,
            dir,
            listen,
            members,
            join: Vec::new(),
            replace: 0,
            advertise: String::new(),
            insecure_listen: false,
            heartbeat: Duration::from_millis(100),
            election: Duration::from_millis(1000),
            osd_silence: Duration::from_secs(5),
            checkpoint_entries: 20_000,
        }
    }

    /// The members' numbers, ascending.
    #[must_use]
    pub fn voters(&self) -> Vec<u64> {
        let mut voters: Vec<u64> = self.members.iter().map(|(id, _)| *id).collect();
        voters.sort_unstable();
        voters
    }

    /// Checks what can be checked without touching anything, and resolves the listening address.
    ///
    /// # Errors
    /// In words, each with what to do.
    pub fn check(&self) -> Result<SocketAddr, ConfigError> {
        let voters = self.voters();
        if voters.contains(&0) {
            return Err(ConfigError::ZeroId);
        }
        if let Some(twice) = voters.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(ConfigError::Twice(twice[0]));
        }
        if !voters.is_empty() && !voters.contains(&self.id) {
            return Err(ConfigError::NotListed { id: self.id, members: voters });
        }
        if self.heartbeat.is_zero() || self.election < self.heartbeat * 4 {
            return Err(ConfigError::Timing { heartbeat: self.heartbeat, election: self.election });
        }
        let bad = |cause: String| ConfigError::Listen { listen: self.listen.clone(), cause };
        let address = self.listen.to_socket_addrs().map_err(|e| bad(e.to_string()))?.next();
        let address = address.ok_or_else(|| bad("it resolves to nothing".to_owned()))?;
        match address.ip().is_loopback() || self.insecure_listen {
            true => Ok(address),
            false => Err(ConfigError::Exposed(address)),
        }
    }

    pub(crate) fn election_ticks(&self) -> usize {
        let ticks = self.election.as_micros().div_ceil(self.heartbeat.as_micros().max(1));
        usize::try_from(ticks).unwrap_or(usize::MAX)
    }
}

/// What is wrong with a configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// 0 means "nobody" in raft.
    #[error("0 is no member id; number the members from 1")]
    ZeroId,
    /// A number was given to two members.
    #[error("member {0} is listed twice; give each member its own id")]
    Twice(u64),
    /// The member is not one of its own cluster.
    #[error("member {id} is not among the members {members:?}; list every member of the cluster, itself included")]
    NotListed {
        /// Itself.
        id: u64,
        /// As listed.
        members: Vec<u64>,
    },
    /// A new directory, and neither a cluster to begin nor one to join.
    #[error(
        "this directory holds no member, and a new one either begins a cluster (--members with every member) or joins one \
         (--join HOST:PORT); where it is a member whose directory was lost, replace that one: cairn meta replace ID"
    )]
    NoBeginning,
    /// Elections would start between two heartbeats.
    #[error("the election timeout {election:?} must be at least four heartbeats of {heartbeat:?}")]
    Timing {
        /// As given.
        heartbeat: Duration,
        /// As given.
        election: Duration,
    },
    /// No such address.
    #[error("cannot listen on `{listen}`: {cause}; give host:port, such as 127.0.0.1:7400")]
    Listen {
        /// As given.
        listen: String,
        /// What is wrong with it.
        cause: String,
    },
    /// Everybody could reach it.
    #[error(
        "{0} can be reached from other machines, and this listener has no authentication yet: listen on a loopback \
         address, or say --insecure-listen if that network is closed"
    )]
    Exposed(SocketAddr),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(listen: &str) -> Config {
        let members = (1..=3).map(|id| (id, format!("127.0.0.1:740{id}"))).collect();
        Config::new(2, "/tmp/unused".into(), listen.to_owned(), members)
    }

    #[test]
    fn only_loopback_is_open_without_being_asked_for() {
        assert!(config("127.0.0.1:0").check().is_ok());
        assert!(config("[::1]:0").check().is_ok());
        let error = config("0.0.0.0:7400").check().unwrap_err().to_string();
        assert!(error.contains("--insecure-listen"), "{error}");
        assert!(Config { insecure_listen: true, ..config("0.0.0.0:7400") }.check().is_ok());
    }

    #[test]
    fn a_member_must_be_listed_once() {
        let stranger = Config { id: 9, ..config("127.0.0.1:0") };
        assert!(matches!(stranger.check(), Err(ConfigError::NotListed { id: 9, .. })));
        let mut twice = config("127.0.0.1:0");
        twice.members.push((1, "127.0.0.1:1".into()));
        assert_eq!(twice.check(), Err(ConfigError::Twice(1)));
    }
}
