//! Rules for TLS and TCP (VS-163..VS-178).

use super::{check_destinations, check_gateway};
use crate::validate::{Report, check, host};
use crate::virtual_service::{RouteDestination, TCPRoute, TLSMatchAttributes, TLSRoute};

/// Warns of elements that an earlier one leaves nothing to (VS-167).
pub(super) fn warn_of_repeated_tls(report: &mut Report, routes: &[TLSRoute]) {
    let mut before: Vec<(String, TLSMatchAttributes)> = Vec::new();
    for (r, route) in routes.iter().enumerate() {
        for (m, condition) in route.matches.iter().enumerate() {
            let path = format!("spec.tls[{r}].match[{m}]");
            // The order of names and subnets says nothing.
            let mut sorted = condition.clone();
            sorted.sni_hosts.iter_mut().for_each(|name| name.make_ascii_lowercase());
            sorted.sni_hosts.sort();
            sorted.destination_subnets.sort();
            match before.iter().find(|(_, earlier)| *earlier == sorted) {
                Some((earlier, _)) => report.warn(&format!("{path}: is never reached, because {earlier} is the same")),
                None => before.push((path, sorted)),
            }
        }
    }
}

pub(super) fn check_tls(report: &mut Report, path: &str, route: &TLSRoute, hosts: &[String]) {
    if route.matches.is_empty() {
        report.error(
            &format!("{path}.match"),
            "",
            "is required: the server names of the rule",
        );
    }
    for (n, condition) in route.matches.iter().enumerate() {
        let path = format!("{path}.match[{n}]");
        if condition.sni_hosts.is_empty() {
            report.error(&format!("{path}.sniHosts"), "", "is required");
        }
        for (n, sni) in condition.sni_hosts.iter().enumerate() {
            let path = format!("{path}.sniHosts[{n}]");
            if sni.parse::<std::net::IpAddr>().is_ok() {
                report.warn(&format!("{path}: {sni} is an address, which a server name never is"));
            }
            if let Some(problem) = host::problem(sni) {
                report.error(&path, sni, problem);
            } else if !hosts.iter().any(|h| host::covers(h, sni)) {
                report.error(&path, sni, "must be covered by a name of spec.hosts");
            }
        }
        check_l4(
            report,
            &path,
            &condition.destination_subnets,
            condition.port,
            &condition.gateways,
        );
    }
    check_l4_route(report, path, &route.route);
}

pub(super) fn check_tcp(report: &mut Report, path: &str, route: &TCPRoute) {
    for (n, condition) in route.matches.iter().enumerate() {
        let path = format!("{path}.match[{n}]");
        check_l4(
            report,
            &path,
            &condition.destination_subnets,
            condition.port,
            &condition.gateways,
        );
        if condition.source_subnet.is_some() {
            report.warn(&format!("{path}.sourceSubnet: has no effect"));
        }
    }
    check_l4_route(report, path, &route.route);
}

fn check_l4(report: &mut Report, path: &str, subnets: &[String], port: Option<i64>, gateways: &[String]) {
    for (n, subnet) in subnets.iter().enumerate().filter(|(_, s)| check::subnet(s).is_none()) {
        let path = format!("{path}.destinationSubnets[{n}]");
        report.error(&path, subnet, "must be an address or a range such as 10.1.0.0/16");
    }
    if let Some(port) = port {
        check::port(report, &format!("{path}.port"), port);
    }
    for (n, gateway) in gateways.iter().enumerate() {
        check_gateway(report, &format!("{path}.gateways[{n}]"), gateway);
    }
}

fn check_l4_route(report: &mut Report, path: &str, route: &[RouteDestination]) {
    if route.is_empty() {
        report.error(&format!("{path}.route"), "", "is required: at least one destination");
    }
    let destinations: Vec<_> = route.iter().map(|d| (&d.destination, d.weight)).collect();
    check_destinations(report, &format!("{path}.route"), &destinations);
}
