//! Request bodies: how much is read, and in which encodings.

use super::target::Query;
use crate::decode;
use crate::error::ApiError;
use crate::pb;
use crate::schema::Message;
use bytes::Bytes;
use http::HeaderMap;
use http_body_util::{BodyExt, Limited};
use serde_json::Value;

/// As much as an etcd transaction takes, with room for JSON around it.
const LIMIT: usize = 3 << 20;

/// Reads a body whole.
pub(crate) async fn read(body: hyper::body::Incoming) -> Result<Bytes, ApiError> {
    match Limited::new(body, LIMIT).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => Err(ApiError::TooLarge { limit: LIMIT }),
        Err(error) => Err(ApiError::BadRequest(format!("the body could not be read: {error}"))),
    }
}

/// The media type of a body, without parameters.
pub(crate) fn media_type(headers: &HeaderMap) -> &str {
    let value = headers.get(http::header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim()
}

/// A body as JSON, whatever it came in.
pub(crate) fn parse(media_type: &str, body: &[u8]) -> Result<Value, ApiError> {
    match media_type {
        "" | "application/json" | "*/*" => serde_json::from_slice(body).map_err(|error| {
            ApiError::BadRequest(format!("the object provided is unrecognized (must be of type Object): {error}"))
        }),
        "application/yaml" | "application/apply-patch+yaml" => serde_json::from_slice(body)
            .or_else(|_| serde_yaml_ng::from_slice(body))
            .map_err(|error| ApiError::BadRequest(format!("error decoding YAML: {error}"))),
        "application/vnd.kubernetes.protobuf" => pb::to_json(body).map_err(|error| match error {
            pb::PbError::UnknownKind(_) => ApiError::UnsupportedMediaType(error.to_string()),
            _ => ApiError::BadRequest(error.to_string()),
        }),
        other => Err(ApiError::UnsupportedMediaType(format!(
            "the body of the request was in an unknown format - accepted media types include: application/json, application/yaml, application/vnd.kubernetes.protobuf; got {other:?}"
        ))),
    }
}

/// Brings an object into the shape of its kind. Returns warnings, or fails, as `fieldValidation` asks.
pub(crate) fn conform(
    message: &Message,
    api_version: &str,
    object: &mut Value,
    query: &Query,
) -> Result<Vec<String>, ApiError> {
    let kind = message.name;
    let version = api_version.rsplit('/').next().unwrap_or_default();
    let refused = |why: String| {
        ApiError::BadRequest(format!("{kind} in version {version:?} cannot be handled as a {kind}: {why}"))
    };
    let unknown = decode::conform(message, object).map_err(refused)?;
    match query.one("fieldValidation").unwrap_or("Warn") {
        "Strict" if !unknown.is_empty() => Err(refused(format!("strict decoding error: {}", unknown.join(", ")))),
        "Warn" => Ok(unknown),
        "Strict" | "Ignore" => Ok(Vec::new()),
        other => Err(ApiError::BadRequest(format!(
            "fieldValidation parameter: Unsupported value: {other:?}: supported values: \"Ignore\", \"Strict\", \"Warn\""
        ))),
    }
}
