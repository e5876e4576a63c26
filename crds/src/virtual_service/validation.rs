//! What a VirtualService must not say (spec: virtual-service.md, `Bad input:`).

use super::{Delegate, Destination, HTTPMatchRequest, HTTPRoute, VirtualService, VirtualServiceSpec};
use crate::validate::{Report, Validate, check, host};

mod answer;
mod change;
mod condition;
mod connection;
mod cors;
mod fault;
mod retry;

use answer::{check_direct_response, check_redirect};
use change::{check_headers, check_rewrite};
use condition::check_match;
use connection::{check_tcp, check_tls, warn_of_repeated_tls};
use cors::check_cors;
pub(crate) use fault::GRPC_STATUSES;
use fault::check_fault;
pub(crate) use retry::check_retries;

impl Validate for VirtualService {
    fn validate(&self) -> Report {
        let mut report = Report::default();
        let VirtualServiceSpec {
            hosts,
            gateways,
            http,
            tls,
            tcp,
            export_to,
        } = &self.spec;
        let namespace = self.metadata.namespace.as_deref().unwrap_or_default();
        check::no_dry_run(&mut report, &self.metadata);
        let for_mesh = gateways.is_empty() || gateways.iter().any(|g| g == "mesh");
        if http.is_empty() && tls.is_empty() && tcp.is_empty() {
            report.error("spec", "", "must have at least one of http, tls and tcp");
        }
        check_hosts(&mut report, hosts, for_mesh);
        if hosts.is_empty() {
            let message = "a VirtualService without hosts is a delegate, which has http alone";
            for (path, is_set) in [
                ("spec.gateways", !gateways.is_empty()),
                ("spec.tls", !tls.is_empty()),
                ("spec.tcp", !tcp.is_empty()),
            ] {
                if is_set {
                    report.error(path, "", message);
                }
            }
        }
        for (n, gateway) in gateways.iter().enumerate() {
            check_gateway(&mut report, &format!("spec.gateways[{n}]"), gateway);
        }
        check::export_to(&mut report, "spec.exportTo", export_to, namespace);
        let on_gateway_only = !for_mesh;
        let mut unconditional = None;
        for (n, route) in http.iter().enumerate() {
            let path = format!("spec.http[{n}]");
            if let Some(earlier) = unconditional {
                report.warn(&format!(
                    "{path}: is never reached, because spec.http[{earlier}] matches everything"
                ));
            }
            if route.matches.is_empty() || route.matches.iter().any(|m| *m == HTTPMatchRequest::default()) {
                unconditional = unconditional.or(Some(n));
            }
            check_http(&mut report, &path, route, on_gateway_only, hosts.is_empty());
        }
        for (n, route) in tls.iter().enumerate() {
            check_tls(&mut report, &format!("spec.tls[{n}]"), route, hosts);
        }
        warn_of_repeated_tls(&mut report, tls);
        for (n, route) in tcp.iter().enumerate() {
            check_tcp(&mut report, &format!("spec.tcp[{n}]"), route);
        }
        report
    }
}

fn check_hosts(report: &mut Report, hosts: &[String], for_mesh: bool) {
    for (n, name) in hosts.iter().enumerate() {
        let path = format!("spec.hosts[{n}]");
        if let Some(problem) = host::problem(name) {
            report.error(&path, name, problem);
        } else if hosts[..n].contains(name) {
            report.error(&path, name, "is there twice");
        } else if name == "*" && for_mesh {
            report.error(
                &path,
                name,
                "is not possible in the mesh; name the hosts, or a gateway in spec.gateways",
            );
        } else if let Some(wider) = hosts
            .iter()
            .find(|h| *h != name && h.starts_with('*') && host::covers(h, name))
        {
            report.error(
                &path,
                name,
                &format!("is covered by {wider:?} of the same list; remove one of them"),
            );
        }
    }
}

/// A reference to a Gateway (SM-056).
fn check_gateway(report: &mut Report, path: &str, name: &str) {
    let parts: Vec<&str> = name.split('/').collect();
    let is_ok = match parts.as_slice() {
        [one] if one.contains('.') => {
            report.warn(&format!("{path}: {name:?} is the old form; write <namespace>/<name>"));
            host::problem(one).is_none()
        }
        [one] => host::is_label(one),
        [namespace, one] => check::is_namespace(namespace) && one.split('.').all(host::is_label),
        _ => false,
    };
    if !is_ok {
        report.error(path, name, "must be a Gateway as <name> or <namespace>/<name>, or mesh");
    }
}

fn check_http(report: &mut Report, path: &str, route: &HTTPRoute, on_gateway_only: bool, in_delegate: bool) {
    check_action(report, path, route, in_delegate);
    for (n, condition) in route.matches.iter().enumerate() {
        check_match(report, &format!("{path}.match[{n}]"), condition, on_gateway_only);
    }
    let destinations = route
        .route
        .iter()
        .map(|d| (&d.destination, d.weight))
        .collect::<Vec<_>>();
    check_destinations(report, &format!("{path}.route"), &destinations);
    for (n, destination) in route.route.iter().enumerate() {
        if let Some(headers) = &destination.headers {
            check_headers(report, &format!("{path}.route[{n}].headers"), headers, false);
        }
    }
    if let Some(redirect) = &route.redirect {
        check_redirect(report, &format!("{path}.redirect"), redirect, &route.matches, path);
    }
    if let Some(direct) = &route.direct_response {
        check_direct_response(report, &format!("{path}.directResponse"), direct);
    }
    if let Some(delegate) = &route.delegate {
        check_delegate(report, &format!("{path}.delegate"), delegate);
    }
    if let Some(rewrite) = &route.rewrite {
        check_rewrite(report, &format!("{path}.rewrite"), rewrite);
    }
    check::optional_duration(report, &format!("{path}.timeout"), route.timeout.as_ref(), false);
    if let Some(retries) = &route.retries {
        check_retries(report, &format!("{path}.retries"), retries);
    }
    if let Some(fault) = &route.fault {
        check_fault(report, &format!("{path}.fault"), fault);
    }
    check_mirrors(report, path, route);
    if let Some(cors) = &route.cors_policy {
        check_cors(report, &format!("{path}.corsPolicy"), cors);
    }
    if let Some(headers) = &route.headers {
        let rewritten = route.rewrite.as_ref().is_some_and(|r| r.authority.is_some());
        check_headers(report, &format!("{path}.headers"), headers, rewritten);
    }
}

/// Exactly one thing to do (VS-026).
fn check_action(report: &mut Report, path: &str, route: &HTTPRoute, in_delegate: bool) {
    let has_route = !route.route.is_empty();
    let set = [
        ("route", has_route),
        ("redirect", route.redirect.is_some()),
        ("directResponse", route.direct_response.is_some()),
        ("delegate", route.delegate.is_some()),
        ("rewrite", route.rewrite.is_some()),
        ("fault", route.fault.is_some()),
    ];
    let is_set = |name: &str| set.iter().any(|(n, is_set)| *n == name && *is_set);
    if !set[..4].iter().any(|(_, is_set)| *is_set) {
        report.error(
            path,
            "",
            "must have one of route, redirect, directResponse and delegate",
        );
    }
    let mut exclude = |one: &str, others: &[&str]| {
        for other in others.iter().filter(|other| is_set(one) && is_set(other)) {
            report.error(
                &format!("{path}.{one}"),
                "",
                &format!("cannot stand beside {other}; remove one of them"),
            );
        }
    };
    exclude("redirect", &["route", "directResponse", "rewrite", "fault"]);
    // A delegate entry hands these on to its delegate.
    if !is_set("delegate") {
        exclude("directResponse", &["route", "rewrite", "fault"]);
    }
    exclude("delegate", &["route", "redirect"]);
    if in_delegate && is_set("delegate") {
        report.error(&format!("{path}.delegate"), "", "a delegate cannot delegate again");
    }
}

fn check_destination(report: &mut Report, path: &str, destination: &Destination) {
    let Destination {
        host: name,
        subset,
        port,
    } = destination;
    if name == "*" {
        report.error(&format!("{path}.host"), name, "must name one service");
    } else if let Some(problem) = host::problem(name) {
        report.error(&format!("{path}.host"), name, problem);
    }
    if let Some(subset) = subset.as_deref().filter(|s| !s.is_empty() && !host::is_label(s)) {
        report.error(
            &format!("{path}.subset"),
            subset,
            "must be the name of a subset: a-z, 0-9 and `-`",
        );
    }
    if let Some(port) = port {
        check::port(report, &format!("{path}.port.number"), port.number);
    }
}

/// Destinations and weights (VS-047, VS-055).
fn check_destinations(report: &mut Report, path: &str, destinations: &[(&Destination, Option<i64>)]) {
    for (n, (destination, weight)) in destinations.iter().enumerate() {
        check_destination(report, &format!("{path}[{n}].destination"), destination);
        check::within(report, &format!("{path}[{n}].weight"), *weight, 0..=i64::from(i32::MAX));
    }
    let total: i64 = destinations
        .iter()
        .map(|(_, w)| w.unwrap_or(0).max(0))
        .fold(0, i64::saturating_add);
    if destinations.len() > 1 && total == 0 {
        report.error(path, "", "several destinations need weights above 0 in sum");
    }
}

fn check_delegate(report: &mut Report, path: &str, delegate: &Delegate) {
    if delegate.name.is_empty() {
        report.error(&format!("{path}.name"), "", "is required");
    }
    if let Some(namespace) = delegate
        .namespace
        .as_deref()
        .filter(|n| !n.is_empty() && !check::is_namespace(n))
    {
        report.error(
            &format!("{path}.namespace"),
            namespace,
            "must be the name of a namespace",
        );
    }
}

fn check_mirrors(report: &mut Report, path: &str, route: &HTTPRoute) {
    if let Some(mirror) = &route.mirror {
        check_destination(report, &format!("{path}.mirror"), mirror);
        if !route.mirrors.is_empty() {
            report.error(
                &format!("{path}.mirrors"),
                "",
                "cannot stand beside mirror; move that one into the list",
            );
        }
    }
    check::percent(
        report,
        &format!("{path}.mirrorPercentage.value"),
        route.mirror_percentage,
        false,
    );
    check::within(report, &format!("{path}.mirrorPercent"), route.mirror_percent, 0..=100);
    for (n, mirror) in route.mirrors.iter().enumerate() {
        let path = format!("{path}.mirrors[{n}]");
        match &mirror.destination {
            Some(destination) => check_destination(report, &format!("{path}.destination"), destination),
            None => report.error(&format!("{path}.destination"), "", "is required"),
        }
        check::percent(report, &format!("{path}.percentage.value"), mirror.percentage, false);
    }
}

#[cfg(test)]
mod tests;
