//! RFC 6902, as lenient as the library behind Kubernetes: `replace` of an absent member adds it, because clients in
//! the field rely on that. This is why no strict crate is used.

use super::PatchError;
use serde_json::Value;

const MAX_OPERATIONS: usize = 10_000;

/// Applies every operation, or none.
pub(crate) fn apply(target: &mut Value, patch: &Value) -> Result<(), PatchError> {
    let Value::Array(operations) = patch else {
        return Err(PatchError::Malformed("a JSON patch is an array of operations".to_owned()));
    };
    if operations.len() > MAX_OPERATIONS {
        return Err(PatchError::Malformed(format!("a JSON patch may have at most {MAX_OPERATIONS} operations")));
    }
    let mut result = target.clone();
    for operation in operations {
        step(&mut result, operation)?;
    }
    *target = result;
    Ok(())
}

fn step(target: &mut Value, operation: &Value) -> Result<(), PatchError> {
    let word = |name: &str| {
        operation[name]
            .as_str()
            .ok_or_else(|| PatchError::Malformed(format!("a JSON patch operation needs a string {name:?}")))
    };
    let (op, path) = (word("op")?, word("path")?);
    let value = || {
        operation
            .get("value")
            .cloned()
            .ok_or_else(|| PatchError::Malformed(format!("operation {op:?} needs a \"value\"")))
    };
    match op {
        "add" => add(target, path, value()?),
        "replace" => match target.pointer_mut(path) {
            Some(slot) => {
                *slot = value()?;
                Ok(())
            }
            None => add(target, path, value()?),
        },
        "remove" => remove(target, path).map(drop),
        "test" => {
            let expected = value()?;
            if target.pointer(path).unwrap_or(&Value::Null) == &expected {
                return Ok(());
            }
            Err(PatchError::DoesNotApply(format!("testing value {path} failed")))
        }
        "move" => {
            let moved = remove(target, word("from")?)?;
            add(target, path, moved)
        }
        "copy" => {
            let from = word("from")?;
            let copied = target.pointer(from).cloned().ok_or_else(|| missing("copy", from))?;
            add(target, path, copied)
        }
        other => Err(PatchError::Malformed(format!("unexpected JSON patch operation {other:?}"))),
    }
}

fn missing(op: &str, path: &str) -> PatchError {
    PatchError::DoesNotApply(format!("{op} operation does not apply: doc is missing path: {path:?}: missing value"))
}

/// The parent of what `path` names, and the last token, unescaped.
fn parent<'a>(target: &'a mut Value, path: &str, op: &str) -> Result<(&'a mut Value, String), PatchError> {
    let (above, last) = path.rsplit_once('/').ok_or_else(|| missing(op, path))?;
    let parent = target.pointer_mut(above).ok_or_else(|| missing(op, path))?;
    Ok((parent, last.replace("~1", "/").replace("~0", "~")))
}

fn add(target: &mut Value, path: &str, value: Value) -> Result<(), PatchError> {
    if path.is_empty() {
        *target = value;
        return Ok(());
    }
    match parent(target, path, "add")? {
        (Value::Object(members), last) => drop(members.insert(last, value)),
        (Value::Array(items), last) if last == "-" => items.push(value),
        (Value::Array(items), last) => match last.parse::<usize>() {
            Ok(at) if at <= items.len() => items.insert(at, value),
            _ => {
                return Err(PatchError::DoesNotApply(format!(
                    "add operation does not apply: index {last:?} out of bounds at {path:?}"
                )));
            }
        },
        _ => return Err(missing("add", path)),
    }
    Ok(())
}

fn remove(target: &mut Value, path: &str) -> Result<Value, PatchError> {
    let removed = match parent(target, path, "remove")? {
        (Value::Object(members), last) => members.shift_remove(&last),
        (Value::Array(items), last) => match last.parse::<usize>() {
            Ok(at) if at < items.len() => Some(items.remove(at)),
            _ => None,
        },
        _ => None,
    };
    removed.ok_or_else(|| missing("remove", path))
}

#[cfg(test)]
mod tests {
    use super::{PatchError, apply};
    use serde_json::{Value, json};

    fn patched(target: Value, patch: Value) -> Result<Value, PatchError> {
        let mut result = target;
        apply(&mut result, &patch).map(|()| result)
    }

    #[test]
    fn operations() {
        for (target, patch, expect) in [
            (json!({"a": 1}), json!([{"op": "add", "path": "/b", "value": 2}]), json!({"a": 1, "b": 2})),
            (json!({"f": ["x"]}), json!([{"op": "add", "path": "/f/-", "value": "y"}]), json!({"f": ["x", "y"]})),
            (json!({"f": ["x"]}), json!([{"op": "add", "path": "/f/0", "value": "y"}]), json!({"f": ["y", "x"]})),
            (
                json!({"f": ["x", "y"]}),
                json!([{"op": "test", "path": "/f/1", "value": "y"}, {"op": "remove", "path": "/f/1"}]),
                json!({"f": ["x"]}),
            ),
            (
                json!({"m": {"a/b": 1}}),
                json!([{"op": "replace", "path": "/m/a~1b", "value": 2}]),
                json!({"m": {"a/b": 2}}),
            ),
            // Absent members may be replaced.
            (json!({}), json!([{"op": "replace", "path": "/status", "value": {}}]), json!({"status": {}})),
            (json!({"a": {"b": 1}}), json!([{"op": "move", "from": "/a/b", "path": "/c"}]), json!({"a": {}, "c": 1})),
            (json!({"a": 1}), json!([{"op": "copy", "from": "/a", "path": "/c"}]), json!({"a": 1, "c": 1})),
            (json!({}), json!([{"op": "test", "path": "/a", "value": null}]), json!({})),
        ] {
            assert_eq!(patched(target, patch), Ok(expect));
        }
    }

    #[test]
    fn failures_change_nothing() {
        let mut target = json!({"a": [1]});
        for patch in [
            json!([{"op": "add", "path": "/b", "value": 1}, {"op": "test", "path": "/a/0", "value": 2}]),
            json!([{"op": "remove", "path": "/nope"}]),
            json!([{"op": "add", "path": "/x/y", "value": 1}]),
            json!([{"op": "add", "path": "/a/5", "value": 1}]),
            json!([{"op": "frob", "path": "/a"}]),
            json!({"op": "add"}),
        ] {
            assert!(apply(&mut target, &patch).is_err(), "{patch}");
            assert_eq!(target, json!({"a": [1]}));
        }
    }
}
