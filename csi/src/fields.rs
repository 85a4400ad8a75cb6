//! The fields that many requests share.

use cairn_types::VolumeId;

use crate::error::CsiError;

/// The publish context's key under which the node learns how the volume was published.
pub(crate) const ATTACH_MODE: &str = "attachMode";

/// A new volume's name.
pub(crate) fn checked_name(name: &str) -> Result<&str, CsiError> {
    if name.len() > 128 {
        return Err(CsiError::LongName { start: name.chars().take(32).collect(), len: name.len() });
    }
    present("name", name)
}

/// A field that must be there.
pub(crate) fn present<'a>(field: &'static str, text: &'a str) -> Result<&'a str, CsiError> {
    if text.is_empty() { Err(CsiError::Missing(field)) } else { Ok(text) }
}

/// A snapshot's number, likewise.
pub(crate) fn counted(text: &str) -> Option<u64> {
    number(text).map(|VolumeId(number)| number)
}

/// A volume's number. Ids are what we gave out: decimal, without a sign or leading zeros.
pub(crate) fn number(text: &str) -> Option<VolumeId> {
    let number = text.parse::<u64>().ok()?;
    (number.to_string() == text).then_some(VolumeId(number))
}

/// The same, where the volume must exist.
pub(crate) fn known(text: &str) -> Result<VolumeId, CsiError> {
    number(text).ok_or_else(|| CsiError::NoVolume(text.chars().take(128).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ids_that_were_given_out_are_ids() {
        assert_eq!(number("7"), Some(VolumeId(7)));
        for text in ["", "07", "+7", "-7", "7 ", "x", "99999999999999999999999"] {
            assert_eq!(number(text), None, "{text}");
        }
    }
}
