//! Conditions on requests (VS-027..VS-046).

use std::collections::BTreeMap;

use super::check_gateway;
use crate::validate::{Report, check};
use crate::virtual_service::{HTTPMatchRequest, StringMatch};

pub(super) fn check_match(report: &mut Report, path: &str, condition: &HTTPMatchRequest, on_gateway_only: bool) {
    if let Some(uri) = &condition.uri {
        check::string_match(report, &format!("{path}.uri"), uri, true, false);
    }
    for (name, value) in [
        ("scheme", &condition.scheme),
        ("method", &condition.method),
        ("authority", &condition.authority),
    ] {
        if let Some(value) = value {
            check::string_match(report, &format!("{path}.{name}"), value, false, false);
        }
    }
    check_header_conditions(
        report,
        &format!("{path}.headers"),
        &condition.headers,
        on_gateway_only,
        false,
    );
    check_header_conditions(
        report,
        &format!("{path}.withoutHeaders"),
        &condition.without_headers,
        on_gateway_only,
        true,
    );
    for (name, value) in &condition.query_params {
        let path = format!("{path}.queryParams[{name}]");
        if name.is_empty() {
            report.error(&path, "", "must name a parameter");
        }
        check::string_match(report, &path, value, false, true);
    }
    if let Some(port) = condition.port {
        check::port(report, &format!("{path}.port"), port);
    }
    check::match_labels(report, &format!("{path}.sourceLabels"), &condition.source_labels);
    if let Some(namespace) = condition
        .source_namespace
        .as_deref()
        .filter(|n| !n.is_empty() && !check::is_namespace(n))
    {
        report.error(
            &format!("{path}.sourceNamespace"),
            namespace,
            "must be the name of a namespace",
        );
    }
    for (n, gateway) in condition.gateways.iter().enumerate() {
        check_gateway(report, &format!("{path}.gateways[{n}]"), gateway);
    }
}

fn check_header_conditions(
    report: &mut Report,
    path: &str,
    headers: &BTreeMap<String, StringMatch>,
    on_gateway_only: bool,
    inverted: bool,
) {
    const REQUEST: [&str; 4] = [":method", ":scheme", ":authority", ":path"];
    for (name, condition) in headers {
        let path = format!("{path}[{name}]");
        let is_claim = name.starts_with("@request.auth.claims.") || name.starts_with("@request.auth.claims[");
        if is_claim && !on_gateway_only {
            report.error(
                &path,
                "",
                "claims of a token can be matched at gateways alone; spec.gateways must not hold mesh",
            );
        } else if !is_claim && !REQUEST.contains(&name.as_str()) && !check::is_header_name(name) {
            report.error(&path, "", "must be the name of a header field");
        }
        // `*` as the absence of a header is the one expression that is none.
        if condition.regex.as_deref() == Some("*") && inverted {
            continue;
        }
        check::string_match(report, &path, condition, false, true);
    }
}
