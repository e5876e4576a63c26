//! What a ServiceEntry must not say (spec: service-entry.md, `Bad input:`).

use std::net::IpAddr;

use super::{LabelSelector, ServiceEntry, ServiceEntrySpec, ServicePort};
use crate::validate::{Report, Validate, check, host};
use crate::workload_entry::{UNIX, WorkloadEntrySpec, check_endpoint};

impl Validate for ServiceEntry {
    fn validate(&self) -> Report {
        let mut report = Report::default();
        let ServiceEntrySpec {
            hosts,
            addresses,
            ports,
            location,
            resolution,
            endpoints,
            workload_selector,
            export_to,
            subject_alt_names: _,
        } = &self.spec;
        let namespace = self.metadata.namespace.as_deref().unwrap_or_default();
        check::no_dry_run(&mut report, &self.metadata);
        let resolution = resolution.as_deref().unwrap_or("NONE");
        check::one_of(&mut report, "spec.resolution", resolution, &RESOLUTIONS);
        if let Some(location) = location {
            check::one_of(
                &mut report,
                "spec.location",
                location,
                &["MESH_EXTERNAL", "MESH_INTERNAL"],
            );
        }
        check_hosts(&mut report, hosts);
        check_ports(&mut report, ports);
        check_addresses(&mut report, addresses, resolution);
        check_endpoints(&mut report, &self.spec, resolution);
        if let Some(selector) = workload_selector {
            check_selector(&mut report, "spec.workloadSelector", selector);
            if !endpoints.is_empty() {
                let message = "cannot stand beside workloadSelector; remove one of them";
                report.error("spec.endpoints", "", message);
            }
            if resolution == "NONE" {
                report.warn("spec.workloadSelector: with resolution NONE limits TCP and TLS ports to these addresses");
            }
        }
        check_together(&mut report, &self.spec, resolution);
        // `~` alone hides the entry (SE-016).
        if export_to.as_slice() != ["~"] {
            check::export_to(&mut report, "spec.exportTo", export_to, namespace);
        }
        report
    }
}

fn check_hosts(report: &mut Report, hosts: &[String]) {
    if hosts.is_empty() {
        report.error("spec.hosts", "", "is required: at least one host");
    }
    if hosts.len() > 256 {
        report.error("spec.hosts", &hosts.len().to_string(), "must have at most 256 entries");
        return;
    }
    for (n, name) in hosts.iter().enumerate() {
        let path = format!("spec.hosts[{n}]");
        if name == "*" {
            report.error(
                &path,
                name,
                "must be a name or a wildcard such as `*.example.com`, not all names",
            );
        } else if name.parse::<IpAddr>().is_ok() {
            report.error(&path, name, "must be a name; addresses belong into addresses");
        } else if let Some(problem) = host::problem(name) {
            report.error(&path, name, problem);
        } else if name.starts_with('*') && !name.starts_with("*.") {
            report.warn(&format!(
                "{path}: {name:?}: `*` is no whole label here; names ending in the rest are meant"
            ));
        }
    }
}

fn check_ports(report: &mut Report, ports: &[ServicePort]) {
    if ports.len() > 256 {
        report.error("spec.ports", &ports.len().to_string(), "must have at most 256 entries");
        return;
    }
    for (n, port) in ports.iter().enumerate() {
        let path = format!("spec.ports[{n}]");
        let ServicePort {
            number,
            protocol,
            name,
            target_port,
        } = port;
        check::port(report, &format!("{path}.number"), *number);
        if ports[..n].iter().any(|p| p.number == *number) {
            report.error(&format!("{path}.number"), &number.to_string(), "is there twice");
        }
        if name.is_empty() {
            report.error(&format!("{path}.name"), "", "is required");
        } else if ports[..n].iter().any(|p| p.name == *name) {
            report.error(&format!("{path}.name"), name, "is there twice");
        }
        if let Some(protocol) = protocol.as_deref().filter(|p| !p.is_empty()) {
            check_protocol(report, &format!("{path}.protocol"), protocol);
        }
        if let Some(target) = target_port.filter(|t| *t != 0) {
            check::port(report, &format!("{path}.targetPort"), target);
        }
    }
}

/// One of the words of SM-017.
pub(crate) fn check_protocol(report: &mut Report, path: &str, protocol: &str) {
    if !PROTOCOLS.contains(&protocol.to_ascii_uppercase().as_str()) {
        let message = format!(
            "must be one of {}, or left out: it is then detected",
            PROTOCOLS.join(", ")
        );
        report.error(path, protocol, &message);
    }
}

fn check_addresses(report: &mut Report, addresses: &[String], resolution: &str) {
    if addresses.len() > 256 {
        report.error(
            "spec.addresses",
            &addresses.len().to_string(),
            "must have at most 256 entries",
        );
        return;
    }
    for (n, address) in addresses.iter().enumerate() {
        let path = format!("spec.addresses[{n}]");
        if address.len() > 64 || check::subnet(address).is_none() {
            report.error(&path, address, "must be an IP address, or a range such as 10.1.0.0/16");
        } else if address.contains('/') && !matches!(resolution, "NONE" | "STATIC") {
            let message = format!("is a range, which resolution {resolution} does not take; use NONE or STATIC");
            report.error(&path, address, &message);
        }
    }
}

fn check_endpoints(report: &mut Report, spec: &ServiceEntrySpec, resolution: &str) {
    let ServiceEntrySpec { endpoints, ports, .. } = spec;
    if endpoints.len() > 4096 {
        report.error(
            "spec.endpoints",
            &endpoints.len().to_string(),
            "must have at most 4096 entries",
        );
        return;
    }
    if resolution == "NONE" && !endpoints.is_empty() {
        let message = "have no place with resolution NONE, which goes where the client dialled; use STATIC or DNS";
        report.error("spec.endpoints", "", message);
    }
    if resolution == "DNS_ROUND_ROBIN" && endpoints.len() > 1 {
        let message = "must be at most one with DNS_ROUND_ROBIN; use DNS for several";
        report.error("spec.endpoints", &endpoints.len().to_string(), message);
    }
    for (n, endpoint) in endpoints.iter().enumerate() {
        let path = format!("spec.endpoints[{n}]");
        check_endpoint(report, &path, endpoint);
        let WorkloadEntrySpec {
            address, ports: mapped, ..
        } = endpoint;
        for name in mapped.keys().filter(|name| !ports.iter().any(|p| p.name == **name)) {
            report.error(&format!("{path}.ports[{name}]"), name, "is no port name of this entry");
        }
        let is_address = address.parse::<IpAddr>().is_ok();
        let is_socket = address.starts_with(UNIX);
        match resolution {
            "STATIC" if is_socket && ports.len() != 1 => {
                let message = "is a Unix socket, which serves an entry with exactly one port";
                report.error(&format!("{path}.address"), address, message);
            }
            "STATIC" if !is_address && !is_socket && !address.is_empty() => {
                let message = "must be an IP address or unix://<path> with resolution STATIC; use DNS for names";
                report.error(&format!("{path}.address"), address, message);
            }
            "DNS" | "DNS_ROUND_ROBIN" if is_socket => {
                let message = "must be an IP address or a name with resolution DNS; use STATIC for sockets";
                report.error(&format!("{path}.address"), address, message);
            }
            _ => {}
        }
    }
}

/// What fields say of each other.
fn check_together(report: &mut Report, spec: &ServiceEntrySpec, resolution: &str) {
    let ServiceEntrySpec {
        hosts,
        addresses,
        ports,
        endpoints,
        workload_selector,
        ..
    } = spec;
    let class = |port: &ServicePort| Class::of(port.protocol.as_deref().unwrap_or_default());
    if matches!(resolution, "DNS" | "DNS_ROUND_ROBIN") && endpoints.is_empty() && workload_selector.is_none() {
        for (n, name) in hosts.iter().enumerate().filter(|(_, name)| name.starts_with('*')) {
            let message =
                format!("is a wildcard, which resolution {resolution} cannot look up; name endpoints, or use NONE");
            report.error(&format!("spec.hosts[{n}]"), name, &message);
        }
    }
    if hosts.len() > 1 && resolution != "NONE" {
        for (n, port) in ports.iter().enumerate().filter(|(_, p)| class(p) == Class::Other) {
            let message = "must be an HTTP or TLS protocol where several hosts share the port; use one entry per host";
            let protocol = port.protocol.as_deref().unwrap_or_default();
            report.error(&format!("spec.ports[{n}].protocol"), protocol, message);
        }
    }
    if resolution == "DYNAMIC_DNS" {
        for (n, name) in hosts.iter().enumerate().filter(|(_, name)| !name.starts_with('*')) {
            report.error(
                &format!("spec.hosts[{n}]"),
                name,
                "must be a wildcard with DYNAMIC_DNS; use DNS for names",
            );
        }
        for (name, is_set) in [
            ("addresses", !addresses.is_empty()),
            ("endpoints", !endpoints.is_empty()),
        ] {
            if is_set {
                report.error(&format!("spec.{name}"), "", "has no place with DYNAMIC_DNS");
            }
        }
        for (n, port) in ports.iter().enumerate() {
            let protocol = port.protocol.as_deref().unwrap_or_default();
            if !["HTTP", "HTTP2", "GRPC", "TLS"].contains(&protocol.to_ascii_uppercase().as_str()) {
                let message = "must be HTTP, HTTP2, GRPC or TLS with DYNAMIC_DNS";
                report.error(&format!("spec.ports[{n}].protocol"), protocol, message);
            }
        }
    }
    if resolution == "STATIC" && endpoints.is_empty() && workload_selector.is_none() {
        report.warn("spec.endpoints: there are none, nor a workloadSelector; calls get 503");
    }
    if addresses.is_empty() {
        for (n, port) in ports
            .iter()
            .enumerate()
            .filter(|(_, p)| class(p) == Class::Other && p.protocol.is_some())
        {
            report.warn(&format!(
                "spec.ports[{n}]: without addresses, connections to port {} of any address are taken for this entry",
                port.number
            ));
        }
    }
}

/// Labels that a selector asks for (SE-040, SE-068).
pub(crate) fn check_selector(report: &mut Report, path: &str, selector: &LabelSelector) {
    let path = format!("{path}.labels");
    if selector.labels.is_empty() {
        report.warn(&format!("{path}: are empty and select every workload of the namespace"));
    }
    if selector.labels.len() > 256 {
        report.error(
            &path,
            &selector.labels.len().to_string(),
            "must have at most 256 entries",
        );
        return;
    }
    check::match_labels(report, &path, &selector.labels);
}

/// How a port is routed (SM-020).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    Http,
    Tls,
    /// TCP, or not declared.
    Other,
}

impl Class {
    fn of(protocol: &str) -> Self {
        match protocol.to_ascii_uppercase().as_str() {
            "HTTP" | "HTTP2" | "GRPC" | "GRPC-WEB" | "HTTP_PROXY" => Self::Http,
            "HTTPS" | "TLS" => Self::Tls,
            _ => Self::Other,
        }
    }
}

const RESOLUTIONS: [&str; 5] = ["NONE", "STATIC", "DNS", "DNS_ROUND_ROBIN", "DYNAMIC_DNS"];

const PROTOCOLS: [&str; 12] = [
    "HTTP",
    "HTTP2",
    "GRPC",
    "GRPC-WEB",
    "HTTPS",
    "TLS",
    "TCP",
    "UDP",
    "MONGO",
    "MYSQL",
    "REDIS",
    "HTTP_PROXY",
];

#[cfg(test)]
mod tests;
