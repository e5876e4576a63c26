//! What the proxy is told about its pod (INJ-068 to INJ-071).

use serde_json::{Value, json};
use weft_bundle::key::InterceptionMode;

use super::probes::{self, Probers};
use super::{Plan, container_ports, scrape};
use crate::config::{InjectConfig, ProxyMetadata};
use crate::pod::{at, canonical_text, labels, list_mut, name};

/// The sidecar's environment: Weft's own variables, then those of `proxyMetadata`.
pub(super) fn of_proxy(
    plan: &Plan<'_>,
    pod: &Value,
    probers: &Probers,
    scraped: Option<&str>,
    warnings: &mut Vec<String>,
) -> Vec<Value> {
    let config = plan.config;
    let ports = serde_json::to_string(&container_ports(pod)).expect("ports are strings and numbers");
    let workload = labels(pod)
        .get("service.istio.io/workload-name")
        .cloned()
        .unwrap_or_else(|| plan.workload.name.clone());
    let mut variables = vec![
        field("POD_NAME", "metadata.name"),
        field("POD_NAMESPACE", "metadata.namespace"),
        field("POD_UID", "metadata.uid"),
        field("INSTANCE_IP", "status.podIP"),
        field("POD_IPS", "status.podIPs"),
        field("HOST_IP", "status.hostIP"),
        field("NODE_NAME", "spec.nodeName"),
        field("SERVICE_ACCOUNT", "spec.serviceAccountName"),
        resource("WEFT_CPU_LIMIT", "limits.cpu"),
        resource("WEFT_MEMORY_LIMIT", "limits.memory"),
        literal(CPU_LIMIT_SET, "false"),
        literal("WEFT_REVISION", &config.revision),
        literal("WEFT_CONFIG_KEY", &plan.key),
        literal("WEFT_CLUSTER_ID", &config.cluster_id),
        literal("WEFT_MESH_ID", mesh_id(config)),
        literal("WEFT_TRUST_DOMAIN", &config.mesh.trust_domain),
        literal("WEFT_INTERCEPTION_MODE", interception(plan.overrides.interception)),
        literal("WEFT_WORKLOAD_NAME", &workload),
        literal("WEFT_OWNER", &owner(plan)),
        literal("WEFT_POD_PORTS", &ports),
        literal("WEFT_APP_CONTAINERS", &plan.user_containers.join(",")),
        literal("WEFT_TERMINATION_GRACE_SECONDS", &plan.grace_seconds.to_string()),
    ];
    if plan.native {
        variables.push(literal("WEFT_NATIVE_SIDECAR", "true"));
    }
    if !probers.is_empty() {
        let probers = canonical_text(&Value::Object(probers.clone()));
        variables.push(literal(probes::ENVIRONMENT, &probers));
    }
    if let Some(scraped) = scraped {
        variables.push(literal(scrape::ENVIRONMENT, scraped));
    }
    for (name, port, default) in listen_ports(plan) {
        if port != default {
            variables.push(literal(name, &port.to_string()));
        }
    }
    if let Some(threads) = plan.overrides.proxy_config.concurrency.or(config.mesh.concurrency) {
        variables.push(literal("WEFT_CONCURRENCY", &threads.to_string()));
    }
    if let Some(most) = config.max_series {
        variables.push(literal("WEFT_MAX_SERIES_PER_METRIC", &most.to_string()));
    }
    if let Some(level) = &plan.overrides.log_level {
        variables.push(literal("WEFT_LOG_LEVEL", level));
    }
    if config.log_as_json {
        variables.push(literal("WEFT_LOG_FORMAT", "json"));
    }
    if plan.overrides.start_without_config {
        variables.push(literal("WEFT_START_WITHOUT_CONFIG", "true"));
    }
    for (key, value) in metadata(plan) {
        if variables.iter().any(|variable| name(variable) == key) {
            warnings.push(format!("proxyMetadata {key}: ignored, the injector sets it"));
        } else {
            variables.push(literal(&key, &value));
        }
    }
    variables
}

/// Ports that the proxy is told of where they are not its defaults (NET-011, INJ-163).
fn listen_ports(plan: &Plan<'_>) -> [(&'static str, u16, u16); 4] {
    let mesh = &plan.config.mesh;
    let status = match plan.overrides.status_port {
        0 => 15020,
        port => port,
    };
    [
        ("WEFT_STATUS_PORT", status, 15020),
        ("WEFT_OUTBOUND_PORT", mesh.outbound_port, 15001),
        ("WEFT_INBOUND_PORT", mesh.inbound_port, 15006),
        (
            "WEFT_ADMIN_PORT",
            plan.overrides.proxy_config.admin_port.unwrap_or(mesh.admin_port),
            15000,
        ),
    ]
}

/// The init container's environment: `proxyMetadata` alone (INJ-070).
pub(super) fn of_redirect(plan: &Plan<'_>) -> Vec<Value> {
    metadata(plan)
        .into_iter()
        .filter(|(key, _)| !RESERVED.contains(&key.as_str()))
        .map(|(key, value)| literal(&key, &value))
        .collect()
}

/// Says whether the container, overlay included, has a CPU limit: without one `WEFT_CPU_LIMIT` is the node's (LIFE-085).
pub(super) fn settle(container: &mut Value) {
    let limited = at(container, "resources.limits.cpu").is_some();
    for variable in list_mut(container, "env") {
        if name(variable) == CPU_LIMIT_SET {
            *variable = literal(CPU_LIMIT_SET, if limited { "true" } else { "false" });
        }
    }
}

const CPU_LIMIT_SET: &str = "WEFT_CPU_LIMIT_SET";

/// Names of INJ-068: no metadata replaces them.
const RESERVED: &[&str] = &[
    "HOST_IP",
    "INSTANCE_IP",
    "NODE_NAME",
    "POD_IPS",
    "POD_NAME",
    "POD_NAMESPACE",
    "POD_UID",
    "SERVICE_ACCOUNT",
    "WEFT_APP_CONTAINERS",
    "WEFT_CLUSTER_ID",
    "WEFT_CONFIG_KEY",
    "WEFT_CPU_LIMIT",
    "WEFT_CPU_LIMIT_SET",
    "WEFT_INTERCEPTION_MODE",
    "WEFT_MEMORY_LIMIT",
    "WEFT_MESH_ID",
    "WEFT_NATIVE_SIDECAR",
    "WEFT_OWNER",
    "WEFT_POD_PORTS",
    "WEFT_REVISION",
    "WEFT_TERMINATION_GRACE_SECONDS",
    "WEFT_TRUST_DOMAIN",
    "WEFT_WORKLOAD_NAME",
];

/// The chart's word on DNS capture (NET-090, NET-091), with the mesh's metadata and then the pod's merged over it.
fn metadata(plan: &Plan<'_>) -> ProxyMetadata {
    let config = plan.config;
    let chart = [
        ("ISTIO_META_DNS_CAPTURE", config.dns_capture),
        ("CAPTURE_ALL_DNS", config.capture_all_dns),
    ];
    let set = chart.into_iter().filter(|(_, is_on)| *is_on);
    let mut metadata: ProxyMetadata = set.map(|(name, _)| (name.to_owned(), "true".to_owned())).collect();
    metadata.extend(config.mesh.proxy_metadata.clone());
    metadata.extend(plan.overrides.proxy_config.proxy_metadata.clone());
    metadata
}

/// INJ-071.
fn owner(plan: &Plan<'_>) -> String {
    let super::Workload {
        api_version,
        kind,
        name,
    } = &plan.workload;
    format!(
        "kubernetes://apis/{api_version}/namespaces/{}/{}s/{name}",
        plan.namespace,
        kind.to_lowercase()
    )
}

/// The mode by its name in annotations.
pub(super) fn interception(mode: InterceptionMode) -> &'static str {
    match mode {
        InterceptionMode::Redirect => "REDIRECT",
        InterceptionMode::Tproxy => "TPROXY",
        InterceptionMode::None => "NONE",
    }
}

/// `global.meshId`, else the mesh config's word, else the trust domain.
fn mesh_id(config: &InjectConfig) -> &str {
    let mesh = &config.mesh;
    config
        .mesh_id
        .as_deref()
        .or(mesh.mesh_id.as_deref())
        .unwrap_or(&mesh.trust_domain)
}

fn literal(name: &str, value: &str) -> Value {
    json!({ "name": name, "value": value })
}

fn field(name: &str, path: &str) -> Value {
    json!({ "name": name, "valueFrom": { "fieldRef": { "apiVersion": "v1", "fieldPath": path } } })
}

fn resource(name: &str, resource: &str) -> Value {
    json!({ "name": name, "valueFrom": { "resourceFieldRef": { "divisor": "1", "resource": resource } } })
}
