//! Merging an applied configuration into an object, by the schema's ownership of each field.

use super::fields::element_key;
use crate::schema::{Field, Message, Ownership, Shape};
use serde_json::{Map, Value};

/// Sets in `live` what `config` says.
pub(super) fn merge(message: &Message, live: &mut Value, config: &Value) {
    if !live.is_object() {
        *live = Value::Object(Map::new());
    }
    let (Value::Object(live), Value::Object(config)) = (live, config) else { return };
    for (key, value) in config {
        match message.field(key) {
            Some(field) => merge_field(field, live.entry(key).or_insert(Value::Null), value),
            None => drop(live.insert(key.clone(), value.clone())),
        }
    }
}

fn merge_field(field: &Field, live: &mut Value, config: &Value) {
    match (&field.ownership, field.shape, &mut *live, config) {
        (Ownership::Atomic, ..) => *live = config.clone(),
        (Ownership::Keyed(keys), Shape::List, Value::Array(items), Value::Array(wanted)) => {
            for want in wanted {
                let key = element_key(keys, want);
                match (items.iter_mut().find(|item| element_key(keys, item) == key), field.message()) {
                    (Some(item), Some(message)) => merge(message, item, want),
                    (Some(item), None) => *item = want.clone(),
                    (None, _) => items.push(want.clone()),
                }
            }
        }
        (Ownership::Set, Shape::List, Value::Array(items), Value::Array(wanted)) => {
            for want in wanted {
                if !items.contains(want) {
                    items.push(want.clone());
                }
            }
        }
        (_, Shape::Map, Value::Object(entries), Value::Object(wanted)) => {
            entries.extend(wanted.iter().map(|(key, value)| (key.clone(), value.clone())));
        }
        (_, Shape::One, Value::Object(_), Value::Object(_)) => match field.message() {
            Some(message) => merge(message, live, config),
            None => *live = config.clone(),
        },
        _ => *live = config.clone(),
    }
}
