//! Sizes as people write them: `10Gi`, `500M`, `1048576`.

/// Parses a byte count with an optional binary (Ki, Mi, Gi, Ti) or decimal (k, M, G, T) suffix, as Kubernetes writes
/// quantities; a trailing `B` is allowed.
///
/// # Errors
/// A sentence that shows what would be right.
pub(crate) fn parse(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is not a size; write bytes, or a number with Ki, Mi, Gi, Ti, k, M, G or T (10Gi)");
    let body = text.strip_suffix('B').unwrap_or(text);
    let digits_end = body.find(|c: char| !c.is_ascii_digit()).unwrap_or(body.len());
    let (digits, unit) = body.split_at(digits_end);
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    let factor: u64 = match unit {
        "" => 1,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        "Ti" => 1 << 40,
        "k" => 1_000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "T" => 1_000_000_000_000,
        _ => return Err(wrong()),
    };
    number.checked_mul(factor).ok_or_else(|| format!("`{text}` is more than 2^64 bytes"))
}

/// Bytes for people: the largest binary unit that keeps three digits.
pub(crate) fn show(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 || value.fract() == 0.0 {
        format!("{value:.0} {}", UNITS[unit])
    } else {
        format!("{value:.1} {}", UNITS[unit])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_as_people_write_them() {
        assert_eq!(parse("10Gi").unwrap(), 10 << 30);
        assert_eq!(parse("10GiB").unwrap(), 10 << 30);
        assert_eq!(parse("500M").unwrap(), 500_000_000);
        assert_eq!(parse("4096").unwrap(), 4096);
        for wrong in ["", "Gi", "10Xi", "-1", "1.5Gi", "99999999Ti"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn sizes_show_with_the_largest_unit() {
        assert_eq!(show(10 << 30), "10 GiB");
        assert_eq!(show(1_600), "1.6 KiB");
        assert_eq!(show(0), "0 B");
    }
}
