//! Changes of path, authority and header fields (VS-060..VS-076).

use crate::validate::{Report, check, operators};
use crate::virtual_service::{HTTPRewrite, HeaderOperations, Headers};

pub(super) fn check_rewrite(report: &mut Report, path: &str, rewrite: &HTTPRewrite) {
    let HTTPRewrite {
        uri,
        authority,
        uri_regex_rewrite,
    } = rewrite;
    if uri.is_none() && authority.is_none() && uri_regex_rewrite.is_none() {
        report.error(path, "", "must have at least one of uri, uriRegexRewrite and authority");
    }
    let Some(regex) = uri_regex_rewrite else { return };
    if uri.is_some() {
        report.error(
            &format!("{path}.uriRegexRewrite"),
            "",
            "cannot stand beside uri; remove one of them",
        );
    }
    if regex.matches.is_empty() || regex.rewrite.is_empty() {
        report.error(
            &format!("{path}.uriRegexRewrite"),
            "",
            "must have both match and rewrite",
        );
        return;
    }
    let before = report.errors.len();
    check::regex(report, &format!("{path}.uriRegexRewrite.match"), &regex.matches);
    if report.errors.len() > before {
        return;
    }
    let groups = regex::bytes::Regex::new(&regex.matches).map_or(usize::MAX, |r| r.captures_len() - 1);
    let mut characters = regex.rewrite.chars();
    while let Some(c) = characters.next() {
        let group = (c == '\\')
            .then(|| characters.next())
            .flatten()
            .and_then(|d| d.to_digit(10));
        if group.is_some_and(|g| g as usize > groups) {
            let message = format!("refers to a group that the expression does not have: it has {groups}");
            report.error(&format!("{path}.uriRegexRewrite.rewrite"), &regex.rewrite, &message);
            break;
        }
    }
}

/// Header operations (VS-063, VS-064).
pub(super) fn check_headers(report: &mut Report, path: &str, headers: &Headers, authority_rewritten: bool) {
    let is_host = |name: &str| name.eq_ignore_ascii_case("host") || name == ":authority";
    if let Some(request) = &headers.request {
        let path = format!("{path}.request");
        check_operations(report, &path, request);
        let named: Vec<&String> = request.set.keys().filter(|name| is_host(name)).collect();
        if named.len() > 1 || (authority_rewritten && !named.is_empty()) {
            report.error(
                &format!("{path}.set"),
                "",
                "may change the host once: Host, :authority or rewrite.authority",
            );
        }
        for name in request
            .add
            .keys()
            .chain(request.set.keys())
            .filter(|n| n.starts_with(':') && *n != ":authority")
        {
            report.error(
                &path,
                name,
                "is no header field; of the request's own names only :authority can be set",
            );
        }
    }
    if let Some(response) = &headers.response {
        let path = format!("{path}.response");
        check_operations(report, &path, response);
        let names = response.set.keys().chain(response.add.keys());
        for name in names.filter(|name| is_host(name) || name.starts_with(':')) {
            report.error(&path, name, "is no header field of a response");
        }
    }
}

fn check_operations(report: &mut Report, path: &str, operations: &HeaderOperations) {
    for (kind, map) in [("set", &operations.set), ("add", &operations.add)] {
        for (name, value) in map {
            let path = format!("{path}.{kind}[{name}]");
            if !name.starts_with(':') && !check::is_header_name(name) {
                report.error(&path, "", "must be the name of a header field");
            }
            if value.chars().any(char::is_control) {
                report.error(&path, "", "must not hold control characters");
            } else if let Err(problem) = operators::check(value) {
                report.error(&path, value, &problem);
            }
        }
    }
    for (n, name) in operations.remove.iter().enumerate() {
        let path = format!("{path}.remove[{n}]");
        if name.eq_ignore_ascii_case("host") || name.starts_with(':') {
            report.error(&path, name, "cannot be removed");
        } else if !check::is_header_name(name) {
            report.error(&path, name, "must be the name of a header field");
        }
    }
}
