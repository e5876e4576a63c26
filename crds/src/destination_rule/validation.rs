//! What a DestinationRule must not say (spec: destination-rule.md, `Bad input:`).

use super::{
    ClientTLSSettings, ConnectionPoolSettings, ConsistentHashLB, DestinationRule, DestinationRuleSpec,
    LoadBalancerSettings, OutlierDetection, TrafficPolicy,
};
use crate::validate::{Report, Validate, check, host};

mod locality;
mod tls;

pub(crate) use locality::{check_locality, check_zones};
use tls::check_tls;

impl Validate for DestinationRule {
    fn validate(&self) -> Report {
        let mut report = Report::default();
        let DestinationRuleSpec {
            host: name,
            traffic_policy,
            subsets,
            export_to,
            workload_selector,
        } = &self.spec;
        let namespace = self.metadata.namespace.as_deref().unwrap_or_default();
        check::no_dry_run(&mut report, &self.metadata);
        if let Some(problem) = host::problem(name) {
            report.error("spec.host", name, problem);
        }
        if let Some(policy) = traffic_policy {
            check_policy(&mut report, "spec.trafficPolicy", policy, namespace);
        }
        for (n, subset) in subsets.iter().enumerate() {
            let path = format!("spec.subsets[{n}]");
            if !check::is_namespace(&subset.name) {
                report.error(
                    &format!("{path}.name"),
                    &subset.name,
                    "must be a name of a-z, 0-9 and `-`, at most 63",
                );
            } else if subsets[..n].iter().any(|s| s.name == subset.name) {
                report.error(&format!("{path}.name"), &subset.name, "is there twice");
            }
            if let Some(policy) = &subset.traffic_policy {
                check_policy(&mut report, &format!("{path}.trafficPolicy"), policy, namespace);
            }
        }
        check::export_to(&mut report, "spec.exportTo", export_to, namespace);
        if let Some(selector) = workload_selector {
            check::match_labels(&mut report, "spec.workloadSelector.matchLabels", &selector.match_labels);
            for (n, entry) in export_to
                .iter()
                .enumerate()
                .filter(|(_, e)| *e != "." && *e != namespace)
            {
                let message = "a rule with workloadSelector is private to its namespace; use `.`";
                report.error(&format!("spec.exportTo[{n}]"), entry, message);
            }
        }
        report
    }
}

fn check_policy(report: &mut Report, path: &str, policy: &TrafficPolicy, namespace: &str) {
    let blocks = Blocks {
        load_balancer: policy.load_balancer.as_ref(),
        connection_pool: policy.connection_pool.as_ref(),
        outlier_detection: policy.outlier_detection.as_ref(),
        tls: policy.tls.as_ref(),
    };
    let has_more = !policy.port_level_settings.is_empty()
        || policy.tunnel.is_some()
        || policy.proxy_protocol.is_some()
        || policy.retry_budget.is_some();
    if blocks.is_empty() && !has_more {
        report.error(path, "", "must have at least one field, or be left out");
    }
    blocks.check(report, path, namespace);
    if policy.port_level_settings.len() > 4096 {
        report.error(
            &format!("{path}.portLevelSettings"),
            "",
            "must have at most 4096 entries",
        );
    }
    for (n, entry) in policy.port_level_settings.iter().enumerate() {
        let path = format!("{path}.portLevelSettings[{n}]");
        match &entry.port {
            Some(port) => check::port(report, &format!("{path}.port.number"), port.number),
            None => report.error(&format!("{path}.port"), "", "is required"),
        }
        let blocks = Blocks {
            load_balancer: entry.load_balancer.as_ref(),
            connection_pool: entry.connection_pool.as_ref(),
            outlier_detection: entry.outlier_detection.as_ref(),
            tls: entry.tls.as_ref(),
        };
        if blocks.is_empty() {
            report.error(
                &path,
                "",
                "must have one of loadBalancer, connectionPool, outlierDetection and tls",
            );
        }
        blocks.check(report, &path, namespace);
    }
    if let Some(tunnel) = &policy.tunnel {
        let path = format!("{path}.tunnel");
        if policy.proxy_protocol.is_some() {
            report.error(&path, "", "cannot stand beside proxyProtocol; remove one of them");
        }
        if tunnel.target_host.contains('*') {
            report.error(
                &format!("{path}.targetHost"),
                &tunnel.target_host,
                "must not be a wildcard",
            );
        } else if let Some(problem) = host::problem(&tunnel.target_host) {
            report.error(&format!("{path}.targetHost"), &tunnel.target_host, problem);
        }
        check::port(report, &format!("{path}.targetPort"), tunnel.target_port);
        if let Some(protocol) = &tunnel.protocol {
            check::one_of(report, &format!("{path}.protocol"), protocol, &["CONNECT", "POST"]);
        }
    }
    if let Some(version) = policy.proxy_protocol.as_ref().and_then(|p| p.version.as_ref()) {
        check::one_of(report, &format!("{path}.proxyProtocol.version"), version, &["V1", "V2"]);
    }
    if let Some(budget) = &policy.retry_budget {
        check::percent(report, &format!("{path}.retryBudget.percent"), budget.percent, false);
        check::not_negative(
            report,
            &format!("{path}.retryBudget.minRetryConcurrency"),
            budget.min_retry_concurrency,
        );
        let interval = budget.budget_interval.as_ref();
        check::optional_duration(report, &format!("{path}.retryBudget.budgetInterval"), interval, true);
    }
}

/// The four blocks that a policy and an entry for a port have in common.
struct Blocks<'a> {
    load_balancer: Option<&'a LoadBalancerSettings>,
    connection_pool: Option<&'a ConnectionPoolSettings>,
    outlier_detection: Option<&'a OutlierDetection>,
    tls: Option<&'a ClientTLSSettings>,
}

impl Blocks<'_> {
    fn is_empty(&self) -> bool {
        self.load_balancer.is_none()
            && self.connection_pool.is_none()
            && self.outlier_detection.is_none()
            && self.tls.is_none()
    }

    fn check(&self, report: &mut Report, path: &str, namespace: &str) {
        if let Some(balancer) = self.load_balancer {
            check_balancer(
                report,
                &format!("{path}.loadBalancer"),
                balancer,
                self.outlier_detection.is_some(),
            );
        }
        if let Some(pool) = self.connection_pool {
            check_pool(report, &format!("{path}.connectionPool"), pool);
        }
        if let Some(outlier) = self.outlier_detection {
            check_outlier(report, &format!("{path}.outlierDetection"), outlier);
        }
        if let Some(tls) = self.tls {
            check_tls(report, &format!("{path}.tls"), tls, namespace);
        }
    }
}

fn check_balancer(report: &mut Report, path: &str, balancer: &LoadBalancerSettings, has_outlier: bool) {
    const SIMPLE: [&str; 6] = [
        "UNSPECIFIED",
        "LEAST_CONN",
        "RANDOM",
        "PASSTHROUGH",
        "ROUND_ROBIN",
        "LEAST_REQUEST",
    ];
    if let Some(simple) = &balancer.simple {
        check::one_of(report, &format!("{path}.simple"), simple, &SIMPLE);
    }
    if let Some(hash) = &balancer.consistent_hash {
        if balancer.simple.is_some() {
            report.error(
                &format!("{path}.consistentHash"),
                "",
                "cannot stand beside simple; remove one of them",
            );
        }
        check_hash(report, &format!("{path}.consistentHash"), hash);
    }
    if let Some(warmup) = &balancer.warmup {
        match &warmup.duration {
            Some(duration) => check::duration(report, &format!("{path}.warmup.duration"), duration, false),
            None => report.error(&format!("{path}.warmup.duration"), "", "is required"),
        }
        if let Some(percent) = warmup.minimum_percent.filter(|p| !(0.0..=100.0).contains(p)) {
            report.error(
                &format!("{path}.warmup.minimumPercent"),
                &percent.to_string(),
                "must be 0 to 100",
            );
        }
        if let Some(aggression) = warmup.aggression.filter(|a| a.is_nan() || *a <= 0.0) {
            report.error(
                &format!("{path}.warmup.aggression"),
                &aggression.to_string(),
                "must be above 0",
            );
        }
    }
    let seconds = balancer.warmup_duration_secs.as_ref();
    check::optional_duration(report, &format!("{path}.warmupDurationSecs"), seconds, false);
    if let Some(locality) = &balancer.locality_lb_setting {
        check_locality(report, &format!("{path}.localityLbSetting"), locality, has_outlier);
    }
    if let Some(zones) = &balancer.zone_aware_lb_setting {
        let path = format!("{path}.zoneAwareLbSetting");
        if balancer.locality_lb_setting.is_some() {
            report.error(&path, "", "cannot stand beside localityLbSetting; remove one of them");
        }
        check_zones(report, &path, zones);
    }
    if balancer.backend_utilization.is_some() {
        report.warn(&format!(
            "{path}.backendUtilization: is not supported and has no effect; the default load balancer is used"
        ));
    }
}

fn check_hash(report: &mut Report, path: &str, hash: &ConsistentHashLB) {
    let keys = [
        hash.http_header_name.is_some(),
        hash.http_cookie.is_some(),
        hash.use_source_ip == Some(true),
        hash.http_query_parameter_name.is_some(),
    ];
    if keys.iter().filter(|is_set| **is_set).count() > 1 {
        let message = "must have one key: httpHeaderName, httpCookie, useSourceIp or httpQueryParameterName";
        report.error(path, "", message);
    }
    if let Some(cookie) = &hash.http_cookie {
        let path = format!("{path}.httpCookie");
        if cookie.name.is_empty() {
            report.error(&format!("{path}.name"), "", "is required");
        }
        check::optional_duration(report, &format!("{path}.ttl"), cookie.ttl.as_ref(), true);
        for (n, attribute) in cookie.attributes.iter().enumerate() {
            let path = format!("{path}.attributes[{n}].name");
            if attribute.name.is_empty() {
                report.error(&path, "", "is required");
            } else if cookie.attributes[..n].iter().any(|a| a.name == attribute.name) {
                report.error(&path, &attribute.name, "is there twice");
            }
        }
    }
    if hash.minimum_ring_size.is_some() && (hash.ring_hash.is_some() || hash.maglev.is_some()) {
        report.error(
            &format!("{path}.minimumRingSize"),
            "",
            "cannot stand beside ringHash and maglev",
        );
    }
    check::not_negative(report, &format!("{path}.minimumRingSize"), hash.minimum_ring_size);
    if let Some(maglev) = &hash.maglev {
        let size = maglev.table_size.unwrap_or(0);
        if !(1..5_000_011).contains(&size) || !is_prime(size) {
            report.error(
                &format!("{path}.maglev.tableSize"),
                &size.to_string(),
                "must be a prime below 5000011",
            );
        }
    }
}

fn is_prime(number: i64) -> bool {
    number > 1 && (2..).take_while(|d| d * d <= number).all(|d| number % d != 0)
}

pub(crate) fn check_pool(report: &mut Report, path: &str, pool: &ConnectionPoolSettings) {
    if pool.tcp.is_none() && pool.http.is_none() {
        report.error(path, "", "must have at least one of tcp and http");
    }
    if let Some(tcp) = &pool.tcp {
        let path = format!("{path}.tcp");
        check::not_negative(report, &format!("{path}.maxConnections"), tcp.max_connections);
        check::optional_duration(
            report,
            &format!("{path}.connectTimeout"),
            tcp.connect_timeout.as_ref(),
            false,
        );
        check::optional_duration(report, &format!("{path}.idleTimeout"), tcp.idle_timeout.as_ref(), true);
        let age = tcp.max_connection_duration.as_ref();
        check::optional_duration(report, &format!("{path}.maxConnectionDuration"), age, false);
        if let Some(keepalive) = &tcp.tcp_keepalive {
            check::not_negative(report, &format!("{path}.tcpKeepalive.probes"), keepalive.probes);
            check::optional_duration(
                report,
                &format!("{path}.tcpKeepalive.time"),
                keepalive.time.as_ref(),
                false,
            );
            let interval = keepalive.interval.as_ref();
            check::optional_duration(report, &format!("{path}.tcpKeepalive.interval"), interval, false);
        }
    }
    let Some(http) = &pool.http else { return };
    let path = format!("{path}.http");
    let numbers = [
        ("http1MaxPendingRequests", http.http1_max_pending_requests),
        ("http2MaxRequests", http.http2_max_requests),
        ("maxRequestsPerConnection", http.max_requests_per_connection),
        ("maxRetries", http.max_retries),
        ("maxConcurrentStreams", http.max_concurrent_streams),
    ];
    for (name, number) in numbers {
        check::not_negative(report, &format!("{path}.{name}"), number);
    }
    check::optional_duration(report, &format!("{path}.idleTimeout"), http.idle_timeout.as_ref(), true);
    if let Some(policy) = &http.h2_upgrade_policy {
        check::one_of(
            report,
            &format!("{path}.h2UpgradePolicy"),
            policy,
            &["DEFAULT", "DO_NOT_UPGRADE", "UPGRADE"],
        );
        if policy == "UPGRADE" && http.use_client_protocol == Some(true) {
            report.error(
                &format!("{path}.useClientProtocol"),
                "true",
                "cannot stand beside h2UpgradePolicy: UPGRADE",
            );
        }
    }
    if let Some(keepalive) = &http.http2_keep_alive {
        let path = format!("{path}.http2KeepAlive");
        for (name, value) in [("interval", &keepalive.interval), ("timeout", &keepalive.timeout)] {
            match value {
                Some(value) => check::duration(report, &format!("{path}.{name}"), value, false),
                None => report.error(&format!("{path}.{name}"), "", "is required"),
            }
        }
    }
}

pub(crate) fn check_outlier(report: &mut Report, path: &str, outlier: &OutlierDetection) {
    let numbers = [
        ("consecutive5xxErrors", outlier.consecutive_5xx_errors),
        ("consecutiveGatewayErrors", outlier.consecutive_gateway_errors),
        (
            "consecutiveLocalOriginFailures",
            outlier.consecutive_local_origin_failures,
        ),
    ];
    for (name, number) in numbers {
        check::not_negative(report, &format!("{path}.{name}"), number);
    }
    check::within(
        report,
        &format!("{path}.maxEjectionPercent"),
        outlier.max_ejection_percent,
        0..=100,
    );
    check::within(
        report,
        &format!("{path}.minHealthPercent"),
        outlier.min_health_percent,
        0..=100,
    );
    check::optional_duration(report, &format!("{path}.interval"), outlier.interval.as_ref(), false);
    check::optional_duration(
        report,
        &format!("{path}.baseEjectionTime"),
        outlier.base_ejection_time.as_ref(),
        false,
    );
    for (n, code) in outlier.outlier_detection_http_error_codes.iter().enumerate() {
        check::within(
            report,
            &format!("{path}.outlierDetectionHttpErrorCodes[{n}]"),
            Some(*code),
            100..=599,
        );
    }
    let local = outlier.consecutive_local_origin_failures.unwrap_or(0);
    if local > 0 && outlier.split_external_local_origin_errors != Some(true) {
        let message = "has no effect without splitExternalLocalOriginErrors: true";
        report.error(
            &format!("{path}.consecutiveLocalOriginFailures"),
            &local.to_string(),
            message,
        );
    }
    if outlier.consecutive_errors.is_some() {
        report.warn(&format!(
            "{path}.consecutiveErrors: has no effect; use consecutive5xxErrors"
        ));
    }
}

#[cfg(test)]
mod tests;
