//! What a request is about: its path, taken apart, and its query.

use percent::decode;

/// What a path names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    /// `/api`: the core group's versions.
    CoreVersions,
    /// `/apis`: the groups.
    Groups,
    /// `/apis/G`.
    Group(String),
    /// `/api/v1`, `/apis/G/V`.
    Resources { group: String, version: String },
    /// Objects.
    Objects(Objects),
    /// Anything else, as it is.
    Other(String),
}

/// A collection, one object, or a part of one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Objects {
    pub(crate) group: String,
    pub(crate) version: String,
    pub(crate) plural: String,
    pub(crate) namespace: Option<String>,
    pub(crate) name: Option<String>,
    pub(crate) subresource: Option<String>,
}

impl Target {
    /// Takes `path` apart.
    pub(crate) fn parse(path: &str) -> Target {
        let segments: Vec<String> = path.split('/').filter(|s| !s.is_empty()).map(decode).collect();
        let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
        match segments.as_slice() {
            ["api"] => Target::CoreVersions,
            ["apis"] => Target::Groups,
            ["apis", group] => Target::Group((*group).to_owned()),
            ["api", version, rest @ ..] => Target::within("", version, rest),
            ["apis", group, version, rest @ ..] => Target::within(group, version, rest),
            _ => Target::Other(path.to_owned()),
        }
    }

    fn within(group: &str, version: &str, rest: &[&str]) -> Target {
        let (namespace, rest) = match rest {
            // `namespaces/NAME` and its own subresources are about the namespace itself.
            ["namespaces", _] | ["namespaces", _, "status" | "finalize"] => (None, rest),
            ["namespaces", namespace, inside @ ..] => (Some((*namespace).to_owned()), inside),
            _ => (None, rest),
        };
        let objects = |plural: &str, name: Option<&str>, subresource: Option<&str>| {
            Target::Objects(Objects {
                group: group.to_owned(),
                version: version.to_owned(),
                plural: plural.to_owned(),
                namespace,
                name: name.map(str::to_owned),
                subresource: subresource.map(str::to_owned),
            })
        };
        match rest {
            [] => Target::Resources { group: group.to_owned(), version: version.to_owned() },
            [plural] => objects(plural, None, None),
            [plural, name] => objects(plural, Some(name), None),
            [plural, name, subresource] => objects(plural, Some(name), Some(subresource)),
            _ => Target::Other(rest.join("/")),
        }
    }
}

/// The query's parameters, in order.
#[derive(Debug, Clone, Default)]
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    /// Takes the text after `?` apart.
    pub(crate) fn parse(text: &str) -> Query {
        let pair = |part: &str| {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            (decode(&key.replace('+', " ")), decode(&value.replace('+', " ")))
        };
        Query(text.split('&').filter(|part| !part.is_empty()).map(pair).collect())
    }

    /// The first value of `name`; an empty one counts as none.
    pub(crate) fn one(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str()).filter(|value| !value.is_empty())
    }

    /// Whether `name` says true.
    pub(crate) fn flag(&self, name: &str) -> bool {
        matches!(self.one(name), Some("true" | "1" | "True" | "t"))
    }

    /// Every value of `name`.
    pub(crate) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

mod percent {
    //! `%XX`.

    /// Decodes what can be decoded and leaves the rest.
    pub(super) fn decode(text: &str) -> String {
        let bytes = text.as_bytes();
        let mut out = Vec::with_capacity(bytes.len());
        let mut at = 0;
        while at < bytes.len() {
            let hex = bytes.get(at + 1..at + 3).filter(|_| bytes[at] == b'%');
            let byte =
                hex.and_then(|hex| std::str::from_utf8(hex).ok()).and_then(|hex| u8::from_str_radix(hex, 16).ok());
            out.push(byte.unwrap_or(bytes[at]));
            at += if byte.is_some() { 3 } else { 1 };
        }
        String::from_utf8_lossy(&out).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::{Objects, Query, Target};

    fn objects(group: &str, plural: &str, rest: [Option<&str>; 3]) -> Target {
        let [namespace, name, subresource] = rest.map(|part| part.map(str::to_owned));
        Target::Objects(Objects {
            group: group.into(),
            version: "v1".into(),
            plural: plural.into(),
            namespace,
            name,
            subresource,
        })
    }

    #[test]
    fn paths() {
        for (path, expect) in [
            ("/api", Target::CoreVersions),
            ("/apis/", Target::Groups),
            ("/api/v1", Target::Resources { group: String::new(), version: "v1".into() }),
            ("/api/v1/pods", objects("", "pods", [None, None, None])),
            ("/api/v1/namespaces", objects("", "namespaces", [None, None, None])),
            ("/api/v1/namespaces/a", objects("", "namespaces", [None, Some("a"), None])),
            ("/api/v1/namespaces/a/finalize", objects("", "namespaces", [None, Some("a"), Some("finalize")])),
            ("/api/v1/namespaces/a/pods/p/log", objects("", "pods", [Some("a"), Some("p"), Some("log")])),
            (
                "/apis/storage.k8s.io/v1/storageclasses/x%20y",
                objects("storage.k8s.io", "storageclasses", [None, Some("x y"), None]),
            ),
            ("/healthz", Target::Other("/healthz".into())),
        ] {
            assert_eq!(Target::parse(path), expect, "{path}");
        }
    }

    #[test]
    fn queries() {
        let query = Query::parse("command=a&command=b%20c&watch=1&x=&labelSelector=app%3Dweb%2Ctier+in+(a)");
        assert_eq!(query.all("command").collect::<Vec<_>>(), ["a", "b c"]);
        assert!(query.flag("watch") && !query.flag("x"));
        assert_eq!(query.one("labelSelector"), Some("app=web,tier in (a)"));
        assert_eq!(query.one("x"), None);
    }
}
