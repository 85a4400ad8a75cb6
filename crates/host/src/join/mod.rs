//! How a second host comes to a cluster: a token, made where the cluster's authority lives, and a door there at which
//! the newcomer knocks. The token carries the hash of the authority's certificate, so the newcomer knows that it talks
//! to the right cluster before it says its secret; and the secret, so that the cluster knows who was invited.
//!
//! What passes through the door is small: who the metadata members are, and which of them the newcomer shall be.

mod door;
mod invitations;
mod knock;
mod protocol;
mod token;

pub use door::{DoorError, serve};
pub use invitations::{InvitationError, Invitations};
pub use knock::{KnockError, knock};
pub use protocol::{Newcomer, Welcome};
pub use token::{Token, TokenError};
