//! What must be known of other objects before a write is let through. The facts are gathered first, then the
//! decision is a pure function.

use crate::error::{ApiError, Subject};
use crate::object::{child, map, name, text};
use crate::quantity::Quantity;
use serde_json::{Value, json};

/// Which facts a kind's writes depend on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Gate {
    /// None.
    None,
    /// Storage classes: the default one on creation, the claim's own on expansion.
    Claim,
}

/// The facts.
#[derive(Debug, Default)]
pub(crate) struct Facts {
    /// Every storage class.
    pub(crate) classes: Vec<Value>,
}

const IS_DEFAULT: [&str; 2] =
    ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];

impl Gate {
    /// Whether a new object needs facts at all.
    pub(crate) fn looks_at_create(self, object: &Value) -> bool {
        self == Gate::Claim && class_of(object).is_none()
    }

    /// Lets a new object through, completing it.
    pub(crate) fn create(self, object: &mut Value, facts: &Facts) {
        if self.looks_at_create(object)
            && let Some(class) = default_class(&facts.classes)
        {
            let class = json!(name(class));
            child(object, "spec").insert("storageClassName".to_owned(), class);
        }
    }

    /// Whether a change needs facts at all.
    pub(crate) fn looks_at_update(self, new: &Value, old: &Value) -> bool {
        self == Gate::Claim && grows(new, old)
    }

    /// Lets a change through, or says why not.
    pub(crate) fn update(self, new: &Value, old: &Value, facts: &Facts) -> Result<(), ApiError> {
        if !self.looks_at_update(new, old) {
            return Ok(());
        }
        let wanted = class_of(old).unwrap_or_default();
        let class = facts.classes.iter().find(|class| name(class) == wanted);
        if class.is_some_and(|class| class["allowVolumeExpansion"] == true) {
            return Ok(());
        }
        let subject =
            Subject { group: String::new(), kind: "persistentvolumeclaims".to_owned(), name: name(old).to_owned() };
        let why = "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc \
            must support resize";
        Err(ApiError::Forbidden { subject, why: why.to_owned() })
    }
}

fn grows(new: &Value, old: &Value) -> bool {
    let size = |claim| Quantity::parse(text(claim, "/spec/resources/requests/storage"));
    size(new).zip(size(old)).is_some_and(|(new, old)| new > old)
}

fn class_of(claim: &Value) -> Option<&str> {
    let annotations = map(claim, "/metadata/annotations");
    let annotated = annotations.and_then(|all| all.get("volume.beta.kubernetes.io/storage-class"));
    annotated.or_else(|| claim.pointer("/spec/storageClassName")).and_then(Value::as_str)
}

/// Of several defaults the newest; of those made at once, the first by name.
fn default_class(classes: &[Value]) -> Option<&Value> {
    let is_default = |class: &&Value| {
        let annotations = map(class, "/metadata/annotations");
        IS_DEFAULT.iter().any(|key| annotations.and_then(|all| all.get(*key)).is_some_and(|value| value == "true"))
    };
    classes.iter().filter(is_default).max_by(|a, b| {
        let made = |class| text(class, "/metadata/creationTimestamp");
        made(a).cmp(made(b)).then_with(|| name(b).cmp(name(a)))
    })
}

#[cfg(test)]
mod tests {
    use super::{Facts, Gate};
    use serde_json::{Value, json};

    fn class(name: &str, made: &str, default: bool, grows: bool) -> Value {
        json!({"metadata": {"name": name, "creationTimestamp": made,
            "annotations": {"storageclass.kubernetes.io/is-default-class": default.to_string()}}, "allowVolumeExpansion": grows})
    }

    fn facts() -> Facts {
        Facts {
            classes: vec![
                class("old", "2026-01-01T00:00:00Z", true, false),
                class("new", "2026-02-01T00:00:00Z", true, true),
                class("other", "2026-03-01T00:00:00Z", false, false),
            ],
        }
    }

    #[test]
    fn the_newest_default_class_is_filled_in() {
        let mut claim = json!({"spec": {}});
        Gate::Claim.create(&mut claim, &facts());
        assert_eq!(claim["spec"]["storageClassName"], "new");
        let mut none = json!({"spec": {"storageClassName": ""}});
        Gate::Claim.create(&mut none, &facts());
        assert_eq!(none["spec"]["storageClassName"], "", "the empty class is a choice");
        let mut beta =
            json!({"metadata": {"annotations": {"volume.beta.kubernetes.io/storage-class": "x"}}, "spec": {}});
        Gate::Claim.create(&mut beta, &facts());
        assert!(beta["spec"].get("storageClassName").is_none());
    }

    #[test]
    fn only_classes_that_allow_it_expand() {
        let claim = |class: &str, size: &str| {
            json!({"metadata": {"name": "c"},
            "spec": {"storageClassName": class, "resources": {"requests": {"storage": size}}}})
        };
        let verdict =
            |class: &str, to: &str| Gate::Claim.update(&claim(class, to), &claim(class, "1Gi"), &facts()).is_ok();
        assert!(verdict("new", "2Gi"));
        assert!(!verdict("old", "2Gi") && !verdict("absent", "2Gi"));
        assert!(verdict("old", "1024Mi"), "the same size in other words");
    }
}
