//! The CSI drivers that registered on this node, by name. Written by the plugin registry, read by the volumes.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use crate::csi_node::{CsiNode, DriverInfo};

/// One registered driver.
#[derive(Clone, Debug)]
pub(crate) struct Driver {
    pub(crate) node: CsiNode,
    pub(crate) info: DriverInfo,
}

/// Shared by clones.
#[derive(Clone, Debug, Default)]
pub(crate) struct Drivers(Arc<RwLock<BTreeMap<String, Driver>>>);

impl Drivers {
    pub(crate) fn find(&self, name: &str) -> Option<Driver> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    pub(crate) fn put(&self, name: &str, driver: Driver) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), driver);
    }

    pub(crate) fn remove(&self, name: &str) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).remove(name);
    }

    /// Names and what the drivers said, in order.
    pub(crate) fn all(&self) -> Vec<(String, DriverInfo)> {
        let drivers = self.0.read().unwrap_or_else(PoisonError::into_inner);
        drivers.iter().map(|(name, driver)| (name.clone(), driver.info.clone())).collect()
    }
}
