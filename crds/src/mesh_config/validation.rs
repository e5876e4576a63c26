//! What mesh config must not say.

use super::{MeshConfig, ProxyConfig};
use crate::destination_rule::{check_locality, check_outlier, check_pool, check_zones};
use crate::validate::{Report, check, operators};
use crate::virtual_service::check_retries;

impl MeshConfig {
    /// What is wrong with it; the last valid one stays in force (DLV-085).
    #[must_use]
    pub fn validate(&self) -> Report {
        let mut report = Report::default();
        let mode = |m: Option<&Option<String>>| m.cloned().flatten();
        let enums = [
            (
                "outboundTrafficPolicy.mode",
                mode(self.outbound_traffic_policy.as_ref().map(|p| &p.mode)),
                &["ALLOW_ANY", "REGISTRY_ONLY"][..],
            ),
            (
                "inboundTrafficPolicy.mode",
                mode(self.inbound_traffic_policy.as_ref().map(|p| &p.mode)),
                &["PASSTHROUGH", "LOCALHOST"],
            ),
            ("accessLogEncoding", self.access_log_encoding.clone(), &["TEXT", "JSON"]),
            (
                "pathNormalization.normalization",
                mode(self.path_normalization.as_ref().map(|p| &p.normalization)),
                &["DEFAULT", "NONE", "BASE", "MERGE_SLASHES", "DECODE_AND_MERGE_SLASHES"],
            ),
            (
                "h2UpgradePolicy",
                self.h2_upgrade_policy.clone(),
                &["DO_NOT_UPGRADE", "UPGRADE"],
            ),
            ("weft.compatibility", self.weft.compatibility.clone(), &["istio"]),
            (
                "defaultConfig.interceptionMode",
                self.default_config.as_ref().and_then(|c| c.interception_mode.clone()),
                &["REDIRECT", "TPROXY", "NONE"],
            ),
            (
                "meshMTLS.minProtocolVersion",
                mode(self.mesh_mtls.as_ref().map(|m| &m.min_protocol_version)),
                &["TLS_AUTO", "TLSV1_2", "TLSV1_3"],
            ),
            (
                "tlsDefaults.minProtocolVersion",
                mode(self.tls_defaults.as_ref().map(|t| &t.min_protocol_version)),
                &["TLS_AUTO", "TLSV1_2", "TLSV1_3"],
            ),
        ];
        for (path, value, allowed) in enums {
            if let Some(value) = value {
                check::one_of(&mut report, path, &value, allowed);
            }
        }
        let ports = [
            ("proxyListenPort", self.proxy_listen_port),
            ("proxyInboundListenPort", self.proxy_inbound_listen_port),
            (
                "defaultConfig.statusPort",
                self.default_config.as_ref().and_then(|c| c.status_port),
            ),
            (
                "defaultConfig.proxyAdminPort",
                self.default_config.as_ref().and_then(|c| c.proxy_admin_port),
            ),
        ];
        for (path, port) in ports {
            if let Some(port) = port {
                check::port(&mut report, path, port);
            }
        }
        let concurrency = self.default_config.as_ref().and_then(|c| c.concurrency);
        check::not_negative(&mut report, "defaultConfig.concurrency", concurrency);
        let defaults = [15001, 15006, 15020, 15000];
        let used: Vec<i64> = ports
            .iter()
            .zip(defaults)
            .map(|((_, port), default)| port.unwrap_or(default))
            .collect();
        for (n, (path, _)) in ports.iter().enumerate() {
            if used[..n].contains(&used[n]) {
                report.error(
                    path,
                    &used[n].to_string(),
                    "is the port of another listener of the proxy; each needs its own",
                );
            }
        }
        for (path, domain) in std::iter::once(("trustDomain".to_owned(), self.trust_domain.as_ref())).chain(
            self.trust_domain_aliases
                .iter()
                .enumerate()
                .map(|(n, d)| (format!("trustDomainAliases[{n}]"), Some(d))),
        ) {
            let Some(domain) = domain else { continue };
            let primary = self.trust_domain.as_deref().unwrap_or("cluster.local");
            let known = |alias: &String| alias == domain;
            if path != "trustDomain"
                && (domain == primary || self.trust_domain_aliases.iter().filter(|a| known(a)).count() > 1)
            {
                report.error(&path, domain, "is a trust domain of the mesh already; remove it");
            }
            check_trust_domain(&mut report, &path, domain);
        }
        for (path, duration) in [
            ("connectTimeout", &self.connect_timeout),
            ("dnsRefreshRate", &self.dns_refresh_rate),
            ("protocolDetectionTimeout", &self.protocol_detection_timeout),
        ] {
            if let Some(duration) = duration {
                check::duration(&mut report, path, duration, path == "protocolDetectionTimeout");
            }
        }
        self.check_anchors(&mut report);
        self.check_proxies(&mut report);
        self.check_defaults(&mut report);
        self.check_access_log(&mut report);
        for name in self.unknown.keys().chain(&self.ignored) {
            report.warn(&format!("{name}: is not known to this version and has no effect"));
        }
        report
    }
}

impl MeshConfig {
    fn check_anchors(&self, report: &mut Report) {
        for (n, entry) in self.ca_certificates.iter().enumerate() {
            let path = format!("caCertificates[{n}]");
            match (&entry.pem, &entry.spiffe_bundle_url) {
                (Some(_), None) => {}
                (None, Some(url)) if url.starts_with("https://") => {
                    let message = "is not fetched by this version and has no effect; give the certificates as pem";
                    report.warn(&format!("{path}.spiffeBundleUrl: {message}"));
                }
                (None, Some(url)) => report.error(&format!("{path}.spiffeBundleUrl"), url, "must begin with https://"),
                _ => report.error(&path, "", "must have exactly one of pem and spiffeBundleUrl"),
            }
            for (m, domain) in entry.trust_domains.iter().enumerate() {
                let path = format!("{path}.trustDomains[{m}]");
                check_trust_domain(report, &path, domain);
                if domain.contains(|c: char| c.is_whitespace() || matches!(c, '@' | '*')) {
                    report.error(&path, domain, "must be the name of a trust domain");
                }
            }
        }
    }

    fn check_proxies(&self, report: &mut Report) {
        if let Some(port) = self.proxy_http_port.filter(|port| *port != 0) {
            check::port(report, "proxyHttpPort", port);
        }
        let Some(ProxyConfig {
            drain_duration,
            termination_drain_duration,
            ..
        }) = &self.default_config
        else {
            return;
        };
        if let Some(drain) = drain_duration {
            let is_whole = drain.value().is_some_and(|d| d.as_secs() >= 1 && d.subsec_nanos() == 0);
            if !is_whole {
                let message = "must be a whole number of seconds, 1s or more";
                report.error("defaultConfig.drainDuration", &drain.to_string(), message);
            }
        }
        let drain = termination_drain_duration.as_ref();
        check::optional_duration(report, "defaultConfig.terminationDrainDuration", drain, true);
    }

    /// What stands in where resources say nothing: judged like the fields it stands in for.
    fn check_defaults(&self, report: &mut Report) {
        if let Some(retries) = &self.default_http_retry_policy {
            check_retries(report, "defaultHttpRetryPolicy", retries);
        }
        if let Some(policy) = &self.default_traffic_policy {
            if let Some(pool) = &policy.connection_pool {
                check_pool(report, "defaultTrafficPolicy.connectionPool", pool);
            }
            if let Some(outlier) = &policy.outlier_detection {
                check_outlier(report, "defaultTrafficPolicy.outlierDetection", outlier);
            }
        }
        if let Some(locality) = &self.locality_lb_setting {
            // Outlier detection is up to the rules of each service.
            check_locality(report, "localityLbSetting", locality, true);
        }
        if let Some(zones) = &self.zone_aware_lb_setting {
            check_zones(report, "zoneAwareLbSetting", zones);
        }
        if let Some(keepalive) = &self.tcp_keepalive {
            check::not_negative(report, "tcpKeepalive.probes", keepalive.probes);
            check::optional_duration(report, "tcpKeepalive.time", keepalive.time.as_ref(), false);
            check::optional_duration(report, "tcpKeepalive.interval", keepalive.interval.as_ref(), false);
        }
        for (path, entries) in [
            ("defaultServiceExportTo", &self.default_service_export_to),
            ("defaultVirtualServiceExportTo", &self.default_virtual_service_export_to),
            (
                "defaultDestinationRuleExportTo",
                &self.default_destination_rule_export_to,
            ),
        ] {
            check::export_to(report, path, entries, "");
        }
        if let Some(namespace) = self
            .root_namespace
            .as_deref()
            .filter(|n| !n.is_empty() && !check::is_namespace(n))
        {
            report.error("rootNamespace", namespace, "must be the name of a namespace");
        }
    }

    /// A format for JSON is an object of formats by key (LOG-002).
    fn check_access_log(&self, report: &mut Report) {
        let Some(format) = self.access_log_format.as_deref().filter(|f| !f.is_empty()) else {
            return;
        };
        let is_object = || serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(format).is_ok();
        if self.access_log_encoding.as_deref() == Some("JSON") && !is_object() {
            let message = "must be a JSON object of formats by key, as accessLogEncoding is JSON";
            report.error("accessLogFormat", format, message);
        } else if let Err(problem) = operators::check(format) {
            report.error("accessLogFormat", format, &problem);
        }
    }
}

fn check_trust_domain(report: &mut Report, path: &str, domain: &str) {
    let is_bad = |c: char| c == '/' || c == ':' || c.is_ascii_uppercase();
    if domain.is_empty() || domain.len() > 255 || domain.contains(is_bad) {
        let message = "must be 1 to 255 characters without `/`, `:` and upper case";
        report.error(path, domain, message);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // spec: OPS-023
    #[test]
    fn an_empty_text_is_all_defaults_and_unknown_fields_are_warned_about() {
        assert_eq!(MeshConfig::parse("").expect("empty"), MeshConfig::default());
        let mesh = MeshConfig::parse("enableTracing: true\ntrustDomain: example.org\n").expect("parse");
        assert_eq!(mesh.trust_domain.as_deref(), Some("example.org"));
        assert!(mesh.validate().errors.is_empty());
        assert!(mesh.validate().warnings[0].contains("enableTracing"));
        assert!(MeshConfig::parse("trustDomain: [").is_err());
    }

    // spec: NET-011, ID-009
    #[test]
    fn bad_input_is_named() {
        let errors = |text: &str| {
            let report = MeshConfig::parse(text).expect("parse").validate();
            report.errors.into_iter().map(|e| e.path).collect::<Vec<_>>()
        };
        assert_eq!(
            errors("outboundTrafficPolicy: {mode: ALLOW}"),
            ["outboundTrafficPolicy.mode"]
        );
        assert_eq!(errors("proxyListenPort: 0"), ["proxyListenPort"]);
        assert_eq!(
            errors("defaultConfig: {concurrency: -1, interceptionMode: redirect}"),
            ["defaultConfig.interceptionMode", "defaultConfig.concurrency"]
        );
        assert_eq!(errors("proxyListenPort: 15006"), ["proxyInboundListenPort"]);
        for port in [
            "proxyListenPort",
            "proxyInboundListenPort",
            "defaultConfig.statusPort",
            "defaultConfig.proxyAdminPort",
        ] {
            for taken in [15000, 15001, 15006, 15020] {
                let text = match port.split_once('.') {
                    Some((outer, inner)) => format!("{outer}: {{{inner}: {taken}}}"),
                    None => format!("{port}: {taken}"),
                };
                let is_own = match port {
                    "proxyListenPort" => taken == 15001,
                    "proxyInboundListenPort" => taken == 15006,
                    "defaultConfig.statusPort" => taken == 15020,
                    _ => taken == 15000,
                };
                assert_eq!(errors(&text).is_empty(), is_own, "{text}");
            }
        }
        assert_eq!(
            errors("defaultConfig: {statusPort: 65536}"),
            ["defaultConfig.statusPort"]
        );
        assert_eq!(errors("trustDomain: A/b"), ["trustDomain"]);
        assert_eq!(errors("trustDomainAliases: ['']"), ["trustDomainAliases[0]"]);
        assert_eq!(errors("connectTimeout: soon"), ["connectTimeout"]);
        assert_eq!(errors("dnsRefreshRate: often"), ["dnsRefreshRate"]);
    }

    // spec: OPS-023, LIFE-034, LOG-002, ID-009, SM-117, SM-118
    #[test]
    fn what_stands_in_for_resources_is_judged_like_them() {
        let errors = |text: &str| {
            let report = MeshConfig::parse(text).expect("parse").validate();
            report.errors.into_iter().map(|e| e.path).collect::<Vec<_>>()
        };
        assert_eq!(
            errors("defaultHttpRetryPolicy: {attempts: 2, retryOn: never}"),
            ["defaultHttpRetryPolicy.retryOn"]
        );
        assert_eq!(
            errors("defaultTrafficPolicy: {connectionPool: {tcp: {maxConnections: -1}}}"),
            ["defaultTrafficPolicy.connectionPool.tcp.maxConnections"]
        );
        assert_eq!(
            errors("defaultTrafficPolicy: {outlierDetection: {interval: 0s}}"),
            ["defaultTrafficPolicy.outlierDetection.interval"]
        );
        for bad in ["500ms", "1.5s", "0s"] {
            let path = "defaultConfig.drainDuration";
            assert_eq!(
                errors(&format!("defaultConfig: {{drainDuration: {bad}}}")),
                [path],
                "{bad}"
            );
        }
        assert_eq!(
            errors("{accessLogEncoding: JSON, accessLogFormat: '%PROTOCOL%'}"),
            ["accessLogFormat"]
        );
        assert_eq!(errors("accessLogFormat: '%NOPE%'"), ["accessLogFormat"]);
        assert!(errors("{accessLogEncoding: JSON, accessLogFormat: '{\"a\": \"%PROTOCOL%\"}'}").is_empty());
        assert_eq!(errors("trustDomainAliases: [cluster.local]"), ["trustDomainAliases[0]"]);
        assert_eq!(errors("proxyHttpPort: 70000"), ["proxyHttpPort"]);
        assert!(errors("proxyHttpPort: 0").is_empty());
        assert_eq!(
            errors("defaultServiceExportTo: ['*', a]"),
            ["defaultServiceExportTo[0]"]
        );
        assert_eq!(errors("rootNamespace: A/b"), ["rootNamespace"]);
    }

    // spec: OPS-023
    #[test]
    fn unknown_fields_are_warned_about_at_any_depth() {
        let text = "defaultConfig: {concurency: 2, proxyMetadata: {A: b}}\nweft: {x: 1}\nnope: {}\n";
        let report = MeshConfig::parse(text).expect("parse").validate();
        assert!(report.errors.is_empty());
        let fields: Vec<_> = report.warnings.iter().filter_map(|w| w.split(':').next()).collect();
        assert_eq!(fields, ["nope", "defaultConfig.concurency", "weft.x"]);
    }
}
