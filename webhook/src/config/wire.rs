//! The layout of the settings as text.

use serde::Deserialize;
use serde_json::Value;

use super::{CaptureDefaults, InjectConfig, MeshDefaults, NativeSidecar, Redirect};
use crate::annotations::{cidrs, ports};
use crate::selector::LabelSelector;

/// The part of the chart's values that injection reads.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Wire {
    global: Global,
    revision: String,
    revision_tags: Vec<String>,
    injection: Injection,
    proxy: Proxy,
    proxy_init: ProxyInit,
    delivery: Delivery,
    gateway: Gateway,
    identity: Identity,
    interception: Interception,
    cni: Cni,
    telemetry: Telemetry,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Global {
    hub: Option<String>,
    tag: Option<Value>,
    image_pull_policy: Option<String>,
    image_pull_secrets: Vec<PullSecret>,
    log_as_json: bool,
    namespace: Option<String>,
    cluster_id: Option<String>,
    mesh_id: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum PullSecret {
    Name(String),
    Reference { name: String },
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Injection {
    istio_labels: bool,
    enabled_by_default: bool,
    excluded_namespaces: Vec<String>,
    never_inject_selector: Vec<Value>,
    always_inject_selector: Vec<Value>,
    native_sidecar: Value,
    rewrite_probes: bool,
}

impl Default for Injection {
    fn default() -> Self {
        Self {
            istio_labels: true,
            enabled_by_default: false,
            excluded_namespaces: Vec::new(),
            never_inject_selector: Vec::new(),
            always_inject_selector: Vec::new(),
            native_sidecar: Value::Null,
            rewrite_probes: true,
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Proxy {
    image: Option<String>,
    resources: Option<Value>,
    #[serde(rename = "includeIPRanges")]
    include_ip_ranges: Option<String>,
    #[serde(rename = "excludeIPRanges")]
    exclude_ip_ranges: Option<String>,
    include_inbound_ports: Option<String>,
    exclude_inbound_ports: Option<String>,
    include_outbound_ports: Option<String>,
    exclude_outbound_ports: Option<String>,
    log_level: Option<String>,
    lifecycle: Option<Value>,
    hold_application_until_proxy_starts: bool,
    dns_capture: bool,
    #[serde(rename = "captureAllDNS")]
    capture_all_dns: bool,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Delivery {
    cfg_shards: usize,
    ep_shards: usize,
    tls_shards: Option<usize>,
    ignored_labels: Vec<String>,
}

impl Default for Delivery {
    fn default() -> Self {
        Self {
            cfg_shards: 2,
            ep_shards: 2,
            tls_shards: None,
            ignored_labels: Vec::new(),
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Gateway {
    security_context: Option<Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Identity {
    strict_isolation: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Interception {
    backend: Option<String>,
    iptables_binary: Option<String>,
    reconcile: Option<bool>,
}

impl Interception {
    fn check(self, problems: &mut Vec<String>) -> Redirect {
        let mut one_of = |name: &str, value: Option<String>, accepted: &[&str]| {
            let value = value.filter(|value| !value.is_empty())?;
            if !accepted.contains(&value.as_str()) {
                problems.push(format!(
                    "interception.{name}: {value:?}; must be {}",
                    accepted.join(" or ")
                ));
            }
            Some(value)
        };
        let default = Redirect::default();
        Redirect {
            backend: one_of("backend", self.backend, &["auto", "nftables", "iptables"]).unwrap_or(default.backend),
            iptables_binary: one_of("iptablesBinary", self.iptables_binary, &["nft", "legacy"]),
            reconcile: self.reconcile.unwrap_or(default.reconcile),
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ProxyInit {
    image: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Cni {
    enabled: bool,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Telemetry {
    kiali_annotation: bool,
    max_series_per_metric: Option<i64>,
}

impl Default for Telemetry {
    fn default() -> Self {
        Self {
            kiali_annotation: true,
            max_series_per_metric: None,
        }
    }
}

/// Most label sets of a metric: ten thousand take up to 64 MiB of a proxy's memory (CARD-006).
const MAX_SERIES: u32 = 100_000;

impl Wire {
    /// Checks every value; `None` when there is no image to start from.
    pub(super) fn check(self, mesh: MeshDefaults, problems: &mut Vec<String>) -> Option<InjectConfig> {
        let Self {
            global,
            revision,
            revision_tags,
            injection,
            proxy,
            proxy_init,
            delivery,
            gateway,
            identity,
            interception,
            cni,
            telemetry,
        } = self;
        let image = proxy.image.clone().or_else(|| default_image(&global));
        let Some(image) = image.filter(|image| !image.is_empty() && !image.contains(char::is_whitespace)) else {
            problems
                .push("proxy.image: must name the image of weft-proxy, or global.hub and global.tag must".to_owned());
            return None;
        };
        let mut config = InjectConfig::new(&image);
        if !revision.is_empty() {
            config.revision = revision;
        }
        let unnamed = config.revision == weft_bundle::key::DEFAULT_REVISION;
        config.revision_tags = revision_tags;
        if unnamed {
            config.revision_tags.push("default".to_owned());
        }
        for (path, shards, range) in [
            ("delivery.cfgShards", Some(delivery.cfg_shards), 1..=8),
            ("delivery.epShards", Some(delivery.ep_shards), 1..=8),
            ("delivery.tlsShards", delivery.tls_shards, 0..=8),
        ] {
            if let Some(shards) = shards.filter(|shards| !range.contains(shards)) {
                problems.push(format!(
                    "{path}: {shards} is out of range; must be {} to {}",
                    range.start(),
                    range.end()
                ));
            }
        }
        config.cfg_shards = delivery.cfg_shards;
        config.ep_shards = delivery.ep_shards;
        config.tls_shards = delivery.tls_shards;
        config.ignored_labels = delivery.ignored_labels;
        config.image_pull_policy = global.image_pull_policy.filter(|policy| !policy.is_empty());
        if let Some(policy) = &config.image_pull_policy
            && !["Always", "IfNotPresent", "Never"].contains(&policy.as_str())
        {
            problems.push(format!(
                "global.imagePullPolicy: {policy:?}; must be Always, IfNotPresent or Never"
            ));
        }
        config.image_pull_secrets = global
            .image_pull_secrets
            .into_iter()
            .map(|secret| match secret {
                PullSecret::Name(name) | PullSecret::Reference { name } => name,
            })
            .collect();
        config.log_as_json = global.log_as_json;
        if let Some(namespace) = global.namespace.filter(|namespace| !namespace.is_empty()) {
            config.control_plane_namespace = namespace;
        }
        if let Some(cluster) = global.cluster_id.filter(|cluster| !cluster.is_empty()) {
            config.cluster_id = cluster;
        }
        config.mesh_id = global.mesh_id.filter(|mesh| !mesh.is_empty());
        config.native_sidecar = native(&injection.native_sidecar, problems);
        config.excluded_namespaces = injection.excluded_namespaces;
        config.enabled_by_default = injection.enabled_by_default;
        config.istio_labels = injection.istio_labels;
        config.rewrite_probes = injection.rewrite_probes;
        config.never_inject = selectors("injection.neverInjectSelector", injection.never_inject_selector);
        config.always_inject = selectors("injection.alwaysInjectSelector", injection.always_inject_selector);
        config.capture = capture(&proxy, problems);
        if let Some(resources) = proxy.resources.filter(|resources| !resources.is_null()) {
            if resources.is_object() {
                config.resources = resources;
            } else {
                problems.push("proxy.resources: must be an object with requests and limits".to_owned());
            }
        }
        config.log_level = proxy.log_level.filter(|level| !level.is_empty());
        config.lifecycle = proxy.lifecycle.filter(Value::is_object);
        config.hold_application = proxy.hold_application_until_proxy_starts;
        config.dns_capture = proxy.dns_capture;
        config.capture_all_dns = proxy.capture_all_dns;
        config.gateway_security_context = gateway
            .security_context
            .is_some_and(|context| context.as_object().is_some_and(|fields| !fields.is_empty()));
        config.strict_isolation = identity.strict_isolation;
        config.redirect = interception.check(problems);
        config.init_image = proxy_init.image.filter(|image| !image.is_empty());
        if let Some(image) = config
            .init_image
            .as_ref()
            .filter(|image| image.contains(char::is_whitespace))
        {
            problems.push(format!(
                "proxyInit.image: {image:?}; must be the reference of an image, without spaces"
            ));
        }
        config.cni = cni.enabled;
        config.kiali_annotation = telemetry.kiali_annotation;
        config.max_series = telemetry.max_series_per_metric.and_then(|most| {
            let number = u32::try_from(most).ok().filter(|n| (1..=MAX_SERIES).contains(n));
            if number.is_none() {
                problems.push(format!(
                    "telemetry.maxSeriesPerMetric: {most} is out of range; must be 1 to {MAX_SERIES}"
                ));
            }
            number
        });
        config.mesh = mesh;
        Some(config)
    }
}

fn default_image(global: &Global) -> Option<String> {
    let hub = global.hub.as_deref().filter(|hub| !hub.is_empty())?;
    // A tag such as 1.0 is a number to YAML.
    let tag = match global.tag.as_ref()? {
        Value::String(tag) if !tag.is_empty() => tag.clone(),
        Value::Number(tag) => tag.to_string(),
        _ => return None,
    };
    Some(format!("{}/weft-proxy:{tag}", hub.trim_end_matches('/')))
}

fn native(value: &Value, problems: &mut Vec<String>) -> NativeSidecar {
    match value {
        Value::Null => NativeSidecar::Auto,
        Value::Bool(true) => NativeSidecar::Always,
        Value::Bool(false) => NativeSidecar::Never,
        Value::String(text) => match text.as_str() {
            "" | "auto" => NativeSidecar::Auto,
            "true" => NativeSidecar::Always,
            "false" => NativeSidecar::Never,
            other => {
                problems.push(format!(
                    "injection.nativeSidecar: {other:?}; must be auto, true or false"
                ));
                NativeSidecar::Auto
            }
        },
        other => {
            problems.push(format!("injection.nativeSidecar: {other}; must be auto, true or false"));
            NativeSidecar::Auto
        }
    }
}

/// An unparsable selector is left out and logged; the others stay (INJ-016).
fn selectors(path: &str, values: Vec<Value>) -> Vec<LabelSelector> {
    let mut selectors = Vec::new();
    for (n, value) in values.into_iter().enumerate() {
        match serde_json::from_value::<LabelSelector>(value) {
            Ok(selector) if selector.is_valid() => selectors.push(selector),
            Ok(_) => tracing::warn!(
                selector = format!("{path}[{n}]"),
                "selector skipped: values do not fit the operator"
            ),
            Err(error) => tracing::warn!(selector = format!("{path}[{n}]"), %error, "selector skipped"),
        }
    }
    selectors
}

fn capture(proxy: &Proxy, problems: &mut Vec<String>) -> CaptureDefaults {
    let defaults = CaptureDefaults::default();
    let mut checked =
        |path: &str, value: &Option<String>, default: String, check: &dyn Fn(&str) -> Result<(), String>| {
            let Some(value) = value else { return default };
            if let Err(problem) = check(value) {
                problems.push(format!("proxy.{path}: {problem}"));
            }
            value.clone()
        };
    let include_ports = |text: &str| ports::Selected::parse(text).map(|_| ());
    let port_list = |text: &str| ports::list(text).map(|_| ());
    let include_cidrs = |text: &str| cidrs::Selected::parse(text).map(|_| ());
    let cidr_list = |text: &str| cidrs::list(text).map(|_| ());
    CaptureDefaults {
        include_cidrs: checked(
            "includeIPRanges",
            &proxy.include_ip_ranges,
            defaults.include_cidrs,
            &include_cidrs,
        ),
        exclude_cidrs: checked(
            "excludeIPRanges",
            &proxy.exclude_ip_ranges,
            defaults.exclude_cidrs,
            &cidr_list,
        ),
        include_inbound_ports: checked(
            "includeInboundPorts",
            &proxy.include_inbound_ports,
            defaults.include_inbound_ports,
            &include_ports,
        ),
        exclude_inbound_ports: checked(
            "excludeInboundPorts",
            &proxy.exclude_inbound_ports,
            defaults.exclude_inbound_ports,
            &port_list,
        ),
        include_outbound_ports: checked(
            "includeOutboundPorts",
            &proxy.include_outbound_ports,
            defaults.include_outbound_ports,
            &port_list,
        ),
        exclude_outbound_ports: checked(
            "excludeOutboundPorts",
            &proxy.exclude_outbound_ports,
            defaults.exclude_outbound_ports,
            &port_list,
        ),
    }
}
