//! `cairn get`: the server's own tables, or the objects as they are.

use clap::ValueEnum;
use http::Request;
use serde_json::Value;

use super::resources::{Catalogue, Resource};
use super::{Scope, connect};
use crate::failure::{Failure, Outcome};
use crate::output;

/// How objects are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Form {
    /// The server's columns.
    Table,
    /// All of the server's columns.
    Wide,
    /// As JSON.
    Json,
    /// As YAML.
    Yaml,
    /// `kind/name`.
    Name,
}

/// What to show.
pub(super) struct Query {
    pub(super) resource: String,
    pub(super) name: Option<String>,
    pub(super) all_namespaces: bool,
    pub(super) selector: Option<String>,
    pub(super) field_selector: Option<String>,
    pub(super) form: Form,
}

const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";

pub(super) async fn run(query: Query, scope: &Scope) -> Outcome {
    let (client, namespace) = connect::client(scope).await?;
    let (typed, name) = match query.resource.split_once('/') {
        Some((typed, name)) => (typed.to_owned(), Some(name.to_owned())),
        None => (query.resource.clone(), query.name.clone()),
    };
    let catalogue = Catalogue::read(&client).await?;
    let resource = catalogue.named(&typed)?;
    let uri = uri(&query, resource, name.as_deref(), &namespace);
    let accept = if matches!(query.form, Form::Table | Form::Wide) { TABLE } else { "application/json" };
    let request =
        Request::get(uri).header("Accept", accept).body(Vec::new()).map_err(Failure::while_("building the request"))?;
    let answer: Value = client.request(request).await?;
    match query.form {
        Form::Json => output::json(&answer),
        Form::Yaml => print!("{}", serde_yaml_ng::to_string(&answer).expect("JSON is YAML")),
        Form::Name => names(&answer, resource),
        Form::Table | Form::Wide => print_table(&answer, query.form == Form::Wide, query.all_namespaces),
    }
    Ok(())
}

fn uri(query: &Query, resource: &Resource, name: Option<&str>, namespace: &str) -> String {
    let mut uri = resource.path((!query.all_namespaces).then_some(namespace));
    if let Some(name) = name {
        uri.push('/');
        uri.push_str(name);
    }
    let mut separator = '?';
    for (key, value) in [("labelSelector", &query.selector), ("fieldSelector", &query.field_selector)] {
        if let Some(value) = value {
            uri.push_str(&format!("{separator}{key}={}", escape(value)));
            separator = '&';
        }
    }
    uri
}

/// Percent-encodes what may not stand in a query value (RFC 3986, section 2.3).
fn escape(value: &str) -> String {
    let mut out = String::new();
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

fn names(answer: &Value, resource: &Resource) {
    let items = answer["items"].as_array().cloned().unwrap_or_else(|| vec![answer.clone()]);
    for item in items {
        println!("{}", resource.label(item["metadata"]["name"].as_str().unwrap_or_default()));
    }
}

fn print_table(answer: &Value, wide: bool, namespaces: bool) {
    let columns = answer["columnDefinitions"].as_array().cloned().unwrap_or_default();
    let rows = answer["rows"].as_array().cloned().unwrap_or_default();
    if rows.is_empty() {
        println!("No resources found");
        return;
    }
    let shown: Vec<usize> =
        (0..columns.len()).filter(|at| wide || columns[*at]["priority"].as_i64().unwrap_or(0) == 0).collect();
    let mut heading: Vec<String> =
        shown.iter().map(|at| columns[*at]["name"].as_str().unwrap_or_default().to_uppercase()).collect();
    if namespaces {
        heading.insert(0, "NAMESPACE".to_owned());
    }
    let heading: Vec<&str> = heading.iter().map(String::as_str).collect();
    output::table(
        &heading,
        rows.iter().map(|row| {
            let mut cells: Vec<String> = shown.iter().map(|at| cell(&row["cells"][*at])).collect();
            if namespaces {
                cells.insert(0, cell(&row["object"]["metadata"]["namespace"]));
            }
            cells
        }),
    );
}

fn cell(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn selectors_are_escaped() {
        assert_eq!(super::escape("a=b,c"), "a%3Db%2Cc");
    }
}
