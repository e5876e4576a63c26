//! Annotations that are known and not honoured, and those that nobody knows (INJ-152, INJ-162, INJ-167, INJ-168).

use std::collections::BTreeMap;

/// Adds a warning for each annotation that has no effect although it looks as if it had.
pub(super) fn report(annotations: &BTreeMap<String, String>, istio: bool, warnings: &mut Vec<String>) {
    for key in annotations.keys() {
        if let Some(why) = without_effect(key) {
            warnings.push(format!("annotation {key}: ignored, {why}"));
        } else if let Some(name) = key.strip_prefix("weft.dev/") {
            if !WEFT.contains(&name) {
                warnings.push(format!("annotation {key}: unknown, ignored"));
            }
        } else if istio
            && key
                .split_once('/')
                .is_some_and(|(domain, _)| domain.ends_with("istio.io"))
            && !is_istio(key)
        {
            warnings.push(format!("annotation {key}: unknown, ignored"));
        }
    }
}

fn without_effect(key: &str) -> Option<&'static str> {
    match key {
        "sidecar.istio.io/proxyImage" | "sidecar.istio.io/proxyImageType" => {
            Some("it names another proxy's image; use weft.dev/proxy-image")
        }
        "readiness.status.sidecar.istio.io/applicationPorts" => Some("readiness does not depend on it"),
        "sidecar.istio.io/bootstrapOverride"
        | "sidecar.istio.io/discoveryAddress"
        | "sidecar.istio.io/extraStatTags"
        | "sidecar.istio.io/statsFlushInterval"
        | "sidecar.istio.io/statsHistogramBins" => Some("it configures another proxy"),
        _ => None,
    }
}

/// Names under `weft.dev/` that pods carry, by users or by Weft.
const WEFT: &[&str] = &[
    "config-key",
    "exclude-inbound-ports",
    "exclude-interfaces",
    "exclude-outbound-cidrs",
    "exclude-outbound-ports",
    "include-inbound-ports",
    "include-outbound-cidrs",
    "include-outbound-ports",
    "injected-rev",
    "injection-warnings",
    "interception-mode",
    "log-level",
    "native-sidecar",
    "overrides",
    "preserve-qos",
    "proxy-cpu",
    "proxy-cpu-limit",
    "proxy-image",
    "proxy-memory",
    "proxy-memory-limit",
    "readiness-failure-threshold",
    "readiness-initial-delay-seconds",
    "readiness-period-seconds",
    "reroute-virtual-interfaces",
    "rewrite-probes",
    "skip-probe-rewrite",
    "start-without-config",
    "status",
    "status-port",
    "target-rev",
    "templates",
    "user-volume",
    "user-volume-mount",
];

fn is_istio(key: &str) -> bool {
    ISTIO.contains(&key)
}

/// Annotations of the upstream API that a pod may carry.
const ISTIO: &[&str] = &[
    "ambient.istio.io/bypass-inbound-capture",
    "ambient.istio.io/redirection",
    "inject.istio.io/templates",
    "istio.io/rev",
    "istio.io/reroute-virtual-interfaces",
    "networking.istio.io/exportTo",
    "prometheus.istio.io/merge-metrics",
    "prometheus.istio.io/scrape-targets",
    "proxy.istio.io/config",
    "proxy.istio.io/overrides",
    "readiness.status.sidecar.istio.io/failureThreshold",
    "readiness.status.sidecar.istio.io/initialDelaySeconds",
    "readiness.status.sidecar.istio.io/periodSeconds",
    "security.istio.io/autoMTLS",
    "sidecar.istio.io/agentLogLevel",
    "sidecar.istio.io/capNetBindService",
    "sidecar.istio.io/componentLogLevel",
    "sidecar.istio.io/enableCoreDump",
    "sidecar.istio.io/inject",
    "sidecar.istio.io/interceptionMode",
    "sidecar.istio.io/logLevel",
    "sidecar.istio.io/nativeSidecar",
    "sidecar.istio.io/proxyCPU",
    "sidecar.istio.io/proxyCPULimit",
    "sidecar.istio.io/proxyMemory",
    "sidecar.istio.io/proxyMemoryLimit",
    "sidecar.istio.io/rewriteAppHTTPProbers",
    "sidecar.istio.io/statsCompression",
    "sidecar.istio.io/statsEvictionInterval",
    "sidecar.istio.io/statsHistogramBuckets",
    "sidecar.istio.io/statsInclusionPrefixes",
    "sidecar.istio.io/statsInclusionRegexps",
    "sidecar.istio.io/statsInclusionSuffixes",
    "sidecar.istio.io/status",
    "sidecar.istio.io/userVolume",
    "sidecar.istio.io/userVolumeMount",
    "status.sidecar.istio.io/port",
    "traffic.sidecar.istio.io/excludeInboundPorts",
    "traffic.sidecar.istio.io/excludeInterfaces",
    "traffic.sidecar.istio.io/excludeOutboundIPRanges",
    "traffic.sidecar.istio.io/excludeOutboundPorts",
    "traffic.sidecar.istio.io/includeInboundPorts",
    "traffic.sidecar.istio.io/includeOutboundIPRanges",
    "traffic.sidecar.istio.io/includeOutboundPorts",
    "traffic.sidecar.istio.io/kubevirtInterfaces",
];
