//! What is said at the door, inside TLS: one question, one answer, each a length and JSON.

use std::net::IpAddr;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::cluster::Member;

/// Of both messages.
pub(super) const FORMAT: u32 = 1;

/// The name in the door's certificate: the same for every cluster, whatever its address.
pub(super) const DOOR_NAME: &str = "cairn-join";

/// No message is longer.
const LONGEST: usize = 64 << 10;

/// A host that wants to join.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Newcomer {
    /// Its name.
    pub node: String,
    /// Its address, as the others reach it.
    pub address: IpAddr,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Question {
    pub(super) format: u32,
    pub(super) secret: Vec<u8>,
    pub(super) newcomer: Newcomer,
}

/// What a host that was let in learns.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// Every metadata member; the newcomer knows itself by its address.
    pub members: Vec<Member>,
    /// The authority's certificate (PEM).
    pub authority: String,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Answer {
    pub(super) format: u32,
    pub(super) welcome: Option<Welcome>,
    /// Why not, when there is no welcome.
    pub(super) refused: String,
}

pub(super) async fn write<T: Serialize>(stream: &mut (impl AsyncWriteExt + Unpin), message: &T) -> std::io::Result<()> {
    let text = serde_json::to_vec(message).map_err(std::io::Error::other)?;
    stream.write_u32_le(text.len() as u32).await?;
    stream.write_all(&text).await?;
    stream.flush().await
}

pub(super) async fn read<T: DeserializeOwned>(stream: &mut (impl AsyncReadExt + Unpin)) -> std::io::Result<T> {
    let len = stream.read_u32_le().await? as usize;
    if len > LONGEST {
        return Err(std::io::Error::other(format!("a message of {len} bytes; at most {LONGEST} are taken")));
    }
    let mut text = vec![0; len];
    stream.read_exact(&mut text).await?;
    serde_json::from_slice(&text).map_err(std::io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_length_beyond_the_bound_is_refused_before_it_is_believed() {
        let mut bytes = &u32::MAX.to_le_bytes()[..];
        let error = read::<Answer>(&mut bytes).await.err().unwrap();
        assert!(error.to_string().contains("at most"), "{error}");
    }
}
