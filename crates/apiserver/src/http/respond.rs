//! Answers: JSON, errors as `Status`, streams.

use crate::error::ApiError;
use bytes::Bytes;
use futures::Stream;
use futures::StreamExt;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use serde_json::Value;

/// Any error while a body is being sent.
pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;
/// Any answer's body.
pub(crate) type Body = UnsyncBoxBody<Bytes, BoxError>;

/// A body known whole.
pub(crate) fn whole(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

fn of(code: u16, content_type: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(code).expect("codes are written in this crate");
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response
}

/// JSON text as it is.
pub(crate) fn json_text(code: u16, text: impl Into<Bytes>) -> Response<Body> {
    of(code, "application/json", whole(text))
}

/// A JSON value.
pub(crate) fn json(code: u16, value: &Value) -> Response<Body> {
    json_text(code, value.to_string())
}

/// JSON under a content type of its own.
pub(crate) fn json_as(content_type: &'static str, value: &Value) -> Response<Body> {
    of(200, content_type, whole(value.to_string()))
}

/// Plain text.
pub(crate) fn text(code: u16, text: impl Into<Bytes>) -> Response<Body> {
    of(code, "text/plain; charset=utf-8", whole(text))
}

/// A stream of JSON lines.
pub(crate) fn json_stream(stream: impl Stream<Item = Bytes> + Send + 'static) -> Response<Body> {
    let frames = stream.map(|bytes| Ok::<_, BoxError>(Frame::data(bytes)));
    of(200, "application/json", BodyExt::boxed_unsync(StreamBody::new(frames)))
}

/// The `Status` of a failure.
pub(crate) fn failure(error: &ApiError) -> Response<Body> {
    let mut response = json(error.code(), &error.to_status());
    if matches!(error.code(), 429 | 503) {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

/// Adds `Warning` headers, which kubectl prints.
pub(crate) fn warn(response: &mut Response<Body>, warnings: &[String]) {
    for warning in warnings {
        let escaped = warning.replace('\\', "\\\\").replace('"', "\\\"");
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{escaped}\"")) {
            response.headers_mut().append(header::WARNING, value);
        }
    }
}
