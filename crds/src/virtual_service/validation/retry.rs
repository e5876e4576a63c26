//! Retries (VS-099..VS-125).

use crate::validate::{Report, check};
use crate::virtual_service::HTTPRetry;

pub(crate) fn check_retries(report: &mut Report, path: &str, retries: &HTTPRetry) {
    check::not_negative(report, &format!("{path}.attempts"), retries.attempts);
    check::optional_duration(
        report,
        &format!("{path}.perTryTimeout"),
        retries.per_try_timeout.as_ref(),
        false,
    );
    check::optional_duration(report, &format!("{path}.backoff"), retries.backoff.as_ref(), false);
    if retries.attempts.unwrap_or(0) == 0 {
        let set = [
            ("perTryTimeout", retries.per_try_timeout.is_some()),
            ("retryOn", retries.retry_on.as_deref().is_some_and(|on| !on.is_empty())),
            ("retryRemoteLocalities", retries.retry_remote_localities.is_some()),
        ];
        for (name, _) in set.iter().filter(|(_, is_set)| *is_set) {
            report.error(
                &format!("{path}.{name}"),
                "",
                "has no effect without attempts; set attempts to 1 or more",
            );
        }
    }
    for token in retries
        .retry_on
        .iter()
        .filter(|on| !on.is_empty())
        .flat_map(|on| on.split(','))
    {
        let is_status = token.parse::<u16>().is_ok_and(is_registered_status);
        if !is_status && !RETRY_CONDITIONS.contains(&token) {
            let message = format!(
                "must be a list, without spaces, of HTTP statuses and of: {}",
                RETRY_CONDITIONS.join(", ")
            );
            report.error(&format!("{path}.retryOn"), token, &message);
        }
    }
}

/// Whether IANA lists the status.
fn is_registered_status(status: u16) -> bool {
    matches!(status,
        100..=104 | 200..=208 | 226 | 300..=305 | 307 | 308 | 400..=418 | 421..=426 | 428 | 429 | 431 | 451 | 500..=508 | 510 | 511)
}

/// Conditions by name (VS-104).
const RETRY_CONDITIONS: [&str; 16] = [
    "5xx",
    "gateway-error",
    "reset",
    "reset-before-request",
    "connect-failure",
    "retriable-4xx",
    "refused-stream",
    "retriable-status-codes",
    "retriable-headers",
    "envoy-ratelimited",
    "http3-post-connect-failure",
    "cancelled",
    "deadline-exceeded",
    "internal",
    "resource-exhausted",
    "unavailable",
];
