//! Kubernetes quantities of storage: "10Gi", "1.5G", "1e9", read as whole bytes and written as people do.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// Whole bytes, rounded up. `None` when the text is no quantity, negative, or beyond 64 bits.
pub(crate) fn bytes(quantity: &Quantity) -> Option<u64> {
    let text = quantity.0.trim();
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.' && c != '+').unwrap_or(text.len());
    let (number, suffix) = text.split_at(split);
    let (whole, fraction) =
        number.trim_start_matches('+').split_once('.').unwrap_or((number.trim_start_matches('+'), ""));
    if whole.is_empty() && fraction.is_empty() || fraction.len() > 18 || whole.len() > 20 {
        return None;
    }
    // number = digits / 10^scale; the answer is digits * factor / 10^scale, rounded up.
    let digits: u128 = format!("{whole}{fraction}").parse().ok()?;
    let mut divisor = 10u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let factor: u128 = match suffix {
        "" => 1,
        "m" => {
            divisor *= 1000;
            1
        }
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        "Ti" => 1 << 40,
        "Pi" => 1 << 50,
        "Ei" => 1 << 60,
        "k" => 1000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "T" => 1_000_000_000_000,
        "P" => 1_000_000_000_000_000,
        "E" => 1_000_000_000_000_000_000,
        exponent => {
            let power: u32 = exponent.strip_prefix(['e', 'E'])?.parse().ok()?;
            10u128.checked_pow(power)?
        }
    };
    u64::try_from(digits.checked_mul(factor)?.div_ceil(divisor)).ok()
}

/// With the largest binary unit that divides it.
pub(crate) fn quantity(bytes: u64) -> Quantity {
    const UNITS: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    let power = if bytes == 0 { 0 } else { (bytes.trailing_zeros() / 10).min(6) };
    Quantity(format!("{}{}", bytes >> (10 * power), UNITS[power as usize]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Option<u64> {
        bytes(&Quantity(text.to_owned()))
    }

    #[test]
    fn every_notation_is_read() {
        for (text, expected) in [
            ("0", Some(0)),
            ("1073741824", Some(1 << 30)),
            ("1Gi", Some(1 << 30)),
            ("1.5Gi", Some(3 << 29)),
            (".5Ki", Some(512)),
            ("1G", Some(1_000_000_000)),
            ("1e3", Some(1000)),
            ("1500m", Some(2)),
            ("8Ei", Some(1 << 63)),
            ("16Ei", None),
            ("", None),
            ("Gi", None),
            ("-1Gi", None),
            ("1GiB", None),
            ("1.2.3", None),
        ] {
            assert_eq!(read(text), expected, "{text}");
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        for bytes_ in [0, 1, 4096, 1 << 30, 3 << 29, (1 << 30) + 4096, u64::MAX] {
            assert_eq!(bytes(&quantity(bytes_)), Some(bytes_));
        }
        assert_eq!(quantity(1 << 30).0, "1Gi");
        assert_eq!(quantity(3 << 29).0, "1536Mi");
    }
}
