//! Reading and setting the parts of an object that every kind has.

use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// Text at `pointer` (RFC 6901), empty if there is none.
pub(crate) fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// The array at `pointer`, empty if there is none.
pub(crate) fn list<'a>(object: &'a Value, pointer: &str) -> &'a [Value] {
    object.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// The object at `pointer`, if there is one.
pub(crate) fn map<'a>(object: &'a Value, pointer: &str) -> Option<&'a Map<String, Value>> {
    object.pointer(pointer).and_then(Value::as_object)
}

/// `metadata.name`.
pub(crate) fn name(object: &Value) -> &str {
    text(object, "/metadata/name")
}

/// `metadata.namespace`.
pub(crate) fn namespace(object: &Value) -> &str {
    text(object, "/metadata/namespace")
}

/// `metadata.uid`.
pub(crate) fn uid(object: &Value) -> &str {
    text(object, "/metadata/uid")
}

/// Whether deletion has begun.
pub(crate) fn is_deleting(object: &Value) -> bool {
    !text(object, "/metadata/deletionTimestamp").is_empty()
}

/// `metadata.finalizers`.
pub(crate) fn finalizers(object: &Value) -> &[Value] {
    list(object, "/metadata/finalizers")
}

/// `metadata.labels`.
pub(crate) fn labels(object: &Value) -> BTreeMap<String, String> {
    map(object, "/metadata/labels")
        .into_iter()
        .flatten()
        .map(|(key, value)| (key.clone(), value.as_str().unwrap_or_default().to_owned()))
        .collect()
}

/// The metadata, made an object if it is none.
pub(crate) fn metadata(object: &mut Value) -> &mut Map<String, Value> {
    child(object, "metadata")
}

/// The member `name` of `object` as an object; both are made objects if they are none.
pub(crate) fn child<'a>(object: &'a mut Value, name: &str) -> &'a mut Map<String, Value> {
    if !object.is_object() {
        *object = json!({});
    }
    let slot = object.as_object_mut().expect("made an object above").entry(name).or_insert_with(|| json!({}));
    if !slot.is_object() {
        *slot = json!({});
    }
    slot.as_object_mut().expect("made an object above")
}

/// Sets `name` unless it is there.
pub(crate) fn default(map: &mut Map<String, Value>, name: &str, value: impl Into<Value>) {
    map.entry(name).or_insert_with(|| value.into());
}

/// Copies the member `name` from `from`, or removes it where `from` has none.
pub(crate) fn copy_member(to: &mut Value, from: &Value, name: &str) {
    if let Some(object) = to.as_object_mut() {
        match from.get(name) {
            Some(value) => object.insert(name.to_owned(), value.clone()),
            None => object.shift_remove(name),
        };
    }
}

/// Brings `apiVersion`, `kind` and `metadata` to the front, so that stored text can be given its revision unparsed.
pub(crate) fn in_order(object: Value) -> Value {
    let Value::Object(mut map) = object else { return object };
    let mut ordered = Map::new();
    for key in ["apiVersion", "kind", "metadata"] {
        if let Some(value) = map.shift_remove(key) {
            ordered.insert(key.to_owned(), value);
        }
    }
    ordered.extend(map);
    Value::Object(ordered)
}
