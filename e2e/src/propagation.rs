//! When a change has reached the traffic.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::load::Answer;

/// Milliseconds since 1970, as in answers.
#[must_use]
pub fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// When the last answer of a version came.
#[must_use]
pub fn last_of(version: &str, answers: &[Answer]) -> Option<u64> {
    let of_version = answers.iter().filter(|a| a.version.as_deref() == Some(version));
    of_version.map(|a| a.at).max()
}

/// When the last answer of a version came in a time.
#[must_use]
pub fn last_within(version: &str, answers: &[Answer], from: u64, to: u64) -> Option<u64> {
    let of_version = answers.iter().filter(|a| a.version.as_deref() == Some(version));
    of_version.map(|a| a.at).filter(|at| (from..to).contains(at)).max()
}
