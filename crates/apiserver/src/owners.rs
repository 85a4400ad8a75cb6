//! Who set which field: `metadata.managedFields`, and server-side apply, which decides by it.
//!
//! An applied configuration is merged into the object; what its manager applied before and does not apply now goes,
//! unless somebody else owns it too; what somebody else set to another value is a conflict. Every other write moves
//! the fields that it changed to its own manager.

mod fields;
mod merge;

use crate::error::Cause;
use crate::object;
use crate::schema::Message;
use crate::time;
use fields::Owned;
use serde_json::{Value, json};

/// The longest name of a manager.
const NAME_LIMIT: usize = 128;

/// On whose behalf a write is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Manager {
    /// `kubectl-edit`.
    pub(crate) name: String,
    /// The version its fields are named in.
    pub(crate) api_version: String,
    /// Empty, or `status`.
    pub(crate) subresource: &'static str,
}

impl Manager {
    /// From the parameter, else from the program's name in `User-Agent`.
    pub(crate) fn name_from(parameter: Option<&str>, user_agent: &str) -> String {
        let name = parameter
            .filter(|name| !name.is_empty())
            .unwrap_or_else(|| user_agent.split('/').next().unwrap_or_default());
        let name = if name.is_empty() { "unknown" } else { name };
        name.chars().filter(|c| !c.is_control()).take(NAME_LIMIT).collect()
    }
}

#[derive(Debug, Clone, PartialEq)]
struct Entry {
    manager: Manager,
    applied: bool,
    time: String,
    owned: Owned,
}

impl Entry {
    fn is_of(&self, manager: &Manager, applied: bool) -> bool {
        self.applied == applied && self.manager == *manager
    }

    fn shown(&self) -> String {
        let mut shown = format!("conflict with {:?}", self.manager.name);
        if !self.manager.subresource.is_empty() {
            shown.push_str(&format!(" with subresource {:?}", self.manager.subresource));
        }
        if !self.applied {
            shown.push_str(&format!(" using {} at {}", self.manager.api_version, self.time));
        }
        shown
    }
}

fn read(object: &Value) -> Vec<Entry> {
    let entry = |entry: &Value| {
        let owned = Owned::from_json(entry.get("fieldsV1")?)?;
        let subresource = if object::text(entry, "/subresource") == "status" { "status" } else { "" };
        let manager = Manager {
            name: object::text(entry, "/manager").to_owned(),
            api_version: object::text(entry, "/apiVersion").to_owned(),
            subresource,
        };
        let applied = object::text(entry, "/operation") == "Apply";
        Some(Entry { manager, applied, time: object::text(entry, "/time").to_owned(), owned })
    };
    object::list(object, "/metadata/managedFields").iter().filter_map(entry).collect()
}

fn write(object: &mut Value, entries: Vec<Entry>) {
    let list: Vec<Value> = entries
        .into_iter()
        .filter(|entry| !entry.owned.is_empty())
        .map(|entry| {
            let mut value = json!({
                "manager": entry.manager.name, "operation": if entry.applied { "Apply" } else { "Update" },
                "apiVersion": entry.manager.api_version, "time": entry.time, "fieldsType": "FieldsV1",
                "fieldsV1": entry.owned.to_json(),
            });
            if !entry.manager.subresource.is_empty() {
                value["subresource"] = json!(entry.manager.subresource);
            }
            value
        })
        .collect();
    let metadata = object::metadata(object);
    if list.is_empty() {
        metadata.shift_remove("managedFields");
    } else {
        metadata.insert("managedFields".to_owned(), json!(list));
    }
}

/// Notes that `manager` turned `old` (`None`: nothing) into `new`. It owns what of `given` is new; what the server
/// itself filled in is nobody's, so that whoever applies less later does not take it away.
pub(crate) fn note_update(message: &Message, old: Option<&Value>, given: &Value, new: &mut Value, manager: &Manager) {
    let mut entries = read(new);
    if entries.is_empty()
        && new.pointer("/metadata/managedFields").is_none()
        && let Some(old) = old
    {
        entries = read(old);
    }
    let now = Owned::of(message, new);
    let given_fields = Owned::of(message, given);
    let mut changed = match old {
        Some(old) => given_fields.changed(old, given),
        None => given_fields,
    };
    changed.retain_in(&now);
    for entry in &mut entries {
        if !entry.is_of(manager, false) {
            entry.owned.subtract(&changed);
        }
        entry.owned.retain_in(&now);
    }
    if !changed.is_empty() {
        match entries.iter_mut().find(|entry| entry.is_of(manager, false)) {
            Some(entry) => {
                entry.owned.add(&changed);
                entry.time = time::now();
            }
            None => entries.push(Entry { manager: manager.clone(), applied: false, time: time::now(), owned: changed }),
        }
    }
    write(new, entries);
}

/// Merges an applied configuration into `live` (`None`: it makes the object). `force` takes fields from others.
pub(crate) fn apply(
    message: &Message,
    live: Option<&Value>,
    config: &Value,
    manager: &Manager,
    force: bool,
) -> Result<Value, Vec<Cause>> {
    let mine = Owned::of(message, config);
    let empty = json!({"metadata": {}});
    let base = live.unwrap_or(&empty);
    let mut entries = read(base);
    let before = entries.iter().position(|entry| entry.is_of(manager, true)).map(|at| entries.remove(at));

    let mut causes = Vec::new();
    for entry in &entries {
        mine.conflicts(&entry.owned, Some(base), config, &mut |path| {
            causes.push(Cause { reason: "FieldManagerConflict", message: entry.shown(), field: path });
        });
    }
    if !causes.is_empty() && !force {
        return Err(causes);
    }
    let mut merged = base.clone();
    merge::merge(message, &mut merged, config);
    let mut others = Owned::default();
    for entry in &mut entries {
        if force {
            entry.owned.subtract(&mine.clone().leaves_that_differ(base, config));
        }
        others.add(&entry.owned);
    }
    if let Some(before) = &before {
        before.owned.prune(&mine, Some(config), &others, &mut merged);
    }
    let now = Owned::of(message, &merged);
    for entry in &mut entries {
        entry.owned.retain_in(&now);
    }
    let unchanged =
        before.filter(|before| before.owned == mine && live.is_some_and(|live| same_but_owners(live, &merged)));
    let at = unchanged.map_or_else(time::now, |before| before.time);
    entries.insert(0, Entry { manager: manager.clone(), applied: true, time: at, owned: mine });
    write(&mut merged, entries);
    Ok(merged)
}

/// Whether two objects differ at most in who owns their fields.
pub(crate) fn same_but_owners(a: &Value, b: &Value) -> bool {
    let strip = |object: &Value| {
        let mut object = object.clone();
        let metadata = object::metadata(&mut object);
        metadata.shift_remove("managedFields");
        metadata.shift_remove("resourceVersion");
        object
    };
    strip(a) == strip(b)
}

#[cfg(test)]
#[path = "owners_tests.rs"]
mod tests;
