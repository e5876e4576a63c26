//! What a Gateway must not say (spec: gateway.md, `Bad input:`).

use std::net::IpAddr;

use super::{Gateway, GatewaySpec, Port, Server, ServerTLSSettings};
use crate::validate::{Report, Validate, check, host};

impl Validate for Gateway {
    fn validate(&self) -> Report {
        let mut report = Report::default();
        let GatewaySpec { selector, servers } = &self.spec;
        check::no_dry_run(&mut report, &self.metadata);
        if let Some(name) = self.metadata.name.as_deref().filter(|n| !check::is_namespace(n)) {
            report.error(
                "metadata.name",
                name,
                "must be a name of a-z, 0-9 and `-`, at most 63, without dots",
            );
        }
        check::match_labels(&mut report, "spec.selector", selector);
        if servers.is_empty() {
            report.error("spec.servers", "", "is required: at least one server");
        }
        for (n, server) in servers.iter().enumerate() {
            let path = format!("spec.servers[{n}]");
            if let Some(name) = port_name(server)
                && servers[..n].iter().any(|s| port_name(s) == Some(name))
            {
                report.error(&format!("{path}.port.name"), name, "is there twice");
            }
            check_server(&mut report, &path, server);
        }
        report
    }
}

fn port_name(server: &Server) -> Option<&str> {
    server.port.as_ref().map(|p| p.name.as_str()).filter(|n| !n.is_empty())
}

fn check_server(report: &mut Report, path: &str, server: &Server) {
    let Server {
        name: _,
        port,
        bind,
        hosts,
        tls,
        default_endpoint,
    } = server;
    let on_socket = bind.as_deref().is_some_and(|b| b.starts_with("unix://"));
    match port {
        Some(port) => check_port(report, &format!("{path}.port"), port, on_socket),
        None => report.error(&format!("{path}.port"), "", "is required: number, protocol and name"),
    }
    if let Some(bind) = bind.as_deref().filter(|b| !b.is_empty()) {
        let is_socket = bind
            .strip_prefix("unix://")
            .is_some_and(|rest| rest.len() > 1 && rest.starts_with(['/', '@']));
        if !is_socket && bind.parse::<IpAddr>().is_err() {
            report.error(
                &format!("{path}.bind"),
                bind,
                "must be an IP address, unix:///<path> or unix://@<name>",
            );
        }
    }
    if hosts.is_empty() {
        report.error(&format!("{path}.hosts"), "", "is required: at least one host");
    }
    for (n, name) in hosts.iter().enumerate() {
        if let Some(problem) = host_problem(name) {
            report.error(&format!("{path}.hosts[{n}]"), name, problem);
        }
    }
    if default_endpoint.is_some() {
        report.warn(&format!("{path}.defaultEndpoint: has no effect"));
    }
    let protocol = port
        .as_ref()
        .map(|p| p.protocol.to_ascii_uppercase())
        .unwrap_or_default();
    check_tls_block(report, &format!("{path}.tls"), tls.as_ref(), &protocol);
}

fn check_port(report: &mut Report, path: &str, port: &Port, on_socket: bool) {
    let Port {
        number,
        protocol,
        name,
        target_port,
    } = port;
    if !on_socket {
        check::port(report, &format!("{path}.number"), *number);
    } else if *number != 0 {
        let message = "must be 0, because bind is a Unix socket";
        report.error(&format!("{path}.number"), &number.to_string(), message);
    }
    if !PROTOCOLS.contains(&protocol.to_ascii_uppercase().as_str()) {
        let message = format!("must be one of {}", PROTOCOLS.join(", "));
        report.error(&format!("{path}.protocol"), protocol, &message);
    }
    if name.is_empty() {
        report.error(&format!("{path}.name"), "", "is required");
    }
    if let Some(target) = target_port.filter(|t| *t > 0) {
        let message = "has no meaning on a gateway; the Service in front of it translates ports";
        report.error(&format!("{path}.targetPort"), &target.to_string(), message);
    }
}

/// Why a text is no `[namespace/]dnsName` (GW-019).
fn host_problem(text: &str) -> Option<&'static str> {
    let (namespace, name) = text.split_once('/').map_or((None, text), |(ns, name)| (Some(ns), name));
    if namespace.is_some_and(|ns| !matches!(ns, "*" | ".") && !check::is_namespace(ns)) {
        return Some("must have a namespace, `.` for the own one, or `*` for any, before the `/`");
    }
    if name.starts_with('*') && name != "*" && !name.starts_with("*.") {
        return Some("may have `*` as a whole label in front alone: `*.x`");
    }
    let is_full = name == "*" || name.contains('.') || name.parse::<IpAddr>().is_ok();
    host::problem(name).or_else(|| (!is_full).then_some("must be a full name with a dot, `*.x`, `*` or an address"))
}

/// Whether the block may be there at all, by the protocol of the port (GW-028, GW-029).
fn check_tls_block(report: &mut Report, path: &str, tls: Option<&ServerTLSSettings>, protocol: &str) {
    match (protocol, tls) {
        ("HTTPS" | "TLS", None) => {
            report.error(
                path,
                "",
                &format!("is required with protocol {protocol}: mode and certificate"),
            );
        }
        ("HTTPS" | "TLS", Some(tls)) => {
            if tls.https_redirect == Some(true) {
                report.warn(&format!("{path}.httpsRedirect: has no effect with protocol {protocol}"));
            }
            check_tls(report, path, tls);
        }
        ("HTTP" | "HTTP2" | "GRPC" | "GRPC-WEB", Some(tls)) => {
            let redirect_alone = ServerTLSSettings {
                https_redirect: tls.https_redirect,
                ..ServerTLSSettings::default()
            };
            if *tls != redirect_alone {
                let message = "may hold httpsRedirect alone on a plaintext server; use protocol HTTPS for TLS";
                report.error(path, protocol, message);
            }
        }
        (known, Some(_)) if PROTOCOLS.contains(&known) => {
            let message = "has no place on a plain TCP server; use protocol TLS";
            report.error(path, known, message);
        }
        _ => {}
    }
}

fn check_tls(report: &mut Report, path: &str, tls: &ServerTLSSettings) {
    let mode = tls.mode.as_deref().unwrap_or("PASSTHROUGH");
    check::one_of(report, &format!("{path}.mode"), mode, &MODES);
    for (name, version) in [
        ("minProtocolVersion", &tls.min_protocol_version),
        ("maxProtocolVersion", &tls.max_protocol_version),
    ] {
        let Some(version) = version else { continue };
        check::one_of(report, &format!("{path}.{name}"), version, &VERSIONS);
        if matches!(version.as_str(), "TLSV1_0" | "TLSV1_1") {
            report.warn(&format!("{path}.{name}: {version} is not offered; TLSV1_2 is used"));
        }
    }
    check_ciphers(report, &format!("{path}.cipherSuites"), &tls.cipher_suites);
    match mode {
        "PASSTHROUGH" | "AUTO_PASSTHROUGH" => {
            for (name, _) in certificates(tls).iter().filter(|(_, is_set)| *is_set) {
                let hint = if tls.mode.is_none() {
                    ", which is what a missing mode means"
                } else {
                    ""
                };
                report.warn(&format!("{path}.{name}: is ignored with {mode}{hint}"));
            }
        }
        "ISTIO_MUTUAL" => {
            for (name, _) in certificates(tls).iter().filter(|(_, is_set)| *is_set) {
                let message = "cannot stand beside ISTIO_MUTUAL, which uses the workload's certificate";
                report.error(&format!("{path}.{name}"), "", message);
            }
        }
        "SIMPLE" | "MUTUAL" | "OPTIONAL_MUTUAL" => check_source(report, path, tls, mode),
        _ => {}
    }
}

/// Where a certificate could come from, by field.
fn certificates(tls: &ServerTLSSettings) -> [(&'static str, bool); 6] {
    let is_set = |field: &Option<String>| field.as_deref().is_some_and(|f| !f.is_empty());
    [
        ("serverCertificate", is_set(&tls.server_certificate)),
        ("privateKey", is_set(&tls.private_key)),
        ("caCertificates", is_set(&tls.ca_certificates)),
        ("tlsCertificates", !tls.tls_certificates.is_empty()),
        ("credentialName", is_set(&tls.credential_name)),
        ("credentialNames", !tls.credential_names.is_empty()),
    ]
}

/// Exactly one source, and an authority where clients are verified from files (GW-036, GW-037, GW-046).
fn check_source(report: &mut Report, path: &str, tls: &ServerTLSSettings, mode: &str) {
    let [
        (_, chain),
        (_, key),
        (_, authorities),
        (_, pairs),
        (_, one_secret),
        (_, secrets),
    ] = certificates(tls);
    let is_set = |field: &Option<String>| field.as_deref().is_some_and(|f| !f.is_empty());
    let from_secrets = one_secret || secrets;
    if from_secrets && chain != key {
        let lone = if chain { "serverCertificate" } else { "privateKey" };
        report.warn(&format!("{path}.{lone}: is ignored beside a credential"));
    }
    let files = if from_secrets { chain && key } else { chain || key };
    let sources = [files, pairs, one_secret, secrets].iter().filter(|s| **s).count();
    if sources != 1 {
        let message = "must have exactly one source of certificates: credentialName, credentialNames, \
                       serverCertificate with privateKey, or tlsCertificates";
        report.error(path, mode, message);
    }
    if files && !from_secrets {
        for (name, there) in [("serverCertificate", chain), ("privateKey", key)] {
            if !there {
                report.error(
                    &format!("{path}.{name}"),
                    "",
                    "is required beside the other one of the pair",
                );
            }
        }
    }
    for (name, length) in [
        ("credentialNames", tls.credential_names.len()),
        ("tlsCertificates", tls.tls_certificates.len()),
    ] {
        if length > 2 {
            report.error(
                &format!("{path}.{name}"),
                &length.to_string(),
                "must have 1 or 2 entries",
            );
        }
    }
    for (n, pair) in tls.tls_certificates.iter().enumerate() {
        let path = format!("{path}.tlsCertificates[{n}]");
        for (name, field) in [
            ("serverCertificate", &pair.server_certificate),
            ("privateKey", &pair.private_key),
        ] {
            if !is_set(field) {
                report.error(&format!("{path}.{name}"), "", "is required");
            }
        }
        if is_set(&pair.ca_certificates) {
            report.warn(&format!(
                "{path}.caCertificates: is ignored; set it beside tlsCertificates"
            ));
        }
    }
    let in_files = (files || pairs) && !from_secrets;
    if in_files && mode != "SIMPLE" && !authorities && !is_set(&tls.ca_cert_credential_name) {
        let message = format!("is required with {mode}: the authorities that clients are verified with");
        report.error(&format!("{path}.caCertificates"), "", &message);
    }
    if is_set(&tls.ca_crl) && from_secrets {
        report.warn(&format!(
            "{path}.caCrl: is ignored beside a credential; the list belongs into the Secret"
        ));
    } else if is_set(&tls.ca_crl) && mode == "SIMPLE" {
        let message = "has no meaning with SIMPLE, which verifies no client; use MUTUAL";
        report.error(&format!("{path}.caCrl"), "", message);
    }
}

/// Names that are skipped (GW-050, GW-051).
fn check_ciphers(report: &mut Report, path: &str, suites: &[String]) {
    for (n, suite) in suites.iter().enumerate() {
        let reason = if suites[..n].contains(suite) {
            "is there twice"
        } else if OFFERED.contains(&suite.as_str()) {
            continue;
        } else if NOT_OFFERED.contains(&suite.as_str()) {
            "is not offered, because it is weak"
        } else {
            "is no name of a cipher suite"
        };
        report.warn(&format!("{path}[{n}]: {suite:?} is skipped: it {reason}"));
    }
}

const PROTOCOLS: [&str; 10] = [
    "HTTP", "HTTPS", "GRPC", "GRPC-WEB", "HTTP2", "MONGO", "TCP", "TLS", "REDIS", "MYSQL",
];

const MODES: [&str; 6] = [
    "PASSTHROUGH",
    "SIMPLE",
    "MUTUAL",
    "AUTO_PASSTHROUGH",
    "ISTIO_MUTUAL",
    "OPTIONAL_MUTUAL",
];

const VERSIONS: [&str; 5] = ["TLS_AUTO", "TLSV1_0", "TLSV1_1", "TLSV1_2", "TLSV1_3"];

/// Suites of TLS 1.2 that proxies have, by OpenSSL's names (GW-050).
pub const OFFERED: [&str; 6] = [
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES128-GCM-SHA256",
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-RSA-AES256-GCM-SHA384",
    "ECDHE-ECDSA-CHACHA20-POLY1305",
    "ECDHE-RSA-CHACHA20-POLY1305",
];

const NOT_OFFERED: [&str; 9] = [
    "ECDHE-ECDSA-AES128-SHA",
    "ECDHE-RSA-AES128-SHA",
    "ECDHE-ECDSA-AES256-SHA",
    "ECDHE-RSA-AES256-SHA",
    "AES128-GCM-SHA256",
    "AES256-GCM-SHA384",
    "AES128-SHA",
    "AES256-SHA",
    "DES-CBC3-SHA",
];

#[cfg(test)]
mod tests;
