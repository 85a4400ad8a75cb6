//! Kubernetes quantities as numbers that can be added: milli-units, so that `100m` of a core is exact.

/// A quantity in thousandths. Unreadable ones count as nothing here: the API server refuses them at the door.
pub(crate) fn milli(text: &str) -> i128 {
    parse(text).unwrap_or(0)
}

fn parse(text: &str) -> Option<i128> {
    let unit_at = text.find(|c: char| !matches!(c, '0'..='9' | '.' | '+' | '-')).unwrap_or(text.len());
    let (number, unit) = text.split_at(unit_at);
    if let Some(exponent) = unit.strip_prefix(['e', 'E']).filter(|rest| !rest.is_empty()) {
        let power: u32 = exponent.parse().ok()?;
        return scaled(number, 1000 * 10i128.checked_pow(power)?);
    }
    let factor: i128 = match unit {
        "" => 1000,
        "m" => 1,
        "k" => 1_000 * 1000,
        "M" => 1_000_000 * 1000,
        "G" => 1_000_000_000 * 1000,
        "T" => 1_000_000_000_000 * 1000,
        "P" => 1_000_000_000_000_000 * 1000,
        "E" => 1_000_000_000_000_000_000 * 1000,
        "Ki" => 1000 << 10,
        "Mi" => 1000 << 20,
        "Gi" => 1000 << 30,
        "Ti" => 1000 << 40,
        "Pi" => 1000 << 50,
        "Ei" => 1000 << 60,
        _ => return None,
    };
    scaled(number, factor)
}

/// `1.5` times the factor, rounded up as Kubernetes does.
fn scaled(number: &str, factor: i128) -> Option<i128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let negative = whole.starts_with('-');
    let whole: i128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let mut value = whole.abs().checked_mul(factor)?;
    if !fraction.is_empty() {
        let fraction = fraction.get(..18).unwrap_or(fraction);
        let digits: i128 = fraction.parse().ok()?;
        let scale = 10i128.pow(fraction.len() as u32);
        value += digits.checked_mul(factor)?.checked_add(scale - 1)? / scale;
    }
    Some(if negative { -value } else { value })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_exact() {
        assert_eq!(milli("100m"), 100);
        assert_eq!(milli("2"), 2000);
        assert_eq!(milli("1.5"), 1500);
        assert_eq!(milli("1Gi"), (1 << 30) * 1000);
        assert_eq!(milli("1e3"), 1_000_000);
        assert_eq!(milli("0.0001"), 1, "rounded up");
        assert_eq!(milli("nonsense"), 0);
    }
}
