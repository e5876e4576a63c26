//! Answers of the proxy itself: redirects and direct responses (VS-077..VS-090).

use crate::validate::{Report, check};
use crate::virtual_service::{HTTPDirectResponse, HTTPMatchRequest, HTTPRedirect};

pub(super) fn check_redirect(
    report: &mut Report,
    path: &str,
    redirect: &HTTPRedirect,
    matches: &[HTTPMatchRequest],
    route: &str,
) {
    let HTTPRedirect {
        uri,
        prefix_rewrite,
        authority,
        port,
        derive_port,
        scheme,
        redirect_code,
    } = redirect;
    let is_empty = uri.is_none()
        && prefix_rewrite.is_none()
        && authority.is_none()
        && port.is_none()
        && derive_port.is_none()
        && scheme.is_none();
    if is_empty {
        report.error(
            path,
            "",
            "must have at least one of uri, prefixRewrite, authority, port, derivePort and scheme",
        );
    }
    if uri.is_some() && prefix_rewrite.is_some() {
        report.error(
            &format!("{path}.prefixRewrite"),
            "",
            "cannot stand beside uri; remove one of them",
        );
    }
    if prefix_rewrite.is_some() {
        for (n, condition) in matches.iter().enumerate() {
            if condition
                .uri
                .as_ref()
                .is_some_and(|u| u.exact.is_some() || u.regex.is_some())
            {
                let message = "must be a prefix, because the redirect rewrites the matched prefix";
                report.error(&format!("{route}.match[{n}].uri"), "", message);
            }
        }
    }
    if let Some(number) = port {
        check::port(report, &format!("{path}.port"), *number);
        if derive_port.is_some() {
            report.error(
                &format!("{path}.derivePort"),
                "",
                "cannot stand beside port; remove one of them",
            );
        }
    }
    if let Some(derive) = derive_port {
        check::one_of(
            report,
            &format!("{path}.derivePort"),
            derive,
            &["FROM_PROTOCOL_DEFAULT", "FROM_REQUEST_PORT"],
        );
    }
    if let Some(scheme) = scheme {
        check::one_of(report, &format!("{path}.scheme"), scheme, &["http", "https"]);
    }
    if let Some(code) = redirect_code.filter(|c| ![0, 301, 302, 303, 307, 308].contains(c)) {
        report.error(
            &format!("{path}.redirectCode"),
            &code.to_string(),
            "must be 301, 302, 303, 307 or 308",
        );
    }
}

pub(super) fn check_direct_response(report: &mut Report, path: &str, direct: &HTTPDirectResponse) {
    check::within(report, &format!("{path}.status"), Some(direct.status), 200..=599);
    let Some(body) = &direct.body else { return };
    if body.string.is_some() && body.bytes.is_some() {
        report.error(&format!("{path}.body"), "", "must have one of string and bytes");
    }
    let size = body
        .string
        .as_ref()
        .map_or(0, String::len)
        .max(body.bytes.as_ref().map_or(0, |b| b.len() / 4 * 3));
    if size > 1 << 20 {
        report.error(&format!("{path}.body"), "", "must have at most 1 MiB");
    } else if size > 100 << 10 {
        report.warn(&format!(
            "{path}.body: has {size} bytes, which every proxy holds in memory"
        ));
    }
    let is_base64 = |text: &str| {
        let plain = text.trim_end_matches('=');
        text.len().is_multiple_of(4)
            && text.len() - plain.len() <= 2
            && plain
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'+' || b == b'/')
    };
    if body.bytes.as_deref().is_some_and(|b| !is_base64(b)) {
        report.error(&format!("{path}.body.bytes"), "", "must be base64 with padding");
    }
}
