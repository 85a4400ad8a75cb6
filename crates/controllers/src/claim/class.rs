//! The class a claim means.

use std::sync::Arc;

use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use k8s_openapi::api::storage::v1::StorageClass;
use kube::ResourceExt;

/// Marks the class of claims that name none.
const DEFAULT: &str = "storageclass.kubernetes.io/is-default-class";
const DEFAULT_BETA: &str = "storageclass.beta.kubernetes.io/is-default-class";

/// What a claim's class comes to.
#[derive(Debug)]
pub(crate) enum Class<'a> {
    /// It wants none (`""`): only volumes that an admin made.
    Refused,
    /// It names none, and this is the default: to be written into the claim.
    Default(String),
    /// It names none, and there is no default.
    Undecided,
    /// There is no such class.
    Unknown(&'a str),
    /// The class.
    Known(&'a Arc<StorageClass>),
}

/// Finds the class that a claim means.
pub(crate) fn of<'a>(claim: &'a PersistentVolumeClaim, classes: &'a [Arc<StorageClass>]) -> Class<'a> {
    let named = claim.spec.as_ref().and_then(|spec| spec.storage_class_name.as_deref());
    match named {
        Some("") => Class::Refused,
        Some(name) => {
            let found = classes.iter().find(|class| class.metadata.name.as_deref() == Some(name));
            found.map_or(Class::Unknown(name), Class::Known)
        }
        None => default(classes).map_or(Class::Undecided, |class| Class::Default(class.name_any())),
    }
}

/// The newest of the classes that are marked as the default.
fn default(classes: &[Arc<StorageClass>]) -> Option<&Arc<StorageClass>> {
    let marked = |class: &&Arc<StorageClass>| {
        let is_true = |name| class.annotations().get(name).is_some_and(|value| value == "true");
        is_true(DEFAULT) || is_true(DEFAULT_BETA)
    };
    let age = |class: &&Arc<StorageClass>| {
        let created = class.metadata.creation_timestamp.as_ref().map(|time| time.0);
        (created, std::cmp::Reverse(class.name_any()))
    };
    classes.iter().filter(marked).max_by_key(age)
}

/// The classes there are, for a sentence.
pub(crate) fn names(classes: &[Arc<StorageClass>]) -> String {
    let mut names: Vec<String> = classes.iter().map(|class| format!("\"{}\"", class.name_any())).collect();
    names.sort();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}
