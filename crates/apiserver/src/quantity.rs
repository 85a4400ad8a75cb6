//! Quantities: `500m`, `1.5Gi`, `2e3`. Parsed exactly, compared exactly, written in the canonical form, so that two
//! spellings of one amount are one object.

use std::cmp::Ordering;
use std::fmt;

/// The refusal of Kubernetes for text that is no quantity.
pub(crate) const SYNTAX: &str =
    "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'";

/// In which family of suffixes a quantity was written, and so is written again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Binary,
    Decimal,
    Exponent,
}

/// An exact amount in nanos.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Quantity {
    nanos: i128,
    format: Format,
}

const NANO: i128 = 1_000_000_000;
/// Kubernetes keeps quantities below 2^63 units.
const LIMIT: i128 = (i64::MAX as i128) * NANO;
const BINARY: [(&str, i128); 6] =
    [("Ei", 1 << 60), ("Pi", 1 << 50), ("Ti", 1 << 40), ("Gi", 1 << 30), ("Mi", 1 << 20), ("Ki", 1 << 10)];
const DECIMAL: [(&str, i32); 10] =
    [("E", 18), ("P", 15), ("T", 12), ("G", 9), ("M", 6), ("k", 3), ("", 0), ("m", -3), ("u", -6), ("n", -9)];

impl Quantity {
    /// Reads a quantity. Digits beyond nanos are rounded up, amounts beyond 2^63 are capped, as Kubernetes does.
    pub(crate) fn parse(text: &str) -> Option<Quantity> {
        let (negative, rest) = match text.as_bytes().first()? {
            b'-' => (true, &text[1..]),
            b'+' => (false, &text[1..]),
            _ => (false, text),
        };
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, suffix) = rest.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') || number.len() > 40 {
            return None;
        }
        let (format, multiplier, exponent) = suffix_value(suffix)?;
        let digits: i128 = format!("{whole}{fraction}").parse().ok()?;
        let nanos = scale(digits.checked_mul(multiplier)?, exponent + 9 - fraction.len() as i32)?.min(LIMIT);
        Some(Quantity { nanos: if negative { -nanos } else { nanos }, format })
    }

    /// Whether the amount is above zero.
    pub(crate) fn is_positive(&self) -> bool {
        self.nanos > 0
    }

    /// Whether the amount is below zero.
    pub(crate) fn is_negative(&self) -> bool {
        self.nanos < 0
    }
}

fn suffix_value(suffix: &str) -> Option<(Format, i128, i32)> {
    if let Some((_, power)) = BINARY.iter().find(|(name, _)| *name == suffix) {
        return Some((Format::Binary, *power, 0));
    }
    if let Some((_, exponent)) = DECIMAL.iter().find(|(name, _)| *name == suffix) {
        return Some((Format::Decimal, 1, *exponent));
    }
    let exponent = suffix.strip_prefix(['e', 'E'])?.parse::<i32>().ok()?;
    (exponent.abs() <= 36).then_some((Format::Exponent, 1, exponent))
}

/// `value * 10^exponent`, rounded up where it does not fit, capped where it overflows.
fn scale(value: i128, exponent: i32) -> Option<i128> {
    if exponent >= 0 {
        let factor = 10i128.checked_pow(exponent.unsigned_abs());
        return Some(factor.and_then(|factor| value.checked_mul(factor)).unwrap_or(if value == 0 { 0 } else { LIMIT }));
    }
    match 10i128.checked_pow(exponent.unsigned_abs()) {
        Some(factor) => Some(value / factor + i128::from(value % factor != 0)),
        None => Some(i128::from(value != 0)),
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

impl fmt::Display for Quantity {
    /// The canonical form: no fraction, the largest suffix that keeps it exact.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        let (sign, size) = (if self.nanos < 0 { "-" } else { "" }, self.nanos.abs());
        if self.format == Format::Binary && size % NANO == 0 && size / NANO >= 1024 {
            let units = size / NANO;
            if let Some((name, power)) = BINARY.iter().find(|(_, power)| units % power == 0) {
                return write!(f, "{sign}{}{name}", units / power);
            }
            return write!(f, "{sign}{units}");
        }
        let exponents: &mut dyn Iterator<Item = &(&str, i32)> = &mut DECIMAL.iter();
        for (name, exponent) in exponents {
            let unit = 10i128.pow((exponent + 9).unsigned_abs());
            if size % unit == 0 {
                return match self.format {
                    Format::Exponent if *exponent != 0 => write!(f, "{sign}{}e{exponent}", size / unit),
                    _ => write!(f, "{sign}{}{name}", size / unit),
                };
            }
        }
        write!(f, "{sign}{size}n")
    }
}

#[cfg(test)]
mod tests {
    use super::Quantity;

    fn canonical(text: &str) -> Option<String> {
        Quantity::parse(text).map(|q| q.to_string())
    }

    #[test]
    fn canonical_forms() {
        for (text, expect) in [
            ("1Gi", "1Gi"),
            ("1024Mi", "1Gi"),
            ("1.5Gi", "1536Mi"),
            ("1000", "1k"),
            ("0.5", "500m"),
            ("500m", "500m"),
            ("1000m", "1"),
            ("0", "0"),
            ("0Gi", "0"),
            ("12e6", "12e6"),
            ("1E3", "1e3"),
            ("1E", "1E"),
            ("512", "512"),
            ("0.0000000001", "1n"),
            ("100Ki", "100Ki"),
            ("1.1", "1100m"),
            ("-3Gi", "-3Gi"),
            ("+2", "2"),
            ("123456789", "123456789"),
            ("0.5Ki", "512"),
            ("10Gi", "10Gi"),
        ] {
            assert_eq!(canonical(text).as_deref(), Some(expect), "{text}");
        }
    }

    #[test]
    fn refused() {
        for text in ["", "Gi", "1GiB", "1 Gi", "1.2.3", "abc", "1e", "1e99999", "--1", "."] {
            assert_eq!(canonical(text), None, "{text}");
        }
    }

    #[test]
    fn ordered() {
        let q = |text| Quantity::parse(text).expect(text);
        assert!(q("1Gi") > q("1G"));
        assert_eq!(q("1024Mi"), q("1Gi"));
    }
}
