//! Times and sizes as people type them.

use std::time::Duration;

/// Reads `90`, `90s`, `1m30s`, `500ms`; a bare number is seconds.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    if let Ok(seconds) = text.parse::<f64>() {
        return Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string());
    }
    humantime::parse_duration(text).map_err(|_| "use seconds, or 90s, 1m30s, 500ms".to_owned())
}

/// Reads a size as `docker run` does: `128m`, `1g`, `65536`; units are powers of 1,024.
pub(super) fn size(text: &str) -> Result<u64, String> {
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit: u64 = match &lower[digits.len()..] {
        "" | "b" => 1,
        "k" | "kb" | "kib" => 1 << 10,
        "m" | "mb" | "mib" => 1 << 20,
        "g" | "gb" | "gib" => 1 << 30,
        "t" | "tb" | "tib" => 1 << 40,
        _ => return Err("use bytes, or a number with b, k, m, g".to_owned()),
    };
    let number: f64 = digits.trim().parse().map_err(|_| "no number".to_owned())?;
    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let bytes = (number * unit as f64) as u64;
    if number.is_finite() && number >= 0.0 { Ok(bytes) } else { Err("no size".to_owned()) }
}

/// Bytes for people: `1.9 MB`, decimal as engines print them.
pub(super) fn megabytes(bytes: u64) -> String {
    #[allow(clippy::cast_precision_loss)]
    let mega = bytes as f64 / 1e6;
    if mega < 10.0 { format!("{mega:.2} MB") } else { format!("{mega:.1} MB") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_seconds_unless_they_say_otherwise() {
        for (text, want) in [("60", 60_000), ("1.5", 1_500), ("2m", 120_000), ("500ms", 500)] {
            assert_eq!(duration(text).unwrap().as_millis(), want, "{text}");
        }
        for bad in ["", "-1", "soon", "inf"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_are_dockers() {
        for (text, want) in [("128m", 128 << 20), ("1g", 1 << 30), ("64", 64), ("1.5k", 1536)] {
            assert_eq!(size(text).unwrap(), want, "{text}");
        }
        for bad in ["", "m", "-1", "1x"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }
}
