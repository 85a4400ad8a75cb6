//! What a volume's holder may do, as people write it: a number, or `none`.

use cairn_proto::meta;
use clap::Args;
use serde_json::{Value, json};

use super::pg::parse_period;
use crate::size;

/// What is set of a volume. What is left out stays as it is.
#[derive(Args, Clone, Copy, Default)]
pub(crate) struct Limits {
    /// Reads, writes and discards a second that whoever has it attached may make; `none` lifts it.
    #[arg(long, value_name = "N|none", value_parser = count)]
    iops: Option<u64>,
    /// Bytes a second, read and written together: 50Mi; `none` lifts it.
    #[arg(long, value_name = "SIZE|none", value_parser = bytes)]
    bandwidth: Option<u64>,
    /// How many seconds' worth of both an idle volume saves up, to be used at once; `none` for nothing.
    #[arg(long, value_name = "SECONDS|none", value_parser = seconds)]
    burst: Option<u32>,
    /// How long it stays in the trash once it is deleted: 24h; `0` for not at all. Without it, as its pool says.
    #[arg(long, value_name = "TIME", value_parser = parse_period)]
    retention: Option<u64>,
}

impl Limits {
    pub(crate) fn is_empty(&self) -> bool {
        matches!(self, Self { iops: None, bandwidth: None, burst: None, retention: None })
    }

    /// Those of a new volume.
    pub(crate) fn begin(self, request: &mut meta::CreateVolumeRequest) {
        let or = Option::unwrap_or_default;
        let (iops, bandwidth) = (or(self.iops), or(self.bandwidth));
        let limits = meta::VolumeLimits { iops, bandwidth, burst_s: self.burst.unwrap_or_default() };
        request.limits = Some(limits).filter(|limits| *limits != meta::VolumeLimits::default());
        request.retention_s = self.retention;
    }

    /// Those that change.
    pub(crate) fn change(self, request: &mut meta::ChangeVolumeRequest) {
        (request.iops, request.bandwidth, request.burst_s) = (self.iops, self.bandwidth, self.burst);
        request.retention_s = self.retention;
    }
}

/// `none` is 0: no limit.
fn or_none<T: Default>(text: &str, parse: impl FnOnce(&str) -> Result<T, String>) -> Result<T, String> {
    if text == "none" { Ok(T::default()) } else { parse(text) }
}

/// A number, or `none`.
pub(crate) fn count(text: &str) -> Result<u64, String> {
    or_none(text, |text| text.parse().map_err(|_| format!("`{text}` is no number; write one, or none")))
}

/// A size, or `none`.
pub(crate) fn bytes(text: &str) -> Result<u64, String> {
    or_none(text, |text| size::parse(text).map_err(|error| format!("{error}, or none")))
}

fn seconds(text: &str) -> Result<u32, String> {
    or_none(text, |text| text.parse().map_err(|_| format!("`{text}` is no number of seconds; write one, or none")))
}

/// In one line; nothing where there are none.
pub(crate) fn shown(limits: Option<&meta::VolumeLimits>) -> String {
    let limits = limits.copied().unwrap_or_default();
    let iops = (limits.iops > 0).then(|| format!("{} IOPS", limits.iops));
    let bandwidth = (limits.bandwidth > 0).then(|| format!("{}/s", size::show(limits.bandwidth)));
    let burst = (limits.burst_s > 0).then(|| format!("bursts of {} s", limits.burst_s));
    [iops, bandwidth, burst].into_iter().flatten().collect::<Vec<_>>().join(", ")
}

pub(crate) fn to_json(limits: Option<&meta::VolumeLimits>) -> Value {
    let limits = limits.copied().unwrap_or_default();
    json!({"iops": limits.iops, "bandwidth": limits.bandwidth, "burst_s": limits.burst_s})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_a_number_or_none() {
        assert_eq!((count("100"), count("none"), count("0")), (Ok(100), Ok(0), Ok(0)));
        assert_eq!((bytes("50Mi"), bytes("none")), (Ok(50 << 20), Ok(0)));
        assert_eq!(seconds("none"), Ok(0));
        for wrong in ["", "None", "-1", "1.5"] {
            assert!(count(wrong).unwrap_err().ends_with("or none"), "{wrong}");
            assert!(bytes(wrong).unwrap_err().ends_with("or none"), "{wrong}");
            assert!(seconds(wrong).unwrap_err().ends_with("or none"), "{wrong}");
        }
    }

    #[test]
    fn only_what_is_limited_is_shown() {
        let limits = |iops, bandwidth, burst_s| shown(Some(&meta::VolumeLimits { iops, bandwidth, burst_s }));
        assert_eq!(limits(100, 50 << 20, 5), "100 IOPS, 50 MiB/s, bursts of 5 s");
        assert_eq!(limits(0, 1 << 20, 0), "1 MiB/s");
        assert_eq!((limits(0, 0, 0), shown(None)), (String::new(), String::new()));
    }
}
