//! The parameters of a StorageClass, and those of a VolumeAttributesClass, parsed strictly: a misspelt one is refused by
//! name, never ignored.

use std::collections::{BTreeMap, HashMap};

use cairn_types::map::{FailureDomain, UnknownFailureDomain};

/// What may be written in a StorageClass.
const KNOWN: &str = "pool, replicas, failureDomain, deleteRetention";
/// What may be written in a VolumeAttributesClass.
const MUTABLE: &str = "iops, bandwidth, burst";
/// What lifts a limit.
const NONE: &str = "none";
/// Kubernetes puts these in itself.
const KUBERNETES: &str = "csi.storage.k8s.io/";

/// What a StorageClass asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Parameters {
    /// The pool's name.
    pub(crate) pool: Option<String>,
    /// The pool must keep this many copies.
    pub(crate) replicas: Option<u32>,
    /// The pool must keep its copies apart like this.
    pub(crate) failure_domain: Option<FailureDomain>,
    /// How long the volume is kept once it is deleted, in seconds; the pool's word where none is given.
    pub(crate) retention_s: Option<u64>,
    /// For the volume's own notes: which claim it is for.
    pub(crate) labels: BTreeMap<String, String>,
}

/// A parameter that cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ParameterError {
    #[error("the StorageClass parameter `{}` is unknown; known are: {KNOWN}", .0.escape_debug())]
    Unknown(String),
    #[error("the StorageClass parameter `replicas` is `{}`; write a number from 1 to 16", .0.escape_debug())]
    Replicas(String),
    #[error("the StorageClass parameter `failureDomain`: {0}")]
    FailureDomain(#[from] UnknownFailureDomain),
    #[error("the StorageClass parameter `pool` is empty; name a pool, or leave it out")]
    EmptyPool,
    #[error("the VolumeSnapshotClass parameter `{}` is unknown; there are none", .0.escape_debug())]
    Snapshot(String),
    #[error(
        "the StorageClass parameter `deleteRetention` is `{}`; write a number with s, m, h or d (24h), or 0", .0.escape_debug()
    )]
    Retention(String),
    #[error("the mutable parameter `{}` is unknown; known are: {MUTABLE}", .0.escape_debug())]
    UnknownMutable(String),
    #[error("the mutable parameter `{name}` is `{}`; write {should}, or none", value.escape_debug())]
    Mutable { name: String, value: String, should: &'static str },
}

/// What a VolumeAttributesClass asks for. What it leaves out stays as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    /// Reads, writes and discards a second; 0: no limit.
    pub(crate) iops: Option<u64>,
    /// Bytes a second; 0: no limit.
    pub(crate) bandwidth: Option<u64>,
    /// What an idle holder saves up, in seconds.
    pub(crate) burst_s: Option<u32>,
}

impl Changes {
    /// Parses them; of several errors the alphabetically first is told. How large a limit may be is the metadata
    /// service's to say.
    pub(crate) fn parse(given: &HashMap<String, String>) -> Result<Self, ParameterError> {
        let mut parsed = Self::default();
        for (name, value) in given.iter().collect::<BTreeMap<_, _>>() {
            let wrong = |should| ParameterError::Mutable { name: name.clone(), value: value.clone(), should };
            let lifted = value == NONE;
            match name.as_str() {
                _ if lifted && name == "iops" => parsed.iops = Some(0),
                _ if lifted && name == "bandwidth" => parsed.bandwidth = Some(0),
                _ if lifted && name == "burst" => parsed.burst_s = Some(0),
                "iops" => parsed.iops = Some(value.parse().map_err(|_| wrong("a number of operations a second"))?),
                "bandwidth" => {
                    parsed.bandwidth = Some(bytes(value).ok_or_else(|| wrong("bytes a second (50Mi)"))?);
                }
                "burst" => parsed.burst_s = Some(value.parse().map_err(|_| wrong("a number of seconds"))?),
                name => return Err(ParameterError::UnknownMutable(name.to_owned())),
            }
        }
        Ok(parsed)
    }
}

/// A quantity of bytes as Kubernetes writes whole ones.
fn bytes(text: &str) -> Option<u64> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let factor: u64 = match &text[end..] {
        "" => 1,
        "k" => 1_000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "T" => 1_000_000_000_000,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        "Ti" => 1 << 40,
        _ => return None,
    };
    text[..end].parse::<u64>().ok()?.checked_mul(factor)
}

impl Parameters {
    /// Parses them; of several errors the alphabetically first is told.
    pub(crate) fn parse(given: &HashMap<String, String>) -> Result<Self, ParameterError> {
        let mut parsed = Self::default();
        for (name, value) in given.iter().collect::<BTreeMap<_, _>>() {
            match name.as_str() {
                "pool" if value.is_empty() => return Err(ParameterError::EmptyPool),
                "pool" => parsed.pool = Some(value.clone()),
                "replicas" => parsed.replicas = Some(replicas(value)?),
                "failureDomain" => parsed.failure_domain = Some(value.parse()?),
                "deleteRetention" => parsed.retention_s = Some(period(value)?),
                name => match name.strip_prefix(KUBERNETES) {
                    Some("pvc/name" | "pvc/namespace" | "pv/name") => {
                        parsed.labels.insert(name.to_owned(), value.clone());
                    }
                    Some(_) => {}
                    None => return Err(ParameterError::Unknown(name.to_owned())),
                },
            }
        }
        Ok(parsed)
    }

    /// Whether nothing is said about where the volume is to lie.
    pub(crate) fn is_silent(&self) -> bool {
        self.pool.is_none() && self.replicas.is_none() && self.failure_domain.is_none()
    }

    /// A VolumeSnapshotClass has no parameters of ours.
    pub(crate) fn check_snapshot(given: &HashMap<String, String>) -> Result<(), ParameterError> {
        let unknown = given.keys().filter(|name| !name.starts_with(KUBERNETES)).min();
        unknown.map_or(Ok(()), |name| Err(ParameterError::Snapshot(name.clone())))
    }
}

/// Seconds: `24h`, `7d`, `90s`; `0` needs no unit.
fn period(value: &str) -> Result<u64, ParameterError> {
    let unit = |suffix| match suffix {
        "s" => Some(1),
        "m" => Some(60),
        "h" => Some(3600),
        "d" => Some(86_400),
        _ => None,
    };
    let end = value.find(|c: char| !c.is_ascii_digit()).unwrap_or(value.len());
    let (number, suffix) = value.split_at(end);
    let seconds = match (number.parse::<u64>().ok(), suffix) {
        (Some(0), "") => Some(0),
        (Some(number), suffix) => unit(suffix).and_then(|unit| number.checked_mul(unit)),
        (None, _) => None,
    };
    seconds.ok_or_else(|| ParameterError::Retention(value.to_owned()))
}

fn replicas(value: &str) -> Result<u32, ParameterError> {
    let number = value.parse().ok().filter(|number| (1..=16).contains(number));
    number.ok_or_else(|| ParameterError::Replicas(value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(pairs: &[(&str, &str)]) -> Result<Parameters, String> {
        let given = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Parameters::parse(&given).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_known_is_taken() {
        let parsed = parse(&[
            ("pool", "fast"),
            ("replicas", "3"),
            ("failureDomain", "rack"),
            ("deleteRetention", "24h"),
            ("csi.storage.k8s.io/fstype", "ext4"),
            ("csi.storage.k8s.io/pvc/name", "data"),
        ]);
        let expected = Parameters {
            pool: Some("fast".into()),
            replicas: Some(3),
            failure_domain: Some(FailureDomain::Rack),
            labels: BTreeMap::from([("csi.storage.k8s.io/pvc/name".into(), "data".into())]),
            retention_s: Some(86_400),
        };
        assert_eq!(parsed, Ok(expected));
        assert_eq!(parse(&[]), Ok(Parameters::default()));
    }

    #[test]
    fn what_is_not_known_is_refused_by_name() {
        let refused = |pairs: &[(&str, &str)], words: &str| assert_eq!(parse(pairs).unwrap_err(), words);
        refused(
            &[("replica", "3"), ("pool", "a")],
            "the StorageClass parameter `replica` is unknown; known are: pool, replicas, failureDomain, deleteRetention",
        );
        for number in ["0", "17", "-1", "three", "3 ", ""] {
            refused(
                &[("replicas", number)],
                &format!("the StorageClass parameter `replicas` is `{number}`; write a number from 1 to 16"),
            );
        }
        refused(
            &[("failureDomain", "node")],
            "the StorageClass parameter `failureDomain`: `node` is not a failure domain; use one of osd, host, rack, zone",
        );
        assert_eq!(parse(&[("pool", "")]).unwrap_err(), ParameterError::EmptyPool.to_string());
    }

    #[test]
    fn a_time_has_a_unit() {
        let parsed = |value| parse(&[("deleteRetention", value)]).map(|parameters| parameters.retention_s);
        for (value, seconds) in [("0", 0), ("0h", 0), ("90s", 90), ("15m", 900), ("24h", 86_400), ("7d", 604_800)] {
            assert_eq!(parsed(value), Ok(Some(seconds)), "{value}");
        }
        for wrong in ["", "24", "h", "1.5h", "-1h", "1w", "99999999999999999999d", "1h "] {
            assert!(parsed(wrong).unwrap_err().contains("(24h)"), "{wrong}");
        }
    }

    #[test]
    fn limits_are_set_lifted_and_left_alone() {
        let parse = |pairs: &[(&str, &str)]| {
            let given = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
            Changes::parse(&given).map_err(|error| error.to_string())
        };
        assert_eq!(parse(&[]), Ok(Changes::default()));
        let all = Changes { iops: Some(100), bandwidth: Some(50 << 20), burst_s: Some(5) };
        assert_eq!(parse(&[("iops", "100"), ("bandwidth", "50Mi"), ("burst", "5")]), Ok(all));
        let lifted = Changes { iops: Some(0), bandwidth: Some(0), burst_s: None };
        assert_eq!(parse(&[("iops", "none"), ("bandwidth", "0")]), Ok(lifted));
        let refused = |name: &str, value: &str, words: &str| assert_eq!(parse(&[(name, value)]).unwrap_err(), words);
        refused("size", "1", "the mutable parameter `size` is unknown; known are: iops, bandwidth, burst");
        refused("size", "none", "the mutable parameter `size` is unknown; known are: iops, bandwidth, burst");
        refused("iops", "1k", "the mutable parameter `iops` is `1k`; write a number of operations a second, or none");
        refused(
            "bandwidth",
            "fast",
            "the mutable parameter `bandwidth` is `fast`; write bytes a second (50Mi), or none",
        );
        refused("burst", "-1", "the mutable parameter `burst` is `-1`; write a number of seconds, or none");
    }
}
