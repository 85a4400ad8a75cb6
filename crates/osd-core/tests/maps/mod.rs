//! What the maps of these tests are made of.

use cairn_types::map::{FailureDomain, Location, Osd, Pool};
use cairn_types::{Epoch, Incarnation, OsdId, PoolId};

/// An OSD in its first life, on a host of its own, up and placed.
pub(crate) fn osd(id: OsdId) -> Osd {
    Osd {
        id,
        uuid: uuid::Uuid::from_u128(id.0.into()),
        incarnation: Incarnation(1),
        dead_through: Incarnation(0),
        addresses: vec![],
        up: true,
        placed: true,
        weight: 1 << 16,
        location: Location { zone: "z".into(), rack: "r".into(), host: id.0.to_string() },
        device_class: "ssd".into(),
        capacity: 1 << 40,
        used: 0,
        acked_epoch: Epoch(0),
    }
}

/// Pool 1, of small objects.
pub(crate) fn pool(size: u32, min_size: u32, pgs: u32) -> Pool {
    Pool {
        id: PoolId(1),
        name: "p".into(),
        size,
        min_size,
        failure_domain: FailureDomain::Osd,
        device_class: None,
        object_size: 64 << 10,
        pg_count: pgs,
        pg_target: pgs,
    }
}
