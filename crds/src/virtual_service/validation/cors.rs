//! Cross-origin rules (VS-143..VS-153).

use crate::validate::{Report, check};
use crate::virtual_service::CorsPolicy;

pub(super) fn check_cors(report: &mut Report, path: &str, cors: &CorsPolicy) {
    const METHODS: [&str; 10] = [
        "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "CONNECT", "OPTIONS", "TRACE", "*",
    ];
    for (n, origin) in cors.allow_origins.iter().enumerate() {
        check::string_match(report, &format!("{path}.allowOrigins[{n}]"), origin, false, false);
    }
    for (n, method) in cors.allow_methods.iter().enumerate() {
        check::one_of(report, &format!("{path}.allowMethods[{n}]"), method, &METHODS);
    }
    for (name, list) in [
        ("allowHeaders", &cors.allow_headers),
        ("exposeHeaders", &cors.expose_headers),
    ] {
        for (n, header) in list
            .iter()
            .enumerate()
            .filter(|(_, h)| *h != "*" && !check::is_header_name(h))
        {
            report.error(
                &format!("{path}.{name}[{n}]"),
                header,
                "must be the name of a header field",
            );
        }
    }
    if let Some(age) = &cors.max_age {
        let is_whole = age.value().is_some_and(|d| d.as_secs() >= 1 && d.subsec_nanos() == 0);
        if !is_whole {
            report.error(
                &format!("{path}.maxAge"),
                &age.to_string(),
                "must be a whole number of seconds, 1s or more",
            );
        }
    }
    if let Some(unmatched) = &cors.unmatched_preflights {
        check::one_of(
            report,
            &format!("{path}.unmatchedPreflights"),
            unmatched,
            &["UNSPECIFIED", "FORWARD", "IGNORE"],
        );
    }
}
