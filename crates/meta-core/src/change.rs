//! What changes of a volume without its data: its name, its labels, its limits, how long it is kept once it is deleted.
//! Whoever holds the volume goes on undisturbed, because a holding names the volume by its id.

use std::collections::BTreeMap;

use cairn_proto::meta::{ChangeVolumeReply, ChangeVolumeRequest, ErrorCode, VolumeLimits};

use crate::capacity::human;
use crate::machine::{Machine, Turn};
use crate::refusal::{Outcome, Refusal};
use crate::trash::check_retention;
use crate::volume::{called, check_name, required, shown};
use crate::{keys, record};

/// The most labels of one volume.
const LABELS: usize = 64;
/// Bytes of the key of a label, and of its value.
const LABEL_BYTES: usize = 256;

/// The greatest limit: more is no limit.
const MOST_IOPS: u64 = 10_000_000;
/// Bytes a second. The largest request is paid off in half a minute.
const LEAST_BANDWIDTH: u64 = 1 << 20;
const MOST_BANDWIDTH: u64 = 1 << 40;
const LONGEST_BURST_S: u32 = 3600;

impl Machine {
    pub(crate) fn change_volume(
        &mut self,
        turn: &mut Turn<'_>,
        request: ChangeVolumeRequest,
    ) -> Outcome<ChangeVolumeReply> {
        let mut record = required(&turn.state, request.volume.as_ref())?;
        let before = record.clone();
        let volume = record.volume.get_or_insert_default();
        request.remove_labels.iter().for_each(|key| drop(volume.labels.remove(key)));
        volume.labels.extend(request.labels);
        check_labels(&volume.labels)?;
        check_retention(request.retention_s)?;
        volume.retention_s = request.retention_s.or(volume.retention_s);
        let now = volume.limits.unwrap_or_default();
        let next = VolumeLimits {
            iops: request.iops.unwrap_or(now.iops),
            bandwidth: request.bandwidth.unwrap_or(now.bandwidth),
            burst_s: request.burst_s.unwrap_or(now.burst_s),
        };
        volume.limits = limits(now, next)?;
        let renamed = !request.name.is_empty() && request.name != volume.name;
        if renamed {
            check_name("volume", &request.name)?;
            if record::volume_named(&turn.state, &request.name)?.is_some() {
                let words = format!("{} cannot be called `{}`: another volume is", called(&before), request.name);
                return Err(Refusal::new(ErrorCode::AlreadyExists, words).remedy("choose another name").into());
            }
            // Nothing is written before everything has been checked.
            turn.state.delete(keys::volume_name(&volume.name));
            turn.state.put(keys::volume_name(&request.name), volume.id.to_be_bytes().to_vec());
            volume.name = request.name;
        }
        if record != before {
            self.write_volume(turn, &record);
        }
        Ok(ChangeVolumeReply { volume: Some(shown(&record)) })
    }
}

/// Checks what is new, and gives limits as a record has them: absent where there are none.
pub(crate) fn limits(now: VolumeLimits, next: VolumeLimits) -> Result<Option<VolumeLimits>, Refusal> {
    if next.iops != now.iops && next.iops > MOST_IOPS {
        let message = format!("a limit of {} IOPS is none", next.iops);
        return Err(Refusal::invalid(message).remedy(format!("use 1 to {MOST_IOPS}, or 0 for no limit")));
    }
    let sane = LEAST_BANDWIDTH..=MOST_BANDWIDTH;
    if next.bandwidth != now.bandwidth && next.bandwidth != 0 && !sane.contains(&next.bandwidth) {
        let message = format!("a volume cannot be limited to {} a second", human(next.bandwidth));
        let (least, most) = (human(LEAST_BANDWIDTH), human(MOST_BANDWIDTH));
        return Err(Refusal::invalid(message).remedy(format!("use {least} to {most}, or 0 for no limit")));
    }
    if next.burst_s > LONGEST_BURST_S {
        let message = format!("a volume cannot save up {} seconds", next.burst_s);
        return Err(Refusal::invalid(message).remedy(format!("use 0 to {LONGEST_BURST_S} seconds")));
    }
    Ok(Some(next).filter(|limits| *limits != VolumeLimits::default()))
}

/// Labels are written `key=value` and taken away by `key-`, so that their keys must leave room for that.
pub(crate) fn check_labels(labels: &BTreeMap<String, String>) -> Result<(), Refusal> {
    let long = |(key, value): (&String, &String)| key.len() > LABEL_BYTES || value.len() > LABEL_BYTES;
    if labels.len() > LABELS || labels.iter().any(long) {
        let message =
            format!("a volume has at most {LABELS} labels, with keys and values of at most {LABEL_BYTES} bytes");
        return Err(Refusal::invalid(message).remedy("take some away, or make them shorter"));
    }
    let odd = |key: &str| {
        key.is_empty() || key.ends_with('-') || key.chars().any(|c| c.is_control() || c.is_whitespace() || c == '=')
    };
    match labels.iter().find(|(key, value)| odd(key) || value.chars().any(char::is_control)) {
        None => Ok(()),
        Some((key, _)) => Err(Refusal::invalid(format!("the label `{}` cannot be written", key.escape_debug()))
            .remedy("use a key without spaces and `=` that does not end with `-`, and printable text as the value")),
    }
}
