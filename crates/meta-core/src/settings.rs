//! What an administrator sets for the whole cluster: flags for maintenance, and how fast data may move.

use cairn_proto::meta::{ChangeSettingsReply, ChangeSettingsRequest, Settings};

use crate::machine::{Machine, Turn};
use crate::refusal::{Outcome, Refusal};

/// The most groups that may be filled at one OSD.
const MOST_BACKFILLS: u32 = 256;

impl Machine {
    pub(crate) fn change_settings(
        &mut self,
        turn: &mut Turn<'_>,
        request: &ChangeSettingsRequest,
    ) -> Outcome<ChangeSettingsReply> {
        check(request)?;
        let mut next = self.map.settings;
        let set = |flag: &mut bool, to: Option<bool>| *flag = to.unwrap_or(*flag);
        set(&mut next.noout, request.noout);
        set(&mut next.norebalance, request.norebalance);
        set(&mut next.noin, request.noin);
        set(&mut next.nobalance, request.nobalance);
        set(&mut next.noautoscale, request.noautoscale);
        next.down_out_s = request.down_out_s.unwrap_or(next.down_out_s);
        next.backfills = request.backfills.unwrap_or(next.backfills);
        next.client_latency_ms = request.client_latency_ms.unwrap_or(next.client_latency_ms);
        let shown = Settings::from(&next);
        if next == self.map.settings {
            return Ok(ChangeSettingsReply { settings: Some(shown), epoch: self.map.epoch.0 });
        }
        self.map.settings = next;
        self.cluster.settings = Some(shown);
        turn.touched.settings = true;
        Ok(ChangeSettingsReply { settings: Some(shown), epoch: self.coming_epoch().0 })
    }
}

fn check(request: &ChangeSettingsRequest) -> Result<(), Refusal> {
    if request.down_out_s == Some(0) {
        let message = "an OSD must be down for a second at least before it is taken out";
        return Err(Refusal::invalid(message).remedy("to take one out at once: cairn osd drain"));
    }
    if request.backfills.is_some_and(|most| most == 0 || most > MOST_BACKFILLS) {
        return Err(Refusal::invalid(format!("1 to {MOST_BACKFILLS} groups may be filled at once at one OSD"))
            .remedy("to stop movement: cairn osd set norebalance"));
    }
    if request.client_latency_ms == Some(0) {
        return Err(Refusal::invalid("the bound for clients' latency must be above 0 ms"));
    }
    Ok(())
}
