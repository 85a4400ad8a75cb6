//! Questions about oneself: who am I, and may I. Whoever holds a certificate of the cluster's CA may do everything.

use super::{Api, Call};
use crate::error::ApiError;
use crate::http::body;
use crate::http::respond::{self, Body};
use crate::http::target::Objects;
use crate::schema;
use http::Response;
use serde_json::{Value, json};

/// A review kind: group, plural, kind.
pub(super) const REVIEWS: [(&str, &str, &str); 3] = [
    ("authentication.k8s.io", "selfsubjectreviews", "SelfSubjectReview"),
    ("authorization.k8s.io", "selfsubjectaccessreviews", "SelfSubjectAccessReview"),
    ("authorization.k8s.io", "selfsubjectrulesreviews", "SelfSubjectRulesReview"),
];

impl Api {
    /// POST of a review, if the path names one.
    pub(super) fn review(&self, objects: &Objects, call: &Call) -> Option<Result<Response<Body>, ApiError>> {
        let (group, _, kind) = REVIEWS.iter().find(|(group, plural, _)| {
            *group == objects.group && *plural == objects.plural && objects.version == "v1" && objects.name.is_none()
        })?;
        Some(answer(group, kind, call))
    }
}

fn answer(group: &str, kind: &str, call: &Call) -> Result<Response<Body>, ApiError> {
    let api_version = format!("{group}/v1");
    let mut review = body::parse(call.media_type(), &call.body)?;
    let message = schema::message(kind).expect("the table has the reviews");
    body::conform(message, &api_version, &mut review, &call.query)?;
    review["apiVersion"] = json!(api_version);
    review["kind"] = json!(kind);
    review["status"] = status(kind, call);
    Ok(respond::json(201, &review))
}

fn status(kind: &str, call: &Call) -> Value {
    match kind {
        "SelfSubjectReview" => {
            let mut groups = call.user.groups.clone();
            groups.push("system:authenticated".to_owned());
            json!({"userInfo": {"username": call.user.name, "groups": groups}})
        }
        "SelfSubjectAccessReview" => {
            json!({"allowed": true, "reason": "the client certificate is one of the cluster's administrators"})
        }
        _ => json!({
            "resourceRules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}],
            "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}],
            "incomplete": false,
        }),
    }
}
