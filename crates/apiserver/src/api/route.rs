//! From a request to the verb that answers it.

use super::change::Part;
use super::{Api, Call, discovery, openapi};
use crate::error::ApiError;
use crate::http::body;
use crate::http::identity::User;
use crate::http::respond::{self, Body};
use crate::http::server::{Handler, unauthorized};
use crate::http::target::{Objects, Query, Target};
use crate::registry::Sub;
use crate::store::etcd::REQUEST_ID;
use bytes::Bytes;
use http::header::ACCEPT;
use http::{HeaderValue, Method, Request, Response};
use hyper::body::Incoming;
use std::sync::Arc;
use std::time::Instant;
use tracing::Instrument;

/// The handler of every connection.
pub(crate) struct Door(pub(crate) Arc<Api>);

impl Handler for Door {
    async fn handle(&self, user: Option<User>, request: Request<Incoming>) -> Response<Body> {
        let id = request.headers().get("x-request-id").and_then(|id| id.to_str().ok()).filter(|id| id.len() <= 128);
        let id = id.map_or_else(|| uuid::Uuid::new_v4().to_string(), str::to_owned);
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let span = tracing::debug_span!("request", request_id = %id, %method, path);
        let begun = Instant::now();
        let work = async {
            let mut response = self.0.answer(user, request).await.unwrap_or_else(|error| respond::failure(&error));
            let code = response.status().as_u16();
            let took_us = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
            tracing::debug!(code, took_us, "answered");
            if let Ok(value) = HeaderValue::from_str(&id) {
                response.headers_mut().insert("audit-id", value);
            }
            response
        };
        REQUEST_ID.scope(id.clone(), work).instrument(span).await
    }
}

impl Api {
    async fn answer(
        self: &Arc<Self>,
        user: Option<User>,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, ApiError> {
        let target = Target::parse(request.uri().path());
        if let Target::Other(path) = &target
            && let Some(response) = self.open_to_all(path)
        {
            return Ok(response);
        }
        let Some(user) = user else { return Ok(unauthorized()) };
        let query = Query::parse(request.uri().query().unwrap_or_default());
        match target {
            Target::Objects(objects) => self.objects(user, &objects, query, request).await,
            fixed if request.method() == Method::GET => self.fixed(&fixed, request.headers().get(ACCEPT)),
            _ => Err(ApiError::MethodNotAllowed),
        }
    }

    /// What needs no certificate: whether the server is alive, and its version.
    fn open_to_all(&self, path: &str) -> Option<Response<Body>> {
        match path {
            "/version" | "/version/" => Some(respond::json(200, &discovery::version())),
            "/livez" => Some(respond::text(200, "ok")),
            "/healthz" | "/readyz" if self.is_ready() => Some(respond::text(200, "ok")),
            "/healthz" | "/readyz" => Some(respond::text(503, "not ready: the object store has not been read yet")),
            _ => None,
        }
    }

    fn fixed(&self, target: &Target, accept: Option<&HeaderValue>) -> Result<Response<Body>, ApiError> {
        let accept = accept.and_then(|accept| accept.to_str().ok()).unwrap_or_default();
        let found = match target {
            Target::CoreVersions => return Ok(discovery::core_versions(accept)),
            Target::Groups => return Ok(discovery::group_list(accept)),
            Target::Group(name) => discovery::group(name),
            Target::Resources { group, version } => discovery::resources(group, version),
            Target::Other(path) => match path.trim_end_matches('/') {
                "/openapi/v3" => Some(openapi::index()),
                path => path.strip_prefix("/openapi/v3/").and_then(openapi::document),
            },
            Target::Objects(_) => None,
        };
        found.map(|value| respond::json(200, &value)).ok_or(ApiError::NoSuchPath)
    }

    async fn objects(
        self: &Arc<Self>,
        user: User,
        objects: &Objects,
        query: Query,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, ApiError> {
        let at = self.served.iter().position(|served| {
            let row = served.resource;
            row.plural == objects.plural && row.group == objects.group && row.version == objects.version
        });
        let streams = objects.subresource.as_deref().filter(|_| objects.plural == "pods" && objects.group.is_empty());
        if let (Some(sub @ ("log" | "exec" | "attach")), Some(name)) = (streams, &objects.name) {
            let namespace = objects.namespace.as_deref().unwrap_or_default();
            return self.stream(sub, namespace, name, &query, request).await;
        }
        let watching = request.method() == Method::GET && objects.name.is_none() && query.flag("watch");
        let _permit = match watching {
            true => None,
            false => Some(self.in_flight.try_acquire().map_err(|_| ApiError::TooManyRequests)?),
        };
        let method = request.method().clone();
        let (parts, incoming) = request.into_parts();
        let body = if method == Method::GET { Bytes::new() } else { body::read(incoming).await? };
        let call = Call { user, headers: parts.headers, query, body };
        let Some(at) = at else {
            return match (method, self.review(objects, &call)) {
                (Method::POST, Some(answer)) => answer,
                (_, Some(_)) => Err(ApiError::MethodNotAllowed),
                (_, None) => Err(ApiError::NoSuchPath),
            };
        };
        self.verb(at, method, objects, &call).await
    }

    async fn verb(
        self: &Arc<Self>,
        at: usize,
        method: Method,
        objects: &Objects,
        call: &Call,
    ) -> Result<Response<Body>, ApiError> {
        let served = &self.served[at];
        let resource = served.resource;
        let namespace = objects.namespace.as_deref();
        if namespace.is_some() && !resource.namespaced {
            return Err(ApiError::NoSuchPath);
        }
        let Some(name) = objects.name.as_deref() else {
            return match method {
                Method::GET if call.query.flag("watch") => self.watch(at, namespace, call).await,
                Method::GET => self.list(served, namespace, call).await,
                Method::POST => self.create(served, namespace, call).await,
                Method::DELETE => self.delete_many(served, namespace, call).await,
                _ => Err(ApiError::MethodNotAllowed),
            };
        };
        if resource.namespaced && namespace.is_none() {
            return Err(ApiError::NoSuchPath);
        }
        let part = match objects.subresource.as_deref() {
            None => Part::Main,
            Some("status") if resource.status => Part::Status,
            Some(sub) => return self.sub(at, sub, method, objects, name, call).await,
        };
        match method {
            Method::GET => self.get(served, namespace.unwrap_or_default(), name, call).await,
            Method::PUT => self.replace(served, namespace, name, part, call).await,
            Method::PATCH => self.patch(served, namespace, name, part, call).await,
            Method::DELETE if part == Part::Main => {
                self.delete(served, namespace.unwrap_or_default(), name, call).await
            }
            _ => Err(ApiError::MethodNotAllowed),
        }
    }

    async fn sub(
        self: &Arc<Self>,
        at: usize,
        sub: &str,
        method: Method,
        objects: &Objects,
        name: &str,
        call: &Call,
    ) -> Result<Response<Body>, ApiError> {
        let served = &self.served[at];
        let sub = served.resource.subs.iter().find(|known| known.name() == sub).ok_or(ApiError::NoSuchPath)?;
        match (sub, method) {
            (Sub::Binding, Method::POST) => {
                self.bind(served, objects.namespace.as_deref().unwrap_or_default(), name, call).await
            }
            (Sub::Finalize, Method::PUT) => self.finalize(served, name, call).await,
            _ => Err(ApiError::MethodNotAllowed),
        }
    }
}
