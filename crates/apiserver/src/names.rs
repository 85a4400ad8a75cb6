//! What a name, label or key may be made of, refused in the words that Kubernetes' users know.

/// RFC 1123 label, as in namespaces and containers.
pub(crate) const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters \
    or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used \
    for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
/// RFC 1123 subdomain, as in most object names.
pub(crate) const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric \
    characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex \
    used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const LABEL_VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', \
    '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or \
    '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
const NAME_PART: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and \
    end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation \
    is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const CONFIG_KEY: &str = "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. \
    'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')";
const ENV_NAME: &str = "a valid environment variable name must consist of alphabetic characters, digits, '_', \
    '-', or '.', and must not start with a digit (e.g. 'my.env-name',  or 'MY_ENV.NAME',  or 'MyEnvName1', \
    regex used for validation is '[-._a-zA-Z][-._a-zA-Z0-9]*')";

type Verdict = Result<(), String>;

fn rule(holds: bool, why: &str) -> Verdict {
    if holds { Ok(()) } else { Err(why.to_owned()) }
}

fn length(text: &str, limit: usize) -> Verdict {
    if text.len() <= limit { Ok(()) } else { Err(format!("must be no more than {limit} characters")) }
}

fn is_label(text: &str) -> bool {
    let bytes = text.as_bytes();
    let alphanumeric = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    bytes.first().is_some_and(alphanumeric)
        && bytes.last().is_some_and(alphanumeric)
        && bytes.iter().all(|b| alphanumeric(b) || *b == b'-')
}

fn is_name_part(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.first().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.last().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

/// An RFC 1123 label of at most 63 characters.
pub(crate) fn label(text: &str) -> Verdict {
    length(text, 63)?;
    rule(is_label(text), LABEL)
}

/// An RFC 1123 subdomain of at most 253 characters.
pub(crate) fn subdomain(text: &str) -> Verdict {
    length(text, 253)?;
    rule(text.split('.').all(is_label), SUBDOMAIN)
}

/// The value of a label.
pub(crate) fn label_value(text: &str) -> Verdict {
    length(text, 63)?;
    rule(text.is_empty() || is_name_part(text), LABEL_VALUE)
}

/// `prefix/name` or `name`: the key of a label or an annotation, a finalizer, a resource.
pub(crate) fn qualified(text: &str) -> Verdict {
    let name = match text.split_once('/') {
        None => text,
        Some((_, rest)) if rest.contains('/') => {
            return Err(format!(
                "a qualified name {} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')",
                &NAME_PART["name part ".len()..]
            ));
        }
        Some(("", _)) => return Err("prefix part must be non-empty".to_owned()),
        Some((prefix, name)) => {
            subdomain(prefix).map_err(|why| format!("prefix part {why}"))?;
            name
        }
    };
    if name.is_empty() {
        return Err("name part must be non-empty".to_owned());
    }
    length(name, 63).map_err(|why| format!("name part {why}"))?;
    rule(is_name_part(name), NAME_PART)
}

/// A key of a ConfigMap or a Secret.
pub(crate) fn config_key(text: &str) -> Verdict {
    length(text, 253)?;
    if text == "." || text == ".." {
        return Err(format!("must not be '{text}'"));
    }
    rule(
        !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.')),
        CONFIG_KEY,
    )
}

/// The name of an environment variable.
pub(crate) fn env_name(text: &str) -> Verdict {
    let first = text.bytes().next().is_some_and(|b| !b.is_ascii_digit());
    rule(first && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.')), ENV_NAME)
}

/// The name of a CSI driver.
pub(crate) fn csi_driver(text: &str) -> Verdict {
    length(text, 63)?;
    subdomain(&text.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::{config_key, env_name, label, label_value, qualified, subdomain};

    #[test]
    fn accepted_and_refused() {
        for ok in ["a", "a-b", "0", "a.b-c.d"] {
            assert_eq!(subdomain(ok), Ok(()), "{ok}");
        }
        for bad in ["", "A", "a_b", "-a", "a-", "a..b", "#%123-invalid-name", &"a".repeat(254)] {
            assert!(subdomain(bad).is_err(), "{bad}");
        }
        assert!(label("a.b").is_err() && label(&"a".repeat(63)).is_ok() && label(&"a".repeat(64)).is_err());
        assert!(label_value("").is_ok() && label_value("My_v.1").is_ok() && label_value("-x").is_err());
        assert!(qualified("example.com/My.name").is_ok() && qualified("a/b/c").is_err() && qualified("/x").is_err());
        assert!(config_key(".dockerconfigjson").is_ok() && config_key("a b").is_err() && config_key("..").is_err());
        assert!(env_name("A_B").is_ok() && env_name("1A").is_err() && env_name("").is_err());
    }
}
