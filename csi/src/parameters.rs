//! The parameters of a StorageClass, parsed strictly: a misspelt one is refused by name, never ignored.

use std::collections::{BTreeMap, HashMap};

use cairn_types::map::{FailureDomain, UnknownFailureDomain};

/// What may be written in a StorageClass.
const KNOWN: &str = "pool, replicas, failureDomain";
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
    #[error("the mutable parameter `{}` is not supported; leave the VolumeAttributesClass out", .0.escape_debug())]
    Mutable(String),
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

    /// Parameters that could be changed later: there are none.
    pub(crate) fn refuse_mutable(given: &HashMap<String, String>) -> Result<(), ParameterError> {
        given.keys().min().map_or(Ok(()), |name| Err(ParameterError::Mutable(name.clone())))
    }
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
            ("csi.storage.k8s.io/fstype", "ext4"),
            ("csi.storage.k8s.io/pvc/name", "data"),
        ]);
        let expected = Parameters {
            pool: Some("fast".into()),
            replicas: Some(3),
            failure_domain: Some(FailureDomain::Rack),
            labels: BTreeMap::from([("csi.storage.k8s.io/pvc/name".into(), "data".into())]),
        };
        assert_eq!(parsed, Ok(expected));
        assert_eq!(parse(&[]), Ok(Parameters::default()));
    }

    #[test]
    fn what_is_not_known_is_refused_by_name() {
        let refused = |pairs: &[(&str, &str)], words: &str| assert_eq!(parse(pairs).unwrap_err(), words);
        refused(
            &[("replica", "3"), ("pool", "a")],
            "the StorageClass parameter `replica` is unknown; known are: pool, replicas, failureDomain",
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
}
