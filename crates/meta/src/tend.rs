//! What the leader asks for by itself: OSDs that have been down for too long go out, uneven PGs are evened out, a few at
//! a time, and what has been in the trash for long enough is purged. Whether it is time is `meta-core`'s to say; here is
//! only when it is asked.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cairn_meta_core::{moves, trash};
use cairn_proto::meta::PurgeTrashRequest;
use cairn_proto::meta::command::Payload;
use cairn_proto::meta::purge_trash_request::What;
use cairn_types::Epoch;
use tokio::time::Instant;

use crate::gateway::Gateway;

/// Between questions.
const PAUSE: Duration = Duration::from_secs(2);

/// See the file's head.
#[derive(Default)]
pub(crate) struct Tended {
    asked: Option<Instant>,
    /// At this epoch there was nothing to even out.
    even: Option<Epoch>,
}

impl Tended {
    /// What is due, if anything is.
    pub(crate) async fn due(&mut self, gateway: &Gateway) -> Option<Payload> {
        if self.asked.is_some_and(|at| at.elapsed() < PAUSE) {
            return None;
        }
        self.asked = Some(Instant::now());
        let now_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let even = self.even;
        let answer = gateway.local(move |machine, _| {
            let epoch = machine.map().epoch;
            let expired = trash::is_due(machine, now_s);
            (epoch, expired, if expired { None } else { moves::due(machine, now_s, even != Some(epoch)) })
        });
        let (epoch, expired, due) = answer.await.ok()?;
        if expired {
            return Some(Payload::PurgeTrash(PurgeTrashRequest { mutation: None, what: Some(What::Expired(true)) }));
        }
        self.even = due.is_none().then_some(epoch);
        due.map(Payload::ChangePlacement)
    }
}
