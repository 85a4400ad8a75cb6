//! Strategic merge patch: lists of objects are merged by a key that the schema names, lists of primitives as sets,
//! and directives delete, replace and order. What `kubectl apply` and `kubectl edit` send.

use super::PatchError;
use crate::schema::{Field, Merge, Message, Shape};
use serde_json::{Map, Value};

const DIRECTIVE: &str = "$patch";
const ORDER: &str = "$setElementOrder/";
const DELETE_PRIMITIVES: &str = "$deleteFromPrimitiveList/";
const RETAIN: &str = "$retainKeys";
const MAX_DEPTH: usize = 64;

/// Applies `patch` to an object of `message`.
pub(crate) fn apply(message: &Message, target: &mut Value, patch: &Value) -> Result<(), PatchError> {
    let Value::Object(changes) = patch else {
        return Err(PatchError::Malformed("a strategic merge patch is an object".to_owned()));
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let members = target.as_object_mut().expect("made an object above");
    object(Some(message), members, changes, 0)
}

fn malformed<T>(what: impl Into<String>) -> Result<T, PatchError> {
    Err(PatchError::Malformed(what.into()))
}

fn object(
    message: Option<&Message>,
    target: &mut Map<String, Value>,
    patch: &Map<String, Value>,
    depth: usize,
) -> Result<(), PatchError> {
    if depth > MAX_DEPTH {
        return malformed("the patch is nested too deeply");
    }
    match patch.get(DIRECTIVE).map(|directive| directive.as_str().unwrap_or_default()) {
        None | Some("merge") => {}
        Some("replace") => {
            target.clear();
            target.extend(
                patch.iter().filter(|(key, _)| *key != DIRECTIVE).map(|(key, value)| (key.clone(), value.clone())),
            );
            return Ok(());
        }
        Some("delete") => {
            target.clear();
            return Ok(());
        }
        Some(other) => return malformed(format!("unknown patch type found: {other}")),
    }
    if let Some(retained) = patch.get(RETAIN) {
        let Some(retained) = retained.as_array() else { return malformed("$retainKeys is a list of keys") };
        target.retain(|key, _| retained.iter().any(|kept| kept == key));
    }
    for (key, change) in patch {
        if key == DIRECTIVE || key == RETAIN {
            continue;
        }
        if let Some(list) = key.strip_prefix(DELETE_PRIMITIVES) {
            let Some(gone) = change.as_array() else { return malformed(format!("{key} is a list")) };
            if let Some(Value::Array(items)) = target.get_mut(list) {
                items.retain(|item| !gone.contains(item));
            }
            continue;
        }
        if key.starts_with(ORDER) {
            continue;
        }
        let field = message.and_then(|message| message.field(key));
        member(field, target, key, change, patch.get(&format!("{ORDER}{key}")), depth)?;
    }
    // An order may come alone, or with nothing but deletions.
    for (key, order) in patch.iter().filter_map(|(key, order)| key.strip_prefix(ORDER).map(|list| (list, order))) {
        if patch.contains_key(key) {
            continue;
        }
        let merge = message.and_then(|message| message.field(key)).map_or(Merge::Replace, |field| field.merge);
        if let (Some(Value::Array(items)), Some(order)) = (target.get_mut(key), order.as_array()) {
            sort(items, order, merge, &[]);
        }
    }
    Ok(())
}

fn member(
    field: Option<&Field>,
    target: &mut Map<String, Value>,
    key: &str,
    change: &Value,
    order: Option<&Value>,
    depth: usize,
) -> Result<(), PatchError> {
    match change {
        Value::Null => drop(target.shift_remove(key)),
        Value::Object(changes) => {
            let inner = field.filter(|field| field.shape == Shape::One).and_then(Field::message);
            let fresh = !target.get(key).is_some_and(Value::is_object);
            if fresh {
                target.insert(key.to_owned(), Value::Object(Map::new()));
            }
            let deleted = changes.get(DIRECTIVE).is_some_and(|directive| directive == "delete");
            let slot = target.get_mut(key).and_then(Value::as_object_mut).expect("made an object above");
            object(inner, slot, changes, depth + 1)?;
            if deleted {
                target.shift_remove(key);
            }
        }
        Value::Array(changes) => {
            let merge = field.map_or(Merge::Replace, |field| field.merge);
            let inner = field.and_then(Field::message);
            let slot = target.entry(key).or_insert_with(|| Value::Array(Vec::new()));
            if !slot.is_array() {
                *slot = Value::Array(Vec::new());
            }
            let items = slot.as_array_mut().expect("made an array above");
            list(inner, merge, items, changes, order, depth)?;
        }
        scalar => drop(target.insert(key.to_owned(), scalar.clone())),
    }
    Ok(())
}

fn list(
    inner: Option<&Message>,
    merge: Merge,
    items: &mut Vec<Value>,
    changes: &[Value],
    order: Option<&Value>,
    depth: usize,
) -> Result<(), PatchError> {
    let server_only: Vec<Value> = items.clone();
    match merge {
        Merge::Replace => *items = changes.to_vec(),
        Merge::Primitives => {
            for change in changes {
                if !items.contains(change) {
                    items.push(change.clone());
                }
            }
        }
        Merge::ByKey(key) => {
            let replaces =
                |change: &Value| change[DIRECTIVE] == "replace" && change.as_object().is_some_and(|c| c.len() == 1);
            if changes.iter().any(replaces) {
                *items = changes.iter().filter(|change| !replaces(change)).cloned().collect();
            } else {
                for change in changes {
                    element(inner, key, items, change, depth)?;
                }
            }
        }
    }
    if let Some(order) = order.and_then(Value::as_array) {
        sort(items, order, merge, &server_only);
    }
    Ok(())
}

fn element(
    inner: Option<&Message>,
    key: &str,
    items: &mut Vec<Value>,
    change: &Value,
    depth: usize,
) -> Result<(), PatchError> {
    let Value::Object(changes) = change else {
        return malformed(format!("an element of a list merged by {key:?} is an object"));
    };
    let Some(wanted) = changes.get(key) else {
        return malformed(format!("map: {change} does not contain declared merge key: {key}"));
    };
    let at = items.iter().position(|item| item.get(key) == Some(wanted));
    if changes.get(DIRECTIVE).is_some_and(|directive| directive == "delete") {
        items.retain(|item| item.get(key) != Some(wanted));
        return Ok(());
    }
    let at = at.unwrap_or_else(|| {
        items.push(Value::Object(Map::new()));
        items.len() - 1
    });
    let slot = items[at].as_object_mut();
    let Some(slot) = slot else { return malformed(format!("an element of a list merged by {key:?} is an object")) };
    object(inner, slot, changes, depth + 1)
}

/// Elements named in `order` come in that order; each other keeps its place after the one it followed.
fn sort(items: &mut Vec<Value>, order: &[Value], merge: Merge, before: &[Value]) {
    let same = |a: &Value, b: &Value| match merge {
        Merge::ByKey(key) => a.get(key).is_some() && a.get(key) == b.get(key),
        _ => a == b,
    };
    let rank = |item: &Value| order.iter().position(|wanted| same(item, wanted));
    let (mut ordered, others): (Vec<Value>, Vec<Value>) = items.drain(..).partition(|item| rank(item).is_some());
    ordered.sort_by_key(|item| rank(item));
    for other in others {
        // Beside whom it stood before the patch.
        let place = before.iter().position(|item| same(item, &other));
        let after = place.and_then(|place| {
            before[..place].iter().rev().find_map(|earlier| ordered.iter().position(|item| same(item, earlier)))
        });
        match (place, after) {
            (Some(_), Some(at)) => ordered.insert(at + 1, other),
            (Some(0), None) => ordered.insert(0, other),
            _ => ordered.push(other),
        }
    }
    *items = ordered;
}

#[cfg(test)]
#[path = "strategic_tests.rs"]
mod tests;
