//! Reading: one object, many objects, in pages, through selectors.

use super::view::{View, list_metadata};
use super::{Api, Call, Served};
use crate::error::ApiError;
use crate::http::respond::{self, Body};
use crate::registry::Resource;
use crate::selector::{Fields, Labels};
use crate::store::Stored;
use crate::store::cache::prefix_end;
use base64::Engine;
use http::Response;
use http::header::ACCEPT;
use serde_json::{Value, json};
use std::sync::Arc;

/// Keys read from the store at once.
const PAGE: i64 = 500;

/// Which objects of a collection are meant.
#[derive(Debug, Clone)]
pub(super) struct Selection {
    pub(super) namespace: Option<String>,
    pub(super) labels: Labels,
    pub(super) fields: Fields,
}

impl Selection {
    pub(super) fn of(resource: &Resource, namespace: Option<&str>, call: &Call) -> Result<Selection, ApiError> {
        let labels = Labels::parse(call.query.one("labelSelector").unwrap_or_default())
            .map_err(|why| ApiError::BadRequest(format!("unable to parse label selector: {why}")))?;
        let fields =
            Fields::parse(call.query.one("fieldSelector").unwrap_or_default()).map_err(ApiError::BadRequest)?;
        for name in fields.names() {
            let known = matches!(name, "metadata.name" | "metadata.namespace")
                || resource.selectable.iter().any(|(field, _)| *field == name);
            if !known {
                return Err(ApiError::BadRequest(format!("field label not supported: {name}")));
            }
        }
        Ok(Selection { namespace: namespace.map(str::to_owned), labels, fields })
    }

    /// Every object.
    pub(super) fn everything() -> Selection {
        Selection { namespace: None, labels: Labels::default(), fields: Fields::default() }
    }

    /// The part of keys that all share.
    pub(super) fn prefix(&self) -> String {
        self.namespace.as_ref().map_or_else(String::new, |namespace| format!("{namespace}/"))
    }

    pub(super) fn is_everything(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    pub(super) fn matches(&self, resource: &Resource, stored: &Stored) -> bool {
        stored.key.starts_with(&self.prefix())
            && self.labels.matches(&stored.labels)
            && self.fields.matches(|field| stored.field(resource, field))
    }
}

/// Objects at one revision.
pub(super) struct Listed {
    pub(super) items: Vec<Arc<Stored>>,
    pub(super) revision: i64,
    next: Option<String>,
    remaining: Option<i64>,
}

impl Api {
    /// GET of one object.
    pub(super) async fn get(
        &self,
        served: &Served,
        namespace: &str,
        name: &str,
        call: &Call,
    ) -> Result<Response<Body>, ApiError> {
        let stored = self.load(served, &served.resource.key(namespace, name)).await?;
        let view = View::choose(call.header(ACCEPT), &call.query);
        Ok(respond::json_text(200, view.one(served.resource, &stored, true)))
    }

    /// GET of a collection.
    pub(super) async fn list(
        &self,
        served: &Served,
        namespace: Option<&str>,
        call: &Call,
    ) -> Result<Response<Body>, ApiError> {
        let selection = Selection::of(served.resource, namespace, call)?;
        let limit = number(call.query.one("limit"), "limit")?.unwrap_or(0);
        let listed = match (call.query.one("continue"), number(call.query.one("resourceVersion"), "resourceVersion")?) {
            (Some(token), _) => {
                let (revision, start) = read_token(token)?;
                self.pages(served, &selection, limit, revision, Some(start)).await?
            }
            (None, Some(revision)) => self.list_at(served, &selection, limit, revision, call).await?,
            (None, None) => self.pages(served, &selection, limit, 0, None).await?,
        };
        let view = View::choose(call.header(ACCEPT), &call.query);
        let metadata = list_metadata(listed.revision, listed.next.as_deref(), listed.remaining);
        Ok(respond::json_text(200, view.many(served.resource, &listed.items, metadata)))
    }

    async fn list_at(
        &self,
        served: &Served,
        selection: &Selection,
        limit: i64,
        revision: i64,
        call: &Call,
    ) -> Result<Listed, ApiError> {
        match call.query.one("resourceVersionMatch") {
            Some("Exact") => return self.pages(served, selection, limit, revision, None).await,
            Some("NotOlderThan") | None => {}
            Some(other) => {
                return Err(ApiError::BadRequest(format!(
                    "resourceVersionMatch: Unsupported value: {other:?}: supported values: \"Exact\", \"NotOlderThan\""
                )));
            }
        }
        served.cache.ready().await;
        let (items, seen, _) = served.cache.snapshot(&selection.prefix());
        if seen >= revision {
            let items = items.into_iter().filter(|item| selection.matches(served.resource, item)).collect();
            return Ok(Listed { items, revision: seen, next: None, remaining: None });
        }
        let listed = self.pages(served, selection, limit, 0, None).await?;
        if listed.revision < revision {
            return Err(ApiError::TooLargeResourceVersion { asked: revision, current: listed.revision });
        }
        Ok(listed)
    }

    /// Everything selected, as new as can be.
    pub(super) async fn newest(&self, served: &Served, selection: &Selection) -> Result<Listed, ApiError> {
        self.pages(served, selection, 0, 0, None).await
    }

    async fn pages(
        &self,
        served: &Served,
        selection: &Selection,
        limit: i64,
        at: i64,
        from: Option<String>,
    ) -> Result<Listed, ApiError> {
        let resource = served.resource;
        let exact =
            selection.fields.exact("metadata.name").filter(|_| selection.namespace.is_some() || !resource.namespaced);
        let below = match exact {
            Some(name) => resource.key(selection.namespace.as_deref().unwrap_or_default(), name),
            None => selection.prefix(),
        };
        let prefix = format!("{}{below}", resource.prefix());
        let end = if exact.is_some() { format!("{prefix}\0") } else { prefix_end(&prefix) };
        let mut start = from.map_or(prefix, |key| format!("{}{key}", resource.prefix()));
        let mut listed = Listed { items: Vec::new(), revision: at, next: None, remaining: None };
        loop {
            let wanted = if limit > 0 && selection.is_everything() { limit.min(PAGE) } else { PAGE };
            let page = self.etcd.range(&start, &end, wanted, listed.revision).await?;
            listed.revision = if listed.revision == 0 { page.revision } else { listed.revision };
            for (at, kv) in page.kvs.iter().enumerate() {
                let stored = served.cache.resolve(kv)?;
                if selection.matches(resource, &stored) {
                    listed.items.push(stored);
                }
                let full = limit > 0 && listed.items.len() as i64 >= limit;
                let last = !page.more && at + 1 == page.kvs.len();
                if full && !last {
                    let after = String::from_utf8_lossy(&kv.key[resource.prefix().len()..]).into_owned();
                    listed.next = Some(token(listed.revision, &format!("{after}\0")));
                    listed.remaining = selection.is_everything().then(|| page.count - at as i64 - 1);
                    return Ok(listed);
                }
            }
            match page.kvs.last() {
                Some(last) if page.more => start = format!("{}\0", String::from_utf8_lossy(&last.key)),
                _ => return Ok(listed),
            }
        }
    }
}

/// A parameter that is a number.
pub(super) fn number(text: Option<&str>, name: &str) -> Result<Option<i64>, ApiError> {
    let Some(text) = text else { return Ok(None) };
    match text.parse::<i64>() {
        Ok(number) if number >= 0 => Ok(Some(number)),
        _ => {
            Err(ApiError::BadRequest(format!("{name}: Invalid value: {text:?}: must be a number that is not negative")))
        }
    }
}

fn token(revision: i64, start: &str) -> String {
    let token = json!({"v": "meta.k8s.io/v1", "rv": revision, "start": start}).to_string();
    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(token)
}

fn read_token(token: &str) -> Result<(i64, String), ApiError> {
    let bad = || ApiError::BadRequest("continue key is not valid".to_owned());
    let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(token).map_err(|_| bad())?;
    let token: Value = serde_json::from_slice(&bytes).map_err(|_| bad())?;
    match (token["rv"].as_i64(), token["start"].as_str()) {
        (Some(revision), Some(start)) if revision > 0 => Ok((revision, start.to_owned())),
        _ => Err(bad()),
    }
}

#[cfg(test)]
mod tests {
    use super::{read_token, token};

    #[test]
    fn tokens_come_back() {
        assert_eq!(read_token(&token(42, "ns/a\0")), Ok((42, "ns/a\0".to_owned())));
        for bad in ["", "x", "e30"] {
            assert!(read_token(bad).is_err(), "{bad}");
        }
    }
}
