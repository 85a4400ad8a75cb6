//! OpenAPI v3, one document per group and version, generated from the registry and the schema.
//!
//! kubectl looks for the PATCH of a kind and its `fieldValidation` parameter: with it, it leaves validation to the
//! server.

use crate::registry::{Resource, TABLE};
use crate::schema::{Field, Kind, Merge, Message, Ownership, Shape};
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;

/// `GET /openapi/v3`: where the documents are. The hash lets clients keep them.
pub(super) fn index() -> Value {
    let mut paths = Map::new();
    for row in TABLE {
        let path = base(row);
        let document = document(&path).expect("the table's own groups have documents");
        let at = format!("/openapi/v3/{path}?hash={:016X}", fnv(document.to_string().as_bytes()));
        paths.entry(path).or_insert_with(|| json!({"serverRelativeURL": at}));
    }
    json!({"paths": paths})
}

fn base(row: &Resource) -> String {
    if row.group.is_empty() { format!("api/{}", row.version) } else { format!("apis/{}/{}", row.group, row.version) }
}

fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// `GET /openapi/v3/api/v1` and the like.
pub(super) fn document(path: &str) -> Option<Value> {
    let rows: Vec<&Resource> = TABLE.iter().filter(|row| base(row) == path).collect();
    if rows.is_empty() {
        return None;
    }
    let (mut paths, mut schemas, mut seen) = (Map::new(), Map::new(), BTreeSet::new());
    for row in rows {
        let kind = json!({"group": row.group, "version": row.version, "kind": row.kind});
        let collection = if row.namespaced {
            format!("/{path}/namespaces/{{namespace}}/{}", row.plural)
        } else {
            format!("/{path}/{}", row.plural)
        };
        paths.insert(
            collection.clone(),
            json!({
                "get": operation("list", &kind, &[]),
                "post": operation("post", &kind, &WRITE),
            }),
        );
        paths.insert(
            format!("{collection}/{{name}}"),
            json!({
                "get": operation("get", &kind, &[]),
                "put": operation("put", &kind, &WRITE),
                "patch": operation("patch", &kind, &[&WRITE[..], &["force"]].concat()),
                "delete": operation("delete", &kind, &["dryRun", "gracePeriodSeconds", "propagationPolicy"]),
            }),
        );
        describe(row.message(), &mut schemas, &mut seen);
        let name = schema_name(row.message());
        if let Some(properties) =
            schemas.get_mut(&name).and_then(|schema| schema.get_mut("properties")).and_then(Value::as_object_mut)
        {
            for member in ["kind", "apiVersion"] {
                properties.shift_insert(0, member.to_owned(), json!({"type": "string"}));
            }
        }
        schemas[&name]["x-kubernetes-group-version-kind"] = json!([kind]);
    }
    Some(json!({"openapi": "3.0.0", "info": {"title": "Kubernetes", "version": "v1.32.0"}, "paths": paths,
            "components": {"schemas": schemas}}))
}

const WRITE: [&str; 3] = ["dryRun", "fieldManager", "fieldValidation"];

fn operation(action: &str, kind: &Value, parameters: &[&str]) -> Value {
    let parameters: Vec<Value> =
        parameters.iter().map(|name| json!({"name": name, "in": "query", "schema": {"type": "string"}})).collect();
    json!({"x-kubernetes-action": action, "x-kubernetes-group-version-kind": kind, "parameters": parameters,
        "responses": {"200": {"description": "OK"}}})
}

fn schema_name(message: &Message) -> String {
    format!("io.k8s.api.{}", message.name)
}

fn describe(message: &Message, schemas: &mut Map<String, Value>, seen: &mut BTreeSet<&'static str>) {
    if !seen.insert(message.name) {
        return;
    }
    let mut properties = Map::new();
    for field in message.flattened() {
        if let Some(inner) = field.message() {
            describe(inner, schemas, seen);
        }
        properties.insert(field.name.to_owned(), property(field));
    }
    schemas.insert(schema_name(message), json!({"type": "object", "properties": properties}));
}

fn property(field: &Field) -> Value {
    let value = match field.kind() {
        Kind::String => json!({"type": "string"}),
        Kind::Bool => json!({"type": "boolean"}),
        Kind::Int32 => json!({"type": "integer", "format": "int32"}),
        Kind::Int64 => json!({"type": "integer", "format": "int64"}),
        Kind::Bytes => json!({"type": "string", "format": "byte"}),
        Kind::Time | Kind::MicroTime => json!({"type": "string", "format": "date-time"}),
        Kind::Quantity => json!({"oneOf": [{"type": "string"}, {"type": "number"}]}),
        Kind::IntOrString => json!({"oneOf": [{"type": "integer"}, {"type": "string"}], "format": "int-or-string"}),
        Kind::Json => json!({"type": "object"}),
        Kind::Message(message) => {
            let reference = json!({"$ref": format!("#/components/schemas/{}", schema_name(message))});
            if field.shape == Shape::One { json!({"allOf": [reference]}) } else { reference }
        }
    };
    let mut property = match field.shape {
        Shape::One => value,
        Shape::List => json!({"type": "array", "items": value}),
        Shape::Map => json!({"type": "object", "additionalProperties": value}),
    };
    match (&field.ownership, field.shape) {
        (Ownership::Keyed(keys), _) => {
            property["x-kubernetes-list-type"] = json!("map");
            property["x-kubernetes-list-map-keys"] = json!(keys);
        }
        (Ownership::Set, _) => property["x-kubernetes-list-type"] = json!("set"),
        (Ownership::Atomic, Shape::List) => property["x-kubernetes-list-type"] = json!("atomic"),
        (Ownership::Atomic, _) => property["x-kubernetes-map-type"] = json!("atomic"),
        _ => {}
    }
    match field.merge {
        Merge::Replace => {}
        Merge::Primitives => property["x-kubernetes-patch-strategy"] = json!("merge"),
        Merge::ByKey(key) => {
            property["x-kubernetes-patch-strategy"] = json!("merge");
            property["x-kubernetes-patch-merge-key"] = json!(key);
        }
    }
    property
}

#[cfg(test)]
mod tests {
    use super::{document, index};

    #[test]
    fn kubectl_finds_what_it_looks_for() {
        let core = document("api/v1").expect("core");
        let patch = &core["paths"]["/api/v1/namespaces/{namespace}/pods/{name}"]["patch"];
        assert_eq!(patch["x-kubernetes-group-version-kind"]["kind"], "Pod");
        assert!(patch["parameters"].as_array().is_some_and(|all| all.iter().any(|p| p["name"] == "fieldValidation")));
        let spec = &core["components"]["schemas"]["io.k8s.api.PodSpec"]["properties"];
        assert_eq!(spec["containers"]["items"]["$ref"], "#/components/schemas/io.k8s.api.Container");
        assert_eq!(spec["containers"]["x-kubernetes-patch-merge-key"], "name");
        assert!(index()["paths"]["apis/storage.k8s.io/v1"]["serverRelativeURL"].is_string());
        assert!(document("apis/apps/v1").is_none());
    }
}
