//! The smallest merge patch (RFC 7386) that turns one object into another. Pure.

use serde_json::{Map, Value};

/// None when they are equal.
pub(crate) fn merge_patch(from: &Value, to: &Value) -> Option<Value> {
    let (Value::Object(old), Value::Object(new)) = (from, to) else {
        return (from != to).then(|| to.clone());
    };
    let mut patch = Map::new();
    for (key, value) in new {
        match old.get(key) {
            Some(before) => patch.extend(merge_patch(before, value).map(|change| (key.clone(), change))),
            None => drop(patch.insert(key.clone(), value.clone())),
        }
    }
    for key in old.keys().filter(|key| !new.contains_key(*key)) {
        patch.insert(key.clone(), Value::Null);
    }
    (!patch.is_empty()).then_some(Value::Object(patch))
}

#[cfg(test)]
mod tests {
    use super::merge_patch;
    use serde_json::json;

    #[test]
    fn only_what_changed() {
        let from = json!({"a": 1, "b": {"c": [1], "d": 2}, "e": 3});
        let to = json!({"a": 1, "b": {"c": [2], "d": 2}, "f": 4});
        assert_eq!(merge_patch(&from, &to), Some(json!({"b": {"c": [2]}, "e": null, "f": 4})));
        assert_eq!(merge_patch(&from, &from), None);
    }
}
