//! Durations as the API writes them: `1.5s`, `10ms`, `1h10m`.

use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A duration, or the text that is none: validation names it, and rendering takes the field as absent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Duration(Result<std::time::Duration, String>);

impl Duration {
    /// A valid duration.
    #[must_use]
    pub fn new(duration: std::time::Duration) -> Self {
        Self(Ok(duration))
    }

    /// Parses a Go-style duration: numbers with units `h`, `m`, `s`, `ms`, `us`, `ns`, largest first.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        Self(parse(text).ok_or_else(|| text.to_owned()))
    }

    /// The duration, if it is one.
    #[must_use]
    pub fn value(&self) -> Option<std::time::Duration> {
        self.0.as_ref().ok().copied()
    }

    /// Whole milliseconds, if it is a duration that fits.
    #[must_use]
    pub fn millis(&self) -> Option<u64> {
        self.value().and_then(|d| u64::try_from(d.as_millis()).ok())
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Ok(duration) if duration.subsec_nanos() == 0 => write!(f, "{}s", duration.as_secs()),
            Ok(duration) => write!(f, "{}s", duration.as_secs_f64()),
            Err(text) => f.write_str(text),
        }
    }
}

impl Serialize for Duration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Duration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self::parse(&String::deserialize(deserializer)?))
    }
}

impl JsonSchema for Duration {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Duration".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "maxLength": 32, "pattern": "^(0|([0-9.]+(h|m|s|ms|us|ns))+)$" })
    }
}

fn parse(text: &str) -> Option<std::time::Duration> {
    const UNITS: [(&str, f64); 6] = [
        ("h", 3600.0),
        ("ms", 1e-3),
        ("m", 60.0),
        ("us", 1e-6),
        ("ns", 1e-9),
        ("s", 1.0),
    ];
    if text == "0" {
        return Some(std::time::Duration::ZERO);
    }
    let mut rest = text;
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let end = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .filter(|end| *end > 0)?;
        let number: f64 = rest[..end].parse().ok()?;
        let (unit, scale) = UNITS.iter().find(|(unit, _)| {
            rest[end..].starts_with(unit)
                && rest[end + unit.len()..]
                    .chars()
                    .next()
                    .is_none_or(|c| c.is_ascii_digit())
        })?;
        seconds += number * scale;
        rest = &rest[end + unit.len()..];
    }
    if text.is_empty() || seconds > MAX_SECONDS {
        None
    } else {
        std::time::Duration::try_from_secs_f64(seconds).ok().map(round)
    }
}

/// Ten thousand years, the most that a protobuf duration holds; added to a clock it stays far from its end.
const MAX_SECONDS: f64 = 315_576_000_000.0;

/// To whole nanoseconds of what was written: `0.1s` is not 0.1 in binary.
fn round(duration: std::time::Duration) -> std::time::Duration {
    let nanos = duration.subsec_nanos();
    let near = (nanos + 500) / 1000 * 1000;
    // Within a nanosecond of a whole microsecond the rest is an error of floating point.
    if nanos.abs_diff(near) <= 1 {
        std::time::Duration::from_secs(duration.as_secs()) + std::time::Duration::from_nanos(u64::from(near))
    } else {
        duration
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_manifests_write_is_read() {
        let millis = |text| Duration::parse(text).millis();
        let cases = [
            ("10s", 10_000),
            ("1.5s", 1500),
            ("250ms", 250),
            ("1h10m", 4_200_000),
            ("0s", 0),
            ("0.1s", 100),
        ];
        for (text, expected) in cases {
            assert_eq!(millis(text), Some(expected), "{text}");
        }
        for bad in [
            "",
            "10",
            "s",
            "1x",
            "-1s",
            "1 s",
            "1e400s",
            "99999999999999999999h",
            "315576000001s",
            "...s",
            "1.2.3s",
        ] {
            assert_eq!(millis(bad), None, "{bad}");
        }
        assert_eq!(millis("315576000000s"), Some(315_576_000_000_000));
        assert_eq!(Duration::parse("soon").to_string(), "soon");
        assert_eq!(
            serde_json::to_string(&Duration::parse("1500ms")).expect("text"),
            "\"1.5s\""
        );
    }
}
