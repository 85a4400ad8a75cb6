//! In which form objects go out: whole, as metadata only, or as a table.

use crate::http::target::Query;
use crate::object;
use crate::registry::Resource;
use crate::store::Stored;
use bytes::Bytes;
use jiff::Timestamp;
use serde_json::{Map, Value, json};

/// What of each object comes with its table row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Include {
    None,
    Metadata,
    Object,
}

/// The form that the client prefers of those known here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum View {
    Plain,
    Partial,
    Table(Include),
}

impl View {
    /// From the `Accept` header, first match wins; JSON where nothing matches.
    pub(super) fn choose(accept: &str, query: &Query) -> View {
        for wanted in accept.split(',') {
            let mut parts = wanted.split(';').map(str::trim);
            if !matches!(parts.next(), Some("application/json" | "application/*" | "*/*")) {
                continue;
            }
            let parameters: Vec<&str> = parts.collect();
            let form = parameters.iter().find_map(|parameter| parameter.strip_prefix("as="));
            let known = parameters.iter().filter_map(|p| p.strip_prefix("v=")).all(|version| version == "v1");
            match form {
                None => return View::Plain,
                Some("Table") if known => {
                    return View::Table(match query.one("includeObject") {
                        Some("None") => Include::None,
                        Some("Object") => Include::Object,
                        _ => Include::Metadata,
                    });
                }
                Some("PartialObjectMetadata" | "PartialObjectMetadataList") if known => return View::Partial,
                Some(_) => {}
            }
        }
        View::Plain
    }

    /// One object as JSON text. `headings` is for tables: only the first of a watch needs them.
    pub(super) fn one(self, resource: &Resource, stored: &Stored, headings: bool) -> Bytes {
        match self {
            View::Plain => stored.json.clone(),
            View::Partial => Bytes::from(partial(&stored.object()).to_string()),
            View::Table(include) => {
                let rows = vec![row(resource, &stored.object(), include, Timestamp::now())];
                let metadata = json!({"resourceVersion": stored.revision.to_string()});
                Bytes::from(table(resource, metadata, rows, headings).to_string())
            }
        }
    }

    /// A list as JSON text.
    pub(super) fn many(self, resource: &Resource, items: &[std::sync::Arc<Stored>], metadata: Value) -> Bytes {
        match self {
            View::Plain => {
                let head = format!(
                    r#"{{"kind":"{}List","apiVersion":"{}","metadata":{metadata},"items":["#,
                    resource.kind,
                    resource.api_version()
                );
                let size = head.len() + 2 + items.iter().map(|item| item.json.len() + 1).sum::<usize>();
                let mut out = Vec::with_capacity(size);
                out.extend_from_slice(head.as_bytes());
                for (at, item) in items.iter().enumerate() {
                    if at > 0 {
                        out.push(b',');
                    }
                    out.extend_from_slice(&item.json);
                }
                out.extend_from_slice(b"]}");
                Bytes::from(out)
            }
            View::Partial => {
                let items: Vec<Value> = items.iter().map(|item| partial(&item.object())).collect();
                let list = json!({"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1",
                    "metadata": metadata, "items": items});
                Bytes::from(list.to_string())
            }
            View::Table(include) => {
                let now = Timestamp::now();
                let rows = items.iter().map(|item| row(resource, &item.object(), include, now)).collect();
                Bytes::from(table(resource, metadata, rows, true).to_string())
            }
        }
    }

    /// What carries a revision to a watcher and nothing else.
    pub(super) fn bookmark(self, resource: &Resource, revision: i64, initial_end: bool) -> Bytes {
        let mut metadata = json!({"resourceVersion": revision.to_string(), "creationTimestamp": null});
        if initial_end {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let object = match self {
            View::Plain => json!({"kind": resource.kind, "apiVersion": resource.api_version(), "metadata": metadata}),
            View::Partial => {
                json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata})
            }
            View::Table(_) => {
                let object =
                    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata});
                let cells: Vec<Value> = resource.columns.iter().map(|_| json!("")).collect();
                table(
                    resource,
                    json!({"resourceVersion": revision.to_string()}),
                    vec![json!({"cells": cells, "object": object})],
                    false,
                )
            }
        };
        Bytes::from(object.to_string())
    }
}

fn partial(object: &Value) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"]})
}

fn row(resource: &Resource, object: &Value, include: Include, now: Timestamp) -> Value {
    let mut row = Map::new();
    row.insert("cells".to_owned(), json!((resource.row)(object, now)));
    match include {
        Include::None => {}
        Include::Metadata => drop(row.insert("object".to_owned(), partial(object))),
        Include::Object => drop(row.insert("object".to_owned(), object.clone())),
    }
    Value::Object(row)
}

fn table(resource: &Resource, metadata: Value, rows: Vec<Value>, headings: bool) -> Value {
    let definition = |column: &crate::registry::Column| {
        let format = if column.name == "Name" { "name" } else { "" };
        json!({"name": column.name, "type": column.of, "format": format,
            "description": format!("{} of the {}", column.name, resource.singular), "priority": i32::from(column.wide)})
    };
    let columns: Vec<Value> = if headings { resource.columns.iter().map(definition).collect() } else { Vec::new() };
    let columns = if headings { json!(columns) } else { Value::Null };
    json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata, "columnDefinitions": columns, "rows": rows})
}

/// The metadata of a list.
pub(super) fn list_metadata(revision: i64, next: Option<&str>, remaining: Option<i64>) -> Value {
    let mut metadata = json!({"resourceVersion": revision.to_string()});
    if let Some(next) = next {
        object::default(metadata.as_object_mut().expect("made an object above"), "continue", next);
        if let Some(remaining) = remaining {
            metadata["remainingItemCount"] = json!(remaining);
        }
    }
    metadata
}

#[cfg(test)]
mod tests {
    use super::{Include, View};
    use crate::http::target::Query;
    use crate::registry::find;
    use crate::store::Stored;
    use serde_json::{Value, json};

    #[test]
    fn the_first_known_form_is_chosen() {
        let table = |version: &str| format!("application/json;as=Table;v={version};g=meta.k8s.io");
        let kubectl = &format!("{},{},application/json", table("v1"), table("v1beta1"));
        let none = Query::default();
        assert_eq!(View::choose(kubectl, &none), View::Table(Include::Metadata));
        assert_eq!(View::choose(kubectl, &Query::parse("includeObject=Object")), View::Table(Include::Object));
        assert_eq!(View::choose("application/vnd.kubernetes.protobuf,application/json", &none), View::Plain);
        assert_eq!(
            View::choose("application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json", &none),
            View::Plain
        );
        assert_eq!(
            View::choose("application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1", &none),
            View::Partial
        );
        assert_eq!(View::choose("", &none), View::Plain);
    }

    #[test]
    fn a_table_has_a_row_and_headings() {
        let maps = find("", "v1", "configmaps").expect("configmaps");
        let value = br#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a"},"data":{"x":"y"}}"#;
        let stored = Stored::new(maps, "ns/a".into(), 7, value).expect("stored");
        let table: Value =
            serde_json::from_slice(&View::Table(Include::Metadata).one(maps, &stored, true)).expect("JSON");
        assert_eq!(table["columnDefinitions"][1]["name"], "Data");
        assert_eq!(table["rows"][0]["cells"], json!(["a", 1, "<unknown>"]));
        assert_eq!(table["rows"][0]["object"]["metadata"], json!({"resourceVersion": "7", "name": "a"}));
        let list: Value = serde_json::from_slice(&View::Plain.many(maps, &[stored.into()], json!({}))).expect("JSON");
        assert_eq!((list["kind"].as_str(), list["items"][0]["data"]["x"].as_str()), (Some("ConfigMapList"), Some("y")));
    }
}
