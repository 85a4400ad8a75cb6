//! Where a daemon listens: `unix:/path` or `tcp:host:port`.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

/// One address of the data path.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Address {
    /// A unix socket, for daemons on the same machine.
    Unix(PathBuf),
    /// A TCP socket.
    Tcp {
        /// Name or IP address; an IPv6 address without its brackets.
        host: String,
        /// Port.
        port: u16,
    },
}

/// Text that is no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an address; write unix:/path or tcp:host:port")]
pub struct AddressError(String);

impl Address {
    /// Whether only this machine can reach it.
    #[must_use]
    pub fn is_local(&self) -> bool {
        match self {
            Self::Unix(_) => true,
            Self::Tcp { host, .. } => host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback()),
        }
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let error = || AddressError(text.to_owned());
        if let Some(path) = text.strip_prefix("unix:") {
            return if path.starts_with('/') { Ok(Self::Unix(path.into())) } else { Err(error()) };
        }
        let (host, port) = text.strip_prefix("tcp:").and_then(|rest| rest.rsplit_once(':')).ok_or_else(error)?;
        let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        let host = bare.unwrap_or(host);
        if host.is_empty() || (bare.is_none() && host.contains(':')) {
            return Err(error());
        }
        Ok(Self::Tcp { host: host.to_owned(), port: port.parse().map_err(|_| error())? })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp { host, port } if host.contains(':') => write!(f, "tcp:[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "tcp:{host}:{port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_read_as_they_print() {
        for text in ["unix:/run/cairn/osd.0", "tcp:127.0.0.1:6800", "tcp:[::1]:6800", "tcp:node-1.example:1"] {
            assert_eq!(text.parse::<Address>().map(|a| a.to_string()).as_deref(), Ok(text));
        }
        for text in ["", "/run/x", "unix:relative", "tcp:6800", "tcp::1", "tcp:h:99999", "tcp:::1:5", "udp:h:1"] {
            let error = text.parse::<Address>().unwrap_err().to_string();
            assert_eq!(error, format!("`{text}` is not an address; write unix:/path or tcp:host:port"));
        }
    }

    #[test]
    fn only_this_machine_is_local() {
        let local = |text: &str| text.parse::<Address>().unwrap().is_local();
        assert!(local("unix:/x") && local("tcp:127.0.0.1:1") && local("tcp:[::1]:1") && local("tcp:localhost:1"));
        assert!(!local("tcp:0.0.0.0:1") && !local("tcp:10.0.0.1:1") && !local("tcp:example.org:1"));
    }
}
