//! Label and field selectors, parsed from query parameters.
//!
//! An object's labels and selectable fields are drawn out once when it is stored in memory, so that matching never
//! parses an object.

use crate::names;
use std::collections::BTreeMap;

/// One condition of a label selector.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Requirement {
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
    Exists(String),
    Absent(String),
    Greater(String, i64),
    Less(String, i64),
}

/// A parsed label selector; all conditions must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Labels(Vec<Requirement>);

impl Labels {
    /// Reads `a=b,c!=d,e in (x,y),f notin (z),g,!h`. The error says what is wrong.
    pub(crate) fn parse(text: &str) -> Result<Labels, String> {
        split_outside_parentheses(text)
            .into_iter()
            .map(str::trim)
            .filter(|part| !part.is_empty())
            .map(requirement)
            .collect::<Result<Vec<_>, _>>()
            .map(Labels)
    }

    /// Whether every object matches.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether an object with `labels` matches.
    pub(crate) fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.0.iter().all(|requirement| match requirement {
            Requirement::In(key, values) => labels.get(key).is_some_and(|have| values.contains(have)),
            Requirement::NotIn(key, values) => labels.get(key).is_none_or(|have| !values.contains(have)),
            Requirement::Exists(key) => labels.contains_key(key),
            Requirement::Absent(key) => !labels.contains_key(key),
            Requirement::Greater(key, than) => number(labels, key).is_some_and(|have| have > *than),
            Requirement::Less(key, than) => number(labels, key).is_some_and(|have| have < *than),
        })
    }
}

fn number(labels: &BTreeMap<String, String>, key: &str) -> Option<i64> {
    labels.get(key)?.parse().ok()
}

fn split_outside_parentheses(text: &str) -> Vec<&str> {
    let (mut parts, mut start, mut depth) = (Vec::new(), 0, 0usize);
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

fn requirement(part: &str) -> Result<Requirement, String> {
    let parsed = if let Some(key) = part.strip_prefix('!') {
        Requirement::Absent(key.trim().to_owned())
    } else if let Some((key, value)) = part.split_once("!=") {
        Requirement::NotIn(key.trim().to_owned(), vec![value.trim().to_owned()])
    } else if let Some((key, value)) = part.split_once("==").or_else(|| part.split_once('=')) {
        Requirement::In(key.trim().to_owned(), vec![value.trim().to_owned()])
    } else if let Some((head, values)) = part.split_once('(') {
        let values = values
            .strip_suffix(')')
            .ok_or_else(|| format!("unable to parse requirement: found '{part}', expected: ')'"))?;
        let values = values.split(',').map(|value| value.trim().to_owned()).collect();
        let mut words = head.split_whitespace();
        let key = words.next().unwrap_or_default().to_owned();
        match words.next() {
            Some("in") => Requirement::In(key, values),
            Some("notin") => Requirement::NotIn(key, values),
            other => {
                return Err(format!(
                    "unable to parse requirement: found '{}', expected: in, notin, =, ==, !=, gt, lt",
                    other.unwrap_or_default()
                ));
            }
        }
    } else if let Some((key, value)) = part.split_once('>') {
        Requirement::Greater(key.trim().to_owned(), integer(value)?)
    } else if let Some((key, value)) = part.split_once('<') {
        Requirement::Less(key.trim().to_owned(), integer(value)?)
    } else {
        Requirement::Exists(part.to_owned())
    };
    let (key, values): (&str, &[String]) = match &parsed {
        Requirement::In(key, values) | Requirement::NotIn(key, values) => (key, values),
        Requirement::Exists(key) | Requirement::Absent(key) => (key, &[]),
        Requirement::Greater(key, _) | Requirement::Less(key, _) => (key, &[]),
    };
    names::qualified(key).map_err(|why| format!("key: Invalid value: {key:?}: {why}"))?;
    for value in values {
        names::label_value(value).map_err(|why| format!("values[0][{key}]: Invalid value: {value:?}: {why}"))?;
    }
    Ok(parsed)
}

fn integer(text: &str) -> Result<i64, String> {
    text.trim().parse().map_err(|_| format!("for 'Gt', 'Lt' operators, the value must be an integer: {text:?}"))
}

/// A parsed field selector: `(field, value, wanted)`; all must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Fields(Vec<(String, String, bool)>);

impl Fields {
    /// Reads `a=b,c!=d`.
    pub(crate) fn parse(text: &str) -> Result<Fields, String> {
        let mut terms = Vec::new();
        for part in text.split(',').filter(|part| !part.is_empty()) {
            let (key, value, wanted) = if let Some((key, value)) = part.split_once("!=") {
                (key, value, false)
            } else if let Some((key, value)) = part.split_once("==").or_else(|| part.split_once('=')) {
                (key, value, true)
            } else {
                return Err(format!("invalid selector: '{text}'; can't understand '{part}'"));
            };
            terms.push((key.to_owned(), value.to_owned(), wanted));
        }
        Ok(Fields(terms))
    }

    /// Whether every object matches.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The fields named.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(key, _, _)| key.as_str())
    }

    /// The value that `field` must have, if the selector fixes one.
    pub(crate) fn exact(&self, field: &str) -> Option<&str> {
        self.0.iter().find(|(key, _, wanted)| key == field && *wanted).map(|(_, value, _)| value.as_str())
    }

    /// Whether an object matches whose fields `lookup` finds; an absent field is empty.
    pub(crate) fn matches<'a>(&self, lookup: impl Fn(&str) -> &'a str) -> bool {
        self.0.iter().all(|(key, value, wanted)| (lookup(key) == value) == *wanted)
    }
}

#[cfg(test)]
mod tests {
    use super::{Fields, Labels};
    use std::collections::BTreeMap;

    fn matches(selector: &str, labels: &[(&str, &str)]) -> bool {
        let labels: BTreeMap<String, String> = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Labels::parse(selector).expect(selector).matches(&labels)
    }

    #[test]
    fn labels() {
        let web = [("app", "web"), ("tier", "front"), ("n", "5")];
        for (selector, expect) in [
            ("", true),
            ("app=web", true),
            ("app==web,tier=front", true),
            ("app!=web", false),
            ("zone!=a", true),
            ("app in (web, db)", true),
            ("app notin (web)", false),
            ("zone notin (a)", true),
            ("tier", true),
            ("!tier", false),
            ("!zone", true),
            ("zone", false),
            ("app in (db),tier", false),
            ("n>4", true),
            ("n<5", false),
            ("app=", false),
        ] {
            assert_eq!(matches(selector, &web), expect, "{selector}");
        }
        for bad in ["app in web", "a b=c", "app in (web", "=x", "app=a b"] {
            assert!(Labels::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn fields() {
        let selector = Fields::parse("metadata.name=a,status.phase!=Failed").expect("parses");
        assert_eq!(selector.exact("metadata.name"), Some("a"));
        assert_eq!(selector.exact("status.phase"), None);
        let lookup = |phase: &'static str| move |key: &str| if key == "metadata.name" { "a" } else { phase };
        assert!(selector.matches(lookup("Running")));
        assert!(!selector.matches(lookup("Failed")));
        assert!(Fields::parse("nonsense").is_err());
    }
}
