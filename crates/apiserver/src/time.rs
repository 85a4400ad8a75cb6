//! Times as API objects spell them, and ages as tables spell them. The only place that reads the clock for objects.

use jiff::Timestamp;

/// Now, to the second: `2026-11-23T01:38:00Z`.
pub(crate) fn now() -> String {
    seconds(Timestamp::now())
}

/// To the second.
pub(crate) fn seconds(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// To the microsecond.
pub(crate) fn micros(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string()
}

/// How long ago `then` was, as kubectl prints it; `<unknown>` if it is no time.
pub(crate) fn age(then: Option<&str>, now: Timestamp) -> String {
    match then.and_then(|then| then.parse::<Timestamp>().ok()) {
        Some(then) => human(now.as_second() - then.as_second()),
        None => "<unknown>".to_owned(),
    }
}

/// A span in at most two units, fewer the longer it is.
pub(crate) fn human(seconds: i64) -> String {
    let two = |big: i64, unit: char, small: i64, lesser: char| {
        if small == 0 { format!("{big}{unit}") } else { format!("{big}{unit}{small}{lesser}") }
    };
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    match seconds {
        i64::MIN..-1 => "<invalid>".to_owned(),
        -1 => "0s".to_owned(),
        0..120 => format!("{seconds}s"),
        _ if minutes < 10 => two(minutes, 'm', seconds % 60, 's'),
        _ if minutes < 180 => format!("{minutes}m"),
        _ if hours < 8 => two(hours, 'h', minutes % 60, 'm'),
        _ if hours < 48 => format!("{hours}h"),
        _ if hours < 192 => two(days, 'd', hours % 24, 'h'),
        _ if days < 730 => format!("{days}d"),
        _ if days < 2920 => two(days / 365, 'y', days % 365, 'd'),
        _ => format!("{}y", days / 365),
    }
}

#[cfg(test)]
mod tests {
    use super::{age, human, micros, seconds};

    #[test]
    fn ages() {
        for (span, expect) in [
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (125, "2m5s"),
            (600, "10m"),
            (10_799, "179m"),
            (10_800, "3h"),
            (11_000, "3h3m"),
            (100_000, "27h"),
            (172_800, "2d"),
            (180_000, "2d2h"),
            (864_000, "10d"),
            (-5, "<invalid>"),
            (86_400 * 800, "2y70d"),
        ] {
            assert_eq!(human(span), expect, "{span}");
        }
        assert_eq!(age(None, jiff::Timestamp::UNIX_EPOCH), "<unknown>");
    }

    #[test]
    fn spellings() {
        let at: jiff::Timestamp = "2026-11-23T01:38:00.5+01:00".parse().expect("a time");
        assert_eq!(seconds(at), "2026-11-23T00:38:00Z");
        assert_eq!(micros(at), "2026-11-23T00:38:00.500000Z");
    }
}
