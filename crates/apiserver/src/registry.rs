//! The table of resources: each row says all that the server knows of a kind. Adding a kind is adding a row (and its
//! messages to the schema); no handler names a kind.
//!
//! A kind is listed only when something acts on it.

mod admission;
mod cluster;
mod columns;
mod config;
mod metadata;
mod pod;
mod pod_rules;
mod storage;
mod table;

pub(crate) use admission::{Facts, Gate};
pub(crate) use metadata::{check_create as check_metadata, check_update as check_metadata_update};
pub(crate) use table::TABLE;

use crate::error::{Cause, Subject};
use crate::schema::{self, Message};
use jiff::Timestamp;
use serde_json::Value;

/// A subresource beyond `status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sub {
    /// POST a Binding: the pod gets its node.
    Binding,
    /// PUT: the namespace loses `spec.finalizers`.
    Finalize,
    /// GET: a container's output, from its node.
    Log,
    /// GET with upgrade: a command in a container, on its node.
    Exec,
    /// GET with upgrade: the container's own streams.
    Attach,
}

impl Sub {
    /// As in paths.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Sub::Binding => "binding",
            Sub::Finalize => "finalize",
            Sub::Log => "log",
            Sub::Exec => "exec",
            Sub::Attach => "attach",
        }
    }

    /// The kind that discovery says it answers with.
    pub(crate) fn kind(self, of: &Resource) -> &'static str {
        match self {
            Sub::Binding => "Binding",
            Sub::Finalize => of.kind,
            Sub::Log => "Pod",
            Sub::Exec => "PodExecOptions",
            Sub::Attach => "PodAttachOptions",
        }
    }

    /// The verbs that discovery lists.
    pub(crate) fn verbs(self) -> &'static [&'static str] {
        match self {
            Sub::Binding => &["create"],
            Sub::Finalize => &["update"],
            Sub::Log => &["get"],
            Sub::Exec | Sub::Attach => &["create", "get"],
        }
    }
}

/// How an object goes when it is deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Deletion {
    /// At once, unless finalizers are left.
    Immediate,
    /// A pod: its node gets time to stop it.
    Graceful,
    /// A namespace: its contents go first.
    Namespace,
}

/// A column of a table: `wide` ones appear only with `-o wide`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Column {
    /// The heading.
    pub(crate) name: &'static str,
    /// `string`, `integer`, `boolean` or `date`.
    pub(crate) of: &'static str,
    /// Only with `-o wide`.
    pub(crate) wide: bool,
}

/// One kind.
#[derive(Debug)]
pub(crate) struct Resource {
    /// Empty for core.
    pub(crate) group: &'static str,
    pub(crate) version: &'static str,
    pub(crate) kind: &'static str,
    pub(crate) plural: &'static str,
    pub(crate) singular: &'static str,
    pub(crate) short_names: &'static [&'static str],
    pub(crate) categories: &'static [&'static str],
    pub(crate) namespaced: bool,
    /// Whether `status` is a subresource, which the main one does not write.
    pub(crate) status: bool,
    pub(crate) subs: &'static [Sub],
    /// Fields for selectors beside name and namespace, and where they are.
    pub(crate) selectable: &'static [(&'static str, &'static str)],
    /// What a name may be.
    pub(crate) name_rule: fn(&str) -> Result<(), String>,
    /// Whether `metadata.generation` counts changes of the spec.
    pub(crate) generation: bool,
    /// Whether managedFields are kept; not for what only programs write, many times a minute.
    pub(crate) field_owners: bool,
    /// Seconds until an object goes by itself.
    pub(crate) ttl: Option<i64>,
    pub(crate) deletion: Deletion,
    pub(crate) gate: Gate,
    pub(crate) columns: &'static [Column],
    pub(crate) row: fn(&Value, Timestamp) -> Vec<Value>,
    /// What the server itself sets on a new object.
    pub(crate) on_create: fn(&mut Value),
    /// What is set where the client set nothing.
    pub(crate) defaults: fn(&mut Value),
    /// What a new or changed object must obey.
    pub(crate) validate: fn(&Value, &mut Vec<Cause>),
    /// What a change must obey: new, old.
    pub(crate) validate_update: fn(&Value, &Value, &mut Vec<Cause>),
}

impl Resource {
    /// `v1`, `storage.k8s.io/v1`.
    pub(crate) fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.to_owned() } else { format!("{}/{}", self.group, self.version) }
    }

    /// Where its objects are in the store.
    pub(crate) fn prefix(&self) -> String {
        let group = if self.group.is_empty() { "core" } else { self.group };
        format!("/registry/{group}/{}/", self.plural)
    }

    /// The key of one object below the prefix.
    pub(crate) fn key(&self, namespace: &str, name: &str) -> String {
        if self.namespaced { format!("{namespace}/{name}") } else { name.to_owned() }
    }

    /// Its messages.
    pub(crate) fn message(&self) -> &'static Message {
        schema::message(self.kind).expect("a test finds every row's message")
    }

    /// For errors that name the resource.
    pub(crate) fn subject(&self, name: &str) -> Subject {
        Subject { group: self.group.to_owned(), kind: self.plural.to_owned(), name: name.to_owned() }
    }

    /// For errors that name the kind.
    pub(crate) fn kind_subject(&self, name: &str) -> Subject {
        Subject { group: self.group.to_owned(), kind: self.kind.to_owned(), name: name.to_owned() }
    }
}

/// The row of a path, for tests.
#[cfg(test)]
pub(crate) fn find(group: &str, version: &str, plural: &str) -> Option<&'static Resource> {
    TABLE.iter().find(|row| row.plural == plural && row.group == group && row.version == version)
}

#[cfg(test)]
mod tests {
    use super::TABLE;
    use std::collections::HashSet;

    #[test]
    fn rows_are_complete() {
        let mut names = HashSet::new();
        for row in TABLE {
            assert!(names.insert((row.group, row.plural)), "{} twice", row.plural);
            let message = row.message();
            assert!(message.field("metadata").is_some(), "{}", row.kind);
            assert_eq!(
                row.status && row.kind != "Namespace",
                row.status && message.field("status").is_some() && row.kind != "Namespace"
            );
            assert_eq!(
                (row.row)(&serde_json::json!({}), jiff::Timestamp::now()).len(),
                row.columns.len(),
                "{}",
                row.kind
            );
        }
    }
}
