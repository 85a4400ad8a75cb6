//! The join token as text: one word that survives copying, and says so when it did not.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};

/// What a token begins with: the word, and its format.
const PREFIX: &str = "cairn-join-1-";

/// Bytes of the hash, of the secret, and of the sum over all that is before it.
const HASH: usize = 32;
const SECRET: usize = 16;
const SUM: usize = 4;

/// Everything a newcomer needs to find the cluster, to know it, and to be let in.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// Where the door is.
    pub door: SocketAddr,
    /// SHA-256 of the authority's certificate (DER).
    pub authority: [u8; HASH],
    /// Who shows it was invited.
    pub secret: [u8; SECRET],
}

/// Text that is no token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Something else altogether.
    #[error("this is no join token: one begins with `{PREFIX}`; `cairn token create` on the first host prints one")]
    NotOne,
    /// A part is missing or changed.
    #[error("the join token is damaged; copy the whole of it, as `cairn token create` on the first host prints it")]
    Damaged,
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = [&self.authority[..], &self.secret[..], self.door.to_string().as_bytes()].concat();
        bytes.extend_from_slice(&sum(&bytes));
        write!(f, "{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
    }
}

/// Never the secret.
impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({})", self.door)
    }
}

impl FromStr for Token {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let word = text.trim().strip_prefix(PREFIX).ok_or(TokenError::NotOne)?;
        let bytes = URL_SAFE_NO_PAD.decode(word).map_err(|_| TokenError::Damaged)?;
        let at = bytes.len().checked_sub(SUM).filter(|at| *at > HASH + SECRET).ok_or(TokenError::Damaged)?;
        let (body, theirs) = bytes.split_at(at);
        if theirs != sum(body) {
            return Err(TokenError::Damaged);
        }
        let damaged = |_| TokenError::Damaged;
        let door = std::str::from_utf8(&body[HASH + SECRET..]).map_err(|_| TokenError::Damaged)?;
        Ok(Self {
            door: door.parse().map_err(|_| TokenError::Damaged)?,
            authority: body[..HASH].try_into().map_err(damaged)?,
            secret: body[HASH..HASH + SECRET].try_into().map_err(damaged)?,
        })
    }
}

/// Finds slips of the hand, nothing more.
fn sum(bytes: &[u8]) -> [u8; SUM] {
    let digest = Sha256::digest(bytes);
    [digest[0], digest[1], digest[2], digest[3]]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> Token {
        Token { door: "10.0.0.1:7401".parse().unwrap(), authority: [7; HASH], secret: [9; SECRET] }
    }

    #[test]
    fn a_token_reads_as_it_prints() {
        assert_eq!(token().to_string().parse(), Ok(token()));
        let six = Token { door: "[fd00::1]:7401".parse().unwrap(), ..token() };
        assert_eq!(format!(" {six}\n").parse(), Ok(six));
    }

    #[test]
    fn a_slip_is_noticed_wherever_it_is() {
        let text = token().to_string();
        for cut in PREFIX.len()..text.len() {
            assert_eq!(text[..cut].parse::<Token>(), Err(TokenError::Damaged), "cut at {cut}");
            let mut changed = text.clone().into_bytes();
            changed[cut] = if changed[cut] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(changed).unwrap();
            assert_eq!(changed.parse::<Token>(), Err(TokenError::Damaged), "changed at {cut}");
        }
        assert_eq!("hello".parse::<Token>(), Err(TokenError::NotOne));
    }

    #[test]
    fn its_secret_is_not_shown_in_logs() {
        assert_eq!(format!("{:?}", token()), "Token(10.0.0.1:7401)");
    }
}
