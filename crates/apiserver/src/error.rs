//! Every way a request can fail, and the `Status` object that says so in Kubernetes' own words.
//!
//! Clients decide by `reason` and `details`, people read `message`: both are worded here and nowhere else.

use serde_json::{Value, json};

/// One thing wrong with an object, at one place in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cause {
    /// `FieldValueInvalid`, `FieldValueRequired`, ...
    pub(crate) reason: &'static str,
    /// Without the field's path.
    pub(crate) message: String,
    /// The path, `spec.containers[0].name`.
    pub(crate) field: String,
}

impl Cause {
    /// A value that breaks a rule. `value` is shown as JSON.
    pub(crate) fn invalid(field: impl Into<String>, value: &Value, why: impl AsRef<str>) -> Cause {
        let shown = shown(value);
        Cause {
            reason: "FieldValueInvalid",
            message: format!("Invalid value: {shown}: {}", why.as_ref()),
            field: field.into(),
        }
    }

    /// A value that must be there.
    pub(crate) fn required(field: impl Into<String>, why: impl AsRef<str>) -> Cause {
        let why = why.as_ref();
        let message = if why.is_empty() { "Required value".to_owned() } else { format!("Required value: {why}") };
        Cause { reason: "FieldValueRequired", message, field: field.into() }
    }

    /// A value that must not be there, or must not change.
    pub(crate) fn forbidden(field: impl Into<String>, why: impl AsRef<str>) -> Cause {
        Cause { reason: "FieldValueForbidden", message: format!("Forbidden: {}", why.as_ref()), field: field.into() }
    }

    /// A value outside a closed set.
    pub(crate) fn not_supported(field: impl Into<String>, value: &Value, supported: &[&str]) -> Cause {
        let list: Vec<String> = supported.iter().map(|s| format!("{s:?}")).collect();
        let message = format!("Unsupported value: {}: supported values: {}", shown(value), list.join(", "));
        Cause { reason: "FieldValueNotSupported", message, field: field.into() }
    }

    /// A value that occurs twice.
    pub(crate) fn duplicate(field: impl Into<String>, value: &Value) -> Cause {
        Cause {
            reason: "FieldValueDuplicate",
            message: format!("Duplicate value: {}", shown(value)),
            field: field.into(),
        }
    }

    /// A value that names something absent.
    pub(crate) fn not_found(field: impl Into<String>, value: &Value) -> Cause {
        Cause { reason: "FieldValueNotFound", message: format!("Not found: {}", shown(value)), field: field.into() }
    }

    fn to_value(&self) -> Value {
        json!({"reason": self.reason, "message": self.message, "field": self.field})
    }
}

fn shown(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        other => other.to_string(),
    }
}

/// Which resource and object a failure is about.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Subject {
    /// API group, empty for core.
    pub(crate) group: String,
    /// The plural, or the kind where Kubernetes says the kind.
    pub(crate) kind: String,
    /// The object's name; may be empty.
    pub(crate) name: String,
}

impl Subject {
    fn qualified(&self) -> String {
        if self.group.is_empty() { self.kind.clone() } else { format!("{}.{}", self.kind, self.group) }
    }
}

/// Why a request failed.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub(crate) enum ApiError {
    /// The body or a parameter makes no sense.
    #[error("{0}")]
    BadRequest(String),
    /// No valid client certificate.
    #[error("Unauthorized")]
    Unauthorized,
    /// The request is understood and refused.
    #[error("{} {:?} is forbidden: {why}", subject.qualified(), subject.name)]
    Forbidden {
        /// The object.
        subject: Subject,
        /// Why, for a person.
        why: String,
    },
    /// No such object.
    #[error("{} {:?} not found", subject.qualified(), subject.name)]
    NotFound {
        /// The object.
        subject: Subject,
    },
    /// No such path.
    #[error("the server could not find the requested resource")]
    NoSuchPath,
    /// The path is there and does not do this.
    #[error("the server does not allow this method on the requested resource")]
    MethodNotAllowed,
    /// The name is taken.
    #[error("{} {:?} already exists", subject.qualified(), subject.name)]
    AlreadyExists {
        /// The object.
        subject: Subject,
    },
    /// Somebody else changed it, or a precondition fails.
    #[error("Operation cannot be fulfilled on {} {:?}: {why}", subject.qualified(), subject.name)]
    Conflict {
        /// The object.
        subject: Subject,
        /// Why, for a person.
        why: String,
    },
    /// Server-side apply would take fields that others own.
    #[error("Apply failed with {} conflict{}: {}", causes.len(), if causes.len() == 1 { "" } else { "s" }, conflict_list(causes))]
    ApplyConflict {
        /// One cause per field and owner.
        causes: Vec<Cause>,
    },
    /// The object breaks rules.
    #[error("{} {:?} is invalid: {}", subject.qualified(), subject.name, cause_list(causes))]
    Invalid {
        /// The object; `kind` is the kind here.
        subject: Subject,
        /// What is wrong, each with its path.
        causes: Vec<Cause>,
    },
    /// The history or continuation asked for is gone.
    #[error("{0}")]
    Expired(String),
    /// A body in an encoding that is not understood here.
    #[error("{0}")]
    UnsupportedMediaType(String),
    /// A body beyond the limit.
    #[error("Request entity too large: limit is {limit}")]
    TooLarge {
        /// Bytes.
        limit: usize,
    },
    /// More requests at once than the limit.
    #[error("too many requests in flight, please try again later")]
    TooManyRequests,
    /// The store did not answer in time, or not at all.
    #[error("{0}")]
    Unavailable(String),
    /// The revision asked for is not there yet.
    #[error("Too large resource version: {asked}, current: {current}")]
    TooLargeResourceVersion {
        /// By the client.
        asked: i64,
        /// The store's.
        current: i64,
    },
    /// What was read back makes no sense.
    #[error("{0}")]
    Internal(String),
}

fn cause_list(causes: &[Cause]) -> String {
    let shown: Vec<String> =
        causes
            .iter()
            .map(|cause| {
                if cause.field.is_empty() {
                    cause.message.clone()
                } else {
                    format!("{}: {}", cause.field, cause.message)
                }
            })
            .collect();
    match shown.as_slice() {
        [one] => one.clone(),
        many => format!("[{}]", many.join(", ")),
    }
}

fn conflict_list(causes: &[Cause]) -> String {
    match causes {
        [one] => format!("{}: {}", one.message, one.field),
        many => {
            let mut by_owner: Vec<(&str, Vec<&str>)> = Vec::new();
            for cause in many {
                match by_owner.iter_mut().find(|(owner, _)| *owner == cause.message) {
                    Some((_, fields)) => fields.push(&cause.field),
                    None => by_owner.push((&cause.message, vec![&cause.field])),
                }
            }
            let blocks: Vec<String> =
                by_owner.iter().map(|(owner, fields)| format!("{owner}:\n- {}", fields.join("\n- "))).collect();
            blocks.join("\n")
        }
    }
}

impl ApiError {
    /// HTTP status code.
    pub(crate) fn code(&self) -> u16 {
        match self {
            ApiError::BadRequest(_) => 400,
            ApiError::Unauthorized => 401,
            ApiError::Forbidden { .. } => 403,
            ApiError::NotFound { .. } | ApiError::NoSuchPath => 404,
            ApiError::MethodNotAllowed => 405,
            ApiError::AlreadyExists { .. } | ApiError::Conflict { .. } | ApiError::ApplyConflict { .. } => 409,
            ApiError::Expired(_) => 410,
            ApiError::TooLarge { .. } => 413,
            ApiError::UnsupportedMediaType(_) => 415,
            ApiError::Invalid { .. } => 422,
            ApiError::TooManyRequests => 429,
            ApiError::Internal(_) => 500,
            ApiError::Unavailable(_) => 503,
            ApiError::TooLargeResourceVersion { .. } => 504,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            ApiError::BadRequest(_) => "BadRequest",
            ApiError::Unauthorized => "Unauthorized",
            ApiError::Forbidden { .. } => "Forbidden",
            ApiError::NotFound { .. } | ApiError::NoSuchPath => "NotFound",
            ApiError::MethodNotAllowed => "MethodNotAllowed",
            ApiError::AlreadyExists { .. } => "AlreadyExists",
            ApiError::Conflict { .. } | ApiError::ApplyConflict { .. } => "Conflict",
            ApiError::Expired(_) => "Expired",
            ApiError::TooLarge { .. } => "RequestEntityTooLarge",
            ApiError::UnsupportedMediaType(_) => "UnsupportedMediaType",
            ApiError::Invalid { .. } => "Invalid",
            ApiError::TooManyRequests => "TooManyRequests",
            ApiError::Internal(_) => "InternalError",
            ApiError::Unavailable(_) => "ServiceUnavailable",
            ApiError::TooLargeResourceVersion { .. } => "Timeout",
        }
    }

    /// The `Status` object that the client gets.
    pub(crate) fn to_status(&self) -> Value {
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.to_string(), "reason": self.reason(),
        });
        let details = self.details();
        if details.as_object().is_some_and(|details| !details.is_empty()) {
            status["details"] = details;
        }
        status["code"] = json!(self.code());
        status
    }

    fn details(&self) -> Value {
        match self {
            ApiError::Forbidden { subject, .. }
            | ApiError::NotFound { subject }
            | ApiError::AlreadyExists { subject }
            | ApiError::Conflict { subject, .. } => about(subject),
            ApiError::Invalid { subject, causes } => {
                let mut details = about(subject);
                details["causes"] = causes.iter().map(Cause::to_value).collect();
                details
            }
            ApiError::ApplyConflict { causes } => {
                json!({"causes": causes.iter().map(Cause::to_value).collect::<Vec<_>>()})
            }
            ApiError::TooLargeResourceVersion { .. } => json!({
                "causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}],
                "retryAfterSeconds": 1,
            }),
            ApiError::TooManyRequests | ApiError::Unavailable(_) => json!({"retryAfterSeconds": 1}),
            _ => json!({}),
        }
    }
}

fn about(subject: &Subject) -> Value {
    let mut details = json!({});
    for (key, value) in [("name", &subject.name), ("group", &subject.group), ("kind", &subject.kind)] {
        if !value.is_empty() {
            details[key] = json!(value);
        }
    }
    details
}

#[cfg(test)]
mod tests {
    use super::{ApiError, Cause, Subject};
    use serde_json::json;

    fn subject(group: &str, kind: &str, name: &str) -> Subject {
        Subject { group: group.into(), kind: kind.into(), name: name.into() }
    }

    #[test]
    fn worded_as_clients_expect() {
        let error = ApiError::NotFound { subject: subject("storage.k8s.io", "storageclasses", "fast") };
        assert_eq!(
            error.to_status(),
            json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                "message": "storageclasses.storage.k8s.io \"fast\" not found", "reason": "NotFound",
                "details": {"name": "fast", "group": "storage.k8s.io", "kind": "storageclasses"}, "code": 404})
        );
        let one = ApiError::Invalid {
            subject: subject("", "Pod", "a"),
            causes: vec![Cause::required("spec.containers", "")],
        };
        assert_eq!(one.to_string(), "Pod \"a\" is invalid: spec.containers: Required value");
        let two = ApiError::Invalid {
            subject: subject("", "Pod", "a"),
            causes: vec![
                Cause::invalid("metadata.name", &json!("A"), "bad"),
                Cause::not_supported("spec.restartPolicy", &json!("No"), &["Always", "Never"]),
            ],
        };
        assert_eq!(
            two.to_string(),
            "Pod \"a\" is invalid: [metadata.name: Invalid value: \"A\": bad, spec.restartPolicy: Unsupported value: \"No\": supported values: \"Always\", \"Never\"]"
        );
    }
}
