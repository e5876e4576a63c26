//! What a Sidecar must not say (spec: service-entry.md, `Bad input:`).

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::{
    DefaultEndpoint, HostEntry, IstioEgressListener, IstioIngressListener, OutboundTrafficPolicy, Sidecar, SidecarPort,
    SidecarSpec,
};
use crate::destination_rule::check_pool;
use crate::gateway::ServerTLSSettings;
use crate::service_entry::{check_protocol, check_selector};
use crate::validate::{Report, Validate, check, host};
use crate::workload_entry::UNIX;

impl Validate for Sidecar {
    fn validate(&self) -> Report {
        let mut report = Report::default();
        let SidecarSpec {
            workload_selector,
            ingress,
            egress,
            inbound_connection_pool,
            outbound_traffic_policy,
        } = &self.spec;
        check::no_dry_run(&mut report, &self.metadata);
        let is_empty = ingress.is_empty()
            && egress.is_empty()
            && inbound_connection_pool.is_none()
            && outbound_traffic_policy.is_none();
        if is_empty {
            let message = "must have one of egress, ingress, outboundTrafficPolicy and inboundConnectionPool";
            report.error("spec", "", message);
        }
        if let Some(selector) = workload_selector {
            check_selector(&mut report, "spec.workloadSelector", selector);
        }
        let mut numbers = BTreeSet::new();
        for (n, listener) in ingress.iter().enumerate() {
            check_ingress(&mut report, &format!("spec.ingress[{n}]"), listener, &mut numbers);
        }
        check_egress(&mut report, egress);
        if let Some(pool) = inbound_connection_pool {
            check_pool(&mut report, "spec.inboundConnectionPool", pool);
        }
        if let Some(policy) = outbound_traffic_policy {
            check_policy(&mut report, policy);
        }
        report
    }
}

fn check_policy(report: &mut Report, policy: &OutboundTrafficPolicy) {
    let OutboundTrafficPolicy { mode, egress_proxy } = policy;
    let path = "spec.outboundTrafficPolicy";
    let mode = mode.as_deref().unwrap_or("REGISTRY_ONLY");
    check::one_of(report, &format!("{path}.mode"), mode, &["REGISTRY_ONLY", "ALLOW_ANY"]);
    let Some(proxy) = egress_proxy else { return };
    let path = format!("{path}.egressProxy");
    if mode != "ALLOW_ANY" {
        report.error(
            &path,
            mode,
            "needs mode ALLOW_ANY: with REGISTRY_ONLY nothing is sent there",
        );
    }
    if proxy.host.contains('*') || !proxy.host.contains('.') {
        report.error(
            &format!("{path}.host"),
            &proxy.host,
            "must be a full name with a dot, not a wildcard",
        );
    } else if let Some(problem) = host::problem(&proxy.host) {
        report.error(&format!("{path}.host"), &proxy.host, problem);
    }
    match &proxy.port {
        Some(port) => check::port(report, &format!("{path}.port.number"), port.number),
        None => report.error(&format!("{path}.port"), "", "is required"),
    }
}

fn check_port(report: &mut Report, path: &str, port: &SidecarPort, on_socket: bool) {
    let SidecarPort {
        number,
        protocol,
        name: _,
        target_port,
    } = port;
    let number = number.unwrap_or_default();
    if !on_socket {
        check::port(report, &format!("{path}.number"), number);
    } else if number != 0 {
        let message = "must be 0, because bind is a Unix socket";
        report.error(&format!("{path}.number"), &number.to_string(), message);
    }
    if let Some(protocol) = protocol.as_deref().filter(|p| !p.is_empty()) {
        check_protocol(report, &format!("{path}.protocol"), protocol);
    }
    if let Some(target) = target_port.filter(|t| *t > 0) {
        report.error(
            &format!("{path}.targetPort"),
            &target.to_string(),
            "has no meaning here; leave it out",
        );
    }
}

fn check_ingress(report: &mut Report, path: &str, listener: &IstioIngressListener, numbers: &mut BTreeSet<i64>) {
    let IstioIngressListener {
        port,
        bind,
        capture_mode,
        default_endpoint: endpoint,
        tls,
        connection_pool,
    } = listener;
    match port {
        Some(port) => {
            check_port(report, &format!("{path}.port"), port, false);
            let number = port.number.unwrap_or_default();
            if !numbers.insert(number) {
                report.error(&format!("{path}.port.number"), &number.to_string(), "is there twice");
            }
        }
        None => report.error(&format!("{path}.port"), "", "is required"),
    }
    if let Some(bind) = bind.as_deref().filter(|b| !b.is_empty())
        && bind.parse::<IpAddr>().is_err()
    {
        report.error(&format!("{path}.bind"), bind, "must be an IP address");
    }
    if let Some(mode) = capture_mode {
        check::one_of(report, &format!("{path}.captureMode"), mode, &CAPTURE_MODES);
    }
    if let Some(text) = endpoint
        && let Err(problem) = default_endpoint(text)
    {
        report.error(&format!("{path}.defaultEndpoint"), text, problem);
    }
    if let Some(pool) = connection_pool {
        check_pool(report, &format!("{path}.connectionPool"), pool);
    }
    if let Some(tls) = tls {
        let protocol = port.as_ref().and_then(|p| p.protocol.as_deref()).unwrap_or_default();
        check_tls(report, &format!("{path}.tls"), tls, protocol);
    }
}

fn check_tls(report: &mut Report, path: &str, tls: &ServerTLSSettings, protocol: &str) {
    if !matches!(protocol.to_ascii_uppercase().as_str(), "HTTPS" | "TLS") {
        report.error(path, protocol, "needs port.protocol HTTPS or TLS");
    }
    match tls.mode.as_deref() {
        Some("SIMPLE" | "MUTUAL") => {}
        mode => report.error(
            &format!("{path}.mode"),
            mode.unwrap_or_default(),
            "must be SIMPLE or MUTUAL",
        ),
    }
    let refused = [
        ("httpsRedirect", tls.https_redirect == Some(true)),
        (
            "credentialName",
            tls.credential_name.as_deref().is_some_and(|c| !c.is_empty()),
        ),
        ("credentialNames", !tls.credential_names.is_empty()),
        ("tlsCertificates", !tls.tls_certificates.is_empty()),
        ("subjectAltNames", !tls.subject_alt_names.is_empty()),
    ];
    for (name, _) in refused.iter().filter(|(_, is_set)| *is_set) {
        report.error(
            &format!("{path}.{name}"),
            "",
            "has no place on a sidecar; name files in the proxy's container",
        );
    }
    report.warn(&format!(
        "{path}: is not in force; TLS of the application passes through to it"
    ));
}

fn check_egress(report: &mut Report, egress: &[IstioEgressListener]) {
    let mut numbers = BTreeSet::new();
    let mut binds = BTreeSet::new();
    for (n, listener) in egress.iter().enumerate() {
        let path = format!("spec.egress[{n}]");
        let IstioEgressListener {
            port,
            bind,
            capture_mode,
            hosts,
        } = listener;
        let bind = bind.as_deref().unwrap_or_default();
        let socket = bind.strip_prefix(UNIX);
        match port {
            Some(port) => {
                check_port(report, &format!("{path}.port"), port, socket.is_some());
                let number = port.number.unwrap_or_default();
                if number > 0 && !numbers.insert(number) {
                    report.error(&format!("{path}.port.number"), &number.to_string(), "is there twice");
                }
            }
            None if n + 1 < egress.len() => {
                let message = "is required in all entries but the last: one without port covers what the others leave";
                report.error(&format!("{path}.port"), "", message);
            }
            None => {}
        }
        if let Some(socket) = socket {
            if !socket.starts_with(['/', '@']) || socket.len() < 2 {
                report.error(
                    &format!("{path}.bind"),
                    bind,
                    "must be unix:///<path> or unix://@<name>",
                );
            }
            if port.is_none() {
                report.error(
                    &format!("{path}.port"),
                    "",
                    "is required, with number 0, because bind is a Unix socket",
                );
            }
            if capture_mode.as_deref() == Some("IPTABLES") {
                let message = "cannot be IPTABLES with a Unix socket; use NONE";
                report.error(&format!("{path}.captureMode"), "IPTABLES", message);
            }
            if !binds.insert(bind) {
                report.error(&format!("{path}.bind"), bind, "is there twice");
            }
        } else if !bind.is_empty() && bind.parse::<IpAddr>().is_err() {
            report.error(
                &format!("{path}.bind"),
                bind,
                "must be an IP address, unix:///<path> or unix://@<name>",
            );
        }
        if let Some(mode) = capture_mode {
            check::one_of(report, &format!("{path}.captureMode"), mode, &CAPTURE_MODES);
        }
        check_hosts(report, &format!("{path}.hosts"), hosts);
    }
}

fn check_hosts(report: &mut Report, path: &str, hosts: &[String]) {
    if hosts.is_empty() {
        report.error(path, "", "is required: at least one `namespace/name`");
    }
    if hosts.len() > MAX_HOSTS {
        report.error(path, &hosts.len().to_string(), "must have at most 4096 entries");
        return;
    }
    let mut seen = BTreeSet::new();
    for (n, entry) in hosts.iter().enumerate() {
        if let Err(problem) = host_entry(entry) {
            report.error(&format!("{path}[{n}]"), entry, problem);
        } else if !seen.insert(entry) {
            report.warn(&format!("{path}[{n}]: {entry:?} is there twice"));
        }
    }
    let adds = |entry: &&String| *entry != "*/*" && !entry.starts_with('~');
    if seen.iter().any(|entry| *entry == "*/*") && hosts.iter().any(|entry| adds(&entry)) {
        report.warn(&format!("{path}: `*/*` covers the other entries"));
    }
}

pub(super) fn host_entry(text: &str) -> Result<HostEntry<'_>, &'static str> {
    let Some((namespace, name)) = text.split_once('/') else {
        return Err("must be `namespace/name`, for example `./*` or `*/api.example.com`");
    };
    let (excludes, namespace) = match namespace.strip_prefix('~') {
        // `~/x`: x of no namespace (SE-073).
        Some("") => (true, "*"),
        Some(namespace) => (true, namespace),
        None => (false, namespace),
    };
    if !matches!(namespace, "*" | ".") && !check::is_namespace(namespace) {
        return Err("must have a namespace, `.` for the own one, `*` for all or `~` for none before the `/`");
    }
    if name.starts_with('*') && name != "*" && !name.starts_with("*.") {
        return Err("may have `*` as a whole label in front alone: `*.x`");
    }
    if let Some(problem) = host::problem(name) {
        return Err(if name.is_empty() {
            "must have a name behind the `/`"
        } else {
            problem
        });
    }
    if name != "*" && !name.contains('.') {
        return Err("must have a full name with a dot, `*.x` or `*` behind the `/`");
    }
    Ok(HostEntry {
        excludes,
        namespace,
        name,
    })
}

pub(super) fn default_endpoint(text: &str) -> Result<DefaultEndpoint<'_>, &'static str> {
    const FORMS: &str = "must be 127.0.0.1:<port>, [::1]:<port>, 0.0.0.0:<port>, [::]:<port> or unix:///<path>";
    if text.is_empty() {
        return Ok(DefaultEndpoint::Same);
    }
    if let Some(path) = text.strip_prefix(UNIX) {
        let is_path = path.starts_with('/') && path.len() > 1 && !path.ends_with('/');
        let is_name = path.starts_with('@') && path.len() > 1;
        return if is_path || is_name {
            Ok(DefaultEndpoint::Socket(path))
        } else {
            Err(FORMS)
        };
    }
    let (address, port) = text.rsplit_once(':').ok_or(FORMS)?;
    let port: u16 = port.parse().ok().filter(|port| *port > 0).ok_or(FORMS)?;
    match address {
        "" => Ok(DefaultEndpoint::Same),
        "127.0.0.1" => Ok(DefaultEndpoint::Loopback([127, 0, 0, 1].into(), port)),
        "[::1]" => Ok(DefaultEndpoint::Loopback(std::net::Ipv6Addr::LOCALHOST.into(), port)),
        "0.0.0.0" | "[::]" => Ok(DefaultEndpoint::Pod(port)),
        _ => Err(FORMS),
    }
}

const CAPTURE_MODES: [&str; 3] = ["DEFAULT", "IPTABLES", "NONE"];

const MAX_HOSTS: usize = 4096;

#[cfg(test)]
mod tests;
