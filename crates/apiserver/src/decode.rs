//! From a request body to an object of the schema: types are checked, nulls go, quantities and times get their
//! canonical form, unknown fields are reported with their path.
//!
//! The wording is that of Go's decoder, because that is what users search for.

use crate::quantity::{self, Quantity};
use crate::schema::{Field, Kind, Message, Shape};
use crate::time;
use serde_json::{Map, Value};

/// Deeper objects than this are refused.
pub(crate) const MAX_DEPTH: usize = 64;

/// Why an object is not of its schema's types.
pub(crate) type TypeError = String;

/// Brings `value` into the shape of `message`. Returns the complaints about unknown fields, which are removed.
pub(crate) fn conform(message: &Message, value: &mut Value) -> Result<Vec<String>, TypeError> {
    let mut walk = Walk { unknown: Vec::new() };
    let mut path = Path { strict: String::new(), go: String::new() };
    let Value::Object(map) = value else {
        return Err(format!("json: cannot unmarshal {} into Go value of type v1.{}", spelled(value), message.name));
    };
    walk.object(message, map, &mut path, 0)?;
    Ok(walk.unknown)
}

struct Walk {
    unknown: Vec<String>,
}

/// The two spellings of a place: `spec.containers[0].image` and `spec.containers.image`.
struct Path {
    strict: String,
    go: String,
}

impl Path {
    fn inside<T>(&mut self, strict: &str, go: &str, then: impl FnOnce(&mut Path) -> T) -> T {
        let (at_strict, at_go) = (self.strict.len(), self.go.len());
        if !strict.starts_with('[') && !self.strict.is_empty() {
            self.strict.push('.');
        }
        self.strict.push_str(strict);
        if !go.is_empty() {
            if !self.go.is_empty() {
                self.go.push('.');
            }
            self.go.push_str(go);
        }
        let result = then(self);
        self.strict.truncate(at_strict);
        self.go.truncate(at_go);
        result
    }
}

impl Walk {
    fn object(
        &mut self,
        message: &Message,
        map: &mut Map<String, Value>,
        path: &mut Path,
        depth: usize,
    ) -> Result<(), TypeError> {
        if depth > MAX_DEPTH {
            return Err(format!("exceeded max depth at {}", path.strict));
        }
        let top = depth == 0;
        let mut gone: Vec<String> = Vec::new();
        for (name, value) in map.iter_mut() {
            if top && (name == "apiVersion" || name == "kind") {
                continue;
            }
            match message.field(name) {
                None => {
                    path.inside(name, "", |path| self.unknown.push(format!("unknown field {:?}", path.strict)));
                    gone.push(name.clone());
                }
                Some(_) if value.is_null() => gone.push(name.clone()),
                Some(field) => path.inside(name, name, |path| self.field(message, field, value, path, depth))?,
            }
        }
        for name in gone {
            map.shift_remove(&name);
        }
        Ok(())
    }

    fn field(
        &mut self,
        owner: &Message,
        field: &Field,
        value: &mut Value,
        path: &mut Path,
        depth: usize,
    ) -> Result<(), TypeError> {
        let wrong = |value: &Value, path: &Path, of: String| {
            format!(
                "json: cannot unmarshal {} into Go struct field {}.{} of type {of}",
                spelled(value),
                owner.name,
                path.go
            )
        };
        match field.shape {
            Shape::One => self.single(owner, field, value, path, depth),
            Shape::List => {
                let Value::Array(items) = value else {
                    return Err(wrong(value, path, format!("[]{}", go_type(field))));
                };
                for (at, item) in items.iter_mut().enumerate() {
                    path.inside(&format!("[{at}]"), "", |path| self.single(owner, field, item, path, depth))?;
                }
                Ok(())
            }
            Shape::Map => {
                let Value::Object(entries) = value else {
                    return Err(wrong(value, path, format!("map[string]{}", go_type(field))));
                };
                for (key, item) in entries.iter_mut() {
                    if item.is_null() && field.kind() == Kind::String {
                        *item = Value::String(String::new());
                    }
                    path.inside(key, "", |path| self.single(owner, field, item, path, depth))?;
                }
                Ok(())
            }
        }
    }

    fn single(
        &mut self,
        owner: &Message,
        field: &Field,
        value: &mut Value,
        path: &mut Path,
        depth: usize,
    ) -> Result<(), TypeError> {
        if let (Kind::Message(inner), Value::Object(map)) = (field.kind(), &mut *value) {
            return self.object(inner, map, path, depth + 1);
        }
        let fits = match field.kind() {
            Kind::String => value.is_string(),
            Kind::Bool => value.is_boolean(),
            Kind::Int32 => value.as_i64().is_some_and(|n| i32::try_from(n).is_ok()),
            Kind::Int64 => value.as_i64().is_some(),
            Kind::Bytes => return bytes(value, owner, path),
            Kind::Time => return instant(value, time::seconds),
            Kind::MicroTime => return instant(value, time::micros),
            Kind::Quantity => return amount(value, path),
            Kind::IntOrString => value.is_string() || value.as_i64().is_some_and(|n| i32::try_from(n).is_ok()),
            Kind::Json => true,
            Kind::Message(_) => false,
        };
        if fits {
            return Ok(());
        }
        Err(format!(
            "json: cannot unmarshal {} into Go struct field {}.{} of type {}",
            spelled(value),
            owner.name,
            path.go,
            go_type(field)
        ))
    }
}

fn amount(value: &mut Value, path: &Path) -> Result<(), TypeError> {
    let text = match value {
        Value::String(text) => text.trim().to_owned(),
        Value::Number(number) => number.to_string(),
        _ => String::new(),
    };
    let parsed = Quantity::parse(&text).ok_or_else(|| format!("{}: {} is {text:?}", quantity::SYNTAX, path.strict))?;
    *value = Value::String(parsed.to_string());
    Ok(())
}

fn instant(value: &mut Value, print: fn(jiff::Timestamp) -> String) -> Result<(), TypeError> {
    let text = value.as_str().unwrap_or_default();
    let parsed: jiff::Timestamp = text.parse().map_err(|_| {
        format!("parsing time {value} as \"2006-01-02T15:04:05Z07:00\": cannot parse {value} as a time")
    })?;
    *value = Value::String(print(parsed));
    Ok(())
}

fn bytes(value: &Value, owner: &Message, path: &Path) -> Result<(), TypeError> {
    use base64::Engine;
    let Some(text) = value.as_str() else {
        return Err(format!(
            "json: cannot unmarshal {} into Go struct field {}.{} of type []uint8",
            spelled(value),
            owner.name,
            path.go
        ));
    };
    let engine = base64::engine::general_purpose::STANDARD;
    engine.decode(text).map(drop).map_err(|error| format!("illegal base64 data in {}: {error}", path.strict))
}

fn spelled(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn go_type(field: &Field) -> String {
    match field.kind() {
        Kind::String => "string".to_owned(),
        Kind::Bool => "bool".to_owned(),
        Kind::Int32 => "int32".to_owned(),
        Kind::Int64 => "int64".to_owned(),
        Kind::Bytes => "[]uint8".to_owned(),
        Kind::Time | Kind::MicroTime => "v1.Time".to_owned(),
        Kind::Quantity => "resource.Quantity".to_owned(),
        Kind::IntOrString => "intstr.IntOrString".to_owned(),
        Kind::Json => "runtime.RawExtension".to_owned(),
        Kind::Message(message) => format!("v1.{}", message.name),
    }
}

#[cfg(test)]
mod tests {
    use super::conform;
    use crate::schema::message;
    use serde_json::{Value, json};

    fn check(kind: &str, mut value: Value) -> (Result<Vec<String>, String>, Value) {
        let verdict = conform(message(kind).expect(kind), &mut value);
        (verdict, value)
    }

    #[test]
    fn canonical_and_without_nulls() {
        let (verdict, value) = check(
            "PersistentVolumeClaim",
            json!({"kind": "PersistentVolumeClaim", "apiVersion": "v1", "metadata": {"name": "a", "creationTimestamp": null},
                "spec": {"resources": {"requests": {"storage": "1024Mi"}}, "storageClassName": ""}}),
        );
        assert_eq!(verdict, Ok(vec![]));
        assert_eq!(value["spec"], json!({"resources": {"requests": {"storage": "1Gi"}}, "storageClassName": ""}));
        assert_eq!(value["metadata"], json!({"name": "a"}));
    }

    #[test]
    fn unknown_fields_have_paths() {
        let (verdict, value) = check(
            "Pod",
            json!({"metadata": {"nam": "x"}, "spec": {"containers": [{"name": "a", "imagee": "b"}], "bogus": 1}}),
        );
        assert_eq!(
            verdict,
            Ok(vec![
                "unknown field \"metadata.nam\"".to_owned(),
                "unknown field \"spec.containers[0].imagee\"".to_owned(),
                "unknown field \"spec.bogus\"".to_owned()
            ])
        );
        assert_eq!(value["spec"]["containers"][0], json!({"name": "a"}));
    }

    #[test]
    fn types_are_refused_as_go_does() {
        for (kind, value, expect) in [
            (
                "ConfigMap",
                json!({"data": {"a": 1}}),
                "json: cannot unmarshal number into Go struct field ConfigMap.data of type string",
            ),
            (
                "Pod",
                json!({"spec": {"containers": [{"ports": [{"containerPort": "80"}]}]}}),
                "json: cannot unmarshal string into Go struct field ContainerPort.spec.containers.ports.containerPort of type int32",
            ),
            (
                "Pod",
                json!({"spec": []}),
                "json: cannot unmarshal array into Go struct field Pod.spec of type v1.PodSpec",
            ),
        ] {
            assert_eq!(check(kind, value).0, Err(expect.to_owned()));
        }
        let (bad, _) =
            check("PersistentVolumeClaim", json!({"spec": {"resources": {"requests": {"storage": "10GiB"}}}}));
        let text = bad.expect_err("10GiB is no quantity");
        assert!(
            text.starts_with("quantities must match") && text.contains("spec.resources.requests.storage"),
            "{text}"
        );
    }
}
