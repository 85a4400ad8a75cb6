//! Labels as people write them: `KEY=VALUE` sets one, `KEY-` takes one away. What a label may be is the metadata service's
//! to say.

use std::collections::BTreeMap;

/// What becomes of one label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Set(String, String),
    Remove(String),
}

/// `KEY=VALUE`.
///
/// # Errors
/// A sentence that shows what would be right.
pub(crate) fn pair(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or_else(|| format!("`{text}` is no label; write KEY=VALUE"))?;
    Ok((key.to_owned(), value.to_owned()))
}

/// `KEY=VALUE` or `KEY-`.
///
/// # Errors
/// A sentence that shows what would be right.
pub(crate) fn change(text: &str) -> Result<Change, String> {
    match (pair(text), text.strip_suffix('-')) {
        (Ok((key, value)), _) => Ok(Change::Set(key, value)),
        (Err(_), Some(key)) if !key.is_empty() => Ok(Change::Remove(key.to_owned())),
        _ => Err(format!("`{text}` changes no label; write KEY=VALUE to set one, KEY- to take one away")),
    }
}

/// In one line.
pub(crate) fn shown(labels: &BTreeMap<String, String>) -> String {
    labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_set_and_taken_away() {
        let set = |key: &str, value: &str| Ok(Change::Set(key.into(), value.into()));
        assert_eq!(change("tier=gold"), set("tier", "gold"));
        assert_eq!(change("tier="), set("tier", ""));
        assert_eq!(change("a=b=c-"), set("a", "b=c-"), "a value may hold anything");
        assert_eq!(change("tier-"), Ok(Change::Remove("tier".into())));
        for wrong in ["tier", "", "-"] {
            assert!(change(wrong).unwrap_err().contains("KEY-"), "{wrong}");
        }
        assert!(pair("tier").unwrap_err().contains("KEY=VALUE"));
    }
}
