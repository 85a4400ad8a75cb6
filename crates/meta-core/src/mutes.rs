//! Health checks that somebody does not want to count for a while.

use cairn_proto::meta::{MuteHealthReply, MuteHealthRequest};

use crate::health::CODES;
use crate::machine::{Machine, Turn};
use crate::refusal::{Outcome, Refusal};
use crate::{keys, record};

impl Machine {
    pub(crate) fn mute_health(&mut self, turn: &mut Turn<'_>, request: &MuteHealthRequest) -> Outcome<MuteHealthReply> {
        let code = request.code.as_str();
        if !CODES.iter().any(|(known, _)| *known == code) {
            let known: Vec<&str> = CODES.iter().map(|(known, _)| *known).collect();
            let words = format!("there is no health check `{}`", code.escape_debug());
            return Err(Refusal::not_found(words).remedy(format!("the codes are {}", known.join(", "))).into());
        }
        if !request.unmute && request.until_s != 0 && request.until_s <= turn.now_s {
            return Err(Refusal::invalid("the time until which it is to be muted has passed").into());
        }
        let mut mutes = self.mutes.clone();
        // What has run out goes with the first change after it.
        mutes.until_s.retain(|_, until_s| *until_s == 0 || *until_s > turn.now_s);
        match request.unmute {
            true => mutes.until_s.remove(code),
            false => mutes.until_s.insert(code.to_owned(), request.until_s),
        };
        if mutes != self.mutes {
            record::store(&mut turn.state, keys::MUTES.to_vec(), &mutes);
            self.mutes = mutes;
        }
        Ok(MuteHealthReply {})
    }
}
