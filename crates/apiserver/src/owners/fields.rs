//! A set of fields of one object as a tree, in the form that `fieldsV1` has: `f:NAME` a member, `k:{..}` an element
//! of a keyed list, `v:VALUE` an element of a set, `.` the thing itself.

use crate::schema::{Field, Message, Ownership, Shape};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// A set of fields.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Owned {
    /// The thing itself is in the set.
    itself: bool,
    inner: BTreeMap<String, Owned>,
}

/// Of metadata, what nobody owns.
const UNOWNED: [&str; 9] = [
    "name",
    "namespace",
    "creationTimestamp",
    "selfLink",
    "uid",
    "generation",
    "managedFields",
    "resourceVersion",
    "deletionTimestamp",
];
const MAX_DEPTH: usize = 64;

impl Owned {
    fn leaf() -> Owned {
        Owned { itself: true, inner: BTreeMap::new() }
    }

    /// Whether nothing is in the set.
    pub(super) fn is_empty(&self) -> bool {
        !self.itself && self.inner.is_empty()
    }

    /// From `fieldsV1`.
    pub(super) fn from_json(value: &Value) -> Option<Owned> {
        Owned::read(value.as_object()?, 0)
    }

    fn read(map: &Map<String, Value>, depth: usize) -> Option<Owned> {
        if depth > MAX_DEPTH {
            return None;
        }
        let mut owned =
            Owned { itself: (map.is_empty() && depth > 0) || map.contains_key("."), inner: BTreeMap::new() };
        for (key, value) in map.iter().filter(|(key, _)| *key != ".") {
            owned.inner.insert(key.clone(), Owned::read(value.as_object()?, depth + 1)?);
        }
        Some(owned)
    }

    /// As `fieldsV1`.
    pub(super) fn to_json(&self) -> Value {
        let mut map = Map::new();
        if self.itself && !self.inner.is_empty() {
            map.insert(".".to_owned(), json!({}));
        }
        map.extend(self.inner.iter().map(|(key, inner)| (key.clone(), inner.to_json())));
        Value::Object(map)
    }

    /// Every field that `object` sets, but for what nobody owns.
    pub(super) fn of(message: &Message, object: &Value) -> Owned {
        let mut owned = Owned::default();
        for (key, value) in object.as_object().into_iter().flatten() {
            let Some(field) = message.field(key) else { continue };
            let mut inner = Owned::of_field(field, value);
            if key == "metadata" {
                inner.inner.retain(|key, _| !UNOWNED.contains(&key.trim_start_matches("f:")));
                inner.itself = false;
                if inner.inner.is_empty() {
                    continue;
                }
            }
            owned.inner.insert(format!("f:{key}"), inner);
        }
        owned
    }

    fn of_message(message: &Message, object: &Map<String, Value>) -> Owned {
        let inner = object.iter().filter_map(|(key, value)| {
            message.field(key).map(|field| (format!("f:{key}"), Owned::of_field(field, value)))
        });
        let inner: BTreeMap<String, Owned> = inner.collect();
        Owned { itself: inner.is_empty(), inner }
    }

    fn of_field(field: &Field, value: &Value) -> Owned {
        match (&field.ownership, field.shape, value) {
            (Ownership::Atomic, ..) => Owned::leaf(),
            (Ownership::Keyed(keys), Shape::List, Value::Array(items)) => {
                let element = |item: &Value| {
                    let mut inner = match (field.message(), item) {
                        (Some(message), Value::Object(item)) => Owned::of_message(message, item),
                        _ => Owned::leaf(),
                    };
                    inner.itself = true;
                    (element_key(keys, item), inner)
                };
                let inner: BTreeMap<String, Owned> = items.iter().map(element).collect();
                Owned { itself: inner.is_empty(), inner }
            }
            (Ownership::Set, Shape::List, Value::Array(items)) => {
                let inner: BTreeMap<String, Owned> =
                    items.iter().map(|item| (format!("v:{item}"), Owned::leaf())).collect();
                Owned { itself: inner.is_empty(), inner }
            }
            (_, Shape::Map, Value::Object(entries)) => {
                let inner: BTreeMap<String, Owned> =
                    entries.keys().map(|key| (format!("f:{key}"), Owned::leaf())).collect();
                Owned { itself: inner.is_empty(), inner }
            }
            (_, Shape::One, Value::Object(object)) => match field.message() {
                Some(message) => Owned::of_message(message, object),
                None => Owned::leaf(),
            },
            _ => Owned::leaf(),
        }
    }

    /// Of this set (all of `new`), what `old` has not, or has otherwise.
    pub(super) fn changed(&self, old: &Value, new: &Value) -> Owned {
        self.differing(Some(old), new)
    }

    fn differing(&self, old: Option<&Value>, new: &Value) -> Owned {
        let itself = self.itself && if self.inner.is_empty() { old != Some(new) } else { old.is_none() };
        let mut inner = BTreeMap::new();
        for (key, owned) in &self.inner {
            let Some(new) = child(new, key) else { continue };
            let differs = owned.differing(old.and_then(|old| child(old, key)), new);
            if !differs.is_empty() {
                inner.insert(key.clone(), differs);
            }
        }
        Owned { itself, inner }
    }

    /// Of this set (all of `config`), the leaves whose value in `live` is another.
    pub(super) fn leaves_that_differ(self, live: &Value, config: &Value) -> Owned {
        self.differing(Some(live), config)
    }

    /// Adds another set.
    pub(super) fn add(&mut self, other: &Owned) {
        self.itself |= other.itself;
        for (key, owned) in &other.inner {
            self.inner.entry(key.clone()).or_default().add(owned);
        }
    }

    /// Takes another set away.
    pub(super) fn subtract(&mut self, other: &Owned) {
        self.itself &= !other.itself;
        self.inner.retain(|key, owned| {
            if let Some(other) = other.inner.get(key) {
                owned.subtract(other);
            }
            !owned.is_empty()
        });
    }

    /// Keeps what is (in some form) in `present` too.
    pub(super) fn retain_in(&mut self, present: &Owned) {
        self.inner.retain(|key, owned| match present.inner.get(key) {
            None => false,
            Some(present) => {
                // A leaf of `present` is owned whole; a set that goes deeper into it was made of another shape.
                if !present.inner.is_empty() {
                    owned.retain_in(present);
                }
                !owned.is_empty()
            }
        });
    }

    /// Calls `found` with the path of each field of this set that `theirs` owns and whose live value is another.
    pub(super) fn conflicts(
        &self,
        theirs: &Owned,
        live: Option<&Value>,
        config: &Value,
        found: &mut dyn FnMut(String),
    ) {
        self.conflicts_at(theirs, live, config, &mut String::new(), found);
    }

    fn conflicts_at(
        &self,
        theirs: &Owned,
        live: Option<&Value>,
        config: &Value,
        path: &mut String,
        found: &mut dyn FnMut(String),
    ) {
        if self.itself && self.inner.is_empty() && theirs.itself && live.is_some_and(|live| live != config) {
            found(path.clone());
        }
        for (key, owned) in &self.inner {
            if let (Some(theirs), Some(config)) = (theirs.inner.get(key), child(config, key)) {
                let at = path.len();
                path.push_str(&spelled(key));
                owned.conflicts_at(theirs, live.and_then(|live| child(live, key)), config, path, found);
                path.truncate(at);
            }
        }
    }

    /// Removes from `object` what is in this set and neither in `kept` (all of `config`) nor in `others`.
    pub(super) fn prune(&self, kept: &Owned, config: Option<&Value>, others: &Owned, object: &mut Value) {
        let nothing = Owned::default();
        for (key, owned) in &self.inner {
            let wanted = config.and_then(|config| child(config, key));
            match (kept.inner.get(key), others.inner.get(key)) {
                // What is there only with fields that nobody owns, as metadata with a name, is still wanted.
                (None, None) if wanted.is_none() => remove(object, key),
                (kept, others) if !owned.inner.is_empty() => {
                    if let Some(child) = child_mut(object, key) {
                        owned.prune(kept.unwrap_or(&nothing), wanted, others.unwrap_or(&nothing), child);
                    }
                }
                _ => {}
            }
        }
    }
}

/// `k:{"name":"a"}`: keys in alphabetical order, as everybody writes them.
pub(super) fn element_key(keys: &[&str], item: &Value) -> String {
    let named: BTreeMap<&str, Value> = keys.iter().map(|key| (*key, key_value(item, key))).collect();
    format!("k:{}", json!(named))
}

/// The value of a key; a port's protocol is TCP where none is said.
fn key_value(item: &Value, key: &str) -> Value {
    match item.get(key) {
        Some(value) => value.clone(),
        None if key == "protocol" => json!("TCP"),
        None => Value::Null,
    }
}

fn matches(item: &Value, keys: &Map<String, Value>) -> bool {
    keys.iter().all(|(key, value)| key_value(item, key) == *value)
}

fn position(items: &[Value], key: &str) -> Option<usize> {
    if let Some(keys) = key.strip_prefix("k:") {
        let keys: Map<String, Value> = serde_json::from_str(keys).ok()?;
        return items.iter().position(|item| matches(item, &keys));
    }
    let value: Value = serde_json::from_str(key.strip_prefix("v:")?).ok()?;
    items.iter().position(|item| *item == value)
}

fn child<'a>(value: &'a Value, key: &str) -> Option<&'a Value> {
    match value {
        Value::Object(map) => map.get(key.strip_prefix("f:")?),
        Value::Array(items) => position(items, key).map(|at| &items[at]),
        _ => None,
    }
}

fn child_mut<'a>(value: &'a mut Value, key: &str) -> Option<&'a mut Value> {
    match value {
        Value::Object(map) => map.get_mut(key.strip_prefix("f:")?),
        Value::Array(items) => position(items, key).map(|at| &mut items[at]),
        _ => None,
    }
}

fn remove(value: &mut Value, key: &str) {
    match value {
        Value::Object(map) => {
            if let Some(name) = key.strip_prefix("f:") {
                map.shift_remove(name);
            }
        }
        Value::Array(items) => {
            if let Some(at) = position(items, key) {
                items.remove(at);
            }
        }
        _ => {}
    }
}

/// `.spec`, `[name="a"]`, `["x"]`.
fn spelled(key: &str) -> String {
    if let Some(name) = key.strip_prefix("f:") {
        return format!(".{name}");
    }
    if let Some(keys) = key.strip_prefix("k:").and_then(|keys| serde_json::from_str::<Map<String, Value>>(keys).ok()) {
        let parts: Vec<String> = keys.iter().map(|(key, value)| format!("{key}={value}")).collect();
        return format!("[{}]", parts.join(","));
    }
    format!("[{}]", key.strip_prefix("v:").unwrap_or(key))
}
