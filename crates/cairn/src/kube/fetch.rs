//! `cairn get`: the server's own tables, or the objects as they are, once or with every change.

use std::pin::pin;

use clap::ValueEnum;
use futures::TryStreamExt;
use http::Request;
use kube::core::WatchEvent;
use serde_json::Value;

use super::resources::{Catalogue, Resource};
use super::{Scope, connect};
use crate::failure::{Code, Failure, Outcome};
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
    pub(super) watch: bool,
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
    let path = resource.path((!query.all_namespaces).then_some(&namespace));
    let answer: Value = match &name {
        Some(name) => client.request(ask(&query, &format!("{path}/{name}"), &[])?).await?,
        None => client.request(ask(&query, &path, &[])?).await?,
    };
    let mut printed = Printed { query: &query, resource, shown: Vec::new(), widths: Vec::new() };
    printed.first(&answer);
    if !query.watch {
        return Ok(());
    }
    follow(&client, &path, name.as_deref(), version_of(&answer), &mut printed).await
}

/// Prints every change after a version. A server that goes away, or a version that is too old, ends it in words.
async fn follow(
    client: &kube::Client,
    path: &str,
    name: Option<&str>,
    version: String,
    printed: &mut Printed<'_>,
) -> Outcome {
    let mut version = version;
    loop {
        let one = name.map(|name| format!("metadata.name={name}"));
        let mut more = vec![("watch", "true"), ("resourceVersion", version.as_str())];
        more.extend(one.as_deref().map(|one| ("fieldSelector", one)));
        let mut events = pin!(client.request_events::<Value>(ask(printed.query, path, &more)?).await?);
        let mut newest = None;
        while let Some(event) = events.try_next().await? {
            match event {
                WatchEvent::Added(object) | WatchEvent::Modified(object) | WatchEvent::Deleted(object) => {
                    newest = Some(version_of(&object)).filter(|version| !version.is_empty()).or(newest);
                    printed.change(&object);
                }
                WatchEvent::Bookmark(_) => {}
                WatchEvent::Error(status) => {
                    return Err(Failure::new(
                        Code::Failed,
                        format!("the watch ended: {}; run the command again", status.message),
                    ));
                }
            }
        }
        // Servers end watches after a while; it goes on from what was seen last.
        version = newest.unwrap_or(version);
    }
}

/// The version a list, a table or an object is at; of a table of one change, its row's.
fn version_of(answer: &Value) -> String {
    let row = &answer["rows"][0]["object"]["metadata"]["resourceVersion"];
    let own = &answer["metadata"]["resourceVersion"];
    own.as_str().filter(|own| !own.is_empty()).or(row.as_str()).unwrap_or_default().to_owned()
}

fn ask(query: &Query, path: &str, more: &[(&str, &str)]) -> Result<Request<Vec<u8>>, Failure> {
    let mut uri = path.to_owned();
    let selectors = [("labelSelector", &query.selector), ("fieldSelector", &query.field_selector)];
    let selectors = selectors.iter().filter_map(|(key, value)| Some((*key, value.as_deref()?)));
    for (at, (key, value)) in selectors.chain(more.iter().copied()).enumerate() {
        let separator = if at == 0 { '?' } else { '&' };
        uri.push_str(&format!("{separator}{key}={}", escape(value)));
    }
    let accept = if matches!(query.form, Form::Table | Form::Wide) { TABLE } else { "application/json" };
    Request::get(uri).header("Accept", accept).body(Vec::new()).map_err(Failure::while_("building the request"))
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

/// What was printed so far, for lines that come later to stand below it.
struct Printed<'a> {
    query: &'a Query,
    resource: &'a Resource,
    /// Which of the server's columns.
    shown: Vec<usize>,
    widths: Vec<usize>,
}

impl Printed<'_> {
    fn first(&mut self, answer: &Value) {
        let empty = answer["rows"].as_array().or(answer["items"].as_array()).is_some_and(Vec::is_empty);
        match self.query.form {
            Form::Table | Form::Wide if empty && !self.query.watch => println!("No resources found"),
            Form::Table | Form::Wide if empty => {}
            Form::Json | Form::Yaml if empty && self.query.watch => {}
            _ => self.change(answer),
        }
    }

    fn change(&mut self, answer: &Value) {
        match self.query.form {
            Form::Json => output::json(answer),
            Form::Yaml if self.query.watch => print!("---\n{}", yaml(answer)),
            Form::Yaml => print!("{}", yaml(answer)),
            Form::Name => {
                let items = answer["items"].as_array().cloned().unwrap_or_else(|| vec![answer.clone()]);
                for item in items {
                    println!("{}", self.resource.label(item["metadata"]["name"].as_str().unwrap_or_default()));
                }
            }
            Form::Table | Form::Wide => self.lines(answer),
        }
    }

    /// Rows of a table; below a heading where it is the first.
    fn lines(&mut self, answer: &Value) {
        let (wide, namespaces) = (self.query.form == Form::Wide, self.query.all_namespaces);
        // Later events of a watch may leave the columns out: they are the same.
        let columns = answer["columnDefinitions"].as_array().cloned().unwrap_or_default();
        let first = self.shown.is_empty();
        if first {
            let priority = |at: &usize| columns[*at]["priority"].as_i64().unwrap_or(0);
            self.shown = (0..columns.len()).filter(|at| wide || priority(at) == 0).collect();
        }
        let shown = &self.shown;
        let mut lines = Vec::new();
        if first {
            let titles = shown.iter().map(|at| columns[*at]["name"].as_str().unwrap_or_default().to_uppercase());
            lines.push(namespaces.then(|| "NAMESPACE".to_owned()).into_iter().chain(titles).collect::<Vec<_>>());
        }
        for row in answer["rows"].as_array().into_iter().flatten() {
            let cells = shown.iter().map(|at| cell(&row["cells"][*at]));
            let namespace = namespaces.then(|| cell(&row["object"]["metadata"]["namespace"]));
            lines.push(namespace.into_iter().chain(cells).collect());
        }
        print!("{}", output::aligned(&lines, &mut self.widths));
    }
}

fn yaml(value: &Value) -> String {
    serde_yaml_ng::to_string(value).expect("JSON is YAML")
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
